//! How much the gateway may hold for clients.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{gateway::answer::Refusal, metrics::Metrics};

/// Requests that wait and bodies that are buffered, both counted against a bound.
pub struct Bounds {
    max_held: usize,
    held: AtomicUsize,
    max_buffered: usize,
    buffered: AtomicUsize,
    metrics: Metrics,
}

impl Bounds {
    pub fn new(max_held: usize, max_buffered: usize, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { max_held, held: AtomicUsize::new(0), max_buffered, buffered: AtomicUsize::new(0), metrics })
    }

    /// A place to wait in.
    pub fn hold(&self) -> Result<Holding<'_>, Refusal> {
        if !add(&self.held, 1, self.max_held) {
            return Err(Refusal::later(format!(
                "{} requests wait for their servers already; try again",
                self.max_held
            )));
        }
        self.metrics.held();
        Ok(Holding(self))
    }

    /// Room for one body, none taken yet.
    pub fn buffer(self: &Arc<Self>) -> Buffer {
        Buffer { bounds: self.clone(), bytes: 0 }
    }
}

/// Adds unless the sum would pass `max`.
fn add(counter: &AtomicUsize, more: usize, max: usize) -> bool {
    let sum = |now: usize| now.checked_add(more).filter(|sum| *sum <= max);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

/// A place among the requests that wait.
pub struct Holding<'a>(&'a Bounds);

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.unheld();
    }
}

/// Bytes of a buffered body, given back when dropped.
pub struct Buffer {
    bounds: Arc<Bounds>,
    bytes: usize,
}

impl Buffer {
    pub fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        if !add(&self.bounds.buffered, bytes, self.bounds.max_buffered) {
            return Err(Refusal::later("this gateway has no room for another request body now; try again"));
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.bounds.buffered.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
