//! The main job: a rolling restart hands every server, live, to a ready pod.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, Store};
use e2e::figures::Spread;
use e2e::report::{self, Limit};
use e2e::rollout;
use e2e::rooms::Rooms;
use serde_json::json;

const ROOMS: usize = 300;
const WRITES: u32 = 200;

#[tokio::test]
async fn three_rolling_restarts_in_a_row_lose_nothing_and_fail_nobody() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let rooms = Rooms::start(&cluster, "rollout", 3, json!({})).await?;
    rooms.create(ROOMS, 4096).await?;
    let mut limits = Vec::new();
    let mut gaps = Vec::new();
    for restart in 1..=3 {
        let run = rollout::measure(&rooms, ROOMS, WRITES, false).await?;
        println!("{}", report::table(&[(&format!("restart {restart}"), &run.figures)]));
        report::failures(&run.failures);
        for handoff in &run.handoffs {
            ensure!(handoff.status.phase == "Complete", "{}: {:?}", handoff.name, handoff.status);
        }
        ensure!(run.handoffs.len() == 3, "{} drains of three pods", run.handoffs.len());
        ensure!(!rooms.ledger.is_empty(), "no host has reported to the ledger");
        limits.extend(report::nothing_lost(&format!("restart {restart}"), &run.figures));
        gaps.extend(run.gaps);
    }
    let gaps = Spread::of(gaps);
    limits.push(Limit::time("gap, median (ms)", gaps.p50, 10.0));
    report::check(&limits)?;
    rooms.close().await
}
