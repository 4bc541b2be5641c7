//! Counts the operations of a store by their result, for metrics.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::objects::{Created, Listed, Objects, Part, StoreError};

/// The operations, by the names that metrics use.
pub const OPERATIONS: [&str; 4] = ["put", "get", "list", "delete"];
/// The results, by the names that metrics use. `exists` is a create that found its key taken, `absent` a read of no object.
pub const RESULTS: [&str; 8] = ["ok", "exists", "absent", "unknown", "throttled", "denied", "config", "other"];

/// How often each operation ended in each result since the start of the process.
#[derive(Debug)]
pub struct Counts([[AtomicU64; RESULTS.len()]; OPERATIONS.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self(array::from_fn(|_| array::from_fn(|_| AtomicU64::new(0))))
    }
}

impl Counts {
    /// Every (operation, result, count).
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        OPERATIONS.iter().zip(&self.0).flat_map(|(operation, counts)| {
            RESULTS.iter().zip(counts).map(|(result, count)| (*operation, *result, count.load(Ordering::Relaxed)))
        })
    }

    /// How often an operation was asked for, whatever came of it. 0 for a name that is not in [`OPERATIONS`].
    #[must_use]
    pub fn of(&self, operation: &str) -> u64 {
        self.all().filter(|(name, ..)| *name == operation).map(|(.., count)| count).sum()
    }

    fn add(&self, operation: usize, result: usize) {
        self.0[operation][result].fetch_add(1, Ordering::Relaxed);
    }
}

fn failed(error: &StoreError) -> usize {
    match error {
        StoreError::Unknown(_) => 3,
        StoreError::Throttled(_) => 4,
        StoreError::Denied(_) => 5,
        StoreError::Config(_) => 6,
        StoreError::Other(_) => 7,
    }
}

/// A store whose operations are counted. A call that its caller gives up counts as nothing.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Objects>,
    counts: Arc<Counts>,
}

impl Counted {
    /// Counts what goes to `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Objects>, counts: Arc<Counts>) -> Self {
        Self { inner, counts }
    }
}

#[async_trait]
impl Objects for Counted {
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StoreError> {
        let result = self.inner.create(key, body).await;
        let column = match &result {
            Ok(Created::Created) => 0,
            Ok(Created::Exists) => 1,
            Err(error) => failed(error),
        };
        self.counts.add(0, column);
        result
    }

    async fn get(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError> {
        let result = self.inner.get(key, part).await;
        let column = match &result {
            Ok(Some(_)) => 0,
            Ok(None) => 2,
            Err(error) => failed(error),
        };
        self.counts.add(1, column);
        result
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let result = self.inner.list(prefix, start_after, limit).await;
        self.counts.add(2, result.as_ref().map_or_else(failed, |_| 0));
        result
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let result = self.inner.delete(key).await;
        self.counts.add(3, result.as_ref().map_or_else(failed, |()| 0));
        result
    }
}
