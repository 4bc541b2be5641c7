//! Requests, states as they travel, observers, durable answers and the end of the process.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{os::unix::fs::PermissionsExt, sync::Arc, time::Duration};

use http::{Method, StatusCode};
use support::{FROZEN, Harness, agent, slow};
use tokio::{sync::Semaphore, task::yield_now, time::sleep};

const UID: &str = "u";

/// Waits until `reached`, without a fixed sleep.
async fn until(mut reached: impl FnMut() -> bool) {
    for _ in 0..5000 {
        if reached() {
            return;
        }
        sleep(Duration::from_millis(1)).await;
    }
    panic!("not reached in 5 s");
}

#[tokio::test]
async fn the_host_describes_itself() {
    let harness = Harness::start();
    let mode = std::fs::metadata(harness.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    let described = harness.control(Method::GET, "describe", &[], "").await;
    let described: serde_json::Value = serde_json::from_str(&described.body).unwrap();
    assert_eq!(described["contract"], 1);
    assert!(described["instance"].as_u64().unwrap() < 1 << 53);
    let types = serde_json::json!([{"name": "notes", "stateVersion": 2, "loads": [1, 2]}]);
    assert_eq!(described["types"], types);
    let started = harness.verb("start", UID, 4, 1).await;
    assert_eq!(started.mark().unwrap()[0], described["instance"].to_string());
    let line = serde_json::json!({"uid": UID, "server": "default/a", "type": "notes", "epoch": 4, "generation": 0,
        "phase": "active", "revision": 1});
    assert_eq!(harness.list().await, [line]);
    assert_eq!(harness.control(Method::GET, "nothing", &[], "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_frozen_state_travels_as_it_was_last_answered() {
    let harness = Harness::start();
    harness.verb("start", UID, 1, 1).await;
    assert_eq!(harness.user(Method::POST, "/", UID, 1, "one").await.body, "one");
    let frozen = harness.verb("freeze", UID, 1, 2).await;
    assert_eq!(frozen.body, "one");
    assert_eq!(FROZEN.lock().unwrap().iter().filter(|state| *state == "one").count(), 1);
    assert_eq!(frozen.headers["durable-state-version"], "2");
    assert_eq!(frozen.mark().unwrap()[2], crc32fast::hash(b"one").to_string());
}

#[tokio::test]
async fn a_revision_never_comes_back() {
    let harness = Harness::start();
    let first = harness.verb("start", UID, 1, 1).await.mark().unwrap();
    harness.user(Method::POST, "/", UID, 1, "one").await;
    harness.verb("stop", UID, 1, 2).await;
    let second = harness.verb("start", UID, 3, 1).await.mark().unwrap();
    let revision = |mark: &[String; 3]| mark[1].parse::<u64>().unwrap();
    assert!(revision(&second) > revision(&first) + 1);
}

#[tokio::test]
async fn a_mark_names_one_sequence_of_bytes() {
    let harness = Harness::start();
    let headers = [
        ("durable-server", "default/a"),
        ("durable-type", "notes"),
        ("durable-mode", "active"),
        ("durable-state", "full"),
        ("durable-state-version", "1"),
        ("durable-epoch", "1"),
        ("durable-attempt", "1"),
    ];
    let started = harness.control(Method::POST, "servers/u/start", &headers, "old").await.mark().unwrap();
    assert_eq!(started[2], crc32fast::hash(b"old").to_string());
    let frozen = harness.verb("freeze", UID, 1, 2).await;
    assert_eq!(frozen.body, "OLD");
    assert_ne!(frozen.mark().unwrap()[1], started[1]);
}

#[tokio::test]
async fn only_changes_count() {
    let harness = Harness::start();
    harness.verb("start", UID, 1, 1).await;
    let requests = [
        (Method::GET, "/", 0),
        (Method::HEAD, "/", 0),
        (Method::POST, "/", 1),
        (Method::PUT, "/", 1),
        (Method::POST, "/peek", 0),
        (Method::GET, "/touch", 1),
        (Method::POST, "/panic", 1),
        (Method::GET, "/panic", 1),
    ];
    for (method, path, counts) in requests {
        let before = harness.list().await[0]["revision"].as_u64().unwrap();
        let answer = harness.user(method.clone(), path, UID, 1, "").await;
        assert_eq!(answer.status.is_server_error(), path == "/panic");
        let after = harness.list().await[0]["revision"].as_u64().unwrap();
        assert_eq!(after - before, counts, "{method} {path}");
    }
    assert_eq!(harness.user(Method::POST, "/", UID, 1, "on").await.body, "!??on");
}

#[tokio::test]
async fn malformed_and_oversized_calls_are_refused() {
    let harness = Harness::start();
    harness.verb("start", UID, 1, 1).await;
    let no_epoch = harness.control(Method::POST, "servers/u/freeze", &[("durable-attempt", "1")], "").await;
    assert_eq!(no_epoch.status, StatusCode::BAD_REQUEST);
    assert_eq!(no_epoch.body, "header durable-epoch is missing");
    let words = [("durable-epoch", "1"), ("durable-attempt", "one")];
    assert_eq!(harness.control(Method::POST, "servers/u/freeze", &words, "").await.status, StatusCode::BAD_REQUEST);
    let large = "x".repeat(2 * 1024 * 1024 + 1);
    assert_eq!(harness.user(Method::POST, "/", UID, 1, &large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(harness.user(Method::POST, "/", UID, 1, &large[1..]).await.status, StatusCode::OK);
    let forged = harness.user(Method::GET, "/forge", UID, 1, "").await;
    assert!(!forged.headers.contains_key("durable-not-here"));
}

#[tokio::test]
async fn a_freeze_waits_for_the_handler_under_way_and_for_no_other() {
    let harness = Harness::start();
    harness.verb("start", UID, 1, 1).await;
    let slowly = harness.user(Method::POST, "/slow", UID, 1, "slow");
    let queued = async {
        until(|| Arc::strong_count(&slow(UID)) > 2).await;
        harness.user(Method::POST, "/", UID, 1, "queued").await
    };
    let freeze = async {
        until(|| Arc::strong_count(&slow(UID)) > 2).await;
        sleep(Duration::from_millis(50)).await;
        harness.verb("freeze", UID, 1, 2).await
    };
    let release = async {
        sleep(Duration::from_millis(150)).await;
        assert_eq!(harness.list().await[0]["phase"], "active");
        slow(UID).add_permits(1);
    };
    let (slowly, queued, freeze, ()) = tokio::join!(slowly, queued, freeze, release);
    assert_eq!((slowly.status, slowly.body.as_str()), (StatusCode::OK, "slow"));
    assert_eq!((freeze.status, freeze.body.as_str()), (StatusCode::OK, "slow"));
    assert_eq!(queued.status, StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn a_freeze_that_was_given_up_does_nothing_when_its_turn_comes() {
    let harness = Harness::start();
    let uid = "given-up";
    harness.verb("start", uid, 1, 1).await;
    let slowly = harness.user(Method::POST, "/slow", uid, 1, "slow");
    let freeze = async {
        until(|| Arc::strong_count(&slow(uid)) > 2).await;
        harness.verb("freeze", uid, 1, 2).await
    };
    let thaw = async {
        sleep(Duration::from_millis(100)).await;
        harness.verb("thaw", uid, 1, 3).await
    };
    let queued = async {
        sleep(Duration::from_millis(150)).await;
        slow(uid).add_permits(1);
        harness.user(Method::POST, "/", uid, 1, " on").await
    };
    let (slowly, freeze, thaw, queued) = tokio::join!(slowly, freeze, thaw, queued);
    assert_eq!(slowly.status, StatusCode::OK);
    assert_eq!(freeze.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(thaw.status, StatusCode::OK);
    assert_eq!((queued.status, queued.body.as_str()), (StatusCode::OK, "slow on"));
}

#[tokio::test]
async fn a_handler_outlives_its_client() {
    let harness = Harness::start();
    let uid = "gone";
    harness.verb("start", uid, 1, 1).await;
    let client = tokio::time::timeout(Duration::from_millis(100), harness.user(Method::POST, "/slow", uid, 1, "kept"));
    assert!(client.await.is_err());
    slow(uid).add_permits(1);
    assert_eq!(harness.user(Method::GET, "/", uid, 1, "").await.body, "kept");
}

#[tokio::test]
async fn a_durable_answer_waits_for_the_store_and_the_server_does_not() {
    let harness = Harness::start();
    let turn = Arc::new(Semaphore::new(0));
    let asked = agent(harness.dir.path(), StatusCode::OK, "", Arc::clone(&turn));
    harness.verb("start", UID, 1, 1).await;
    let durable = harness.user(Method::POST, "/durable", UID, 1, "kept");
    let meanwhile = async {
        until(|| !asked.lock().unwrap().is_empty()).await;
        // The agent takes its snapshot while the answer waits, and the server may even leave.
        let snapshot = harness.control(Method::GET, "servers/u/snapshot", &[("durable-epoch", "1")], "").await;
        assert_eq!(snapshot.body, "kept");
        assert_eq!(harness.user(Method::GET, "/", UID, 1, "").await.status, StatusCode::OK);
        assert_eq!(harness.verb("freeze", UID, 1, 2).await.status, StatusCode::OK);
        assert_eq!(harness.verb("stop", UID, 1, 3).await.status, StatusCode::OK);
        turn.add_permits(1);
    };
    let (durable, ()) = tokio::join!(durable, meanwhile);
    assert_eq!((durable.status, durable.body.as_str()), (StatusCode::OK, "kept"));
    assert_eq!(*asked.lock().unwrap(), ["POST /v1/servers/u/sync"]);
}

#[tokio::test]
async fn what_is_not_durable_is_not_said_to_be() {
    let harness = Harness::start();
    harness.verb("start", UID, 1, 1).await;
    let no_agent = harness.user(Method::POST, "/durable", UID, 1, "a").await;
    assert_eq!(no_agent.status, StatusCode::SERVICE_UNAVAILABLE);
    let status = StatusCode::SERVICE_UNAVAILABLE;
    agent(harness.dir.path(), status, "the store is away", Arc::new(Semaphore::new(1)));
    let no_store = harness.user(Method::POST, "/durable", UID, 1, "b").await;
    assert_eq!(no_store.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(no_store.body, "not stored durably: the store is away");
}

#[tokio::test]
async fn a_handler_can_look_servers_up() {
    let harness = Harness::start();
    let location = r#"{"uid": "o", "epoch": 7, "address": "10.0.0.1:80", "here": false}"#;
    let asked = agent(harness.dir.path(), StatusCode::OK, location, Arc::new(Semaphore::new(1)));
    harness.verb("start", UID, 1, 1).await;
    let found = harness.user(Method::GET, "/lookup", UID, 1, "").await.body;
    assert!(found.contains("epoch: 7"), "{found}");
    assert_eq!(*asked.lock().unwrap(), ["GET /v1/servers/default/other"]);
}

#[tokio::test]
async fn a_server_that_nobody_has_is_somewhere_nevertheless() {
    let harness = Harness::start();
    let location = r#"{"uid": "o", "epoch": 7, "address": null, "here": false}"#;
    agent(harness.dir.path(), StatusCode::OK, location, Arc::new(Semaphore::new(1)));
    harness.verb("start", UID, 1, 1).await;
    let found = harness.user(Method::GET, "/lookup", UID, 1, "").await.body;
    assert!(found.contains("address: None"), "{found}");
}

#[tokio::test]
async fn terms_are_told_and_the_last_ones_at_the_end() {
    let harness = Harness::start();
    harness.verb("start", "a", 1, 1).await;
    harness.verb("freeze", "a", 1, 2).await;
    harness.verb("thaw", "a", 1, 3).await;
    harness.verb("thaw", "a", 1, 4).await;
    harness.verb("freeze", "a", 1, 5).await;
    harness.verb("stop", "a", 1, 6).await;
    harness.verb("start", "b", 5, 1).await;
    harness.verb("stop", "b", 5, 2).await;
    harness.verb("start", "c", 9, 1).await;
    let terms = harness.end().await;
    let expected = [
        "begin a 1",
        "end a 1 Frozen",
        "begin a 1",
        "end a 1 Frozen",
        "begin b 5",
        "end b 5 Stopped",
        "begin c 9",
        "end c 9 Exit",
    ];
    assert_eq!(terms.told(), expected);
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        drop(std::os::unix::net::UnixListener::bind(dir.path().join("host.sock.new")).unwrap());
        let listening = durable_sdk::Host::new().listen(dir.path()).unwrap();
        yield_now().await;
        // As if killed: the file stays.
        drop(listening);
    }
    assert!(dir.path().join("host.sock").exists());
}

#[tokio::test]
async fn the_pools_limit_of_a_state_is_the_hosts_too() {
    for (limit, status) in [(3, StatusCode::PAYLOAD_TOO_LARGE), (4, StatusCode::OK)] {
        let dir = tempfile::tempdir().unwrap();
        let host =
            durable_sdk::Host::new().serve::<support::Notes>().max_state_bytes(limit).listen(dir.path()).unwrap();
        let host = tokio::spawn(host.serve_until(std::future::pending()));
        let headers = [
            ("durable-server", "default/a"),
            ("durable-type", "notes"),
            ("durable-mode", "active"),
            ("durable-state", "full"),
            ("durable-state-version", "2"),
            ("durable-epoch", "1"),
            ("durable-attempt", "1"),
        ];
        let socket = dir.path().join("host.sock");
        let started = support::call(&socket, Method::POST, "/.durable/v1/servers/u/start", &headers, "four").await;
        assert_eq!(started.status, status, "{}", started.body);
        host.abort();
    }
}

#[tokio::test]
async fn a_host_takes_bodies_as_long_as_it_says() {
    for (limit, status) in [(3, StatusCode::PAYLOAD_TOO_LARGE), (4, StatusCode::MISDIRECTED_REQUEST)] {
        let dir = tempfile::tempdir().unwrap();
        let host = durable_sdk::Host::new().serve::<support::Notes>().max_body_bytes(limit).listen(dir.path()).unwrap();
        let host = tokio::spawn(host.serve_until(std::future::pending()));
        let headers = [("durable-uid", UID), ("durable-epoch", "1")];
        let answer = support::call(&dir.path().join("host.sock"), Method::POST, "/", &headers, "four").await;
        assert_eq!(answer.status, status, "{}", answer.body);
        host.abort();
    }
}
