//! Until when this host may serve: its agent says so again and again. A host whose agent is gone, or that slept itself, ends
//! by its own clock, since by then its servers may run elsewhere.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use rustix::time::{ClockId, clock_gettime};

use crate::answer::Refusal;

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
}

/// What the agent said last. Without a word of it there is no limit: it may be an older agent.
#[derive(Default)]
pub(crate) struct Lease(Mutex<Option<Given>>);

impl Lease {
    /// Takes the agent's word. Nothing makes a generation that is over live again.
    pub(crate) fn renew(&self, generation: u64, deadline: Duration) -> Result<(), Refusal> {
        let mut given = self.given();
        let now = boot_time();
        let known = given.map_or(NONE, |given| given.generation);
        if generation < known {
            let sentence = format!("generation {known} was seen, which is later than {generation}");
            return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, sentence));
        }
        let before = given.filter(|given| given.generation == generation).map(|given| given.deadline);
        if now >= before.unwrap_or(deadline) {
            return Err(Refusal::conflict(format!("generation {generation} is over: begin a new one")));
        }
        *given = Some(Given { generation, deadline: before.map_or(deadline, |before| before.max(deadline)) });
        Ok(())
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn over(generation: u64) -> Refusal {
    Refusal::conflict(format!("the lease of generation {generation} is over: nothing of it is served any more"))
}
