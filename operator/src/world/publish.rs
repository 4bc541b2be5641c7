//! What agents are told without asking: where servers may go, and where they are.

use std::{collections::HashMap, time::Duration};

use handoff::{Instant, PodUid, ServerUid};
use wire::session::{DirectoryEntry, DrainOrder, to_agent};

use super::{Pool, Server, Session, World};
use crate::{
    directory,
    model::{Effect, Key},
    ownership::Standing as Owned,
    plan::Standing,
};

/// Deletions within this time of the first are told together.
const DELETION_SETTLE: Duration = Duration::from_millis(50);
/// Changes of the directory within this time of the first are told together.
const DIRECTORY_SETTLE: Duration = Duration::from_millis(20);

impl World {
    /// Pushes the plan if pods came or went, and has terminating pods drained once deletions have settled.
    pub(super) fn publish_plan(&mut self, key: &Key, now: Instant) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        let settled = pool.deletion_seen.map(|seen| seen + DELETION_SETTLE);
        if let Some(at) = settled.filter(|at| now < *at) {
            self.timers.insert((at, key.clone()));
        }
        let drain = settled.is_some_and(|at| at <= now);
        if !pool.pods_changed && !drain {
            return;
        }
        pool.pods_changed = false;
        let standing = standing(&self.cluster, pool);
        let news = standing.differs(&pool.plan);
        greet(&mut self.servers, pool, &standing);
        pool.plan = standing;
        let orders = if drain {
            pool.deletion_seen = None;
            std::mem::take(&mut pool.to_drain)
        } else {
            std::collections::BTreeSet::new()
        };
        if news || drain {
            self.send_plans(key);
        }
        for pod in orders {
            if let Some(session) = self.cluster.sessions.get(&pod) {
                let order = DrainOrder { reason: "the pod is being deleted".into() };
                self.effects.push(Effect::Send(session.id, to_agent::Body::Drain(order)));
            }
        }
    }

    /// Pushes the plan with loads as they are now.
    pub(super) fn renew_plan(&mut self, key: &Key) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        let standing = standing(&self.cluster, pool);
        greet(&mut self.servers, pool, &standing);
        pool.plan = standing;
        self.send_plans(key);
    }

    fn send_plans(&mut self, key: &Key) {
        self.version += 1;
        let Some(pool) = self.pools.get(key) else { return };
        for uid in &pool.pods {
            if let Some(session) = self.cluster.sessions.get(uid) {
                let plan = pool.plan.without(uid, self.version);
                self.effects.push(Effect::Send(session.id, to_agent::Body::Plan(plan)));
            }
        }
    }

    /// The plan for an agent that just came.
    pub(super) fn send_plan(&mut self, key: &Key, pod: &PodUid) {
        self.version += 1;
        let Some(pool) = self.pools.get(key) else { return };
        let Some(session) = self.cluster.sessions.get(pod) else { return };
        let plan = standing(&self.cluster, pool).without(pod, self.version);
        self.effects.push(Effect::Send(session.id, to_agent::Body::Plan(plan)));
    }

    /// Tells agents what changed, and those that do not know anything yet everything. Before the pool is settled an
    /// agent knows better than we do where servers are.
    pub(super) fn publish_directory(&mut self, key: &Key, now: Instant) {
        let Some(pool) = self.pools.get_mut(key).filter(|pool| pool.settled) else { return };
        if let Some(since) = pool.changes.since() {
            let due = since + DIRECTORY_SETTLE;
            if now < due {
                self.timers.insert((due, key.clone()));
            } else {
                let names = pool.changes.take();
                self.tell_changes(key, names);
            }
        }
        self.tell_newcomers(key);
    }

    fn tell_changes(&mut self, key: &Key, names: impl IntoIterator<Item = String>) {
        let (mut entries, mut removed) = (Vec::new(), Vec::new());
        for name in names {
            match self.entry(&Key::new(key.namespace.clone(), name.clone())) {
                Some(entry) => entries.push(entry),
                None => removed.push(name),
            }
        }
        self.version += 1;
        let messages = directory::additions(self.version, &entries, &removed);
        for session in self.cluster.sessions.values().filter(|session| session.pool == *key && session.directory) {
            let sends = messages.iter().cloned().map(|m| Effect::Send(session.id, to_agent::Body::Directory(m)));
            self.effects.extend(sends);
        }
    }

    fn tell_newcomers(&mut self, key: &Key) {
        let newcomer = |session: &&mut Session| session.pool == *key && !session.directory;
        let mut newcomers = Vec::new();
        for session in self.cluster.sessions.values_mut().filter(newcomer) {
            session.directory = true;
            newcomers.push(session.id);
        }
        if newcomers.is_empty() {
            return;
        }
        self.version += 1;
        let servers = self.pools.get(key).into_iter().flat_map(|pool| &pool.servers);
        let names = servers.filter_map(|uid| self.servers.get(uid)).map(|server| &server.id.name);
        let entries: Vec<DirectoryEntry> =
            names.filter_map(|name| self.entry(&Key::new(key.namespace.clone(), name.clone()))).collect();
        let messages = directory::whole(self.version, &entries);
        for session in newcomers {
            let sends = messages.iter().cloned().map(|m| Effect::Send(session, to_agent::Body::Directory(m)));
            self.effects.extend(sends);
        }
    }

    /// Where a server is; `None`: there is no such server.
    fn entry(&self, name: &Key) -> Option<DirectoryEntry> {
        let server = self.servers.get(self.names.get(name)?)?;
        let ownership = &server.ownership;
        let uid = server.id.uid.0.clone();
        // An owner without a session serves still, unless it is known not to.
        let may_serve = matches!(ownership.standing, Owned::Held | Owned::Unheard);
        let owner = ownership.owner.as_ref().filter(|owner| may_serve && !self.cluster.view(owner).over);
        let gateway = owner.and_then(|owner| self.cluster.pods.get(owner)).map(|entry| entry.gateway.clone());
        Some(match (owner, gateway.filter(|gateway| !gateway.is_empty())) {
            (Some(owner), Some(gateway_address)) => DirectoryEntry {
                name: server.id.name.clone(),
                uid,
                epoch: ownership.epoch.0,
                pod_uid: owner.0.clone(),
                gateway_address,
            },
            _ => DirectoryEntry { name: server.id.name.clone(), uid, ..DirectoryEntry::default() },
        })
    }
}

/// Servers that wait because pods failed to start them need not wait for pods that come now.
fn greet(servers: &mut HashMap<ServerUid, Server>, pool: &Pool, standing: &Standing) {
    let came = standing.newcomers(&pool.plan);
    if came.is_empty() {
        return;
    }
    for uid in pool.ready.iter().chain(&pool.parked) {
        if let Some(server) = servers.get_mut(uid) {
            for pod in &came {
                server.ownership.came(pod);
            }
        }
    }
}

fn standing(cluster: &super::Cluster, pool: &Pool) -> Standing {
    Standing::of(&cluster.candidates(&pool.pods, pool.settings.as_ref()))
}
