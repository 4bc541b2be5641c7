//! Emptying one pod: which server goes where and when, what is retried, when to stop trying, and how much of the
//! time is kept back to stop the rest gracefully.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

mod why;

pub use why::{Blocked, StopReason, foremost};

use crate::{
    ids::{Instant, PodUid, ServerUid},
    placement::rank,
    source::Cause,
    window::Window,
};

/// Attempts at a server whose state this pod's host does not give. It may be busy with one long request.
const HOST_TRIES: u32 = 3;

/// Bounds of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Handoffs in flight at once, at most.
    pub max_concurrency: usize,
    /// Graceful stops in flight at once when time is short.
    pub stop_concurrency: usize,
    /// The same while there is time: a stop may then last until its server is served elsewhere, and more at once would
    /// only wait there, served by nobody.
    pub gentle_stops: usize,
    /// Consecutive failed handoffs after which no more are begun.
    pub stop_after_failures: u32,
    /// How long to wait for any plan at all, and for a pod that is not in it yet.
    pub plan_wait: Duration,
    /// Before handoffs are tried again after the store could not be written.
    pub store_retry: Duration,
    /// Time to keep for each round of `stop_concurrency` graceful stops.
    pub stop_round: Duration,
    /// Time to keep besides, however few are left.
    pub stop_floor: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_concurrency: 50,
            stop_concurrency: 50,
            gentle_stops: 12,
            stop_after_failures: 3,
            plan_wait: Duration::from_secs(1),
            store_retry: Duration::from_millis(500),
            stop_round: Duration::from_millis(250),
            stop_floor: Duration::from_secs(2),
        }
    }
}

/// One server to be moved or stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which.
    pub server: ServerUid,
    /// Whether handoff is on for it.
    pub handoff: bool,
    /// Higher goes first.
    pub priority: i32,
    /// It has changes that are not in the store: it has more to lose, so it goes before others of its priority.
    pub dirty: bool,
}

/// A pod that may take servers, as the plan says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub pod: PodUid,
    /// Of the newest revision: preferred.
    pub newest: bool,
    /// Of older pods, the lower, the sooner it ends: those that end last are preferred.
    pub deletion_cost: i32,
    /// How far it is from this pod, by what servers stay near to: the nearest are preferred.
    pub far: u32,
    /// Servers it has.
    pub load: u32,
    /// Servers it may have.
    pub capacity: u32,
}

/// Where servers may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Pods that are eligible now.
    pub candidates: Vec<Candidate>,
    /// A pod of the pool is on its way to become eligible: worth serving on and waiting for.
    pub more_expected: bool,
}

impl Plan {
    /// Whether to begin on this plan while a better one may come any moment. Without a pod of the newest revision it is
    /// likely of the time just before one became ready, and its targets are the next to die: a server should move once.
    #[must_use]
    pub fn is_good_enough(&self) -> bool {
        self.candidates.iter().any(|candidate| candidate.newest)
    }
}

/// How one handoff ended, for the drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is served there.
    Moved,
    /// It is still here.
    Kept(Cause),
    /// It is not here any more, and where it is will be found out by others (fenced, disclaimed).
    Gone,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A plan, or a better one.
    Plan(Plan),
    /// How long a server was served nowhere in its handoff.
    Gap(Duration),
    /// A handoff is over.
    HandoffEnded(ServerUid, Ended),
    /// A graceful stop is over; `false`: its last state could not be written.
    StopEnded(ServerUid, bool),
    /// The drain must be over earlier than was thought.
    Deadline(Instant),
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Begin a handoff.
    Handoff(ServerUid, PodUid),
    /// Give up a handoff that is not past Final: the time that is left is for stopping.
    Abort(ServerUid),
    /// Freeze, write a Release, stop.
    Stop(ServerUid, StopReason),
    /// Look again at this time, with a [`Event::Tick`].
    Wake(Instant),
    /// Every server is somewhere else or stopped.
    Done(Summary),
}

/// What became of the servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All that the drain began with.
    pub total: usize,
    /// Handed off, live.
    pub moved: usize,
    /// Stopped with their state written.
    pub stopped: usize,
    /// Stopped without.
    pub failed: usize,
    /// Stops by reason.
    pub reasons: BTreeMap<StopReason, usize>,
}

impl Summary {
    /// Adds what became of others.
    pub fn add(&mut self, other: &Self) {
        self.total += other.total;
        self.moved += other.moved;
        self.stopped += other.stopped;
        self.failed += other.failed;
        for (reason, n) in &other.reasons {
            *self.reasons.entry(*reason).or_default() += n;
        }
    }
}

struct Waiting {
    job: Job,
    /// Its place in the order in which servers go.
    rank: usize,
    tried: HashSet<PodUid>,
    host_failures: u32,
}

impl Waiting {
    fn new((rank, job): (usize, Job)) -> Self {
        Self { job, rank, tried: HashSet::new(), host_failures: 0 }
    }
}

/// One drain of one pod.
#[allow(clippy::struct_excessive_bools, reason = "facts that are independent of each other")]
pub struct Drain {
    limits: Limits,
    deadline: Instant,
    hurry: Instant,
    window: Window,
    plan_deadline: Instant,
    plan: Option<Plan>,
    waiting: Vec<Waiting>,
    moving: HashMap<ServerUid, (Waiting, PodUid)>,
    stopping: HashSet<ServerUid>,
    assigned: HashMap<PodUid, u32>,
    failures: u32,
    gave_up: bool,
    aborted: bool,
    store_failed_at: Option<Instant>,
    store_was_down: bool,
    summary: Summary,
    done: bool,
}

impl Drain {
    /// Begins a drain that must be over at `deadline`. `standing` is the plan that the operator last pushed, if it is fresh.
    #[must_use]
    pub fn start(
        limits: Limits,
        mut jobs: Vec<Job>,
        standing: Option<Plan>,
        now: Instant,
        deadline: Instant,
    ) -> (Self, Vec<Action>) {
        jobs.sort_by_key(|job| (std::cmp::Reverse(job.priority), !job.dirty));
        let summary = Summary { total: jobs.len(), ..Summary::default() };
        let waiting = jobs.into_iter().enumerate().map(Waiting::new).collect();
        let mut drain = Self {
            limits,
            deadline,
            hurry: now + (deadline - now) / 2,
            window: Window::default(),
            plan_deadline: now + limits.plan_wait,
            plan: standing,
            waiting,
            moving: HashMap::new(),
            stopping: HashSet::new(),
            assigned: HashMap::new(),
            failures: 0,
            gave_up: false,
            aborted: false,
            store_failed_at: None,
            store_was_down: false,
            summary,
            done: false,
        };
        let actions = drain.advance(now);
        (drain, actions)
    }

    /// What became of the servers so far.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Servers neither moved nor stopped yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.waiting.len() + self.moving.len() + self.stopping.len()
    }

    /// Takes one event.
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Plan(plan) => {
                // Loads in a new plan already count what arrived before it was made, but not what is on its way.
                self.assigned.clear();
                for (_, target) in self.moving.values() {
                    *self.assigned.entry(target.clone()).or_default() += 1;
                }
                self.waiting.iter_mut().for_each(|waiting| waiting.tried.clear());
                self.plan = Some(plan);
            }
            Event::Gap(gap) => self.adapt(gap, now),
            Event::HandoffEnded(server, ended) => self.handoff_ended(&server, ended, now),
            Event::StopEnded(server, written) => {
                if self.stopping.remove(&server) {
                    *(if written { &mut self.summary.stopped } else { &mut self.summary.failed }) += 1;
                }
            }
            Event::Deadline(deadline) => self.deadline = self.deadline.min(deadline),
            Event::Tick => {}
        }
        self.advance(now)
    }

    /// Past half of the time everything that the pool allows.
    fn adapt(&mut self, gap: Duration, now: Instant) {
        if now >= self.hurry {
            self.window.open(self.limits.max_concurrency);
        } else {
            self.window.gap(gap, self.limits.max_concurrency);
        }
    }

    fn handoff_ended(&mut self, server: &ServerUid, ended: Ended, now: Instant) {
        let Some((mut waiting, target)) = self.moving.remove(server) else { return };
        match ended {
            Ended::Moved => {
                self.failures = 0;
                self.store_failed_at = None;
                self.store_was_down = false;
                self.summary.moved += 1;
            }
            Ended::Gone => self.summary.failed += 1,
            Ended::Kept(cause) => {
                if let Some(assigned) = self.assigned.get_mut(&target) {
                    *assigned = assigned.saturating_sub(1);
                }
                match cause {
                    Cause::Rejected => {
                        waiting.tried.insert(target);
                    }
                    Cause::Failed => {
                        self.failures += 1;
                        self.gave_up |= self.failures >= self.limits.stop_after_failures;
                        waiting.tried.insert(target);
                    }
                    Cause::Host => waiting.host_failures += 1,
                    Cause::StoreUnavailable => {
                        self.store_failed_at = Some(now);
                        self.store_was_down = true;
                    }
                }
                let place = self.waiting.partition_point(|other| other.rank < waiting.rank);
                self.waiting.insert(place, waiting);
            }
        }
    }

    fn stops_at_once(&self, now: Instant) -> usize {
        let short = now + self.reserve() >= self.deadline;
        if short { self.limits.stop_concurrency } else { self.limits.gentle_stops }
    }

    /// The time to keep for stopping what is left.
    fn reserve(&self) -> Duration {
        let rounds = self.remaining().div_ceil(self.limits.stop_concurrency.max(1));
        self.limits.stop_floor + self.limits.stop_round * u32::try_from(rounds).unwrap_or(u32::MAX)
    }

    fn advance(&mut self, now: Instant) -> Vec<Action> {
        if self.done {
            return Vec::new();
        }
        let mut actions = Vec::new();
        match self.halted(now) {
            Some(reason) => {
                if now + self.reserve() >= self.deadline {
                    self.abort_all(&mut actions);
                }
                self.stop_all(reason, now, &mut actions);
            }
            None => self.start_some(now, &mut actions),
        }
        if self.remaining() == 0 {
            self.done = true;
            actions.push(Action::Done(self.summary.clone()));
        } else {
            actions.push(Action::Wake(self.next_look(now)));
        }
        actions
    }

    /// Why no more handoffs may begin, if so.
    fn halted(&self, now: Instant) -> Option<StopReason> {
        if now + self.reserve() >= self.deadline {
            return Some(if self.store_was_down { StopReason::StoreUnavailable } else { StopReason::Deadline });
        }
        if self.gave_up {
            return Some(StopReason::TooManyFailures);
        }
        match &self.plan {
            None if now >= self.plan_deadline => Some(StopReason::NoTarget),
            Some(plan) if plan.candidates.is_empty() && self.is_final(plan, now) => Some(StopReason::NoTarget),
            _ => None,
        }
    }

    /// No pod comes that is not in the plan. Whoever replaces this pod needs a moment to say so.
    fn is_final(&self, plan: &Plan, now: Instant) -> bool {
        !plan.more_expected && now >= self.plan_deadline
    }

    /// What is under way might end only when it is too late to stop it gracefully.
    fn abort_all(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.aborted, true) {
            let mut servers: Vec<ServerUid> = self.moving.keys().cloned().collect();
            servers.sort_unstable();
            actions.extend(servers.into_iter().map(Action::Abort));
        }
    }

    fn stop_all(&mut self, reason: StopReason, now: Instant, actions: &mut Vec<Action>) {
        let at_once = self.stops_at_once(now);
        while self.stopping.len() < at_once && !self.waiting.is_empty() {
            let job = self.waiting.remove(0).job;
            self.stop(job.server, if job.handoff { reason } else { StopReason::HandoffOff }, actions);
        }
    }

    fn stop(&mut self, server: ServerUid, reason: StopReason, actions: &mut Vec<Action>) {
        *self.summary.reasons.entry(reason).or_default() += 1;
        self.stopping.insert(server.clone());
        actions.push(Action::Stop(server, reason));
    }

    fn start_some(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let mut kept = Vec::new();
        let stops = self.stops_at_once(now);
        for waiting in std::mem::take(&mut self.waiting) {
            if let Some(reason) = self.must_stop(&waiting, now) {
                if self.stopping.len() < stops {
                    self.stop(waiting.job.server, reason, actions);
                } else {
                    kept.push(waiting);
                }
                continue;
            }
            let may_begin = self.moving.len() < self.window.size(self.limits.max_concurrency)
                && !self.store_is_resting(now)
                && waiting.job.handoff;
            match self.next_target(&waiting).filter(|_| may_begin) {
                Some(target) => {
                    *self.assigned.entry(target.clone()).or_default() += 1;
                    actions.push(Action::Handoff(waiting.job.server.clone(), target.clone()));
                    self.moving.insert(waiting.job.server.clone(), (waiting, target));
                }
                None => kept.push(waiting),
            }
        }
        self.waiting = kept;
    }

    /// Why this server is to be stopped while others move, if so.
    fn must_stop(&self, waiting: &Waiting, now: Instant) -> Option<StopReason> {
        if !waiting.job.handoff {
            return Some(StopReason::HandoffOff);
        }
        if waiting.host_failures >= HOST_TRIES {
            return Some(StopReason::HostFailed);
        }
        let plan = self.plan.as_ref().filter(|plan| self.is_final(plan, now) && !self.store_is_resting(now))?;
        if plan.candidates.iter().all(|candidate| waiting.tried.contains(&candidate.pod)) {
            return Some(StopReason::AllRejected);
        }
        // What is on its way may yet fail, and leave room.
        (self.moving.is_empty() && self.next_target(waiting).is_none()).then_some(StopReason::PodsFull)
    }

    /// Why no server moves at present though some should, if so.
    #[must_use]
    pub fn blocked(&self, now: Instant) -> Option<Blocked> {
        let mut left = self.waiting.iter().filter(|waiting| waiting.job.handoff).peekable();
        if !self.moving.is_empty() || left.peek().is_none() || self.halted(now).is_some() {
            return None;
        }
        if self.store_is_resting(now) {
            return Some(Blocked::StoreUnavailable);
        }
        // Without hope it waits a moment only.
        let plan = self.plan.as_ref().filter(|plan| plan.more_expected)?;
        if plan.candidates.is_empty() {
            return Some(Blocked::NoTarget);
        }
        let refused = |waiting: &Waiting| plan.candidates.iter().all(|c| waiting.tried.contains(&c.pod));
        Some(if left.any(refused) { Blocked::AllRejected } else { Blocked::PodsFull })
    }

    fn store_is_resting(&self, now: Instant) -> bool {
        self.store_failed_at.is_some_and(|at| now < at + self.limits.store_retry)
    }

    fn next_target(&self, waiting: &Waiting) -> Option<PodUid> {
        let load = |c: &Candidate| u64::from(c.load) + u64::from(self.assigned.get(&c.pod).copied().unwrap_or(0));
        self.plan
            .as_ref()?
            .candidates
            .iter()
            .filter(|c| !waiting.tried.contains(&c.pod) && load(c) < u64::from(c.capacity))
            .min_by_key(|c| (rank(c.newest, c.deletion_cost, c.far, load(c), c.capacity), c.pod.clone()))
            .map(|c| c.pod.clone())
    }

    fn next_look(&self, now: Instant) -> Instant {
        let halt = Instant(self.deadline.0.saturating_sub(self.reserve()));
        let mut looks = vec![if halt > now { halt } else { self.deadline }];
        looks.push(self.plan_deadline);
        looks.extend(self.store_failed_at.map(|at| at + self.limits.store_retry));
        looks.into_iter().filter(|look| *look > now).min().unwrap_or(self.deadline)
    }
}
