//! Lines that anyone on the network could cause without end.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many lines are written in one [`WINDOW`].
const LINES: u32 = 20;
/// See [`LINES`].
const WINDOW: Duration = Duration::from_mins(1);

/// Lets a few lines of one kind through, and counts the others.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self::new()
    }
}

impl Counts {
    const fn new() -> Self {
        Self { since: None, written: 0, left_out: 0 }
    }
}

impl Seldom {
    /// None written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Mutex::new(Counts::new()))
    }

    /// Whether the line may be written; if so, how many were left out before it.
    pub fn say(&self) -> Option<u64> {
        let now = Instant::now();
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.since.is_none_or(|since| now - since >= WINDOW) {
            counts.since = Some(now);
            counts.written = 0;
        }
        if counts.written >= LINES {
            counts.left_out += 1;
            return None;
        }
        counts.written += 1;
        Some(std::mem::take(&mut counts.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_few_lines_are_written_and_the_others_counted() {
        let seldom = Seldom::new();
        let written = (0..LINES + 7).filter(|_| seldom.say() == Some(0)).count();
        assert_eq!(written, LINES as usize);
        tokio::time::advance(WINDOW).await;
        assert_eq!((seldom.say(), seldom.say()), (Some(7), Some(0)));
    }
}
