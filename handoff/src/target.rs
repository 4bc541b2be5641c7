//! One handoff, seen from the pod that receives the server (agent B, epoch e + 1).
//!
//! ```text
//!  Reserved ─Warm→ Starting ─StandbyStarted→ Standby ─Final→ Activating ─Activated→ Writing ─Appended→ Ended(Serving)
//!      └────────────────┴────── lost ──→ Ended(Aborted)          └─ failed → Stopping ─Stopped→ Ended(Refused)
//! ```
//!
//! From Final on, nothing that happens to the source can take the server or its state from here.

use std::time::Duration;

use crate::{
    ids::{Instant, Sequence},
    log::Header,
    source::{Final, State},
};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event<S> {
    /// The warm copy came.
    Warm(State<S>),
    /// The host runs it in standby.
    StandbyStarted,
    /// It does not.
    StandbyFailed(String),
    /// The source stopped serving and will not serve again unless refused.
    Final {
        /// Where the Grant is in the log.
        grant: Sequence,
        /// The final state.
        last: Final<S>,
    },
    /// The host serves.
    Activated,
    /// It failed to, or nothing is known of it.
    ActivateFailed(String),
    /// After a failure: the host certainly does not run it, and will not for this attempt.
    Stopped,
    /// Stopping failed too.
    StopFailed,
    /// The first record of the new epoch is in the log.
    Appended(Sequence),
    /// Somebody else's record says that the server is not ours.
    Fenced(Header),
    /// The store cannot be written now.
    AppendFailed,
    /// The source gave up, or the stream broke.
    PeerLost,
    /// The operator's word: whatever was promised here is over (only before Final).
    Withdraw(String),
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action<S> {
    /// A slot is reserved: say so.
    SendAccept,
    /// Have the host start it, without serving.
    StartStandby(State<S>),
    /// The standby runs: say so.
    SendReady,
    /// No, before Final: the source keeps it.
    SendReject(String),
    /// Have the host serve this state.
    Activate(Final<S>),
    /// Requests may come: open the gate, tell the source, tell the operator.
    Serve,
    /// Write the first record of the new epoch: the final state, after the Grant.
    Append {
        /// The Grant's place.
        after: Sequence,
        /// What to write.
        state: State<S>,
        /// The server is not running here after all: write it as a Release, so that it is started elsewhere.
        release: bool,
    },
    /// The record is written: say so.
    SendDurable(Sequence),
    /// Never activated, never will: the source may thaw.
    SendRefused(String),
    /// Have the host forget the standby, and anything of this attempt that comes later.
    Stop,
    /// Look again at this time.
    Wake(Instant),
    /// It is over.
    End(Outcome),
}

/// How a handoff ended, for the target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is served here, durably.
    Serving(Sequence),
    /// The source keeps it.
    Aborted(String),
    /// It could not be served here, and the source is gone: released, to be started elsewhere.
    Released,
    /// It belongs to somebody else.
    Fenced(Header),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Reserved,
    Starting,
    Standby,
    Activating,
    Writing { in_flight: bool },
    Stopping { reason: String },
    Releasing { in_flight: bool },
    Ended,
}

/// The target's side of one handoff.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target<S> {
    retry: Duration,
    phase: Phase,
    deadline: Instant,
    warm: Option<State<S>>,
    last: Option<State<S>>,
    grant: Sequence,
    peer_lost: bool,
    /// Ended before Final, by this side: a Final that crosses the news is refused.
    refusable: bool,
}

impl<S: Clone> Target<S> {
    /// Takes an offer that the agent found acceptable (room, not draining, loads the state's version).
    /// Without Final by `now + patience` the slot is given back; patience must exceed the source's own limit.
    #[must_use]
    pub fn accept(now: Instant, patience: Duration, retry: Duration) -> (Self, Vec<Action<S>>) {
        let deadline = now + patience;
        let target = Self {
            retry,
            phase: Phase::Reserved,
            deadline,
            warm: None,
            last: None,
            grant: Sequence::NONE,
            peer_lost: false,
            refusable: false,
        };
        (target, vec![Action::SendAccept, Action::Wake(deadline)])
    }

    /// Whether Final was taken: from here on this pod owns the server.
    #[must_use]
    pub fn is_past_final(&self) -> bool {
        matches!(
            self.phase,
            Phase::Activating | Phase::Writing { .. } | Phase::Stopping { .. } | Phase::Releasing { .. }
        )
    }

    /// Whether requests are answered here.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Writing { .. })
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Takes one event. Events that have no meaning in the present phase are late or doubled, and do nothing.
    pub fn on(&mut self, event: Event<S>, now: Instant) -> Vec<Action<S>> {
        match event {
            Event::Warm(state) if self.phase == Phase::Reserved => {
                self.phase = Phase::Starting;
                self.warm = Some(state.clone());
                vec![Action::StartStandby(state)]
            }
            Event::StandbyStarted if self.phase == Phase::Starting => {
                self.phase = Phase::Standby;
                vec![Action::SendReady]
            }
            Event::StandbyFailed(reason) if self.phase == Phase::Starting => self.reject(reason),
            Event::Final { grant, last } if self.phase == Phase::Standby => self.activate(grant, last),
            // Not in standby and not past Final: this attempt is over here, and the source must hear it.
            Event::Final { .. } if !self.is_past_final() && self.phase != Phase::Ended => {
                self.refuse("the standby is gone".into(), vec![Action::Stop])
            }
            Event::Final { .. } if self.refusable => vec![Action::SendRefused("the standby was given up".into())],
            Event::Activated if self.phase == Phase::Activating => self.serve(),
            Event::ActivateFailed(reason) if self.phase == Phase::Activating => {
                self.phase = Phase::Stopping { reason };
                vec![Action::Stop]
            }
            Event::Stopped => self.stopped(),
            Event::StopFailed if matches!(self.phase, Phase::Stopping { .. }) => self.wait(now),
            Event::Appended(sequence) => self.appended(sequence),
            Event::AppendFailed => self.append_failed(now),
            Event::Fenced(header) if matches!(self.phase, Phase::Writing { .. } | Phase::Releasing { .. }) => {
                self.end(Outcome::Fenced(header), vec![Action::Stop])
            }
            Event::PeerLost => self.peer_lost(),
            // Not refusable: the operator may have had this pod serve by the log alone.
            Event::Withdraw(reason) if self.is_before_final() => self.end(Outcome::Aborted(reason), vec![Action::Stop]),
            Event::Tick if now >= self.deadline => self.overdue(),
            _ => Vec::new(),
        }
    }

    fn is_before_final(&self) -> bool {
        matches!(self.phase, Phase::Reserved | Phase::Starting | Phase::Standby)
    }

    fn activate(&mut self, grant: Sequence, last: Final<S>) -> Vec<Action<S>> {
        let warm = self.warm.take();
        let state = match &last {
            Final::State(state) => Some(state.clone()),
            Final::Unchanged(mark) => warm.filter(|state| state.mark == *mark),
        };
        let Some(state) = state else {
            return self.refuse("the standby is not of the state that Final names".into(), vec![Action::Stop]);
        };
        self.phase = Phase::Activating;
        self.grant = grant;
        self.last = Some(state);
        vec![Action::Activate(last)]
    }

    fn serve(&mut self) -> Vec<Action<S>> {
        self.phase = Phase::Writing { in_flight: true };
        let mut actions = vec![Action::Serve];
        actions.extend(self.append(false));
        actions
    }

    fn append(&self, release: bool) -> Option<Action<S>> {
        let state = self.last.clone()?;
        Some(Action::Append { after: self.grant, state, release })
    }

    fn stopped(&mut self) -> Vec<Action<S>> {
        let Phase::Stopping { reason } = &self.phase else { return Vec::new() };
        if self.peer_lost {
            // Nobody is left to take it back, and the Grant says that it is ours: pass it on through the log.
            self.phase = Phase::Releasing { in_flight: true };
            return self.append(true).into_iter().collect();
        }
        let reason = reason.clone();
        self.refuse(reason, Vec::new())
    }

    fn appended(&mut self, sequence: Sequence) -> Vec<Action<S>> {
        match self.phase {
            Phase::Writing { .. } => self.end(Outcome::Serving(sequence), vec![Action::SendDurable(sequence)]),
            Phase::Releasing { .. } => self.end(Outcome::Released, Vec::new()),
            _ => Vec::new(),
        }
    }

    fn append_failed(&mut self, now: Instant) -> Vec<Action<S>> {
        match self.phase {
            Phase::Writing { .. } => self.phase = Phase::Writing { in_flight: false },
            Phase::Releasing { .. } => self.phase = Phase::Releasing { in_flight: false },
            _ => return Vec::new(),
        }
        self.wait(now)
    }

    fn wait(&mut self, now: Instant) -> Vec<Action<S>> {
        self.deadline = now + self.retry;
        vec![Action::Wake(self.deadline)]
    }

    fn peer_lost(&mut self) -> Vec<Action<S>> {
        self.peer_lost = true;
        if self.is_before_final() {
            return self.end(Outcome::Aborted("the source gave up".into()), vec![Action::Stop]);
        }
        Vec::new()
    }

    fn overdue(&mut self) -> Vec<Action<S>> {
        match self.phase {
            Phase::Reserved | Phase::Starting | Phase::Standby => self.reject("no Final came in time".into()),
            Phase::Stopping { .. } => vec![Action::Stop],
            Phase::Writing { in_flight: false } => {
                self.phase = Phase::Writing { in_flight: true };
                self.append(false).into_iter().collect()
            }
            Phase::Releasing { in_flight: false } => {
                self.phase = Phase::Releasing { in_flight: true };
                self.append(true).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    fn reject(&mut self, reason: String) -> Vec<Action<S>> {
        self.refusable = true;
        self.end(Outcome::Aborted(reason.clone()), vec![Action::SendReject(reason), Action::Stop])
    }

    fn refuse(&mut self, reason: String, mut actions: Vec<Action<S>>) -> Vec<Action<S>> {
        actions.push(Action::SendRefused(reason.clone()));
        self.end(Outcome::Aborted(reason), actions)
    }

    fn end(&mut self, outcome: Outcome, mut actions: Vec<Action<S>>) -> Vec<Action<S>> {
        self.phase = Phase::Ended;
        actions.push(Action::End(outcome));
        actions
    }
}
