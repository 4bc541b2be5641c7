//! A host whose lease is over, for whatever reason, serves nothing of it.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::time::Duration;

use http::Method;
use rustix::time::{ClockId, clock_gettime};
use support::{Answer, Harness, slow};
use tokio::time::sleep;

const SHORT: u64 = 400;
const LONG: u64 = 3_600_000;

fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap()
}

async fn lease(host: &Harness, generation: u64, ms: u64) -> u16 {
    let (generation, deadline) = (generation.to_string(), (boot_ms() + ms).to_string());
    let headers = [("durable-generation", generation.as_str()), ("durable-deadline", &deadline)];
    host.control(Method::POST, "lease", &headers, "").await.status.as_u16()
}

/// A lease of generation 5, by the agent whose calls begin with this attempt.
async fn lease_of(host: &Harness, first: u64) -> u16 {
    let (deadline, first) = ((boot_ms() + LONG).to_string(), first.to_string());
    let headers = [("durable-generation", "5"), ("durable-deadline", &deadline), ("durable-attempt", &first)];
    host.control(Method::POST, "lease", &headers, "").await.status.as_u16()
}

async fn post(host: &Harness, uid: &str, path: &str) -> Answer {
    host.user(Method::POST, path, uid, 1, "x").await
}

#[tokio::test]
async fn what_is_over_is_not_served_and_does_not_live_again() {
    let host = Harness::start();
    assert_eq!(lease(&host, 5, SHORT).await, 200);
    assert_eq!(host.verb("start", "a", 1, 1).await.status, 200);
    assert_eq!(post(&host, "a", "/").await.status, 200);
    sleep(Duration::from_millis(SHORT + 150)).await;
    assert_eq!(post(&host, "a", "/").await.status, 421);
    assert_eq!(lease(&host, 5, LONG).await, 409);
    assert_eq!(lease(&host, 4, LONG).await, 412);
    assert_eq!(post(&host, "a", "/").await.status, 421);
    for (verb, uid) in [("start", "b"), ("thaw", "a")] {
        assert_eq!(host.verb(verb, uid, 1, 2).await.status, 409, "{verb}");
    }
    assert_eq!(host.verb("freeze", "a", 1, 3).await.body, "x", "its state can still be had");
    assert_eq!(lease(&host, 6, LONG).await, 200);
    assert_eq!(post(&host, "a", "/").await.status, 421, "an earlier generation's");
    assert_eq!(host.verb("start", "a", 1, 4).await.status, 200, "what that left is not in the way");
    assert_eq!(post(&host, "a", "/").await.status, 200);
    assert_eq!(host.terms.told()[..3], ["begin a 1", "end a 1 LeaseOver", "begin a 1"]);
}

#[tokio::test]
async fn a_request_that_outlasts_the_lease_is_not_answered_with_success() {
    let host = Harness::start();
    lease(&host, 5, SHORT).await;
    host.verb("start", "slow-lease", 1, 1).await;
    let late = async {
        sleep(Duration::from_millis(SHORT + 50)).await;
        slow("slow-lease").add_permits(1);
    };
    let (answer, ()) = tokio::join!(post(&host, "slow-lease", "/slow"), late);
    assert_eq!(answer.status, 503);
    assert!(!answer.headers.contains_key("durable-not-here"), "the server was given it");
}

#[tokio::test]
async fn without_a_word_of_leases_there_is_no_end() {
    let host = Harness::start();
    host.verb("start", "a", 1, 1).await;
    sleep(Duration::from_millis(150)).await;
    assert_eq!(post(&host, "a", "/").await.status, 200);
    assert_eq!(host.control(Method::POST, "lease", &[("durable-generation", "5")], "").await.status, 400);
    assert_eq!(lease(&host, 5, 0).await, 409, "over before it began");
    assert_eq!(post(&host, "a", "/").await.status, 200);
}

#[tokio::test]
async fn what_it_was_told_can_be_asked_for() {
    let host = Harness::start();
    assert_eq!(host.control(Method::GET, "lease", &[], "").await.status, 404);
    host.verb("start", "a", 1, 1).await;
    assert_eq!(lease(&host, 5, LONG).await, 200);
    host.verb("start", "b", 1, 1).await;
    let known = host.control(Method::GET, "lease", &[], "").await.body;
    let known: serde_json::Value = serde_json::from_str(&known).unwrap();
    assert_eq!(known["generation"], 5);
    assert!(known["deadline"].as_u64().unwrap() > boot_ms() + LONG / 2, "{known}");
    let mut listed = host.list().await;
    listed.sort_by_key(|line| line["uid"].to_string());
    assert_eq!([&listed[0]["generation"], &listed[1]["generation"]], [0, 5]);
}

#[tokio::test]
async fn an_agent_that_is_gone_changes_nothing_any_more() {
    let host = Harness::start();
    assert_eq!(lease_of(&host, 10).await, 200);
    host.verb("start", "slow-late", 1, 10).await;
    let handled = post(&host, "slow-late", "/slow");
    let frozen = async {
        sleep(Duration::from_millis(50)).await;
        host.verb("freeze", "slow-late", 1, 11).await
    };
    let next = async {
        sleep(Duration::from_millis(100)).await;
        assert_eq!(lease_of(&host, 20).await, 200);
        slow("slow-late").add_permits(1);
    };
    let (handled, frozen, ()) = tokio::join!(handled, frozen, next);
    assert_eq!((handled.status.as_u16(), frozen.status.as_u16()), (200, 412), "{}", frozen.body);
    assert_eq!(post(&host, "slow-late", "/").await.status, 200, "a freeze that waited does not close it");
    for (verb, epoch) in [("start", 3), ("stop", 1), ("freeze", 1), ("thaw", 1)] {
        assert_eq!(host.verb(verb, "slow-late", epoch, 19).await.status, 412, "{verb}");
    }
    assert_eq!(host.verb("start", "another", 1, 19).await.status, 412, "whatever it is about");
    assert_eq!(lease_of(&host, 10).await, 200, "a late word of the one that is gone");
    assert_eq!(host.verb("stop", "slow-late", 1, 12).await.status, 412);
    assert_eq!(host.verb("freeze", "slow-late", 1, 20).await.body, "xx");
}
