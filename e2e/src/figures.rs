//! What the outside client saw, turned into figures. Pure functions: the answers go in, numbers come out.
//!
//! All times are nanoseconds of one clock, the client's.

use std::collections::BTreeMap;

use serde::Serialize;

/// A percentile of fewer samples than this says nothing about the hundredth of them.
const SAMPLES_FOR_P99: usize = 100;
/// Answers slower than this are counted apart: still answered, but someone will have noticed (nanoseconds).
const SLOW: u64 = 250_000_000;

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads the server's counter, once.
    Read,
    /// Reads it too, as one of a dense series.
    Probe,
    /// Adds one message.
    Write,
    /// Adds one message, and is answered when it is in the store.
    SyncedWrite,
}

impl Kind {
    fn writes(self) -> bool {
        matches!(self, Self::Write | Self::SyncedWrite)
    }
}

/// One request, sent once, and what came of it.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Which server: its place in the load's list.
    pub server: u32,
    /// When the request was sent.
    pub sent_at: u64,
    /// When the whole answer was there, or the failure known.
    pub received_at: u64,
    /// What it was for.
    pub kind: Kind,
    /// What the server said; `None` if the request failed.
    pub said: Option<Said>,
}

/// What a server says with every answer.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// Its ownership term.
    pub epoch: u64,
    /// How many messages it has had in its life.
    pub count: u64,
}

/// The spread of a set of times, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median; none without samples.
    pub p50: Option<f64>,
    /// The 99th percentile; none under a hundred samples.
    pub p99: Option<f64>,
    /// The largest; none without samples.
    pub max: Option<f64>,
    /// How many samples.
    pub n: usize,
}

impl Spread {
    /// The spread of these times (nanoseconds).
    #[must_use]
    pub fn of(mut nanos: Vec<u64>) -> Self {
        nanos.sort_unstable();
        let n = nanos.len();
        // Nearest rank: the smallest sample that at least this share of all do not exceed.
        let rank = |percent: usize| nanos.get((n * percent).div_ceil(100).saturating_sub(1)).copied().map(millis);
        Self {
            p50: rank(50),
            p99: rank(99).filter(|_| n >= SAMPLES_FOR_P99),
            max: nanos.last().copied().map(millis),
            n,
        }
    }
}

/// Nanoseconds as milliseconds, to the microsecond.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "microseconds of a test run are far below 2^53")]
pub fn millis(nanos: u64) -> f64 {
    (nanos / 1_000) as f64 / 1_000.0
}

/// How many of these there are for each of those; of none, all.
#[must_use]
pub fn ratio(some: usize, all: usize) -> f64 {
    let float = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    float(some) / float(all.max(1))
}

/// Requests, and those of them that a person would complain about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// All requests sent.
    pub requests: usize,
    /// Status 400 or more, a broken connection, or no answer in time.
    pub failed: usize,
    /// Answered well, but late.
    pub slow: usize,
}

/// Counts the traffic.
#[must_use]
pub fn traffic(answers: &[Answer]) -> Traffic {
    Traffic {
        requests: answers.len(),
        failed: answers.iter().filter(|a| a.said.is_none()).count(),
        slow: answers.iter().filter(|a| a.said.is_some() && a.received_at - a.sent_at > SLOW).count(),
    }
}

/// The gaps (nanoseconds) of every change of epoch that these answers show: from the last answer of an older epoch
/// to the first of the newer one. Zero when answers of both crossed on their way.
///
/// Only probes count: others are too far apart to tell how long nobody answered.
#[must_use]
pub fn gaps(answers: &[Answer]) -> Vec<u64> {
    let probes: Vec<Answer> = answers.iter().filter(|answer| answer.kind == Kind::Probe).copied().collect();
    let mut gaps = Vec::new();
    for answers in by_server(&probes).values() {
        let mut spans: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (answer, said) in answers {
            let span = spans.entry(said.epoch).or_insert((answer.received_at, answer.received_at));
            *span = (span.0.min(answer.received_at), span.1.max(answer.received_at));
        }
        let mut last_of_older = None;
        for (first, last) in spans.into_values() {
            if let Some(older) = last_of_older {
                gaps.push(first.saturating_sub(older));
            }
            last_of_older = Some(last.max(last_of_older.unwrap_or(0)));
        }
    }
    gaps
}

/// Answers of an epoch to requests that were *sent* after an answer of a newer epoch had been *received*: whoever
/// gave them served a server that was no longer its own.
#[must_use]
pub fn double_served(answers: &[Answer]) -> usize {
    let mut count = 0;
    for answers in by_server(answers).values() {
        against_earlier(answers, |_, said| said.epoch, |newest, _, said| count += usize::from(said.epoch < newest));
    }
    count
}

/// Writes that are gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Writes a client had a 2xx for.
    pub answered: u64,
    /// Writes that were acknowledged as being in the store.
    pub acked: u64,
}

/// Counts lost writes. Per server it is how far its counter fell behind what an earlier answer had said, or how much
/// it has grown less, from the first answer to the last, than writes were answered in between, whichever is more.
#[must_use]
pub fn lost(answers: &[Answer]) -> Lost {
    let mut lost = Lost::default();
    for answers in by_server(answers).values() {
        let (mut answered, mut acked) = (0, 0);
        let written = |kind: Kind, said: &Said| if kind.writes() { said.count } else { 0 };
        against_earlier(
            answers,
            |a, said| written(a.kind, said),
            |most, a, said| answered = behind(answered, most, a, said),
        );
        let stored = |kind: Kind, said: &Said| if kind == Kind::SyncedWrite { said.count } else { 0 };
        against_earlier(answers, |a, said| stored(a.kind, said), |most, a, said| acked = behind(acked, most, a, said));
        lost.answered += answered.max(missing(answers));
        lost.acked += acked;
    }
    lost
}

/// A write adds one, so its own answer must be past everything before it.
fn behind(so_far: u64, most: u64, answer: &Answer, said: &Said) -> u64 {
    let expected = if most > 0 && answer.kind.writes() { most + 1 } else { most };
    so_far.max(expected.saturating_sub(said.count))
}

fn missing(answers: &[(Answer, Said)]) -> u64 {
    let first = answers.iter().min_by_key(|(a, _)| a.received_at);
    let last = answers.iter().max_by_key(|(a, _)| a.sent_at);
    let (Some((first, before)), Some((last, after))) = (first, last) else { return 0 };
    let between = |a: &Answer| a.kind.writes() && a.sent_at >= first.received_at && a.received_at <= last.sent_at;
    let written = answers.iter().filter(|(a, _)| between(a)).count() as u64;
    written.saturating_sub(after.count.saturating_sub(before.count))
}

fn by_server(answers: &[Answer]) -> BTreeMap<u32, Vec<(Answer, Said)>> {
    let mut servers: BTreeMap<u32, Vec<(Answer, Said)>> = BTreeMap::new();
    for answer in answers {
        if let Some(said) = answer.said {
            servers.entry(answer.server).or_default().push((*answer, said));
        }
    }
    servers
}

/// Shows each answer of one server together with the highest `value` among the answers that had been *received*
/// before its request was *sent*: the only order an outside client can swear to.
fn against_earlier(
    answers: &[(Answer, Said)],
    value: impl Fn(&Answer, &Said) -> u64,
    mut show: impl FnMut(u64, &Answer, &Said),
) {
    let mut sent: Vec<_> = answers.iter().collect();
    sent.sort_by_key(|(a, _)| a.sent_at);
    let mut received: Vec<_> = answers.iter().collect();
    received.sort_by_key(|(a, _)| a.received_at);
    let mut received = received.into_iter().peekable();
    let mut highest = 0;
    for (answer, said) in sent {
        while let Some((earlier, earlier_said)) = received.next_if(|(a, _)| a.received_at < answer.sent_at) {
            highest = highest.max(value(earlier, earlier_said));
        }
        show(highest, answer, said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn read(sent: u64, received: u64, epoch: u64) -> Answer {
        answer(Kind::Probe, sent, received, epoch, 0)
    }

    fn answer(kind: Kind, sent: u64, received: u64, epoch: u64, count: u64) -> Answer {
        Answer { server: 0, sent_at: sent * MS, received_at: received * MS, kind, said: Some(Said { epoch, count }) }
    }

    fn failure(sent: u64, received: u64) -> Answer {
        Answer { server: 0, sent_at: sent * MS, received_at: received * MS, kind: Kind::Read, said: None }
    }

    #[test]
    fn a_gap_lies_between_the_last_answer_of_the_old_epoch_and_the_first_of_the_new() {
        let answers = [read(0, 1, 1), read(2, 3, 1), failure(4, 5), read(6, 11, 2), read(8, 9, 2), read(10, 30, 4)];
        assert_eq!(gaps(&answers), [6 * MS, 19 * MS]);
    }

    #[test]
    fn answers_that_cross_make_no_gap() {
        assert_eq!(gaps(&[read(0, 9, 1), read(2, 4, 2)]), [0]);
    }

    #[test]
    fn only_probes_tell_a_gap() {
        assert!(gaps(&[read(0, 1, 1), answer(Kind::Read, 7, 8, 2, 0)]).is_empty());
    }

    #[test]
    fn servers_have_gaps_of_their_own() {
        let other = Answer { server: 1, ..read(0, 100, 2) };
        assert!(gaps(&[read(0, 1, 1), other]).is_empty());
    }

    #[test]
    fn percentiles_are_nearest_ranks_and_p99_needs_a_hundred() {
        let of = |n: u64| Spread::of((1..=n).rev().map(|i| i * MS).collect());
        assert_eq!(of(100), Spread { p50: Some(50.0), p99: Some(99.0), max: Some(100.0), n: 100 });
        assert_eq!(of(99).p99, None);
        assert_eq!(of(1), Spread { p50: Some(1.0), p99: None, max: Some(1.0), n: 1 });
        assert_eq!(of(0), Spread::default());
    }

    #[test]
    fn an_old_epoch_is_double_service_only_if_asked_after_the_new_one_answered() {
        assert_eq!(double_served(&[read(0, 5, 2), read(4, 6, 1)]), 0);
        assert_eq!(double_served(&[read(0, 5, 2), read(6, 7, 1), read(8, 9, 2)]), 1);
    }

    #[test]
    fn failed_and_slow_requests_are_counted_apart() {
        let answers = [read(0, 1, 1), read(0, 251, 1), failure(0, 5_000)];
        assert_eq!(traffic(&answers), Traffic { requests: 3, failed: 1, slow: 1 });
    }

    #[test]
    fn a_counter_that_goes_back_has_lost_writes() {
        let before =
            [answer(Kind::SyncedWrite, 0, 1, 1, 7), answer(Kind::Write, 2, 3, 1, 8), answer(Kind::Write, 4, 5, 1, 9)];
        let then = |more: &[Answer]| lost(&[&before[..], more].concat());
        assert_eq!(then(&[answer(Kind::Read, 6, 7, 2, 9)]), Lost { answered: 0, acked: 0 });
        assert_eq!(then(&[answer(Kind::Read, 6, 7, 3, 7)]), Lost { answered: 2, acked: 0 });
        assert_eq!(then(&[answer(Kind::Read, 6, 7, 3, 5)]), Lost { answered: 4, acked: 2 });
        assert_eq!(then(&[answer(Kind::Write, 6, 7, 3, 8)]), Lost { answered: 2, acked: 0 });
    }

    #[test]
    fn a_counter_that_did_not_grow_by_what_was_answered_has_lost_writes() {
        let answers = [
            answer(Kind::Read, 0, 1, 1, 10),
            answer(Kind::Write, 2, 9, 1, 11),
            answer(Kind::Write, 3, 9, 1, 11),
            answer(Kind::Read, 10, 11, 1, 11),
        ];
        assert_eq!(lost(&answers), Lost { answered: 1, acked: 0 });
    }

    #[test]
    fn a_write_that_failed_but_took_effect_is_no_loss() {
        let failed = Answer { kind: Kind::Write, ..failure(2, 3) };
        assert_eq!(lost(&[answer(Kind::Read, 0, 1, 1, 0), failed, answer(Kind::Read, 4, 5, 1, 1)]), Lost::default());
    }
}
