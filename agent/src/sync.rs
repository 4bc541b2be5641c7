//! Writing snapshots of servers that changed: periodically, and when a host asks.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use handoff::{
    Epoch, ServerUid,
    log::{Authority, Kind},
    source::State,
};
use store::{AppendError, Body, Draft};
use tokio::time::{self, Instant};
use wire::session::{from_agent, gone::How};

use crate::{
    agent::{Agent, HOST_CALL},
    host::Snapshot,
    servers::{Phase, Server, next_sync},
};

/// How often servers are looked at for a due sync.
const LOOK: Duration = Duration::from_millis(500);

/// Why a state is not in the store.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Not held here.
    #[error("server {0} is not held by this pod")]
    NotHere(ServerUid),
    /// Held, but not serving.
    #[error("server is not serving here now; try again")]
    NotActive,
    /// The host did not give its state.
    #[error("the host gave no snapshot: {0}")]
    Host(String),
    /// The store did not take it.
    #[error("the store did not take the record: {0}")]
    Store(String),
    /// Another pod owns the server.
    #[error("another pod owns the server now (epoch {0})")]
    Fenced(Epoch),
}

/// Syncs what is due, for ever.
pub async fn run(agent: Arc<Agent>) {
    let mut look = time::interval(LOOK);
    loop {
        look.tick().await;
        let Ok(pool) = agent.pool() else { continue };
        let interval = pool.settings.sync_interval;
        for server in agent.servers.all() {
            let held = server.held();
            if held.phase != Phase::Active || held.sync_due > Instant::now() {
                continue;
            }
            server.update(|held| held.sync_due = next_sync(interval));
            let Ok(turn) = agent.syncs.clone().acquire_owned().await else { return };
            let agent = agent.clone();
            tokio::spawn(async move {
                let _turn = turn;
                if let Err(error) = sync(&agent, &server).await {
                    tracing::warn!(server = %server.id, %error, "sync failed");
                }
            });
        }
    }
}

/// Makes sure that the state as of this call is in the store.
pub async fn sync_now(agent: &Arc<Agent>, uid: &ServerUid) -> Result<u64, SyncError> {
    let not_held = || if agent.starting.has(uid) { SyncError::NotActive } else { SyncError::NotHere(uid.clone()) };
    let server = agent.servers.get(uid).ok_or_else(not_held)?;
    match sync(agent, &server).await {
        // The state of this call went into a handoff, durably, while it waited for its turn.
        Err(SyncError::NotActive) if server.held().handed_off => Ok(server.held().sequence.0),
        result => result,
    }
}

/// Writes a snapshot if the host's state is not the one in the store. Returns the sequence that bears it.
pub async fn sync(agent: &Arc<Agent>, server: &Arc<Server>) -> Result<u64, SyncError> {
    let _turn = server.turn.lock().await;
    let held = server.held();
    if held.phase != Phase::Active || !held.durable {
        return Err(SyncError::NotActive);
    }
    let snapshot = agent
        .host
        .snapshot(&server.id.uid, held.epoch, held.synced, HOST_CALL)
        .await
        .map_err(|error| failed(agent, server, SyncError::Host(error.to_string())))?;
    let state: State<Bytes> = match snapshot {
        Snapshot::Unchanged(_) => {
            server.update(|held| {
                held.last_sync = Some(std::time::SystemTime::now());
                held.error = None;
            });
            mended(agent, server, held.error.as_ref());
            return Ok(held.state_at.0);
        }
        Snapshot::State(state) => state,
    };
    let draft = Draft {
        epoch: held.epoch,
        kind: Kind::Snapshot,
        writer: server.writer.clone(),
        body: Body::State(store::State { version: state.version, body: state.body.clone() }),
    };
    let authority = Authority::Owner { epoch: held.epoch, granted: held.granted };
    let written = server.log.append(&authority, draft, held.sequence, agent.lease.append_until()).await;
    agent.metrics.synced(written.is_ok());
    match written {
        // Another may have claimed the server before this was written: only a lease that is alive says that nobody did.
        Ok(_) if !agent.lease.holds(server.writer.generation) => Err(SyncError::NotActive),
        Ok(header) => {
            server.update(|held| held.state_bytes = state.body.len() as u64);
            server.wrote(&header, Some(state.mark));
            mended(agent, server, held.error.as_ref());
            Ok(header.sequence.0)
        }
        Err(AppendError::Fenced(header)) => {
            lost(agent, server, header.epoch).await;
            Err(SyncError::Fenced(header.epoch))
        }
        Err(error) => Err(failed(agent, server, SyncError::Store(error.to_string()))),
    }
}

/// Tells the operator that what it was told is over.
fn mended(agent: &Arc<Agent>, server: &Arc<Server>, error: Option<&String>) {
    if error.is_some() {
        agent.operator.tell(from_agent::Body::Held(server.report()));
    }
}

/// Tells the operator why the state is not in the store, unless it knows.
fn failed(agent: &Arc<Agent>, server: &Arc<Server>, error: SyncError) -> SyncError {
    let message = error.to_string();
    if server.held().error.as_ref() != Some(&message) {
        server.update(|held| held.error = Some(message));
        agent.operator.tell(from_agent::Body::Held(server.report()));
    }
    error
}

/// The log says that another owns this server: it must not be served here one moment longer.
pub async fn lost(agent: &Arc<Agent>, server: &Arc<Server>, to: Epoch) {
    agent.routes.hold(&server.id);
    let stopped = agent.host.stop(&server.id.uid, server.epoch(), agent.next_attempt(), HOST_CALL).await;
    if let Err(error) = stopped {
        tracing::error!(server = %server.id, %error, "a fenced server could not be stopped in the host");
    }
    agent.gone(server, How::Fenced, &format!("the log is at epoch {to}"), None);
}
