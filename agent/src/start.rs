//! Starting an assigned server from its log. [`handoff::claim`] decides, this file only does.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use failpoint::reach;
use handoff::{
    Epoch, PodUid, Sequence, ServerId, ServerUid,
    claim::{Doubt, Over, Refusal, Start, Supersedes, decide},
    lease::Heartbeat,
    log::{Authority, Header, Kind, Writer},
    source::{Mark, State},
};
use store::{AppendError, Body, Draft, Heartbeats, ReadError};
use tokio::time;
use wire::session::{self, assign_failed::Why, from_agent, gone::How};

use crate::{
    adopt,
    agent::{APPEND, Agent, HOST_CALL, Pool},
    host::{Mode, StartCall},
    inherit,
    release::stopped,
    servers::{Phase, Server, next_sync, server_id},
};

/// How often a claim is decided anew because the log moved on under it. Each time another agent made progress.
pub(crate) const TRIES: u32 = 5;

/// For the first heartbeat to be answered, and the host to be told.
const LEASE: Duration = Duration::from_secs(5);

/// Servers being started.
#[derive(Default)]
pub struct Starting(Mutex<HashSet<ServerUid>>);

impl Starting {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<ServerUid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this server is being started.
    #[must_use]
    pub fn has(&self, uid: &ServerUid) -> bool {
        self.lock().contains(uid)
    }

    /// Whether this server was not being started, and is now.
    pub(crate) fn begin(&self, uid: &ServerUid) -> bool {
        self.lock().insert(uid.clone())
    }

    /// It is not any more.
    pub(crate) fn end(&self, uid: &ServerUid) {
        self.lock().remove(uid);
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<ServerUid> {
        self.lock().iter().cloned().collect()
    }
}

/// Why a server was not started.
pub(crate) struct Failed {
    pub(crate) why: Why,
    pub(crate) message: String,
    newest: Option<Header>,
    alive: Option<(PodUid, Heartbeat)>,
}

impl Failed {
    pub(crate) fn new(why: Why, message: &dyn std::fmt::Display) -> Self {
        Self { why, message: message.to_string(), newest: None, alive: None }
    }
}

/// The server of an assignment, if it is to be carried out by its log. The operator hears of one that is held; one that goes on
/// here is taken up; of one that was begun already it hears later.
pub(crate) fn begin(agent: &Arc<Agent>, assign: &session::Assign) -> Option<ServerId> {
    let id = server_id(assign.server.clone())?;
    if let Some(server) = agent.servers.get(&id.uid) {
        // A repeat, or the operator does not know yet that it came here by a handoff.
        agent.operator.tell(from_agent::Body::Held(server.report()));
        return None;
    }
    (!adopt::assigned(agent, &id, assign) && agent.starting.begin(&id.uid)).then_some(id)
}

/// Carries out an assignment, in the background; the operator hears `Held` or `AssignFailed`.
pub fn assigned(agent: &Arc<Agent>, assign: session::Assign) {
    let Some(id) = begin(agent, &assign) else { return };
    let agent = agent.clone();
    tokio::spawn(async move {
        let result = start(&agent, &id, &assign).await;
        agent.starting.end(&id.uid);
        match result {
            Ok(server) => {
                tracing::info!(server = %id, epoch = server.epoch().0, "server started");
                agent.operator.tell(from_agent::Body::Held(server.report()));
            }
            Err(failed) => report(&agent, &assign, failed),
        }
    });
}

pub(crate) fn report(agent: &Arc<Agent>, assign: &session::Assign, failed: Failed) {
    let id = server_id(assign.server.clone()).unwrap_or_default();
    tracing::warn!(server = %id, why = failed.why.as_str_name(), message = failed.message, "assignment not carried out");
    let grantee = failed.newest.as_ref().and_then(Header::grantee).map(|grantee| grantee.to.pod.0.clone());
    agent.operator.tell(from_agent::Body::AssignFailed(session::AssignFailed {
        server: assign.server.clone(),
        assignment: assign.assignment,
        why: failed.why.into(),
        message: failed.message,
        newest_epoch: failed.newest.as_ref().map_or(0, |newest| newest.epoch.0),
        newest_pod_uid: failed.newest.as_ref().map_or_else(String::new, |newest| newest.writer.pod.0.clone()),
        grantee_pod_uid: grantee.unwrap_or_default(),
        alive_pod_uid: failed.alive.as_ref().map(|(pod, _)| pod.0.clone()).unwrap_or_default(),
        alive: failed.alive.map(|(_, heartbeat)| heartbeat.into()),
    }));
}

async fn start(agent: &Arc<Agent>, id: &ServerId, assign: &session::Assign) -> Result<Arc<Server>, Failed> {
    let _turn = agent.starts.acquire().await.map_err(|error| Failed::new(Why::NotHere, &error))?;
    if agent.draining.is_draining() {
        return Err(Failed::new(Why::NotHere, &"this pod is draining"));
    }
    agent.receiving.withdraw(&id.uid, "the operator assigned the server here");
    if agent.receiving.has(&id.uid) {
        // Before Final the withdrawal ends it in a moment; past Final it reports itself as held.
        return Err(Failed::new(Why::NotHere, &"a handoff of it to this pod is under way"));
    }
    let pool = agent.pool().map_err(|problem| Failed::new(Why::NotHere, &problem))?;
    if !agent.lease.ready(LEASE).await {
        return Err(Failed::new(Why::NotHere, &"this pod has no lease yet, or its host was not told of it"));
    }
    let server = Server::new(agent, &pool, id.clone(), assign.spec_json.clone(), Epoch::NONE)
        .map_err(|error| Failed::new(Why::Host, &error))?;
    agent.can_load(&server.spec.type_, None).map_err(|error| Failed::new(Why::NotHere, &error))?;
    let _turn_of_server = server.turn.lock().await;
    agent.routes.hold(id);
    let started = claim_and_start(agent, &pool, &server, assign).await;
    if started.is_err() {
        agent.routes.release_local(id);
    }
    started?;
    let interval = pool.settings.sync_interval;
    server.update(|held| held.sync_due = next_sync(interval));
    Ok(server.clone())
}

async fn claim_and_start(
    agent: &Arc<Agent>,
    pool: &Pool,
    server: &Arc<Server>,
    assign: &session::Assign,
) -> Result<(), Failed> {
    let supersedes = supersedes(assign);
    let grounds = Grounds { heartbeats: pool.heartbeats(), silent: &agent.silent };
    let mut hint = Sequence(assign.hint);
    for _ in 0..TRIES {
        let newest = server.log.read_newest(hint).await.map_err(read_failed)?;
        reach("claim: read");
        let header = newest.as_ref().map(|newest| newest.header.clone());
        let decision = decide(header.as_ref(), supersedes.as_ref(), &server.writer);
        let (epoch, after, state_at, doubts, granted) = match decision {
            Start::Claim { epoch, after, state_at, doubts } => (epoch, after, state_at, doubts, false),
            Start::ServeGrant { epoch, after, state_at, doubts, .. } => (epoch, after, state_at, doubts, true),
            Start::Refuse(refusal) => return Err(refused(&refusal, header)),
        };
        grounds.look_up(&doubts).await?;
        let state =
            match newest.and_then(|newest| newest.state).filter(|_| header.as_ref().is_some_and(Header::bears_state)) {
                Some(state) => Some(state),
                None if after == Sequence::NONE => {
                    inherit::state(pool, &server.id, server.spec.restore_from.as_ref()).await?
                }
                None if state_at == Sequence::NONE => None,
                None => Some(server.log.read_state(state_at).await.map_err(read_failed)?),
            };
        if let Some(state) = &state {
            agent
                .can_load(&server.spec.type_, Some(state.version))
                .map_err(|error| Failed::new(Why::NotHere, &error))?;
        }
        let version = state.as_ref().map_or(0, |state| state.version);
        let draft = Draft {
            epoch,
            kind: if granted && state.is_some() { Kind::Snapshot } else { Kind::Claim },
            writer: server.writer.clone(),
            body: match &state {
                // A granted epoch begins with the state itself, and so does a log that inherits one.
                Some(state) if granted || after == Sequence::NONE => Body::State(state.clone()),
                _ => Body::At { sequence: state_at, version },
            },
        };
        reach("claim: sent");
        match server.log.append(&Authority::Reader, draft, after, agent.lease.append_until()).await {
            Ok(written) if agent.lease.holds(server.writer.generation) => {
                reach("claim: claimed");
                return serve(agent, server, &written, state).await;
            }
            // Another may have claimed it since. This pod's next inventory says that it has not got it.
            Ok(_) => return Err(Failed::new(Why::NotHere, &"this pod's lease is over")),
            // Something new is in the log: look at it, and decide again under the same rules.
            Err(AppendError::Fenced(found)) => hint = found.sequence,
            Err(error) => return Err(Failed::new(Why::Store, &error)),
        }
    }
    Err(Failed::new(Why::Store, &"the log moved on faster than it could be claimed"))
}

/// What an assignment takes the server from.
pub(crate) fn supersedes(assign: &session::Assign) -> Option<Supersedes> {
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

/// Runs of agents that are over: each was silent for a whole lease, and then the store had no heartbeat of it above this
/// number. That stays so, and a pod with a thousand servers is looked up once.
#[derive(Default)]
pub struct Silent(Mutex<HashMap<Writer, u64>>);

/// More runs than pods die in a day; without the oldest ones the store is asked again.
const MAX_SILENT: usize = 1024;

impl Silent {
    fn runs(&self) -> MutexGuard<'_, HashMap<Writer, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this was looked up, and found.
    #[must_use]
    pub fn knows(&self, doubt: &Doubt) -> bool {
        self.runs().get(&doubt.of).is_some_and(|above| *above <= doubt.above)
    }

    /// The store has no heartbeat above.
    pub fn note(&self, doubt: &Doubt) {
        let mut runs = self.runs();
        if runs.len() >= MAX_SILENT {
            runs.clear();
        }
        let above = runs.entry(doubt.of.clone()).or_insert(doubt.above);
        *above = doubt.above.min(*above);
    }
}

/// What shows whether a silent pod is over.
pub(crate) struct Grounds<'a> {
    pub(crate) heartbeats: Heartbeats,
    pub(crate) silent: &'a Silent,
}

impl Grounds<'_> {
    /// Who was only silent may be without the operator, and well: then the store has a heartbeat of it.
    pub(crate) async fn look_up(&self, doubts: &[Doubt]) -> Result<(), Failed> {
        for doubt in doubts.iter().filter(|doubt| !self.silent.knows(doubt)) {
            let Doubt { of, above } = doubt;
            let found = self.heartbeats.newest(of, *above).await;
            // What cannot be read is not silence.
            let found = found.map_err(|error| Failed::new(Why::Store, &error))?;
            if let Some(alive) = found {
                let message = format!("pod {} has no session, but heartbeat {} is in the store", of.pod, alive.counter);
                return Err(Failed { alive: Some((of.pod.clone(), alive)), ..Failed::new(Why::Alive, &message) });
            }
            self.silent.note(doubt);
        }
        Ok(())
    }
}

async fn serve(
    agent: &Arc<Agent>,
    server: &Arc<Server>,
    written: &Header,
    state: Option<store::State>,
) -> Result<(), Failed> {
    let bytes = state.as_ref().map_or(0, |state| state.body.len() as u64);
    let state = state.map(|state| State {
        mark: Mark { instance: 0, revision: 0, checksum: crc32fast::hash(&state.body) },
        version: state.version,
        body: state.body,
    });
    server.update(|held| {
        held.epoch = written.epoch;
        held.state_bytes = bytes;
    });
    let config = server.config();
    let call = StartCall {
        id: &server.id,
        kind: &server.spec.type_,
        epoch: written.epoch,
        attempt: agent.next_attempt(),
        mode: Mode::Active,
        config: config.as_ref(),
        state: state.as_ref(),
    };
    match agent.host.start(&call, HOST_CALL).await {
        Ok(_) if !agent.lease.holds(server.writer.generation) => {
            stop_unserved(agent, server, written.epoch).await;
            Err(Failed::new(Why::NotHere, &"this pod's lease is over"))
        }
        Ok(mark) => {
            reach("claim: started");
            server.wrote(written, None);
            server.update(|held| {
                held.phase = Phase::Active;
                held.state_version = written.state_version;
                held.synced = state.is_some().then_some(mark);
            });
            let _ = agent.servers.insert(server);
            agent.routes.set_here(&server.id, written.epoch);
            Ok(())
        }
        Err(error) => {
            if stopped(agent, server).await {
                give_back(agent, server, written).await;
            }
            Err(Failed::new(Why::Host, &format!("the host did not start it: {error}")))
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
    let until = time::Instant::now() + APPEND;
    match server.log.append(&authority, draft, written.sequence, until).await {
        Ok(header) => {
            server.wrote(&header, None);
            agent.gone(server, How::Released, "the host did not start it", None);
        }
        Err(error) => agent.gone(server, How::Disclaimed, &format!("the host did not start it; {error}"), None),
    }
}

async fn stop_unserved(agent: &Arc<Agent>, server: &Arc<Server>, epoch: Epoch) {
    let stopped = agent.host.stop(&server.id.uid, epoch, agent.next_attempt(), HOST_CALL).await;
    if let Err(error) = stopped {
        tracing::warn!(server = %server.id, %error, "a server that did not start could not be stopped either");
    }
}

pub(crate) fn refused(refusal: &Refusal, newest: Option<Header>) -> Failed {
    let why = match refusal {
        Refusal::OtherEpoch { .. } | Refusal::OtherOwner { .. } => Why::RefusedByLog,
        Refusal::Granted { .. } => Why::Granted,
        Refusal::Deleted => Why::Deleted,
        Refusal::LogMissing { .. } => Why::Corrupt,
    };
    Failed { newest, ..Failed::new(why, refusal) }
}

#[allow(clippy::needless_pass_by_value)] // for map_err
pub(crate) fn read_failed(error: ReadError) -> Failed {
    let why = match error {
        ReadError::Unreadable { .. } | ReadError::HintMissing(_) => Why::Corrupt,
        ReadError::Store(_) | ReadError::StateMissing(_) | ReadError::Vanishing(_) => Why::Store,
    };
    Failed::new(why, &error)
}
