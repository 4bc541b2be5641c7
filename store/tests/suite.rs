//! What every store must do, run against the one in memory and against a real S3 server.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/weed.rs"]
mod weed;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{begin, fenced, grant, log, owner, pointing, snapshot, soon};
use handoff::{
    Epoch, HandoffId, Sequence,
    log::{Authority, Kind, Retention},
};
use store::{
    AppendError, Body, Created, Memory, Objects, Part, ReadError, State, StoreError,
    count::{Counted, Counts},
    pace::{Rates, pace},
    probe::{OwnerError, Probe, claim_prefix, probe},
};
use tokio::task::JoinSet;

type Store = Arc<dyn Objects>;

macro_rules! suite {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $test() { super::$test(super::Arc::<super::Memory>::default(), "here").await; })*
        }
        mod seaweedfs {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(super::weed::bucket(), stringify!($test)).await; })*
        }
    };
}

suite!(
    creates_once_and_reads_what_was_written,
    lists_in_order_and_in_pages,
    sixteen_writers_of_one_key_have_one_winner,
    probes_the_condition_and_cleans_up,
    a_prefix_belongs_to_one_cluster,
    a_log_returns_what_was_appended,
    a_large_state_is_read_in_parts,
    of_many_claims_one_wins,
    of_two_owners_one_goes_on,
    a_grant_that_came_to_nothing_is_in_nobodys_way,
    a_long_log_is_read_to_its_end,
    cleanup_keeps_what_is_needed,
    works_paced_and_counted,
);

async fn names(store: &Store, prefix: &str, start_after: &str, limit: usize) -> Vec<String> {
    store.list(prefix, start_after, limit).await.unwrap().into_iter().map(|listed| listed.key).collect()
}

const WHOLE: Part = Part::Whole { max: 1 << 20 };

async fn creates_once_and_reads_what_was_written(store: Store, prefix: &str) {
    let key = format!("{prefix}/key");
    assert_eq!(store.get(&key, WHOLE).await, Ok(None));
    assert_eq!(store.create(&key, Bytes::from_static(b"0123456789")).await, Ok(Created::Created));
    assert_eq!(store.create(&key, Bytes::from_static(b"other")).await, Ok(Created::Exists));
    assert_eq!(store.get(&key, WHOLE).await, Ok(Some(Bytes::from_static(b"0123456789"))));
    assert_eq!(store.get(&key, Part::Start(4)).await, Ok(Some(Bytes::from_static(b"0123"))));
    assert_eq!(store.get(&key, Part::Start(100)).await, Ok(Some(Bytes::from_static(b"0123456789"))));
    assert!(matches!(store.get(&key, Part::Whole { max: 9 }).await, Err(StoreError::Other(_))));
    assert_eq!(store.delete(&key).await, Ok(()));
    assert_eq!(store.delete(&key).await, Ok(()));
    assert_eq!(store.get(&key, WHOLE).await, Ok(None));
    assert_eq!(store.create(&key, Bytes::new()).await, Ok(Created::Created));
    assert_eq!(store.get(&key, WHOLE).await, Ok(Some(Bytes::new())));
    assert_eq!(store.get(&key, Part::Start(100)).await, Ok(Some(Bytes::new())));
}

async fn lists_in_order_and_in_pages(store: Store, prefix: &str) {
    let key = |n: usize| format!("{prefix}/in/{n:016x}");
    for n in [5, 3, 24, 1, 17, 0, 2] {
        store.create(&key(n), Bytes::new()).await.unwrap();
    }
    store.create(&format!("{prefix}/inside/other"), Bytes::new()).await.unwrap();
    let within = format!("{prefix}/in/");
    assert_eq!(names(&store, &within, "", 1000).await, [0, 1, 2, 3, 5, 17, 24].map(key));
    assert_eq!(names(&store, &within, "", 3).await, [0, 1, 2].map(key));
    assert_eq!(names(&store, &within, &key(2), 3).await, [3, 5, 17].map(key));
    assert_eq!(names(&store, &within, &key(4), 1000).await, [5, 17, 24].map(key));
    assert_eq!(names(&store, &within, &key(24), 1000).await, Vec::<String>::new());
}

async fn sixteen_writers_of_one_key_have_one_winner(store: Store, prefix: &str) {
    for round in 0..20 {
        let key = format!("{prefix}/{round}");
        let mut writers = JoinSet::new();
        for n in 0..16u8 {
            let (store, key) = (Arc::clone(&store), key.clone());
            writers.spawn(async move { (n, settle(&store, &key, n).await) });
        }
        let answers = writers.join_all().await;
        let winners: Vec<u8> = answers.iter().filter(|(_, won)| *won).map(|(n, _)| *n).collect();
        assert_eq!(winners.len(), 1, "round {round}: {answers:?}");
        assert_eq!(store.get(&key, WHOLE).await.unwrap().unwrap(), vec![winners[0]; 4096], "round {round}");
    }
}

/// Whether this writer's create won, asking again while it is unknown.
async fn settle(store: &Store, key: &str, n: u8) -> bool {
    let body = Bytes::from(vec![n; 4096]);
    for _ in 0..100 {
        match store.create(key, body.clone()).await {
            Ok(Created::Created) => return true,
            Ok(Created::Exists) => return store.get(key, WHOLE).await.unwrap().unwrap() == body,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    panic!("never settled");
}

async fn probes_the_condition_and_cleans_up(store: Store, prefix: &str) {
    assert_eq!(probe(store.as_ref(), prefix).await, Probe::Ok);
    assert_eq!(store.list(&format!("{prefix}/probe/"), "", 1000).await, Ok(Vec::new()));
}

async fn a_prefix_belongs_to_one_cluster(store: Store, prefix: &str) {
    assert_eq!(claim_prefix(store.as_ref(), prefix, "one").await, Ok(()));
    assert_eq!(claim_prefix(store.as_ref(), prefix, "one").await, Ok(()));
    let refused = claim_prefix(store.as_ref(), prefix, "two").await.unwrap_err();
    assert!(matches!(&refused, OwnerError::Other { owner, .. } if owner == "one"), "{refused}");
    assert_eq!(claim_prefix(store.as_ref(), prefix, "one").await, Ok(()));
}

async fn a_log_returns_what_was_appended(store: Store, prefix: &str) {
    let writer = log(&store, prefix);
    assert_eq!(writer.read_newest(Sequence::NONE).await, Ok(None));
    let first = begin(&writer).await;
    assert_eq!((first.sequence, first.state_at), (Sequence(2), Sequence(2)));
    let granted = pointing(1, grant(5), first.sequence);
    let granted = writer.append(&owner(1), granted, first.sequence, soon()).await.unwrap();

    let reader = log(&store, prefix);
    for hint in [Sequence::NONE, Sequence(1), Sequence(3)] {
        let newest = reader.read_newest(hint).await.unwrap().unwrap();
        assert_eq!((&newest.header, &newest.state), (&granted, &None));
    }
    let state = State { version: 7, body: Bytes::from_static(b"first") };
    assert_eq!(reader.read_state(granted.state_at).await.as_ref(), Ok(&state));
    assert_eq!(reader.read_state(Sequence(1)).await, Err(ReadError::StateMissing(Sequence(1))));
    assert_eq!(reader.read_newest(Sequence(4)).await, Err(ReadError::HintMissing(Sequence(4))));

    let last = reader.append(&Authority::Reader, snapshot(2, "second"), granted.sequence, soon()).await.unwrap();
    let newest = writer.read_newest(granted.sequence).await.unwrap().unwrap();
    assert_eq!(newest.header, last);
    assert_eq!(newest.state.unwrap().body, "second");
    assert_eq!(fenced(writer.append(&owner(1), snapshot(1, "late"), granted.sequence, soon()).await), last);
}

async fn a_large_state_is_read_in_parts(store: Store, prefix: &str) {
    let (one, other) = (log(&store, prefix), log(&store, prefix));
    let first = begin(&one).await;
    // Not compressible, and larger than the part of a record that headers are read from.
    let body: Bytes = (0..1u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut draft = snapshot(1, "");
    draft.body = Body::State(State { version: 9, body: body.clone() });
    let large = one.append(&owner(1), draft.clone(), first.sequence, soon()).await.unwrap();
    let next = other.append(&owner(1), snapshot(1, "small"), first.sequence, soon()).await.unwrap();
    assert_eq!(next.sequence, large.sequence.next());
    assert_eq!(other.read_state(large.sequence).await, Ok(State { version: 9, body }));

    draft.body = Body::State(State { version: 9, body: vec![0; 5 << 20].into() });
    let refused = one.append(&owner(1), draft, large.sequence, soon()).await;
    assert!(matches!(refused, Err(AppendError::Refused(_))), "{refused:?}");
}

async fn of_many_claims_one_wins(store: Store, prefix: &str) {
    let first = begin(&log(&store, prefix)).await;
    let mut claims = JoinSet::new();
    for _ in 0..8 {
        let log = log(&store, prefix);
        let claim = pointing(3, Kind::Claim, first.state_at);
        claims.spawn(async move { log.append(&Authority::Reader, claim, first.sequence, soon()).await });
    }
    let (won, lost): (Vec<_>, Vec<_>) = claims.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    let winner = won.into_iter().next().unwrap().unwrap();
    for loser in lost {
        assert_eq!(fenced(loser), winner);
    }
}

/// The first handoff was rejected while its Grant was on its way, and the next one began before that was written.
async fn a_grant_that_came_to_nothing_is_in_nobodys_way(store: Store, prefix: &str) {
    let source = log(&store, prefix);
    let first = begin(&source).await;
    let give = |handoff| {
        let authority = Authority::Owner { epoch: Epoch(1), granted: Some(HandoffId(handoff)) };
        let draft = pointing(1, grant(handoff), first.sequence);
        let (source, after) = (&source, first.sequence);
        async move { source.append(&authority, draft, after, soon()).await }
    };
    let (rejected, next) = tokio::join!(give(5), give(6));
    assert_eq!(rejected.unwrap().sequence, Sequence(3));
    assert_eq!(next.unwrap().sequence, Sequence(4));
    let release = source.append(&owner(1), pointing(1, Kind::Release, first.sequence), first.sequence, soon()).await;
    assert_eq!(release.unwrap().sequence, Sequence(5));
    let late = source.append(&owner(1), snapshot(1, "after the end"), first.sequence, soon()).await;
    assert_eq!(fenced(late).sequence, Sequence(5));
}

async fn of_two_owners_one_goes_on(store: Store, prefix: &str) {
    let old = log(&store, prefix);
    let first = begin(&old).await;
    let sleeper = tokio::spawn(async move {
        let (mut written, mut after) = (Vec::new(), first.sequence);
        for n in 0..1000 {
            match old.append(&owner(1), snapshot(1, &format!("old {n}")), after, soon()).await {
                Ok(header) => {
                    after = header.sequence;
                    written.push(header);
                    // A claim takes two requests a try, so it could chase forever one that writes without a pause.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                end => return (written, fenced(end)),
            }
        }
        panic!("the old owner was never fenced");
    });
    let new = log(&store, prefix);
    let mut newest = new.read_newest(Sequence::NONE).await.unwrap().unwrap().header;
    let claim = loop {
        let claim = pointing(3, Kind::Claim, newest.state_at);
        match new.append(&Authority::Reader, claim, newest.sequence, soon()).await {
            Ok(claim) => break claim,
            lost => newest = fenced(lost),
        }
    };
    let mut written = vec![claim];
    for n in 0..20 {
        let after = written[n].sequence;
        written.push(new.append(&owner(3), snapshot(3, &format!("new {n}")), after, soon()).await.unwrap());
    }
    let (before, fence) = sleeper.await.unwrap();
    assert_eq!(fence, written[0]);
    assert!(before.iter().all(|header| header.sequence < fence.sequence && header.epoch == Epoch(1)));
    assert_eq!(before.last().map_or(first.sequence, |last| last.sequence).next(), fence.sequence);
    let last = new.read_newest(Sequence::NONE).await.unwrap().unwrap();
    assert_eq!((Some(&last.header), last.state.unwrap().body), (written.last(), Bytes::from_static(b"new 19")));
}

async fn a_long_log_is_read_to_its_end(store: Store, prefix: &str) {
    let log = log(&store, prefix);
    let first = begin(&log).await;
    let mut fillers = JoinSet::new();
    for lane in 0..16 {
        let (store, keys) = (Arc::clone(&store), (3..=1010).map(|n| log.key(Sequence(n))));
        let keys: Vec<String> = keys.skip(lane).step_by(16).collect();
        fillers.spawn(async move {
            for key in keys {
                store.create(&key, Bytes::from_static(b"never read")).await.unwrap();
            }
        });
    }
    fillers.join_all().await;
    let other = common::log(&store, prefix);
    let last = pointing(3, Kind::Release, first.sequence);
    let last = other.append(&Authority::Reader, last, Sequence(1010), soon()).await.unwrap();
    assert_eq!(log.read_newest(Sequence::NONE).await.unwrap().unwrap().header, last);
    assert_eq!(log.read_newest(first.sequence).await.unwrap().unwrap().header, last);
}

async fn cleanup_keeps_what_is_needed(store: Store, prefix: &str) {
    let log = log(&store, prefix);
    let mut last = begin(&log).await;
    for n in 0..6 {
        last = log.append(&owner(1), snapshot(1, &n.to_string()), last.sequence, soon()).await.unwrap();
    }
    let state = last.sequence;
    last = log.append(&owner(1), pointing(1, grant(1), state), state, soon()).await.unwrap();
    let retention = Retention { keep: 1, snapshots: Duration::ZERO, terms: Duration::from_hours(1) };
    // A claim's age is an hour here, so it stays; so does what the grant points at.
    let fresh = common::log(&store, prefix);
    assert_eq!(fresh.cleanup(&retention).await.unwrap().deleted, 6);
    let left = [Sequence(1), state, last.sequence].map(|sequence| log.key(sequence));
    assert_eq!(names(&store, &format!("{prefix}/"), "", 1000).await, left);
    assert_eq!(log.cleanup(&retention).await.unwrap().deleted, 0);
    let newest = fresh.read_newest(Sequence(3)).await.unwrap().unwrap();
    assert_eq!(newest.header, last);
    assert_eq!(fresh.read_state(newest.header.state_at).await.unwrap().body, "5");
}

async fn works_paced_and_counted(store: Store, prefix: &str) {
    let counts = Arc::<Counts>::default();
    let counted: Store = Arc::new(Counted::new(store, Arc::clone(&counts)));
    let lanes = pace(counted, Rates::default());
    let log = store::Log::new(lanes, prefix, &common::server("room"), 1024).unwrap();
    let first = begin(&log).await;
    log.append(&owner(1), pointing(1, grant(1), first.sequence), first.sequence, soon()).await.unwrap();
    assert_eq!(["put", "get", "list", "delete"].map(|operation| counts.of(operation)), [3, 0, 0, 0]);
    log.read_newest(first.sequence).await.unwrap();
    assert_eq!(["put", "get", "list", "delete"].map(|operation| counts.of(operation)), [3, 1, 1, 0]);
}

#[tokio::test]
async fn wrong_keys_and_buckets_are_told_from_silence() {
    let get = |store: store::S3| async move { store.get("key", WHOLE).await };
    assert!(matches!(get(weed::client(weed::BUCKET, "wrong")).await, Err(StoreError::Denied(_))));
    let elsewhere = weed::client("nowhere", "testsecret");
    assert!(matches!(elsewhere.list("", "", 10).await, Err(StoreError::Config(_))));
    assert!(matches!(elsewhere.create("key", Bytes::new()).await, Err(StoreError::Config(_))));
    assert!(matches!(probe(&elsewhere, "").await, Probe::Denied(_)));
    assert!(matches!(get(elsewhere).await, Err(StoreError::Config(_))));
    assert!(matches!(probe(&weed::client(weed::BUCKET, "wrong"), "").await, Probe::Denied(_)));

    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = weed::connect(&format!("http://{nobody}"), weed::BUCKET, "testsecret");
    assert!(matches!(silent.create("key", Bytes::new()).await, Err(StoreError::Unknown(_))));
    assert!(matches!(probe(&silent, "").await, Probe::Unreachable(_)));
    assert!(matches!(get(silent).await, Err(StoreError::Unknown(_))));
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_found_out() {
    assert_eq!(probe(&Memory::ignoring_conditions(), "").await, Probe::IgnoresConditions);
}
