//! Every way in which servers go to other pods though nothing breaks, one after another under load, and what clients notice.

mod colours;
pub(crate) mod nodes;
mod states;
mod workloads;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::{Cluster, Store};
use crate::report::{self, Limit};
use crate::rollout::{self, Figures};
use crate::rooms::Rooms;
use crate::sockets::{self, Clients};
use crate::wait::until;

const PODS: usize = 4;
const WRITES: u32 = 200;
/// While there are sockets and streams too.
const MORE_WRITES: u32 = 500;
/// Restarts in a row, while there are; fewer for every landing.
const RESTARTS: u32 = 10;
const FEW_RESTARTS: u32 = 2;
const STATE: usize = 4096;
/// So many servers are enough to see that something is wrong.
const FEW: usize = 240;
/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_mins(2);
/// What the fullest pod may have at the end where servers are evened out, of an even part.
const EVEN: f64 = 1.3;
const BLUE: &str = "rooms";
const ACTIVE: &str = "active";

/// How many servers to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// As many as the claims are made of.
    Whole,
    /// A few of them: for every landing.
    Few,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Workload {
    Deployment,
    StatefulSet,
}

type Run = for<'a> fn(&'a Rooms) -> LocalBoxFuture<'a, Result<()>>;

/// A way to go.
struct Way {
    name: &'static str,
    /// What makes the pods.
    workload: Workload,
    pods: usize,
    servers: usize,
    /// Of the pool's spec.
    pool: Value,
    /// Moves of each server on average, at most, each time.
    hops: f64,
    /// Moves of any one, at most, each time.
    most: usize,
    /// It is gone many times in a row, by clients with sockets and streams too.
    sockets: bool,
    run: Run,
}

/// One way, as it is written to `target/figures/rollouts.json`.
#[derive(Debug, Serialize)]
struct Row {
    /// How servers went.
    way: &'static str,
    /// What clients and the ledger saw.
    #[serde(flatten)]
    figures: Figures,
    /// Servers of the fullest pod, of an even part.
    fullest: f64,
    /// What became of sockets and streams, if there were any.
    #[serde(flatten)]
    sockets: Option<sockets::Figures>,
}

/// A way of few servers and pods, that moves each so often.
fn way(name: &'static str, pool: &Value, hops: f64, most: usize, run: Run) -> Way {
    let (workload, pool) = (Workload::Deployment, pool.clone());
    Way { name, workload, pods: PODS, servers: FEW, pool, hops, most, sockets: false, run }
}

fn ways() -> Vec<Way> {
    let none = json!({});
    let even = json!({ "placement": { "rebalance": true } });
    let ahead = json!({ "handoffOnShutdown": { "ahead": true } });
    let both = json!({ "handoffOnShutdown": { "ahead": true }, "placement": { "rebalance": true } });
    let follows = json!({ "activeService": ACTIVE });
    let large = |way: Way| Way { pods: 6, servers: 1200, ..way };
    let six_hundred = |way: Way| Way { servers: 600, ..way };
    vec![
        large(way("rolling restart", &even, 1.05, 2, |rooms| workloads::restarted(rooms).boxed_local())),
        large(way("rolling restart, ahead", &both, 1.05, 2, |rooms| workloads::ahead(rooms).boxed_local())),
        large(way("rolling restart, 25 % / 25 %", &even, 1.3, 3, |rooms| workloads::in_quarters(rooms).boxed_local())),
        way("two rolling restarts, overlapping", &none, 2.0, 4, |rooms| workloads::overlapping(rooms).boxed_local()),
        way("a rollout undone half-way", &none, 2.0, 4, |rooms| workloads::undone(rooms).boxed_local()),
        way("a rollout whose pods do not get ready", &ahead, 0.0, 0, |rooms| workloads::unready(rooms).boxed_local()),
        Way {
            workload: Workload::StatefulSet,
            ..way("rolling update of a StatefulSet", &none, 1.4, 2, |rooms| workloads::updated(rooms).boxed_local())
        },
        Way { pods: 6, ..way("scaled 6, 2, 6", &even, 1.6, 3, |rooms| workloads::scaled(rooms).boxed_local()) },
        way("a node drained by evictions", &none, 1.0, 1, |rooms| nodes::evicted(rooms).boxed_local()),
        way("both nodes, one after the other", &none, 1.6, 3, |rooms| nodes::both_evicted(rooms).boxed_local()),
        way("a pod drained by annotation", &none, 0.3, 1, |rooms| nodes::annotated(rooms).boxed_local()),
        way("a node cordoned, ahead", &ahead, 0.8, 1, |rooms| nodes::cordoned(rooms).boxed_local()),
        six_hundred(way("blue-green", &follows, 1.0, 1, |rooms| colours::flipped(rooms).boxed_local())),
        six_hundred(way("blue-green, and back in mid-move", &follows, 2.0, 2, |rooms| {
            colours::flipped_back(rooms).boxed_local()
        })),
        six_hundred(way("blue-green, the operator restarted", &follows, 1.0, 1, |rooms| {
            colours::flipped_without_operator(rooms).boxed_local()
        })),
        Way {
            sockets: true,
            ..way("sockets and streams, many restarts", &none, 1.05, 2, |rooms| rooms.restart().boxed_local())
        },
    ]
}

/// Goes each way whose name contains `only`, prints the table, and writes `target/figures/rollouts.json`. Fails if a request
/// failed, something was lost or served twice, or servers moved more often than they should.
pub async fn run(size: Size, only: &str) -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for way in ways().into_iter().filter(|way| way.name.contains(only)) {
        let row = way.go(&cluster, size).await.with_context(|| way.name.to_owned())?;
        println!("{}", line(&row));
        limits.extend(way.limits(&row, size));
        rows.push(row);
    }
    for absence in states::ALL.iter().filter(|absence| absence.name.contains(only)) {
        absence.go(&cluster).await.with_context(|| absence.name.to_owned())?;
        println!("{:<48}nothing lost, nothing failed before or after", absence.name);
    }
    if !rows.is_empty() {
        println!("\n{}\n", table(&rows));
        report::write("rollouts", &rows)?;
    }
    report::check(&limits)
}

impl Way {
    async fn go(&self, cluster: &Cluster, size: Size) -> Result<Row> {
        let servers = if size == Size::Few { self.servers.min(FEW) } else { self.servers };
        let rooms = Rooms::start(cluster, "rollouts", 0, self.pool.clone()).await?;
        // Small requests, so that both colours fit beside each other.
        let template = json!({
            "metadata": {
                "labels": { "colour": "blue" },
                "annotations": { "durableserver.io/agent-resources": r#"{"requests": {"cpu": "100m", "memory": "32Mi"}}"# },
            },
            "spec": { "containers": [{ "name": "rooms", "resources": { "requests": { "cpu": "100m" } } }] },
        });
        rooms.change(json!({ "template": template })).await?;
        colours::point(&rooms, "blue").await?;
        match self.workload {
            Workload::Deployment => rooms.scale(i32::try_from(self.pods)?).await?,
            Workload::StatefulSet => workloads::make_set(&rooms).await?,
        }
        rooms.create(servers, STATE).await?;
        let clients = if self.sockets { Some(Clients::start(rooms.service().await?)?) } else { None };
        let sends = async {
            for _ in 0..self.times(size) {
                (self.run)(&rooms).await?;
            }
            Ok(())
        };
        let writes = if self.sockets { MORE_WRITES } else { WRITES };
        let run = rollout::observe(&rooms, servers, writes, false, sends).await?;
        let sockets = match clients {
            Some(clients) => Some(clients.stop().await?),
            None => None,
        };
        report::failures(&run.failures);
        for overlap in run.overlaps.iter().take(5) {
            println!("  {overlap:?}");
        }
        let row = Row { way: self.name, figures: run.figures, fullest: fullest(&rooms, false), sockets };
        rooms.close().await?;
        Ok(row)
    }

    fn times(&self, size: Size) -> u32 {
        match size {
            _ if !self.sockets => 1,
            Size::Whole => RESTARTS,
            Size::Few => FEW_RESTARTS,
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^53")]
    fn limits(&self, row: &Row, size: Size) -> Vec<Limit> {
        let (name, figures, times) = (self.name, &row.figures, self.times(size));
        let (hops, most) = (self.hops * f64::from(times), self.most as f64 * f64::from(times));
        let mut limits = report::nothing_lost(name, figures);
        limits.push(Limit::count(&format!("{name}: moves a server"), figures.hops_per_server, hops));
        limits.push(Limit::count(&format!("{name}: moves of one server"), figures.most_hops as f64, most));
        limits.push(Limit::time(&format!("{name}: gap, median (ms)"), figures.gap_ms.p50, 10.0));
        if self.pool["placement"]["rebalance"] == true {
            limits.push(Limit::count(&format!("{name}: servers of the fullest pod"), row.fullest, EVEN));
        }
        limits.extend(row.sockets.iter().flat_map(|sockets| sockets.limits(name)));
        limits
    }
}

/// Servers of the fullest pod, as a multiple of an even part of what there is; of all pods, or of those that have any.
#[allow(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^53")]
fn fullest(rooms: &Rooms, of_all: bool) -> f64 {
    let servers = rooms.view.servers();
    let mut loads = BTreeMap::<String, usize>::new();
    if of_all {
        loads.extend(rooms.view.pods().into_iter().map(|pod| (pod.name, 0)));
    }
    for server in &servers {
        *loads.entry(server.pod.clone()).or_default() += 1;
    }
    let most = loads.values().copied().max().unwrap_or_default() as f64;
    most * loads.len() as f64 / servers.len().max(1) as f64
}

/// Waits until no server is in such pods.
pub(crate) async fn emptied(rooms: &Rooms, is_left: impl Fn(&str) -> bool) -> Result<()> {
    until("all servers have moved", LIMIT, async || {
        let left = rooms.view.servers().iter().filter(|server| is_left(&server.pod)).count();
        Ok((left == 0).then_some(()))
    })
    .await
}

fn table(rows: &[Row]) -> String {
    let head = format!(
        "{:<40}{:>8}{:>7}{:>6}{:>10}{:>22}{:>10}{:>8}{:>7}{:>11}",
        "way", "servers", "moves", "most", "fullest", "gap p50/max ms (n)", "requests", "failed", "twice", "acked lost"
    );
    report::listed(head, rows.iter().map(line))
}

fn line(Row { way, figures, fullest, sockets }: &Row) -> String {
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1}"));
    let gaps = format!("{} / {} ({})", time(figures.gap_ms.p50), time(figures.gap_ms.max), figures.gap_ms.n);
    let row = format!(
        "{way:<40}{:>8}{:>7.2}{:>6}{fullest:>10.2}{gaps:>22}{:>10}{:>8}{:>7}{:>11}",
        figures.servers,
        figures.hops_per_server,
        figures.most_hops,
        figures.requests,
        figures.failed_requests,
        figures.double_served,
        figures.acked_lost
    );
    match sockets {
        Some(sockets) => format!("{row}\n  {sockets}"),
        None => row,
    }
}
