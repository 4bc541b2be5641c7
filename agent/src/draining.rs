//! Emptying this pod: joins all triggers into one drain, and carries out what [`handoff::drain`] decides.

mod told;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use handoff::{
    PodUid, ServerUid,
    drain::{Action, Blocked, Drain, Ended, Event, Job, Limits, Plan, StopReason, Summary},
    log::Kind,
};
use tokio::{
    sync::{mpsc, watch},
    time::{self, Instant},
};
use wire::session::{self, from_agent};

use self::told::{Told, blocked_by, note};
use crate::{
    agent::{Agent, Pool, Target},
    config::GRACE_MARGIN,
    give::micros,
    hand_over::{InFlight, elsewhere, hand_over},
    news,
    release::release,
    servers::{Phase, Server, unix_ms},
};

/// A standing plan older than this is used only when the operator does not answer with a newer one.
const PLAN_FRESH: Duration = Duration::from_secs(5);

/// When a hook came and the operator knows of no deletion, the kubelet may have given as little as this.
const UNANNOUNCED: Duration = Duration::from_secs(10);

/// How long the operator may take to say whether the pod is being deleted.
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);

/// Progress reports to the operator, at most.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// Until the Services of every node lead elsewhere: kube-proxy writes its rules once a second at most.
pub const ENDPOINTS_CHANGE: Duration = Duration::from_millis(1500);

/// For the operator to record the end of the drain.
const SEEN_WAIT: Duration = Duration::from_secs(1);

/// A server that was stopped is served elsewhere long before this, if it is to be soon.
const ELSEWHERE: Duration = Duration::from_millis(500);

/// No look at a drain by its clock comes sooner after another.
const SOONEST: Duration = Duration::from_millis(10);

/// Between two looks at what the host still has to say.
const LOOK: Duration = Duration::from_millis(20);

/// Arrivals and starts under way are awaited this long, so that they are part of the drain.
const SETTLE: Duration = Duration::from_secs(5);

/// What began the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The kubelet called the preStop hook.
    PreStop,
    /// The agent got SIGTERM.
    Sigterm,
    /// The operator said so: it saw the pod's deletionTimestamp, or a person asked.
    Operator,
}

impl Trigger {
    /// The name that reports and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreStop => "PreStop",
            Self::Sigterm => "Sigterm",
            Self::Operator => "Operator",
        }
    }
}

/// Whether this pod is being emptied, and whether that is over.
pub struct Draining {
    begun: AtomicBool,
    began: Mutex<Option<Instant>>,
    announced: AtomicBool,
    done: watch::Sender<bool>,
    seen: watch::Sender<bool>,
    report: Mutex<Option<session::DrainReport>>,
}

impl Default for Draining {
    fn default() -> Self {
        Self {
            begun: AtomicBool::new(false),
            began: Mutex::new(None),
            announced: AtomicBool::new(false),
            done: watch::Sender::new(false),
            seen: watch::Sender::new(false),
            report: Mutex::new(None),
        }
    }
}

impl Draining {
    /// Whether the drain has begun: this pod takes no server any more.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// When the drain began; now, if it has not.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(Instant::now)
    }

    /// The operator recorded the end of the drain.
    pub fn was_seen(&self) {
        self.seen.send_replace(true);
    }

    /// The newest report, for a session that just opened.
    #[must_use]
    pub fn report(&self) -> Option<session::DrainReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until every server is somewhere else or stopped.
    pub async fn finished(&self) {
        // The sender lives as long as the agent.
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }
}

/// Begins the drain, or joins the one under way.
pub fn begin(agent: &Arc<Agent>, trigger: Trigger) {
    if trigger == Trigger::Operator {
        agent.draining.announced.store(true, Ordering::SeqCst);
    }
    if agent.draining.begun.swap(true, Ordering::SeqCst) {
        return;
    }
    *agent.draining.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    tracing::info!(?trigger, servers = agent.servers.len(), "drain begins");
    tokio::spawn(move_clients_on(agent.clone()));
    agent.metrics.drain(trigger.name());
    crate::session::tell_status(agent);
    agent.moves.abort();
    let agent = agent.clone();
    tokio::spawn(async move {
        if let Ok(pool) = agent.pool() {
            empty(&agent, pool, trigger).await;
        }
        agent.draining.done.send_replace(true);
    });
}

/// Moves or stops all that is here, and then what was still on its way here meanwhile.
async fn empty(agent: &Arc<Agent>, pool: Pool, trigger: Trigger) {
    arrivals(agent).await;
    let (mut running, mut inbox) = Running::new(agent, pool, trigger);
    loop {
        running.round(&mut inbox).await;
        arrivals(agent).await;
        let late = agent.servers.all().iter().any(|server| server.phase() == Phase::Active);
        if !late || Instant::now() >= running.deadline {
            break;
        }
    }
    let deadline = running.deadline;
    running.finish().await;
    last_words(agent, deadline).await;
}

/// Waits until the host has said what it was saying when its servers left, and its sockets are closed: once this drain is
/// over the kubelet ends the host.
async fn last_words(agent: &Arc<Agent>, deadline: Instant) {
    while agent.gateway.at_host() > 0 && Instant::now() < deadline {
        time::sleep(LOOK).await;
    }
}

/// Asks clients to come back on another connection once that leads to another pod. Asked before the Services' rules
/// have changed, they come back here, a thousand times a second.
async fn move_clients_on(agent: Arc<Agent>) {
    time::sleep(ENDPOINTS_CHANGE).await;
    agent.gateway.drain_connections();
}

/// Waits for servers that are on their way in, or out: refusing new ones has begun already.
async fn arrivals(agent: &Arc<Agent>) {
    let until = Instant::now() + SETTLE;
    while Instant::now() < until && !(agent.starting.is_empty() && agent.receiving.is_empty() && agent.moves.is_empty())
    {
        time::sleep(Duration::from_millis(5)).await;
    }
}

/// A drain under way.
struct Running {
    agent: Arc<Agent>,
    pool: Pool,
    trigger: Trigger,
    began: Instant,
    began_at: SystemTime,
    deadline: Instant,
    targets: HashMap<PodUid, Target>,
    aborts: HashMap<ServerUid, watch::Sender<bool>>,
    events: mpsc::UnboundedSender<Event>,
    in_flight: Arc<InFlight>,
    /// What the handoffs had to say.
    told: Arc<Mutex<Told>>,
    /// What became of the servers of earlier rounds.
    past: Summary,
    reported: Instant,
}

impl Running {
    fn new(agent: &Arc<Agent>, pool: Pool, trigger: Trigger) -> (Self, mpsc::UnboundedReceiver<Event>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let began = agent.draining.began();
        let deadline = began + budget(agent, &pool);
        let running = Self {
            agent: agent.clone(),
            in_flight: Arc::new(InFlight::of(&pool)),
            pool,
            trigger,
            began,
            began_at: SystemTime::now(),
            deadline,
            targets: HashMap::new(),
            aborts: HashMap::new(),
            events,
            told: Arc::default(),
            past: Summary::default(),
            reported: began,
        };
        (running, inbox)
    }
}

/// How long the drain may take: the pool's timeout, or what the grace period leaves.
fn budget(agent: &Arc<Agent>, pool: &Pool) -> Duration {
    let left = agent.config.grace().saturating_sub(pool.settings.host_stop_time + GRACE_MARGIN);
    pool.settings.drain.timeout.min(left)
}

impl Running {
    /// Runs one drain of what is here now.
    async fn round(&mut self, inbox: &mut mpsc::UnboundedReceiver<Event>) {
        let agent = self.agent.clone();
        let active = agent.servers.all().into_iter().filter(|server| server.phase() == Phase::Active);
        let jobs: Vec<Job> = active.map(|server| job(&server, &self.pool)).collect();
        let limits = Limits {
            max_concurrency: usize::try_from(self.pool.settings.drain.max_concurrency).unwrap_or(usize::MAX),
            stop_after_failures: self.pool.settings.drain.stop_after_failures,
            ..Limits::default()
        };
        let mut plans = agent.plan.subscribe();
        // Without a session no better plan can come.
        let standing =
            self.take_plan(Some(PLAN_FRESH)).filter(|plan| plan.is_good_enough() || !agent.operator.is_open());
        let now = agent.clock.now();
        let deadline = now + self.deadline.saturating_duration_since(Instant::now());
        let (mut drain, mut actions) = Drain::start(limits, jobs, standing, now, deadline);
        self.report(&drain, true);
        let mut unannounced = Some(self.began + ANNOUNCE_WAIT);
        let stale = self.began + limits.plan_wait / 2;
        let mut stale_used = false;
        loop {
            let mut wake = self.deadline;
            for action in actions {
                match action {
                    Action::Handoff(server, target) => self.hand_off(server, &target),
                    Action::Abort(server) => self.abort(&server),
                    Action::Stop(server, reason) => self.stop(server, reason),
                    Action::Wake(at) => wake = agent.clock.at(at),
                    Action::Done(summary) => return self.past.add(&summary),
                }
            }
            self.report(&drain, false);
            // Past the deadline there is only the end of what was begun to wait for.
            let wake = wake.max(Instant::now() + SOONEST);
            let look = [Some(wake), unannounced, (!stale_used).then_some(stale)].into_iter().flatten().min();
            let event = tokio::select! {
                event = inbox.recv() => event.unwrap_or(Event::Tick),
                Ok(()) = plans.changed() => {
                    let plan = self.take_plan(None).filter(|plan| stale_used || plan.is_good_enough());
                    plan.map_or(Event::Tick, Event::Plan)
                }
                () = time::sleep_until(look.unwrap_or(wake)) => Event::Tick,
            };
            let mut events = vec![event];
            if unannounced.is_some_and(|at| at <= Instant::now()) {
                unannounced = None;
                events.extend(self.shortened());
            }
            if !stale_used && stale <= Instant::now() {
                stale_used = true;
                // No better plan came: the last one is better than none, and targets check offers themselves.
                events.extend(self.take_plan(None).map(Event::Plan));
            }
            let now = agent.clock.now();
            actions = events.into_iter().flat_map(|event| drain.on(event, now)).collect();
        }
    }
}

fn job(server: &Arc<Server>, pool: &Pool) -> Job {
    let held = server.held();
    let settings = server.settings(pool).ok();
    Job {
        server: server.id.uid.clone(),
        handoff: settings.as_ref().is_some_and(|settings| settings.handoff && !settings.cordoned),
        priority: settings.map_or(0, |settings| settings.priority),
        dirty: held.last_sync.is_none_or(|at| at.elapsed().is_ok_and(|since| since > Duration::from_secs(1))),
    }
}

impl Running {
    /// The standing plan, if it is not older than `fresh`.
    fn take_plan(&mut self, fresh: Option<Duration>) -> Option<Plan> {
        let plan = self.agent.plan.borrow();
        let standing = plan.as_ref().filter(|plan| fresh.is_none_or(|fresh| plan.at.elapsed() <= fresh))?;
        self.targets.clone_from(&standing.targets);
        Some(standing.plan.clone())
    }

    /// A hook without a deletion that the operator knows of: the kubelet may have given seconds only.
    fn shortened(&mut self) -> Option<Event> {
        let announced = self.agent.draining.announced.load(Ordering::SeqCst);
        if announced || !self.agent.operator.is_open() || self.trigger == Trigger::Operator {
            return None;
        }
        let deadline = self.began + UNANNOUNCED.min(budget(&self.agent, &self.pool));
        tracing::warn!("no deletion of this pod is known: the drain is cut short");
        self.deadline = self.deadline.min(deadline);
        let left = self.deadline.saturating_duration_since(Instant::now());
        Some(Event::Deadline(self.agent.clock.now() + left))
    }

    fn hand_off(&mut self, uid: ServerUid, target: &PodUid) {
        let (Some(server), Some(target)) = (self.agent.servers.get(&uid), self.targets.get(target).cloned()) else {
            let _ = self.events.send(Event::HandoffEnded(uid, Ended::Gone));
            return;
        };
        let (agent, pool, in_flight) = (self.agent.clone(), self.pool.clone(), self.in_flight.clone());
        let (events, told, until) = (self.events.clone(), self.told.clone(), self.deadline);
        let (abort, aborted) = watch::channel(false);
        self.aborts.insert(uid.clone(), abort);
        tokio::spawn(async move {
            let _turn = in_flight.turn(&server).await;
            let given = hand_over(&agent, &server, target, &pool, until, aborted).await;
            if let Some(gap) = given.gap {
                let _ = events.send(Event::Gap(gap));
            }
            note(&told, &given);
            let _ = events.send(Event::HandoffEnded(uid, given.ended));
        });
    }

    fn abort(&self, server: &ServerUid) {
        if let Some(abort) = self.aborts.get(server) {
            abort.send_replace(true);
        }
    }

    fn stop(&self, uid: ServerUid, reason: StopReason) {
        let Some(server) = self.agent.servers.get(&uid) else {
            let _ = self.events.send(Event::StopEnded(uid, true));
            return;
        };
        let hurries = matches!(reason, StopReason::Deadline | StopReason::StoreUnavailable);
        let starts_elsewhere = !hurries && !self.targets.is_empty() && server.spec.permanent != Some(false);
        let (agent, events, until) = (self.agent.clone(), self.events.clone(), self.deadline);
        tokio::spawn(async move {
            let written = release(&agent, &server, reason.name(), until, Kind::Release).await;
            if written && starts_elsewhere {
                // Its turn is the next one's only when somebody serves it: until then it would only wait in a longer line.
                let _ = time::timeout(ELSEWHERE, elsewhere(&agent, &server.id.name)).await;
            }
            let _ = events.send(Event::StopEnded(uid, written));
        });
    }

    fn report(&mut self, drain: &Drain, now: bool) {
        if now || self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            // While there is an operator it tells everyone sooner.
            if !self.agent.operator.is_open() {
                let agent = self.agent.clone();
                tokio::spawn(async move { news::spread(&agent).await });
            }
            let mut whole = self.past.clone();
            whole.add(drain.summary());
            let blocked = drain.blocked(self.agent.clock.now());
            self.tell(&whole, blocked, if blocked.is_some() { "Blocked" } else { "Running" });
        }
    }

    fn tell(&self, summary: &Summary, blocked: Option<Blocked>, phase: &str) {
        let complete = phase == "Complete";
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let report = session::DrainReport {
            trigger: self.trigger.name().to_owned(),
            phase: phase.to_owned(),
            total: count(summary.total),
            moved: count(summary.moved),
            stopped: count(summary.stopped),
            failed: count(summary.failed),
            reasons: summary.reasons.iter().map(|(reason, n)| (reason.name().to_owned(), count(*n))).collect(),
            started_unix_ms: unix_ms(self.began_at),
            ended_unix_ms: if complete { unix_ms(SystemTime::now()) } else { 0 },
            gaps_us: if complete { told.gaps.clone() } else { Vec::new() },
            blocked_by: blocked_by(blocked, &summary.reasons, &told.reasons),
        };
        drop(told);
        *self.agent.draining.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.clone());
        self.agent.operator.tell(from_agent::Body::Drain(report));
    }

    async fn finish(self) {
        let summary = &self.past;
        tracing::info!(
            total = summary.total,
            moved = summary.moved,
            stopped = summary.stopped,
            failed = summary.failed,
            took_ms = micros(self.began.elapsed()) / 1000,
            "drain is over"
        );
        self.tell(summary, None, "Complete");
        news::spread(&self.agent).await;
        let mut seen = self.agent.draining.seen.subscribe();
        let _ = time::timeout(SEEN_WAIT, seen.wait_for(|seen| *seen)).await;
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
