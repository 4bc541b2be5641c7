//! Single moves that the operator orders, as `agent/src/moves.rs` carries them out.

use std::sync::{Arc, atomic::Ordering};

use handoff::{Epoch, PodUid, ServerUid, drain::Ended, source::Limits};
use wire::session::{self, from_agent};

use super::{Agent, give::give};
use crate::{lock, watch};

/// Hands one server over, and answers the order whatever becomes of it.
pub(super) fn ordered(agent: &Arc<Agent>, order: session::Move) {
    let moving = agent.clone();
    agent.process.spawn(async move {
        let moved = carry_out(&moving, &order).await;
        moving.tell(from_agent::Body::MoveEnded(session::MoveEnded {
            order: order.order,
            server: order.server,
            moved,
            reason: String::new(),
        }));
    });
}

async fn carry_out(agent: &Arc<Agent>, order: &session::Move) -> bool {
    let (Some(reference), Some(target)) = (&order.server, &order.target) else { return false };
    let uid = ServerUid(reference.uid.clone());
    let held = agent.get(&uid).filter(|server| server.held().epoch == Epoch(order.epoch));
    let Some(server) = held else { return false };
    let abort = watch::Sender::new(false);
    let aborted = abort.subscribe();
    {
        let mut under_way = lock(&agent.moves);
        if agent.draining.load(Ordering::Relaxed) || under_way.contains_key(&uid) {
            return false;
        }
        under_way.insert(uid.clone(), abort);
    }
    let (ended, _) = give(agent, &server, PodUid(target.pod_uid.clone()), Limits::default(), aborted).await;
    lock(&agent.moves).remove(&uid);
    ended == Ended::Moved
}

/// This pod shuts down, and its drain decides where servers go.
pub(super) fn abort(agent: &Agent) {
    for abort in lock(&agent.moves).values() {
        abort.replace(true);
    }
}
