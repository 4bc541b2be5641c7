//! The log of one server: reading it, and cleaning it up.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use handoff::{
    Sequence,
    log::{Header, Retention, deletable},
};
use tokio::time::{Instant, sleep};

use crate::{
    log::{INLINE, Log, State, checked, off_thread},
    objects::{Listed, Objects, Part, StoreError},
    record::{self, HEAD, RecordError},
};

/// Keys per listing; what S3 gives at most.
const PAGE: usize = 1000;
/// Listings before giving up on a newest record that is listed and cannot be found.
const LISTINGS: usize = 5;
const PAUSE: Duration = Duration::from_millis(100);
/// Records that one cleanup reads at most, and deletes at most.
const BATCH: usize = 64;

/// Why a log could not be read. None of these means that it is empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is damaged or too new. A person must look at it: nothing is ever started from less.
    #[error("record {sequence} at {key} cannot be read: {error}")]
    Unreadable {
        /// Which one.
        sequence: Sequence,
        /// Where it lies.
        key: String,
        /// What is wrong with it.
        error: RecordError,
    },
    /// The log should have this record or a newer one, and has neither.
    #[error("the log has no record {0} and none after it: wrong bucket or prefix, or its records were deleted")]
    HintMissing(Sequence),
    /// The record is not there, or bears no state.
    #[error("record {0} with the state is gone: list the log again")]
    StateMissing(Sequence),
    /// The newest record is listed, time and again, and never found.
    #[error("record {0} is listed but cannot be found: try again")]
    Vanishing(Sequence),
}

/// The newest record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The record.
    pub header: Header,
    /// Its state, if it bears one; otherwise that is at [`Header::state_at`].
    pub state: Option<State>,
}

/// A record as a person is shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its place in the log.
    pub sequence: Sequence,
    /// When it was written, by the store's calendar; `None` where the store does not say.
    pub modified: Option<SystemTime>,
    /// Its header and, if it bears one, the length of its state in bytes; or why it cannot be read.
    pub content: Result<(Header, Option<u64>), RecordError>,
}

/// What a cleanup did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Records deleted.
    pub deleted: usize,
    /// Whether another cleanup would find more to do at once.
    pub more: bool,
}

impl Log {
    /// The newest record, in one listing and one read as a rule; `None` only for a log that was never written, which
    /// can only be said when `hint` is [`Sequence::NONE`]. `hint` is a record known to have been written.
    pub async fn read_newest(&self, hint: Sequence) -> Result<Option<Newest>, ReadError> {
        let mut last = hint;
        for _ in 0..LISTINGS {
            let listed = self.listed(&self.lanes.urgent, hint).await?;
            last = match listed.last() {
                Some((last, _)) => *last,
                None if hint == Sequence::NONE => return Ok(None),
                None => return Err(ReadError::HintMissing(hint)),
            };
            if let Some((header, body)) = self.read(last).await? {
                self.known().meet(&header, Instant::now());
                let state = body.map(|body| State { version: header.state_version, body });
                return Ok(Some(Newest { header, state }));
            }
            sleep(PAUSE).await;
        }
        Err(ReadError::Vanishing(last))
    }

    /// The state that a record bears; `sequence` is a [`Header::state_at`].
    pub async fn read_state(&self, sequence: Sequence) -> Result<State, ReadError> {
        match self.read(sequence).await? {
            Some((header, Some(body))) => Ok(State { version: header.state_version, body }),
            _ => Err(ReadError::StateMissing(sequence)),
        }
    }

    /// Deletes what no reader and no fence needs any more, some of it if it is much. For the server's owner to call
    /// now and then: one listing, one read for each older record that this process has not met, one delete for each
    /// that goes. How long a record's successor has been known counts only as far as this process has known it.
    pub async fn cleanup(&self, retention: &Retention) -> Result<Cleaned, ReadError> {
        let mut existing = sequences(self.listed(&self.lanes.bulk, Sequence::NONE).await?);
        self.learn(&mut existing).await?;
        let Some(oldest) = existing.first().copied() else { return Ok(Cleaned::default()) };
        let (mut goes, is_whole) = {
            let (mut known, now) = (self.known(), Instant::now());
            known.forget(oldest, retention, now);
            (deletable(&known.seen(&existing, now), retention), known.from() <= oldest)
        };
        let more = goes.len() > BATCH || !is_whole;
        goes.truncate(BATCH);
        for sequence in &goes {
            self.lanes.bulk.delete(&self.key(*sequence)).await?;
        }
        Ok(Cleaned { deleted: goes.len(), more })
    }

    /// Reads the headers that cleanup needs and does not know, from the newest backwards.
    async fn learn(&self, existing: &mut Vec<Sequence>) -> Result<(), ReadError> {
        let Some(newest) = existing.last().copied() else { return Ok(()) };
        if self.newest_known().is_none_or(|known| known.sequence < newest) {
            let header = self.read_header(newest).await?.ok_or(ReadError::Vanishing(newest))?;
            self.known().meet(&header, Instant::now());
        }
        let from = self.known().from();
        let older: Vec<Sequence> =
            existing.iter().rev().filter(|sequence| **sequence < from).take(BATCH).copied().collect();
        for sequence in older {
            match self.read_header(sequence).await? {
                Some(header) => self.known().learn_older(&header),
                None => existing.retain(|other| *other != sequence),
            }
        }
        Ok(())
    }

    /// Every record that exists, oldest first, each read as far as its header: for people.
    pub async fn look(&self) -> Result<Vec<Shown>, StoreError> {
        let mut seen = Vec::new();
        for (sequence, modified) in self.listed(&self.lanes.bulk, Sequence::NONE).await? {
            // A record that went meanwhile was old.
            if let Some(bytes) = self.lanes.bulk.get(&self.key(sequence), Part::Start(HEAD)).await? {
                let content = record::describe(&bytes);
                let content = content.and_then(|(header, length)| Ok((checked(sequence, Ok(header))?, length)));
                seen.push(Shown { sequence, modified, content });
            }
        }
        Ok(seen)
    }

    /// The header of one record; `None` if it does not exist.
    pub async fn read_header(&self, sequence: Sequence) -> Result<Option<Header>, ReadError> {
        let Some(bytes) = self.lanes.bulk.get(&self.key(sequence), Part::Start(HEAD)).await? else { return Ok(None) };
        let header = checked(sequence, record::decode_header(&bytes));
        header.map(Some).map_err(|error| self.unreadable(sequence, error))
    }

    /// Deletes the whole log, unless it has gone on after `newest`: how many records went, or `None`. The newest goes
    /// last, so that a log of which a part is left ends as before. Only for a log that nobody writes to any more.
    pub async fn destroy(&self, newest: Sequence) -> Result<Option<usize>, StoreError> {
        let existing = sequences(self.listed(&self.lanes.bulk, Sequence::NONE).await?);
        if existing.last().is_some_and(|last| *last != newest) {
            return Ok(None);
        }
        for sequence in &existing {
            self.lanes.bulk.delete(&self.key(*sequence)).await?;
        }
        Ok(Some(existing.len()))
    }

    /// The sequences that exist, in order, from `from` on, and when each was written.
    async fn listed(
        &self,
        lane: &Arc<dyn Objects>,
        from: Sequence,
    ) -> Result<Vec<(Sequence, Option<SystemTime>)>, StoreError> {
        let start_after = from.0.checked_sub(1).map(|before| self.key(Sequence(before))).unwrap_or_default();
        let mut found = Vec::new();
        list_all(lane, &self.prefix, start_after, |listed| {
            found.extend(self.sequence(&listed.key).map(|sequence| (sequence, listed.modified)));
        })
        .await?;
        Ok(found)
    }

    /// The sequence in a key; `None` for a key that is not a record's.
    fn sequence(&self, key: &str) -> Option<Sequence> {
        let hex = key.strip_prefix(&self.prefix)?;
        let sequence = Sequence(u64::from_str_radix(hex, 16).ok()?);
        (self.key(sequence) == key).then_some(sequence)
    }

    async fn read(&self, sequence: Sequence) -> Result<Option<(Header, Option<Bytes>)>, ReadError> {
        let max = self.max_state.load(Ordering::Relaxed);
        let part = Part::Whole { max: record::max_record(max) };
        let Some(bytes) = self.lanes.urgent.get(&self.key(sequence), part).await? else { return Ok(None) };
        let decoded = if bytes.len() <= INLINE {
            record::decode(&bytes, max)
        } else {
            off_thread(move || record::decode(&bytes, max)).await
        };
        let intact = decoded.and_then(|(header, state)| Ok((checked(sequence, Ok(header))?, state)));
        intact.map(Some).map_err(|error| self.unreadable(sequence, error))
    }

    fn unreadable(&self, sequence: Sequence, error: RecordError) -> ReadError {
        ReadError::Unreadable { sequence, key: self.key(sequence), error }
    }
}

fn sequences(listed: Vec<(Sequence, Option<SystemTime>)>) -> Vec<Sequence> {
    listed.into_iter().map(|(sequence, _)| sequence).collect()
}

/// Every key with this prefix after `start_after`, page by page.
pub(crate) async fn list_all(
    lane: &Arc<dyn Objects>,
    prefix: &str,
    mut start_after: String,
    mut each: impl FnMut(Listed),
) -> Result<(), StoreError> {
    loop {
        let page = lane.list(prefix, &start_after, PAGE).await?;
        let is_last = page.len() < PAGE;
        let last = page.last().map(|listed| listed.key.clone()).unwrap_or_default();
        page.into_iter().for_each(&mut each);
        if is_last {
            return Ok(());
        }
        if last <= start_after {
            return Err(StoreError::Other("its listing does not go on after start-after".into()));
        }
        start_after = last;
    }
}
