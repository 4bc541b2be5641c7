//! Watching the host, and making good after it, or this agent, was restarted, or after a lease was over.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use handoff::{
    Sequence, ServerId,
    log::{Authority, Kind},
    source::Final,
};
use store::{Body, Draft};
use tokio::time::{self, Instant, timeout};
use wire::session::gone::How;

use super::{APPEND, Agent, Phase, session};
use crate::host::{self, CALL, Listed};

const LOOK: Duration = Duration::from_millis(500);
const LOOK_FIRST: Duration = Duration::from_millis(50);

/// Watches the host, for ever. A host that is another process than before has none of its servers.
pub(super) async fn watch_host(agent: Arc<Agent>) {
    let mut before = None;
    loop {
        let seen = timeout(CALL, agent.host.describe()).await.ok().and_then(Result::ok);
        if let Some(instance) = seen {
            if before.replace(instance).is_some_and(|before| before != instance) {
                lost(&agent);
            }
        }
        if *agent.described.borrow() != seen {
            agent.described.send_replace(seen);
            session::tell_status(&agent);
        }
        time::sleep(if seen.is_none() { LOOK_FIRST } else { LOOK }).await;
    }
}

/// The host process that ran these servers is gone, and they with it.
fn lost(agent: &Arc<Agent>) {
    agent.sim.trace(|| format!("{} has another host", agent.pod));
    for server in agent.all() {
        let lost = agent.clone();
        agent.process.spawn(async move {
            let _turn = server.turn.lock().await;
            if lost.get(&server.id.uid).is_some() && server.held().phase == Phase::Active {
                lost.gone(&server, How::Disclaimed, None);
            }
        });
    }
}

/// What the host still ran, frozen.
pub(super) struct Leftover {
    server: Listed,
    last: Option<Final<Bytes>>,
}

/// Before the first session: nothing that this agent does not hold may serve, so that its inventory is true.
pub(super) async fn freeze_leftovers(agent: &Arc<Agent>) -> Vec<Leftover> {
    let listed = loop {
        if let Ok(Ok(listed)) = timeout(CALL, agent.host.list()).await {
            break listed;
        }
        time::sleep(LOOK).await;
    };
    let mut leftovers = Vec::new();
    for server in listed {
        let call = (server.epoch, agent.next_attempt());
        let last = timeout(CALL, agent.host.freeze(&server.uid, call, None)).await.ok().and_then(Result::ok);
        leftovers.push(Leftover { server, last });
    }
    leftovers
}

/// Once the store is known: what was left is released with its state, so that it is started again from there.
pub(super) async fn release_leftovers(agent: Arc<Agent>, leftovers: Vec<Leftover>) {
    if agent.pool.subscribe().wait_for(|known| *known).await.is_err() {
        return;
    }
    for Leftover { server, last } in leftovers {
        let written = append_last(&agent, &server, last).await;
        agent.sim.trace(|| format!("{} {} e{} was left: {written:?}", agent.pod, server.uid, server.epoch));
        let _ = timeout(CALL, agent.host.stop(&server.uid, (server.epoch, agent.next_attempt()))).await;
    }
}

/// A frozen server whose newest record is our own Grant may have been sent: the Grant is repeated with the state, and
/// its target asked. Any other is released.
async fn append_last(agent: &Arc<Agent>, listed: &Listed, last: Option<Final<Bytes>>) -> Option<Sequence> {
    if listed.phase == host::Phase::Standby {
        return None;
    }
    let id = ServerId { namespace: "ns".into(), name: listed.uid.0.clone(), uid: listed.uid.clone() };
    let log = agent.open_log(&id);
    let newest = log.read_newest(Sequence::NONE).await.ok()??.header;
    if newest.epoch != listed.epoch {
        return None;
    }
    let granted = newest.grantee().map(|grantee| grantee.handoff);
    let sent = listed.phase == host::Phase::Frozen && granted.is_some();
    let body = match last? {
        Final::State(state) => Body::State(store::State { version: state.version, body: state.body }),
        Final::Unchanged(_) => Body::At { sequence: newest.state_at, version: newest.state_version },
    };
    let kind = if sent { newest.kind.clone() } else { Kind::Release };
    let draft = Draft { epoch: listed.epoch, kind, writer: agent.lease.writer(), body };
    let authority = Authority::Owner { epoch: listed.epoch, granted };
    let written = log.append(&authority, draft, newest.sequence, Instant::now() + APPEND).await;
    written.ok().map(|header| header.sequence)
}
