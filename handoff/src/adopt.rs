//! What an agent takes up again that was restarted beside a living host. The host is its memory: it knows which servers
//! run, at which epoch, in which phase and generation, and until when the lease lives that it was told of last.
//!
//! While that lease lives, this pod is as alive as it was: nobody may have claimed anything from it. So what serves goes
//! on, in the same generation, as if its agent had slept. Under a later generation it would not be safe: silence is
//! looked up by the generation that wrote the newest record, and one that has a successor is taken for over.
//!
//! Two things must be so before this is asked. No call of the run before may reach the host any more: it may have a
//! freeze on its way. And no later generation of this pod may have begun: the host is told before one does.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Epoch, Generation, HandoffId, Instant, Sequence},
    log::{Header, Kind, Writer},
};

/// No pool has longer leases. A host that says that it was told of more is not believed: it is the app's own program.
const LONGEST: Duration = Duration::from_mins(10);

/// What a server does in the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Loaded, serves nothing yet.
    Standby,
    /// Serves.
    Active,
    /// Serves nothing any more.
    Frozen,
}

/// The lease that the host was told of last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose servers it may serve.
    pub generation: Generation,
    /// Until when.
    pub deadline: Instant,
}

impl Told {
    /// Whether anything may be served under it.
    #[must_use]
    pub fn lives(&self, now: Instant) -> bool {
        now < self.deadline && self.deadline - now <= LONGEST
    }
}

/// Whether a server in this phase, of this generation, serves on until the log confirms that it is still this pod's. One
/// that was frozen may have been sent to another pod, and is never thawed; a standby's handoff ended with its stream.
#[must_use]
pub fn goes_on(told: Option<Told>, phase: Phase, generation: Generation, now: Instant) -> bool {
    phase == Phase::Active && told.is_some_and(|told| told.lives(now) && told.generation == generation)
}

/// What the log says of a server that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Its newest record is this agent's own. If that is a Grant, Final was not sent, or was refused: the host serves.
    /// The next record voids it.
    Owned,
    /// It was activated by a Final, and the first record of its epoch is still to be written.
    Handed {
        /// The source's epoch.
        from: Epoch,
        /// The Grant.
        after: Sequence,
        /// The handoff.
        handoff: HandoffId,
    },
    /// It is another's, or nobody's.
    Lost,
}

/// Whether a server that `me` serves at `epoch` is its own, by the newest record of its log.
#[must_use]
pub fn hold(newest: Option<&Header>, epoch: Epoch, me: &Writer) -> Hold {
    let Some(newest) = newest else { return Hold::Lost };
    match &newest.kind {
        Kind::Release | Kind::Tombstone { .. } => Hold::Lost,
        _ if newest.epoch == epoch && newest.writer == *me => Hold::Owned,
        Kind::Grant(grantee) if newest.epoch.handed_off() == epoch && grantee.to == *me => {
            Hold::Handed { from: newest.epoch, after: newest.sequence, handoff: grantee.handoff }
        }
        _ => Hold::Lost,
    }
}

/// What the log of a server that ends is to end with, given its newest record, which is of the same epoch. A frozen one
/// whose newest record is a Grant may have been sent: that is repeated, with the state, and its target asked.
#[must_use]
pub fn last(newest: &Header, phase: Phase) -> Kind {
    match &newest.kind {
        Kind::Grant(_) if phase == Phase::Frozen => newest.kind.clone(),
        _ => Kind::Release,
    }
}
