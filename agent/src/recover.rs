//! Watching the host, and making good after it, or this agent, was restarted.

use std::{io::ErrorKind, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use handoff::{
    Sequence, adopt,
    log::{Authority, Header},
    source::Final,
};
use store::{AppendError, Body, Draft, Log, ReadError};
use tokio::{
    net::UnixStream,
    time::{self, Instant},
};
use wire::session::gone::How;

use crate::{
    agent::{APPEND, Agent, HOST_CALL},
    host::{HostError, Listed, ListedPhase},
    problem::Problem,
    servers::Phase,
    session::tell_status,
};

/// Between two looks at the host.
const LOOK: Duration = Duration::from_millis(500);

/// Leftovers frozen at once. Nobody waits for their answers but the end of a lease, so one that hangs must not hold up the rest.
const FREEZES: usize = 64;

/// A host that nobody listens for has this long to come back, and to have its servers again in this pod; then they are
/// given up, since a container that crashes often is started again only after minutes.
const DEAD: Duration = Duration::from_millis(1500);

/// Between two tries to release what was left.
const AGAIN: Duration = Duration::from_secs(1);

/// At once when the host is not there yet: a pod is Ready sooner.
const LOOK_FIRST: Duration = Duration::from_millis(50);

/// Watches the host, for ever. A host that is another process than before has none of its servers.
pub async fn watch_host(agent: Arc<Agent>) {
    let mut dead_since = None;
    loop {
        let known = agent.described.borrow().as_ref().map(|host| host.instance);
        match agent.host.describe(HOST_CALL).await {
            Ok(host) => {
                dead_since = None;
                let restarted = agent.host_instance(host.instance);
                if known != Some(host.instance) {
                    tracing::info!(instance = host.instance, types = host.types.len(), "host answers");
                }
                let news = agent.described.send_if_modified(|described| {
                    let changed = described.as_ref() != Some(&host);
                    *described = Some(host);
                    changed
                });
                // First, so that the operator may give this pod what it has just lost.
                if news {
                    tell_status(&agent);
                }
                if restarted {
                    lost(&agent, "the host was restarted");
                }
            }
            Err(error) => {
                if known.is_some() {
                    tracing::warn!(%error, "host does not answer");
                }
                agent.host_problem.send_replace(Problem::from(&error));
                agent.described.send_if_modified(|described| described.take().is_some());
                if listens(&agent).await {
                    dead_since = None;
                } else if dead_since.get_or_insert_with(Instant::now).elapsed() >= DEAD {
                    lost(&agent, "the host is gone");
                }
            }
        }
        let absent = agent.described.borrow().is_none();
        time::sleep(if absent { LOOK_FIRST } else { LOOK }).await;
    }
}

/// Whether any process listens for the host: the kernel itself refuses connections to the socket of one that is gone.
pub(crate) async fn listens(agent: &Agent) -> bool {
    let connected = UnixStream::connect(agent.config.host_socket()).await;
    !connected.is_err_and(|error| matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

/// The host process that ran these servers is gone, and they with it. Nobody serves them at these epochs again.
fn lost(agent: &Arc<Agent>, why: &'static str) {
    for server in agent.servers.all() {
        let agent = agent.clone();
        tokio::spawn(async move {
            let _turn = server.turn.lock().await;
            if agent.servers.get(&server.id.uid).is_some() && server.phase() == Phase::Active {
                agent.gone(&server, How::Crashed, why, None);
            }
        });
    }
}

/// What the host still ran from an earlier run, or an earlier lease, of this agent, frozen.
pub struct Leftover {
    server: Listed,
    last: Result<Final<Bytes>, HostError>,
}

/// At the end of a lease: nothing that this agent does not hold may serve, so that its inventory is true.
pub async fn freeze_leftovers(agent: &Arc<Agent>) -> Vec<Leftover> {
    let listed = list(agent).await;
    freeze(agent, listed).await
}

/// All that the host has, once it says so.
pub(crate) async fn list(agent: &Arc<Agent>) -> Vec<Listed> {
    loop {
        match agent.host.list(HOST_CALL).await {
            Ok(listed) => return listed,
            Err(error) => tracing::error!(%error, "the host does not list its servers"),
        }
        time::sleep(LOOK).await;
    }
}

/// Ends these.
pub(crate) async fn freeze(agent: &Arc<Agent>, listed: Vec<Listed>) -> Vec<Leftover> {
    let freeze = |server: Listed| async move {
        let attempt = agent.next_attempt();
        let last = agent.host.freeze(&server.uid, server.epoch, attempt, None, HOST_CALL).await;
        Leftover { server, last }
    };
    stream::iter(listed).map(freeze).buffer_unordered(FREEZES).collect().await
}

/// Once the store is known: what was left is released with its state, so that it is started again from there.
pub async fn release_leftovers(agent: Arc<Agent>, leftovers: Vec<Leftover>) {
    if agent.pool.subscribe().wait_for(Option::is_some).await.is_err() {
        return;
    }
    let mut left = leftovers;
    loop {
        let mut again = Vec::new();
        for leftover in left {
            again.extend(release(&agent, leftover).await);
        }
        if again.is_empty() {
            return;
        }
        left = again;
        time::sleep(AGAIN).await;
    }
}

/// Returns what is to be tried again. The lease may have ended because the store is down: then this state is all that there
/// is of what came last.
async fn release(agent: &Arc<Agent>, leftover: Leftover) -> Option<Leftover> {
    let server = &leftover.server;
    match write(agent, &leftover).await {
        Ok(()) => tracing::info!(server = server.server, epoch = server.epoch.0, "released what an earlier agent had"),
        Err(error) if is_of_store(&error) => {
            tracing::warn!(server = server.server, error = format!("{error:#}"), "leftover server waits");
            return Some(leftover);
        }
        Err(error) => {
            tracing::error!(server = server.server, error = format!("{error:#}"), "leftover server not released");
        }
    }
    let stopped = agent.host.stop(&server.uid, server.epoch, agent.next_attempt(), HOST_CALL).await;
    if let Err(error) = stopped {
        tracing::error!(server = server.server, %error, "leftover server not stopped");
    }
    None
}

/// Whether this may pass. What the log says does not.
fn is_of_store(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ReadError::Store(_)))
        || matches!(error.downcast_ref(), Some(AppendError::Unavailable(_)))
}

async fn write(agent: &Arc<Agent>, Leftover { server: listed, last }: &Leftover) -> anyhow::Result<()> {
    if listed.phase == ListedPhase::Standby {
        return Ok(());
    }
    let pool = agent.pool().map_err(anyhow::Error::msg)?;
    let log = agent.open_log(&pool, &listed.id())?;
    let newest = log.read_newest(Sequence::NONE).await?.map(|newest| newest.header);
    let Some(newest) = newest.filter(|newest| newest.epoch == listed.epoch) else {
        anyhow::bail!("the log is of another epoch");
    };
    let last = last.as_ref().map_err(|error| anyhow::anyhow!("the host did not give its last state: {error}"))?;
    append_last(agent, &log, listed, &newest, last.clone()).await
}

async fn append_last(
    agent: &Arc<Agent>,
    log: &Log,
    listed: &Listed,
    newest: &Header,
    last: Final<Bytes>,
) -> anyhow::Result<()> {
    let granted = newest.grantee().map(|grantee| grantee.handoff);
    let body = match last {
        Final::State(state) => Body::State(store::State { version: state.version, body: state.body }),
        Final::Unchanged(_) => Body::At { sequence: newest.state_at, version: newest.state_version },
    };
    let kind = adopt::last(newest, listed.phase);
    let draft = Draft { epoch: listed.epoch, kind, writer: agent.lease.writer(), body };
    let authority = Authority::Owner { epoch: listed.epoch, granted };
    log.append(&authority, draft, newest.sequence, Instant::now() + APPEND).await?;
    Ok(())
}
