//! The operator: watches and sessions send events to one task that owns the [`world`]; its decisions come out as effects,
//! which others carry out. No call to the API server is on the path of a placement or a handoff.
//!
//! ```text
//!  watch, session ──events──► driver (owns the world) ──effects──► session, writer, notes
//!                              │      └──looks, while someone does──► page
//!                              └─ ownership, plan, directory, drains, status: pure
//! ```

pub mod admission;
pub mod alarms;
pub mod args;
pub mod certificates;
pub mod check;
pub mod crashes;
pub mod directory;
pub mod drains;
pub mod driver;
pub mod finalizers;
pub mod foretell;
pub mod http;
pub mod leader;
pub mod metrics;
pub mod model;
pub mod notes;
pub mod ownership;
pub mod page;
pub mod plan;
pub mod read;
pub mod session;
pub mod status;
pub mod watch;
pub mod world;
pub mod writer;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch as watch_channel},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    args::Args,
    certificates::{Certificates, peers},
    driver::Edges,
    foretell::Ask,
    leader::{Candidate, KubeLeases, Leadership, Lost},
    model::Event,
    page::Lens,
    session::{Sessions, TokenReviews},
    world::World,
    writer::Kubernetes,
};

/// Events that wait for the world. Whoever sends more waits.
const EVENTS: usize = 4_096;
/// Events for people that wait to be published.
const NOTES: usize = 256;

/// Its ports are free again within this time after the tasks that had them were told to end.
const PORTS_FREE: Duration = Duration::from_secs(5);
const TRY_PORT_EVERY: Duration = Duration::from_millis(50);

/// Runs the operator until `stop`, or until a part of it fails. One that has lost the lead begins anew, with nothing of what it
/// knew: if it ended instead, the kubelet would start it later each time, up to five minutes, and after a few hiccups of the API
/// server nobody would lead.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    loop {
        match run_once(args.clone(), stop.child_token()).await {
            Err(error) if error.is::<Lost>() && !stop.is_cancelled() => tracing::warn!(%error, "begins anew"),
            ended => return ended,
        }
    }
}

async fn run_once(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let _ends_with_us = stop.clone().drop_guard();
    let sessions = listen_at(args.session_address).await.context("the address for sessions cannot be used")?;
    let http = listen_at(args.http_address).await.context("the address for health cannot be used")?;
    let webhook = webhook_listener(&args).await?;
    let client = Client::try_default().await.context("no access to the API server")?;
    let ready = Arc::new(AtomicBool::new(false));
    let (lens, page) = page::new(stop.clone());
    let mut candidate = candidate(&client, &args);
    let (asking, asks) = foretell::new(candidate.leadership());
    let routes = http::routes(ready.clone(), page, asking);
    let health = tokio::spawn(http::serve(routes, http, stop.clone()));

    let mut tasks = JoinSet::new();
    let certificates = Arc::new(certificates::of(&client, &args).await.context("no certificates")?);
    tasks.spawn(certificates.clone().keep());
    let authority = authority(&client, &args, &certificates, &mut tasks).await?;
    let tls = certificates.server_config(&["h2"]).context("no TLS for sessions")?;
    let sessions = listen::accept::tls(sessions, Arc::new(tls), session::newcomers());
    let admitted = admission::spawn(&client, &args, webhook, certificates, &mut tasks, &stop);
    let (events, incoming) = mpsc::channel(EVENTS);
    let reviews = Arc::new(TokenReviews::new(client.clone(), args.audience.clone()));
    let reviewed = Sessions::new(reviews, events.clone(), candidate.leadership());
    let served = tokio::spawn(session::serve(reviewed, sessions, stop.clone()));
    let (namespaces, writes_costs, stops) = (args.watch_namespaces, args.pod_deletion_cost, stop.clone());
    let turn = Turn { client, namespaces, writes_costs, events, incoming, authority, ready, lens, asks, stop: stops };

    let ended = tokio::select! {
        ended = turn.lead(&mut candidate) => ended,
        ended = served => ended?.context("sessions cannot be served"),
        ended = health => ended?.context("health cannot be served"),
        ended = admitted => ended?.context("the webhook cannot be served"),
        ended = first_end(&mut tasks, &stop) => ended,
    };
    candidate.release().await;
    ended
}

/// Who signs the agents' certificates.
async fn authority(
    client: &Client,
    args: &Args,
    own: &Arc<Certificates>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Arc<Certificates>> {
    let apart = certificates::of_peers(client, args).await.context("no authority for agents")?.map(Arc::new);
    if let Some(apart) = &apart {
        tasks.spawn(apart.clone().keep());
    }
    Ok(apart.unwrap_or_else(|| own.clone()))
}

fn candidate(client: &Client, args: &Args) -> Candidate {
    let leases = KubeLeases::new(Api::default_namespaced(client.clone()), args.lease.clone());
    // A container that is restarted is another candidate than the one before it.
    let me = format!("{}_{:08x}", args.pod, rand::random::<u32>());
    Candidate::new(Arc::new(leases), me, SocketAddr::new(args.pod_ip, args.session_address.port()))
}

/// What the replica that leads does.
struct Turn {
    client: Client,
    namespaces: Vec<String>,
    writes_costs: bool,
    events: mpsc::Sender<Event>,
    incoming: mpsc::Receiver<Event>,
    authority: Arc<Certificates>,
    ready: Arc<AtomicBool>,
    lens: Lens,
    asks: mpsc::Receiver<Ask>,
    stop: CancellationToken,
}

impl Turn {
    /// Waits until this replica leads, and then decides for as long as it does.
    async fn lead(self, candidate: &mut Candidate) -> anyhow::Result<()> {
        let leadership = candidate.leadership();
        tokio::select! {
            () = candidate.acquire() => {}
            () = stand_by(leadership, &self.ready) => {}
            () = self.stop.cancelled() => return Ok(()),
        }
        self.ready.store(false, Ordering::Relaxed);
        let world = World::new(cluster_id(&self.client).await?, numbers_begin()).with_costs(self.writes_costs);
        let (writes, to_write) = mpsc::unbounded_channel();
        let (notes, to_publish) = mpsc::channel(NOTES);
        let mut tasks = JoinSet::new();
        watch::spawn(&self.client, &self.namespaces, &self.events, &mut tasks);
        tasks.spawn(writer::run(Arc::new(Kubernetes::new(self.client.clone())), to_write, self.events));
        tasks.spawn(notes::run(self.client, to_publish));
        let (certificates, requests) = peers::requests();
        tasks.spawn(peers::issue_all(self.authority, requests));
        let leads_until = candidate.leads_until();
        let (until, ready, lens, asks) = (leads_until.clone(), self.ready, self.lens, self.asks);
        let edges = Edges { writes, notes, certificates, ready, lens, asks, leads_until };
        let driven = tokio::spawn(driver::run(world, self.incoming, edges, self.stop.clone()));
        let ended = tokio::select! {
            ended = driven => ended.context("the deciding task failed"),
            ended = first_end(&mut tasks, &self.stop) => ended,
            lost = candidate.hold() => Err(lost.into()),
        };
        // The deciding task sees first that its time is over, and all others end with it.
        let is_over = until.borrow().is_none_or(|until| Instant::now() >= until);
        if is_over && !self.stop.is_cancelled() { Err(Lost::Late.into()) } else { ended }
    }
}

/// A replica that waits is as good as one that leads, to the webhook's Service. Never ends.
async fn stand_by(mut leadership: watch_channel::Receiver<Leadership>, ready: &AtomicBool) {
    if leadership.wait_for(|leadership| matches!(leadership, Leadership::Other(_))).await.is_ok() {
        ready.store(true, Ordering::Relaxed);
    }
    std::future::pending::<()>().await;
}

/// None of these ends before the operator does.
async fn first_end(tasks: &mut JoinSet<()>, stop: &CancellationToken) -> anyhow::Result<()> {
    if let Some(ended) = tasks.join_next().await {
        ended.context("a watching or writing task failed")?;
    }
    if stop.is_cancelled() { Ok(()) } else { anyhow::bail!("a watching or writing task ended") }
}

async fn webhook_listener(args: &Args) -> anyhow::Result<Option<std::net::TcpListener>> {
    if args.webhook.webhook_configuration.is_none() {
        return Ok(None);
    }
    let bound = listen_at(args.webhook.webhook_address).await.and_then(TcpListener::into_std);
    bound.map(Some).context("the address for the webhook cannot be used")
}

async fn listen_at(address: SocketAddr) -> std::io::Result<TcpListener> {
    let begun = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < PORTS_FREE => {
                sleep(TRY_PORT_EVERY).await;
            }
            bound => return bound,
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
