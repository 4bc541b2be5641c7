//! `e2e demo`, `e2e bench` and `e2e faults`: see `make help`.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use e2e::casebook;
use e2e::chaos;
use e2e::cluster::{Cluster, Store};
use e2e::figures::Spread;
use e2e::metrics::Histograms;
use e2e::report::{self, Limit};
use e2e::rollout::{self, Figures, Rollout};
use e2e::rollouts;
use e2e::rooms::Rooms;
use serde_json::{Value, json};

const ROOMS: usize = 300;
const STATE: usize = 4096;
const PODS: i32 = 3;
const WRITES: u32 = 200;
/// The limits of the gap (milliseconds), and samples enough for them.
const GAP_P50: f64 = 10.0;
const GAP_P99: f64 = 50.0;
const GAPS_DIRECT: usize = 300;
const GAPS_STORE: usize = 100;
/// What is stopped cleanly is served elsewhere within this (milliseconds).
const RELEASED_P99: f64 = 300.0;
const GAPS_OFF: usize = 100;

#[derive(Debug, Parser)]
#[command(about = "A real cluster: shows and measures what a rolling restart does to durable servers")]
enum Command {
    /// Brings the cluster up with the product installed, and leaves it so.
    Up,
    /// A rolling restart in each mode, live, and the figures side by side.
    Demo,
    /// Rolling restarts until percentiles mean something.
    Bench,
    /// All that can go wrong, and what is seen of it.
    Faults,
    /// All ways in which servers go to other pods though nothing breaks, and what clients notice.
    Rollouts {
        /// Only ways whose names contain this.
        #[arg(default_value = "")]
        only: String,
        /// Restarts in a row while clients have sockets and streams.
        #[arg(long, default_value_t = 10)]
        restarts: u32,
    },
    /// What breaks without a word, and how servers come back.
    Chaos {
        /// Only faults whose names contain this.
        #[arg(default_value = "")]
        only: String,
        /// How many servers they happen to.
        #[arg(long, default_value_t = 60)]
        servers: usize,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse() {
        Command::Up => up().await,
        Command::Demo => demo().await,
        Command::Bench => bench().await,
        Command::Rollouts { only, restarts } => rollouts::run(&only, restarts).await,
        Command::Chaos { only, servers } => chaos::run(servers, chaos::Part::All, &only).await,
        Command::Faults => casebook::run(&Cluster::up(Store::Outside).await?, true).await,
    }
}

async fn up() -> Result<()> {
    let cluster = Cluster::up(Store::Embedded).await?;
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    Ok(())
}

/// What is set in the pool for a mode.
fn mode(name: &str) -> Value {
    let handoff = match name {
        "off" => json!({ "enabled": false, "transfer": null }),
        "store" => json!({ "enabled": true, "transfer": "Store" }),
        _ => json!({ "enabled": true, "transfer": "Direct" }),
    };
    // No periodic sync while we count: what is written then has the rollout for a cause, or a write that asked for it.
    json!({ "handoffOnShutdown": handoff, "sync": { "interval": "10m" } })
}

async fn rooms(name: &str) -> Result<Rooms> {
    let cluster = step("cluster and chart", Cluster::up(Store::Embedded)).await?;
    let rooms = step(&format!("{PODS} pods"), Rooms::start(&cluster, name, PODS, mode("direct"))).await?;
    step(&format!("{ROOMS} rooms of {STATE} bytes"), rooms.create(ROOMS, STATE)).await?;
    Ok(rooms)
}

async fn step<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let begun = Instant::now();
    let done = work.await?;
    println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(done)
}

async fn demo() -> Result<()> {
    let rooms = rooms("demo").await?;
    println!(
        "look yourself: kubectl --kubeconfig {} -n {} get handoffs -w",
        rooms.cluster.kubeconfig().display(),
        rooms.namespace
    );
    let mut runs = Vec::new();
    for name in ["direct", "store", "off"] {
        println!("\n{name}: kubectl rollout restart deployment/rooms");
        rooms.set_pool(mode(name)).await?;
        let run = rollout::measure(&rooms, ROOMS, WRITES, true).await?;
        explain(&run);
        if name == "direct" {
            println!("{}", report::stages(&run.stages));
        }
        runs.push((name, run.figures));
    }
    let columns: Vec<(&str, &Figures)> = runs.iter().map(|(name, figures)| (*name, figures)).collect();
    println!("\n{}\n", report::table(&columns));
    report::write("demo", &columns.iter().copied().collect::<BTreeMap<_, _>>())?;
    let mut limits = report::nothing_lost("direct", &runs[0].1);
    limits.push(Limit::time("direct: gap, median (ms)", runs[0].1.gap_ms.p50, GAP_P50));
    report::check(&limits)?;
    rooms.close().await
}

/// What went wrong, if something did.
fn explain(run: &Rollout) {
    report::failures(&run.failures);
    for overlap in run.overlaps.iter().take(5) {
        println!("  {overlap:?}");
    }
    for handoff in run.handoffs.iter().filter(|handoff| handoff.status.phase != "Complete") {
        println!("  {}: {:?}", handoff.name, handoff.status);
    }
}

/// Rollouts of one mode, together.
#[derive(Default)]
struct Series {
    gaps: Vec<u64>,
    runs: Vec<Figures>,
    stages: Histograms,
}

async fn series(rooms: &Rooms, name: &str, gaps: usize) -> Result<Series> {
    let mut series = Series::default();
    rooms.set_pool(mode(name)).await?;
    while series.gaps.len() < gaps {
        let run = rollout::measure(rooms, ROOMS, WRITES, false).await?;
        explain(&run);
        anyhow::ensure!(!run.gaps.is_empty(), "a rollout without a single gap: nothing moved");
        series.gaps.extend(run.gaps);
        let spread = Spread::of(series.gaps.clone());
        println!(
            "{name}: rollout {} of {:.1} s, gaps so far: {spread:?}",
            series.runs.len() + 1,
            run.figures.rollout_s
        );
        series.runs.push(run.figures);
        series.stages = std::mem::take(&mut series.stages).with(run.stages);
    }
    Ok(series)
}

async fn bench() -> Result<()> {
    let rooms = rooms("bench").await?;
    let direct = series(&rooms, "direct", GAPS_DIRECT).await?;
    let store = series(&rooms, "store", GAPS_STORE).await?;
    let off = series(&rooms, "off", GAPS_OFF).await?;
    let (fast, slow, stopped) = (Spread::of(direct.gaps), Spread::of(store.gaps), Spread::of(off.gaps));
    println!("\ngap, direct: {fast:?}\ngap, store:  {slow:?}\ngap, off:    {stopped:?}");
    println!("\n{}\n", report::stages(&direct.stages));
    report::write(
        "bench",
        &json!({
            "direct": { "gap_ms": fast, "rollouts": direct.runs },
            "store": { "gap_ms": slow, "rollouts": store.runs },
            "off": { "gap_ms": stopped, "rollouts": off.runs },
        }),
    )?;
    let mut limits: Vec<Limit> = direct.runs.iter().flat_map(|run| report::nothing_lost("direct", run)).collect();
    limits.retain(Limit::broken);
    limits.push(Limit::time("direct: gap, median (ms)", fast.p50, GAP_P50));
    limits.push(Limit::time("direct: gap, p99 (ms)", fast.p99, GAP_P99));
    limits.push(Limit::time(
        "direct: gap, p99, as a share of store's",
        fast.p99.zip(slow.p99).map(|(f, s)| f / s),
        0.2,
    ));
    limits.push(Limit::time(
        "off: from a clean Release to being served elsewhere, p99 (ms)",
        stopped.p99,
        RELEASED_P99,
    ));
    report::check(&limits)?;
    rooms.close().await
}
