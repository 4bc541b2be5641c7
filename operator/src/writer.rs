//! Writes to the API server: the newest word about each object, at most one under way per object, never faster than
//! [`PACE`] allows. Nothing waits for a write but the agent that wants its drain recorded.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::ApiResource,
};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use crate::{
    metrics::METRICS,
    model::{Event, Key, Kind, What, Write},
};

/// Between two writes: 200 a second. A new server costs two, its finalizer and its status, so that of many servers 100 a
/// second are up to date.
pub const PACE: Duration = Duration::from_millis(5);
/// Writes under way at once.
const AT_ONCE: usize = 32;
/// One write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a write is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Name in managedFields.
const MANAGER: &str = "durable-operator";

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is written.
    Done,
    /// It is not, and never will be as it is.
    Refused,
    /// It may be, later.
    Again,
}

/// Who carries writes out.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Carries one out.
    async fn write(&self, kind: Kind, key: &Key, what: &What) -> Outcome;
}

type Object = (Kind, Key);

/// As text: ten thousand statuses that wait for their turn as values would be most of the operator's memory.
struct Packed(Box<str>);

impl Packed {
    fn pack(body: &Value) -> Self {
        Self(body.to_string().into())
    }

    /// What was packed: a value's own text always reads.
    fn unpack(self) -> Arc<Value> {
        Arc::new(serde_json::from_str(&self.0).unwrap_or_default())
    }
}

#[derive(Default)]
struct Pending {
    create: Option<Packed>,
    metadata: Option<Packed>,
    status: Option<Packed>,
    delete: bool,
}

impl Pending {
    fn put(&mut self, what: &What) {
        match what {
            What::Create(body) => self.create = Some(Packed::pack(body)),
            What::Metadata(body) => self.metadata = Some(Packed::pack(body)),
            What::Status(body) => self.status = Some(Packed::pack(body)),
            What::Delete => self.delete = true,
        }
    }

    /// Puts back what could not be written, unless there is newer word.
    fn put_back(&mut self, what: &What) {
        match what {
            What::Create(body) => _ = self.create.get_or_insert_with(|| Packed::pack(body)),
            What::Metadata(body) => _ = self.metadata.get_or_insert_with(|| Packed::pack(body)),
            What::Status(body) => _ = self.status.get_or_insert_with(|| Packed::pack(body)),
            What::Delete => self.delete = true,
        }
    }

    fn take(&mut self) -> Option<What> {
        let create = self.create.take().map(|body| What::Create(body.unpack()));
        let metadata = || self.metadata.take().map(|body| What::Metadata(body.unpack()));
        create
            .or_else(metadata)
            .or_else(|| self.status.take().map(|body| What::Status(body.unpack())))
            .or_else(|| std::mem::take(&mut self.delete).then_some(What::Delete))
    }

    fn is_empty(&self) -> bool {
        self.create.is_none() && self.metadata.is_none() && self.status.is_none() && !self.delete
    }
}

/// What is to be written, in order.
#[derive(Default)]
struct Queue {
    pending: HashMap<Object, Pending>,
    under_way: HashSet<Object>,
    /// Pools and handoffs: few, and watched by people. All else waits for them.
    first: VecDeque<Object>,
    then: VecDeque<Object>,
    delayed: BTreeSet<(Instant, Object)>,
}

impl Queue {
    fn push(&mut self, write: Write) {
        let object = (write.kind, write.key);
        let known = self.pending.contains_key(&object);
        self.pending.entry(object.clone()).or_default().put(&write.what);
        if !known && !self.under_way.contains(&object) {
            self.enqueue(object);
        }
    }

    fn enqueue(&mut self, object: Object) {
        let queue = if matches!(object.0, Kind::Server | Kind::Pod) { &mut self.then } else { &mut self.first };
        queue.push_back(object);
    }

    fn pop(&mut self) -> Option<(Object, What)> {
        let object = self.first.pop_front().or_else(|| self.then.pop_front())?;
        let pending = self.pending.get_mut(&object)?;
        let what = pending.take()?;
        if pending.is_empty() {
            self.pending.remove(&object);
        }
        self.under_way.insert(object.clone());
        Some((object, what))
    }

    fn done(&mut self, object: Object, what: &What, outcome: Outcome, now: Instant) {
        self.under_way.remove(&object);
        if outcome == Outcome::Again {
            self.pending.entry(object.clone()).or_default().put_back(what);
            self.delayed.insert((now + RETRY, object));
        } else if self.pending.contains_key(&object) {
            self.enqueue(object);
        }
    }

    fn wake(&mut self, now: Instant) {
        while self.delayed.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, object)) = self.delayed.pop_first() {
                self.enqueue(object);
            }
        }
    }

    fn has_work(&self) -> bool {
        !self.first.is_empty() || !self.then.is_empty()
    }
}

/// Carries out writes until the last sender is gone and all are done or given up.
pub async fn run(sink: Arc<dyn Sink>, mut writes: mpsc::UnboundedReceiver<Write>, events: mpsc::Sender<Event>) {
    let mut queue = Queue::default();
    let mut under_way: JoinSet<(Object, What, Outcome)> = JoinSet::new();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = Instant::now();
        queue.wake(now);
        METRICS.writes_waiting.set(i64::try_from(queue.pending.len()).unwrap_or(i64::MAX));
        let delayed = queue.delayed.first().map_or(now + WRITE_TIMEOUT, |(at, _)| *at);
        tokio::select! {
            write = writes.recv() => match write {
                Some(write) => queue.push(write),
                None => return,
            },
            Some(Ok((object, what, outcome))) = under_way.join_next() => {
                if let (Kind::Handoff, What::Status(body), Outcome::Done | Outcome::Refused) = (object.0, &what, outcome) {
                    // A closed channel means that the operator stops.
                    let _ = events.send(Event::Recorded(object.1.clone(), body.clone())).await;
                }
                queue.done(object, &what, outcome, Instant::now());
            }
            _ = pace.tick(), if queue.has_work() && under_way.len() < AT_ONCE => {
                if let Some((object, what)) = queue.pop() {
                    let sink = sink.clone();
                    under_way.spawn(async move {
                        let write = timeout(WRITE_TIMEOUT, sink.write(object.0, &object.1, &what));
                        let outcome = write.await.unwrap_or(Outcome::Again);
                        (object, what, outcome)
                    });
                }
            }
            () = sleep_until(delayed) => {}
        }
    }
}

/// The API server.
pub struct Kubernetes {
    client: Client,
}

impl Kubernetes {
    /// Writes through this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    async fn attempt(&self, kind: Kind, key: &Key, what: &What) -> kube::Result<()> {
        let resource = resource(kind);
        // The answer is not read as its type: an object that does not parse can be written to all the same.
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match what {
            What::Create(body) => {
                let object: DynamicObject =
                    serde_json::from_value(Value::clone(body)).map_err(kube::Error::SerdeError)?;
                let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
                api.create(&params, &object).await.map(drop)
            }
            What::Metadata(body) => api.patch(&key.name, &params, &Patch::Merge(body.as_ref())).await.map(drop),
            What::Status(body) => api.patch_status(&key.name, &params, &Patch::Merge(body.as_ref())).await.map(drop),
            What::Delete => api.delete(&key.name, &DeleteParams::default()).await.map(drop),
        }
    }
}

fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Pool => ApiResource::erase::<crds::DurableServerPool>(&()),
        Kind::Handoff => ApiResource::erase::<crds::Handoff>(&()),
        Kind::Pod => ApiResource::erase::<Pod>(&()),
        _ => ApiResource::erase::<crds::DurableServer>(&()),
    }
}

#[async_trait]
impl Sink for Kubernetes {
    async fn write(&self, kind: Kind, key: &Key, what: &What) -> Outcome {
        let outcome = match self.attempt(kind, key, what).await {
            Ok(()) => Outcome::Done,
            Err(error) => judged(kind, key, what, &error),
        };
        METRICS.writes.with_label_values(&[label(outcome)]).inc();
        outcome
    }
}

fn judged(kind: Kind, key: &Key, what: &What, error: &kube::Error) -> Outcome {
    let code = match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    };
    match (code, what) {
        (409, What::Create(_)) | (404, What::Delete) => Outcome::Done,
        // The object is gone, or has changed: the watch will say what to do instead.
        (404, _) | (409, What::Metadata(_)) => Outcome::Refused,
        (400 | 403 | 413 | 422, _) => {
            tracing::warn!(kind = kind.name(), object = %key, %error, "write refused");
            Outcome::Refused
        }
        _ => {
            tracing::debug!(kind = kind.name(), object = %key, %error, "write failed");
            Outcome::Again
        }
    }
}

const fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Refused => "refused",
        Outcome::Again => "again",
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
