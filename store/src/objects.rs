//! What is asked of an object store. There is no overwrite: a log only ever creates.

use std::{fmt, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

/// What became of a create that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// The key was free and holds our bytes now.
    Created,
    /// The key was taken; nothing was written.
    Exists,
}

/// How much of an object to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its first bytes, at most this many.
    Start(u64),
    /// All of it; an object of more bytes than this is an error.
    Whole {
        /// The most bytes to accept.
        max: u64,
    },
}

/// A key that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The key.
    pub key: String,
    /// When it was written, by the store's calendar, in whole seconds; `None` where the store does not say.
    pub modified: Option<SystemTime>,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No answer in time, or the connection broke: a create may have landed, or may land yet.
    #[error("the store did not answer: {0}")]
    Unknown(String),
    /// The store asks for fewer requests.
    #[error("the store is overloaded and asks for fewer requests: {0}")]
    Throttled(String),
    /// The store knows us and refuses, or does not know us.
    #[error("the store refused access: {0}")]
    Denied(String),
    /// The settings do not lead to a bucket.
    #[error("the store's settings are wrong: {0}")]
    Config(String),
    /// Anything else the store said.
    #[error("the store failed: {0}")]
    Other(String),
}

impl StoreError {
    /// Whether only a person can help: trying again by itself is of no use.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::Config(_))
    }

    /// An object is larger than its reader accepts; both in bytes.
    pub(crate) fn too_large(key: &str, bytes: u64, max: u64) -> Self {
        Self::Other(format!("{key} has {bytes} bytes, more than the {max} that are read"))
    }
}

/// An object store. Every call is bounded in time by the implementation. A failed read is an error, never "absent".
#[async_trait]
pub trait Objects: fmt::Debug + Send + Sync {
    /// Writes a key that does not exist yet. Sent once: after an error of kind [`StoreError::Unknown`] only the
    /// caller can tell what another try would mean.
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StoreError>;

    /// Reads a key; `None` only when the store says that it does not exist.
    async fn get(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError>;

    /// The first `limit` keys (at most 1000) in order that begin with `prefix` and come after `start_after`, which
    /// may be empty. Fewer than `limit` means that there are no more.
    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError>;

    /// Deletes a key, whether it exists or not.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
}

/// The same store twice: what others wait for goes by `urgent`, the rest by `bulk`.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// For claims, grants, releases, and the reads that a start needs.
    pub urgent: Arc<dyn Objects>,
    /// For snapshots and cleanup.
    pub bulk: Arc<dyn Objects>,
}

impl From<Arc<dyn Objects>> for Lanes {
    /// Without any pacing.
    fn from(objects: Arc<dyn Objects>) -> Self {
        Self { urgent: Arc::clone(&objects), bulk: objects }
    }
}
