//! All chance of one run comes from its seed.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

/// A source of chance that many share.
#[derive(Clone)]
pub struct Chance(Arc<Mutex<StdRng>>);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    fn with<R>(&self, draw: impl FnOnce(&mut StdRng) -> R) -> R {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn number(&self) -> u64 {
        self.with(Rng::next_u64)
    }

    pub fn within(&self, range: Range<u64>) -> u64 {
        self.with(|rng| rng.random_range(range))
    }

    /// So many milliseconds.
    pub fn ms(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// True in so many of a hundred cases.
    pub fn percent(&self, of: u64) -> bool {
        self.within(0..100) < of
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> Option<&'a T> {
        let length = u64::try_from(from.len()).unwrap_or_default();
        (length > 0).then(|| self.within(0..length)).and_then(|at| from.get(usize::try_from(at).ok()?))
    }
}
