//! Why this agent cannot host, for people and for the pool's condition.

use std::fmt;

use crds::Reason;
use store::StoreError;

use crate::host::HostError;

/// What keeps this agent from hosting; the default: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// What becomes the reason of the pool's condition; `None` if there is no problem.
    pub reason: Option<Reason>,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// With a sentence.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason: Some(reason), message: message.into() }
    }

    /// The word that the operator is told; empty if there is no problem.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.reason.map_or("", Reason::name)
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.reason.is_some()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<&HostError> for Problem {
    fn from(error: &HostError) -> Self {
        match error {
            HostError::Unreachable(_) => Self::new(
                Reason::HostUnreachable,
                format!("{error}: look whether the main container runs, and listens on host.sock in the shared volume"),
            ),
            HostError::Timeout(_) => Self::new(Reason::HostSilent, error.to_string()),
            HostError::LeaseOver => Self::new(Reason::LeaseOver, error.to_string()),
            HostError::Invalid(_) | HostError::Refused { .. } | HostError::TooLarge(_) => Self::new(
                Reason::HostInvalid,
                format!("{error}: durable-agent check-host explains what the contract asks for"),
            ),
        }
    }
}

impl From<&StoreError> for Problem {
    fn from(error: &StoreError) -> Self {
        let reason = match error {
            StoreError::Denied(_) => Reason::StoreDenied,
            StoreError::Config(_) => Reason::StoreMisconfigured,
            StoreError::Unknown(_) | StoreError::Throttled(_) | StoreError::Other(_) => Reason::StoreUnreachable,
        };
        Self::new(reason, error.to_string())
    }
}
