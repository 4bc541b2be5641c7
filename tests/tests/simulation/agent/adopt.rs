//! Taking up again what the host runs: `handoff::adopt` decides.

use std::{sync::Arc, time::Duration};

use handoff::{
    Generation, Sequence, ServerId,
    adopt::{Hold, Told, goes_on, hold},
    log::{Authority, Kind},
};
use store::{AppendError, Body, Draft};
use tokio::time::{sleep, timeout};
use wire::session::{self, from_agent};

use super::{
    Agent, Phase, Server,
    recover::{self, Leftover},
    release::{next_sync, stopped},
    start::{self, Failed},
};
use crate::{
    faults::Mutation,
    host::{self, CALL, Listed, Refused},
    lock,
    steps::Step,
};

const AGAIN: Duration = Duration::from_millis(250);

/// Before the first session of a restarted agent: finds out what goes on. Returns what does not, frozen.
pub(super) async fn take_up(agent: &Arc<Agent>) -> Vec<Leftover> {
    let told = told(agent).await;
    let listed = recover::list(agent).await;
    let now = agent.clock.now();
    let thaws = agent.sim.mutated(Mutation::AdoptFrozen);
    let serves_on = |server: &Listed| {
        goes_on(told, server.phase, server.generation, now) || (thaws && server.phase == host::Phase::Frozen)
    };
    let (go_on, rest): (Vec<_>, Vec<_>) = listed.into_iter().partition(serves_on);
    match told {
        Some(told) if !go_on.is_empty() => adopt(agent, told, go_on).await,
        Some(told) => agent.lease.begin_after(end(agent, told).await, agent.sim.now_ms()),
        None => {}
    }
    recover::freeze(agent, rest).await
}

/// The lease of the run before, if it lives. From then on no call of that run does anything.
async fn told(agent: &Arc<Agent>) -> Option<Told> {
    if !agent.host.can_be_adopted() {
        return None;
    }
    loop {
        match timeout(CALL, agent.host.told()).await {
            Ok(Ok(Some(told))) if told.lives(agent.clock.now()) => {
                match timeout(CALL, agent.host.lease(told, agent.first_attempt)).await {
                    Ok(Ok(())) => return Some(told),
                    Ok(Err(Refused::Conflict | Refused::Overtaken)) => return None,
                    _ => {}
                }
            }
            Ok(Ok(told)) => {
                let over = told.map(|told| told.generation).unwrap_or_default();
                agent.lease.begin_after(over, agent.sim.now_ms());
                return None;
            }
            _ => {}
        }
        sleep(AGAIN).await;
    }
}

/// Before a generation begins that does not go on with this one: the host is over with it.
pub(super) async fn end(agent: &Arc<Agent>, told: Told) -> Generation {
    let next = Told { generation: Generation(told.generation.0 + 1), ..told };
    while told.lives(agent.clock.now()) && agent.host.can_be_adopted() {
        match timeout(CALL, agent.host.lease(next, agent.first_attempt)).await {
            Ok(Ok(()) | Err(Refused::Conflict | Refused::Overtaken)) => break,
            _ => sleep(AGAIN).await,
        }
    }
    next.generation
}

async fn adopt(agent: &Arc<Agent>, told: Told, go_on: Vec<Listed>) {
    agent.sim.trace(|| format!("{} goes on with {} servers", agent.pod, go_on.len()));
    agent.lease.resume(told);
    for server in go_on {
        if server.phase == host::Phase::Frozen {
            let _ = agent.host.thaw(&server.uid, (server.epoch, agent.next_attempt())).await;
        }
        lock(&agent.starting).insert(server.uid.clone());
        lock(&agent.adopting).insert(server.uid.clone(), server);
    }
}

enum Asked {
    Held,
    NotYet(Failed),
    Lost(Arc<Server>, Failed),
    Over,
}

/// Whether the assigned server goes on here already: then it is held once its log is read and its state written.
pub(super) fn assigned(agent: &Arc<Agent>, id: &ServerId, assign: &session::Assign) -> bool {
    let Some(listed) = lock(&agent.adopting).remove(&id.uid) else { return false };
    let (asking, id, assign) = (agent.clone(), id.clone(), assign.clone());
    agent.process.spawn(async move {
        let agent = asking;
        let generation = agent.lease.writer().generation;
        agent.step(&id.uid, Step::Adopt);
        let asked = tokio::select! {
            biased;
            () = agent.lease.ended(generation) => Asked::Over,
            asked = ask(&agent, &id, &listed) => asked,
        };
        agent.step(&id.uid, Step::Idle);
        match asked {
            Asked::Held => {
                lock(&agent.starting).remove(&id.uid);
                if let Some(server) = agent.get(&id.uid) {
                    agent.tell(from_agent::Body::Held(server.report()));
                }
            }
            Asked::NotYet(failed) if agent.lease.holds(generation) => {
                lock(&agent.adopting).insert(id.uid.clone(), listed);
                start::report(&agent, &assign, failed);
            }
            Asked::Lost(server, failed) => {
                let is_over = stopped(&agent, &server).await;
                lock(&agent.starting).remove(&id.uid);
                if is_over {
                    start::report(&agent, &assign, failed);
                }
            }
            Asked::NotYet(_) | Asked::Over => {
                lock(&agent.starting).remove(&id.uid);
            }
        }
    });
    true
}

async fn ask(agent: &Arc<Agent>, id: &ServerId, listed: &Listed) -> Asked {
    let not_yet = || Asked::NotYet(session::assign_failed::Why::Store.into());
    agent.pool.subscribe().wait_for(|known| *known).await;
    let server = agent.new_server(id.clone(), listed.epoch);
    let newest = match server.log.read_newest(Sequence::NONE).await {
        Ok(newest) => newest.map(|newest| newest.header),
        Err(error) => return Asked::NotYet(start::read_failed(error)),
    };
    let (authority, after) = match (hold(newest.as_ref(), listed.epoch, &server.writer), &newest) {
        (Hold::Owned, Some(newest)) => (Authority::Adopted { epoch: listed.epoch }, newest.sequence),
        (Hold::Handed { from, after, handoff }, _) => (Authority::Handed { from, handoff }, after),
        _ => return Asked::Lost(server, start::not_ours(newest)),
    };
    let state = match timeout(CALL, agent.host.snapshot(&id.uid, listed.epoch, None)).await {
        Ok(Ok(Some(state))) => state,
        Ok(Err(Refused::NotFound | Refused::Conflict | Refused::Overtaken)) => {
            return Asked::Lost(server, session::assign_failed::Why::NotHere.into());
        }
        _ => return not_yet(),
    };
    let draft = Draft {
        epoch: listed.epoch,
        kind: Kind::Snapshot,
        writer: server.writer.clone(),
        body: Body::State(store::State { version: state.version, body: state.body }),
    };
    match server.log.append(&authority, draft, after, agent.lease.append_until()).await {
        Ok(_) if !agent.lease.holds(server.writer.generation) => Asked::Over,
        Ok(header) => {
            server.wrote(&header, Some(state.mark));
            server.update(|held| {
                held.phase = Phase::Active;
                held.sync_due = next_sync(agent);
            });
            agent.insert(&server);
            Asked::Held
        }
        Err(AppendError::Fenced(found)) => Asked::Lost(server, start::not_ours(Some(*found))),
        Err(_) => not_yet(),
    }
}
