//! Why servers of a drain are stopped, or wait, in words for people.

use std::collections::BTreeMap;

use crate::source::Cause;

/// Why a server is stopped instead of moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// Handoff is off for it.
    HandoffOff,
    /// No pod is eligible, and none is expected.
    NoTarget,
    /// Every eligible pod is full, and no other is expected.
    PodsFull,
    /// Every eligible pod would not have it.
    AllRejected,
    /// `stopAfterFailures` handoffs failed in a row.
    TooManyFailures,
    /// The host in this pod would not give its state.
    HostFailed,
    /// The time for handoffs is over.
    Deadline,
    /// The time is over, and the store could not be written all along.
    StoreUnavailable,
}

impl StopReason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::HandoffOff,
        Self::NoTarget,
        Self::PodsFull,
        Self::AllRejected,
        Self::TooManyFailures,
        Self::HostFailed,
        Self::Deadline,
        Self::StoreUnavailable,
    ];

    /// The name that status, events and metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HandoffOff => "HandoffOff",
            Self::NoTarget => "NoTarget",
            Self::PodsFull => "PodsFull",
            Self::AllRejected => "AllRejected",
            Self::TooManyFailures => "TooManyFailures",
            Self::HostFailed => "HostFailed",
            Self::Deadline => "Deadline",
            Self::StoreUnavailable => "StoreUnavailable",
        }
    }

    /// What happened and what to do about it.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::HandoffOff => {
                "handoff is off: set handoffOnShutdown.enabled in the pool, in its entry for the type, or in the server"
            }
            Self::NoTarget => {
                "no other pod of the pool can take servers and none is starting: run more than one replica, or let \
                 rollouts surge (maxSurge 1, maxUnavailable 0)"
            }
            Self::PodsFull => {
                "every pod that can take servers is full and none is starting: add replicas, or raise maxServersPerPod"
            }
            Self::AllRejected => "every pod that could take them refused",
            Self::TooManyFailures => "as many handoffs in a row failed as handoffOnShutdown.stopAfterFailures allows",
            Self::HostFailed => "the host in this pod does not give their state",
            Self::Deadline => {
                "the time for handoffs ran out: raise handoffOnShutdown.timeout, and the pod's \
                 terminationGracePeriodSeconds with it"
            }
            Self::StoreUnavailable => "the store could not be written until the time ran out",
        }
    }

    /// The kind of failure whose last reason explains it further.
    #[must_use]
    pub const fn cause(self) -> Option<Cause> {
        match self {
            Self::AllRejected => Some(Cause::Rejected),
            Self::TooManyFailures => Some(Cause::Failed),
            Self::HostFailed => Some(Cause::Host),
            Self::StoreUnavailable => Some(Cause::StoreUnavailable),
            Self::HandoffOff | Self::NoTarget | Self::PodsFull | Self::Deadline => None,
        }
    }
}

/// What the servers that are left wait for while none of them moves. They serve on meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// For a pod that is starting.
    NoTarget,
    /// The same; those that are there are full.
    PodsFull,
    /// The same; those that are there refused.
    AllRejected,
    /// For the store.
    StoreUnavailable,
}

impl Blocked {
    /// What is waited for.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::NoTarget => "no pod of the pool can take servers yet, one is starting",
            Self::PodsFull => "every pod that can take servers is full, another is starting",
            Self::AllRejected => "every pod that could take them refused, another is starting",
            Self::StoreUnavailable => "the store cannot be written, so no server may change hands",
        }
    }

    /// The kind of failure whose last reason explains it further.
    #[must_use]
    pub const fn cause(self) -> Option<Cause> {
        match self {
            Self::AllRejected => Some(Cause::Rejected),
            Self::StoreUnavailable => Some(Cause::StoreUnavailable),
            Self::NoTarget | Self::PodsFull => None,
        }
    }
}

/// The reason that a person should hear of first: the commonest one, but a choice of their own only if it is the only one.
#[must_use]
pub fn foremost(reasons: &BTreeMap<StopReason, usize>) -> Option<StopReason> {
    let stopped = reasons.iter().filter(|(_, n)| **n > 0);
    stopped.max_by_key(|(reason, n)| (**reason != StopReason::HandoffOff, **n)).map(|(reason, _)| *reason)
}
