//! How a server starts from its log. An assignment says what it supersedes; the log says whether that still stands.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{Epoch, PodUid, Sequence},
    lease::Heartbeat,
    log::{Grantee, Header, Kind, Writer},
};

/// A pod that serves a server no more and never will, and on what grounds that is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Over {
    /// The pod.
    pub pod: PodUid,
    /// `None`: it is proven. Otherwise the pod was silent for a whole lease after this heartbeat, the newest that the
    /// operator heard of: whoever claims must see that the store has none above it.
    pub silent: Option<Heartbeat>,
}

impl From<PodUid> for Over {
    fn from(pod: PodUid) -> Self {
        Self { pod, silent: None }
    }
}

/// What an assignment takes the server from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Supersedes {
    /// The epoch that is over.
    pub epoch: Epoch,
    /// Its owner.
    pub owner: Over,
    /// The pod that a Grant of this epoch names, if that is known and over too.
    pub grantee: Option<Over>,
}

/// An agent run that was only silent: nothing may be claimed from it while the store has a heartbeat of it above this
/// one. A read that fails shows nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The agent run.
    pub of: Writer,
    /// Its newest heartbeat that the silence was counted from; 0: any counts.
    pub above: u64,
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
        /// What must be looked up before.
        doubts: Vec<Doubt>,
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
        /// What must be looked up before.
        doubts: Vec<Doubt>,
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
    /// The newest record is another pod's than the assignment takes for the owner: what is said of that one says nothing of this.
    #[error("epoch {epoch} is of pod {found}, and the assignment takes pod {named} for its owner")]
    OtherOwner {
        /// The epoch.
        epoch: Epoch,
        /// Its owner.
        found: PodUid,
        /// Whom the assignment is about.
        named: PodUid,
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
pub fn decide(newest: Option<&Header>, supersedes: Option<&Supersedes>, me: &Writer) -> Start {
    let over = supersedes.map_or(Epoch::NONE, |s| s.epoch);
    let Some(newest) = newest else {
        if over > Epoch::NONE {
            return Start::Refuse(Refusal::LogMissing { expected: over });
        }
        let (after, state_at) = (Sequence::NONE, Sequence::NONE);
        return Start::Claim { epoch: Epoch::NONE.claimed(), after, state_at, doubts: Vec::new() };
    };
    match &newest.kind {
        Kind::Tombstone { .. } => Start::Refuse(Refusal::Deleted),
        // Whoever wrote it has stopped for good: no further grounds are needed.
        Kind::Release => claim(newest, Vec::new()),
        _ if newest.epoch != over => Start::Refuse(Refusal::OtherEpoch { found: newest.epoch, superseded: over }),
        kind => match owner_doubt(newest, supersedes) {
            Ok(doubts) => over_the_owner(newest, kind, supersedes, doubts, me),
            Err(refusal) => Start::Refuse(refusal),
        },
    }
}

fn claim(newest: &Header, doubts: Vec<Doubt>) -> Start {
    Start::Claim { epoch: newest.epoch.claimed(), after: newest.sequence, state_at: newest.state_at, doubts }
}

/// The owner of the newest record's epoch is over; what it granted may not be.
fn over_the_owner(
    newest: &Header,
    kind: &Kind,
    supersedes: Option<&Supersedes>,
    mut doubts: Vec<Doubt>,
    me: &Writer,
) -> Start {
    let Kind::Grant(grantee) = kind else { return claim(newest, doubts) };
    if grantee.to == *me {
        return Start::ServeGrant {
            epoch: newest.epoch.handed_off(),
            after: newest.sequence,
            state_at: newest.state_at,
            grant: grantee.clone(),
            doubts,
        };
    }
    if grantee.to.pod == me.pod {
        // An earlier generation of this pod: it may have served the granted epoch, and its successor disclaimed that.
        return claim(newest, doubts);
    }
    match supersedes.and_then(|s| s.grantee.as_ref()).filter(|over| over.pod == grantee.to.pod) {
        Some(over) => {
            doubts.extend(over.silent.and_then(|last| doubt(&grantee.to, last)));
            claim(newest, doubts)
        }
        None => Start::Refuse(Refusal::Granted { epoch: newest.epoch, to: grantee.to.pod.clone() }),
    }
}

/// Grounds are said of a pod: it must be the one that wrote the newest record. An operator may take another for the owner of
/// an epoch: one that it assigned the server to, and that never claimed it, is easily proven over.
fn owner_doubt(newest: &Header, supersedes: Option<&Supersedes>) -> Result<Vec<Doubt>, Refusal> {
    let Some(owner) = supersedes.map(|supersedes| &supersedes.owner) else { return Ok(Vec::new()) };
    if newest.writer.pod != owner.pod {
        let (found, named) = (newest.writer.pod.clone(), owner.pod.clone());
        return Err(Refusal::OtherOwner { epoch: newest.epoch, found, named });
    }
    Ok(owner.silent.and_then(|last| doubt(&newest.writer, last)).into_iter().collect())
}

/// A pod that began a later generation has nothing left of an earlier one. A generation that the operator did not hear of
/// while the pod was silent can have lived by the store alone: every heartbeat of it is above what the operator knows.
fn doubt(of: &Writer, last: Heartbeat) -> Option<Doubt> {
    let above = match last.generation.cmp(&of.generation) {
        std::cmp::Ordering::Less => 0,
        std::cmp::Ordering::Equal => last.counter,
        std::cmp::Ordering::Greater => return None,
    };
    Some(Doubt { of: of.clone(), above })
}
