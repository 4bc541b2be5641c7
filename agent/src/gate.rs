//! Whether requests and calls that have a server serve may still pass to the host: only before the end of the lease.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use handoff::Instant;

/// One end for all who hold a clone. Open until it is given one.
#[derive(Clone)]
pub struct Gate {
    until: Arc<AtomicU64>,
    clock: fn() -> Instant,
}

impl Gate {
    /// Open for ever, by this clock.
    #[must_use]
    pub fn open(clock: fn() -> Instant) -> Self {
        Self { until: Arc::new(AtomicU64::new(u64::MAX)), clock }
    }

    /// Closed from this time on; `None`: now.
    pub fn close_at(&self, end: Option<Instant>) {
        let nanos = end.map_or(0, |end| u64::try_from(end.0.as_nanos()).unwrap_or(u64::MAX));
        self.until.store(nanos, Ordering::Release);
    }

    /// Looks at the clock.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until != u64::MAX && (self.clock)().0.as_nanos() >= u128::from(until)
    }
}
