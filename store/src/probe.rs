//! The checks at start: does the store honour conditional creates, and is the prefix this cluster's own.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use crate::objects::{Created, Objects, Part, StoreError};

/// Tries before a store that does not answer counts as unreachable.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// No cluster's id is longer, in bytes.
const MAX_ID: u64 = 1024;

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A second create of a key is refused, as it must be.
    Ok,
    /// The store overwrites where it must refuse: no ownership can be fenced on it, and nothing may be written.
    IgnoresConditions,
    /// Nothing is known yet: try again later.
    Unreachable(String),
    /// Credentials, bucket or settings are wrong, and a person must mend them.
    Denied(StoreError),
}

/// Creates one new key twice and deletes it again. `prefix` as in [`crate::Log::new`].
pub async fn probe(objects: &dyn Objects, prefix: &str) -> Probe {
    let key = crate::keys::join(prefix, &format!("probe/{:032x}", rand::random::<u128>()));
    let result = create_twice(objects, &key).await;
    if let Err(error) = objects.delete(&key).await {
        tracing::warn!(%error, %key, "probe object was not deleted");
    }
    result
}

/// Nobody else knows the key: "exists" can only mean one of our own creates, whatever became of their answers.
async fn create_twice(objects: &dyn Objects, key: &str) -> Probe {
    let mut created = 0;
    let mut last = String::new();
    for _ in 0..TRIES {
        match objects.create(key, Bytes::from_static(b"probe")).await {
            Ok(Created::Exists) => return Probe::Ok,
            Ok(Created::Created) if created > 0 => return Probe::IgnoresConditions,
            Ok(Created::Created) => created += 1,
            Err(error) if error.needs_a_person() => return Probe::Denied(error),
            Err(error) => {
                last = error.to_string();
                sleep(PAUSE).await;
            }
        }
    }
    Probe::Unreachable(last)
}

/// Why a prefix may not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnerError {
    /// Another cluster writes there.
    #[error(
        "the prefix belongs to cluster {owner}, and this is cluster {cluster}: give each cluster a prefix of its own \
         in spec.store.s3.prefix; to hand the prefix over for good, delete the object {key} after the other cluster is gone"
    )]
    Other {
        /// Who has it.
        owner: String,
        /// Who asked.
        cluster: String,
        /// The object that says so.
        key: String,
    },
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Takes a prefix for a cluster, for good; asking again with the same id is fine. `cluster` is any stable id of the
/// cluster of at most 1024 bytes, such as the uid of its `kube-system` namespace.
pub async fn claim_prefix(objects: &dyn Objects, prefix: &str, cluster: &str) -> Result<(), OwnerError> {
    let key = crate::keys::join(prefix, "owner");
    let mut last = StoreError::Unknown("the owner object keeps appearing and vanishing".into());
    for _ in 0..TRIES {
        if let Some(found) = objects.get(&key, Part::Whole { max: MAX_ID }).await? {
            let owner = String::from_utf8_lossy(&found).trim().to_owned();
            let cluster = cluster.to_owned();
            return if owner == cluster { Ok(()) } else { Err(OwnerError::Other { owner, cluster, key }) };
        }
        match objects.create(&key, Bytes::copy_from_slice(cluster.as_bytes())).await {
            Ok(Created::Created) => return Ok(()),
            Ok(Created::Exists) => {}
            Err(error) if error.needs_a_person() => return Err(error.into()),
            Err(error) => {
                last = error;
                sleep(PAUSE).await;
            }
        }
    }
    Err(last.into())
}
