//! A live view of one namespace: what `kubectl get -w` would show.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::{StreamExt as _, future};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::Resource;
use kube::api::{Api, DynamicObject};
use kube::runtime::reflector::{Store, store::Writer};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::cluster::Cluster;

/// A `DurableServer`.
#[derive(Debug, Clone, Default)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Where it is in its life, such as `Running`; empty if nobody has said yet.
    pub phase: String,
    /// The pod it is in; empty if none.
    pub pod: String,
    /// Its ownership term.
    pub epoch: u64,
}

/// A pod.
#[derive(Debug, Clone, Default)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its address; empty if it has none yet.
    pub address: String,
    /// Its node; empty if it has none yet.
    pub node: String,
    /// The hash of its template: pods of one revision share it.
    pub revision: String,
    /// Whether it takes traffic.
    pub ready: bool,
    /// Whether it was told to end.
    pub terminating: bool,
}

/// A `Handoff`: one pod being emptied.
#[derive(Debug, Clone, Default)]
pub struct Handoff {
    /// Its name.
    pub name: String,
    /// The pod that is emptied.
    pub source: String,
    /// Why.
    pub trigger: String,
    /// How it goes.
    pub status: HandoffStatus,
}

/// How a drain goes, as reported.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HandoffStatus {
    /// `Running`, `Blocked`, `Complete` or `Failed`.
    pub phase: String,
    /// Servers that the pod had.
    pub total: usize,
    /// Moved live.
    pub moved: usize,
    /// Stopped, to be started elsewhere.
    pub stopped: usize,
    /// Neither.
    pub failed: usize,
    /// Why servers were stopped instead of moved, and how many.
    pub reasons: BTreeMap<String, usize>,
    /// What it waits for, or why servers were stopped; empty if for nothing.
    pub blocked_by: String,
}

/// What is in a namespace now.
#[derive(Debug)]
pub struct View {
    pods: Store<PodObject>,
    servers: Store<DynamicObject>,
    handoffs: Store<DynamicObject>,
    told_to_end: Arc<Mutex<BTreeMap<String, u64>>>,
    _watches: JoinSet<()>,
}

impl View {
    /// Watches this namespace from now on.
    #[must_use]
    pub fn open(cluster: &Cluster, namespace: &str) -> Self {
        let mut watches = JoinSet::new();
        let told_to_end = Arc::<Mutex<BTreeMap<String, u64>>>::default();
        let pods = watch(&mut watches, Api::namespaced(cluster.client.clone(), namespace), (), {
            let told_to_end = Arc::clone(&told_to_end);
            move |pod: &PodObject| {
                if let (Some(name), Some(_)) = (&pod.metadata.name, &pod.metadata.deletion_timestamp) {
                    let mut told = told_to_end.lock().unwrap_or_else(PoisonError::into_inner);
                    told.entry(name.clone()).or_insert_with(now);
                }
            }
        });
        let mut ours = |kind| {
            let api = cluster.objects(namespace, kind);
            watch(&mut watches, api, Cluster::kind(kind), |_| ())
        };
        let (servers, handoffs) = (ours("DurableServer"), ours("Handoff"));
        Self { pods, servers, handoffs, told_to_end, _watches: watches }
    }

    /// All servers, by name.
    #[must_use]
    pub fn servers(&self) -> Vec<Server> {
        let mut servers: Vec<Server> = self.servers.state().iter().map(|object| server(object)).collect();
        servers.sort_by(|a, b| a.name.cmp(&b.name));
        servers
    }

    /// All pods, by name.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self.pods.state().iter().map(|object| pod(object)).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        pods
    }

    /// All drains, the oldest first.
    #[must_use]
    pub fn handoffs(&self) -> Vec<Handoff> {
        let mut objects = self.handoffs.state();
        objects.sort_by_key(|object| object.metadata.creation_timestamp.clone());
        objects.iter().map(|object| handoff(object)).collect()
    }

    /// When a pod was seen to have been told to end (nanoseconds since 1970).
    #[must_use]
    pub fn told_to_end(&self, pod: &str) -> Option<u64> {
        self.told_to_end.lock().unwrap_or_else(PoisonError::into_inner).get(pod).copied()
    }
}

/// Nanoseconds since 1970.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn watch<K>(
    watches: &mut JoinSet<()>,
    api: Api<K>,
    kind: K::DynamicType,
    seen: impl Fn(&K) + Send + 'static,
) -> Store<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Debug + Eq + Hash + Send + Sync,
{
    let writer = Writer::new(kind);
    let store = writer.as_reader();
    let events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer).touched_objects();
    watches.spawn(events.for_each(move |event| {
        // An error is followed by another try; what the view lacks is seen by whoever waits for it.
        if let Ok(object) = event {
            seen(&object);
        }
        future::ready(())
    }));
    store
}

fn server(object: &DynamicObject) -> Server {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        phase: String,
        pod: String,
        epoch: u64,
    }
    let Status { phase, pod, epoch } = status(object);
    let name = object.metadata.name.clone().unwrap_or_default();
    Server { name, uid: object.metadata.uid.clone().unwrap_or_default(), phase, pod, epoch }
}

fn handoff(object: &DynamicObject) -> Handoff {
    let text = |field: &str| object.data["spec"][field].as_str().unwrap_or_default().to_owned();
    let name = object.metadata.name.clone().unwrap_or_default();
    Handoff { name, source: text("sourcePod"), trigger: text("trigger"), status: status(object) }
}

/// A status that is not there yet is an empty one. A field that cannot be read makes it empty too, which every wait
/// then sees.
fn status<T: DeserializeOwned + Default>(object: &DynamicObject) -> T {
    let mut status = object.data["status"].clone();
    if let Some(fields) = status.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    serde_json::from_value(status).unwrap_or_default()
}

/// What matters of a pod.
pub(crate) fn pod(object: &PodObject) -> Pod {
    let status = object.status.clone().unwrap_or_default();
    let labels = object.metadata.labels.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    Pod {
        name: object.metadata.name.clone().unwrap_or_default(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
        address: status.pod_ip.unwrap_or_default(),
        node: object.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        revision: labels.get("pod-template-hash").cloned().unwrap_or_default(),
        ready,
        terminating: object.metadata.deletion_timestamp.is_some(),
    }
}
