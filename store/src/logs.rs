//! Many logs: all of one name, all under a prefix; and the end of those whose server is deleted.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use handoff::{
    Sequence, ServerId,
    afterlife::{Earlier, End, GRACE, Wish},
};

use crate::{
    keys,
    log::Log,
    objects::{Lanes, Objects, StoreError},
    read::{ReadError, list_all},
};

/// Earlier logs of one name that are read to find the one to start from; older ones are found by their uid only.
const MAX_EARLIER: usize = 32;
/// Whole logs that one sweep deletes at most.
const MAX_SWEPT: usize = 64;

/// A log, from a listing alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its server.
    pub server: ServerId,
    /// Its newest record.
    pub newest: Sequence,
    /// How many records exist.
    pub records: usize,
    /// When the newest was written, by the store's calendar; `None` where the store does not say.
    pub modified: Option<SystemTime>,
}

impl Kept {
    /// How old its newest record is. A clock that differs from the store's by more than a quarter of an hour is refused
    /// by the store itself, with the signature. `None` where the store does not say.
    #[must_use]
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        self.modified.map(|modified| age(now, modified))
    }
}

/// The logs of all servers that ever had this name.
pub async fn of_name(lanes: &Lanes, prefix: &str, namespace: &str, name: &str) -> Result<Vec<Kept>, StoreError> {
    listed(&lanes.urgent, prefix, &keys::of_name(prefix, namespace, name)?).await
}

/// All logs under a prefix, by name and uid.
pub async fn all(lanes: &Lanes, prefix: &str) -> Result<Vec<Kept>, StoreError> {
    listed(&lanes.bulk, prefix, &keys::join(prefix, "")).await
}

async fn listed(lane: &Arc<dyn Objects>, prefix: &str, within: &str) -> Result<Vec<Kept>, StoreError> {
    let mut logs = BTreeMap::<ServerId, Kept>::new();
    list_all(lane, within, String::new(), |listed| {
        let Some((server, newest)) = keys::parse(prefix, &listed.key) else { return };
        let of_key = Kept { server: server.clone(), newest, records: 0, modified: listed.modified };
        let log = logs.entry(server).or_insert_with(|| of_key.clone());
        *log = Kept { records: log.records + 1, ..of_key };
    })
    .await?;
    Ok(logs.into_values().collect())
}

/// The logs that `server`, which has none of its own, may start from by this wish.
pub async fn earlier(lanes: &Lanes, prefix: &str, server: &ServerId, wish: &Wish) -> Result<Vec<Earlier>, ReadError> {
    if *wish == Wish::Fresh {
        return Ok(Vec::new());
    }
    let mut logs = of_name(lanes, prefix, &server.namespace, &server.name).await?;
    logs.retain(|log| match wish {
        Wish::From(uid) => log.server.uid == *uid,
        _ => log.server.uid != server.uid,
    });
    logs.sort_unstable_by(|a, b| (b.modified, &b.server.uid).cmp(&(a.modified, &a.server.uid)));
    let mut earlier = Vec::new();
    for log in logs.into_iter().take(MAX_EARLIER) {
        let newest = Log::new(lanes.clone(), prefix, &log.server, 0)?.read_header(log.newest).await?;
        let newest = newest.ok_or(ReadError::Vanishing(log.newest))?;
        let at = log.modified.map_or(0, |modified| age(modified, UNIX_EPOCH).as_secs());
        let is_enough = End::of(&newest.kind) != End::Deleted;
        earlier.push(Earlier { uid: log.server.uid, newest, at });
        if is_enough {
            break;
        }
    }
    Ok(earlier)
}

/// Notes that a log is to go. To be done before its Tombstone is written, so that no such log is ever forgotten: a mark
/// whose log does not end in a Tombstone does nothing.
pub async fn mark_deleted(lanes: &Lanes, prefix: &str, server: &ServerId) -> Result<(), StoreError> {
    lanes.bulk.create(&keys::mark(prefix, server)?, Bytes::new()).await.map(drop)
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Logs deleted.
    pub logs: usize,
    /// Records deleted.
    pub records: usize,
}

/// Deletes marked logs whose Tombstone is older than [`GRACE`], some of them if they are many. One listing when there
/// are none. Any number of processes may do it at once.
pub async fn sweep(lanes: &Lanes, prefix: &str, now: SystemTime) -> Result<Swept, StoreError> {
    let mut due = Vec::new();
    list_all(&lanes.bulk, &keys::marks(prefix), String::new(), |listed| {
        let is_old = listed.modified.is_some_and(|modified| age(now, modified) >= GRACE);
        if is_old && due.len() < MAX_SWEPT {
            due.extend(keys::marked(prefix, &listed.key));
        }
    })
    .await?;
    let mut swept = Swept::default();
    for server in due {
        match bury(lanes, prefix, &server, now).await {
            Ok(records) => {
                swept.logs += usize::from(records > 0);
                swept.records += records;
            }
            Err(ReadError::Store(error)) => return Err(error),
            Err(error) => tracing::warn!(%server, %error, "a deleted server's log stays"),
        }
    }
    Ok(swept)
}

/// How many records of a marked log went.
async fn bury(lanes: &Lanes, prefix: &str, server: &ServerId, now: SystemTime) -> Result<usize, ReadError> {
    let logs = listed(&lanes.bulk, prefix, &keys::of_log(prefix, server)?).await?;
    let mut records = 0;
    if let Some(kept) = logs.first() {
        if kept.age(now).is_none_or(|age| age < GRACE) {
            return Ok(0);
        }
        let log = Log::new(lanes.clone(), prefix, server, 0)?;
        let newest = log.read_header(kept.newest).await?;
        if newest.is_some_and(|newest| End::of(&newest.kind) == End::Deleted) {
            let Some(gone) = log.destroy(kept.newest).await? else { return Ok(0) };
            records = gone;
        }
    }
    lanes.bulk.delete(&keys::mark(prefix, server)?).await?;
    Ok(records)
}

pub(crate) fn age(now: SystemTime, modified: SystemTime) -> Duration {
    now.duration_since(modified).unwrap_or_default()
}
