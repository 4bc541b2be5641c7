//! What breaks costs nothing that was acknowledged, and is shown.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::casebook;
use e2e::chaos;
use e2e::cluster::{Cluster, OPERATOR, SYSTEM, Store};
use e2e::fault::{self, Killed};
use e2e::rooms::Rooms;
use e2e::view::Pod;
use e2e::wait::until;
use serde_json::json;

const ROOMS: usize = 300;
const WRITES: u32 = 100;
/// Less than the drain's budget below.
const SERVES_ON: Duration = Duration::from_secs(8);
const DRAIN: Duration = Duration::from_mins(1);

/// Three pods with rooms, and the one that is to be emptied first.
async fn three_pods(name: &str) -> Result<(Rooms, Vec<Pod>)> {
    let cluster = Cluster::up(Store::Outside).await?;
    // A short drain, so that one that cannot go on is over soon.
    let pool = json!({ "handoffOnShutdown": { "timeout": "15s" } });
    let rooms = Rooms::start(&cluster, name, 3, pool).await?;
    rooms.create(ROOMS, 4096).await?;
    let pods = rooms.ready_pods(3).await?;
    Ok((rooms, pods))
}

/// Waits until another pod has begun to serve what this one had: the drain is in full swing.
async fn in_mid_drain(rooms: &Rooms, begun_before: usize) -> Result<()> {
    until("the first servers have moved", DRAIN, async || Ok((rooms.ledger.len() > begun_before + 20).then_some(())))
        .await
}

async fn gone(rooms: &Rooms, pod: &Pod) -> Result<()> {
    until(&format!("{} is gone", pod.name), DRAIN, async || {
        Ok((!rooms.view.pods().iter().any(|other| other.uid == pod.uid)).then_some(()))
    })
    .await
}

#[tokio::test]
async fn each_misfortune_is_shown_once_and_nothing_else_breaks() -> Result<()> {
    casebook::run(&Cluster::up(Store::Outside).await?, false).await
}

#[tokio::test]
async fn what_is_lost_without_a_word_is_served_elsewhere_and_never_twice() -> Result<()> {
    chaos::run(60, chaos::Part::Bounded, "").await
}

#[tokio::test]
async fn without_the_operator_servers_move_by_the_standing_plan() -> Result<()> {
    let (rooms, pods) = three_pods("no-operator").await?;
    let source = &pods[0];
    let had = rooms.view.servers().iter().filter(|server| server.pod == source.name).count();
    let moved = fault::under_load(&rooms, ROOMS, WRITES, async |_| {
        let restored = rooms.cluster.clone();
        restored.scale(SYSTEM, OPERATOR, 0).await?;
        let before = rooms.ledger.begins_elsewhere(&source.name);
        rooms.delete_pod(&source.name).await?;
        gone(&rooms, source).await?;
        let moved = rooms.ledger.begins_elsewhere(&source.name) - before;
        restored.scale(SYSTEM, OPERATOR, 1).await?;
        ensure!(moved >= had, "only {moved} of {had} servers moved while the operator was down");
        Ok(Killed::new())
    })
    .await?;
    ensure!(moved.failures.is_empty(), "requests failed without an operator: {:?}", moved.failures);
    rooms.close().await
}

#[tokio::test]
async fn a_target_that_is_killed_in_mid_drain_takes_nothing_with_it() -> Result<()> {
    let (rooms, pods) = three_pods("target-killed").await?;
    fault::under_load(&rooms, ROOMS, WRITES, async |_| {
        let before = rooms.ledger.len();
        rooms.delete_pod(&pods[0].name).await?;
        in_mid_drain(&rooms, before).await?;
        Ok(Killed::from([(pods[1].name.clone(), fault::kill(&rooms, &pods[1])?)]))
    })
    .await?;
    rooms.close().await
}

#[tokio::test]
async fn a_source_that_is_killed_in_mid_drain_loses_nothing_acknowledged() -> Result<()> {
    let (rooms, pods) = three_pods("source-killed").await?;
    fault::under_load(&rooms, ROOMS, WRITES, async |_| {
        let before = rooms.ledger.len();
        rooms.delete_pod(&pods[0].name).await?;
        in_mid_drain(&rooms, before).await?;
        Ok(Killed::from([(pods[0].name.clone(), fault::kill(&rooms, &pods[0])?)]))
    })
    .await?;
    rooms.close().await
}

#[tokio::test]
async fn without_the_store_the_source_serves_on_and_says_why() -> Result<()> {
    let (rooms, pods) = three_pods("no-store").await?;
    let source = &pods[0];
    fault::under_load(&rooms, ROOMS, WRITES, async |_| {
        let theirs = rooms.view.servers().into_iter().filter(|server| server.pod == source.name);
        let theirs: Vec<String> = theirs.map(|server| server.name).collect();
        let stopped = rooms.cluster.stop_process("s3").await?;
        rooms.delete_pod(&source.name).await?;
        let begun = Instant::now();
        for room in theirs.iter().cycle() {
            let answer = rooms.get(&format!("/{room}/count")).await?;
            let said = String::from_utf8_lossy(answer.body());
            ensure!(answer.status() == 200, "{room} after {:?}: {} {said}", begun.elapsed(), answer.status());
            if begun.elapsed() > SERVES_ON {
                break;
            }
        }
        let why = until("the drain says what blocks it", DRAIN, async || {
            let drain = rooms.view.handoffs().into_iter().find(|handoff| handoff.source == source.name);
            Ok(drain.map(|drain| drain.status.blocked_by).filter(|why| !why.is_empty()))
        })
        .await?;
        ensure!(why.to_lowercase().contains("store"), "blocked by `{why}`");
        gone(&rooms, source).await?;
        drop(stopped);
        Ok(BTreeMap::new())
    })
    .await?;
    rooms.close().await
}
