//! Until when this host may serve: its agent says so again and again. A host whose agent is gone, or that slept itself, ends
//! by its own clock, since by then its servers may run elsewhere.

use std::{
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Duration,
};

use http::StatusCode;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{answer::Refusal, headers::Order};

/// The generation of what was started before any lease was known.
const NONE: u64 = 0;

/// Time since the machine was booted, its sleep included; the agent's clock too.
pub(crate) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or_default(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

#[derive(Clone, Copy)]
struct Given {
    generation: u64,
    deadline: Duration,
    /// The first call of the agent that speaks now: what is numbered below is of one that is gone.
    first: u64,
}

/// What a restarted agent asks for.
#[derive(Serialize)]
pub(crate) struct Known {
    generation: u64,
    /// Milliseconds, as it came.
    deadline: u64,
}

/// What the agent said last. Without a word of it there is no limit: it may be an older agent.
#[derive(Default)]
pub(crate) struct Lease {
    given: Mutex<Option<Given>>,
    /// Held by each call while it does what it was asked to.
    passing: RwLock<()>,
}

impl Lease {
    /// Takes the agent's word. Nothing makes a generation that is over live again. Once this is answered, no call of an
    /// earlier agent changes anything: that is what a restarted one builds on when it looks at what is here.
    pub(crate) fn renew(&self, generation: u64, deadline: Duration, first: u64) -> Result<(), Refusal> {
        if self.note(generation, deadline, first)? {
            // Calls that passed before this was noted are done once nobody passes.
            drop(self.passing.write().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(())
    }

    /// Whether another agent speaks than before.
    fn note(&self, generation: u64, deadline: Duration, first: u64) -> Result<bool, Refusal> {
        let mut given = self.given();
        let now = boot_time();
        let known = given.map_or(NONE, |given| given.generation);
        if generation < known {
            let sentence = format!("generation {known} was seen, which is later than {generation}");
            return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, sentence));
        }
        let before = given.filter(|given| given.generation == generation);
        if now >= before.map_or(deadline, |before| before.deadline) {
            return Err(Refusal::conflict(format!("generation {generation} is over: begin a new one")));
        }
        let deadline = before.map_or(deadline, |before| before.deadline.max(deadline));
        let first = before.map_or(first, |before| before.first.max(first));
        let is_another = given.is_none_or(|given| given.first != first);
        *given = Some(Given { generation, deadline, first });
        Ok(is_another)
    }

    /// The newest lease, if there was one.
    pub(crate) fn known(&self) -> Option<Known> {
        let given = (*self.given())?;
        Some(Known {
            generation: given.generation,
            deadline: u64::try_from(given.deadline.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Lets a call do what it is asked to, unless it is of an earlier agent than the one that speaks now.
    pub(crate) fn pass(&self, order: Order) -> Result<RwLockReadGuard<'_, ()>, Refusal> {
        let passes = self.passing.read().unwrap_or_else(PoisonError::into_inner);
        match self.given().map(|given| given.first) {
            Some(first) if order.attempt < first => {
                let sentence = format!("its agent is gone: that of now began with attempt {first}");
                Err(Refusal::new(StatusCode::PRECONDITION_FAILED, sentence))
            }
            _ => Ok(passes),
        }
    }

    /// What a server that is started now belongs to; refused if nothing may be started now.
    pub(crate) fn begin(&self) -> Result<u64, Refusal> {
        match *self.given() {
            None => Ok(NONE),
            Some(given) if boot_time() < given.deadline => Ok(given.generation),
            Some(given) => Err(over(given.generation)),
        }
    }

    /// Whether a server of this generation may be served, by a look at the clock now.
    pub(crate) fn allows(&self, generation: u64) -> bool {
        self.given().is_none_or(|given| given.generation == generation && boot_time() < given.deadline)
    }

    /// Refuses what would have a server of this generation serve, once that is over.
    pub(crate) fn check(&self, generation: u64) -> Result<(), Refusal> {
        if self.allows(generation) { Ok(()) } else { Err(over(generation)) }
    }

    fn given(&self) -> MutexGuard<'_, Option<Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn over(generation: u64) -> Refusal {
    Refusal::conflict(format!("the lease of generation {generation} is over: nothing of it is served any more"))
}
