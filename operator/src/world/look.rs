//! What the page is shown. Reads, and keeps account of what changed since it was last read.

use std::collections::BTreeSet;

use handoff::{Instant, ServerUid};

use super::{Pool, World, cluster::PodEntry};
use crate::{
    model::{Key, Now, clip},
    page::view::{DrainView, Look, MoveView, PodState, PodView, PoolView, ServerView},
};

/// Servers in one look, so that it takes the world a millisecond or two.
const MAX_SERVERS: usize = 2_000;
/// Drains that are over and shown, of all pools together.
const MAX_EARLIER: usize = 100;
/// Longest sentence that is shown.
const MAX_WHY: usize = 300;

impl World {
    /// Whether changes are kept account of.
    #[must_use]
    pub fn is_looked_at(&self) -> bool {
        self.unseen.is_some()
    }

    /// Nobody looks any more.
    pub fn look_away(&mut self) {
        self.unseen = None;
    }

    /// What changed since the look before; the first time, everything.
    pub fn look(&mut self, now: Now) -> Look {
        let first = self.unseen.is_none();
        let unseen = self.unseen.get_or_insert_with(|| self.names.keys().cloned().collect());
        let keys: Vec<Key> = std::iter::from_fn(|| unseen.pop_first()).take(MAX_SERVERS).collect();
        Look {
            first,
            at: now.wall.as_millisecond(),
            pools: self.show_pools(),
            pods: self.show_pods(),
            drains: self.show_drains(now.mono),
            servers: keys.into_iter().map(|key| (key.clone(), self.show_server(&key, now))).collect(),
        }
    }

    /// A server is not as the page was shown it.
    pub(super) fn not_as_seen(&mut self, uid: &ServerUid) {
        if let Some(unseen) = &mut self.unseen
            && let Some(server) = self.servers.get(uid)
        {
            unseen.insert(Key::new(server.id.namespace.clone(), server.id.name.clone()));
        }
    }

    fn show_server(&self, key: &Key, now: Now) -> Option<ServerView> {
        let uid = self.names.get(key)?;
        let server = self.servers.get(uid)?;
        let status = self.server_facts(uid, now)?.status();
        let waits = status.pod.is_none();
        let untrue = status.conditions.iter().find(|condition| condition.status != "True");
        Some(ServerView {
            pool: server.pool.to_string(),
            kind: server.spec.type_.clone(),
            phase: status.phase.unwrap_or_default(),
            pod: status.pod_uid.unwrap_or_default(),
            epoch: server.ownership.epoch.0,
            last: status.last_handoff.as_ref().map(MoveView::from),
            waits: untrue.filter(|_| waits).map(|why| (why.reason.clone(), clip(&why.message, MAX_WHY).to_owned())),
        })
    }

    fn show_pools(&self) -> Vec<PoolView> {
        let mut pools: Vec<PoolView> = self.pools.iter().map(|(key, pool)| show_pool(key, pool)).collect();
        pools.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        pools
    }

    fn show_pods(&self) -> Vec<PodView> {
        let of = |pool: &'_ Pool| pool.pods.iter().filter_map(|uid| self.cluster.pods.get(uid)).collect::<Vec<_>>();
        let mut pods: Vec<PodView> =
            self.pools.iter().flat_map(|(key, pool)| of(pool).into_iter().map(|pod| self.show_pod(key, pod))).collect();
        pods.sort_unstable_by(|a, b| (&a.pool, a.revision, &a.name).cmp(&(&b.pool, b.revision, &b.name)));
        pods
    }

    fn show_pod(&self, pool: &Key, entry: &PodEntry) -> PodView {
        let pod = &entry.pod;
        let session = self.cluster.sessions.get(&pod.uid);
        let set = pod.replica_set.as_ref().and_then(|uid| self.cluster.replica_sets.get(uid));
        let state = match session {
            _ if pod.over => PodState::Ended,
            Some(session) if session.draining => PodState::Draining,
            _ if pod.deleting => PodState::Draining,
            _ if !pod.ready => PodState::NotReady,
            None => PodState::Silent,
            _ if self.cluster.cordoned(pod) || pod.cordoned => PodState::Cordoned,
            Some(session) if session.types.is_empty() => PodState::CannotHost,
            Some(_) => PodState::Ready,
        };
        PodView {
            uid: pod.uid.0.clone(),
            pool: pool.to_string(),
            name: pod.key.name.clone(),
            node: pod.node.clone(),
            revision: set.map(|set| set.revision).unwrap_or_default(),
            newest: self.cluster.newest(pod),
            state,
            why: session.map(|session| clip(&session.problem, MAX_WHY).to_owned()).unwrap_or_default(),
        }
    }

    /// Drains under way as their agents tell them, earlier ones as their `Handoff`s do.
    fn show_drains(&self, now: Instant) -> Vec<DrainView> {
        let under_way = self.drains.values().map(|drain| {
            let recorded = self.handoffs.get(&drain.key).map(|handoff| handoff.trigger);
            let trigger = recorded.or_else(|| drain.made.then(|| self.trigger_of(&drain.pod_uid, now)));
            let pod = (drain.pod.as_str(), drain.pod_uid.0.as_str());
            DrainView::new(&drain.key, &drain.pool, pod, trigger, drain.status())
        });
        let live: BTreeSet<&Key> = self.drains.values().map(|drain| &drain.key).collect();
        let mut earlier: Vec<_> = self.handoffs.values().filter(|handoff| !live.contains(&handoff.key)).collect();
        earlier.sort_unstable_by_key(|handoff| std::cmp::Reverse(handoff.created));
        let earlier = earlier.into_iter().take(MAX_EARLIER).map(|handoff| {
            let pool = Key::new(handoff.key.namespace.clone(), handoff.pool.clone());
            let pod = (handoff.pod.as_str(), handoff.pod_uid.0.as_str());
            DrainView::new(&handoff.key, &pool, pod, Some(handoff.trigger), handoff.status.clone())
        });
        let mut drains: Vec<DrainView> = under_way.chain(earlier).collect();
        drains.sort_unstable_by(|a, b| (b.started, &a.name).cmp(&(a.started, &b.name)));
        drains
    }
}

fn show_pool(key: &Key, pool: &Pool) -> PoolView {
    let spec = pool.object.as_ref().map(|object| &object.spec);
    let handoff = spec.and_then(|spec| spec.handoff_on_shutdown.as_ref()).and_then(|handoff| handoff.enabled);
    let untrue = pool.own_status.iter().flat_map(|status| &status.conditions).find(|c| c.status != "True");
    let why = match spec {
        None => "there is no DurableServerPool of this name",
        Some(_) => untrue.map(|condition| condition.message.as_str()).unwrap_or_default(),
    };
    PoolView { key: key.to_string(), handoff: handoff.unwrap_or(false), why: clip(why, MAX_WHY).to_owned() }
}
