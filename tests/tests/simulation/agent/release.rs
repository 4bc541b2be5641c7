//! Writing the state: at a sync, and as the last one of a server that is stopped.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use handoff::{
    Epoch, ServerUid,
    log::{Authority, Kind},
    source::Final,
};
use store::{AppendError, Body, Draft};
use tokio::time::{self, Instant, timeout};
use wire::session::{self, gone::How};

use super::{Agent, Phase, Server};
use crate::{
    faults::Mutation,
    host::{CALL, Refused},
    lock,
    steps::Step,
};

const ORDERED: Duration = Duration::from_secs(30);
const LAST_CALL: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(500);
/// Between two syncs of one server.
const EVERY: std::ops::Range<u64> = 9_000..10_000;

/// Syncs what is due, for ever.
pub(super) async fn sync_all(agent: Arc<Agent>) {
    loop {
        time::sleep(LOOK).await;
        for server in agent.all() {
            let held = server.held();
            if held.phase == Phase::Active && held.sync_due <= Instant::now() {
                server.update(|held| held.sync_due = next_sync(&agent));
                let syncing = agent.clone();
                agent.process.spawn(async move {
                    sync(&syncing, &server).await;
                });
            }
        }
    }
}

pub(super) fn next_sync(agent: &Agent) -> Instant {
    Instant::now() + agent.sim.chance.ms(EVERY)
}

/// Writes a snapshot if the host's state is not the one in the store. Whether it is there now.
pub(super) async fn sync(agent: &Arc<Agent>, server: &Arc<Server>) -> bool {
    let _turn = if agent.sim.mutated(Mutation::SyncWhileGranting) { None } else { Some(server.turn.lock().await) };
    let held = server.held();
    if held.phase != Phase::Active || !held.durable {
        return false;
    }
    let snapshot = timeout(CALL, agent.host.snapshot(&server.id.uid, held.epoch, held.synced)).await;
    let state = match snapshot {
        Ok(Ok(None)) => return true,
        Ok(Ok(Some(state))) => state,
        _ => return false,
    };
    agent.step(&server.id.uid, Step::Sync);
    if agent.sim.mutated(Mutation::AckBeforeWritten) && agent.sim.chance.percent(50) {
        agent.step(&server.id.uid, Step::Idle);
        return true;
    }
    let draft = Draft {
        epoch: held.epoch,
        kind: Kind::Snapshot,
        writer: server.writer.clone(),
        body: Body::State(store::State { version: state.version, body: state.body.clone() }),
    };
    let authority = Authority::Owner { epoch: held.epoch, granted: held.granted };
    let written = server.log.append(&authority, draft, held.sequence, agent.lease.append_until()).await;
    agent.step(&server.id.uid, Step::Idle);
    match written {
        // Another may have claimed it before this was written: only a lease that is alive says that nobody did.
        Ok(_) if !agent.lease.holds(server.writer.generation) => false,
        Ok(header) => {
            server.wrote(&header, Some(state.mark));
            true
        }
        Err(AppendError::Fenced(_)) => {
            agent.stop_in_host(server).await;
            agent.gone(server, How::Fenced, None);
            false
        }
        Err(_) => false,
    }
}

/// Stops a server for good, here. Whether its last state is in the store.
pub(super) async fn release(agent: &Arc<Agent>, server: &Arc<Server>, until: Instant) -> bool {
    let _turn = server.turn.lock().await;
    let held = server.held();
    if held.phase != Phase::Active || agent.get(&server.id.uid).is_none() {
        return true;
    }
    agent.step(&server.id.uid, Step::Release);
    server.update(|held| held.phase = Phase::Stopping);
    let within = CALL.min(until.saturating_duration_since(Instant::now())).max(LAST_CALL);
    let call = (held.epoch, agent.next_attempt());
    let frozen = timeout(within, agent.host.freeze(&server.id.uid, call, held.synced)).await;
    let froze = matches!(frozen, Ok(Ok(_)));
    let written = match frozen {
        Ok(Ok(_)) if agent.sim.mutated(Mutation::ReleaseDropped) => Some(How::Released),
        Ok(Ok(last)) => write(server, last, until).await,
        _ => None,
    };
    let stopped = agent.stop_in_host(server).await;
    agent.step(&server.id.uid, Step::Idle);
    if !froze && !stopped {
        disclaim(agent, server);
        return false;
    }
    if written == Some(How::Released) {
        server.update(|held| held.handed_off = true);
        agent.sim.check.ended_well(&server.id.uid, held.epoch);
    }
    agent.gone(server, written.unwrap_or(How::Disclaimed), None);
    written.is_some()
}

/// Returns once the host certainly does not serve this server, and never will. `false`: the lease was over first.
pub(super) async fn stopped(agent: &Arc<Agent>, server: &Arc<Server>) -> bool {
    while agent.lease.holds(server.writer.generation) {
        let call = (server.epoch(), agent.next_attempt());
        match timeout(CALL, agent.host.stop(&server.id.uid, call)).await {
            Ok(Ok(()) | Err(Refused::Overtaken)) => return true,
            _ if !agent.host.listens() => return true,
            _ => {}
        }
        time::sleep(RETRY).await;
    }
    false
}

/// Gives a server up that the host may be serving still: the operator hears of it when that is certainly over.
pub(super) fn disclaim(agent: &Arc<Agent>, server: &Arc<Server>) {
    server.update(|held| held.phase = Phase::Stopping);
    let (disclaiming, server) = (agent.clone(), server.clone());
    agent.process.spawn(async move {
        if disclaiming.sim.mutated(Mutation::HungHostGivenUp) || stopped(&disclaiming, &server).await {
            disclaiming.gone(&server, How::Disclaimed, None);
        }
    });
}

async fn write(server: &Arc<Server>, last: Final<Bytes>, until: Instant) -> Option<How> {
    let held = server.held();
    let authority = Authority::Owner { epoch: held.epoch, granted: held.granted };
    let state = match last {
        Final::State(state) => Some(state),
        Final::Unchanged(_) => None,
    };
    loop {
        let draft = Draft {
            epoch: held.epoch,
            kind: Kind::Release,
            writer: server.writer.clone(),
            body: state.as_ref().map_or_else(
                || held.state_at(),
                |state| Body::State(store::State { version: state.version, body: state.body.clone() }),
            ),
        };
        match server.log.append(&authority, draft, held.sequence, until).await {
            Ok(header) => {
                server.wrote(&header, state.map(|state| state.mark));
                return Some(How::Released);
            }
            Err(AppendError::Fenced(_)) => return Some(How::Fenced),
            Err(_) if Instant::now() + RETRY >= until => return None,
            Err(_) => time::sleep(RETRY).await,
        }
    }
}

/// The operator's order to stop one server.
pub(super) fn ordered(agent: &Arc<Agent>, stop: session::Stop) {
    let uid = ServerUid(stop.server.map(|server| server.uid).unwrap_or_default());
    let server = lock(&agent.servers).get(&uid).cloned();
    let Some(server) = server.filter(|server| server.epoch() == Epoch(stop.epoch)) else { return };
    let stopping = agent.clone();
    agent.process.spawn(async move {
        release(&stopping, &server, Instant::now() + ORDERED).await;
    });
}
