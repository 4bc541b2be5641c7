//! Kubernetes' objects come, change and go.

use std::collections::BTreeMap;

use crds::{Phase, Reason, settings};
use handoff::{Epoch, Instant, PodUid, ServerUid};
use jiff::Timestamp;
use serde_json::json;
use wire::session::{Settings, to_agent};

use super::{PodEntry, Server, World, bury::Deletion};
use crate::{
    model::{
        Effect, Key, Kind, Malformed, Node, Note, Now, Pod, PoolObject, Refusal, ReplicaSet, ServerObject, What, Write,
    },
    ownership::Ownership,
    status,
};

impl World {
    pub(super) fn pool_seen(&mut self, object: Box<PoolObject>, now: Instant) {
        let key = object.key.clone();
        let fresh = serde_json::to_string(&object.spec).unwrap_or_default();
        let pool = self.pool_mut(&key);
        let mut changed = pool.object.is_none();
        if let Ok(settings) = &object.settings {
            changed |= pool.spec_json != fresh;
            pool.settings = Some(settings.clone());
            pool.spec_json = fresh;
        }
        pool.own_status.get_or_insert_with(|| object.status.clone());
        pool.object = Some(object);
        if changed {
            let servers: Vec<ServerUid> = pool.servers.iter().cloned().collect();
            for uid in servers {
                self.judge(&uid);
                self.tell(&uid, now);
            }
            self.unpark(&key);
            self.tell_settings(&key);
        }
    }

    /// Its servers serve on where they are, by the settings that their agents have.
    pub(super) fn pool_gone(&mut self, key: &Key, now: Instant) {
        let pool = self.pool_mut(key);
        pool.object = None;
        pool.settings = None;
        pool.own_status = None;
        for uid in pool.servers.iter().cloned().collect::<Vec<_>>() {
            self.tell(&uid, now);
        }
        self.unpark(key);
    }

    fn tell_settings(&mut self, key: &Key) {
        let settings = self.settings_of(key);
        let sessions = self.cluster.sessions.values().filter(|session| session.pool == *key);
        let effects = sessions.map(|session| Effect::Send(session.id, to_agent::Body::Settings(settings.clone())));
        self.effects.extend(effects);
    }

    pub(super) fn settings_of(&self, key: &Key) -> Settings {
        let spec_json = self.pools.get(key).map(|pool| pool.spec_json.clone()).unwrap_or_default();
        Settings { pool: key.name.clone(), spec_json }
    }

    pub(super) fn server_seen(&mut self, object: ServerObject, now: Instant) {
        let uid = object.id.uid.clone();
        let pool = Key::new(object.id.namespace.clone(), object.spec.pool.clone());
        let spec_json = serde_json::to_string(&object.spec).unwrap_or_default();
        if let Some(server) = self.servers.get_mut(&uid) {
            if server.generation != object.generation {
                server.ownership.edited();
            }
            let changed = server.generation != object.generation
                || server.deleting != object.deleting
                || server.finalizers != object.finalizers;
            server.generation = object.generation;
            server.resource_version = object.resource_version;
            server.deleting = object.deleting;
            server.finalizers = object.finalizers;
            server.spec = object.spec;
            server.spec_json = spec_json;
            let wishes_otherwise = server.wish != object.wish;
            if changed {
                self.judge(&uid);
                self.mark(&uid, now);
            }
            if wishes_otherwise {
                self.wish_for(&uid, object.wish, now);
            }
        } else {
            self.server_first_seen(object, &pool, spec_json, now);
        }
        self.protect(&uid);
    }

    fn server_first_seen(&mut self, object: ServerObject, pool: &Key, spec_json: String, now: Instant) {
        let id = object.id;
        let uid = id.uid.clone();
        let status = object.status;
        let owner = status.pod_uid.clone().map(PodUid);
        let ownership = Ownership::recorded(Epoch(status.epoch.unwrap_or_default()), owner);
        self.reindex_first(&uid, ownership.owner.as_ref());
        let server = Server {
            pool: pool.clone(),
            generation: object.generation,
            resource_version: object.resource_version,
            deleting: object.deleting,
            finalizers: object.finalizers,
            finalizers_at: String::new(),
            wish: None,
            unmet: None,
            stopped: status.phase == Some(Phase::Stopped) && object.spec.permanent == Some(false),
            spec: object.spec,
            spec_json,
            refused: None,
            ownership,
            state_version: None,
            sequence: status.sequence.unwrap_or_default(),
            unplaced: None,
            podless: None,
            last_handoff: None,
            status,
            written: None,
            stop_sent: None,
            deletion: Deletion::default(),
            id: id.clone(),
        };
        self.servers.insert(uid.clone(), server);
        self.names.insert(Key::new(id.namespace, id.name.clone()), uid.clone());
        let entry = self.pool_mut(pool);
        entry.servers.insert(uid.clone());
        entry.changes.add(&id.name, now);
        self.judge(&uid);
        self.mark(&uid, now);
        if object.wish.is_some() {
            self.wish_for(&uid, object.wish, now);
        }
        self.match_sessions(&uid, pool, now);
    }

    fn reindex_first(&mut self, uid: &ServerUid, owner: Option<&PodUid>) {
        if let Some(owner) = owner {
            self.owned.entry(owner.clone()).or_default().insert(uid.clone());
        }
    }

    /// Agents may have told of a server before its resource was read.
    fn match_sessions(&mut self, uid: &ServerUid, pool: &Key, now: Instant) {
        let sessions = self.cluster.sessions.iter().filter(|(_, session)| session.pool == *pool);
        let words: Vec<_> = sessions.map(|(pod, session)| (pod.clone(), session.held.get(uid).cloned())).collect();
        for (pod, held) in words {
            match held {
                Some(held) => self.held(&pod, held, now),
                None if self.is_absent(&pod, uid) => {
                    self.change(uid, now, |ownership| ownership.absent(&pod));
                }
                None => {}
            }
        }
    }

    /// Whether a server's spec can be acted on.
    fn judge(&mut self, uid: &ServerUid) {
        let Some(server) = self.servers.get_mut(uid) else { return };
        let spec = self.pools.get(&server.pool).and_then(|pool| pool.object.as_ref()).map(|object| &object.spec);
        server.refused =
            spec.and_then(|spec| settings::server(spec, &server.spec).err()).map(|error| error.to_string());
    }

    /// The finalizer gives us the time to end the server's log before its resource is gone.
    fn protect(&mut self, uid: &ServerUid) {
        let Some(server) = self.servers.get(uid) else { return };
        if server.deleting || server.finalizers.iter().any(|finalizer| finalizer == super::FINALIZER) {
            return;
        }
        let mut finalizers = server.finalizers.clone();
        finalizers.push(super::FINALIZER.into());
        self.set_finalizers(uid, &finalizers);
    }

    pub(super) fn set_finalizers(&mut self, uid: &ServerUid, finalizers: &[String]) {
        let Some(server) = self.servers.get_mut(uid).filter(|s| s.finalizers_at != s.resource_version) else { return };
        server.finalizers_at.clone_from(&server.resource_version);
        let body = json!({ "metadata": { "resourceVersion": server.resource_version, "finalizers": finalizers } });
        let key = Key::new(server.id.namespace.clone(), server.id.name.clone());
        self.effects.push(Effect::Write(Write { kind: Kind::Server, key, what: What::Metadata(body.into()) }));
    }

    pub(super) fn server_gone(&mut self, uid: &ServerUid, now: Instant) {
        let Some(server) = self.servers.get(uid) else { return };
        let owner = server.ownership.owner.clone().and_then(|owner| self.cluster.sessions.get_mut(&owner));
        if let Some(session) = owner.filter(|session| session.held.contains_key(uid)) {
            session.strays.insert(uid.clone(), now);
            self.effects.push(super::bury::last_stop(server, session.id));
        }
        self.unindex(uid, now);
    }

    pub(super) fn pod_seen(&mut self, pod: &Pod, now: Now) {
        let uid = pod.uid.clone();
        let key = Key::new(pod.key.namespace.clone(), pod.pool.clone());
        let silent = || PodEntry { silent_since: Some(now.mono), ..PodEntry::default() };
        let entry = self.cluster.pods.entry(uid.clone()).or_insert_with(silent);
        let before = std::mem::replace(&mut entry.pod, pod.clone());
        if before == *pod {
            return;
        }
        let old_key = Key::new(before.key.namespace.clone(), before.pool.clone());
        if before.uid == uid && old_key != key {
            self.pool_mut(&old_key).pods.remove(&uid);
            self.unpark(&old_key);
        }
        let pool = self.pool_mut(&key);
        pool.pods.insert(uid.clone());
        if pod.deleting && !before.deleting {
            // A scale-down deletes many pods within milliseconds: none of them must be a target of another.
            pool.deletion_seen.get_or_insert(now.mono);
            pool.to_drain.insert(uid.clone());
        }
        self.unpark(&key);
        if pod.over && !before.over {
            self.pod_over(&uid, now);
        }
    }

    fn pod_over(&mut self, uid: &PodUid, now: Now) {
        tracing::info!(pod = %uid, "every container of the pod is terminated");
        if let Some(session) = self.cluster.sessions.get(uid) {
            let id = session.id;
            self.effects.push(Effect::Close(id, Refusal::PodOver));
            self.closed(id, now.mono);
        }
        for server in self.owned_by(uid) {
            self.mark(&server, now.mono);
        }
        if let Some(drain) = self.drains.get_mut(uid) {
            drain.died("the pod's containers were over before its drain was", now.wall);
        }
    }

    pub(super) fn pod_gone(&mut self, uid: &PodUid, now: Now) {
        let Some(entry) = self.cluster.pods.remove(uid) else { return };
        if entry.pod.over {
            self.cluster.over.insert(uid.clone(), now.mono);
        }
        let key = Key::new(entry.pod.key.namespace.clone(), entry.pod.pool.clone());
        let pool = self.pool_mut(&key);
        pool.pods.remove(uid);
        pool.to_drain.remove(uid);
        self.unpark(&key);
        for server in self.owned_by(uid) {
            self.mark(&server, now.mono);
        }
        if let Some(drain) = self.drains.get_mut(uid) {
            drain.died("the pod was gone before its drain was over", now.wall);
        }
    }

    /// `None`: the node is gone, so nothing is known of it.
    pub(super) fn node_seen(&mut self, name: &str, node: Option<&Node>) {
        let schedulable = |node: Option<&Node>| node.is_none_or(|node| node.schedulable);
        let before = match node {
            Some(node) => self.cluster.nodes.insert(name.to_owned(), node.clone()),
            None => self.cluster.nodes.remove(name),
        };
        if schedulable(before.as_ref()) == schedulable(node) {
            return;
        }
        let pods = self.cluster.pods.values().map(|entry| &entry.pod).filter(|pod| pod.node == name);
        let pools: Vec<Key> = pods.map(|pod| Key::new(pod.key.namespace.clone(), pod.pool.clone())).collect();
        for key in pools {
            self.unpark(&key);
        }
    }

    pub(super) fn replica_set_seen(&mut self, set: &ReplicaSet, now: Instant) {
        let before = self.cluster.replica_sets.insert(set.uid.clone(), set.clone());
        if before.as_ref().is_some_and(|before| before.replicas > set.replicas) {
            self.cluster.shrank.insert(set.uid.clone(), now);
        }
        if before.is_none_or(|before| before.revision != set.revision) {
            self.revisions_changed();
        }
    }

    pub(super) fn replica_set_gone(&mut self, uid: &str) {
        self.cluster.shrank.remove(uid);
        if self.cluster.replica_sets.remove(uid).is_some() {
            self.revisions_changed();
        }
    }

    pub(super) fn stateful_set_seen(&mut self, uid: String, revision: Option<&String>) {
        let before = match revision {
            Some(revision) => self.cluster.stateful_sets.insert(uid, revision.clone()),
            None => self.cluster.stateful_sets.remove(&uid),
        };
        if before.as_ref() != revision {
            self.revisions_changed();
        }
    }

    pub(super) fn service_seen(&mut self, key: &Key, selector: Option<&BTreeMap<String, String>>) {
        let before = match selector {
            Some(selector) => self.cluster.services.insert(key.clone(), selector.clone()),
            None => self.cluster.services.remove(key),
        };
        if before.as_ref() == selector {
            return;
        }
        let follows =
            |pool: &super::Pool| pool.settings.as_ref().and_then(|s| s.active_service.as_ref()) == Some(&key.name);
        let of = |(pool, entry): (&Key, &super::Pool)| {
            (pool.namespace == key.namespace && follows(entry)).then(|| pool.clone())
        };
        for pool in self.pools.iter().filter_map(of).collect::<Vec<_>>() {
            self.unpark(&pool);
        }
    }

    fn revisions_changed(&mut self) {
        for (key, pool) in &mut self.pools {
            pool.pods_changed = true;
            self.awake.insert(key.clone());
        }
    }

    pub(super) fn malformed_seen(&mut self, object: &Malformed, wall: Timestamp) {
        if self.malformed.insert(object.uid.clone(), object.generation) == Some(object.generation) {
            return;
        }
        tracing::warn!(kind = object.kind.name(), object = %object.key, error = object.error, "malformed object");
        let words = (crds::condition::ACCEPTED, "False", Reason::Malformed, object.error.as_str());
        let condition = status::stamped(&[], object.generation, wall, words);
        self.effects.push(Effect::Write(Write {
            kind: object.kind,
            key: object.key.clone(),
            what: What::Status(json!({ "status": { "conditions": [condition] } }).into()),
        }));
        self.effects.push(Effect::Publish(Box::new(Note {
            kind: object.kind,
            key: object.key.clone(),
            uid: object.uid.clone(),
            related: None,
            warning: true,
            reason: Reason::Malformed,
            action: "Read",
            note: format!("cannot be read, so nothing is done about it: {}", object.error),
        })));
    }
}
