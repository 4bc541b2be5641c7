//! Starting an assigned server from its log: `handoff::claim` decides.

use std::{sync::Arc, time::Duration};

use handoff::{
    Epoch, PodUid, Sequence, ServerId,
    claim::{Doubt, Over, Refusal, Start, Supersedes, decide},
    lease::Heartbeat,
    log::{Authority, Header, Kind},
    source::Mark,
    target,
};
use store::{AppendError, Body, Draft, ReadError};
use tokio::time::{Instant, timeout};
use wire::session::{self, assign_failed::Why, from_agent, gone::How};

use super::{
    APPEND, Agent, Moving, Phase, Server, adopt,
    release::{next_sync, stopped},
    server_id,
};
use crate::{faults::Mutation, host::CALL, lock, steps::Step};

const TRIES: u32 = 5;
const LEASE: Duration = Duration::from_secs(5);

pub(super) struct Failed {
    why: Why,
    newest: Option<Header>,
    alive: Option<(PodUid, Heartbeat)>,
}

impl From<Why> for Failed {
    fn from(why: Why) -> Self {
        Self { why, newest: None, alive: None }
    }
}

/// Carries out an assignment; the operator hears `Held` or `AssignFailed`.
pub(super) fn assigned(agent: &Arc<Agent>, assign: session::Assign) {
    let Some(id) = server_id(assign.server.clone()) else { return };
    if let Some(server) = agent.get(&id.uid) {
        agent.tell(from_agent::Body::Held(server.report()));
        return;
    }
    if adopt::assigned(agent, &id, &assign) || !lock(&agent.starting).insert(id.uid.clone()) {
        return;
    }
    let starting = agent.clone();
    agent.process.spawn(async move {
        let result = start(&starting, &id, &assign).await;
        lock(&starting.starting).remove(&id.uid);
        starting.step(&id.uid, Step::Idle);
        match result {
            Ok(server) => starting.tell(from_agent::Body::Held(server.report())),
            Err(failed) => report(&starting, &assign, failed),
        }
    });
}

/// The log says that a server that goes on here is another's.
pub(super) fn not_ours(newest: Option<Header>) -> Failed {
    let why = if newest.is_some() { Why::RefusedByLog } else { Why::Corrupt };
    Failed { newest, ..why.into() }
}

pub(super) fn report(agent: &Arc<Agent>, assign: &session::Assign, failed: Failed) {
    let uid = assign.server.as_ref().map(|server| server.uid.clone()).unwrap_or_default();
    // Without its nonce, which is drawn by the store and is another every time.
    let newest = failed.newest.as_ref().map(|newest| (newest.epoch, &newest.writer.pod));
    agent.sim.trace(|| format!("{} {uid} not started: {:?} {newest:?}", agent.pod, failed.why));
    let grantee = failed.newest.as_ref().and_then(Header::grantee).map(|grantee| grantee.to.pod.0.clone());
    agent.tell(from_agent::Body::AssignFailed(session::AssignFailed {
        server: assign.server.clone(),
        assignment: assign.assignment,
        why: failed.why.into(),
        message: String::new(),
        newest_epoch: failed.newest.as_ref().map_or(0, |newest| newest.epoch.0),
        newest_pod_uid: failed.newest.as_ref().map_or_else(String::new, |newest| newest.writer.pod.0.clone()),
        grantee_pod_uid: grantee.unwrap_or_default(),
        alive_pod_uid: failed.alive.as_ref().map(|(pod, _)| pod.0.clone()).unwrap_or_default(),
        alive: failed.alive.map(|(_, heartbeat)| heartbeat.into()),
    }));
}

async fn start(agent: &Arc<Agent>, id: &ServerId, assign: &session::Assign) -> Result<Arc<Server>, Failed> {
    let Ok(_turn) = agent.starts.acquire().await else { return Err(Why::NotHere.into()) };
    if agent.is_draining() {
        return Err(Why::NotHere.into());
    }
    let arrival = lock(&agent.receiving).get(&id.uid).map(|(_, events)| events.clone());
    if let Some(events) = arrival {
        // Before Final the withdrawal ends it in a moment; past Final it reports itself as held.
        let _ = events.send(target::Event::Withdraw("the operator assigned the server here".into()));
        return Err(Why::NotHere.into());
    }
    if !agent.pool.get() || !agent.lease.ready(LEASE).await || agent.described.get().is_none() {
        return Err(Why::NotHere.into());
    }
    let server = agent.new_server(id.clone(), Epoch::NONE);
    let _turn_of_server = server.turn.lock().await;
    agent.step(&id.uid, Step::Claim);
    claim_and_start(agent, &server, assign).await?;
    server.update(|held| held.sync_due = next_sync(agent));
    Ok(server.clone())
}

async fn claim_and_start(agent: &Arc<Agent>, server: &Arc<Server>, assign: &session::Assign) -> Result<(), Failed> {
    let supersedes = supersedes(assign);
    let mut hint = Sequence(assign.hint);
    for _ in 0..TRIES {
        let newest = server.log.read_newest(hint).await.map_err(read_failed)?;
        let header = newest.as_ref().map(|newest| newest.header.clone());
        let (epoch, after, state_at, doubts, granted) =
            match decide(header.as_ref(), supersedes.as_ref(), &server.writer) {
                Start::Claim { epoch, after, state_at, doubts } => (epoch, after, state_at, doubts, false),
                Start::ServeGrant { epoch, after, state_at, doubts, .. } => (epoch, after, state_at, doubts, true),
                Start::Refuse(refusal) => return Err(refused(&refusal, header)),
            };
        let epoch = match &header {
            Some(header) if !granted && agent.sim.mutated(Mutation::ClaimNextEpoch) => header.epoch.handed_off(),
            _ => epoch,
        };
        if !agent.sim.mutated(Mutation::ClaimIgnoresDoubts) {
            look_up(agent, &doubts).await?;
        }
        let state =
            match newest.and_then(|newest| newest.state).filter(|_| header.as_ref().is_some_and(Header::bears_state)) {
                Some(state) => Some(state),
                None if state_at == Sequence::NONE => None,
                None => Some(server.log.read_state(state_at).await.map_err(read_failed)?),
            };
        let version = state.as_ref().map_or(0, |state| state.version);
        let draft = Draft {
            epoch,
            kind: if granted && state.is_some() { Kind::Snapshot } else { Kind::Claim },
            writer: server.writer.clone(),
            body: match &state {
                Some(state) if granted => Body::State(state.clone()),
                _ => Body::At { sequence: state_at, version },
            },
        };
        match server.log.append(&Authority::Reader, draft, after, agent.lease.append_until()).await {
            Ok(written) if agent.lease.holds(server.writer.generation) => {
                return serve(agent, server, &written, state).await;
            }
            // Another may have claimed it since. This pod's next inventory says that it has not got it.
            Ok(_) => return Err(Why::NotHere.into()),
            Err(AppendError::Fenced(found)) => hint = found.sequence,
            Err(_) => return Err(Why::Store.into()),
        }
    }
    Err(Why::Store.into())
}

fn supersedes(assign: &session::Assign) -> Option<Supersedes> {
    let over = |pod: &String, silent: Option<session::Heartbeat>| Over {
        pod: PodUid(pod.clone()),
        silent: silent.map(Into::into),
    };
    let grantee = &assign.superseded_grantee_uid;
    (assign.superseded_epoch > 0).then(|| Supersedes {
        epoch: Epoch(assign.superseded_epoch),
        owner: over(&assign.superseded_pod_uid, assign.superseded_silent),
        grantee: (!grantee.is_empty()).then(|| over(grantee, assign.grantee_silent)),
    })
}

/// Who was only silent may be without the operator, and well: then the store has a heartbeat of it.
async fn look_up(agent: &Arc<Agent>, doubts: &[Doubt]) -> Result<(), Failed> {
    for doubt in doubts.iter().filter(|doubt| !agent.silent.knows(doubt)) {
        let Doubt { of, above } = doubt;
        let found = agent.heartbeats().newest(of, *above).await;
        if let Some(alive) = found.map_err(|_| Failed::from(Why::Store))? {
            return Err(Failed { alive: Some((of.pod.clone(), alive)), ..Why::Alive.into() });
        }
        agent.silent.note(doubt);
    }
    Ok(())
}

async fn serve(
    agent: &Arc<Agent>,
    server: &Arc<Server>,
    written: &Header,
    state: Option<store::State>,
) -> Result<(), Failed> {
    agent.step(&server.id.uid, Step::Start);
    let state = state.map(|state| Moving {
        mark: Mark { instance: 0, revision: 0, checksum: crc32fast::hash(&state.body) },
        version: state.version,
        body: state.body,
    });
    server.update(|held| held.epoch = written.epoch);
    let call = (written.epoch, agent.next_attempt());
    if !agent.lease.is_open() {
        return Err(Why::NotHere.into());
    }
    match timeout(CALL, agent.host.start(&server.id.uid, call, true, state.as_ref())).await {
        Ok(Ok(_)) if !agent.lease.holds(server.writer.generation) => {
            agent.stop_in_host(server).await;
            Err(Why::NotHere.into())
        }
        Ok(Ok(mark)) => {
            server.wrote(written, None);
            server.update(|held| {
                held.phase = Phase::Active;
                held.state_version = written.state_version;
                held.synced = state.is_some().then_some(mark);
            });
            agent.insert(server);
            Ok(())
        }
        _ => {
            if stopped(agent, server).await {
                give_back(agent, server, written).await;
            }
            Err(Why::Host.into())
        }
    }
}

/// The host would not start what this pod has just claimed: release it, so that another pod may.
async fn give_back(agent: &Arc<Agent>, server: &Arc<Server>, written: &Header) {
    let draft = Draft {
        epoch: written.epoch,
        kind: Kind::Release,
        writer: server.writer.clone(),
        body: Body::At { sequence: written.state_at, version: written.state_version },
    };
    let authority = Authority::Owner { epoch: written.epoch, granted: None };
    match server.log.append(&authority, draft, written.sequence, Instant::now() + APPEND).await {
        Ok(header) => {
            server.wrote(&header, None);
            agent.gone(server, How::Released, None);
        }
        Err(_) => agent.gone(server, How::Disclaimed, None),
    }
}

fn refused(refusal: &Refusal, newest: Option<Header>) -> Failed {
    let why = match refusal {
        Refusal::OtherEpoch { .. } | Refusal::OtherOwner { .. } => Why::RefusedByLog,
        Refusal::Granted { .. } => Why::Granted,
        Refusal::Deleted => Why::Deleted,
        Refusal::LogMissing { .. } => Why::Corrupt,
    };
    Failed { newest, ..why.into() }
}

#[allow(clippy::needless_pass_by_value)] // for map_err
pub(super) fn read_failed(error: ReadError) -> Failed {
    match error {
        ReadError::Unreadable { .. } | ReadError::HintMissing(_) => Why::Corrupt.into(),
        ReadError::Store(_) | ReadError::StateMissing(_) | ReadError::Vanishing(_) => Why::Store.into(),
    }
}
