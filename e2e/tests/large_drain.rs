//! One pod with a thousand servers is emptied.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, Store};
use e2e::metrics::StoreOps;
use e2e::report::{self, Limit};
use e2e::rooms::Rooms;
use e2e::view::Pod;
use e2e::wait::until;
use e2e::{figures, process};
use serde_json::json;

const ROOMS: usize = 1_000;
const DRAIN: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_thousand_servers_move_in_seconds_with_two_writes_each() -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    // No periodic sync: what is written while we count is written by the drain.
    let rooms = Rooms::start(&cluster, "drain", 1, json!({ "sync": { "interval": "10m" } })).await?;
    let idle = rooms.agents_peak(&rooms.ready_pods(1).await?)?;
    rooms.create(ROOMS, 4096).await?;
    let source = rooms.ready_pods(1).await?;
    rooms.scale(2).await?;
    let both = rooms.ready_pods(2).await?;
    rooms.order(&source).await?;

    let metrics = cluster.store.metrics;
    let before = StoreOps::count(metrics).await?;
    let agents = both.iter().map(|pod| Ok(rooms.processes(pod)?.0.pid)).collect::<Result<Vec<_>>>()?;
    let ((), peak) = tokio::try_join!(rooms.scale(1), peak_until_drained(&rooms, &source[0], &agents))?;
    rooms.all_running(ROOMS, DRAIN).await?;
    let ops = (StoreOps::count(metrics).await? - before).per(ROOMS);
    let drain = rooms.drain_nanos(&source[0].name).context("the pod was never told to end, or never ended to serve")?;
    let handoffs = rooms.view.handoffs();
    let status = &handoffs.last().context("no Handoff")?.status;
    ensure!(status.phase == "Complete" && status.moved == ROOMS, "{status:?}");
    ensure!(rooms.ledger.overlaps(&BTreeMap::new()).await.is_empty(), "served by two at once");

    report::write(
        "drain",
        &json!({
            "servers": ROOMS, "drain_s": figures::millis(drain) / 1e3, "store_ops_per_handoff": ops,
            "agent_mib": { "idle": idle, "drain": peak },
        }),
    )?;
    report::check(&[
        Limit::time("drain of 1,000 servers (s)", Some(figures::millis(drain) / 1e3), 5.0),
        Limit::count("PUT a handoff", ops.put, 2.05),
        Limit::count("GET a handoff", ops.get, 0.0),
        Limit::count("LIST a handoff", ops.list, 0.0),
        Limit::count("memory of an agent in the drain (MiB)", peak, 96.0),
        Limit::count("memory of an agent without servers (MiB)", idle, 24.0),
    ])?;
    rooms.close().await
}

/// The most memory (MiB) of any of these agents, until the pod has handed off everything.
async fn peak_until_drained(rooms: &Rooms, source: &Pod, agents: &[u32]) -> Result<f64> {
    let mut peak = 0;
    until("the pod serves nobody", DRAIN, async || {
        // An agent that has ended can no longer be asked; what it had until then counts.
        peak = agents.iter().filter_map(|pid| process::peak_memory(*pid).ok()).fold(peak, u64::max);
        let here = rooms.view.servers().iter().any(|server| server.pod == source.name);
        Ok((!here).then_some(()))
    })
    .await?;
    Ok(f64::from(u32::try_from(peak)?) / 1024.0)
}
