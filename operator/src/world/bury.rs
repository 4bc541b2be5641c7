//! Deleted servers: their logs are closed, then their resources let go. That takes as long as it takes an agent to write
//! one record, and never longer than [`PATIENCE`]: a namespace must not hang because its store, or its last pod, is gone.

use std::time::Duration;

use crds::{Reason, ReclaimPolicy};
use handoff::{Instant, PodUid, ServerId, ServerUid, claim::Supersedes};
use wire::session::{Assign, Bury, Stop, to_agent};

use super::{Server, World, sessions::server_ref};
use crate::{
    model::{Effect, Key, SessionId},
    ownership::{Next, Outstanding, Standing, To},
};

/// Keeps a server's resource until its log is closed.
pub const FINALIZER: &str = "durableserver.io/owned";
/// A resource waits for its log to be closed for at most so long: a drain takes 30 s by default, an agent's stop too.
const PATIENCE: Duration = Duration::from_mins(2);
/// The same where the pool has no pod that could do it. One that is being replaced, or an operator's restart, takes less.
const LONELY: Duration = Duration::from_secs(10);
/// A stop that was not answered is sent again after this time.
const STOP_AGAIN: Duration = Duration::from_secs(10);

/// What is known of a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// When it was first seen.
    pub since: Option<Instant>,
    /// The server's log ends in a Tombstone.
    pub closed: bool,
    /// Its resource was let go without that, and people were told.
    pub given_up: bool,
}

impl World {
    /// Closes a deleted server's log and lets its resource go.
    pub(super) fn bury(&mut self, uid: &ServerUid, now: Instant) {
        let Some(server) = self.servers.get_mut(uid) else { return };
        let waited = now - *server.deletion.since.get_or_insert(now);
        let never = server.ownership.standing == Standing::Never && server.ownership.outstanding.is_none();
        if server.deletion.closed || never {
            return self.let_go(uid);
        }
        let pool = server.pool.clone();
        let patience = if self.is_deserted(&pool, now) { LONELY } else { PATIENCE };
        if waited >= patience {
            self.give_up(uid, now);
            return self.let_go(uid);
        }
        let Some(server) = self.servers.get(uid) else { return };
        match server.ownership.next(now, |pod| self.view(pod, &pool, now)) {
            Next::Nothing => self.stop_for_good(uid, now),
            Next::Wait => {}
            Next::Assign(to, supersedes) => {
                let chosen = match to {
                    To::Only(pod) => Some(pod),
                    To::Any => self.gravedigger(server),
                };
                if let Some(pod) = chosen {
                    self.order_burial(uid, &pod, supersedes, now);
                }
            }
        }
    }

    /// Whether a pool has nobody who could write to the store, now or soon.
    fn is_deserted(&self, pool: &Key, now: Instant) -> bool {
        let alive = |pod: &PodUid| {
            let view = self.view(pod, pool, now);
            view.session || (view.exists && !view.over && view.silent.is_none())
        };
        !self.pools.get(pool).is_some_and(|known| known.pods.iter().any(alive))
    }

    /// An agent of the pool that can write: one record is no burden, so that the first that is well will do.
    fn gravedigger(&self, server: &Server) -> Option<PodUid> {
        let sessions = self.cluster.sessions.iter().filter(|(_, session)| session.pool == server.pool);
        let best = sessions.min_by_key(|(pod, session)| {
            (server.ownership.avoid.contains(*pod), session.types.is_empty(), session.draining, (*pod).clone())
        });
        best.map(|(pod, _)| pod.clone())
    }

    fn order_burial(&mut self, uid: &ServerUid, pod: &PodUid, supersedes: Option<Supersedes>, now: Instant) {
        let Some(session) = self.cluster.sessions.get(pod).map(|session| session.id) else { return };
        let Some(assign) = self.make_assign(uid, pod, supersedes, now) else { return };
        let delete_log = self.servers.get(uid).is_some_and(deletes_log);
        tracing::debug!(server = %uid, %pod, "bury");
        self.effects.push(Effect::Send(session, to_agent::Body::Bury(Bury { assign: Some(assign), delete_log })));
    }

    /// The next assignment of a server, noted as under way.
    pub(super) fn make_assign(
        &mut self,
        uid: &ServerUid,
        pod: &PodUid,
        supersedes: Option<Supersedes>,
        now: Instant,
    ) -> Option<Assign> {
        self.assignment += 1;
        let id = self.assignment;
        self.change(uid, now, |ownership| ownership.assigned(Outstanding { id, to: pod.clone(), since: now }));
        let server = self.servers.get(uid)?;
        let supersedes = supersedes.unwrap_or_default();
        Some(Assign {
            assignment: id,
            server: Some(server_ref(&server.id)),
            spec_json: server.spec_json.clone(),
            superseded_epoch: supersedes.epoch.0,
            superseded_pod_uid: supersedes.owner.pod.0,
            superseded_silent: supersedes.owner.silent.map(Into::into),
            grantee_silent: supersedes.grantee.as_ref().and_then(|over| over.silent).map(Into::into),
            superseded_grantee_uid: supersedes.grantee.unwrap_or_default().pod.0,
            hint: server.sequence,
        })
    }

    fn stop_for_good(&mut self, uid: &ServerUid, now: Instant) {
        let Some(server) = self.servers.get_mut(uid) else { return };
        let owner = server.ownership.owner.as_ref();
        let Some(session) = owner.and_then(|owner| self.cluster.sessions.get(owner)).map(|session| session.id) else {
            return;
        };
        if server.stop_sent.is_some_and(|(to, at)| to == session && now - at < STOP_AGAIN) {
            return;
        }
        server.stop_sent = Some((session, now));
        let effect = last_stop(server, session);
        self.effects.push(effect);
    }

    fn let_go(&mut self, uid: &ServerUid) {
        let Some(server) = self.servers.get(uid) else { return };
        if server.finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            let mut finalizers = server.finalizers.clone();
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            self.set_finalizers(uid, &finalizers);
        }
    }

    /// Tells people that the log was not closed, and how to delete it.
    fn give_up(&mut self, uid: &ServerUid, now: Instant) {
        let Some(server) = self.servers.get_mut(uid).filter(|server| !server.deletion.given_up) else { return };
        server.deletion.given_up = true;
        tracing::warn!(server = %server.id, %uid, "deleted, but no agent closed its log: it stays");
        let settings = self.pools.get(&server.pool).and_then(|pool| pool.settings.as_ref());
        let command = gc_command(&server.id, settings.map(|settings| &settings.store));
        let note = format!(
            "it is deleted, but its log stays as it is: no agent of its pool closed it in time. A new server of this name \
             may ask what spec.restoreFrom is to be. If the state is not wanted: {command}"
        );
        self.alarm(uid, Reason::LogStays, &note, now);
    }
}

/// Ends a server and its log.
pub(super) fn last_stop(server: &Server, session: SessionId) -> Effect {
    let stop = Stop {
        server: Some(server_ref(&server.id)),
        epoch: server.ownership.epoch.0,
        tombstone: true,
        reason: "its resource is deleted".into(),
        delete_log: deletes_log(server),
    };
    Effect::Send(session, to_agent::Body::Stop(stop))
}

fn deletes_log(server: &Server) -> bool {
    server.spec.reclaim_policy == Some(ReclaimPolicy::Delete)
}

/// What a person writes to delete this log, a day later.
fn gc_command(server: &ServerId, place: Option<&crds::settings::Bucket>) -> String {
    let place = match place {
        None => "--bucket BUCKET --prefix PREFIX".into(),
        Some(place) => {
            let endpoint = place.endpoint.as_ref().map(|url| format!(" --endpoint {url}")).unwrap_or_default();
            format!("--bucket {} --prefix '{}' --region {}{endpoint}", place.bucket, place.prefix, place.region)
        }
    };
    let ServerId { namespace, name, uid } = server;
    format!("durable-agent store gc {place} {namespace}/{name}/{uid} --delete")
}
