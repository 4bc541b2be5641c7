//! Emptying one pod: which server goes where and when, what is retried, when to stop trying, and how much of the
//! time is kept back to stop the rest gracefully.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use crate::{
    ids::{Instant, PodUid, ServerUid},
    source::Cause,
};

/// Handoffs in flight however long the gaps are: on a machine that is busy with something else, waiting does not help.
const FLOOR: usize = 4;

/// Bounds of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Handoffs in flight at once, at most.
    pub max_concurrency: usize,
    /// Handoffs in flight at once to begin with. Preparing one costs the same cores that shorten the gap of another,
    /// so the number grows only while gaps are short, and shrinks when they are not.
    pub first_concurrency: usize,
    /// A gap up to this long is short.
    pub short_gap: Duration,
    /// Graceful stops in flight at once.
    pub stop_concurrency: usize,
    /// Consecutive failed handoffs after which no more are begun.
    pub stop_after_failures: u32,
    /// How long to wait for any plan at all.
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
            first_concurrency: 8,
            short_gap: Duration::from_millis(15),
            stop_concurrency: 50,
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
    /// Freeze, write a Release, stop.
    Stop(ServerUid, StopReason),
    /// Look again at this time, with a [`Event::Tick`].
    Wake(Instant),
    /// Every server is somewhere else or stopped.
    Done(Summary),
}

/// Why a server is stopped instead of moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// Handoff is off for it.
    HandoffOff,
    /// No pod is eligible, and none is expected.
    NoTarget,
    /// Every eligible pod would not have it.
    AllRejected,
    /// `stopAfterFailures` handoffs failed in a row.
    TooManyFailures,
    /// The time for handoffs is over.
    Deadline,
    /// The time is over, and the store could not be written all along.
    StoreUnavailable,
}

impl StopReason {
    /// The name that status, events and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HandoffOff => "HandoffOff",
            Self::NoTarget => "NoTarget",
            Self::AllRejected => "AllRejected",
            Self::TooManyFailures => "TooManyFailures",
            Self::Deadline => "Deadline",
            Self::StoreUnavailable => "StoreUnavailable",
        }
    }
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

struct Waiting {
    job: Job,
    tried: HashSet<PodUid>,
}

/// One drain of one pod.
pub struct Drain {
    limits: Limits,
    deadline: Instant,
    hurry: Instant,
    window: usize,
    plan_deadline: Instant,
    plan: Option<Plan>,
    waiting: Vec<Waiting>,
    moving: HashMap<ServerUid, (Waiting, PodUid)>,
    stopping: HashSet<ServerUid>,
    assigned: HashMap<PodUid, u32>,
    failures: u32,
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
        let waiting = jobs.into_iter().map(|job| Waiting { job, tried: HashSet::new() }).collect();
        let mut drain = Self {
            limits,
            deadline,
            hurry: now + (deadline - now) / 2,
            window: limits.first_concurrency.clamp(1, limits.max_concurrency.max(1)),
            plan_deadline: now + limits.plan_wait,
            plan: standing,
            waiting,
            moving: HashMap::new(),
            stopping: HashSet::new(),
            assigned: HashMap::new(),
            failures: 0,
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
                // Loads in a new plan already count what was assigned before it was made.
                self.assigned.clear();
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

    /// Additive increase, multiplicative decrease; past half of the time everything that the pool allows.
    fn adapt(&mut self, gap: Duration, now: Instant) {
        let window = if now >= self.hurry {
            self.limits.max_concurrency
        } else if gap <= self.limits.short_gap {
            self.window + 1
        } else {
            self.window * 3 / 4
        };
        self.window = window.clamp(FLOOR, self.limits.max_concurrency.max(FLOOR));
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
                match cause {
                    Cause::Rejected => {
                        waiting.tried.insert(target);
                    }
                    Cause::Failed => {
                        self.failures += 1;
                        waiting.tried.insert(target);
                    }
                    Cause::StoreUnavailable => {
                        self.store_failed_at = Some(now);
                        self.store_was_down = true;
                    }
                }
                self.waiting.insert(0, waiting);
            }
        }
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
            Some(reason) => self.stop_all(reason, &mut actions),
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
        if self.failures >= self.limits.stop_after_failures {
            return Some(StopReason::TooManyFailures);
        }
        match &self.plan {
            None if now >= self.plan_deadline => Some(StopReason::NoTarget),
            Some(plan) if plan.candidates.is_empty() && !plan.more_expected => Some(StopReason::NoTarget),
            _ => None,
        }
    }

    fn stop_all(&mut self, reason: StopReason, actions: &mut Vec<Action>) {
        while self.stopping.len() < self.limits.stop_concurrency && !self.waiting.is_empty() {
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
        for waiting in std::mem::take(&mut self.waiting) {
            if !waiting.job.handoff {
                if self.stopping.len() < self.limits.stop_concurrency {
                    self.stop(waiting.job.server, StopReason::HandoffOff, actions);
                } else {
                    kept.push(waiting);
                }
                continue;
            }
            if self.moving.len() >= self.window.min(self.limits.max_concurrency)
                || self.store_is_resting(now)
                || self.plan.is_none()
            {
                kept.push(waiting);
                continue;
            }
            match self.next_target(&waiting) {
                Some(target) => {
                    *self.assigned.entry(target.clone()).or_default() += 1;
                    actions.push(Action::Handoff(waiting.job.server.clone(), target.clone()));
                    self.moving.insert(waiting.job.server.clone(), (waiting, target));
                }
                None if self.all_tried(&waiting) && self.stopping.len() < self.limits.stop_concurrency => {
                    self.stop(waiting.job.server, StopReason::AllRejected, actions);
                }
                None => kept.push(waiting),
            }
        }
        self.waiting = kept;
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
            .min_by_key(|c| (!c.newest, load(c) * 1_000_000 / u64::from(c.capacity.max(1)), c.pod.clone()))
            .map(|c| c.pod.clone())
    }

    /// Whether waiting for another answer is pointless: every candidate was tried, and no further pod is expected.
    fn all_tried(&self, waiting: &Waiting) -> bool {
        self.plan.as_ref().is_some_and(|plan| {
            !plan.more_expected && plan.candidates.iter().all(|candidate| waiting.tried.contains(&candidate.pod))
        })
    }

    fn next_look(&self, now: Instant) -> Instant {
        let halt = Instant(self.deadline.0.saturating_sub(self.reserve()));
        let mut looks = vec![if halt > now { halt } else { self.deadline }];
        if self.plan.is_none() {
            looks.push(self.plan_deadline);
        }
        looks.extend(self.store_failed_at.map(|at| at + self.limits.store_retry));
        looks.into_iter().filter(|look| *look > now).min().unwrap_or(self.deadline)
    }
}
