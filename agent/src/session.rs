//! The session with the operator: opened by this agent, begun with all that it holds, opened again whenever it ends.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use failpoint::reach;
use handoff::{Epoch, PodUid, ServerUid, drain, lease::Heartbeat};
use tokio::time::{self, Instant};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, metadata::MetadataValue};
use wire::session::{self, from_agent, operator_client::OperatorClient, to_agent};

use crate::{
    agent::{Agent, StandingPlan, Target},
    dial,
    draining::{self, Trigger},
    routes::{DirectoryEntry, DirectoryUpdate},
    store_setup,
};

/// Between two tries to reach the operator: the first, doubled up to the last, less up to half of it at random.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Of the status message; the operator judges a session by the connection's own keep-alive.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Pods of a plan to which connections are made ahead.
const AHEAD: usize = 64;

/// The largest message from the operator: a chunk of the directory is far below it.
const MAX_MESSAGE: usize = 4 << 20;

/// Keeps a session open, for ever.
pub async fn run(agent: Arc<Agent>) {
    let mut wait = RETRY.0;
    let mut leader = None;
    loop {
        let opened = Instant::now();
        let ended = session(&agent, leader).await;
        agent.operator.close();
        // What one replica says of another is followed once: it may be wrong, and then the Service knows better.
        let told = ended.as_ref().err().and_then(|error| dial::leader(error.downcast_ref()?));
        let follow = told.filter(|_| leader.is_none());
        leader = follow;
        match ended {
            Ok(()) => tracing::info!("session ended"),
            Err(_) if follow.is_some() => continue,
            Err(error) => tracing::warn!(error = format!("{error:#}"), "no session"),
        }
        wait = if opened.elapsed() > RETRY.1 { RETRY.0 } else { (wait * 2).min(RETRY.1) };
        time::sleep(wait.mul_f64(1.0 - rand::random::<f64>() / 2.0)).await;
    }
}

async fn session(agent: &Arc<Agent>, leader: Option<SocketAddr>) -> anyhow::Result<()> {
    let generation = agent.lease.next().await;
    let token = tokio::fs::read_to_string(&agent.config.token)
        .await
        .with_context(|| format!("the token {} cannot be read", agent.config.token.display()))?;
    let channel = dial::connect(&agent.config, leader).await?;
    let mut client = OperatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let messages = agent.operator.open(|| from_agent::Body::Hello(hello(agent)));
    let mut request = Request::new(UnboundedReceiverStream::new(messages));
    let bearer =
        MetadataValue::try_from(format!("Bearer {}", token.trim())).context("the token is not a header value")?;
    request.metadata_mut().insert("authorization", bearer);
    let mut orders = client.session(request).await.context("the operator refused the session")?.into_inner();
    if let Some(report) = agent.draining.report() {
        agent.operator.tell(from_agent::Body::Drain(report));
    }
    let opened = Instant::now();
    let mut every = time::interval(STATUS_EVERY);
    let mut directory = Vec::new();
    loop {
        tokio::select! {
            order = orders.message() => match order.context("the session broke")? {
                Some(order) => obey(agent, order, &mut directory)?,
                None => return Ok(()),
            },
            _ = every.tick() => {
                status(agent, agent.lease.beat());
                reach("session: heartbeat sent");
                if let Some(request) = agent.credentials.to_ask(opened) {
                    agent.operator.tell(from_agent::Body::Certificate(request));
                }
            }
            () = agent.lease.ended(generation) => return Ok(()),
        }
    }
}

/// Tells the operator how this agent is.
pub fn tell_status(agent: &Arc<Agent>) {
    status(agent, None);
}

fn status(agent: &Arc<Agent>, beat: Option<(Heartbeat, Duration)>) {
    let host_ready = agent.described.borrow().is_some();
    let problem = if host_ready { agent.problem.borrow().clone() } else { agent.host_problem.borrow().clone() };
    agent.operator.tell(from_agent::Body::Status(session::Status {
        host_ready,
        draining: agent.draining.is_draining(),
        types: host_types(agent),
        reason: problem.word().to_owned(),
        problem: problem.message,
        directory_version: agent.routes.version(),
        heartbeat: beat.map(|(heartbeat, _)| heartbeat.into()),
        lease_ms: beat.map_or(0, |(_, lease)| millis(lease)),
    }));
}

fn host_types(agent: &Arc<Agent>) -> Vec<session::HostType> {
    let described = agent.described.borrow();
    let types = described.iter().flat_map(|host| &host.types);
    types
        .map(|kind| session::HostType {
            name: kind.name.clone(),
            state_version: kind.state_version,
            loads: kind.loads.clone(),
        })
        .collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn hello(agent: &Arc<Agent>) -> session::Hello {
    let (beat, counts) = (agent.lease.beat(), millis(agent.lease.counts()));
    // Before the inventory: one that is started in between is in both, and never in neither.
    let starting = agent.starting.all().into_iter().map(|uid| uid.0).collect();
    session::Hello {
        starting,
        protocol: wire::PROTOCOL,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        peer_address: agent.peer_address().to_string(),
        gateway_address: agent.gateway_address().to_string(),
        types: host_types(agent),
        draining: agent.draining.is_draining(),
        inventory: agent.servers.all().iter().map(|server| server.report()).collect::<Vec<_>>(),
        heartbeat: beat.map(|(heartbeat, _)| heartbeat.into()),
        // One that goes on from an earlier run may have been told of a longer lease than the pool has now.
        lease_ms: agent.pool.borrow().as_ref().and(beat).map_or(0, |(_, lease)| millis(lease)).max(counts),
    }
}

type Chunks = Vec<DirectoryEntry>;

fn obey(agent: &Arc<Agent>, order: session::ToAgent, chunks: &mut Chunks) -> anyhow::Result<()> {
    match order.body {
        Some(to_agent::Body::Welcome(welcome)) => {
            if welcome.protocol.abs_diff(wire::PROTOCOL) > 1 {
                bail!("the operator speaks protocol {}, this agent {}", welcome.protocol, wire::PROTOCOL);
            }
            if welcome.pod_uid != agent.lease.pod().0 {
                bail!("the token {} is of another pod, {}", agent.config.token.display(), welcome.pod_uid);
            }
            tracing::info!(cluster = welcome.cluster_id, "session open");
            if let Some(settings) = welcome.settings {
                store_setup::settings(agent, &settings, Some(welcome.cluster_id));
            }
            heard(agent, welcome.heard);
        }
        Some(to_agent::Body::Settings(settings)) => store_setup::settings(agent, &settings, None),
        Some(to_agent::Body::Assign(assign)) => crate::start::assigned(agent, assign),
        Some(to_agent::Body::Plan(plan)) => {
            let plan = standing_plan(plan);
            make_ahead(agent, &plan);
            agent.plan.send_replace(Some(plan));
        }
        Some(to_agent::Body::Move(order)) => crate::moves::ordered(agent, order),
        Some(to_agent::Body::Drain(order)) => {
            tracing::info!(reason = order.reason, "the operator orders a drain");
            draining::begin(agent, Trigger::Operator);
        }
        Some(to_agent::Body::Directory(update)) => apply_directory(agent, update, chunks),
        Some(to_agent::Body::Bury(order)) => crate::bury::ordered(agent, order),
        Some(to_agent::Body::Stop(stop)) => crate::release::ordered(agent, stop),
        Some(to_agent::Body::Certificate(issued)) => match agent.credentials.install(&issued) {
            Ok(()) => tracing::info!("a new certificate for peers is in use"),
            Err(problem) => tracing::warn!(%problem, "no new certificate for peers"),
        },
        Some(to_agent::Body::DrainSeen(_)) => agent.draining.was_seen(),
        Some(to_agent::Body::Heard(heartbeat)) => heard(agent, Some(heartbeat)),
        None => {}
    }
    Ok(())
}

fn heard(agent: &Arc<Agent>, heartbeat: Option<session::Heartbeat>) {
    if let Some(heartbeat) = heartbeat {
        reach("session: heartbeat answered");
        agent.lease.answered(heartbeat.into());
    }
}

/// The first directory of a session comes in chunks, the last of which says `complete`; what follows are changes.
fn apply_directory(agent: &Arc<Agent>, update: session::Directory, chunks: &mut Chunks) {
    let entries = update.entries.into_iter().map(|entry| DirectoryEntry {
        name: entry.name,
        uid: ServerUid(entry.uid),
        epoch: Epoch(entry.epoch),
        pod_uid: PodUid(entry.pod_uid),
        gateway: entry.gateway_address.parse().ok(),
    });
    if update.complete {
        let mut all = std::mem::take(chunks);
        all.extend(entries);
        agent.routes.apply(DirectoryUpdate {
            version: update.version,
            complete: true,
            entries: all,
            removed: Vec::new(),
        });
    } else if update.partial {
        chunks.extend(entries);
    } else {
        let entries = entries.collect();
        agent.routes.apply(DirectoryUpdate {
            version: update.version,
            complete: false,
            entries,
            removed: update.removed,
        });
    }
}

/// Makes the connections on which requests will follow servers to these pods: TLS handshakes are nothing to wait for then.
fn make_ahead(agent: &Arc<Agent>, plan: &StandingPlan) {
    for target in plan.targets.values().take(AHEAD) {
        let (gateway, address, pod) = (agent.gateway.clone(), target.gateway, target.pod.clone());
        tokio::spawn(async move { gateway.make_ahead(address, &pod).await });
    }
}

fn standing_plan(plan: session::Plan) -> StandingPlan {
    let mut targets = HashMap::new();
    let mut candidates = Vec::new();
    for target in plan.targets {
        let Some(reached) = Target::of(&target) else { continue };
        candidates.push(drain::Candidate {
            pod: reached.pod.clone(),
            newest: target.newest,
            deletion_cost: target.deletion_cost,
            far: target.far,
            load: target.load,
            capacity: target.capacity,
        });
        targets.insert(reached.pod.clone(), reached);
    }
    StandingPlan { plan: drain::Plan { candidates, more_expected: plan.more_expected }, targets, at: Instant::now() }
}
