//! This agent's lease at its edges: [`handoff::lease`] decides, this file looks at the clock, sends heartbeats to the store
//! while there is no session, tells the host until when it may serve, and ends everything when the time is over.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use handoff::{
    Generation, Instant, PodUid,
    adopt::Told,
    lease::{Heartbeat, Lease, Standing},
    log::Writer,
};
use hyper::StatusCode;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::watch,
    time::{self, sleep, timeout},
};

use crate::{
    adopt,
    agent::{APPEND, Agent},
    gate::Gate,
    host::HostError,
    recover,
    servers::unix_ms,
};

/// Until the pool's settings say otherwise: their default.
const DURATION: Duration = Duration::from_secs(15);

/// The clock is looked at so often even if nothing happens: timers do not run while a machine sleeps, this clock does.
const LOOK: Duration = Duration::from_millis(250);

/// One heartbeat to the store, and the pause before the next if it failed. Several fit between the first and the end.
const STORE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(500));

/// One call that tells the host of its lease, and the pause after one that failed.
const TELL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(250));

/// Time since this machine was booted, its sleep included. The same in all containers of a pod.
#[must_use]
pub fn boot_time() -> Instant {
    let now = clock_gettime(ClockId::Boottime);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Instant(Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), nanos))
}

/// What others wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    generation: Generation,
    standing: Standing,
    deadline: Option<Instant>,
}

/// The lease, shared by all parts of the agent.
pub struct Keeper {
    pod: PodUid,
    clock: fn() -> Instant,
    lease: Mutex<Lease>,
    gate: Gate,
    view: watch::Sender<View>,
    /// The host and the generation that it was told of last.
    told: watch::Sender<Option<(u64, Generation)>>,
}

impl Keeper {
    /// A first generation, higher than any of an earlier run of this agent. Closes `gate` whenever there is no lease.
    #[must_use]
    pub fn new(pod: PodUid, clock: fn() -> Instant, gate: Gate) -> Self {
        let lease = Lease::new(begun_now(), DURATION);
        let view = View { generation: lease.generation(), standing: Standing::Waiting, deadline: None };
        let (view, told) = (watch::Sender::new(view), watch::Sender::default());
        gate.close_at(None);
        Self { pod, clock, lease: Mutex::new(lease), gate, view, told }
    }

    fn change<R>(&self, change: impl FnOnce(&mut Lease, Instant) -> R) -> R {
        let mut lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.clock)();
        let result = change(&mut lease, now);
        let standing = lease.look(now);
        self.gate.close_at(lease.ends().filter(|_| standing == Standing::Alive));
        let view = View { generation: lease.generation(), standing, deadline: lease.deadline() };
        self.view.send_if_modified(|known| std::mem::replace(known, view) != view);
        result
    }

    /// This pod.
    #[must_use]
    pub fn pod(&self) -> &PodUid {
        &self.pod
    }

    /// Who begins something now.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer { pod: self.pod.clone(), generation: self.change(|lease, _| lease.generation()) }
    }

    /// A heartbeat to send at once, and how long it counts; `None`: the present generation is over.
    pub fn beat(&self) -> Option<(Heartbeat, Duration)> {
        self.change(|lease, now| Some((lease.beat(now)?, lease.duration())))
    }

    /// The operator, or the store, has this heartbeat.
    pub fn answered(&self, heartbeat: Heartbeat) {
        self.change(|lease, now| lease.answered(heartbeat, now));
    }

    /// The pool's settings.
    pub fn set_duration(&self, duration: Duration) {
        self.change(|lease, _| lease.set_duration(duration));
    }

    /// Goes on with the generation of an earlier run of this agent. No run sends a heartbeat each microsecond: numbered from
    /// the boot clock on, these are above all that were sent before.
    pub(crate) fn resume(&self, told: Told) {
        self.change(|lease, now| {
            let counter = u64::try_from(now.0.as_micros()).unwrap_or(u64::MAX);
            lease.resume(Heartbeat { generation: told.generation, counter }, told.deadline, now);
        });
    }

    /// Begins a generation later than this one, unless the present one is.
    pub(crate) fn begin_after(&self, generation: Generation) {
        self.change(|lease, _| {
            if lease.generation() <= generation {
                lease.begin(begun_now().max(Generation(generation.0.saturating_add(1))));
            }
        });
    }

    /// How long what was answered counts.
    #[must_use]
    pub fn counts(&self) -> Duration {
        self.change(|lease, _| lease.counts())
    }

    /// Until when the host may have been told that it may serve.
    fn lent(&self) -> Option<Told> {
        let View { generation, deadline, .. } = *self.view.borrow();
        deadline.map(|deadline| Told { generation, deadline })
    }

    /// Whether what this generation began may go on, by a look at the clock now.
    #[must_use]
    pub fn holds(&self, generation: Generation) -> bool {
        self.change(|lease, now| lease.generation() == generation && lease.look(now) == Standing::Alive)
    }

    /// Looks at the clock: whoever waits for the end hears of it.
    fn look(&self) {
        self.change(|_, _| ());
    }

    /// Until when an append that begins now may be answered.
    #[must_use]
    pub fn append_until(&self) -> time::Instant {
        let left = self.change(|lease, now| lease.ends().map(|ends| ends - now)).unwrap_or_default();
        time::Instant::now() + left.min(APPEND)
    }

    /// Returns once this generation is over.
    pub async fn ended(&self, generation: Generation) {
        let over = |view: &View| view.generation != generation || view.standing == Standing::Over;
        // The sender lives as long as this.
        let _ = self.view.subscribe().wait_for(over).await;
    }

    /// Waits for the end of a generation that is over; the one in which a session may begin.
    pub async fn next(&self) -> Generation {
        let going = |view: &View| view.standing != Standing::Over;
        // The sender lives as long as this.
        let view = self.view.subscribe().wait_for(going).await.map(|view| *view);
        view.map_or_else(|_| self.change(|lease, _| lease.generation()), |view| view.generation)
    }

    /// Waits until servers may be started here: the lease is good, and the host knows of it if it wants to.
    pub async fn ready(&self, within: Duration) -> bool {
        let ready = async {
            let mut told = self.told.subscribe();
            let mut view = self.view.subscribe();
            loop {
                let now = *view.borrow_and_update();
                let knows = told.borrow_and_update().is_some_and(|(_, generation)| generation == now.generation);
                if knows && self.holds(now.generation) {
                    return;
                }
                tokio::select! {
                    _ = view.changed() => {}
                    _ = told.changed() => {}
                }
            }
        };
        timeout(within, ready).await.is_ok()
    }

    fn end(&self, generation: Generation) {
        self.change(|lease, _| {
            if lease.generation() == generation {
                lease.end();
            }
        });
    }

    fn wants_store(&self) -> bool {
        self.change(|lease, now| {
            lease.look(now) == Standing::Alive && lease.store_from().is_some_and(|from| now >= from)
        })
    }
}

/// Generations grow from run to run, as attempts do.
fn begun_now() -> Generation {
    Generation(unix_ms(SystemTime::now()))
}

/// Looks at the clock for ever: heartbeats to the store when they are due, and the end when it is there.
pub async fn keep(agent: Arc<Agent>) {
    let mut view = agent.lease.view.subscribe();
    loop {
        let now = *view.borrow_and_update();
        let pause = if now.standing == Standing::Over {
            fence(&agent).await;
            Duration::ZERO
        } else if agent.lease.wants_store() {
            beat_in_store(&agent, now.generation).await
        } else {
            LOOK
        };
        let _ = timeout(pause, view.changed()).await;
        // Whatever woke this, the clock is looked at.
        agent.lease.look();
    }
}

/// Returns how long to wait before the next.
async fn beat_in_store(agent: &Arc<Agent>, generation: Generation) -> Duration {
    let (Ok(pool), Some((heartbeat, _))) = (agent.pool(), agent.lease.beat()) else { return STORE.1 };
    let heartbeats = pool.heartbeats();
    let of = Writer { pod: agent.lease.pod().clone(), generation };
    let written = tokio::select! {
        written = timeout(STORE.0, heartbeats.write(&of, heartbeat.counter)) => written,
        () = agent.lease.ended(generation) => return Duration::ZERO,
    };
    match written {
        Ok(Ok(())) => {
            agent.lease.answered(heartbeat);
            tracing::info!(counter = heartbeat.counter, "no answer by session: a heartbeat is in the store");
            tokio::spawn(async move {
                if let Err(error) = heartbeats.forget_before(&of, heartbeat.counter).await {
                    tracing::debug!(%error, "older heartbeats are left in the store");
                }
            });
            LOOK
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "no answer by session, and the store does not take a heartbeat");
            STORE.1
        }
        Err(_) => {
            tracing::warn!("no answer by session, and the store did not answer within {:?}", STORE.0);
            STORE.1
        }
    }
}

/// The time is over: nothing that was begun may be served or finished, and a new generation begins with nothing.
async fn fence(agent: &Arc<Agent>) {
    let lent = agent.lease.lent();
    let held = agent.servers.take_all();
    let ids: Vec<_> = held.iter().map(|server| server.id.clone()).chain(adopt::fence(agent)).collect();
    tracing::error!(servers = ids.len(), "neither the operator nor the store answered a heartbeat: all is stopped");
    for id in &ids {
        agent.routes.hold(id);
    }
    let leftovers = recover::freeze_leftovers(agent).await;
    for id in &ids {
        agent.routes.release_local(id);
    }
    let over = match lent {
        Some(lent) => adopt::end(agent, lent).await,
        None => agent.lease.writer().generation,
    };
    agent.lease.begin_after(over);
    tokio::spawn(recover::release_leftovers(agent.clone(), leftovers));
}

/// Passes the lease on to the host, for ever. A host that does not know of leases serves for as long as this agent lets
/// requests through to it.
pub async fn tell_host(agent: Arc<Agent>) {
    let (mut view, mut described) = (agent.lease.view.subscribe(), agent.described.subscribe());
    loop {
        let now = *view.borrow_and_update();
        let host = described.borrow_and_update().as_ref().map(|host| (host.instance, host.knows_leases()));
        let told = match (host, now.deadline) {
            (Some((instance, true)), Some(deadline)) if now.standing == Standing::Alive => {
                tell(&agent, instance, Told { generation: now.generation, deadline }).await
            }
            (Some((instance, false)), _) => Some((instance, now.generation)),
            _ => agent.lease.told.borrow().filter(|(instance, _)| host.is_some_and(|host| host.0 == *instance)),
        };
        let failed = told.is_none() && host.is_some() && now.standing == Standing::Alive;
        agent.lease.told.send_if_modified(|known| std::mem::replace(known, told) != told);
        tokio::select! {
            _ = view.changed() => {}
            _ = described.changed() => {}
            () = sleep(TELL.1), if failed => {}
        }
    }
}

async fn tell(agent: &Arc<Agent>, instance: u64, lease: Told) -> Option<(u64, Generation)> {
    let generation = lease.generation;
    match agent.host.lease(lease, agent.first_attempt, TELL.0).await {
        Ok(()) => Some((instance, generation)),
        Err(HostError::Refused { status: StatusCode::CONFLICT, message }) => {
            // It slept through its deadline, or through more: it has ended what it had, and so must its agent.
            tracing::error!(message, "the host has ended this generation");
            agent.lease.end(generation);
            None
        }
        Err(error) => {
            tracing::warn!(%error, "the host was not told of its lease");
            agent.lease.told.borrow().filter(|told| *told == (instance, generation))
        }
    }
}
