//! A host as the contract has it: servers in memory, each a list of writes; and, if it knows of such, a lease, which it minds
//! by its own clock.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use bytes::Bytes;
pub use handoff::adopt::Phase;
use handoff::{
    Epoch, Generation, Instant, PodUid, ServerUid,
    adopt::Told,
    source::{Final, Mark, State},
};
use tokio::{
    sync::oneshot,
    time::{self, sleep, sleep_until},
};

use crate::{agent::Agent, check::How, lock, process::Clock, sim::Sim};

/// The version of every state here.
pub const VERSION: u32 = 1;

/// Why a host did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Unreachable,
    NotFound,
    Conflict,
    Overtaken,
}

#[derive(Clone)]
struct Run {
    epoch: Epoch,
    phase: Phase,
    generation: Generation,
    writes: Vec<u32>,
    revision: u64,
    /// The mark with which a standby's state came.
    came: Mark,
}

#[derive(Default)]
struct Inner {
    up: bool,
    instance: u64,
    revision: u64,
    servers: BTreeMap<ServerUid, Run>,
    seen: BTreeMap<ServerUid, (Epoch, u64)>,
    lease: Option<(Generation, Instant)>,
    /// The first attempt of the agent that speaks now.
    first: u64,
    asleep_until: Option<time::Instant>,
}

/// One host.
pub struct Host {
    sim: Arc<Sim>,
    pod: PodUid,
    clock: Clock,
    knows_leases: bool,
    can_be_adopted: bool,
    /// Requests come through it.
    agent: Mutex<Weak<Agent>>,
    inner: Mutex<Inner>,
}

/// A server that is in the host.
pub struct Listed {
    pub uid: ServerUid,
    pub epoch: Epoch,
    pub generation: Generation,
    pub phase: Phase,
}

pub fn body(writes: &[u32]) -> Bytes {
    writes.iter().flat_map(|write| write.to_be_bytes()).collect::<Vec<u8>>().into()
}

fn writes_of(body: &[u8]) -> Vec<u32> {
    body.chunks_exact(4).map(|write| write.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))).collect()
}

impl Host {
    pub fn new(sim: &Arc<Sim>, pod: &PodUid, clock: Clock) -> Arc<Self> {
        let inner = Inner { up: true, instance: sim.chance.number() >> 11, ..Inner::default() };
        let knows_leases = sim.chance.percent(75);
        Arc::new(Self {
            sim: sim.clone(),
            pod: pod.clone(),
            clock,
            knows_leases,
            can_be_adopted: knows_leases && sim.chance.percent(75),
            agent: Mutex::default(),
            inner: Mutex::new(inner),
        })
    }

    /// Requests come through this agent from now on.
    pub fn is_behind(&self, agent: &Arc<Agent>) {
        *lock(&self.agent) = Arc::downgrade(agent);
    }

    /// Whether it ends a lease by its own clock.
    pub fn knows_leases(&self) -> bool {
        self.knows_leases
    }

    /// Whether its servers go on when its agent is restarted.
    pub fn can_be_adopted(&self) -> bool {
        self.can_be_adopted
    }

    /// The process ends, and all servers with it.
    pub fn crash(&self) {
        *lock(&self.inner) = Inner::default();
    }

    pub fn restart(&self) {
        *lock(&self.inner) = Inner { up: true, instance: self.sim.chance.number() >> 11, ..Inner::default() };
    }

    /// Whether any process listens for calls.
    pub fn listens(&self) -> bool {
        lock(&self.inner).up
    }

    /// Whether a request for this server would be handled now.
    pub fn serves(&self, uid: &ServerUid) -> bool {
        let inner = lock(&self.inner);
        inner.servers.get(uid).is_some_and(|run| run.phase == Phase::Active && self.may_serve(&inner, uid, run))
    }

    fn may_serve(&self, inner: &Inner, uid: &ServerUid, run: &Run) -> bool {
        if !self.knows_leases {
            return lock(&self.agent).upgrade().is_some_and(|agent| agent.lets_through(uid));
        }
        self.sim.skips_the_fence()
            || inner
                .lease
                .is_some_and(|(generation, deadline)| run.generation == generation && self.clock.now() < deadline)
    }

    /// A request that changes a server.
    pub fn write(&self, uid: &ServerUid, write: u32) -> Option<Epoch> {
        let mut inner = lock(&self.inner);
        let run = inner.servers.get(uid)?;
        if run.phase != Phase::Active || !self.may_serve(&inner, uid, run) {
            return None;
        }
        inner.revision += 1;
        let revision = inner.revision;
        let run = inner.servers.get_mut(uid)?;
        run.writes.push(write);
        run.revision = revision;
        self.sim.check.answered(uid, run.epoch, write);
        Some(run.epoch)
    }

    /// It does nothing until then, and then all that it was asked to.
    pub fn sleep_until(&self, until: time::Instant) {
        let mut inner = lock(&self.inner);
        inner.asleep_until = inner.asleep_until.max(Some(until));
    }

    /// Until when it sleeps, if it does.
    pub fn asleep(&self) -> Option<time::Instant> {
        lock(&self.inner).asleep_until.filter(|until| *until > time::Instant::now())
    }

    async fn wake(&self) {
        while let Some(until) = self.asleep() {
            sleep_until(until).await;
        }
    }

    /// What was sent to a process is done if that one lives, whatever becomes of who asked.
    async fn call<R: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Self, &mut Inner) -> Result<R, Refused> + Send + 'static,
    ) -> Result<R, Refused> {
        let (host, instance) = (self.clone(), lock(&self.inner).instance);
        let (answer, answered) = oneshot::channel();
        tokio::spawn(async move {
            let slow = host.sim.chance.percent(1);
            sleep(host.sim.chance.ms(if slow { 200..1_500 } else { 0..3 })).await;
            host.wake().await;
            let done = {
                let mut inner = lock(&host.inner);
                if !inner.up || inner.instance != instance {
                    return;
                }
                act(&host, &mut inner)
            };
            sleep(host.sim.chance.ms(0..3)).await;
            host.wake().await;
            if lock(&host.inner).instance == instance {
                let _ = answer.send(done);
            }
        });
        answered.await.unwrap_or(Err(Refused::Unreachable))
    }

    /// Its instance.
    pub async fn describe(self: &Arc<Self>) -> Result<u64, Refused> {
        self.call(|_, inner| Ok(inner.instance)).await
    }

    pub async fn lease(self: &Arc<Self>, lease: Told, mut first: u64) -> Result<(), Refused> {
        let Told { generation, mut deadline } = lease;
        self.call(move |host, inner| {
            if let Some((known, until)) = inner.lease {
                if generation < known {
                    return Err(Refused::Overtaken);
                }
                if generation == known {
                    if host.clock.now() >= until && !host.sim.skips_the_fence() {
                        return Err(Refused::Conflict);
                    }
                    (deadline, first) = (deadline.max(until), first.max(inner.first));
                }
            }
            (inner.lease, inner.first) = (Some((generation, deadline)), first);
            Ok(())
        })
        .await
    }

    pub async fn told(self: &Arc<Self>) -> Result<Option<Told>, Refused> {
        self.call(|_, inner| Ok(inner.lease.map(|(generation, deadline)| Told { generation, deadline }))).await
    }

    pub async fn list(self: &Arc<Self>) -> Result<Vec<Listed>, Refused> {
        self.call(move |_, inner| {
            let listed = |(uid, run): (&ServerUid, &Run)| Listed {
                uid: uid.clone(),
                epoch: run.epoch,
                generation: run.generation,
                phase: run.phase,
            };
            Ok(inner.servers.iter().map(listed).collect())
        })
        .await
    }

    /// Starts a server from this state: to serve, or in standby.
    pub async fn start(
        self: &Arc<Self>,
        uid: &ServerUid,
        (epoch, attempt): (Epoch, u64),
        active: bool,
        state: Option<&State<Bytes>>,
    ) -> Result<Mark, Refused> {
        let (uid, state) = (uid.clone(), state.cloned());
        self.call(move |host, inner| {
            newest(inner, &uid, epoch, attempt)?;
            let generation = host.live(inner)?;
            if inner.servers.get(&uid).is_some_and(|run| run.generation == generation) {
                return Err(Refused::Conflict);
            }
            inner.revision += 1;
            let run = Run {
                epoch,
                phase: if active { Phase::Active } else { Phase::Standby },
                generation,
                writes: state.as_ref().map(|state| writes_of(&state.body)).unwrap_or_default(),
                revision: inner.revision,
                came: state.map(|state| state.mark).unwrap_or_default(),
            };
            let mark = mark(inner.instance, &run);
            if active {
                host.tell(&uid, &run, How::Start);
            }
            inner.servers.insert(uid, run);
            Ok(mark)
        })
        .await
    }

    /// The generation in which something may begin to serve.
    fn live(&self, inner: &Inner) -> Result<Generation, Refused> {
        if !self.knows_leases {
            return Ok(Generation::default());
        }
        let (generation, deadline) = inner.lease.ok_or(Refused::Conflict)?;
        let live = self.clock.now() < deadline || self.sim.skips_the_fence();
        if live { Ok(generation) } else { Err(Refused::Conflict) }
    }

    fn tell(&self, uid: &ServerUid, run: &Run, how: How) {
        // Without leases it starts what was in its socket, however late; its agent lets nobody through to that.
        let closed = || !lock(&self.agent).upgrade().is_some_and(|agent| agent.gate_is_open());
        if !self.knows_leases && closed() {
            return;
        }
        let others = self.sim.others_that_serve(&self.pod, uid);
        self.sim.trace(|| format!("{} serves {uid} in epoch {} ({how:?}) {:?}", self.pod, run.epoch, run.writes));
        self.sim.check.serves(&self.pod, uid, run.epoch, how, &run.writes, &others);
    }

    /// `None`: it is as it was at `since`.
    pub async fn snapshot(
        self: &Arc<Self>,
        uid: &ServerUid,
        epoch: Epoch,
        since: Option<Mark>,
    ) -> Result<Option<State<Bytes>>, Refused> {
        let uid = uid.clone();
        self.call(move |_, inner| {
            let run = here(inner, &uid, epoch)?;
            if run.phase == Phase::Standby {
                return Err(Refused::Conflict);
            }
            Ok(changed(inner.instance, run, since))
        })
        .await
    }

    pub async fn freeze(
        self: &Arc<Self>,
        uid: &ServerUid,
        (epoch, attempt): (Epoch, u64),
        since: Option<Mark>,
    ) -> Result<Final<Bytes>, Refused> {
        let uid = uid.clone();
        self.call(move |_, inner| {
            newest(inner, &uid, epoch, attempt)?;
            let instance = inner.instance;
            let run = here_mut(inner, &uid, epoch)?;
            if run.phase == Phase::Standby {
                return Err(Refused::Conflict);
            }
            run.phase = Phase::Frozen;
            Ok(changed(instance, run, since).map_or_else(|| Final::Unchanged(mark(instance, run)), Final::State))
        })
        .await
    }

    pub async fn thaw(self: &Arc<Self>, uid: &ServerUid, (epoch, attempt): (Epoch, u64)) -> Result<(), Refused> {
        let uid = uid.clone();
        self.call(move |host, inner| {
            newest(inner, &uid, epoch, attempt)?;
            let generation = host.live(inner)?;
            let run = here_mut(inner, &uid, epoch)?;
            if run.phase == Phase::Standby || run.generation != generation {
                return Err(Refused::Conflict);
            }
            run.phase = Phase::Active;
            host.tell(&uid, run, How::Thaw);
            Ok(())
        })
        .await
    }

    pub async fn activate(
        self: &Arc<Self>,
        uid: &ServerUid,
        (epoch, attempt): (Epoch, u64),
        last: &Final<Bytes>,
    ) -> Result<Mark, Refused> {
        let (uid, last) = (uid.clone(), last.clone());
        self.call(move |host, inner| {
            newest(inner, &uid, epoch, attempt)?;
            let generation = host.live(inner)?;
            inner.revision += 1;
            let (instance, revision) = (inner.instance, inner.revision);
            let run = here_mut(inner, &uid, epoch)?;
            if run.phase != Phase::Standby || run.generation != generation {
                return Err(Refused::Conflict);
            }
            match &last {
                Final::State(state) => run.writes = writes_of(&state.body),
                Final::Unchanged(mark) if *mark == run.came => {}
                Final::Unchanged(_) => return Err(Refused::Conflict),
            }
            run.revision = revision;
            run.phase = Phase::Active;
            host.tell(&uid, run, How::Activate);
            Ok(mark(instance, run))
        })
        .await
    }

    pub async fn stop(self: &Arc<Self>, uid: &ServerUid, (epoch, attempt): (Epoch, u64)) -> Result<(), Refused> {
        let uid = uid.clone();
        self.call(move |_, inner| {
            newest(inner, &uid, epoch, attempt)?;
            inner.servers.remove(&uid);
            Ok(())
        })
        .await
    }
}

fn mark(instance: u64, run: &Run) -> Mark {
    Mark { instance, revision: run.revision, checksum: crc32fast::hash(&body(&run.writes)) }
}

fn changed(instance: u64, run: &Run, since: Option<Mark>) -> Option<State<Bytes>> {
    let mark = mark(instance, run);
    (since != Some(mark)).then(|| State { mark, version: VERSION, body: body(&run.writes) })
}

/// A call that a later one has overtaken does nothing, nor does one of an earlier agent.
fn newest(inner: &mut Inner, uid: &ServerUid, epoch: Epoch, attempt: u64) -> Result<(), Refused> {
    if attempt < inner.first {
        return Err(Refused::Overtaken);
    }
    let seen = inner.seen.entry(uid.clone()).or_default();
    if (epoch, attempt) < *seen {
        return Err(Refused::Overtaken);
    }
    *seen = (epoch, attempt);
    Ok(())
}

fn here<'a>(inner: &'a Inner, uid: &ServerUid, epoch: Epoch) -> Result<&'a Run, Refused> {
    let run = inner.servers.get(uid).ok_or(Refused::NotFound)?;
    if run.epoch < epoch { Err(Refused::Conflict) } else { Ok(run) }
}

fn here_mut<'a>(inner: &'a mut Inner, uid: &ServerUid, epoch: Epoch) -> Result<&'a mut Run, Refused> {
    let run = inner.servers.get_mut(uid).ok_or(Refused::NotFound)?;
    if run.epoch < epoch { Err(Refused::Conflict) } else { Ok(run) }
}

/// The time that a process needs to begin, milliseconds.
pub const BOOT: std::ops::Range<u64> = 300..2_500;

/// The most that a host may take for a call.
pub const CALL: Duration = Duration::from_secs(5);
