//! One server goes to another pod the way its pool says, within what may be in flight: the same for a drain and for a move.

use std::sync::Arc;

use crds::Transfer;
use handoff::{drain::Ended, log::Kind};
use tokio::{
    sync::{AcquireError, Semaphore, SemaphorePermit, watch},
    time::{self, Instant},
};

use crate::{
    agent::{Agent, Pool, Target},
    give::{Given, give},
    release::release,
    routes::{Found, Way},
    servers::Server,
};

/// Unit of the semaphore that bounds bytes in flight.
const KIB: u64 = 1024;

/// State that handoffs hold at once.
pub struct InFlight {
    turns: Semaphore,
    all: u32,
}

impl InFlight {
    /// As much as this pool allows.
    #[must_use]
    pub fn of(pool: &Pool) -> Self {
        let kib = pool.settings.drain.max_bytes_in_flight / KIB;
        let all = u32::try_from(kib).unwrap_or(u32::MAX).max(1);
        Self { turns: Semaphore::new(usize::try_from(all).unwrap_or(Semaphore::MAX_PERMITS)), all }
    }

    /// Waits until this server's state fits in; it does until what is returned is dropped.
    pub async fn turn(&self, server: &Server) -> Result<SemaphorePermit<'_>, AcquireError> {
        let kib = u32::try_from((server.held().state_bytes / KIB).max(4)).unwrap_or(u32::MAX);
        // One that is larger than all goes alone.
        self.turns.acquire_many(kib.min(self.all)).await
    }
}

/// Hands a server to a target. A move by the store is given up at `until`, any other once `abort` is true.
pub async fn hand_over(
    agent: &Arc<Agent>,
    server: &Arc<Server>,
    target: Target,
    pool: &Pool,
    until: Instant,
    abort: watch::Receiver<bool>,
) -> Given {
    if pool.settings.drain.transfer == Transfer::Store {
        through_store(agent, server, until).await
    } else {
        give(agent, server, target, server.limits(pool), abort).await
    }
}

/// The comparison mode: stop, write, read, start. Over when the directory names a new owner.
async fn through_store(agent: &Arc<Agent>, server: &Arc<Server>, until: Instant) -> Given {
    let began = Instant::now();
    let gone = Given { ended: Ended::Gone, gap: None, reason: String::new() };
    if !release(agent, server, "TransferStore", until, Kind::Release).await {
        return gone;
    }
    let wait = time::timeout_at(until, elsewhere(agent, &server.id.name));
    match wait.await {
        Ok(()) => Given { ended: Ended::Moved, gap: Some(began.elapsed()), ..gone },
        Err(_) => gone,
    }
}

/// Waits until the directory names another pod for this server.
pub async fn elsewhere(agent: &Arc<Agent>, name: &str) {
    loop {
        let found = agent.routes.find(name);
        if let Found::Known(route) = &found
            && matches!(route.way, Way::There { .. })
        {
            return;
        }
        agent.routes.changed(name, &found).await;
    }
}
