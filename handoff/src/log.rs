//! What a server's log says, and the two decisions that everything else rests on: what an append does about a key
//! that exists already, and what cleanup may delete without taking the fence away.

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Generation, HandoffId, PodUid, Sequence};

/// The agent run that wrote a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Writer {
    /// Pod of the agent.
    pub pod: PodUid,
    /// Its generation when it wrote.
    pub generation: Generation,
}

/// What a Grant promises: the next epoch, to one agent run, in one handoff.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Grantee {
    /// The agent run that gets the next epoch.
    pub to: Writer,
    /// The handoff in which it was granted; a Grant that repeats it is the same grant.
    pub handoff: HandoffId,
}

/// What a record means.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Kind {
    /// A new epoch begins, by an assignment.
    Claim,
    /// State at a sync, or the first record of a handoff's target.
    Snapshot,
    /// The owner names who gets the next epoch. Void as soon as another record of its epoch follows that does not repeat it.
    Grant(Grantee),
    /// The owner has stopped for good.
    Release,
    /// The server is deleted; nobody claims over it.
    Tombstone {
        /// Nobody wants its state back: the whole log may go a day later. Otherwise the log stays, and a new server of
        /// the same name starts from it.
        #[serde(default)]
        delete: bool,
    },
}

/// Everything about a record but its state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Header {
    /// Place in the log.
    pub sequence: Sequence,
    /// Term in which it was written.
    pub epoch: Epoch,
    /// What it means.
    #[serde(flatten)]
    pub kind: Kind,
    /// Who wrote it.
    pub writer: Writer,
    /// Tells the writer's own record from another's after a lost answer.
    pub nonce: u64,
    /// The newest record up to this one that bears state; this one's own sequence if it does; 0 before the first state.
    pub state_at: Sequence,
    /// Version of the state's format, the host's own number; that of the record at `state_at`.
    pub state_version: u32,
}

impl Header {
    /// Whether this record bears a state itself.
    #[must_use]
    pub fn bears_state(&self) -> bool {
        self.state_at == self.sequence
    }

    /// The grantee, if this is a Grant.
    #[must_use]
    pub fn grantee(&self) -> Option<&Grantee> {
        match &self.kind {
            Kind::Grant(grantee) => Some(grantee),
            _ => None,
        }
    }
}

/// On whose behalf a record is appended: it decides which records found in its place are only in the way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Authority {
    /// The owner of this epoch. `granted` is the handoff whose Grant it may have written itself.
    Owner {
        /// Its epoch.
        epoch: Epoch,
        /// The handoff that it began, if any.
        granted: Option<HandoffId>,
    },
    /// The owner of this epoch, by an agent that was restarted: what the run before had on its way is its own, and no Grant
    /// among it was used, since the server serves here.
    Adopted {
        /// Its epoch.
        epoch: Epoch,
    },
    /// The target that holds Final's state: stragglers of the source's epoch cannot take anything from it.
    Handed {
        /// The source's epoch.
        from: Epoch,
        /// The handoff.
        handoff: HandoffId,
    },
    /// Whoever starts from what the log says: anything new in the log must be looked at first.
    Reader,
}

/// What a record found in the place of ours means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is ours: an answer was lost, the record is written.
    Ours,
    /// It changes nothing for us: try the next sequence.
    InTheWay,
    /// We are no longer who may write.
    Fenced,
}

/// The one interpretation of "exists already".
#[must_use]
pub fn found(authority: &Authority, nonce: u64, found: &Header) -> Found {
    if found.nonce == nonce {
        return Found::Ours;
    }
    let grant = found.grantee().map(|grantee| grantee.handoff);
    let (in_the_way, known_grant) = match authority {
        Authority::Owner { epoch, granted } => (found.epoch == *epoch, *granted),
        Authority::Adopted { epoch } => (found.epoch == *epoch, grant),
        Authority::Handed { from, handoff } => {
            (found.epoch == *from || found.epoch == from.handed_off(), Some(*handoff))
        }
        Authority::Reader => (false, None),
    };
    let terminal = match &found.kind {
        Kind::Release | Kind::Tombstone { .. } => true,
        Kind::Grant(_) => known_grant != grant,
        Kind::Claim | Kind::Snapshot => false,
    };
    if in_the_way && !terminal { Found::InTheWay } else { Found::Fenced }
}

/// How long a record's successor must have been known before cleanup may delete it. Far longer than any create can
/// be late, because after a delete an old create of that key would succeed.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// State-bearing records to keep at least. 1 or more.
    pub keep: usize,
    /// For snapshots.
    pub snapshots: std::time::Duration,
    /// For claims, grants, releases and tombstones.
    pub terms: std::time::Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep: 3, snapshots: std::time::Duration::from_mins(10), terms: std::time::Duration::from_hours(1) }
    }
}

/// A record as cleanup sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The record.
    pub header: Header,
    /// For how long the deleter itself has known a record that follows; `None` for the newest.
    pub succeeded_for: Option<std::time::Duration>,
}

/// The sequences that may be deleted from a log, given its records in order. Never the newest record, never one of
/// the newest `keep` that bear state, never one that a kept record points at, never one whose successor is young.
#[must_use]
pub fn deletable(records: &[Seen], retention: &Retention) -> Vec<Sequence> {
    let newest_states: Vec<Sequence> = records
        .iter()
        .rev()
        .filter(|seen| seen.header.bears_state())
        .take(retention.keep.max(1))
        .map(|seen| seen.header.sequence)
        .collect();
    let old = |seen: &&Seen| {
        let age = if matches!(seen.header.kind, Kind::Snapshot) { retention.snapshots } else { retention.terms };
        seen.succeeded_for.is_some_and(|known| known >= age)
    };
    let candidates: Vec<&Seen> =
        records.iter().filter(old).filter(|seen| !newest_states.contains(&seen.header.sequence)).collect();
    let goes = |sequence: Sequence| candidates.iter().any(|seen| seen.header.sequence == sequence);
    let pointed_at: Vec<Sequence> = records
        .iter()
        .filter(|seen| !goes(seen.header.sequence) && !seen.header.bears_state())
        .map(|seen| seen.header.state_at)
        .collect();
    candidates.iter().map(|seen| seen.header.sequence).filter(|sequence| !pointed_at.contains(sequence)).collect()
}
