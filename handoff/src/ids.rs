//! Names and numbers that every other module speaks in.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The largest epoch and sequence that a record may have; what says more is no record. Nothing that is counted one by one
/// gets there, and sums with it do not overflow, here or in Kubernetes' signed numbers.
pub const LAST: u64 = u64::MAX >> 1;

/// The number of one ownership term of one server. It only grows; 0 means "never owned".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// No term yet.
    pub const NONE: Self = Self(0);

    /// The epoch that a handoff gives to its target.
    #[must_use]
    pub const fn handed_off(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The epoch of an assigned claim. It skips one, because a handoff of this epoch may have been granted `+ 1`:
    /// no epoch is ever served by two pods.
    #[must_use]
    pub const fn claimed(self) -> Self {
        if self.0 == 0 { Self(1) } else { Self(self.0.saturating_add(2)) }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of a record in a server's log. The first record is 1; 0 means "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Before the first record.
    pub const NONE: Self = Self(0);

    /// The sequence that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The uid of the `DurableServer` resource: a name that is deleted and made again is another server.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerUid(pub String);

impl fmt::Display for ServerUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The uid of a pod: the only name of a pod that is never used twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub String);

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One run of an agent: what it began under one generation it never continues under another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// A server by the name that people use and by its uid.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerId {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Resource name, unique in the namespace.
    pub name: String,
    /// Resource uid.
    pub uid: ServerUid,
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One attempt at one handoff: a random nonce, so that no message of an earlier attempt is taken for this one's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HandoffId(pub u64);

/// Time since an arbitrary start of this process, by a clock that never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instant(pub Duration);

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, after: Duration) -> Self {
        Self(self.0 + after)
    }
}

impl std::ops::Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}
