//! `durable-agent`: see the library for what it does; this file only starts and ends it.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use agent::{
    adopt,
    agent::{Agent, half_of_the_cores},
    check_host, cleanup,
    config::{Config, GRACE_MARGIN},
    credentials::Credentials,
    draining::{self, ENDPOINTS_CHANGE, Trigger},
    gateway::{Gateway, Identity, Limits},
    hooks,
    host::HostClient,
    lease,
    metrics::Metrics,
    peer, recover,
    routes::Routes,
    session, socket, store_tool, sync,
};
use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches};
use handoff::PodUid;
use tokio::{
    net::{TcpListener, TcpSocket, UnixListener},
    runtime,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
    time::{self, Instant},
};
use wire::identity::PodIdentity;

/// The largest state until the pool's settings say otherwise, bytes.
const MAX_STATE: u64 = 64 << 20;

/// For answers under way when clients were asked to move on, or when the time is over.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// After the drain, requests that come by a Service that has not noticed yet are still passed on: this long after
/// the last of them, the pod may go. Endpoints take up to about a second to change on every node.
const QUIET: Duration = Duration::from_millis(1500);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The word after which a host is checked, and nothing else done.
const CHECK_HOST: &str = "check-host";
/// The word after which a store is looked at or tidied up, and nothing else done.
const STORE: &str = "store";

/// Each wake-up of another thread is one more turn on the core in the middle of a gap. Of 300 gaps on two cores, as the agents
/// measured them, 99 of 100 were below 37 ms with a thread for each core, and below 20, 30 and 19 ms with one for both.
fn main() -> anyhow::Result<ExitCode> {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(half_of_the_cores()).enable_all().build();
    runtime.context("threads")?.block_on(start())
}

async fn start() -> anyhow::Result<ExitCode> {
    let checking = check_host::Options::augment_args(clap::Command::new(CHECK_HOST))
        .about("Checks that a host keeps the contract, and explains where it does not");
    let tidying = store_tool::Options::augment_args(clap::Command::new(STORE))
        .about("Looks at servers' logs, deletes those that are left over, and restores older states");
    let given = Config::command().subcommands([checking, tidying]).subcommand_negates_reqs(true).get_matches();
    match given.subcommand() {
        Some((CHECK_HOST, given)) => return Ok(check(&check_host::Options::from_arg_matches(given)?).await),
        Some((STORE, given)) => {
            store_tool::run(&store_tool::Options::from_arg_matches(given)?, |line| println!("{line}")).await?;
        }
        _ => run(Config::from_arg_matches(&given)?).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(options: &check_host::Options) -> ExitCode {
    if check_host::run(options, |outcome| println!("{outcome}")).await {
        println!("this host keeps the contract");
        ExitCode::SUCCESS
    } else {
        println!("this host does not keep the contract: see FAIL above");
        ExitCode::FAILURE
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    init_logs();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;
    let me = PodUid(config.pod_uid.clone());
    let metrics = Metrics::new().context("metrics")?;
    let routes = Routes::new(me);
    let host = HostClient::new(&config.host_socket(), MAX_STATE);
    let identity = Identity {
        pod: config.pod.clone(),
        pod_uid: PodUid(config.pod_uid.clone()),
        address: SocketAddr::new(config.pod_ip, config.gateway_port),
    };
    let credentials = Credentials::new(PodIdentity {
        namespace: config.namespace.clone(),
        pool: config.pool.clone(),
        pod_uid: PodUid(config.pod_uid.clone()),
    })?;
    let gateway =
        Gateway::new(identity, Limits::default(), credentials.clone(), routes.clone(), host.clone(), metrics.clone());
    let agent = Agent::new(config, credentials, routes, gateway, host, metrics);
    // The volume outlives containers: an earlier run of this agent left its socket there.
    let is_first_run = !agent.config.agent_socket().exists();
    let gateway = listen(&agent)?;
    tokio::spawn(lease::keep(agent.clone()));
    tokio::spawn(lease::tell_host(agent.clone()));
    tokio::spawn(recover::watch_host(agent.clone()));
    tokio::spawn(begin(agent.clone(), is_first_run));
    tokio::spawn(sync::run(agent.clone()));
    tokio::spawn(cleanup::run(agent.clone()));
    tokio::spawn(cleanup::sweep(agent.clone()));
    terminated().await?;
    end(&agent, gateway).await;
    Ok(())
}

fn init_logs() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
}

/// Listens on everything. The gateway's task ends after its shutdown, when the last answer is out.
fn listen(agent: &Arc<Agent>) -> anyhow::Result<JoinHandle<()>> {
    let config = &agent.config;
    let gateway = bind(config.bind, config.gateway_port)?;
    let serving = agent.clone();
    let served = tokio::spawn(async move { serving.gateway.serve(gateway).await });
    let peers = bind(config.bind, config.peer_port)?;
    tokio::spawn(peer::serve(agent.clone(), peers));
    let hooks = bind(config.bind, config.hook_port)?;
    tokio::spawn(hooks::serve(agent.clone(), hooks));
    let socket = bind_socket(&config.agent_socket())?;
    tokio::spawn(axum::serve(socket, socket::router(agent.clone())).into_future());
    Ok(served)
}

/// Connections that the kernel may have ready for us. The standard library's 128 on musl are fewer than the clients that
/// come at once when a server that many wait for has moved; those over it lose their SYN, for a second.
const BACKLOG: u32 = 4096;

fn bind(ip: IpAddr, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(ip, port);
    let listen = || {
        let socket = if ip.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("{address} cannot be listened on"))
}

/// Both containers of the pod run as users of their own, hence the mode.
fn bind_socket(path: &Path) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("an old {} cannot be removed", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("{} cannot be listened on", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
        .with_context(|| format!("the mode of {} cannot be set", path.display()))?;
    Ok(listener)
}

/// The first inventory must be true. No host has servers before any agent ran, so a first run says at once what is wrong
/// with its host; a later one waits until the host has answered and what it still has was seen to.
async fn begin(agent: Arc<Agent>, is_first_run: bool) {
    if !is_first_run {
        let mut described = agent.described.subscribe();
        if described.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let leftovers = adopt::take_up(&agent).await;
        tokio::spawn(recover::release_leftovers(agent.clone(), leftovers));
    }
    session::run(agent).await;
}

async fn terminated() -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// The drain, then requests until none come, then out.
async fn end(agent: &Arc<Agent>, gateway: JoinHandle<()>) {
    let latest = Instant::now() + agent.config.grace().saturating_sub(GRACE_MARGIN);
    draining::begin(agent, Trigger::Sigterm);
    agent.draining.finished().await;
    time::sleep_until((agent.draining.began() + ENDPOINTS_CHANGE + LAST_ANSWERS).min(latest)).await;
    let quiet = || {
        let last = agent.gateway.last_request();
        agent.gateway.in_flight() == 0 && last.is_none_or(|last| last.elapsed() >= QUIET)
    };
    while Instant::now() < latest && !quiet() {
        time::sleep(Duration::from_millis(50)).await;
    }
    agent.gateway.shutdown();
    let _ = time::timeout_at(latest + LAST_ANSWERS, gateway).await;
    tracing::info!("agent ends");
}
