//! The lease at its edges.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use handoff::{
    Generation, Instant, PodUid,
    adopt::Told,
    lease::{Heartbeat, Lease, Standing},
    log::Writer,
};
use tokio::time::{self, sleep, timeout};

use super::{APPEND, Agent, adopt, recover};
use crate::{faults::Mutation, host::Refused, lock, process::Clock, sim::Sim, watch};

/// Until the pool's settings say otherwise.
const DURATION: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(250);
const STORE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(500));
const TELL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(250));

#[derive(Clone, Copy, PartialEq, Eq)]
struct View {
    generation: Generation,
    standing: Standing,
    deadline: Option<Instant>,
}

/// The lease, shared by all parts of the agent.
pub(super) struct Keeper {
    pod: PodUid,
    clock: Clock,
    lease: Mutex<Lease>,
    view: watch::Sender<View>,
    told: watch::Sender<Option<(u64, Generation)>>,
    /// A mistake: see [`Mutation::LateAnswerRevives`].
    revives: bool,
}

impl Keeper {
    pub fn new(sim: &Sim, pod: PodUid, clock: Clock) -> Self {
        let lease = Lease::new(Generation(sim.now_ms()), DURATION);
        let view = View { generation: lease.generation(), standing: Standing::Waiting, deadline: None };
        Self {
            pod,
            clock,
            lease: Mutex::new(lease),
            view: watch::Sender::new(view),
            told: watch::Sender::default(),
            revives: sim.mutated(Mutation::LateAnswerRevives),
        }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Lease, Instant) -> R) -> R {
        let mut lease = lock(&self.lease);
        let now = self.clock.now();
        let result = change(&mut lease, now);
        let standing = lease.look(now);
        let view = View { generation: lease.generation(), standing, deadline: lease.deadline() };
        self.view.set(view);
        result
    }

    pub fn writer(&self) -> Writer {
        Writer { pod: self.pod.clone(), generation: self.change(|lease, _| lease.generation()) }
    }

    pub fn beat(&self) -> Option<(Heartbeat, Duration)> {
        self.change(|lease, now| Some((lease.beat(now)?, lease.duration())))
    }

    pub fn answered(&self, heartbeat: Heartbeat) {
        self.change(|lease, now| {
            if self.revives && heartbeat.generation == lease.generation() {
                *lease = revived(heartbeat, lease.duration(), now);
            }
            lease.answered(heartbeat, now);
        });
    }

    /// Whether requests may pass to the host, by the clock, whenever this process has looked at it last.
    pub fn gate_is_open(&self) -> bool {
        lock(&self.lease).clone().look(self.clock.now()) == Standing::Alive
    }

    pub fn set_duration(&self, duration: Duration) {
        self.change(|lease, _| lease.set_duration(duration));
    }

    pub fn resume(&self, told: Told) {
        self.change(|lease, now| {
            let counter = u64::try_from(now.0.as_micros()).unwrap_or(u64::MAX);
            lease.resume(Heartbeat { generation: told.generation, counter }, told.deadline, now);
        });
    }

    /// Begins a generation later than this one, unless the present one is.
    pub fn begin_after(&self, generation: Generation, now_ms: u64) {
        self.change(|lease, _| {
            if lease.generation() <= generation {
                lease.begin(Generation(now_ms.max(generation.0 + 1)));
            }
        });
    }

    pub fn counts(&self) -> Duration {
        self.change(|lease, _| lease.counts())
    }

    fn lent(&self) -> Option<Told> {
        let View { generation, deadline, .. } = self.view.get();
        deadline.map(|deadline| Told { generation, deadline })
    }

    pub fn holds(&self, generation: Generation) -> bool {
        self.change(|lease, now| lease.generation() == generation && lease.look(now) == Standing::Alive)
    }

    /// Whether calls that have a server serve may still pass to the host.
    pub fn is_open(&self) -> bool {
        self.change(|lease, now| lease.look(now) == Standing::Alive)
    }

    pub fn append_until(&self) -> time::Instant {
        let left = self.change(|lease, now| lease.ends().map(|ends| ends - now)).unwrap_or_default();
        time::Instant::now() + left.min(APPEND)
    }

    pub async fn ended(&self, generation: Generation) {
        let over = |view: &View| view.generation != generation || view.standing == Standing::Over;
        self.view.subscribe().wait_for(over).await;
    }

    pub async fn next(&self) -> Generation {
        let going = |view: &View| view.standing != Standing::Over;
        self.view.subscribe().wait_for(going).await.generation
    }

    /// Waits until servers may be started here: the lease is good, and the host knows of it.
    pub async fn ready(&self, within: Duration) -> bool {
        let ready = async {
            let (mut told, mut view) = (self.told.subscribe(), self.view.subscribe());
            loop {
                let now = view.see();
                let knows = told.see().is_some_and(|(_, generation)| generation == now.generation);
                if knows && self.holds(now.generation) {
                    return;
                }
                tokio::select! {
                    biased;
                    () = view.changed() => {}
                    () = told.changed() => {}
                }
            }
        };
        timeout(within, ready).await.is_ok()
    }

    fn wants_store(&self) -> bool {
        self.change(|lease, now| {
            lease.look(now) == Standing::Alive && lease.store_from().is_some_and(|from| now >= from)
        })
    }
}

/// A lease that counts from when this answer is looked at.
fn revived(heartbeat: Heartbeat, duration: Duration, now: Instant) -> Lease {
    let mut lease = Lease::new(heartbeat.generation, duration);
    while lease.beat(now).is_some_and(|beat| beat.counter < heartbeat.counter) {}
    lease
}

/// Looks at the clock for ever: heartbeats to the store when they are due, and the end when it is there.
pub(super) async fn keep(agent: Arc<Agent>) {
    let mut view = agent.lease.view.subscribe();
    loop {
        let now = view.see();
        let pause = if now.standing == Standing::Over {
            fence(&agent).await;
            Duration::ZERO
        } else if agent.lease.wants_store() {
            beat_in_store(&agent, now.generation).await
        } else {
            LOOK
        };
        let _ = timeout(pause, view.changed()).await;
        agent.lease.change(|_, _| ());
    }
}

async fn beat_in_store(agent: &Arc<Agent>, generation: Generation) -> Duration {
    let (true, Some((heartbeat, _))) = (agent.pool.get(), agent.lease.beat()) else { return STORE.1 };
    let (heartbeats, of) = (agent.heartbeats(), Writer { pod: agent.pod.clone(), generation });
    let written = tokio::select! {
        biased;
        written = timeout(STORE.0, heartbeats.write(&of, heartbeat.counter)) => written,
        () = agent.lease.ended(generation) => return Duration::ZERO,
    };
    if !matches!(written, Ok(Ok(()))) {
        return STORE.1;
    }
    agent.sim.trace(|| format!("{} heartbeat {} is in the store", agent.pod, heartbeat.counter));
    agent.lease.answered(heartbeat);
    agent.process.spawn(async move {
        let _ = heartbeats.forget_before(&of, heartbeat.counter).await;
    });
    LOOK
}

/// The time is over: nothing that was begun may be served or finished, and a new generation begins with nothing.
async fn fence(agent: &Arc<Agent>) {
    agent.sim.trace(|| format!("{} is fenced", agent.pod));
    if agent.sim.skips_the_fence() {
        agent.lease.change(|lease, _| lease.begin(Generation(agent.sim.now_ms())));
        return;
    }
    let lent = agent.lease.lent();
    lock(&agent.servers).clear();
    for uid in std::mem::take(&mut *lock(&agent.adopting)).into_keys() {
        lock(&agent.starting).remove(&uid);
    }
    let leftovers = recover::freeze_leftovers(agent).await;
    let over = match lent {
        Some(lent) => adopt::end(agent, lent).await,
        None => agent.lease.writer().generation,
    };
    agent.lease.begin_after(over, agent.sim.now_ms());
    agent.process.spawn(recover::release_leftovers(agent.clone(), leftovers));
}

/// Passes the lease on to the host, for ever.
pub(super) async fn tell_host(agent: Arc<Agent>) {
    let (mut view, mut described) = (agent.lease.view.subscribe(), agent.described.subscribe());
    loop {
        let now = view.see();
        let host = described.see();
        let told = match (host, now.deadline) {
            (Some(instance), _) if !agent.host.knows_leases() => Some((instance, now.generation)),
            (Some(instance), Some(deadline)) if now.standing == Standing::Alive => {
                tell(&agent, instance, Told { generation: now.generation, deadline }).await
            }
            _ => agent.lease.told.get().filter(|(instance, _)| host == Some(*instance)),
        };
        let failed = told.is_none() && host.is_some() && now.standing == Standing::Alive;
        agent.lease.told.set(told);
        tokio::select! {
            biased;
            () = view.changed() => {}
            () = described.changed() => {}
            () = sleep(TELL.1), if failed => {}
        }
    }
}

async fn tell(agent: &Arc<Agent>, instance: u64, lease: Told) -> Option<(u64, Generation)> {
    let generation = lease.generation;
    match timeout(TELL.0, agent.host.lease(lease, agent.first_attempt)).await {
        Ok(Ok(())) => Some((instance, generation)),
        Ok(Err(Refused::Conflict)) => {
            agent.lease.change(|lease, _| {
                if lease.generation() == generation {
                    lease.end();
                }
            });
            None
        }
        _ => agent.lease.told.get().filter(|told| *told == (instance, generation)),
    }
}
