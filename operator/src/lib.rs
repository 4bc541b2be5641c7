//! The operator: watches and sessions send events to one task that owns the [`world`]; its decisions come out as effects,
//! which others carry out. No call to the API server is on the path of a placement or a handoff.
//!
//! ```text
//!  watch, session ──events──► driver (owns the world) ──effects──► session, writer, notes
//!                              │
//!                              └─ ownership, plan, directory, drains, status: pure
//! ```

pub mod args;
pub mod directory;
pub mod drains;
pub mod driver;
pub mod http;
pub mod metrics;
pub mod model;
pub mod notes;
pub mod ownership;
pub mod plan;
pub mod read;
pub mod session;
pub mod status;
pub mod watch;
pub mod world;
pub mod writer;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Args,
    driver::Edges,
    session::{Sessions, TokenReviews},
    world::World,
    writer::Kubernetes,
};

/// Events that wait for the world. Whoever sends more waits.
const EVENTS: usize = 4_096;
/// Events for people that wait to be published.
const NOTES: usize = 256;

/// Runs the operator until `stop`, or until a part of it fails.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let _ends_with_us = stop.clone().drop_guard();
    let sessions = TcpListener::bind(args.session_address).await.context("the address for sessions cannot be used")?;
    let http = TcpListener::bind(args.http_address).await.context("the address for health cannot be used")?;
    let client = Client::try_default().await.context("no access to the API server")?;
    let ready = Arc::new(AtomicBool::new(false));
    let health = tokio::spawn(http::serve(ready.clone(), http, stop.clone()));
    let world = World::new(cluster_id(&client).await?, numbers_begin());

    let (events, incoming) = mpsc::channel(EVENTS);
    let (writes, to_write) = mpsc::unbounded_channel();
    let (notes, to_publish) = mpsc::channel(NOTES);
    let mut tasks = JoinSet::new();
    watch::spawn(&client, &events, &mut tasks);
    tasks.spawn(writer::run(Arc::new(Kubernetes::new(client.clone())), to_write, events.clone()));
    tasks.spawn(notes::run(client.clone(), to_publish));
    let reviews = Arc::new(TokenReviews::new(client, args.audience));
    let served = tokio::spawn(session::serve(Sessions::new(reviews, events), sessions, stop.clone()));
    let driven = tokio::spawn(driver::run(world, incoming, Edges { writes, notes, ready }, stop.clone()));

    tokio::select! {
        ended = driven => ended.context("the deciding task failed"),
        ended = served => ended?.context("sessions cannot be served"),
        ended = health => ended?.context("health cannot be served"),
        Some(ended) = tasks.join_next() => {
            ended.context("a watching or writing task failed")?;
            if stop.is_cancelled() { Ok(()) } else { anyhow::bail!("a watching or writing task ended") }
        }
    }
}

/// The cluster's name: nothing else of a cluster is certain to be its own.
async fn cluster_id(client: &Client) -> anyhow::Result<String> {
    let namespace = Api::<Namespace>::all(client.clone()).get("kube-system").await;
    namespace.context("namespace kube-system cannot be read")?.metadata.uid.context("namespace kube-system has no uid")
}

/// Assignments, plans and directories of a restarted operator have higher numbers than those of its predecessor.
fn numbers_begin() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2) << 10
}
