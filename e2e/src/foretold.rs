//! What the operator says would happen, against what then does.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;

use crate::cluster::{Cluster, Store};
use crate::http;
use crate::rollouts::emptied;
use crate::rollouts::nodes::cordon;
use crate::rooms::Rooms;
use crate::view::{Pod, Server};
use crate::wait::until;

const PODS: usize = 4;
const SERVERS: usize = 120;
const STATE: usize = 1024;
const SENT: usize = 5;
const MOVE: &str = "durableserver.io/move";
/// The operator's port for health, metrics, the page and plans.
const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_mins(2);
/// Of pods that do not exist yet.
const NEXT: &str = "next";

/// How many servers go from where to where.
type Counts = BTreeMap<(String, String), usize>;

/// The operator's answer.
#[derive(Debug, Deserialize)]
struct Plan {
    moves: Vec<Departure>,
    stays: Vec<Stay>,
    #[serde(default)]
    servers: Vec<Sent>,
}

#[derive(Debug, Deserialize)]
struct Departure {
    from: String,
    to: Vec<Arrival>,
}

#[derive(Debug, Deserialize)]
struct Arrival {
    pod: Option<String>,
    revision: String,
    servers: usize,
}

#[derive(Debug, Deserialize)]
struct Stay {
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Sent {
    name: String,
    to: String,
}

impl Plan {
    async fn ask(rooms: &Rooms, question: &str) -> Result<Self> {
        let leader = rooms.cluster.leader().await?;
        let address = (leader.address.parse::<std::net::IpAddr>()?, PORT).into();
        let path = format!("/plan?pool={}/rooms&{question}", rooms.namespace);
        let plan: Self = serde_json::from_slice(&http::get(address, &path, PATIENCE).await?)?;
        let reasons: Vec<&String> = plan.stays.iter().map(|stay| &stay.reason).collect();
        ensure!(reasons.is_empty(), "every server here can move, but {question}: {reasons:?}");
        Ok(plan)
    }

    /// By pod, or by revision where pods do not exist yet.
    fn counts(&self) -> Counts {
        let of = |arrival: &Arrival| arrival.pod.clone().unwrap_or_else(|| arrival.revision.clone());
        let arrivals = self.moves.iter().flat_map(|departure| departure.to.iter().map(move |to| (departure, to)));
        arrivals.map(|(departure, to)| ((departure.from.clone(), of(to)), to.servers)).collect()
    }
}

/// Asks, does it, and compares; one thing after another, each from where the one before has left things.
pub async fn run() -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    let ahead = json!({ "handoffOnShutdown": { "ahead": true } });
    let rooms = Rooms::start(&cluster, "foretold", i32::try_from(PODS)?, ahead).await?;
    rooms.ready_pods(PODS).await?;
    rooms.create(SERVERS, STATE).await?;
    drained(&rooms).await.context("a pod drained by annotation")?;
    sent(&rooms).await.context("servers that are sent")?;
    cordoned(&rooms).await.context("a node cordoned, ahead")?;
    restarted(&rooms).await.context("a rolling restart")?;
    rooms.close().await
}

async fn drained(rooms: &Rooms) -> Result<()> {
    let pod = fullest(rooms).await?;
    let told = Plan::ask(rooms, &format!("drain={}", pod.name)).await?;
    let before = places(rooms).await?;
    rooms.annotate(&pod, json!({ "durableserver.io/drain": "true" })).await?;
    emptied(rooms, |held| held == pod.name).await?;
    let after = places(rooms).await?;
    rooms.annotate(&pod, json!({ "durableserver.io/drain": null })).await?;
    compare("drain of a pod", &told.counts(), &moved(&before, &after))
}

async fn sent(rooms: &Rooms) -> Result<()> {
    let pod = fullest(rooms).await?;
    let before = places(rooms).await?;
    let names: Vec<&str> =
        before.iter().filter(|(_, held)| **held == pod.name).map(|(name, _)| name.as_str()).take(SENT).collect();
    let told = Plan::ask(rooms, &format!("move={}&to=best", names.join(","))).await?;
    ensure!(told.servers.len() == SENT, "{SENT} servers were asked for: {told:?}");
    wish(rooms, &told, true).await?;
    until("they are where they were sent", LIMIT, async || {
        let there = |sent: &Sent, servers: &[Server]| {
            servers.iter().any(|server| server.name == sent.name && server.pod == sent.to && server.phase == "Running")
        };
        let servers = rooms.view.servers();
        Ok(told.servers.iter().all(|sent| there(sent, &servers)).then_some(()))
    })
    .await?;
    let after = places(rooms).await?;
    wish(rooms, &told, false).await?;
    compare("move of servers", &told.counts(), &moved(&before, &after))
}

/// Writes for each server where it is to be, or takes that away.
async fn wish(rooms: &Rooms, told: &Plan, on: bool) -> Result<()> {
    let written = stream::iter(&told.servers).map(|sent| {
        let patch = json!({ "metadata": { "annotations": { MOVE: on.then_some(&sent.to) } } });
        rooms.cluster.merge(&rooms.namespace, "DurableServer", &sent.name, patch)
    });
    written.buffer_unordered(SENT).try_collect().await
}

async fn cordoned(rooms: &Rooms) -> Result<()> {
    let node = fullest(rooms).await?.node;
    let there: Vec<String> =
        rooms.ready_pods(PODS).await?.into_iter().filter(|pod| pod.node == node).map(|pod| pod.name).collect();
    ensure!(there.len() < PODS, "all pods are on one node");
    let told = Plan::ask(rooms, &format!("node={node}")).await?;
    let before = places(rooms).await?;
    cordon(rooms, &node, true).await?;
    let left = emptied(rooms, |held| there.iter().any(|pod| pod == held)).await;
    let after = places(rooms).await;
    cordon(rooms, &node, false).await?;
    left?;
    compare("cordon of a node", &told.counts(), &moved(&before, &after?))
}

async fn restarted(rooms: &Rooms) -> Result<()> {
    let told = Plan::ask(rooms, "rollout").await?;
    let before = places(rooms).await?;
    let old: Vec<String> = rooms.view.pods().into_iter().map(|pod| pod.revision).collect();
    rooms.restart().await?;
    let after = places(rooms).await?;
    let pods = rooms.view.pods();
    // Of pods that are new, the revision alone was told.
    let revision = |name: &String| {
        let is_new = pods.iter().any(|pod| pod.name == *name && !old.contains(&pod.revision));
        if is_new { NEXT.to_owned() } else { name.clone() }
    };
    let after = after.into_iter().map(|(server, pod)| (server, revision(&pod))).collect();
    compare("rolling restart", &told.counts(), &moved(&before, &after))
}

/// The pod with most servers.
async fn fullest(rooms: &Rooms) -> Result<Pod> {
    let places = places(rooms).await?;
    let load = |pod: &Pod| places.values().filter(|held| **held == pod.name).count();
    rooms.ready_pods(PODS).await?.into_iter().max_by_key(load).context("no pod")
}

/// The pod of each server, once all of them run.
async fn places(rooms: &Rooms) -> Result<BTreeMap<String, String>> {
    rooms.all_running(SERVERS, LIMIT).await?;
    Ok(rooms.view.servers().into_iter().map(|server| (server.name, server.pod)).collect())
}

fn moved(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Counts {
    let mut counts = Counts::new();
    for (server, from) in before {
        let to = after.get(server).cloned().unwrap_or_default();
        if to != *from {
            *counts.entry((from.clone(), to)).or_default() += 1;
        }
    }
    counts
}

fn compare(what: &str, told: &Counts, happened: &Counts) -> Result<()> {
    ensure!(!told.is_empty(), "{what}: nothing was foretold");
    ensure!(told == happened, "{what}:\nforetold {told:#?}\nhappened {happened:#?}");
    println!("{what}: {} servers moved as foretold", told.values().sum::<usize>());
    Ok(())
}
