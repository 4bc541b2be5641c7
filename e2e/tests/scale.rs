//! Ten thousand servers in one apply, and what a rollout of many costs the API server.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::audit::Audit;
use e2e::cluster::{Cluster, OPERATOR, SYSTEM, Store};
use e2e::report::{self, Limit};
use e2e::rooms::Rooms;
use e2e::{figures, process};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

const SERVERS: usize = 10_000;
const PODS: usize = 4;
/// Moved by the rollout in which writes are counted.
const MOVED: usize = 1_000;

// Before the other test, whose servers the operator is still removing when it ends.
#[tokio::test]
async fn a_rollout_of_many_costs_few_writes() -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    let rooms = Rooms::start(&cluster, "writes", 1, quiet()).await?;
    rooms.create(MOVED, 0).await?;
    let audit = Audit::from_now(cluster.audit_log()?)?;
    rooms.restart().await?;
    let drained = Instant::now();
    rooms.all_running(MOVED, Duration::from_mins(1)).await?;
    let lag_s = drained.elapsed().as_secs_f64();
    let writes = audit.writes()?;
    let per_handoff = figures::ratio(writes.values().sum(), MOVED);
    println!("  writes of {MOVED} handoffs: {writes:?}");
    report::write(
        "writes",
        &json!({
            "moved": MOVED, "api_writes": writes, "api_writes_per_handoff": per_handoff, "status_lag_s": lag_s,
        }),
    )?;
    report::check(&[
        Limit::count("API server writes a handoff", per_handoff, 1.5),
        Limit::time("status after the last pod is gone (s)", Some(lag_s), 10.0),
    ])?;
    rooms.close().await
}

#[tokio::test]
async fn ten_thousand_servers_run_within_minutes() -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    // A fresh operator: its peak is of this test.
    cluster.restart(SYSTEM, OPERATOR).await?;
    let rooms = Rooms::start(&cluster, "scale", i32::try_from(PODS)?, quiet()).await?;
    let declared = Instant::now();
    rooms.create(SERVERS, 0).await?;
    let running_s = declared.elapsed().as_secs_f64();
    let memory_mib = operator_peak(&cluster).await?;
    report::write("scale", &json!({ "servers": SERVERS, "running_s": running_s, "operator_mib": memory_mib }))?;
    report::check(&[
        Limit::time("10,000 declared servers all Running (s)", Some(running_s), 180.0),
        Limit::count("memory of the operator with 10,000 servers (MiB)", memory_mib, 96.0),
    ])?;
    rooms.close().await
}

/// No periodic sync while the API server's work is counted.
fn quiet() -> Value {
    json!({ "sync": { "interval": "10m" } })
}

/// The most memory (MiB) that the operator has had.
async fn operator_peak(cluster: &Cluster) -> Result<f64> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), SYSTEM);
    let of_it = ListParams::default().labels("app.kubernetes.io/component=operator");
    let mut peak = 0;
    for pod in pods.list_metadata(&of_it).await?.items {
        let uid = pod.metadata.uid.context("a pod without a uid")?;
        for process in process::of_pod(&uid)? {
            peak = peak.max(process::peak_memory(process.pid)?);
        }
    }
    Ok(f64::from(u32::try_from(peak)?) / 1024.0)
}
