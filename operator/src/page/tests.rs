use std::collections::BTreeSet;

use axum::body::to_bytes;
use crds::Phase;
use serde_json::{Value, json};

use super::{
    mirror::PART,
    view::{PoolView, ServerView},
    *,
};
use crate::model::Key;

fn server(pod: &str, epoch: u64) -> ServerView {
    ServerView {
        pool: "ns/rooms".into(),
        kind: "room".into(),
        phase: Phase::Running,
        pod: pod.into(),
        epoch,
        last: None,
        waits: None,
    }
}

fn waiting(reason: &str) -> ServerView {
    ServerView { phase: Phase::Pending, waits: Some((reason.into(), "no pod is ready".into())), ..server("", 0) }
}

fn look(at: i64, servers: Vec<(&str, Option<ServerView>)>) -> Look {
    let pools = vec![PoolView { key: "ns/rooms".into(), handoff: true, why: String::new() }];
    let servers = servers.into_iter().map(|(name, server)| (Key::new("ns", name), server)).collect();
    Look { at, pools, servers, ..Look::default() }
}

fn json(message: &Message) -> (&'static str, Value) {
    (message.event, serde_json::from_str(&message.data).unwrap())
}

#[test]
fn a_snapshot_and_then_what_changed() {
    let mut mirror = Mirror::default();
    assert!(!mirror.is_live());
    let first = Look { first: true, ..look(1, vec![("a", Some(server("p1", 1))), ("b", Some(server("p1", 1)))]) };
    let (event, data) = json(&mirror.apply(first).unwrap());
    assert_eq!((event, data["servers"].as_object().unwrap().len()), ("snapshot", 2));
    assert_eq!(
        data["servers"]["ns/a"],
        json!({ "pool": "ns/rooms", "type": "room", "phase": "Running", "pod": "p1", "epoch": 1 })
    );

    assert_eq!(mirror.apply(look(2, vec![("a", Some(server("p1", 1)))])), None, "nothing is new");
    let (event, data) = json(&mirror.apply(look(3, vec![("a", Some(server("p2", 2))), ("b", None)])).unwrap());
    assert_eq!(event, "delta");
    assert_eq!((&data["servers"]["ns/a"]["pod"], &data["servers"]["ns/b"]), (&json!("p2"), &Value::Null));
    assert!(data.get("pools").is_none() && data.get("drains").is_none(), "they are as they were: {data}");

    let (event, data) = json(&mirror.apply(Look { first: true, ..look(4, vec![]) }).unwrap());
    assert_eq!((event, &data["servers"]), ("snapshot", &json!({})), "what was shown long ago does not count");
}

#[test]
fn those_that_wait_are_counted_by_reason() {
    let mut mirror = Mirror::default();
    let three = vec![("a", Some(waiting("Full"))), ("b", Some(waiting("NoPool"))), ("c", Some(waiting("Full")))];
    let (_, data) = json(&mirror.apply(Look { first: true, ..look(1, three) }).unwrap());
    let group = |reason: &str, servers| json!({ "pool": "ns/rooms", "reason": reason, "why": "no pod is ready", "servers": servers });
    assert_eq!(data["waiting"], json!([group("Full", 2), group("NoPool", 1)]));
    assert!(!data["servers"].to_string().contains("no pod is ready"), "told once, not with each server");
    let (_, data) = json(&mirror.apply(look(2, vec![("b", Some(server("p1", 1)))])).unwrap());
    assert_eq!(data["waiting"], json!([group("Full", 2)]));
}

#[test]
fn a_large_picture_comes_in_parts() {
    let mut mirror = Mirror::default();
    let names: Vec<String> = (0..PART * 2 + 5).map(|n| format!("s{n}")).collect();
    let all = names.iter().map(|name| (name.as_str(), Some(server("p1", 1)))).collect();
    mirror.apply(Look { first: true, ..look(1, all) });
    let (mut seen, mut after, mut events) = (BTreeSet::new(), None, Vec::new());
    loop {
        let (message, next) = mirror.part(after.as_deref());
        let (event, data) = json(&message);
        events.push((event, data["servers"].as_object().unwrap().len()));
        seen.extend(data["servers"].as_object().unwrap().keys().cloned());
        let Some(next) = next else { break };
        after = Some(next);
    }
    assert_eq!(events, [("snapshot", PART), ("delta", PART), ("delta", 5)]);
    assert_eq!(seen.len(), names.len());
}

/// Shows looks to a page as the driver does, each once the one before is taken in.
async fn show_all(lens: &Lens, looks: impl IntoIterator<Item = Option<Look>>) {
    for look in looks {
        lens.looks.send(look).await.unwrap();
    }
    // The slot is free again when the last one is in the mirror.
    drop(lens.looks.reserve().await.unwrap());
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_a_new_snapshot_and_never_holds_up_the_world() {
    let (lens, page) = new(CancellationToken::new());
    show_all(&lens, [Some(Look { first: true, ..look(0, vec![("a", Some(server("p0", 0)))]) })]).await;
    let (events, mut slow) = mpsc::channel(1);
    let permit = page.feeds.clone().try_acquire_owned().unwrap();
    tokio::spawn(follow(page, events, permit));
    assert_eq!(slow.recv().await.unwrap().event, "snapshot");
    let changes = 1..=u64::try_from(BEHIND).unwrap() * 4;
    let newest = *changes.end();
    show_all(&lens, changes.map(|epoch| Some(look(1, vec![("a", Some(server("p1", epoch)))])))).await;
    let mut read = Vec::new();
    loop {
        let (event, data) = json(&slow.recv().await.unwrap());
        let epoch = data["servers"]["ns/a"]["epoch"].as_u64().unwrap();
        read.push(event);
        if epoch == newest {
            break;
        }
    }
    assert_eq!(read.last(), Some(&"snapshot"));
    assert!(read.len() <= 3, "what was missed is skipped: {read:?}");
    assert!(lens.is_used());
    tokio::time::sleep(PATIENCE * 2).await;
    show_all(&lens, (1..4).map(|epoch| Some(look(1, vec![("a", Some(server("p2", epoch)))])))).await;
    tokio::time::sleep(PATIENCE * 2).await;
    assert!(!lens.is_used(), "one that takes nothing for long is let go");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_comes_first_waits_for_the_first_look() {
    let (lens, page) = new(CancellationToken::new());
    show_all(&lens, [Some(Look { first: true, ..look(0, vec![("a", Some(server("p0", 0)))]) }), None]).await;
    let (events, mut reader) = mpsc::channel(1);
    tokio::spawn(follow(page.clone(), events, page.feeds.clone().try_acquire_owned().unwrap()));
    assert!(timeout(EVERY, reader.recv()).await.is_err(), "what was shown to an earlier reader is forgotten");
    show_all(&lens, [Some(Look { first: true, ..look(9, vec![]) })]).await;
    let (event, data) = json(&reader.recv().await.unwrap());
    assert_eq!((event, &data["at"]), ("snapshot", &json!(9)));
    page.stop.cancel();
    assert_eq!(reader.recv().await, None, "feeds end with us");
}

#[tokio::test]
async fn so_many_feeds_and_no_more() {
    let (lens, page) = new(CancellationToken::new());
    assert!(!lens.is_used());
    let mut open = Vec::new();
    for _ in 0..FEEDS {
        open.push(feed(State(page.clone())).await);
    }
    assert!(open.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(feed(State(page.clone())).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(open);
    timeout(PATIENCE, async {
        while lens.is_used() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(feed(State(page)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_page_is_one_file_and_runs_nothing_else() {
    let page = async || {
        let answer = html().await;
        let policy = answer.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        (policy, String::from_utf8(to_bytes(answer.into_body(), 1 << 20).await.unwrap().into()).unwrap())
    };
    let (policy, text) = page().await;
    let nonce = policy.split('\'').find_map(|word| word.strip_prefix("nonce-")).unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"));
    assert_eq!(text.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
    assert!(!text.contains(NONCE) && page().await.0 != policy, "a nonce is used once");
    for outside in ["http://", "https://", " src=", "@import", "style=\""] {
        assert!(!text.contains(outside), "{outside}");
    }
}
