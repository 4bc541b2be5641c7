//! Watching the host, and making good after it, or this agent, was restarted, or after a lease was over.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use handoff::{
    Sequence, ServerId, adopt,
    log::{Authority, Header},
    source::Final,
};
use store::{AppendError, Body, Draft, Log, ReadError};
use tokio::{
    sync::mpsc,
    time::{self, Instant, timeout},
};
use wire::session::gone::How;

use super::{APPEND, Agent, Phase, session};
use crate::host::{self, CALL, Listed};

const LOOK: Duration = Duration::from_millis(500);
const LOOK_FIRST: Duration = Duration::from_millis(50);
const DEAD: Duration = Duration::from_millis(1500);
const AGAIN: Duration = Duration::from_secs(1);

/// Watches the host, for ever. A host that is another process than before has none of its servers.
pub(super) async fn watch_host(agent: Arc<Agent>) {
    let (mut before, mut dead_since) = (None, None);
    loop {
        let seen = timeout(CALL, agent.host.describe()).await.ok().and_then(Result::ok);
        let news = agent.described.set(seen);
        if let Some(instance) = seen {
            dead_since = None;
            // First, so that the operator may give this pod what it has just lost.
            if news {
                session::tell_status(&agent);
            }
            if before.replace(instance).is_some_and(|before| before != instance) {
                lost(&agent);
            }
        } else if agent.host.listens() {
            dead_since = None;
        } else if dead_since.get_or_insert_with(Instant::now).elapsed() >= DEAD {
            lost(&agent);
        }
        time::sleep(if seen.is_none() { LOOK_FIRST } else { LOOK }).await;
    }
}

/// The host process that ran these servers is gone, and they with it.
fn lost(agent: &Arc<Agent>) {
    agent.sim.trace(|| format!("{} lost its host", agent.pod));
    for server in agent.all() {
        let lost = agent.clone();
        agent.process.spawn(async move {
            let _turn = server.turn.lock().await;
            if lost.get(&server.id.uid).is_some() && server.held().phase == Phase::Active {
                lost.gone(&server, How::Crashed, None);
            }
        });
    }
}

/// What the host still ran, frozen.
pub(super) struct Leftover {
    server: Listed,
    last: Option<Final<Bytes>>,
}

/// At the end of a lease: nothing that this agent does not hold may serve, so that its inventory is true.
pub(super) async fn freeze_leftovers(agent: &Arc<Agent>) -> Vec<Leftover> {
    let listed = list(agent).await;
    freeze(agent, listed).await
}

/// All that the host has, once it says so.
pub(super) async fn list(agent: &Arc<Agent>) -> Vec<Listed> {
    loop {
        if let Ok(Ok(listed)) = timeout(CALL, agent.host.list()).await {
            return listed;
        }
        time::sleep(LOOK).await;
    }
}

/// Ends these.
pub(super) async fn freeze(agent: &Arc<Agent>, listed: Vec<Listed>) -> Vec<Leftover> {
    let (frozen, mut all) = mpsc::unbounded_channel();
    for server in listed {
        let (agent, frozen) = (agent.clone(), frozen.clone());
        agent.clone().process.spawn(async move {
            let call = (server.epoch, agent.next_attempt());
            let last = timeout(CALL, agent.host.freeze(&server.uid, call, None)).await.ok().and_then(Result::ok);
            let _ = frozen.send(Leftover { server, last });
        });
    }
    drop(frozen);
    let mut leftovers = Vec::new();
    while let Some(leftover) = all.recv().await {
        leftovers.push(leftover);
    }
    leftovers
}

/// Once the store is known: what was left is released with its state, so that it is started again from there.
pub(super) async fn release_leftovers(agent: Arc<Agent>, leftovers: Vec<Leftover>) {
    agent.pool.subscribe().wait_for(|known| *known).await;
    let mut left = leftovers;
    while !left.is_empty() {
        let mut again = Vec::new();
        for leftover in left {
            again.extend(release(&agent, leftover).await);
        }
        left = again;
        time::sleep(AGAIN).await;
    }
}

/// What became of the last state of a leftover.
#[derive(Debug)]
enum Written {
    Done,
    NotYet,
    Never,
}

/// Returns what is to be tried again.
async fn release(agent: &Arc<Agent>, leftover: Leftover) -> Option<Leftover> {
    let written = write(agent, &leftover).await;
    let server = &leftover.server;
    agent.sim.trace(|| format!("{} {} e{} was left: {written:?}", agent.pod, server.uid, server.epoch));
    if matches!(written, Written::NotYet) {
        return Some(leftover);
    }
    let _ = timeout(CALL, agent.host.stop(&server.uid, (server.epoch, agent.next_attempt()))).await;
    None
}

async fn write(agent: &Arc<Agent>, Leftover { server: listed, last }: &Leftover) -> Written {
    if listed.phase == host::Phase::Standby {
        return Written::Never;
    }
    let id = ServerId { namespace: "ns".into(), name: listed.uid.0.clone(), uid: listed.uid.clone() };
    let log = agent.open_log(&id);
    let newest = match log.read_newest(Sequence::NONE).await {
        Ok(newest) => newest.map(|newest| newest.header),
        Err(ReadError::Store(_)) => return Written::NotYet,
        Err(_) => return Written::Never,
    };
    let Some(newest) = newest.filter(|newest| newest.epoch == listed.epoch) else { return Written::Never };
    let Some(last) = last.clone() else { return Written::Never };
    match append_last(agent, &log, listed, &newest, last).await {
        Ok(_) => Written::Done,
        Err(AppendError::Unavailable(_)) => Written::NotYet,
        Err(_) => Written::Never,
    }
}

async fn append_last(
    agent: &Arc<Agent>,
    log: &Log,
    listed: &Listed,
    newest: &Header,
    last: Final<Bytes>,
) -> Result<Header, AppendError> {
    let granted = newest.grantee().map(|grantee| grantee.handoff);
    let body = match last {
        Final::State(state) => Body::State(store::State { version: state.version, body: state.body }),
        Final::Unchanged(_) => Body::At { sequence: newest.state_at, version: newest.state_version },
    };
    let kind = adopt::last(newest, listed.phase);
    let draft = Draft { epoch: listed.epoch, kind, writer: agent.lease.writer(), body };
    let authority = Authority::Owner { epoch: listed.epoch, granted };
    log.append(&authority, draft, newest.sequence, Instant::now() + APPEND).await
}
