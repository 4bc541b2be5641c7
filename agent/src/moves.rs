//! Single moves, which the operator orders while this pod lives on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use handoff::{Epoch, ServerUid, drain::Ended};
use tokio::{sync::watch, time::Instant};
use wire::session::{self, from_agent};

use crate::{
    agent::{Agent, Pool, Target},
    give::Given,
    hand_over::{InFlight, hand_over},
    servers::{Server, server_id},
};

/// A move by the store is given up as a start elsewhere would be.
const THROUGH_STORE: Duration = Duration::from_secs(30);

/// Moves under way, and what ends each of them.
#[derive(Default)]
pub struct Moves {
    under_way: Mutex<HashMap<ServerUid, watch::Sender<bool>>>,
    in_flight: OnceLock<InFlight>,
}

impl Moves {
    fn lock(&self) -> MutexGuard<'_, HashMap<ServerUid, watch::Sender<bool>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Gives up what can be given up: this pod shuts down, and its drain decides where servers go.
    pub fn abort(&self) {
        for abort in self.lock().values() {
            abort.send_replace(true);
        }
    }
}

/// Hands one server over, and answers the order whatever becomes of it.
pub fn ordered(agent: &Arc<Agent>, order: session::Move) {
    let agent = agent.clone();
    tokio::spawn(async move {
        let (number, reference) = (order.order, order.server.clone());
        let (moved, reason) = match begin(&agent, order) {
            Ok(given) => {
                let Given { ended, reason, .. } = given.await;
                (ended == Ended::Moved, reason)
            }
            Err(reason) => (false, reason.to_owned()),
        };
        agent.operator.tell(from_agent::Body::MoveEnded(session::MoveEnded {
            order: number,
            server: reference,
            moved,
            reason,
        }));
    });
}

fn begin(agent: &Arc<Agent>, order: session::Move) -> Result<impl Future<Output = Given>, &'static str> {
    let (id, target) = (server_id(order.server), order.target.as_ref().and_then(Target::of));
    let (Some(id), Some(target)) = (id, target) else { return Err("the order names no server, or no pod to reach") };
    let held = agent.servers.get(&id.uid).filter(|server| server.epoch() == Epoch(order.epoch));
    let server = held.ok_or("the order is of an epoch that is not held here")?;
    let pool = agent.pool().map_err(|_| "this pod cannot host")?;
    let (abort, aborted) = watch::channel(false);
    let mut under_way = agent.moves.lock();
    if agent.draining.is_draining() {
        return Err("this pod shuts down");
    }
    if under_way.contains_key(&id.uid) {
        return Err("it is being moved");
    }
    under_way.insert(id.uid, abort);
    drop(under_way);
    Ok(carry_out(agent.clone(), server, pool, target, aborted))
}

async fn carry_out(
    agent: Arc<Agent>,
    server: Arc<Server>,
    pool: Pool,
    target: Target,
    aborted: watch::Receiver<bool>,
) -> Given {
    let in_flight = agent.moves.in_flight.get_or_init(|| InFlight::of(&pool));
    let turn = in_flight.turn(&server).await;
    let given = hand_over(&agent, &server, target, &pool, Instant::now() + THROUGH_STORE, aborted).await;
    drop(turn);
    agent.moves.lock().remove(&server.id.uid);
    given
}
