//! Why this agent cannot host, for people and for the pool's condition.

use std::fmt;

use store::StoreError;

use crate::host::HostError;

/// What keeps this agent from hosting; the default: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    /// One word, which becomes the reason of the pool's condition.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// With a sentence.
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_some(&self) -> bool {
        !self.reason.is_empty()
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
                "HostUnreachable",
                format!("{error}: look whether the main container runs, and listens on host.sock in the shared volume"),
            ),
            HostError::Timeout(_) => Self::new("HostSilent", error.to_string()),
            HostError::LeaseOver => Self::new("LeaseOver", error.to_string()),
            HostError::Invalid(_) | HostError::Refused { .. } | HostError::TooLarge(_) => Self::new(
                "HostInvalid",
                format!("{error}: durable-agent check-host explains what the contract asks for"),
            ),
        }
    }
}

impl From<&StoreError> for Problem {
    fn from(error: &StoreError) -> Self {
        let reason = match error {
            StoreError::Denied(_) => "StoreDenied",
            StoreError::Config(_) => "StoreMisconfigured",
            StoreError::Unknown(_) | StoreError::Throttled(_) | StoreError::Other(_) => "StoreUnreachable",
        };
        Self::new(reason, error.to_string())
    }
}
