//! What one process knows of a log without asking: enough to judge a record that it has met before, and to clean up
//! without reading every record again. Small however long the log: snapshots, the many, are known by a range.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use handoff::{
    Epoch, Sequence,
    log::{Header, Kind, Retention, Seen, Writer},
};
use tokio::time::Instant;

/// Times nearer together than this are kept as one, the later.
const GRAIN: Duration = Duration::from_mins(1);
/// Times kept; without the oldest, records only seem younger.
const MAX_TIMES: usize = 128;
/// Claims, grants, releases and tombstones kept; the older ones are read again when cleanup needs them.
const MAX_TERMS: usize = 256;

/// What is known of one log.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// The newest record met.
    newest: Option<Header>,
    /// Every record that exists from here to the newest is in `terms`, or is a Snapshot.
    from: Sequence,
    terms: BTreeMap<Sequence, Header>,
    /// At each of these times the record was known to exist; both grow.
    times: VecDeque<(Instant, Sequence)>,
}

impl Known {
    /// The newest record that this process has met.
    pub(crate) fn newest(&self) -> Option<&Header> {
        self.newest.as_ref()
    }

    /// A record was written, or met in the log.
    pub(crate) fn meet(&mut self, header: &Header, now: Instant) {
        let newest = self.newest.as_ref().map_or(Sequence::NONE, |newest| newest.sequence);
        if header.sequence <= newest {
            return;
        }
        if self.newest.is_none() || header.sequence != newest.next() {
            self.terms.clear();
            self.from = header.sequence;
        }
        self.keep_term(header);
        self.newest = Some(header.clone());
        self.met_at(header.sequence, now);
    }

    /// The record just before all that is known was read.
    pub(crate) fn learn_older(&mut self, header: &Header) {
        self.from = header.sequence;
        self.keep_term(header);
    }

    /// Where the known part begins.
    pub(crate) fn from(&self) -> Sequence {
        self.from
    }

    /// These records exist, in order: the known ones as cleanup's rule wants them. Records older than the known part
    /// are left out, which is sound since records point only at older ones.
    pub(crate) fn seen(&self, existing: &[Sequence], now: Instant) -> Vec<Seen> {
        let known = existing.iter().filter(|sequence| **sequence >= self.from);
        known
            .map(|sequence| Seen { header: self.header(*sequence), succeeded_for: self.succeeded(*sequence, now) })
            .collect()
    }

    /// Forgets records that are gone, and times that no longer matter.
    pub(crate) fn forget(&mut self, oldest: Sequence, retention: &Retention, now: Instant) {
        self.terms.retain(|sequence, _| *sequence >= oldest);
        let enough = retention.terms.max(retention.snapshots);
        while self.times.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= enough) {
            self.times.pop_front();
        }
    }

    fn keep_term(&mut self, header: &Header) {
        if matches!(header.kind, Kind::Snapshot) {
            return;
        }
        self.terms.insert(header.sequence, header.clone());
        if self.terms.len() > MAX_TERMS
            && let Some((sequence, _)) = self.terms.pop_first()
        {
            self.from = self.from.max(sequence.next());
        }
    }

    fn header(&self, sequence: Sequence) -> Header {
        let snapshot = || Header {
            sequence,
            epoch: Epoch::NONE,
            kind: Kind::Snapshot,
            writer: Writer::default(),
            nonce: 0,
            state_at: sequence,
            state_version: 0,
        };
        self.terms.get(&sequence).cloned().unwrap_or_else(snapshot)
    }

    fn met_at(&mut self, sequence: Sequence, now: Instant) {
        // Moving the last time forward is safe, but not for ever: it must stay within a grain of the one before.
        if let Some((before_last, _)) = self.times.iter().nth_back(1)
            && now.saturating_duration_since(*before_last) < GRAIN
        {
            self.times.pop_back();
        }
        self.times.push_back((now, sequence));
        if self.times.len() > MAX_TIMES {
            self.times.pop_front();
        }
    }

    fn succeeded(&self, sequence: Sequence, now: Instant) -> Option<Duration> {
        let since = self.times.iter().find(|(_, newest)| *newest > sequence)?.0;
        Some(now.saturating_duration_since(since))
    }
}
