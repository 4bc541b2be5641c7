//! Stopping a server gracefully: freeze, write its last state as a Release, stop.

use std::sync::Arc;

use bytes::Bytes;
use failpoint::reach;
use handoff::{
    Epoch,
    log::{Authority, Kind},
    source::{Final, State},
};
use hyper::StatusCode;
use store::{AppendError, Body, Draft};
use tokio::time::{self, Instant};
use wire::session::{self, gone::How};

use crate::{
    agent::{Agent, HOST_CALL},
    bury,
    host::HostError,
    recover::listens,
    servers::{Phase, Server, server_id},
};

/// How long an ordered stop keeps trying to write the last state.
const ORDERED: time::Duration = time::Duration::from_secs(30);

/// What the host gets for a call even if the time is over.
const LAST_CALL: time::Duration = time::Duration::from_secs(1);

/// Between two tries of a Release that the store did not take.
const RETRY: time::Duration = time::Duration::from_millis(250);

/// Stops a server for good, here. `true`: its last state is in the store. Ends by `until`, then without.
/// `last` is what its log ends with: a Release, or a Tombstone, over which nobody claims.
pub async fn release(agent: &Arc<Agent>, server: &Arc<Server>, reason: &str, until: Instant, last: Kind) -> bool {
    let _turn = server.turn.lock().await;
    let held = server.held();
    if held.phase != Phase::Active || agent.servers.get(&server.id.uid).is_none() {
        return true;
    }
    server.update(|held| held.phase = Phase::Stopping);
    agent.routes.hold(&server.id);
    let frozen = freeze(agent, server, until).await;
    let froze = frozen.is_ok();
    reach("release: frozen");
    // One that did not answer is not waited for a second time.
    let patience = if froze { HOST_CALL } else { LAST_CALL };
    let written = match frozen {
        Ok(state) => write(server, state, until, last).await,
        Err(error) => Err(format!("the host did not give its last state: {error}")),
    };
    let stopped = agent.host.stop(&server.id.uid, held.epoch, agent.next_attempt(), patience).await;
    if let Err(error) = &stopped {
        tracing::warn!(server = %server.id, %error, "the host did not stop a released server");
    }
    match &written {
        Ok(How::Released) => server.update(|held| held.handed_off = true),
        Ok(_) => {}
        Err(error) => tracing::error!(server = %server.id, %error, "a server stopped without its last state written"),
    }
    if !froze && stopped.is_err() {
        disclaim(agent, server, written.err().unwrap_or_default());
        return false;
    }
    agent.gone(
        server,
        *written.as_ref().unwrap_or(&How::Disclaimed),
        written.as_ref().err().map_or(reason, |e| e),
        None,
    );
    written.is_ok()
}

/// Returns once the host certainly does not serve this server, and never will: it said so, or is gone. What it was asked and did
/// not answer it may still do, once it goes on. `false`: the lease was over first, and all of this with it.
pub(crate) async fn stopped(agent: &Arc<Agent>, server: &Arc<Server>) -> bool {
    while agent.lease.holds(server.writer.generation) {
        match agent.host.stop(&server.id.uid, server.epoch(), agent.next_attempt(), HOST_CALL).await {
            Ok(()) | Err(HostError::Refused { status: StatusCode::PRECONDITION_FAILED, .. }) => return true,
            Err(_) if !listens(agent).await => return true,
            Err(error) => {
                tracing::error!(server = %server.id, %error, "the host may still run a server that is given up");
            }
        }
        time::sleep(RETRY).await;
    }
    false
}

/// Gives a server up that the host may be serving still: on the operator's hearing of it, it is started elsewhere, so that must
/// not come before it is certainly over.
pub(crate) fn disclaim(agent: &Arc<Agent>, server: &Arc<Server>, reason: String) {
    server.update(|held| held.phase = Phase::Stopping);
    let (agent, server) = (agent.clone(), server.clone());
    tokio::spawn(async move {
        if stopped(&agent, &server).await {
            agent.gone(&server, How::Disclaimed, &reason, None);
        }
    });
}

async fn freeze(agent: &Arc<Agent>, server: &Arc<Server>, until: Instant) -> Result<Final<Bytes>, HostError> {
    let held = server.held();
    let within = HOST_CALL.min(until.saturating_duration_since(Instant::now())).max(LAST_CALL);
    agent.host.freeze(&server.id.uid, held.epoch, agent.next_attempt(), held.synced, within).await
}

async fn write(server: &Arc<Server>, state: Final<Bytes>, until: Instant, last: Kind) -> Result<How, String> {
    let held = server.held();
    let authority = Authority::Owner { epoch: held.epoch, granted: held.granted };
    let state: Option<State<Bytes>> = match state {
        Final::State(state) => Some(state),
        // The store has it already: the Release points there.
        Final::Unchanged(_) => None,
    };
    loop {
        let draft = Draft {
            epoch: held.epoch,
            kind: last.clone(),
            writer: server.writer.clone(),
            body: state.as_ref().map_or_else(
                || held.state_at(),
                |state| Body::State(store::State { version: state.version, body: state.body.clone() }),
            ),
        };
        reach("release: sent");
        match server.log.append(&authority, draft, held.sequence, until).await {
            Ok(header) => {
                reach("release: released");
                server.wrote(&header, state.map(|state| state.mark));
                return Ok(How::Released);
            }
            Err(AppendError::Fenced(header)) => {
                tracing::warn!(server = %server.id, epoch = header.epoch.0, "a stopped server was another pod's already");
                return Ok(How::Fenced);
            }
            Err(error) if Instant::now() + RETRY >= until => return Err(format!("StoreUnavailable: {error}")),
            Err(error) => {
                tracing::warn!(server = %server.id, %error, "a Release is not written yet");
                time::sleep(RETRY).await;
            }
        }
    }
}

/// The operator's order to stop one server.
pub fn ordered(agent: &Arc<Agent>, stop: session::Stop) {
    let Some(id) = server_id(stop.server) else { return };
    let Some(server) = agent.servers.get(&id.uid).filter(|server| server.epoch() == Epoch(stop.epoch)) else {
        return;
    };
    let agent = agent.clone();
    let delete = stop.delete_log;
    let last = if stop.tombstone { Kind::Tombstone { delete } } else { Kind::Release };
    tokio::spawn(async move {
        if let Kind::Tombstone { delete: true } = last {
            bury::mark(&agent, &server.id).await;
        }
        release(&agent, &server, &stop.reason, Instant::now() + ORDERED, last).await;
    });
}
