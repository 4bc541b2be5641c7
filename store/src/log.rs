//! The log of one server: appending to it. Reading and cleanup are in [`crate::read`].

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use handoff::{
    Epoch, Sequence, ServerId,
    log::{Authority, Found, Header, Kind, Writer, found},
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    keys,
    known::Known,
    objects::{Created, Lanes, Objects, Part, StoreError},
    record::{self, HEAD, Packed, RecordError},
};

/// The first pause after a try that brought no answer, doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Appends remembered that may have been written though their caller was told otherwise. To forget one is safe: its
/// record is then judged like anyone's.
const MAX_UNSURE: usize = 64;
/// Larger states are compressed off the async threads, where they would hold up others for more than a millisecond.
pub(crate) const INLINE: usize = 256 * 1024;

/// A server's state as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The host's own number of its format.
    pub version: u32,
    /// The host's bytes.
    pub body: Bytes,
}

/// Where the state of a record to be written is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// In the record itself. A Snapshot must.
    State(State),
    /// In an earlier one.
    At {
        /// The newest record that bears state; [`Sequence::NONE`] before the first state.
        sequence: Sequence,
        /// Its state version.
        version: u32,
    },
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// Term in which it is written.
    pub epoch: Epoch,
    /// What it means.
    pub kind: Kind,
    /// Who writes it.
    pub writer: Writer,
    /// Its state, or where that is.
    pub body: Body,
}

/// Why a record was not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Someone else may write now; this is what was found.
    #[error("record {} of epoch {} by pod {} is in the log already", .0.sequence, .0.epoch, .0.writer.pod)]
    Fenced(Box<Header>),
    /// Not known to be written by the deadline, though it may be, now or soon. Appending again is safe, whatever
    /// became of it.
    #[error("the record could not be written: {0}")]
    Unavailable(StoreError),
    /// The caller's idea of the log is so old that cleanup has taken what followed: read the log again.
    #[error("record {0} was there and is gone: read the log again before writing to it")]
    Stale(Sequence),
    /// A record in the way cannot be understood, so nothing can be decided.
    #[error("record {sequence} of the log cannot be read: {error}")]
    Unreadable {
        /// Which one.
        sequence: Sequence,
        /// What is wrong with it.
        error: RecordError,
    },
    /// The draft itself cannot be a record.
    #[error("not written: {0}")]
    Refused(RecordError),
}

/// The log of one server. One per process and server: it is what keeps to one create in flight.
#[derive(Debug)]
pub struct Log {
    pub(crate) lanes: Lanes,
    /// Of every key; ends in a slash.
    pub(crate) prefix: String,
    pub(crate) max_state: AtomicU64,
    known: Mutex<Known>,
    /// Nonces of appends whose outcome their callers do not know, or may not have known when they went on. Held while a create is in flight.
    unsure: tokio::sync::Mutex<VecDeque<u64>>,
}

impl Log {
    /// The log of `server` under `prefix` (which may be empty, and needs no slashes). `max_state` is in bytes, before
    /// compression. Does not touch the store.
    pub fn new(lanes: Lanes, prefix: &str, server: &ServerId, max_state: u64) -> Result<Self, StoreError> {
        let prefix = keys::of_log(prefix, server)?;
        let max_state = AtomicU64::new(max_state);
        Ok(Self { lanes, prefix, max_state, known: Mutex::default(), unsure: tokio::sync::Mutex::default() })
    }

    /// Changes the bound of a state's size, in bytes.
    pub fn set_max_state(&self, max_state: u64) {
        self.max_state.store(max_state, Ordering::Relaxed);
    }

    /// The key of a record.
    #[must_use]
    pub fn key(&self, sequence: Sequence) -> String {
        keys::of_record(&self.prefix, sequence)
    }

    /// The newest record that this process knows of, without asking.
    #[must_use]
    pub fn newest_known(&self) -> Option<Header> {
        self.known().newest().cloned()
    }

    /// Writes a record as the next one after `after`, or further on if what is there is only in the way. `after` must
    /// be known to exist, by a read or an append not longer ago than cleanup's retention. The header returned says
    /// where it is. Nothing counts that is answered after `until`; give the end of the lease, or earlier.
    ///
    /// May be dropped at any time: that is like running into the deadline.
    pub async fn append(
        &self,
        authority: &Authority,
        draft: Draft,
        after: Sequence,
        until: Instant,
    ) -> Result<Header, AppendError> {
        let packed = self.pack(&draft.body).await?;
        let Ok(mut unsure) = timeout_at(until, self.unsure.lock()).await else {
            let reason = "an earlier record of the same log was still being written";
            return Err(AppendError::Unavailable(StoreError::Unknown(reason.into())));
        };
        let mut header = first_header(draft, after);
        let nonce = header.nonce;
        unsure.push_back(nonce);
        if unsure.len() > MAX_UNSURE {
            unsure.pop_front();
        }
        let lane = self.lane(authority, &header.kind);
        let result = self.walk(lane, authority, &mut header, packed.as_ref(), &unsure, until).await;
        let settled = match &result {
            // A handoff may be given up, and the next one's Grant decided on, while its own is on its way here.
            Ok(written) => written.grantee().is_none(),
            Err(error) => !matches!(error, AppendError::Unavailable(_)),
        };
        if settled {
            unsure.retain(|other| *other != nonce);
        }
        result
    }

    /// From sequence to sequence, each known to be taken before the next is tried.
    async fn walk(
        &self,
        lane: &Arc<dyn Objects>,
        authority: &Authority,
        header: &mut Header,
        packed: Option<&Packed>,
        unsure: &VecDeque<u64>,
        until: Instant,
    ) -> Result<Header, AppendError> {
        loop {
            let there = match self.met(header.sequence, until).await? {
                Some(there) => there,
                None => self.place(lane, header, packed, until).await?,
            };
            let now = Instant::now();
            self.known().meet(&there, now);
            match judge(authority, header, &there, unsure) {
                Found::Ours if now > until => return Err(late("the store's answer came too late")),
                Found::Ours => return Ok(there),
                Found::Fenced => return Err(AppendError::Fenced(Box::new(there))),
                Found::InTheWay => step_over(header, &there),
            }
        }
    }

    /// A record that is known to exist, or to have existed, is never created: after a cleanup that would succeed.
    async fn met(&self, sequence: Sequence, until: Instant) -> Result<Option<Header>, AppendError> {
        match self.newest_known() {
            Some(newest) if newest.sequence == sequence => Ok(Some(newest)),
            Some(newest) if newest.sequence > sequence => self.settled(sequence, until).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Creates the record and tries until it is known what is at its key: that is returned, ours or not.
    async fn place(
        &self,
        lane: &Arc<dyn Objects>,
        header: &Header,
        packed: Option<&Packed>,
        until: Instant,
    ) -> Result<Header, AppendError> {
        let body = record::encode(header, packed).map_err(AppendError::Refused)?;
        let key = self.key(header.sequence);
        let mut pauses = Pauses::new(until, &key);
        loop {
            if Instant::now() >= until {
                return Err(late("the deadline has passed"));
            }
            match timeout_at(until, lane.create(&key, body.clone())).await {
                Ok(Ok(Created::Created)) => return Ok(header.clone()),
                Ok(Ok(Created::Exists)) => return self.settled(header.sequence, until).await,
                Ok(Err(error)) => pauses.after(error).await?,
                Err(_) => return Err(late("no answer by the deadline")),
            }
        }
    }

    /// The header of a record that exists. From here on its key is only read, whatever the answers.
    async fn settled(&self, sequence: Sequence, until: Instant) -> Result<Header, AppendError> {
        let key = self.key(sequence);
        let mut pauses = Pauses::new(until, &key);
        loop {
            let read = self.lanes.urgent.get(&key, Part::Start(HEAD));
            match timeout_at(until, read).await {
                Ok(Ok(Some(bytes))) => {
                    return checked(sequence, record::decode_header(&bytes))
                        .map_err(|error| AppendError::Unreadable { sequence, error });
                }
                Ok(Ok(None)) => return Err(AppendError::Stale(sequence)),
                Ok(Err(error)) => pauses.after(error).await?,
                Err(_) => return Err(late("no answer by the deadline")),
            }
        }
    }

    fn lane(&self, authority: &Authority, kind: &Kind) -> &Arc<dyn Objects> {
        match (authority, kind) {
            // Someone else's handoff or start waits for every other kind, and for the first snapshot of a target.
            (Authority::Owner { .. } | Authority::Adopted { .. }, Kind::Snapshot) => &self.lanes.bulk,
            _ => &self.lanes.urgent,
        }
    }

    async fn pack(&self, body: &Body) -> Result<Option<Packed>, AppendError> {
        let Body::State(State { body, .. }) = body else { return Ok(None) };
        let max = self.max_state.load(Ordering::Relaxed);
        let packed = if body.len() <= INLINE {
            record::pack(body, max)
        } else {
            let body = body.clone();
            off_thread(move || record::pack(&body, max)).await
        };
        packed.map(Some).map_err(AppendError::Refused)
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one interpretation of "exists already", and one addition: a record that this log tried to write in this epoch
/// and whose answer was lost is no surprise, whatever it is. Its writer went on without it, so it is only in the way.
fn judge(authority: &Authority, ours: &Header, there: &Header, unsure: &VecDeque<u64>) -> Found {
    match found(authority, ours.nonce, there) {
        Found::Fenced if there.epoch == ours.epoch && unsure.contains(&there.nonce) => Found::InTheWay,
        judged => judged,
    }
}

fn first_header(draft: Draft, after: Sequence) -> Header {
    let Draft { epoch, kind, writer, body } = draft;
    let sequence = after.next();
    let (state_at, state_version) = match body {
        Body::State(state) => (sequence, state.version),
        Body::At { sequence, version } => (sequence, version),
    };
    Header { sequence, epoch, kind, writer, nonce: rand::random(), state_at, state_version }
}

/// The next sequence, pointing at the newest state up to there.
fn step_over(header: &mut Header, there: &Header) {
    let bears_state = header.bears_state();
    header.sequence = header.sequence.next();
    if bears_state {
        header.state_at = header.sequence;
    } else if there.state_at > header.state_at {
        header.state_at = there.state_at;
        header.state_version = there.state_version;
    }
}

/// Refuses a record that lies at another's key.
pub(crate) fn checked(sequence: Sequence, header: Result<Header, RecordError>) -> Result<Header, RecordError> {
    header.and_then(|header| {
        if header.sequence == sequence {
            return Ok(header);
        }
        Err(RecordError::Corrupt(format!("record {} lies at the key of record {sequence}", header.sequence)))
    })
}

fn late(reason: &str) -> AppendError {
    AppendError::Unavailable(StoreError::Unknown(reason.into()))
}

/// Runs what takes long where it holds up nobody.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
) -> Result<T, RecordError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(RecordError::Corrupt(format!("the work on its state was broken off: {error}"))))
}

/// Pauses between tries, growing. Each key has its own, so that many logs do not try in step.
struct Pauses {
    until: Instant,
    next: Duration,
    spread: f64,
}

impl Pauses {
    fn new(until: Instant, key: &str) -> Self {
        let spread = f64::from(crc32fast::hash(key.as_bytes())) / f64::from(u32::MAX);
        Self { until, next: MIN_PAUSE, spread: 0.5 + spread / 2.0 }
    }

    /// Waits for the next try; gives up when it would be past the deadline, or when no try can help.
    async fn after(&mut self, error: StoreError) -> Result<(), AppendError> {
        let pause = self.next.mul_f64(self.spread);
        if error.needs_a_person() || Instant::now() + pause >= self.until {
            return Err(AppendError::Unavailable(error));
        }
        tracing::debug!(%error, "store: trying again");
        self.next = (self.next * 2).min(MAX_PAUSE);
        sleep(pause).await;
        Ok(())
    }
}
