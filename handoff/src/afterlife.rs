//! What is left of servers whose resource is deleted: which logs may go, and which one a new server of the same name
//! starts from.

use std::time::Duration;

use crate::{
    ids::{Sequence, ServerUid},
    log::{Header, Kind},
};

/// How long a log is kept after its last record, whatever anybody wants: far longer than any create can be late, and
/// long enough to notice that the wrong server was deleted.
pub const GRACE: Duration = Duration::from_hours(24);

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By a Tombstone that says that the state is not to be kept.
    Deleted,
    /// By a Tombstone that keeps the state.
    Retained,
    /// By a Release: nobody serves it, and whether it was deleted cannot be told from the log.
    Released,
    /// It does not: its last owner may still serve.
    Open,
}

impl End {
    /// How a log whose newest record is this one ends.
    #[must_use]
    pub const fn of(newest: &Kind) -> Self {
        match newest {
            Kind::Tombstone { delete: true } => Self::Deleted,
            Kind::Tombstone { delete: false } => Self::Retained,
            Kind::Release => Self::Released,
            Kind::Claim | Kind::Snapshot | Kind::Grant(_) => Self::Open,
        }
    }
}

/// The log of another server of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// That server.
    pub uid: ServerUid,
    /// Its newest record.
    pub newest: Header,
    /// When the store took that record, in seconds of the store's calendar.
    pub at: u64,
}

/// What a new server's resource says about its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    #[default]
    Newest,
    /// From this earlier server's last state.
    From(ServerUid),
    /// From nothing.
    Fresh,
}

/// A state in another log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// The server that left it.
    pub uid: ServerUid,
    /// The record that bears it.
    pub state_at: Sequence,
}

/// Why it is not decided what a new server starts from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// The log that is asked for is not there.
    #[error("spec.restoreFrom.uid: there is no log of an earlier server of this name with uid {0}")]
    NoLog(ServerUid),
    /// The log that is asked for bears no state.
    #[error("spec.restoreFrom.uid: the log of uid {0} bears no state")]
    NoState(ServerUid),
    /// The newest log does not end: its state may not be the last one.
    #[error(
        "an earlier server of this name, uid {0}, left a log that does not end: its pod may serve it still, or died. Write \
         spec.restoreFrom.uid: {0} to start from its last record, or spec.restoreFrom.fresh: true to start from nothing"
    )]
    Open(ServerUid),
}

/// What a server without a record of its own starts from; `None`: from nothing.
pub fn heir(earlier: &[Earlier], wish: &Wish) -> Result<Option<Inherited>, Undecided> {
    match wish {
        Wish::Fresh => Ok(None),
        Wish::From(uid) => {
            let asked = earlier.iter().find(|log| log.uid == *uid).ok_or_else(|| Undecided::NoLog(uid.clone()))?;
            state(asked).map(Some).ok_or_else(|| Undecided::NoState(uid.clone()))
        }
        Wish::Newest => {
            let kept = earlier.iter().filter(|log| End::of(&log.newest.kind) != End::Deleted);
            // The store's time has whole seconds; the uid makes every agent choose alike.
            match kept.max_by_key(|log| (log.at, &log.uid)) {
                Some(log) if End::of(&log.newest.kind) == End::Open => Err(Undecided::Open(log.uid.clone())),
                Some(log) => Ok(state(log)),
                None => Ok(None),
            }
        }
    }
}

fn state(log: &Earlier) -> Option<Inherited> {
    let state_at = log.newest.state_at;
    (state_at != Sequence::NONE).then(|| Inherited { uid: log.uid.clone(), state_at })
}

/// What is known of a log of which it is asked whether it may go.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// How it ends.
    pub end: End,
    /// How old its newest record is, by the store's calendar.
    pub age: Duration,
    /// Its server's resource is known not to exist.
    pub unknown: bool,
}

/// Whether a whole log may be deleted, and why, for people; `retained`: kept states are not wanted either.
#[must_use]
pub fn may_go(left: Left, retained: bool) -> (bool, &'static str) {
    match left.end {
        End::Deleted | End::Retained if left.age < GRACE => (false, "deleted less than 24 h ago"),
        End::Deleted => (true, "deleted, reclaimPolicy Delete"),
        End::Retained if retained => (true, "deleted, reclaimPolicy Retain"),
        End::Retained => (false, "deleted, reclaimPolicy Retain: --retained deletes it"),
        End::Released | End::Open if !left.unknown => (false, "not deleted as far as the log says"),
        End::Released | End::Open if left.age < GRACE => (false, "its newest record is less than 24 h old"),
        End::Released | End::Open => (true, "its server does not exist"),
    }
}
