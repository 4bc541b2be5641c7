//! Cleanup must not take the fence away: against the store in memory, in stopped time.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{begin, fenced, grant, log, owner, pointing, snapshot, soon};
use handoff::{
    Sequence,
    log::{Header, Retention, Seen, deletable},
};
use proptest::prelude::*;
use store::{AppendError, Log, Memory, Objects};
use tokio::time::advance;

const RETENTION: Retention = Retention { keep: 2, snapshots: Duration::from_mins(10), terms: Duration::from_hours(1) };

async fn write(log: &Log, count: usize, pause: Duration) -> Header {
    let mut last = log.newest_known().unwrap();
    for n in 0..count {
        advance(pause).await;
        last = log.append(&owner(1), snapshot(1, &n.to_string()), last.sequence, soon()).await.unwrap();
    }
    last
}

fn sequences(memory: &Memory) -> Vec<u64> {
    let hex = |key: &String| u64::from_str_radix(key.rsplit('/').next().unwrap(), 16).unwrap();
    memory.keys().iter().map(hex).collect()
}

#[tokio::test(start_paused = true)]
async fn only_what_was_succeeded_long_ago_goes() {
    let memory = Arc::<Memory>::default();
    let log = log(&(Arc::clone(&memory) as Arc<dyn Objects>), "");
    begin(&log).await;
    write(&log, 40, Duration::from_secs(30)).await;
    // 20 minutes have passed; records 3 to 42 came 30 s apart.
    let deleted = log.cleanup(&RETENTION).await.unwrap().deleted;
    let left = sequences(&memory);
    assert_eq!(left[0], 1, "a claim stays for an hour");
    // Times are known to the minute, and err to the safe side.
    assert!((16..=20).contains(&deleted), "{deleted} deleted");
    assert_eq!(left[1..], ((deleted as u64 + 2)..=42).collect::<Vec<_>>());
    advance(Duration::from_hours(1)).await;
    while log.cleanup(&RETENTION).await.unwrap().more {}
    assert_eq!(sequences(&memory), [41, 42]);
}

#[tokio::test(start_paused = true)]
async fn another_process_counts_from_when_it_first_looked() {
    let memory = Arc::<Memory>::default();
    let objects: Arc<dyn Objects> = Arc::clone(&memory) as _;
    let old = log(&objects, "");
    begin(&old).await;
    write(&old, 100, Duration::from_secs(30)).await;
    advance(Duration::from_hours(2)).await;
    let new = log(&objects, "");
    while new.cleanup(&RETENTION).await.unwrap().more {}
    assert_eq!(sequences(&memory).len(), 102, "it knows no successor for long enough");
    advance(Duration::from_mins(11)).await;
    while new.cleanup(&RETENTION).await.unwrap().more {}
    assert_eq!(sequences(&memory), [1, 101, 102]);
}

#[tokio::test(start_paused = true)]
async fn a_long_log_goes_in_batches() {
    let memory = Arc::<Memory>::default();
    let log = log(&(Arc::clone(&memory) as Arc<dyn Objects>), "");
    begin(&log).await;
    write(&log, 150, Duration::from_millis(1)).await;
    advance(Duration::from_mins(11)).await;
    let mut deleted = Vec::new();
    loop {
        let cleaned = log.cleanup(&RETENTION).await.unwrap();
        deleted.push(cleaned.deleted);
        if !cleaned.more {
            break;
        }
    }
    assert_eq!(deleted, [64, 64, 21]);
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_grant_or_claim_stays() {
    let memory = Arc::<Memory>::default();
    let log = log(&(Arc::clone(&memory) as Arc<dyn Objects>), "");
    begin(&log).await;
    let state = write(&log, 5, Duration::from_secs(1)).await.sequence;
    log.append(&owner(1), pointing(1, grant(1), state), state, soon()).await.unwrap();
    advance(Duration::from_hours(3)).await;
    log.cleanup(&Retention { keep: 1, ..RETENTION }).await.unwrap();
    assert_eq!(sequences(&memory), [state.0, state.0 + 1]);
}

#[tokio::test(start_paused = true)]
async fn what_others_wrote_in_between_is_read_and_not_guessed() {
    let memory = Arc::<Memory>::default();
    let objects: Arc<dyn Objects> = Arc::clone(&memory) as _;
    let (one, other) = (log(&objects, ""), log(&objects, ""));
    let first = begin(&one).await;
    let granted = pointing(1, grant(1), first.sequence);
    other.append(&owner(1), granted, first.sequence, soon()).await.unwrap();
    write(&other, 2, Duration::from_secs(1)).await;
    one.read_newest(first.sequence).await.unwrap();
    advance(Duration::from_mins(20)).await;
    one.cleanup(&RETENTION).await.unwrap();
    assert_eq!(sequences(&memory), [1, 2, 3, 4, 5], "the grant is young, and points at record 2");
}

/// A writer that has slept for less than the retention meets a record wherever it goes on; one that slept for longer
/// is told so where its log still knows the place.
#[tokio::test(start_paused = true)]
async fn a_sleeper_never_wins_a_place_unnoticed() {
    let memory = Arc::<Memory>::default();
    let objects: Arc<dyn Objects> = Arc::clone(&memory) as _;
    let awake = log(&objects, "");
    let first = begin(&awake).await;
    let mut written = vec![(tokio::time::Instant::now(), first.sequence)];
    for _ in 0..60 {
        let last = write(&awake, 1, Duration::from_secs(30)).await;
        written.push((tokio::time::Instant::now(), last.sequence));
        awake.cleanup(&RETENTION).await.unwrap();
    }
    assert!(sequences(&memory).len() < 30, "cleanup has been at work");
    for (at, slept_since) in &written[..60] {
        if at.elapsed() >= RETENTION.snapshots {
            continue;
        }
        let sleeper = log(&objects, "");
        let draft = snapshot(9, "stale");
        assert_eq!(fenced(sleeper.append(&owner(9), draft, *slept_since, soon()).await).sequence, slept_since.next());
    }
    let stale = awake.append(&owner(1), snapshot(1, "stale"), first.sequence, soon()).await;
    assert_eq!(stale, Err(AppendError::Stale(first.sequence.next())));
}

/// A log as a list of (kind, bears state, age of its successor in minutes).
fn any_log() -> impl Strategy<Value = Vec<Seen>> {
    let record = (0..3u8, any::<bool>(), 0..120u64);
    proptest::collection::vec(record, 1..40).prop_map(|records| {
        let mut ages: Vec<u64> = records.iter().map(|(.., age)| *age).collect();
        ages.sort_unstable_by(|a, b| b.cmp(a));
        let (last, mut state_at) = (records.len(), Sequence::NONE);
        let seen = |(n, ((kind, bears, _), age)): (usize, ((u8, bool, u64), u64))| {
            let mut header = common::header(n as u64 + 1, kind);
            state_at = if kind == 0 || bears { header.sequence } else { state_at };
            header.state_at = state_at;
            let succeeded_for = (n + 1 < last).then(|| Duration::from_mins(age));
            Seen { header, succeeded_for }
        };
        records.into_iter().zip(ages).enumerate().map(seen).collect()
    })
}

proptest! {
    #[test]
    fn what_is_deletable_is_never_needed(records in any_log(), keep in 0..5usize) {
        let retention = Retention { keep, ..RETENTION };
        let goes = deletable(&records, &retention);
        let stays: Vec<&Seen> = records.iter().filter(|seen| !goes.contains(&seen.header.sequence)).collect();
        prop_assert_eq!(stays.last().map(|seen| &seen.header), records.last().map(|seen| &seen.header));
        let states = |seen: &[&Seen]| seen.iter().filter(|seen| seen.header.bears_state()).count();
        prop_assert!(states(&stays) >= keep.max(1).min(states(&records.iter().collect::<Vec<_>>())));
        for seen in &stays {
            prop_assert!(!goes.contains(&seen.header.state_at), "{:?} points at what goes", seen.header);
        }
        for seen in records.iter().filter(|seen| goes.contains(&seen.header.sequence)) {
            prop_assert!(seen.succeeded_for.is_some_and(|known| known >= retention.snapshots));
        }
    }
}
