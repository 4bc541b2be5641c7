//! Emptying this pod: `handoff::drain` decides.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use handoff::{
    PodUid, ServerUid,
    drain::{Action, Drain, Ended, Event, Job, Limits, Plan, StopReason, Summary},
    source,
};
use tokio::{
    sync::mpsc,
    time::{self, Instant},
};
use wire::session::{DrainReport, from_agent};

use super::{Agent, Phase, give::give, moves, release::release, session};
use crate::{lock, watch};

const PLAN_FRESH: Duration = Duration::from_secs(5);
const REPORT_EVERY: Duration = Duration::from_millis(500);
const SOONEST: Duration = Duration::from_millis(10);
const ELSEWHERE: Duration = Duration::from_millis(500);
const SETTLE: Duration = Duration::from_secs(5);
const UNANNOUNCED: Duration = Duration::from_secs(10);
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);

/// Begins the drain, or joins the one under way.
pub(super) fn begin(agent: &Arc<Agent>, announced: bool) {
    if agent.draining.swap(true, Ordering::Relaxed) {
        return;
    }
    agent.sim.trace(|| format!("{} drains", agent.pod));
    session::tell_status(agent);
    moves::abort(agent);
    let draining = agent.clone();
    agent.process.spawn(async move {
        if draining.pool.get() {
            empty(&draining, announced).await;
        }
        draining.sim.trace(|| format!("{} is drained", draining.pod));
        draining.done.store(true, Ordering::Relaxed);
    });
}

/// Moves or stops all that is here, and then what was still on its way here meanwhile.
async fn empty(agent: &Arc<Agent>, by_operator: bool) {
    let (events, mut inbox) = mpsc::unbounded_channel();
    let began = Instant::now();
    arrivals(agent).await;
    let mut running = Running {
        agent: agent.clone(),
        by_operator,
        began,
        deadline: began + agent.sim.settings.drain.timeout,
        aborts: BTreeMap::new(),
        events,
        past: Summary::default(),
        reported: began,
    };
    loop {
        running.round(&mut inbox).await;
        arrivals(agent).await;
        let late = agent.all().iter().any(|server| server.held().phase == Phase::Active);
        if !late || Instant::now() >= running.deadline {
            break;
        }
    }
    running.tell(&running.past, true);
}

/// Waits for servers that are on their way in: refusing new ones has begun already.
async fn arrivals(agent: &Arc<Agent>) {
    let until = Instant::now() + SETTLE;
    while Instant::now() < until
        && !(lock(&agent.starting).is_empty() && lock(&agent.receiving).is_empty() && lock(&agent.moves).is_empty())
    {
        time::sleep(Duration::from_millis(5)).await;
    }
}

struct Running {
    agent: Arc<Agent>,
    by_operator: bool,
    began: Instant,
    deadline: Instant,
    aborts: BTreeMap<ServerUid, watch::Sender<bool>>,
    events: mpsc::UnboundedSender<Event>,
    past: Summary,
    reported: Instant,
}

impl Running {
    /// Runs one drain of what is here now.
    async fn round(&mut self, inbox: &mut mpsc::UnboundedReceiver<Event>) {
        let agent = self.agent.clone();
        let active = agent.all().into_iter().filter(|server| server.held().phase == Phase::Active);
        let job = |server: Arc<super::Server>| Job {
            server: server.id.uid.clone(),
            handoff: true,
            priority: 0,
            dirty: agent.sim.chance.percent(50),
        };
        let jobs: Vec<Job> = active.map(job).collect();
        let limits = Limits::default();
        let mut plans = agent.plan.subscribe();
        // Without a session no better plan can come.
        let standing = self.plan(Some(PLAN_FRESH)).filter(|plan| plan.is_good_enough() || !agent.has_session());
        let now = agent.clock.now();
        let deadline = now + self.deadline.saturating_duration_since(Instant::now());
        let (mut drain, mut actions) = Drain::start(limits, jobs, standing, now, deadline);
        self.tell(drain.summary(), false);
        let mut unannounced = Some(self.began + ANNOUNCE_WAIT);
        let stale = self.began + limits.plan_wait / 2;
        let mut stale_used = false;
        loop {
            let mut wake = self.deadline;
            for action in actions {
                match action {
                    Action::Handoff(server, target) => self.hand_off(server, target),
                    Action::Abort(server) => {
                        if let Some(abort) = self.aborts.get(&server) {
                            abort.replace(true);
                        }
                    }
                    Action::Stop(server, reason) => self.stop(server, reason),
                    Action::Wake(at) => wake = agent.clock.at(at),
                    Action::Done(summary) => return self.past.add(&summary),
                }
            }
            if self.reported.elapsed() >= REPORT_EVERY {
                self.reported = Instant::now();
                self.tell(drain.summary(), false);
            }
            // Past the deadline there is only the end of what was begun to wait for.
            let wake = wake.max(Instant::now() + SOONEST);
            let look = [Some(wake), unannounced, (!stale_used).then_some(stale)].into_iter().flatten().min();
            let event = tokio::select! {
                biased;
                event = inbox.recv() => event.unwrap_or(Event::Tick),
                () = plans.changed() => {
                    let plan = self.plan(None).filter(|plan| stale_used || plan.is_good_enough());
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
                events.extend(self.plan(None).map(Event::Plan));
            }
            let now = agent.clock.now();
            actions = events.into_iter().flat_map(|event| drain.on(event, now)).collect();
        }
    }

    /// The standing plan, if it is not older than `fresh`.
    fn plan(&self, fresh: Option<Duration>) -> Option<Plan> {
        let plan = self.agent.plan.get()?;
        fresh.is_none_or(|fresh| plan.at.elapsed() <= fresh).then_some(plan.plan)
    }

    /// A hook without a deletion that the operator knows of: the kubelet may have given seconds only.
    fn shortened(&mut self) -> Option<Event> {
        if self.agent.announced.load(Ordering::Relaxed) || !self.agent.has_session() || self.by_operator {
            return None;
        }
        self.deadline = self.deadline.min(self.began + UNANNOUNCED);
        let left = self.deadline.saturating_duration_since(Instant::now());
        Some(Event::Deadline(self.agent.clock.now() + left))
    }

    fn hand_off(&mut self, uid: ServerUid, target: PodUid) {
        let Some(server) = self.agent.get(&uid) else {
            let _ = self.events.send(Event::HandoffEnded(uid, Ended::Gone));
            return;
        };
        let (agent, events) = (self.agent.clone(), self.events.clone());
        let abort = watch::Sender::new(false);
        let aborted = abort.subscribe();
        self.aborts.insert(uid.clone(), abort);
        self.agent.process.spawn(async move {
            let (ended, gap) = give(&agent, &server, target, source::Limits::default(), aborted).await;
            if let Some(gap) = gap {
                let _ = events.send(Event::Gap(gap));
            }
            let _ = events.send(Event::HandoffEnded(uid, ended));
        });
    }

    fn stop(&self, uid: ServerUid, reason: StopReason) {
        let Some(server) = self.agent.get(&uid) else {
            let _ = self.events.send(Event::StopEnded(uid, true));
            return;
        };
        let hurries = matches!(reason, StopReason::Deadline | StopReason::StoreUnavailable);
        let targets = self.agent.plan.get().is_some_and(|standing| !standing.plan.candidates.is_empty());
        let (agent, events, until) = (self.agent.clone(), self.events.clone(), self.deadline);
        self.agent.process.spawn(async move {
            let written = release(&agent, &server, until).await;
            if written && !hurries && targets {
                let _ = time::timeout(ELSEWHERE, elsewhere(&agent, &uid)).await;
            }
            let _ = events.send(Event::StopEnded(uid, written));
        });
    }

    fn tell(&self, summary: &Summary, complete: bool) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let report = DrainReport {
            trigger: if self.by_operator { "Operator" } else { "PreStop" }.into(),
            phase: if complete { "Complete" } else { "Running" }.into(),
            total: count(summary.total),
            moved: count(summary.moved),
            stopped: count(summary.stopped),
            failed: count(summary.failed),
            ..DrainReport::default()
        };
        *lock(&self.agent.report) = Some(report.clone());
        self.agent.tell(from_agent::Body::Drain(report));
    }
}

/// The agent learns it from the directory.
async fn elsewhere(agent: &Arc<Agent>, uid: &ServerUid) {
    while agent.sim.others_that_serve(&agent.pod, uid).is_empty() {
        time::sleep(SOONEST).await;
    }
}
