//! How a server starts from its log. An assignment says what it supersedes; the log says whether that still stands.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Epoch, PodUid, Sequence},
    log::{Grantee, Header, Kind},
};

/// What an assignment takes the server from, and on what grounds: these pods serve it no more and never will.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Supersedes {
    /// The epoch that is over.
    pub epoch: Epoch,
    /// Its owner.
    pub owner: PodUid,
    /// The pod that a Grant of this epoch names, if that is known and over too.
    pub grantee: Option<PodUid>,
}

/// What to do about an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Append a Claim after the newest record, then start from `state_at`.
    Claim {
        /// The new epoch.
        epoch: Epoch,
        /// The newest record known; the Claim follows it.
        after: Sequence,
        /// Where the state is; `NONE` for a first start.
        state_at: Sequence,
    },
    /// A Grant names this pod: append Snapshot of the state at `state_at` in the granted epoch, then serve.
    ServeGrant {
        /// The granted epoch.
        epoch: Epoch,
        /// The Grant.
        after: Sequence,
        /// Where the state is.
        state_at: Sequence,
        /// The grant, so that a repeat of it is known.
        grant: Grantee,
    },
    /// Do nothing but report what was found.
    Refuse(Refusal),
}

/// Why an assignment was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The newest record is of another epoch than the assignment supersedes.
    #[error("the log is at epoch {found}, the assignment supersedes {superseded}")]
    OtherEpoch {
        /// Epoch of the newest record.
        found: Epoch,
        /// Epoch that the assignment supersedes.
        superseded: Epoch,
    },
    /// The newest record is a Grant to a pod that the assignment does not name.
    #[error("epoch {} is granted to pod {to}, which must be asked first", epoch.handed_off())]
    Granted {
        /// Epoch of the Grant.
        epoch: Epoch,
        /// The pod that it names.
        to: PodUid,
    },
    /// The server was deleted.
    #[error("the log ends in a Tombstone: the server was deleted")]
    Deleted,
    /// There must be records, and there are none.
    #[error("the log is empty, but epoch {expected} is on record: wrong bucket or prefix, or the records were deleted")]
    LogMissing {
        /// The epoch on record.
        expected: Epoch,
    },
}

/// Decides about an assignment. `newest` is the newest record of the log, as just read.
#[must_use]
pub fn decide(newest: Option<&Header>, supersedes: Option<&Supersedes>, me: &PodUid) -> Start {
    let over = supersedes.map_or(Epoch::NONE, |s| s.epoch);
    let Some(newest) = newest else {
        if over > Epoch::NONE {
            return Start::Refuse(Refusal::LogMissing { expected: over });
        }
        return Start::Claim { epoch: Epoch::NONE.claimed(), after: Sequence::NONE, state_at: Sequence::NONE };
    };
    let claim = Start::Claim { epoch: newest.epoch.claimed(), after: newest.sequence, state_at: newest.state_at };
    match &newest.kind {
        Kind::Tombstone { .. } => Start::Refuse(Refusal::Deleted),
        // Whoever wrote it has stopped for good: no further grounds are needed.
        Kind::Release => claim,
        _ if newest.epoch != over => Start::Refuse(Refusal::OtherEpoch { found: newest.epoch, superseded: over }),
        Kind::Grant(grantee) if grantee.to.pod == *me => Start::ServeGrant {
            epoch: newest.epoch.handed_off(),
            after: newest.sequence,
            state_at: newest.state_at,
            grant: grantee.clone(),
        },
        Kind::Grant(grantee) => {
            if supersedes.and_then(|s| s.grantee.as_ref()) == Some(&grantee.to.pod) {
                claim
            } else {
                Start::Refuse(Refusal::Granted { epoch: newest.epoch, to: grantee.to.pod.clone() })
            }
        }
        Kind::Claim | Kind::Snapshot => claim,
    }
}
