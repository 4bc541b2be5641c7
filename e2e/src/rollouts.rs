//! Every way in which servers go to other pods though nothing breaks, one after another under load, and what clients notice.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Node, Pod as PodObject};
use kube::api::{Api, EvictParams, Patch, PatchParams};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::cluster::{Cluster, Store};
use crate::report::{self, Limit};
use crate::rollout::{self, Figures};
use crate::rooms::Rooms;
use crate::view::Pod;
use crate::wait::until;

const PODS: usize = 4;
const WRITES: u32 = 200;
const STATE: usize = 4096;
const SERVERS: usize = 240;
/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_mins(2);
/// Between a pod that is ready and the end of the one that it replaces: the time in which servers move ahead.
const WINDOW_SECONDS: i32 = 8;
const BLUE: &str = "rooms";
const GREEN: &str = "rooms-green";
const ACTIVE: &str = "active";
const SET: &str = "rooms-set";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Workload {
    Deployment,
    StatefulSet,
}

/// A way to go.
struct Way {
    name: &'static str,
    /// What makes the pods.
    workload: Workload,
    /// Of the pool's spec.
    pool: Value,
    /// Moves of each server, at most.
    hops: f64,
    run: for<'a> fn(&'a Rooms) -> LocalBoxFuture<'a, Result<()>>,
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
}

fn ways() -> Vec<Way> {
    let ahead = json!({ "handoffOnShutdown": { "ahead": true } });
    let even = json!({ "placement": { "rebalance": true } });
    let way =
        |name, pool: &Value, hops, run| Way { name, workload: Workload::Deployment, pool: pool.clone(), hops, run };
    vec![
        way("rolling restart", &json!({}), 1.05, |rooms| restarted(rooms).boxed_local()),
        way("rolling restart, ahead", &ahead, 1.05, |rooms| ahead_of_restart(rooms).boxed_local()),
        Way {
            workload: Workload::StatefulSet,
            ..way("rolling update of a StatefulSet", &json!({}), 1.4, |rooms| updated(rooms).boxed_local())
        },
        way("scaled down and up, rebalanced", &even, 1.1, |rooms| scaled(rooms).boxed_local()),
        way("a node drained by evictions", &json!({}), 1.0, |rooms| evicted(rooms).boxed_local()),
        way("a pod drained by annotation", &json!({}), 0.3, |rooms| annotated(rooms).boxed_local()),
        way("a node cordoned, ahead", &ahead, 0.8, |rooms| cordoned(rooms).boxed_local()),
        way("blue-green", &json!({ "activeService": ACTIVE }), 1.0, |rooms| flipped(rooms).boxed_local()),
        way("blue-green, and back in mid-move", &json!({ "activeService": ACTIVE }), 2.0, |rooms| {
            flipped_back(rooms).boxed_local()
        }),
    ]
}

/// Goes each way whose name contains `only`, prints the table, and writes `target/figures/rollouts.json`. Fails if a request
/// failed, something was lost or served twice, or servers moved more often than they should.
pub async fn run(only: &str) -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for way in ways().into_iter().filter(|way| way.name.contains(only)) {
        let name = way.name;
        let row = way.go(&cluster).await.with_context(|| name.to_owned())?;
        println!("{}", line(&row));
        limits.extend(report::nothing_lost(name, &row.figures));
        limits.push(Limit::count(&format!("{name}: moves a server"), row.figures.hops_per_server, way.hops));
        limits.push(Limit::time(&format!("{name}: gap, median (ms)"), row.figures.gap_ms.p50, 10.0));
        rows.push(row);
    }
    println!("\n{}\n", table(&rows));
    report::write("rollouts", &rows)?;
    report::check(&limits)
}

impl Way {
    async fn go(&self, cluster: &Cluster) -> Result<Row> {
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
        point(&rooms, "blue").await?;
        match self.workload {
            Workload::Deployment => rooms.scale(i32::try_from(PODS)?).await?,
            Workload::StatefulSet => make_set(&rooms).await?,
        }
        rooms.create(SERVERS, STATE).await?;
        let run = rollout::observe(&rooms, SERVERS, WRITES, false, (self.run)(&rooms)).await?;
        report::failures(&run.failures);
        for overlap in run.overlaps.iter().take(5) {
            println!("  {overlap:?}");
        }
        let row = Row { way: self.name, figures: run.figures, fullest: fullest(&rooms) };
        rooms.close().await?;
        Ok(row)
    }
}

/// Servers of the fullest pod, as a multiple of an even part of what there is.
#[allow(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^53")]
fn fullest(rooms: &Rooms) -> f64 {
    let servers = rooms.view.servers();
    let held = |pod: &Pod| servers.iter().filter(|server| server.pod == pod.name).count();
    let loads: Vec<usize> = rooms.view.pods().iter().map(held).filter(|load| *load > 0).collect();
    let most = loads.iter().copied().max().unwrap_or_default() as f64;
    most * loads.len() as f64 / servers.len().max(1) as f64
}

async fn restarted(rooms: &Rooms) -> Result<()> {
    rooms.restart().await
}

/// What moves, moves before any pod is told to end.
async fn ahead_of_restart(rooms: &Rooms) -> Result<()> {
    rooms.change(json!({ "minReadySeconds": WINDOW_SECONDS })).await?;
    let before = rooms.view.handoffs().len();
    rooms.restart().await?;
    let drains = rooms.view.handoffs();
    let late: usize = drains.iter().skip(before).map(|drain| drain.status.total).sum();
    ensure!(late * 10 <= SERVERS, "{late} of {SERVERS} servers moved only when their pods were told to end");
    Ok(())
}

/// What the pods' Deployment is.
async fn spec(rooms: &Rooms) -> Result<Value> {
    let api: Api<Deployment> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    Ok(serde_json::to_value(api.get(BLUE).await?.spec.context("a Deployment without a spec")?)?)
}

/// The same pods, of a `StatefulSet`.
async fn make_set(rooms: &Rooms) -> Result<()> {
    let spec = spec(rooms).await?;
    let object = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": SET },
        "spec": {
            "replicas": PODS, "serviceName": BLUE, "podManagementPolicy": "Parallel",
            "selector": spec["selector"], "template": spec["template"],
        },
    });
    rooms.cluster.apply(&rooms.namespace, object).await?;
    rooms.ready_pods(PODS).await?;
    Ok(())
}

async fn updated(rooms: &Rooms) -> Result<()> {
    let api: Api<StatefulSet> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    let again = json!({ "spec": { "template": { "metadata": { "annotations": { "again": "yes" } } } } });
    let generation = api.patch(SET, &PatchParams::default(), &Patch::Merge(again)).await?.metadata.generation;
    until("every pod of the set is new", LIMIT, async || {
        let status = api.get(SET).await?.status.context("a set without a status")?;
        let all = i32::try_from(PODS)?;
        let seen = status.observed_generation >= generation && status.current_revision == status.update_revision;
        Ok((seen && status.ready_replicas == Some(all)).then_some(()))
    })
    .await
}

/// What half of the pods had goes to the other half, and half of that back.
async fn scaled(rooms: &Rooms) -> Result<()> {
    for pods in [PODS / 2, PODS] {
        rooms.scale(i32::try_from(pods)?).await?;
        rooms.ready_pods(pods).await?;
    }
    until("no pod has much more than its part", LIMIT, async || Ok((fullest(rooms) <= 1.15).then_some(()))).await
}

/// As `kubectl drain` does it: no pod is evicted that a budget protects, and refused ones are tried again.
async fn evicted(rooms: &Rooms) -> Result<()> {
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": BLUE },
        "spec": { "minAvailable": PODS - 1, "selector": { "matchLabels": { "app": BLUE } } },
    });
    rooms.cluster.apply(&rooms.namespace, budget).await?;
    let pods = rooms.ready_pods(PODS).await?;
    let node = pods.first().context("no pod")?.node.clone();
    cordon(rooms, &node, true).await?;
    let api: Api<PodObject> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    let drained = until("all pods of the node are evicted", LIMIT, async || {
        let left: Vec<Pod> = rooms.view.pods().into_iter().filter(|pod| pod.node == node).collect();
        for pod in left.iter().filter(|pod| !pod.terminating) {
            match api.evict(&pod.name, &EvictParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 429 => {}
                other => drop(other?),
            }
        }
        Ok(left.is_empty().then_some(()))
    })
    .await;
    cordon(rooms, &node, false).await?;
    drained
}

async fn annotated(rooms: &Rooms) -> Result<()> {
    let pods = rooms.ready_pods(PODS).await?;
    let pod = pods.first().context("no pod")?;
    annotate(rooms, pod, Some("true")).await?;
    emptied(rooms, |held| held == pod.name).await?;
    annotate(rooms, pod, None).await
}

pub(crate) async fn annotate(rooms: &Rooms, pod: &Pod, value: Option<&str>) -> Result<()> {
    let api: Api<PodObject> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    let patch = json!({ "metadata": { "annotations": { "durableserver.io/drain": value } } });
    api.patch(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

async fn cordoned(rooms: &Rooms) -> Result<()> {
    let pods = rooms.ready_pods(PODS).await?;
    let node = pods.first().context("no pod")?.node.clone();
    cordon(rooms, &node, true).await?;
    let there: Vec<String> = pods.into_iter().filter(|pod| pod.node == node).map(|pod| pod.name).collect();
    let left = emptied(rooms, |held| there.iter().any(|pod| pod == held)).await;
    cordon(rooms, &node, false).await?;
    left
}

pub(crate) async fn cordon(rooms: &Rooms, node: &str, cordoned: bool) -> Result<()> {
    let api: Api<Node> = Api::all(rooms.cluster.client.clone());
    let patch = json!({ "spec": { "unschedulable": cordoned } });
    api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

async fn flipped(rooms: &Rooms) -> Result<()> {
    green(rooms).await?;
    point(rooms, "green").await?;
    emptied(rooms, |pod| !pod.starts_with(GREEN)).await
}

async fn flipped_back(rooms: &Rooms) -> Result<()> {
    green(rooms).await?;
    point(rooms, "green").await?;
    until("half of them are green", LIMIT, async || {
        let green = rooms.view.servers().iter().filter(|server| server.pod.starts_with(GREEN)).count();
        Ok((green * 2 >= SERVERS).then_some(()))
    })
    .await?;
    point(rooms, "blue").await?;
    emptied(rooms, |pod| pod.starts_with(GREEN)).await
}

/// The same pods once more, of another colour. Ready, and without a server while the Service leads elsewhere.
async fn green(rooms: &Rooms) -> Result<()> {
    let spec = spec(rooms).await?;
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": GREEN }, "spec": spec,
    });
    object["spec"]["selector"]["matchLabels"]["colour"] = json!("green");
    object["spec"]["template"]["metadata"]["labels"]["colour"] = json!("green");
    rooms.cluster.apply(&rooms.namespace, object).await?;
    rooms.ready_pods(2 * PODS).await?;
    sleep(Duration::from_secs(1)).await;
    let early = rooms.view.servers().iter().filter(|server| server.pod.starts_with(GREEN)).count();
    ensure!(early == 0, "{early} servers are in preview pods");
    Ok(())
}

/// Points the Service that the pool follows at pods of this colour.
async fn point(rooms: &Rooms, colour: &str) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": ACTIVE },
        "spec": { "selector": { "colour": colour }, "ports": [{ "port": 80 }] },
    });
    rooms.cluster.apply(&rooms.namespace, service).await?;
    Ok(())
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
        "{:<36}{:>8}{:>7}{:>10}{:>22}{:>10}{:>8}{:>7}{:>11}",
        "way", "servers", "moves", "fullest", "gap p50/max ms (n)", "requests", "failed", "twice", "acked lost"
    );
    report::listed(head, rows.iter().map(line))
}

fn line(Row { way, figures, fullest }: &Row) -> String {
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1}"));
    let gaps = format!("{} / {} ({})", time(figures.gap_ms.p50), time(figures.gap_ms.max), figures.gap_ms.n);
    format!(
        "{way:<36}{:>8}{:>7.2}{fullest:>10.2}{gaps:>22}{:>10}{:>8}{:>7}{:>11}",
        figures.servers,
        figures.hops_per_server,
        figures.requests,
        figures.failed_requests,
        figures.double_served,
        figures.acked_lost
    )
}
