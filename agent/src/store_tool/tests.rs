//! The commands as a person writes them, on a store in memory.

use std::time::Duration;

use bytes::Bytes;
use clap::FromArgMatches;
use handoff::{Epoch, Sequence, log::Authority};
use store::{AppendError, Body, Draft, Memory, State};
use tokio::time::Instant;

use super::*;

const DAY: Duration = Duration::from_hours(25);

fn store() -> (Arc<Memory>, Store) {
    let memory = Arc::<Memory>::default();
    let objects: Arc<dyn Objects> = Arc::clone(&memory) as _;
    (memory, Store { lanes: Lanes::from(objects), prefix: "p".into() })
}

fn id(name: &str, uid: &str) -> ServerId {
    ServerId { namespace: "ns".into(), name: name.into(), uid: ServerUid(uid.into()) }
}

fn until() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

async fn append(log: &Log, epoch: u64, kind: Kind, body: Body) -> Result<Header, AppendError> {
    let after = log.newest_known().map_or(Sequence::NONE, |newest| newest.sequence);
    let authority = match after {
        Sequence::NONE => Authority::Reader,
        _ => Authority::Owner { epoch: Epoch(epoch), granted: None },
    };
    let writer = handoff::log::Writer { pod: handoff::PodUid("pod".into()), ..Default::default() };
    log.append(&authority, Draft { epoch: Epoch(epoch), kind, writer, body }, after, until()).await
}

fn state(text: &'static str) -> Body {
    Body::State(State { version: 2, body: Bytes::from_static(text.as_bytes()) })
}

/// A Claim, two Snapshots and, if given, an end.
async fn written(store: &Store, server: &ServerId, last: Option<Kind>) -> Log {
    let log = store.log(server).unwrap();
    append(&log, 1, Kind::Claim, Body::At { sequence: Sequence::NONE, version: 0 }).await.unwrap();
    for text in ["one", "second"] {
        append(&log, 1, Kind::Snapshot, state(text)).await.unwrap();
    }
    if let Some(last) = last {
        append(&log, 1, last, Body::At { sequence: Sequence(3), version: 2 }).await.unwrap();
    }
    log
}

/// What the command says, and how it ends.
async fn said(store: &Store, words: &str, now: SystemTime) -> (Vec<String>, anyhow::Result<()>) {
    let words = words.split_whitespace().chain(["--bucket", "b"]);
    let command = Options::augment_args(clap::Command::new("store").no_binary_name(true));
    let options = Options::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap();
    let mut lines = Vec::new();
    let tell = |line| lines.push(line);
    let result = match &options.command {
        Command::Inspect(options) => inspect::run(options, store, now, tell).await,
        Command::Gc(options) => gc::run(options, store, now, tell).await,
        Command::Restore(options) => restore::run(options, store, tell).await,
    };
    (lines, result)
}

async fn lines(store: &Store, words: &str) -> Vec<String> {
    let (lines, result) = said(store, words, SystemTime::now() + DAY).await;
    result.unwrap();
    lines
}

async fn refused(store: &Store, words: &str) -> String {
    let (_, result) = said(store, words, SystemTime::now() + DAY).await;
    format!("{:#}", result.unwrap_err())
}

#[tokio::test]
async fn inspect_shows_every_record_of_every_log_of_the_name() {
    let (memory, store) = store();
    let log = written(&store, &id("room", "one"), Some(Kind::Tombstone { delete: false })).await;
    written(&store, &id("room", "two"), None).await;
    written(&store, &id("hall", "one"), None).await;
    memory.force(&log.key(Sequence(2)), Bytes::from_static(b"noise"));
    let shown = lines(&store, "inspect ns/room").await;
    assert_eq!(shown.len(), 2 * 2 + 4 + 3, "{shown:#?}");
    assert!(shown[0].starts_with("ns/room/one: 4 records, the newest 9"), "{}", shown[0]);
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&shown[1]), ["SEQUENCE", "EPOCH", "KIND", "STATE", "VERSION", "WRITER", "TIME"]);
    assert_eq!(words(&shown[2])[..6], ["1", "1", "Claim", "none", "yet", "0"]);
    assert!(shown[3].contains("unreadable: not an intact record"), "{}", shown[3]);
    assert_eq!(words(&shown[4])[..7], ["3", "1", "Snapshot", "6", "bytes", "2", "pod"]);
    assert_eq!(words(&shown[5])[..8], ["4", "1", "Tombstone,", "Retain", "that", "of", "3", "2"]);
    assert!(shown[5].ends_with('Z'), "a time: {}", shown[5]);
    assert_eq!(lines(&store, "inspect ns/room --uid two").await[0].split(':').next(), Some("ns/room/two"));
    let missing = refused(&store, "inspect ns/none").await;
    assert!(missing.contains("no log of ns/none") && missing.contains("spec.store.s3"), "{missing}");
    assert!(refused(&store, "inspect ns/room --uid three").await.contains("only of one, two"));
}

#[tokio::test]
async fn gc_shows_first_and_deletes_only_what_it_may() {
    let (memory, store) = store();
    written(&store, &id("a", "unwanted"), Some(Kind::Tombstone { delete: true })).await;
    written(&store, &id("b", "kept"), Some(Kind::Tombstone { delete: false })).await;
    written(&store, &id("c", "released"), Some(Kind::Release)).await;
    written(&store, &id("d", "running"), None).await;
    let before = memory.keys();
    let (young, result) = said(&store, "gc --delete --retained", SystemTime::now()).await;
    result.unwrap();
    assert_eq!(young.iter().filter(|line| line.starts_with("keep")).count(), 2, "{young:#?}");
    assert_eq!(memory.keys(), before);

    let dry = lines(&store, "gc").await;
    assert!(dry[0].starts_with("would delete  ns/a/unwanted  4 records"), "{dry:#?}");
    assert!(dry[0].ends_with("deleted, reclaimPolicy Delete"), "{dry:#?}");
    assert!(dry[1].starts_with("keep  ns/b/kept") && dry[1].contains("--retained"), "{dry:#?}");
    assert!(dry[2].starts_with("1 logs with 4 records would be deleted by --delete; 2 logs"), "{dry:#?}");
    assert_eq!(memory.keys(), before, "a look changes nothing");

    lines(&store, "gc --delete").await;
    let left = |memory: &Memory| memory.keys().iter().filter(|key| key.ends_with('1')).count();
    assert_eq!((left(&memory), memory.keys().len()), (3, 11));
    lines(&store, "gc --delete --retained").await;
    assert_eq!(left(&memory), 2);
    lines(&store, "gc --delete ns/c/released").await;
    assert_eq!(left(&memory), 1);
    assert!(refused(&store, "gc ns/c/released").await.contains("no log ns/c/released"));
}

#[tokio::test]
async fn gc_takes_the_list_of_servers_that_exist() {
    let (memory, store) = store();
    written(&store, &id("a", "gone"), None).await;
    written(&store, &id("b", "there"), None).await;
    let log = written(&store, &id("c", "damaged"), None).await;
    memory.force(&log.key(Sequence(3)), Bytes::from_static(b"noise"));
    let directory = tempfile::tempdir().unwrap();
    let list = directory.path().join("uids");
    std::fs::write(&list, "\n").unwrap();
    let command = format!("gc --delete --known-uids {}", list.display());
    assert!(refused(&store, &command).await.contains("the list is empty"));
    std::fs::write(&list, "there\nother\n").unwrap();
    let done = lines(&store, &command).await;
    assert!(done[0].starts_with("deleted  ns/a/gone  3 records"), "{done:#?}");
    assert!(done[1].starts_with("keep  ns/c/damaged") && done[1].contains("cannot be read"), "{done:#?}");
    assert_eq!(memory.keys().len(), 6);
}

#[tokio::test]
async fn restore_ends_the_owner_and_is_what_comes_next() {
    let (_, store) = store();
    let server = id("room", "uid");
    let running = written(&store, &server, None).await;
    let told = lines(&store, "restore ns/room --sequence 2").await;
    assert!(
        told[0].contains("record 4 of epoch 3 written, a Release with the state of record 2 (3 bytes"),
        "{told:#?}"
    );
    assert!(told[1].contains("Snapshot of epoch 1 by pod pod"), "{told:#?}");
    let fenced = append(&running, 1, Kind::Snapshot, state("third")).await;
    assert!(matches!(fenced, Err(AppendError::Fenced(found)) if found.epoch == Epoch(3)));
    let newest = store.log(&server).unwrap().read_newest(Sequence::NONE).await.unwrap().unwrap();
    assert_eq!((newest.header.kind, newest.state.unwrap().body), (Kind::Release, Bytes::from_static(b"one")));
    // Once more, from a record that points at its state: nobody runs it now, so there is nobody to warn of.
    assert_eq!(lines(&store, "restore ns/room --sequence 4").await.len(), 1);
}

#[tokio::test]
async fn restore_refuses_what_cannot_be_meant() {
    let (_, store) = store();
    written(&store, &id("room", "uid"), Some(Kind::Tombstone { delete: false })).await;
    assert!(refused(&store, "restore ns/room --sequence 2").await.contains("spec.restoreFrom.uid"));
    assert!(refused(&store, "restore ns/room --sequence 9").await.contains("there is no record 9"));
    assert!(refused(&store, "restore ns/room --sequence 1").await.contains("before the first state"));
    written(&store, &id("room", "new"), None).await;
    assert!(refused(&store, "restore ns/room --sequence 2").await.contains("--uid, of new, uid"));
    assert!(refused(&store, "restore ns/room --sequence 2 --uid x").await.contains("no such log"));
    lines(&store, "restore ns/room --sequence 2 --uid new").await;
}

#[test]
fn names_are_names() {
    for bad in ["", "a", "/a", "a/", "a/b/c"] {
        assert!(bad.parse::<Name>().is_err(), "{bad}");
    }
    for bad in ["a/b", "a//c", "a/b/c/d"] {
        assert!(log_name(bad).is_err(), "{bad}");
    }
    assert_eq!(log_name("ns/a/u").map(|id| name_of(&id)).as_deref(), Ok("ns/a/u"));
}
