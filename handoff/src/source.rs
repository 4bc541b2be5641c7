//! One handoff, seen from the pod that gives the server away (agent A, epoch e).
//!
//! ```text
//!  Offering ─Accepted→ Preparing ─Granted+Ready→ Queued ─FreezeTurn→ Freezing ─Frozen→ Sent ─Activated→ Serving there ─Durable→ Ended
//!      └──────────────────┴───────── any failure: thaw, keep ──────────────┘             └─ silence ─→ Insuring ─→ disclaim
//! ```
//!
//! The point of no return is *sending* Final. Before it every failure keeps the server here; after it this pod serves
//! the server again only if the target says that it never will ([`Event::Refused`]).

use std::time::Duration;

use crate::{
    ids::{Instant, Sequence},
    log::{Header, Kind, Writer},
};

/// Names a state without bearing it: which run of the host, which revision in it, and what it looked like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mark {
    /// A number that the host draws when its process starts. A revision means nothing outside of it.
    pub instance: u64,
    /// The host's own count of changes.
    pub revision: u64,
    /// CRC-32 of the bytes.
    pub checksum: u32,
}

/// A server's state as it travels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State<S> {
    /// Which state this is.
    pub mark: Mark,
    /// The host's format number.
    pub version: u32,
    /// The bytes, as far as these rules are concerned opaque.
    pub body: S,
}

/// What Final carries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Final<S> {
    /// The state changed since the warm copy, or there was none.
    State(State<S>),
    /// The warm copy that bears this mark is the final state.
    Unchanged(Mark),
}

/// Bounds of one handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// From the offer to Final.
    pub per_server: Duration,
    /// For the host to freeze.
    pub freeze: Duration,
    /// From Final until the source insures what it sent by writing it itself.
    pub durable: Duration,
    /// Between two tries of that insurance while the store cannot be written.
    pub retry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            per_server: Duration::from_secs(5),
            freeze: Duration::from_secs(1),
            durable: Duration::from_secs(2),
            retry: Duration::from_millis(500),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event<S> {
    /// The target took the offer, under this agent run.
    Accepted(Writer),
    /// The target will not have it; possible until Final is sent.
    Rejected(String),
    /// The host gave a copy while serving.
    Copied(State<S>),
    /// It did not.
    CopyFailed(String),
    /// The Grant is in the log.
    Granted(Sequence),
    /// The Grant could not be written, and will not be.
    GrantFailed(String),
    /// Somebody else's record says that this pod no longer owns the server.
    Fenced(Header),
    /// The target's standby runs.
    Ready,
    /// A turn to freeze came free (see [`Action::WantFreeze`]).
    FreezeTurn,
    /// The host froze: nothing can change this state any more.
    Frozen(Final<S>),
    /// It did not freeze.
    FreezeFailed(String),
    /// The target serves.
    Activated,
    /// The target's first record is in the log.
    Durable(Sequence),
    /// The target never activated and never will.
    Refused(String),
    /// The stream to the target broke.
    PeerLost,
    /// The Grant that bears the final state is in the log.
    Insured(Sequence),
    /// It could not be written now.
    InsureFailed,
    /// Give up if that is still possible: the drain's time is over, or a person cancelled it.
    Abort(String),
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action<S> {
    /// Offer the server to the target.
    SendOffer,
    /// Ask the host for a copy while it serves.
    Copy,
    /// Send the copy ahead.
    SendWarm(State<S>),
    /// Append the Grant, without a state.
    Grant(Writer),
    /// Ask for a turn to freeze: freezes at once are bounded near the cores, or they queue on them.
    WantFreeze,
    /// Hold new requests, then have the host freeze; `since` is the copy that the target has.
    Freeze {
        /// Mark of the warm copy.
        since: Option<Mark>,
    },
    /// Send Final: from here on the target owns the server.
    SendFinal {
        /// The Grant's place in the log.
        grant: Sequence,
        /// The final state.
        last: Final<S>,
    },
    /// Have the host thaw and let held requests go to it.
    Thaw,
    /// Let held and later requests go to the target.
    Forward,
    /// Append the Grant again, with the final state.
    Insure,
    /// Tell the operator: never again at this epoch, ask the grantee.
    Disclaim,
    /// The host may forget the server.
    Discard,
    /// Tell the target that nothing more comes.
    Cancel,
    /// Look again at this time, with a [`Event::Tick`].
    Wake(Instant),
    /// It is over.
    End(Outcome),
}

/// How a handoff ended, for the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The target owns it, durably.
    Moved,
    /// The source owns and serves it still.
    Kept {
        /// What kind of failure it was: it decides what the drain does next.
        cause: Cause,
        /// Why, in words.
        reason: String,
    },
    /// The source lost it to somebody else; its own copy must stop.
    Fenced,
    /// Final was sent and nothing heard; the state is safe in the log, and the grantee must be asked.
    Disclaimed,
}

/// Why a server was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The target is well but would not have it: try another.
    Rejected,
    /// Something broke or took too long: try another, and count it.
    Failed,
    /// This pod's own host did not give its state: no target would help, and none is to blame.
    Host,
    /// The Grant could not be written: no target would help.
    StoreUnavailable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Offering,
    Preparing { ready: bool },
    Queued,
    Freezing,
    Sent,
    Serving,
    Insuring { in_flight: bool },
    Ended,
}

/// The source's side of one handoff.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    limits: Limits,
    phase: Phase,
    deadline: Instant,
    target: Option<Writer>,
    warm: Option<Mark>,
    granted: Option<Sequence>,
}

impl Source {
    /// Begins a handoff at `now`.
    #[must_use]
    pub fn start<S>(limits: Limits, now: Instant) -> (Self, Vec<Action<S>>) {
        let deadline = now + limits.per_server;
        let source = Self { limits, phase: Phase::Offering, deadline, target: None, warm: None, granted: None };
        (source, vec![Action::SendOffer, Action::Wake(deadline)])
    }

    /// Whether Final was sent: this pod must not serve the server unless the target refuses.
    #[must_use]
    pub fn is_past_final(&self) -> bool {
        matches!(self.phase, Phase::Sent | Phase::Serving | Phase::Insuring { .. })
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// The agent run that the server goes to, once it accepted.
    #[must_use]
    pub fn target(&self) -> Option<&Writer> {
        self.target.as_ref()
    }

    /// Takes one event. Events that have no meaning in the present phase are late or doubled, and do nothing.
    pub fn on<S>(&mut self, event: Event<S>, now: Instant) -> Vec<Action<S>> {
        match event {
            Event::Accepted(writer) if self.phase == Phase::Offering => self.accepted(writer),
            Event::Copied(state) if self.is_preparing() && self.warm.is_none() => self.copied(state),
            Event::Granted(sequence) if self.is_preparing() && self.granted.is_none() => {
                self.granted = Some(sequence);
                self.freeze_when_prepared()
            }
            Event::Ready if self.is_preparing() => {
                self.phase = Phase::Preparing { ready: true };
                self.freeze_when_prepared()
            }
            Event::FreezeTurn if self.phase == Phase::Queued => self.freeze(now),
            Event::Frozen(last) if self.phase == Phase::Freezing => self.send_final(last, now),
            Event::Activated if self.phase == Phase::Sent => {
                self.phase = Phase::Serving;
                vec![Action::Forward]
            }
            Event::Durable(_) if self.is_past_final() => self.moved(),
            Event::Refused(reason) if matches!(self.phase, Phase::Sent | Phase::Insuring { .. }) => {
                self.keep(Cause::Failed, reason, true)
            }
            Event::PeerLost if matches!(self.phase, Phase::Sent | Phase::Serving) => self.insure(),
            Event::Insured(_) if matches!(self.phase, Phase::Insuring { .. }) => {
                self.end(Outcome::Disclaimed, vec![Action::Disclaim, Action::Discard])
            }
            Event::InsureFailed if matches!(self.phase, Phase::Insuring { .. }) => {
                self.phase = Phase::Insuring { in_flight: false };
                self.deadline = now + self.limits.retry;
                vec![Action::Wake(self.deadline)]
            }
            Event::Fenced(header) => self.fenced(&header),
            Event::Rejected(reason) if self.is_before_final() => self.fail(Cause::Rejected, reason),
            Event::GrantFailed(reason) if self.is_before_final() => self.fail(Cause::StoreUnavailable, reason),
            Event::CopyFailed(reason) | Event::FreezeFailed(reason) if self.is_before_final() => {
                self.fail(Cause::Host, reason)
            }
            Event::Abort(reason) if self.is_before_final() => self.fail(Cause::Failed, reason),
            Event::PeerLost if self.is_before_final() => {
                self.fail(Cause::Failed, "the target's connection broke".into())
            }
            Event::Tick if now >= self.deadline => self.overdue(),
            _ => Vec::new(),
        }
    }

    fn is_preparing(&self) -> bool {
        matches!(self.phase, Phase::Preparing { .. })
    }

    fn is_before_final(&self) -> bool {
        matches!(self.phase, Phase::Offering | Phase::Preparing { .. } | Phase::Queued | Phase::Freezing)
    }

    fn accepted<S>(&mut self, writer: Writer) -> Vec<Action<S>> {
        self.phase = Phase::Preparing { ready: false };
        self.target = Some(writer.clone());
        vec![Action::Copy, Action::Grant(writer)]
    }

    fn copied<S>(&mut self, state: State<S>) -> Vec<Action<S>> {
        self.warm = Some(state.mark);
        vec![Action::SendWarm(state)]
    }

    /// The Grant must be durable before Final: from the first instant the target serves by right of the log.
    fn freeze_when_prepared<S>(&mut self) -> Vec<Action<S>> {
        if self.phase == (Phase::Preparing { ready: true }) && self.granted.is_some() {
            self.phase = Phase::Queued;
            return vec![Action::WantFreeze];
        }
        Vec::new()
    }

    fn freeze<S>(&mut self, now: Instant) -> Vec<Action<S>> {
        self.phase = Phase::Freezing;
        self.deadline = now + self.limits.freeze;
        vec![Action::Freeze { since: self.warm }, Action::Wake(self.deadline)]
    }

    fn send_final<S>(&mut self, last: Final<S>, now: Instant) -> Vec<Action<S>> {
        let Some(grant) = self.granted else { return Vec::new() };
        self.phase = Phase::Sent;
        self.deadline = now + self.limits.durable;
        vec![Action::SendFinal { grant, last }, Action::Wake(self.deadline)]
    }

    fn overdue<S>(&mut self) -> Vec<Action<S>> {
        match self.phase {
            Phase::Offering => self.fail(Cause::Failed, "the target did not answer the offer in time".into()),
            Phase::Preparing { ready: true } => {
                self.fail(Cause::StoreUnavailable, "the Grant could not be written within perServerTimeout".into())
            }
            Phase::Preparing { ready: false } | Phase::Queued => {
                self.fail(Cause::Failed, "perServerTimeout passed".into())
            }
            Phase::Freezing => self.fail(Cause::Host, "the host did not freeze within freezeTimeout".into()),
            Phase::Sent | Phase::Serving | Phase::Insuring { in_flight: false } => self.insure(),
            Phase::Insuring { in_flight: true } | Phase::Ended => Vec::new(),
        }
    }

    fn insure<S>(&mut self) -> Vec<Action<S>> {
        self.phase = Phase::Insuring { in_flight: true };
        vec![Action::Insure]
    }

    fn moved<S>(&mut self) -> Vec<Action<S>> {
        self.end(Outcome::Moved, vec![Action::Forward, Action::Discard])
    }

    /// A record of the next epoch by the grantee is its first record: that is what Durable says, read from the log.
    fn fenced<S>(&mut self, header: &Header) -> Vec<Action<S>> {
        if self.phase == Phase::Ended {
            return Vec::new();
        }
        let by_grantee = self.target.as_ref().is_some_and(|target| target.pod == header.writer.pod);
        if self.is_past_final() && by_grantee && matches!(header.kind, Kind::Snapshot | Kind::Release) {
            return self.moved();
        }
        self.end(Outcome::Fenced, vec![Action::Cancel, Action::Discard])
    }

    fn fail<S>(&mut self, cause: Cause, reason: String) -> Vec<Action<S>> {
        let frozen = self.phase == Phase::Freezing;
        self.keep(cause, reason, frozen)
    }

    fn keep<S>(&mut self, cause: Cause, reason: String, thaw: bool) -> Vec<Action<S>> {
        let mut actions = vec![Action::Cancel];
        if thaw {
            actions.push(Action::Thaw);
        }
        self.end(Outcome::Kept { cause, reason }, actions)
    }

    fn end<S>(&mut self, outcome: Outcome, mut actions: Vec<Action<S>>) -> Vec<Action<S>> {
        self.phase = Phase::Ended;
        actions.push(Action::End(outcome));
        actions
    }
}
