//! Taking up again what the host runs, once this agent was restarted beside it: [`handoff::adopt`] decides, this file only
//! does. Requests pass from the first moment. The operator is told that these servers are about to be held, so it asks
//! this pod for each, as for any owner that it has not heard of; with that comes the spec, and then the log is read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use handoff::{
    Epoch, Generation, Sequence, ServerId, ServerUid,
    adopt::{Hold, Told, goes_on, hold},
    claim::Refusal,
    log::{Authority, Header, Kind},
    source::State,
};
use store::{AppendError, Body, Draft};
use tokio::time;
use wire::session::{self, assign_failed::Why, from_agent};

use crate::{
    agent::{Agent, HOST_CALL},
    host::{Describe, HostError, Listed, Snapshot},
    lease::boot_time,
    recover::{self, Leftover},
    release::stopped,
    servers::{Phase, Server, next_sync},
    start::{Failed, read_failed, refused, report},
};

/// Between two tries to learn from the host what it knows, or to tell it.
const AGAIN: Duration = Duration::from_millis(250);

/// The operator asks for what it knows within a second of a session's beginning, and a new leader after ten; for what was
/// handed here once the source has said that it did not hear of it. What nobody asks for by then has no resource any more.
const UNASKED: Duration = Duration::from_mins(5);

struct Adoption {
    listed: Listed,
    asked: bool,
}

/// Servers that go on here, and are not held yet.
#[derive(Default)]
pub struct Adopting(Mutex<HashMap<ServerUid, Adoption>>);

impl Adopting {
    fn lock(&self) -> MutexGuard<'_, HashMap<ServerUid, Adoption>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, listed: Listed, asked: bool) {
        self.lock().insert(listed.uid.clone(), Adoption { listed, asked });
    }

    fn take(&self, uid: &ServerUid) -> Option<Listed> {
        self.lock().remove(uid).map(|adoption| adoption.listed)
    }

    fn take_unasked(&self) -> Vec<Listed> {
        self.lock().extract_if(|_, adoption| !adoption.asked).map(|(_, adoption)| adoption.listed).collect()
    }

    fn take_all(&self) -> Vec<Listed> {
        self.lock().drain().map(|(_, adoption)| adoption.listed).collect()
    }
}

/// Before the first session of a restarted agent: finds out what goes on. Returns what does not, frozen.
pub async fn take_up(agent: &Arc<Agent>) -> Vec<Leftover> {
    let told = told(agent).await;
    let listed = recover::list(agent).await;
    let now = boot_time();
    let serves_on = |server: &Listed| goes_on(told, server.phase, server.generation.unwrap_or_default(), now);
    let (go_on, rest): (Vec<_>, Vec<_>) = listed.into_iter().partition(serves_on);
    match told {
        Some(told) if !go_on.is_empty() => adopt(agent, told, go_on),
        Some(told) => agent.lease.begin_after(end(agent, told).await),
        None => {}
    }
    recover::freeze(agent, rest).await
}

/// The lease of the run before, if it lives. From then on no call of that run does anything: it may have left a freeze in
/// the host's socket, or a start.
async fn told(agent: &Arc<Agent>) -> Option<Told> {
    if !agent.described.borrow().as_ref().is_some_and(Describe::can_be_adopted) {
        return None;
    }
    loop {
        let told = match agent.host.told(HOST_CALL).await {
            Ok(told) if !told.lives(boot_time()) => {
                agent.lease.begin_after(told.generation);
                return None;
            }
            Ok(told) => agent.host.lease(told, agent.first_attempt, HOST_CALL).await.map(|()| told),
            Err(error) => Err(error),
        };
        match told {
            Ok(told) => return Some(told),
            Err(HostError::Refused { .. }) => return None,
            Err(error) => {
                tracing::warn!(%error, "the host does not say what it was told of leases");
                if matches!(error, HostError::Invalid(_)) {
                    return None;
                }
            }
        }
        time::sleep(AGAIN).await;
    }
}

/// Before a generation begins that does not go on with this one: the host is over with it. The new one's inventory gives up
/// what it does not hold, and that must not be taken up again by a later run of this agent. Returns the last that is over.
pub(crate) async fn end(agent: &Arc<Agent>, told: Told) -> Generation {
    let next = Told { generation: Generation(told.generation.0.saturating_add(1)), ..told };
    let cannot_go_on = || agent.described.borrow().as_ref().is_some_and(|host| !host.can_be_adopted());
    while told.lives(boot_time()) && !cannot_go_on() {
        match agent.host.lease(next, agent.first_attempt, HOST_CALL).await {
            Ok(()) | Err(HostError::Refused { .. }) => break,
            Err(error) => tracing::warn!(%error, "the host was not told that its lease is over"),
        }
        time::sleep(AGAIN).await;
    }
    next.generation
}

fn adopt(agent: &Arc<Agent>, told: Told, go_on: Vec<Listed>) {
    tracing::info!(servers = go_on.len(), generation = told.generation.0, "what runs here goes on");
    agent.lease.resume(told);
    for server in go_on {
        agent.starting.begin(&server.uid);
        agent.routes.set_here(&server.id(), server.epoch);
        agent.adopting.put(server, false);
    }
    tokio::spawn(give_up_unasked(agent.clone(), told.generation));
}

/// What has no resource any more is ended as any other leftover. If there is one all the same, it is started from its Release.
async fn give_up_unasked(agent: Arc<Agent>, generation: Generation) {
    if agent.pool.subscribe().wait_for(Option::is_some).await.is_err() {
        return;
    }
    time::sleep(UNASKED).await;
    if !agent.lease.holds(generation) {
        return;
    }
    let unasked = agent.adopting.take_unasked();
    let ids: Vec<_> = unasked.iter().map(Listed::id).collect();
    for id in &ids {
        tracing::warn!(server = %id, "it ran here before this agent was restarted, and the operator does not ask for it");
        agent.routes.hold(id);
    }
    let leftovers = recover::freeze(&agent, unasked).await;
    recover::release_leftovers(agent.clone(), leftovers).await;
    for id in &ids {
        let_go(&agent, id);
    }
}

fn let_go(agent: &Agent, id: &ServerId) {
    agent.routes.release_local(id);
    agent.starting.end(&id.uid);
}

/// The lease is over: none of them goes on. Returns which these were.
pub(crate) fn fence(agent: &Agent) -> Vec<ServerId> {
    let ids: Vec<_> = agent.adopting.take_all().iter().map(Listed::id).collect();
    for id in &ids {
        agent.starting.end(&id.uid);
    }
    ids
}

/// What became of a server that the operator asked for.
enum Asked {
    Held(Arc<Server>),
    /// It serves on, and the operator asks again.
    NotYet(Failed),
    /// It is not this pod's, or not in its host.
    Lost(Arc<Server>, Failed),
    /// The lease is over.
    Over,
}

/// Whether the assigned server goes on here already. If it does, its log is read and its state written in the background; the
/// operator hears `Held`, or why not yet.
pub(crate) fn assigned(agent: &Arc<Agent>, id: &ServerId, assign: &session::Assign) -> bool {
    let Some(listed) = agent.adopting.take(&id.uid) else { return false };
    let (agent, id, assign) = (agent.clone(), id.clone(), assign.clone());
    tokio::spawn(async move {
        let generation = agent.lease.writer().generation;
        let asked = tokio::select! {
            asked = ask(&agent, &id, &listed, &assign) => asked,
            () = agent.lease.ended(generation) => Asked::Over,
        };
        match asked {
            Asked::Held(server) => {
                agent.starting.end(&id.uid);
                tracing::info!(server = %id, epoch = listed.epoch.0, "server goes on");
                agent.operator.tell(from_agent::Body::Held(server.report()));
            }
            Asked::NotYet(failed) => {
                agent.adopting.put(listed, true);
                // Whoever ended the lease since has not seen it.
                if !agent.lease.holds(generation) && agent.adopting.take(&id.uid).is_some() {
                    let_go(&agent, &id);
                }
                report(&agent, &assign, failed);
            }
            Asked::Lost(server, failed) => {
                agent.routes.hold(&id);
                let is_over = stopped(&agent, &server).await;
                let_go(&agent, &id);
                if is_over {
                    report(&agent, &assign, failed);
                }
            }
            Asked::Over => let_go(&agent, &id),
        }
    });
    true
}

async fn ask(agent: &Arc<Agent>, id: &ServerId, listed: &Listed, assign: &session::Assign) -> Asked {
    // The operator takes any other reason for a word that this pod has not got the server.
    let not_yet = |error: &dyn std::fmt::Display| Asked::NotYet(Failed::new(Why::Store, error));
    if agent.pool.subscribe().wait_for(Option::is_some).await.is_err() {
        return Asked::Over;
    }
    let Ok(_turn) = agent.syncs.acquire().await else { return Asked::Over };
    let server = agent.pool().and_then(|pool| {
        let server = Server::new(agent, &pool, id.clone(), assign.spec_json.clone(), listed.epoch)?;
        Ok((server, pool.settings.sync_interval))
    });
    let (server, interval) = match server {
        Ok(server) => server,
        Err(error) => return not_yet(&error),
    };
    let newest = match server.log.read_newest(Sequence::NONE).await {
        Ok(newest) => newest.map(|newest| newest.header),
        Err(error) => return Asked::NotYet(read_failed(error)),
    };
    let (authority, after) = match (hold(newest.as_ref(), listed.epoch, &server.writer), &newest) {
        (Hold::Owned, Some(newest)) => (Authority::Adopted { epoch: listed.epoch }, newest.sequence),
        (Hold::Handed { from, after, handoff }, _) => (Authority::Handed { from, handoff }, after),
        _ => return Asked::Lost(server, not_ours(listed.epoch, newest)),
    };
    let state = match agent.host.snapshot(&id.uid, listed.epoch, None, HOST_CALL).await {
        Ok(Snapshot::State(state)) => state,
        Ok(Snapshot::Unchanged(_)) => return not_yet(&"the host gave no state"),
        Err(error @ HostError::Refused { status, .. }) if status.is_client_error() => {
            return Asked::Lost(server, Failed::new(Why::NotHere, &error));
        }
        Err(error) => return not_yet(&error),
    };
    let State { mark, version, body } = state;
    let bytes = body.len() as u64;
    let draft = Draft {
        epoch: listed.epoch,
        kind: Kind::Snapshot,
        writer: server.writer.clone(),
        body: Body::State(store::State { version, body }),
    };
    match server.log.append(&authority, draft, after, agent.lease.append_until()).await {
        // Another may have claimed the server before this was written: only a lease that is alive says that nobody did.
        Ok(_) if !agent.lease.holds(server.writer.generation) => Asked::Over,
        Ok(header) => {
            server.wrote(&header, Some(mark));
            server.update(|held| {
                held.phase = Phase::Active;
                held.state_bytes = bytes;
                held.sync_due = next_sync(interval);
            });
            let _ = agent.servers.insert(&server);
            Asked::Held(server)
        }
        Err(AppendError::Fenced(found)) => Asked::Lost(server, not_ours(listed.epoch, Some(*found))),
        Err(error) => not_yet(&error),
    }
}

/// Told as a claim that the log refuses.
fn not_ours(epoch: Epoch, newest: Option<Header>) -> Failed {
    let found = newest.as_ref().map(|newest| newest.epoch);
    let refusal = match found {
        Some(found) => Refusal::OtherEpoch { found, superseded: epoch },
        None => Refusal::LogMissing { expected: epoch },
    };
    refused(&refusal, newest)
}
