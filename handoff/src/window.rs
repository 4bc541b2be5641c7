//! How many handoffs at once: preparing one costs the same cores that shorten the gap of another.

use std::time::Duration;

/// A gap up to this long is short. A drain grows until one gap in some ten is longer, so this sets how long the longest are.
pub const SHORT_GAP: Duration = Duration::from_millis(8);

/// Handoffs under way however long the gaps are: on a machine that is busy with something else, waiting does not help.
pub const FLOOR: usize = 4;

/// Handoffs under way to begin with.
pub const FIRST: usize = 8;

/// A number that grows while gaps are short, and shrinks when they are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window(usize);

impl Default for Window {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Window {
    /// How many at once, if no more than `max` are allowed.
    #[must_use]
    pub fn size(self, max: usize) -> usize {
        self.0.min(max).max(1)
    }

    /// A handoff ended, and its gap was so long. Additive increase, multiplicative decrease.
    pub fn gap(&mut self, gap: Duration, max: usize) {
        let size = if gap <= SHORT_GAP { self.0 + 1 } else { self.0 * 3 / 4 };
        self.0 = size.clamp(FLOOR, max.max(FLOOR));
    }

    /// Whatever the gaps are: there is no time left for care.
    pub fn open(&mut self, max: usize) {
        self.0 = max.max(FLOOR);
    }
}
