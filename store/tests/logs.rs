//! Many logs, and the end of whole ones: against the store in memory and a real S3 server.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/weed.rs"]
mod weed;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use common::{begin, owner, pointing, snapshot, soon, writer};
use handoff::{
    Epoch, PodUid, Sequence, ServerId, ServerUid,
    afterlife::{GRACE, Inherited, Undecided, Wish, heir},
    claim::{Start, Supersedes, decide},
    log::{Authority, Kind},
};
use store::{
    AppendError, Body, Draft, Lanes, Log, Memory, Objects, State,
    logs::{self, Swept},
    memory::{Fault, Operation},
    record::RecordError,
};

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
    the_logs_of_a_name_are_found,
    a_log_is_shown_record_by_record,
    whole_logs_go_a_day_after_their_tombstone,
    a_new_server_finds_what_the_last_one_left,
    a_restored_state_fences_whoever_runs_and_is_started_from,
);

const DAY: Duration = Duration::from_hours(25);

fn id(name: &str, uid: &str) -> ServerId {
    ServerId { namespace: "tests".into(), name: name.into(), uid: ServerUid(uid.into()) }
}

fn open(store: &Store, prefix: &str, server: &ServerId) -> Log {
    Log::new(Lanes::from(Arc::clone(store)), prefix, server, common::MAX_STATE).unwrap()
}

/// A log with a Claim, a Snapshot and, last, this.
async fn ended(store: &Store, prefix: &str, server: &ServerId, kind: Kind) -> Log {
    let log = open(store, prefix, server);
    let first = begin(&log).await;
    log.append(&owner(1), pointing(1, kind, first.sequence), first.sequence, soon()).await.unwrap();
    log
}

async fn the_logs_of_a_name_are_found(store: Store, prefix: &str) {
    let lanes = Lanes::from(Arc::clone(&store));
    assert_eq!(logs::of_name(&lanes, prefix, "tests", "room").await, Ok(Vec::new()));
    for (name, uid) in [("room", "one"), ("room", "two"), ("room-2", "one")] {
        ended(&store, prefix, &id(name, uid), Kind::Release).await;
    }
    store.create(&format!("{prefix}/owner"), Bytes::new()).await.unwrap();
    store.create(&format!("{prefix}/0000/tests/room/one/0000000000000001"), Bytes::new()).await.unwrap();
    let found = logs::of_name(&lanes, prefix, "tests", "room").await.unwrap();
    assert_eq!(found.iter().map(|log| log.server.uid.0.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let all = logs::all(&lanes, prefix).await.unwrap();
    assert_eq!(all.iter().map(|log| (log.newest, log.records)).collect::<Vec<_>>(), [(Sequence(3), 3); 3]);
    let now = SystemTime::now();
    assert!(all.iter().all(|log| log.age(now).is_some_and(|age| age < Duration::from_mins(5))), "{all:?}");
}

async fn a_log_is_shown_record_by_record(store: Store, prefix: &str) {
    let server = id("room", "uid");
    let log = ended(&store, prefix, &server, Kind::Release).await;
    store.create(&log.key(Sequence(4)), Bytes::from_static(b"damaged")).await.unwrap();
    let shown = log.look().await.unwrap();
    let kinds = shown.iter().map(|record| match &record.content {
        Ok((header, length)) => (header.kind.clone(), *length),
        Err(RecordError::Corrupt(_)) => (Kind::Claim, Some(999)),
        Err(other) => panic!("{other}"),
    });
    let expected = [(Kind::Claim, None), (Kind::Snapshot, Some(5)), (Kind::Release, None), (Kind::Claim, Some(999))];
    assert_eq!(kinds.collect::<Vec<_>>(), expected);
    assert!(shown.iter().all(|record| record.modified.is_some()));
}

async fn whole_logs_go_a_day_after_their_tombstone(store: Store, prefix: &str) {
    let lanes = Lanes::from(Arc::clone(&store));
    let marked = [
        ("gone", Kind::Tombstone { delete: true }),
        ("kept", Kind::Tombstone { delete: false }),
        ("open", Kind::Release),
    ];
    for (name, kind) in marked {
        logs::mark_deleted(&lanes, prefix, &id(name, "uid")).await.unwrap();
        // Asking twice is fine: an answer may have been lost.
        logs::mark_deleted(&lanes, prefix, &id(name, "uid")).await.unwrap();
        ended(&store, prefix, &id(name, "uid"), kind).await;
    }
    ended(&store, prefix, &id("unmarked", "uid"), Kind::Tombstone { delete: true }).await;
    let now = SystemTime::now();
    for early in [now, now + GRACE - Duration::from_mins(5)] {
        assert_eq!(logs::sweep(&lanes, prefix, early).await, Ok(Swept::default()));
    }
    assert_eq!(logs::all(&lanes, prefix).await.unwrap().len(), 4);
    assert_eq!(logs::sweep(&lanes, prefix, now + DAY).await, Ok(Swept { logs: 1, records: 3 }));
    let left = logs::all(&lanes, prefix).await.unwrap();
    assert_eq!(left.iter().map(|log| log.server.name.as_str()).collect::<Vec<_>>(), ["kept", "open", "unmarked"]);
    assert_eq!(store.list(&format!("{prefix}/deleted/"), "", 10).await, Ok(Vec::new()));
    assert_eq!(logs::sweep(&lanes, prefix, now + DAY).await, Ok(Swept::default()));
}

async fn a_new_server_finds_what_the_last_one_left(store: Store, prefix: &str) {
    let (lanes, new) = (Lanes::from(Arc::clone(&store)), id("room", "new"));
    let heir_of = async |wish: Wish| {
        let earlier = logs::earlier(&lanes, prefix, &new, &wish).await.unwrap();
        heir(&earlier, &wish)
    };
    assert_eq!(heir_of(Wish::Newest).await, Ok(None));
    ended(&store, prefix, &id("room", "kept"), Kind::Tombstone { delete: false }).await;
    // The store's calendar has whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    ended(&store, prefix, &id("room", "unwanted"), Kind::Tombstone { delete: true }).await;
    let kept = Some(Inherited { uid: ServerUid("kept".into()), state_at: Sequence(2) });
    assert_eq!(heir_of(Wish::Newest).await, Ok(kept.clone()));
    assert_eq!(heir_of(Wish::Fresh).await, Ok(None));
    assert_eq!(heir_of(Wish::From(ServerUid("kept".into()))).await, Ok(kept));
    assert_eq!(heir_of(Wish::From(ServerUid("none".into()))).await, Err(Undecided::NoLog(ServerUid("none".into()))));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    begin(&open(&store, prefix, &id("room", "open"))).await;
    assert_eq!(heir_of(Wish::Newest).await, Err(Undecided::Open(ServerUid("open".into()))));
}

/// Protocol review, hole 18: what `durable-agent store restore` writes, met by an owner that knows nothing of it.
async fn a_restored_state_fences_whoever_runs_and_is_started_from(store: Store, prefix: &str) {
    let server = id("room", "uid");
    let running = open(&store, prefix, &server);
    let first = begin(&running).await;
    let newest = running.append(&owner(1), snapshot(1, "bad"), first.sequence, soon()).await.unwrap();

    let tool = open(&store, prefix, &server);
    let state = tool.read_state(first.sequence).await.unwrap();
    let release =
        Draft { epoch: newest.epoch.claimed(), kind: Kind::Release, writer: writer("tool"), body: Body::State(state) };
    let restored = tool.append(&Authority::Reader, release, newest.sequence, soon()).await.unwrap();
    assert_eq!(restored.epoch, Epoch(3));

    let late = running.append(&owner(1), snapshot(1, "worse"), newest.sequence, soon()).await;
    assert_eq!(late, Err(AppendError::Fenced(Box::new(restored.clone()))));
    // The owner says so; the operator assigns the server over epoch 1, or over whatever it knew.
    let successor = open(&store, prefix, &server);
    let found = successor.read_newest(Sequence::NONE).await.unwrap().unwrap();
    assert_eq!(found.state, Some(State { version: 7, body: Bytes::from_static(b"first") }));
    for over in [None, Some(1), Some(2)] {
        let over =
            over.map(|epoch| Supersedes { epoch: Epoch(epoch), owner: PodUid("pod-1".into()).into(), grantee: None });
        let (after, state_at) = (restored.sequence, restored.sequence);
        let claim = Start::Claim { epoch: Epoch(5), after, state_at, doubts: Vec::new() };
        assert_eq!(decide(Some(&found.header), over.as_ref(), &writer("pod-2")), claim);
    }
}

#[tokio::test]
async fn a_log_that_went_on_is_not_deleted() {
    let memory = Arc::<Memory>::default();
    let store: Store = Arc::clone(&memory) as _;
    let server = id("room", "uid");
    let log = ended(&store, "", &server, Kind::Tombstone { delete: true }).await;
    assert_eq!(log.destroy(Sequence(2)).await, Ok(None));
    assert_eq!(memory.keys().len(), 3);
    // Broken off in the middle, what is left ends as before.
    memory.inject(Operation::Delete, [Fault::None, Fault::Fail(store::StoreError::Unknown("gone".into()))]);
    assert!(log.destroy(Sequence(3)).await.is_err());
    let newest = open(&store, "", &server).read_newest(Sequence::NONE).await.unwrap().unwrap();
    assert_eq!(newest.header.kind, Kind::Tombstone { delete: true });
    assert_eq!(log.destroy(Sequence(3)).await, Ok(Some(2)));
    assert_eq!(memory.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn one_unreadable_log_does_not_keep_the_others() {
    let memory = Arc::<Memory>::default();
    let store: Store = Arc::clone(&memory) as _;
    let lanes = Lanes::from(Arc::clone(&store));
    for name in ["a", "b"] {
        logs::mark_deleted(&lanes, "", &id(name, "uid")).await.unwrap();
        ended(&store, "", &id(name, "uid"), Kind::Tombstone { delete: true }).await;
    }
    memory.force(&open(&store, "", &id("a", "uid")).key(Sequence(3)), Bytes::from_static(b"damaged"));
    assert_eq!(logs::sweep(&lanes, "", SystemTime::now() + DAY).await, Ok(Swept { logs: 1, records: 3 }));
    assert_eq!(logs::all(&lanes, "").await.unwrap()[0].server.name, "a");
}
