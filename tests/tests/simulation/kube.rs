//! The API server: objects, who watches them, and the status that is written to them.

use std::{collections::BTreeMap, sync::Mutex};

use crds::{DurableServerPoolSpec, DurableServerPoolStatus};
use handoff::{PodUid, ServerId, ServerUid};
use operator::{
    model::{Event, Key, Kind, Pod, PoolObject, ServerObject},
    world::FINALIZER,
};
use serde_json::{Value, json};

use crate::{
    chance::Chance,
    lock,
    net::{self, Receiver, Sender},
};

#[derive(Default)]
struct Objects {
    pods: BTreeMap<PodUid, Pod>,
    servers: BTreeMap<String, Value>,
    watch: Option<Sender<Event>>,
}

/// The API server.
pub struct Kube {
    chance: Chance,
    spec: DurableServerPoolSpec,
    objects: Mutex<Objects>,
}

impl Kube {
    pub fn new(chance: Chance, spec: DurableServerPoolSpec) -> Self {
        Self { chance, spec, objects: Mutex::default() }
    }

    pub fn add_server(&self, uid: &ServerUid) {
        lock(&self.objects).servers.insert(uid.0.clone(), json!({}));
    }

    /// A pod is there, or changed.
    pub fn put_pod(&self, pod: Pod) {
        let mut objects = lock(&self.objects);
        objects.tell(Event::Pod(Box::new(pod.clone())));
        objects.pods.insert(pod.uid.clone(), pod);
    }

    /// Changes a pod that is there still.
    pub fn change_pod(&self, uid: &PodUid, change: impl FnOnce(&mut Pod)) {
        let pod = lock(&self.objects).pods.get(uid).cloned();
        if let Some(mut pod) = pod {
            change(&mut pod);
            self.put_pod(pod);
        }
    }

    pub fn remove_pod(&self, uid: &PodUid) {
        let mut objects = lock(&self.objects);
        if objects.pods.remove(uid).is_some() {
            objects.tell(Event::PodGone(uid.clone()));
        }
    }

    /// Merges into a server's status.
    pub fn write_status(&self, name: &str, patch: &Value) {
        if let Some(status) = lock(&self.objects).servers.get_mut(name) {
            merge(status, &patch["status"]);
        }
    }

    /// All that is there, and what changes from now on.
    pub fn watch(&self) -> (Vec<Event>, Receiver<Event>) {
        let (sender, receiver) = net::line(self.chance.clone());
        let mut objects = lock(&self.objects);
        objects.watch = Some(sender);
        let pool = PoolObject {
            key: Key::new("ns", "rooms"),
            uid: "pool".into(),
            generation: 1,
            settings: crds::settings::pool(&self.spec),
            spec: self.spec.clone(),
            status: DurableServerPoolStatus::default(),
        };
        let mut events = vec![Event::Pool(Box::new(pool))];
        events.extend(objects.servers.iter().map(|(name, status)| Event::Server(Box::new(server(name, status)))));
        events.extend(objects.pods.values().map(|pod| Event::Pod(Box::new(pod.clone()))));
        events.extend(Kind::ALL.map(Event::Initialised));
        (events, receiver)
    }

    pub fn unwatch(&self) {
        lock(&self.objects).watch = None;
    }
}

impl Objects {
    fn tell(&self, event: Event) {
        if let Some(watch) = &self.watch {
            watch.send(event);
        }
    }
}

fn server(name: &str, status: &Value) -> ServerObject {
    ServerObject {
        id: ServerId { namespace: "ns".into(), name: name.into(), uid: ServerUid(name.into()) },
        generation: 1,
        resource_version: "1".into(),
        deleting: false,
        finalizers: vec![FINALIZER.into()],
        wish: None,
        spec: serde_json::from_value(json!({ "pool": "rooms", "type": "room" })).expect("a server's spec"),
        status: serde_json::from_value(status.clone()).unwrap_or_default(),
    }
}

/// A merge patch, as RFC 7386 has it.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let Some(object) = into.as_object_mut() else { return };
    for (name, value) in fields {
        if value.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
