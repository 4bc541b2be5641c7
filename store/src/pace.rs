//! Keeps the rate of requests at what the store bears: a token bucket whose rate grows by addition and shrinks by
//! multiplication, on refusals and on slow answers. Urgent requests go before the others.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::objects::{Created, Lanes, Listed, Objects, Part, StoreError};

/// Bounds of the rate, in requests per second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// To begin with.
    pub start: f64,
    /// Never below.
    pub min: f64,
    /// Never above.
    pub max: f64,
}

impl Rates {
    /// Never above this rate, which is known to be borne; found out carefully from a lower one on.
    #[must_use]
    pub fn up_to(most: u32) -> Self {
        let most = f64::from(most);
        Self { start: most.min(1000.0), min: most.min(20.0), max: most }
    }
}

impl Default for Rates {
    /// One prefix of S3 takes 3500 writes a second before it splits, and one agent is rarely alone on it.
    fn default() -> Self {
        Self::up_to(3000)
    }
}

/// What a second of answers at the full rate adds to the rate.
const GROWTH: f64 = 100.0;
/// What a refusal leaves of the rate.
const AFTER_REFUSAL: f64 = 0.5;
/// What a slow answer leaves of the rate.
const AFTER_SLOWNESS: f64 = 0.8;
/// Requests in flight together learn of one overload: it counts once in this time.
const CUT_INTERVAL: Duration = Duration::from_secs(1);
/// An answer is slow after this, and a further second for each [`SLOW_BYTES`].
const SLOW: Duration = Duration::from_secs(1);
const SLOW_BYTES: u64 = 4 << 20;
/// The bucket holds what flows in this many seconds.
const BURST: f64 = 0.1;
/// Requests in flight, each lane its own, so that slow snapshots cannot hold up a grant.
const URGENT_IN_FLIGHT: usize = 96;
const BULK_IN_FLIGHT: usize = 32;

#[derive(Debug)]
struct Bucket {
    rates: Rates,
    rate: f64,
    tokens: f64,
    filled: Instant,
    cut: Option<Instant>,
}

impl Bucket {
    fn new(rates: Rates) -> Self {
        let rate = rates.start.clamp(rates.min, rates.max);
        Self { rates, rate, tokens: (rate * BURST).max(1.0), filled: Instant::now(), cut: None }
    }

    /// Takes a token, or says when to ask again.
    fn take(&mut self) -> Result<(), Duration> {
        let now = Instant::now();
        let flowed = now.saturating_duration_since(self.filled).as_secs_f64() * self.rate;
        self.filled = now;
        self.tokens = (self.tokens + flowed).min((self.rate * BURST).max(1.0));
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(self.interval(1.0 - self.tokens))
    }

    fn interval(&self, tokens: f64) -> Duration {
        Duration::from_secs_f64(tokens / self.rate).max(Duration::from_millis(1))
    }

    fn grow(&mut self) {
        self.rate = (self.rate + GROWTH / self.rate).min(self.rates.max);
    }

    fn cut(&mut self, leaves: f64) {
        let now = Instant::now();
        if self.cut.is_some_and(|last| now.saturating_duration_since(last) < CUT_INTERVAL) {
            return;
        }
        self.cut = Some(now);
        self.rate = (self.rate * leaves).max(self.rates.min);
        self.tokens = self.tokens.min(1.0);
        tracing::info!(rate = self.rate, "store slow or overloaded: fewer requests");
    }
}

/// What the lanes of one store share.
#[derive(Debug)]
struct Shared {
    inner: Arc<dyn Objects>,
    bucket: Mutex<Bucket>,
    urgent_waiting: AtomicUsize,
}

/// Counts a waiting urgent request for as long as it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn bucket<T>(&self, with: impl FnOnce(&mut Bucket) -> T) -> T {
        with(&mut self.bucket.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes a token. One request of each lane at a time.
    async fn token(&self, is_urgent: bool) {
        loop {
            let gives_way = !is_urgent && self.urgent_waiting.load(Ordering::Relaxed) > 0;
            let taken = self.bucket(|bucket| if gives_way { Err(bucket.interval(1.0)) } else { bucket.take() });
            match taken {
                Ok(()) => return,
                Err(again) => sleep(again).await,
            }
        }
    }

    fn learn<T>(&self, result: &Result<T, StoreError>, took: Duration, bytes: usize) {
        let slow = SLOW + Duration::from_secs(bytes as u64 / SLOW_BYTES);
        self.bucket(|bucket| match result {
            Err(StoreError::Throttled(_)) => bucket.cut(AFTER_REFUSAL),
            // No answer is the slowest of answers.
            Err(StoreError::Unknown(_)) => bucket.cut(AFTER_SLOWNESS),
            Ok(_) if took > slow => bucket.cut(AFTER_SLOWNESS),
            Ok(_) => bucket.grow(),
            Err(_) => {}
        });
    }
}

/// One lane of a paced store.
#[derive(Debug)]
struct Lane {
    shared: Arc<Shared>,
    is_urgent: bool,
    /// The requests in order: only the first looks at the bucket.
    turn: tokio::sync::Mutex<()>,
    /// Bounds the connections when answers are slow.
    slots: Semaphore,
}

/// Paces a store. All logs of a process share one pair of lanes.
#[must_use]
pub fn pace(inner: Arc<dyn Objects>, rates: Rates) -> Lanes {
    let shared =
        Arc::new(Shared { inner, bucket: Mutex::new(Bucket::new(rates)), urgent_waiting: AtomicUsize::new(0) });
    let lane = |is_urgent, slots| {
        let (turn, slots) = (tokio::sync::Mutex::default(), Semaphore::new(slots));
        Arc::new(Lane { shared: Arc::clone(&shared), is_urgent, turn, slots })
    };
    Lanes { urgent: lane(true, URGENT_IN_FLIGHT), bulk: lane(false, BULK_IN_FLIGHT) }
}

impl Lane {
    async fn paced<T>(&self, bytes: usize, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        // Never closed, so there is always a slot at last.
        let _slot = self.slots.acquire().await;
        {
            let _waiting = self.is_urgent.then(|| Waiting::new(&self.shared.urgent_waiting));
            let _turn = self.turn.lock().await;
            self.shared.token(self.is_urgent).await;
        }
        let sent = Instant::now();
        let result = call.await;
        self.shared.learn(&result, sent.elapsed(), bytes);
        result
    }
}

#[async_trait]
impl Objects for Lane {
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StoreError> {
        self.paced(body.len(), self.shared.inner.create(key, body)).await
    }

    async fn get(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError> {
        self.paced(0, self.shared.inner.get(key, part)).await
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.paced(0, self.shared.inner.list(prefix, start_after, limit)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.paced(0, self.shared.inner.delete(key)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Fault, Memory, Operation};

    fn lanes(memory: &Arc<Memory>, start: f64) -> Lanes {
        pace(Arc::clone(memory) as Arc<dyn Objects>, Rates { start, min: 5.0, max: 1000.0 })
    }

    async fn creates(lane: &Arc<dyn Objects>, name: &str, count: usize) {
        for n in 0..count {
            let _ = lane.create(&format!("{name}/{n}"), Bytes::new()).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_bounds_what_is_sent() {
        let lanes = lanes(&Arc::default(), 100.0);
        let begin = Instant::now();
        creates(&lanes.bulk, "a", 110).await;
        let took = begin.elapsed();
        assert!((Duration::from_millis(600)..Duration::from_millis(1100)).contains(&took), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_halves_the_rate_once_and_answers_raise_it_again() {
        let memory = Arc::new(Memory::default());
        let lanes = lanes(&memory, 100.0);
        let refusal = Fault::Fail(StoreError::Throttled("SlowDown".into()));
        memory.inject(Operation::Create, vec![refusal; 5]);
        creates(&lanes.bulk, "a", 5).await;
        let begin = Instant::now();
        creates(&lanes.bulk, "b", 50).await;
        let halved = begin.elapsed();
        assert!((Duration::from_millis(600)..Duration::from_millis(1100)).contains(&halved), "{halved:?}");
        creates(&lanes.bulk, "c", 500).await;
        let begin = Instant::now();
        creates(&lanes.bulk, "d", 50).await;
        assert!(begin.elapsed() < halved / 2, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn urgent_requests_overtake() {
        let memory = Arc::new(Memory::default());
        let lanes = lanes(&memory, 10.0);
        let bulk: Vec<_> = (0..20)
            .map(|n| {
                let lane = Arc::clone(&lanes.bulk);
                tokio::spawn(async move { lane.create(&format!("bulk/{n}"), Bytes::new()).await })
            })
            .collect();
        sleep(Duration::from_millis(10)).await;
        creates(&lanes.urgent, "urgent", 5).await;
        let before = memory.keys().iter().filter(|key| key.starts_with("bulk")).count();
        assert!(before <= 3, "{before} went before");
        for task in bulk {
            task.await.unwrap().unwrap();
        }
    }
}
