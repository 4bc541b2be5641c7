//! The real store in memory behind a network: answers come late or never, and so do creates.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use store::{Created, Listed, Memory, Objects, Part, StoreError};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    chance::Chance,
    lock,
    net::{Net, Node},
};

/// One way to the store, milliseconds.
const LATENCY: Range<u64> = 1..15;
/// How long a client waits for an answer that does not come.
const PATIENCE: Duration = Duration::from_secs(2);
/// How late a late create may land, milliseconds.
const LATE: Range<u64> = 100..20_000;

/// What is wrong with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It answers nothing, and does nothing.
    Outage,
    /// Many creates are done, and their answers lost.
    LostAnswers,
    /// Many creates are done long after everybody has stopped waiting.
    LateCreates,
}

#[derive(Default)]
struct State {
    trouble: Option<(Trouble, Instant)>,
}

/// The store of one run.
pub struct Store {
    memory: Arc<Memory>,
    chance: Chance,
    net: Arc<Net>,
    state: Mutex<State>,
    /// A mistake: see [`crate::faults::Mutation::Overwrite`].
    overwrites: bool,
}

impl Store {
    pub fn new(chance: Chance, net: Arc<Net>, overwrites: bool) -> Arc<Self> {
        Arc::new(Self { memory: Arc::default(), chance, net, state: Mutex::default(), overwrites })
    }

    pub fn trouble(&self, trouble: Trouble, lasts: Duration) {
        lock(&self.state).trouble = Some((trouble, Instant::now() + lasts));
    }

    pub fn heal(&self) {
        lock(&self.state).trouble = None;
    }

    fn has(&self, trouble: Trouble) -> bool {
        lock(&self.state).trouble.is_some_and(|(now, until)| now == trouble && Instant::now() < until)
    }

    /// The store as one pod reaches it.
    pub fn seen_from(self: &Arc<Self>, node: Node) -> Arc<dyn Objects> {
        Arc::new(Seen { store: self.clone(), node })
    }
}

struct Seen {
    store: Arc<Store>,
    node: Node,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the store seen from {:?}", self.node)
    }
}

impl Seen {
    /// There, or not at all.
    async fn there(&self) -> Result<(), StoreError> {
        sleep(self.store.chance.ms(LATENCY)).await;
        if self.store.has(Trouble::Outage) || self.store.net.is_cut(self.node, Node::Store) {
            return lost().await;
        }
        Ok(())
    }

    async fn back<T>(&self, answer: T) -> Result<T, StoreError> {
        sleep(self.store.chance.ms(LATENCY)).await;
        if self.store.net.is_cut(self.node, Node::Store) { lost().await } else { Ok(answer) }
    }
}

async fn lost<T>() -> Result<T, StoreError> {
    sleep(PATIENCE).await;
    Err(StoreError::Unknown("no answer in time".into()))
}

#[async_trait]
impl Objects for Seen {
    /// What was sent is done, whatever becomes of its sender.
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StoreError> {
        let store = &self.store;
        let on_its_way = store.chance.ms(LATENCY);
        let late = store.has(Trouble::LateCreates) && store.chance.percent(40);
        let unheard = late || (store.has(Trouble::LostAnswers) && store.chance.percent(40));
        let late = if late { store.chance.ms(LATE) } else { Duration::ZERO };
        let (answer, answered) = oneshot::channel();
        let (to, node, key) = (store.clone(), self.node, key.to_owned());
        tokio::spawn(async move {
            sleep(on_its_way + late).await;
            if late.is_zero() && (to.has(Trouble::Outage) || to.net.is_cut(node, Node::Store)) {
                return;
            }
            if to.overwrites {
                let _ = to.memory.delete(&key).await;
            }
            let done = to.memory.create(&key, body).await;
            if !unheard {
                let _ = answer.send(done);
            }
        });
        match answered.await {
            Ok(done) => self.back(done?).await,
            Err(_) => lost().await,
        }
    }

    async fn get(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError> {
        self.there().await?;
        let found = self.store.memory.get(key, part).await?;
        self.back(found).await
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.there().await?;
        let found = self.store.memory.list(prefix, start_after, limit).await?;
        self.back(found).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.there().await?;
        self.store.memory.delete(key).await
    }
}
