//! Watches: objects come in, events go to the world. A malformed object harms no other, and a watch that breaks is begun
//! again; what went missing meanwhile is told as gone.

use std::{
    collections::HashMap,
    fmt::Debug,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crds::{DurableServer, DurableServerPool, Handoff, POOL_LABEL};
use futures::StreamExt;
use handoff::{PodUid, ServerUid};
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, StatefulSet},
    core::v1::{Node, Pod, Service},
};
use kube::{
    Api, Client, Resource,
    core::{DeserializeGuard, NamespaceResourceScope},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use crate::{
    model::{Event, Kind, Malformed},
    read,
};

/// A watch that keeps failing is logged at most so often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// How one kind is watched.
struct Follow<K> {
    kind: Kind,
    /// What tells one object from another.
    ident: fn(&K) -> String,
    /// It is there or changed.
    seen: fn(K) -> Event,
    /// It is there no more.
    gone: fn(String, &K) -> Event,
    /// The last state of a deleted object says something.
    last_word: bool,
}

/// Watches everything, or what is in these namespaces; nodes are in none. A task ends only when nobody listens any more.
pub fn spawn(client: &Client, namespaces: &[String], events: &mpsc::Sender<Event>, tasks: &mut JoinSet<()>) {
    let labelled = || watcher::Config::default().labels(POOL_LABEL);
    let all = watcher::Config::default;
    each(pools, apis(client, namespaces), &all(), events, tasks);
    each(servers, apis(client, namespaces), &all(), events, tasks);
    each(handoffs, apis(client, namespaces), &all(), events, tasks);
    each(pods, apis(client, namespaces), &labelled(), events, tasks);
    each(nodes, vec![Api::all(client.clone())], &all(), events, tasks);
    each(replica_sets, apis(client, namespaces), &labelled(), events, tasks);
    each(stateful_sets, apis(client, namespaces), &all(), events, tasks);
    each(services, apis(client, namespaces), &all(), events, tasks);
}

/// One of each of these namespaces; without any, one of all of them.
#[must_use]
pub fn apis<K>(client: &Client, namespaces: &[String]) -> Vec<Api<K>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
{
    if namespaces.is_empty() {
        return vec![Api::all(client.clone())];
    }
    namespaces.iter().map(|namespace| Api::namespaced(client.clone(), namespace)).collect()
}

fn each<K>(
    one: fn() -> Follow<K>,
    apis: Vec<Api<K>>,
    config: &watcher::Config,
    events: &mpsc::Sender<Event>,
    tasks: &mut JoinSet<()>,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let unread = Arc::new(AtomicUsize::new(apis.len()));
    for api in apis {
        let known = Known::new(one(), unread.clone());
        tasks.spawn(follow(known, api, config.clone(), events.clone()));
    }
}

fn pools() -> Follow<DeserializeGuard<DurableServerPool>> {
    Follow {
        kind: Kind::Pool,
        ident: |pool| read::key(pool.meta()).to_string(),
        seen: |pool| guarded(Kind::Pool, pool, |pool| Event::Pool(Box::new(read::pool(pool)))),
        gone: |_, pool| Event::PoolGone(read::key(pool.meta())),
        last_word: false,
    }
}

fn servers() -> Follow<DeserializeGuard<DurableServer>> {
    Follow {
        kind: Kind::Server,
        ident: uid,
        seen: |server| guarded(Kind::Server, server, |server| Event::Server(Box::new(read::server(server)))),
        gone: |uid, _| Event::ServerGone(ServerUid(uid)),
        last_word: false,
    }
}

fn handoffs() -> Follow<DeserializeGuard<Handoff>> {
    Follow {
        kind: Kind::Handoff,
        ident: |handoff| read::key(handoff.meta()).to_string(),
        seen: |handoff| guarded(Kind::Handoff, handoff, |handoff| Event::Handoff(Box::new(read::handoff(handoff)))),
        gone: |_, handoff| Event::HandoffGone(read::key(handoff.meta())),
        last_word: false,
    }
}

fn pods() -> Follow<Pod> {
    Follow {
        kind: Kind::Pod,
        ident: uid,
        seen: |pod| Event::Pod(Box::new(read::pod(&pod))),
        gone: |uid, _| Event::PodGone(PodUid(uid)),
        // It may be the only one that shows the containers terminated.
        last_word: true,
    }
}

fn nodes() -> Follow<Node> {
    Follow {
        kind: Kind::Node,
        ident: |node| node.metadata.name.clone().unwrap_or_default(),
        seen: |node| {
            let (name, node) = read::node(node);
            Event::Node(name, node)
        },
        gone: |name, _| Event::NodeGone(name),
        last_word: false,
    }
}

fn replica_sets() -> Follow<ReplicaSet> {
    Follow {
        kind: Kind::ReplicaSet,
        ident: uid,
        seen: |set| Event::ReplicaSet(read::replica_set(&set)),
        gone: |uid, _| Event::ReplicaSetGone(uid),
        last_word: false,
    }
}

fn stateful_sets() -> Follow<StatefulSet> {
    Follow {
        kind: Kind::StatefulSet,
        ident: uid,
        seen: |set| {
            let (uid, revision) = read::stateful_set(set);
            Event::StatefulSet(uid, revision)
        },
        gone: |uid, _| Event::StatefulSetGone(uid),
        last_word: false,
    }
}

fn services() -> Follow<Service> {
    Follow {
        kind: Kind::Service,
        ident: |service| read::key(&service.metadata).to_string(),
        seen: |service| {
            let (key, selector) = read::service(service);
            Event::Service(key, selector)
        },
        gone: |_, service| Event::ServiceGone(read::key(&service.metadata)),
        last_word: false,
    }
}

fn uid<K: Resource>(object: &K) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

fn guarded<K>(kind: Kind, object: DeserializeGuard<K>, read: impl FnOnce(K) -> Event) -> Event {
    match object.0 {
        Ok(object) => read(object),
        Err(invalid) => Event::Malformed(Box::new(Malformed {
            kind,
            key: read::key(&invalid.metadata),
            uid: invalid.metadata.uid.unwrap_or_default(),
            generation: invalid.metadata.generation.unwrap_or_default(),
            error: invalid.error,
        })),
    }
}

/// Objects known of one watch, as the events that will tell that they are gone.
struct Known<K> {
    follow: Follow<K>,
    present: HashMap<String, (u64, Event)>,
    list: u64,
    listed: bool,
    /// Watches of this kind that have not read what is there yet.
    unread: Arc<AtomicUsize>,
}

impl<K: Clone> Known<K> {
    fn new(follow: Follow<K>, unread: Arc<AtomicUsize>) -> Self {
        Self { follow, present: HashMap::new(), list: 0, listed: false, unread }
    }

    fn seen(&mut self, object: K) -> Event {
        let ident = (self.follow.ident)(&object);
        let gone = (self.follow.gone)(ident.clone(), &object);
        self.present.insert(ident, (self.list, gone));
        (self.follow.seen)(object)
    }

    fn events(&mut self, event: watcher::Event<K>) -> Vec<Event> {
        match event {
            watcher::Event::Init => {
                self.list += 1;
                Vec::new()
            }
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => vec![self.seen(object)],
            watcher::Event::Delete(object) => {
                let ident = (self.follow.ident)(&object);
                self.present.remove(&ident);
                let gone = (self.follow.gone)(ident, &object);
                let last = self.follow.last_word.then(|| (self.follow.seen)(object));
                last.into_iter().chain([gone]).collect()
            }
            watcher::Event::InitDone => self.listed(),
        }
    }

    fn listed(&mut self) -> Vec<Event> {
        let list = self.list;
        let missing: Vec<String> =
            self.present.iter().filter(|(_, (seen, _))| *seen < list).map(|(ident, _)| ident.clone()).collect();
        let mut events: Vec<Event> =
            missing.iter().filter_map(|ident| self.present.remove(ident)).map(|(_, gone)| gone).collect();
        if !std::mem::replace(&mut self.listed, true) && self.unread.fetch_sub(1, Ordering::Relaxed) == 1 {
            events.push(Event::Initialised(self.follow.kind));
        }
        events
    }
}

async fn follow<K>(mut known: Known<K>, api: Api<K>, config: watcher::Config, events: mpsc::Sender<Event>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = known.follow.kind;
    let mut stream = pin!(watcher(api, config).default_backoff());
    let mut logged: Option<Instant> = None;
    while let Some(item) = stream.next().await {
        match item {
            Ok(event) => {
                for event in known.events(event) {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                if logged.is_none_or(|at| at.elapsed() > LOG_EVERY) {
                    tracing::warn!(kind = kind.name(), %error, "watch failed, beginning again");
                    logged = Some(Instant::now());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> Node {
        serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap()
    }

    fn known() -> Known<Node> {
        Known::new(nodes(), Arc::new(AtomicUsize::new(1)))
    }

    #[test]
    fn a_kind_is_read_when_the_last_of_its_namespaces_is() {
        let unread = Arc::new(AtomicUsize::new(2));
        let [mut one, mut other] = [(); 2].map(|()| Known::new(pods(), unread.clone()));
        assert!(one.events(watcher::Event::InitDone).is_empty());
        assert!(one.events(watcher::Event::InitDone).is_empty(), "a second list of the same namespace");
        assert!(matches!(other.events(watcher::Event::InitDone)[..], [Event::Initialised(Kind::Pod)]));
    }

    #[test]
    fn what_went_missing_while_the_watch_was_broken_is_gone() {
        let mut known = known();
        known.events(watcher::Event::Init);
        known.events(watcher::Event::InitApply(node("a")));
        known.events(watcher::Event::InitApply(node("b")));
        assert!(matches!(known.events(watcher::Event::InitDone)[..], [Event::Initialised(Kind::Node)]));
        known.events(watcher::Event::Apply(node("c")));
        known.events(watcher::Event::Init);
        known.events(watcher::Event::InitApply(node("a")));
        known.events(watcher::Event::InitApply(node("c")));
        let events = known.events(watcher::Event::InitDone);
        assert!(matches!(&events[..], [Event::NodeGone(name)] if name == "b"), "{events:?}");
    }

    #[test]
    fn a_deleted_pods_last_state_is_told_before_it_is_gone() {
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "u" } })).unwrap();
        let mut known = Known::new(pods(), Arc::new(AtomicUsize::new(1)));
        let events = known.events(watcher::Event::Delete(pod));
        assert!(matches!(&events[..], [Event::Pod(_), Event::PodGone(uid)] if uid.0 == "u"), "{events:?}");
    }

    #[test]
    fn a_malformed_object_is_told_by_name() {
        let object =
            json!({ "metadata": { "name": "bad", "namespace": "ns", "uid": "u", "generation": 3 }, "spec": 7 });
        let guard: DeserializeGuard<DurableServer> = serde_json::from_value(object).unwrap();
        let event = (servers().seen)(guard);
        assert!(matches!(&event, Event::Malformed(m) if m.key.name == "bad" && m.generation == 3), "{event:?}");
    }
}
