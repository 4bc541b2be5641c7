//! What the host says of itself and of its servers.

pub use handoff::adopt::Phase as ListedPhase;
use handoff::{Epoch, Generation, ServerId, ServerUid};
use serde::Deserialize;

/// A type of server that the host can run.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HostType {
    /// Its name.
    pub name: String,
    /// Format that it writes.
    pub state_version: u32,
    /// Formats that it reads.
    pub loads: Vec<u32>,
}

/// What the host says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Describe {
    pub(super) contract: u32,
    /// Which run of the host this is.
    pub instance: u64,
    /// What it can run.
    pub types: Vec<HostType>,
    /// What it can do besides, by name; others than those known here are for other agents.
    #[serde(default)]
    features: Vec<String>,
}

impl Describe {
    /// Whether it stops serving by itself when its lease is over.
    #[must_use]
    pub fn knows_leases(&self) -> bool {
        self.has("lease")
    }

    /// Whether its servers may go on when its agent was restarted: it says what it was told of leases, and takes no late
    /// call of the agent before.
    #[must_use]
    pub fn can_be_adopted(&self) -> bool {
        self.knows_leases() && self.has("adopt")
    }

    fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature == name)
    }
}

/// The lease that it was told of last.
#[derive(Deserialize)]
pub(super) struct KnownLease {
    /// Whose servers it may serve.
    pub generation: Generation,
    /// Until when: milliseconds of the boot clock.
    pub deadline: u64,
}

/// A server that the host has.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Listed {
    /// Resource uid.
    pub uid: ServerUid,
    /// `namespace/name`.
    pub server: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Ownership term.
    pub epoch: Epoch,
    /// Of the lease under which it was started; `None`: the host does not say.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// What it does.
    pub phase: ListedPhase,
    /// Count of changes.
    pub revision: u64,
}

impl Listed {
    /// Its name and uid.
    #[must_use]
    pub fn id(&self) -> ServerId {
        let (namespace, name) = self.server.split_once('/').unwrap_or_default();
        ServerId { namespace: namespace.into(), name: name.into(), uid: self.uid.clone() }
    }
}
