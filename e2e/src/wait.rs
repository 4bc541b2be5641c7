//! Waiting for what must come true.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::{MissedTickBehavior, interval, timeout};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Looks again and again until there is an answer. An error of `look` ends the wait; what it should outlast, it gives
/// as `None`.
pub async fn until<T>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let found = timeout(limit, async {
        loop {
            ticks.tick().await;
            if let Some(found) = look().await? {
                return anyhow::Ok(found);
            }
        }
    });
    found.await.with_context(|| format!("not within {limit:?}: {what}"))?
}
