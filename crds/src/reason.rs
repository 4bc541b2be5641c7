//! Every reason that a condition or an Event of this project has: one word each, in one place.

/// An enum whose variants' names are the words, with the list of all of them: none can be missing from it.
macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Why a condition is as it is, or what an Event tells. `docs/reference.md` explains each to users, and a test compares.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    // Accepted.
    /// The spec can be acted on.
    Valid,
    /// A field of the spec cannot be acted on.
    Invalid,
    /// The object does not have the shape of its kind.
    Malformed,
    /// The pool that is named does not exist.
    NoPool,

    // Placed.
    /// A pod was chosen.
    Assigned,
    /// It is not its turn yet, or its last owner may serve still.
    Waiting,
    /// The pool that is named is not accepted.
    InvalidPool,
    /// `spec.cordoned` keeps it from being placed.
    Cordoned,
    /// Its pod shut down, and it is not permanent.
    Stopped,
    /// No pod can host now. Of a pool: none is ready, schedulable and there to stay.
    NoEligiblePod,
    /// Every pod that can host has as many servers as it may.
    PodsFull,
    /// Others can, but none as near to its last pod as it still waits for.
    NoPodNearby,
    /// No pod can load its type and state version.
    TypeUnknown,
    /// The host did not start it.
    HostRefused,
    /// Its host crashed under it again and again.
    HostCrashes,
    /// The chosen pod could not take it just now.
    PodRefused,
    /// The store could not be used for its start.
    StoreUnavailable,
    /// Its owner has no session, and showed in the store that it is well.
    OwnerAlive,
    /// The log names another owner than was thought.
    OwnedElsewhere,
    /// Its log cannot be read, or lacks what was written.
    Corrupt,
    /// Its log ends in a Tombstone.
    Deleted,
    /// Which earlier state it starts from is for a person to say.
    RestoreUndecided,

    // Ready, of a server.
    /// It serves.
    Serving,
    /// It serves, and another pod is taking it over.
    HandingOff,
    /// It has no pod.
    Pending,
    /// Its pod was told to start it.
    Starting,
    /// It is being stopped.
    Stopping,
    /// It cannot run. Of a `Handoff`: it ended, and servers were neither moved nor stopped gracefully.
    Failed,
    /// Its pod's agent is not connected.
    AgentSilent,

    // Durable.
    /// Its last sync succeeded.
    Synced,
    /// Its last sync failed.
    SyncFailed,
    /// Its owner's first record is not written yet.
    FirstRecordPending,

    // Moved.
    /// It is where it was asked to be.
    InPlace,
    /// It goes there next, or is on its way.
    OnItsWay,
    /// There is no pod of that name in its pool.
    NoSuchPod,
    /// That pod may not have it, or it may not be moved.
    CannotMove,

    // Ready, of a pool.
    /// Pods can host.
    PodsCanHost,
    /// Some can, others say why not.
    SomePodsCannotHost,
    /// No agent is connected.
    NoPods,
    /// A pod says why not in a word unknown here, or has no settings yet.
    CannotHost,
    /// Nothing listens on the host's socket.
    HostUnreachable,
    /// The host does not answer in time.
    HostSilent,
    /// The host does not keep the contract.
    HostInvalid,
    /// Neither the operator nor the store answered the agent's heartbeats, so it stopped all it had.
    LeaseOver,
    /// The store refuses access.
    StoreDenied,
    /// The store's settings do not lead to a bucket.
    StoreMisconfigured,
    /// The store does not answer, or fails.
    StoreUnreachable,
    /// The store overwrites what exists.
    StoreIgnoresConditions,
    /// Another cluster has the prefix.
    PrefixTaken,
    /// The agent cannot act on the pool's spec.
    PoolInvalid,

    // Of Events alone.
    /// A pod was emptied.
    Drained,
    /// A pod went, and servers were neither moved nor stopped gracefully.
    DrainFailed,
    /// A server was deleted, and nobody closed its log.
    LogStays,
}

impl Reason {
    /// The reason with this name; `None` for a word that is not one, such as from a newer agent.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    /// Whether people get an Event of it: what somebody must see to, and the end of a drain. What servers pass through in a
    /// rollout is not among it.
    #[must_use]
    pub const fn has_event(self) -> bool {
        self.is_of_pods()
            || matches!(
                self,
                Self::Invalid
                    | Self::Malformed
                    | Self::NoPool
                    | Self::InvalidPool
                    | Self::TypeUnknown
                    | Self::PodsFull
                    | Self::HostRefused
                    | Self::HostCrashes
                    | Self::StoreUnavailable
                    | Self::OwnedElsewhere
                    | Self::Corrupt
                    | Self::Deleted
                    | Self::RestoreUndecided
                    | Self::SyncFailed
                    | Self::CannotHost
                    | Self::Drained
                    | Self::DrainFailed
                    | Self::LogStays
            )
    }

    /// Whether an agent says so of its own pod.
    #[must_use]
    pub const fn is_of_pods(self) -> bool {
        matches!(
            self,
            Self::HostUnreachable
                | Self::HostSilent
                | Self::HostInvalid
                | Self::LeaseOver
                | Self::StoreDenied
                | Self::StoreMisconfigured
                | Self::StoreUnreachable
                | Self::StoreIgnoresConditions
                | Self::PrefixTaken
                | Self::PoolInvalid
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_name_only() {
        for reason in Reason::ALL {
            assert_eq!(Reason::named(reason.name()), Some(*reason));
        }
        assert_eq!(Reason::named("x y\n"), None);
    }
}
