//! Changes of one server's ownership, with everything that is kept in step with it.

use handoff::{Instant, PodUid, ServerUid};

use super::{Pool, World};
use crate::{
    model::Key,
    ownership::{Ownership, Standing},
};

impl World {
    /// The pool of this name, made if nobody spoke of it yet.
    pub(super) fn pool_mut(&mut self, key: &Key) -> &mut Pool {
        self.awake.insert(key.clone());
        self.pools.entry(key.clone()).or_default()
    }

    /// Changes a server's ownership and marks what depends on it. `None`: no such server.
    pub(super) fn change<R>(
        &mut self,
        uid: &ServerUid,
        now: Instant,
        change: impl FnOnce(&mut Ownership) -> R,
    ) -> Option<R> {
        let server = self.servers.get_mut(uid)?;
        let before = server.ownership.clone();
        let result = change(&mut server.ownership);
        let after = server.ownership.clone();
        if after.standing == Standing::Held {
            server.stopped = false;
            server.unplaced = None;
        }
        if before != after {
            let (pool, name) = (server.pool.clone(), server.id.name.clone());
            self.reindex(uid, before.owner.as_ref(), after.owner.as_ref());
            self.reassign(uid, &before, &after);
            let place = |o: &Ownership| (o.epoch, o.owner.clone(), o.standing);
            if place(&before) != place(&after) {
                self.pool_mut(&pool).changes.add(&name, now);
            }
            self.mark(uid, now);
        }
        Some(result)
    }

    /// A server is to be looked at, and reported.
    pub(super) fn mark(&mut self, uid: &ServerUid, now: Instant) {
        let Some(server) = self.servers.get(uid) else { return };
        let attend = server.deleting || server.ownership.standing != Standing::Held;
        let key = server.pool.clone();
        let pool = self.pool_mut(&key);
        pool.parked.remove(uid);
        if attend {
            pool.ready.insert(uid.clone());
        } else {
            pool.ready.remove(uid);
        }
        self.tell(uid, now);
    }

    /// A server is to be reported.
    pub(super) fn tell(&mut self, uid: &ServerUid, now: Instant) {
        let Some(server) = self.servers.get(uid) else { return };
        let key = server.pool.clone();
        let pool = self.pool_mut(&key);
        pool.status.insert(uid.clone());
        pool.status_since.get_or_insert(now);
        self.not_as_seen(uid);
    }

    /// Servers of this pool that wait may have reason not to any more.
    pub(super) fn unpark(&mut self, key: &Key) {
        let pool = self.pool_mut(key);
        pool.ready.append(&mut pool.parked);
        pool.moves.look();
        pool.pods_changed = true;
    }

    fn reindex(&mut self, uid: &ServerUid, before: Option<&PodUid>, after: Option<&PodUid>) {
        if before == after {
            return;
        }
        if let Some(before) = before
            && let Some(owned) = self.owned.get_mut(before)
        {
            owned.remove(uid);
            if owned.is_empty() {
                self.owned.remove(before);
            }
        }
        if let Some(after) = after {
            self.owned.entry(after.clone()).or_default().insert(uid.clone());
        }
    }

    fn reassign(&mut self, uid: &ServerUid, before: &Ownership, after: &Ownership) {
        if let Some(old) = before.outstanding.as_ref().filter(|old| after.outstanding.as_ref() != Some(*old))
            && let Some(session) = self.cluster.sessions.get_mut(&old.to)
        {
            session.assigned.remove(uid);
        }
        if let Some(new) = &after.outstanding
            && let Some(session) = self.cluster.sessions.get_mut(&new.to)
        {
            session.assigned.insert(uid.clone(), new.since);
        }
    }

    /// Takes a server out of all indexes but the sessions'.
    pub(super) fn unindex(&mut self, uid: &ServerUid, now: Instant) {
        self.not_as_seen(uid);
        let Some(server) = self.servers.remove(uid) else { return };
        self.reindex(uid, server.ownership.owner.as_ref(), None);
        self.reassign(uid, &server.ownership, &Ownership::default());
        let name = Key::new(server.id.namespace.clone(), server.id.name.clone());
        if self.names.get(&name) == Some(uid) {
            self.names.remove(&name);
        }
        let pool = self.pool_mut(&server.pool);
        pool.servers.remove(uid);
        pool.wishes.remove(uid);
        pool.ready.remove(uid);
        pool.parked.remove(uid);
        pool.status.remove(uid);
        pool.changes.add(&server.id.name, now);
    }

    /// Servers whose newest known owner is this pod.
    pub(super) fn owned_by(&self, pod: &PodUid) -> Vec<ServerUid> {
        self.owned.get(pod).map(|owned| owned.iter().cloned().collect()).unwrap_or_default()
    }
}
