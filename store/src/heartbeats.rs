//! Signs of life of agents whose session is down. Each is a key of its own under its agent's pod, so that nothing is
//! ever overwritten here either: a late write of an old one cannot hide a newer one.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use handoff::{lease::Heartbeat, log::Writer};

use crate::{
    keys,
    logs::age,
    objects::{Lanes, Listed, StoreError},
    read::list_all,
};

/// Far longer than the longest lease, ten minutes, and than calendars differ.
const OLD: Duration = Duration::from_hours(24);

/// The heartbeats under one prefix.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    lanes: Lanes,
    prefix: String,
}

impl Heartbeats {
    /// Under `prefix`, as in [`crate::Log::new`]. Does not touch the store.
    #[must_use]
    pub fn new(lanes: Lanes, prefix: &str) -> Self {
        Self { lanes, prefix: keys::join(prefix, "heartbeats") }
    }

    /// Writes a heartbeat of the agent run `of`. Success means that every read that begins later finds it, or a newer one.
    pub async fn write(&self, of: &Writer, counter: u64) -> Result<(), StoreError> {
        // Nobody else makes this key: whether it is there already does not matter.
        self.lanes.urgent.create(&self.key(of, counter)?, Bytes::new()).await.map(drop)
    }

    /// The newest heartbeat of the agent run `of` above this one, if there is one.
    pub async fn newest(&self, of: &Writer, above: u64) -> Result<Option<Heartbeat>, StoreError> {
        let of_run = format!("{}{:016x}-", self.of_pod(of)?, of.generation.0);
        let mut last = None;
        list_all(&self.lanes.urgent, &of_run, self.key(of, above)?, |listed| last = Some(listed.key)).await?;
        let Some(last) = last else { return Ok(None) };
        let counter = last.strip_prefix(&of_run).and_then(|counter| u64::from_str_radix(counter, 16).ok());
        let counter = counter.ok_or_else(|| StoreError::Other(format!("{last} is not a heartbeat's key")))?;
        Ok(Some(Heartbeat { generation: of.generation, counter }))
    }

    /// Deletes what came before this heartbeat, of earlier generations too. The newest must stay for as long as its
    /// generation lives: whoever looks late must find it.
    pub async fn forget_before(&self, of: &Writer, counter: u64) -> Result<(), StoreError> {
        let newest = self.key(of, counter)?;
        self.delete(&self.of_pod(of)?, |listed| listed.key < newest).await.map(drop)
    }

    /// Deletes what agents left behind that are gone: nobody needs a sign of life that is a day old by the store's calendar.
    /// How many there were.
    pub async fn sweep(&self, now: SystemTime) -> Result<usize, StoreError> {
        // Of a store that does not say when it was written, none is old.
        let is_old = |listed: &Listed| listed.modified.is_some_and(|modified| age(now, modified) > OLD);
        self.delete(&format!("{}/", self.prefix), is_old).await
    }

    /// How many keys of those within were such.
    async fn delete(&self, within: &str, such: impl Fn(&Listed) -> bool) -> Result<usize, StoreError> {
        let mut keys = Vec::new();
        list_all(&self.lanes.bulk, within, String::new(), |listed| {
            if such(&listed) {
                keys.push(listed.key);
            }
        })
        .await?;
        for key in &keys {
            self.lanes.bulk.delete(key).await?;
        }
        Ok(keys.len())
    }

    fn of_pod(&self, of: &Writer) -> Result<String, StoreError> {
        Ok(format!("{}/{}/", self.prefix, keys::part(&of.pod.0)?))
    }

    fn key(&self, of: &Writer, counter: u64) -> Result<String, StoreError> {
        Ok(format!("{}{:016x}-{counter:016x}", self.of_pod(of)?, of.generation.0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use handoff::{Generation, PodUid};

    use super::*;
    use crate::{
        Memory, Objects,
        memory::{Fault, Operation},
    };

    fn run(pod: &str, generation: u64) -> Writer {
        Writer { pod: PodUid(pod.into()), generation: Generation(generation) }
    }

    fn store() -> (Arc<Memory>, Heartbeats) {
        let memory = Arc::new(Memory::default());
        let objects: Arc<dyn Objects> = memory.clone();
        (memory, Heartbeats::new(objects.into(), "p"))
    }

    async fn counter(heartbeats: &Heartbeats, of: &Writer, above: u64) -> Option<u64> {
        heartbeats.newest(of, above).await.unwrap().map(|newest| newest.counter)
    }

    #[tokio::test]
    async fn only_what_is_above_and_of_that_run_is_found() {
        let (_, heartbeats) = store();
        let of = run("a", 7);
        assert_eq!(counter(&heartbeats, &of, 0).await, None);
        for counter in [3, 255, 256] {
            heartbeats.write(&of, counter).await.unwrap();
        }
        heartbeats.write(&run("a", 8), 999).await.unwrap();
        heartbeats.write(&run("ab", 7), 999).await.unwrap();
        for (above, found) in [(0, Some(256)), (255, Some(256)), (256, None), (u64::MAX, None)] {
            assert_eq!(counter(&heartbeats, &of, above).await, found, "{above}");
        }
    }

    #[tokio::test]
    async fn a_late_write_hides_nothing() {
        let (memory, heartbeats) = store();
        let of = run("a", 7);
        memory.inject(Operation::Create, [Fault::Late]);
        assert!(heartbeats.write(&of, 6).await.is_err());
        heartbeats.write(&of, 9).await.unwrap();
        memory.release();
        assert_eq!(counter(&heartbeats, &of, 8).await, Some(9));
    }

    #[tokio::test]
    async fn a_failed_read_is_not_silence() {
        let (memory, heartbeats) = store();
        memory.inject(Operation::List, [Fault::Fail(StoreError::Unknown(String::new()))]);
        assert!(heartbeats.newest(&run("a", 7), 0).await.is_err());
        assert!(heartbeats.newest(&run("a/b", 7), 0).await.is_err(), "nor is one that cannot be asked about");
    }

    #[tokio::test]
    async fn what_is_a_day_old_goes() {
        let (memory, heartbeats) = store();
        heartbeats.write(&run("a", 7), 1).await.unwrap();
        let now = SystemTime::now();
        assert_eq!(heartbeats.sweep(now).await, Ok(0));
        assert_eq!(heartbeats.sweep(now + OLD * 2).await, Ok(1));
        assert!(memory.keys().is_empty());
    }

    #[tokio::test]
    async fn the_newest_stays() {
        let (memory, heartbeats) = store();
        for (generation, counter) in [(6, 40), (7, 1), (7, 2)] {
            heartbeats.write(&run("a", generation), counter).await.unwrap();
        }
        heartbeats.write(&run("b", 1), 1).await.unwrap();
        heartbeats.forget_before(&run("a", 7), 2).await.unwrap();
        assert_eq!(memory.keys().len(), 2, "{:?}", memory.keys());
        assert_eq!(counter(&heartbeats, &run("a", 7), 1).await, Some(2));
    }
}
