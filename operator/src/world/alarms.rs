//! Events of what is wrong, for people.

use std::time::Duration;

use crds::Reason;
use handoff::{Instant, PodUid, ServerUid};

use super::{Session, World};
use crate::{
    alarms::{self, Turn},
    model::{Effect, Key, Kind, Note, clip},
    status::Problem,
};

/// Of a pool's problem that came back, or stayed, people are told again after this time.
const AGAIN: Duration = Duration::from_mins(10);
/// Longest sentence.
const MAX_NOTE: usize = 900;

impl World {
    /// Tells of what became wrong with a server by this status.
    pub(super) fn server_alarm(&mut self, uid: &ServerUid, status: &crds::DurableServerStatus, now: Instant) {
        let Some(server) = self.servers.get(uid) else { return };
        if let Some((reason, message)) = alarms::of_server(&server.status.conditions, &status.conditions) {
            self.alarm(uid, reason, message, now);
        }
    }

    /// Tells of one server, or of its pool if there are many like it.
    pub(super) fn alarm(&mut self, uid: &ServerUid, reason: Reason, message: &str, now: Instant) {
        let Some(server) = self.servers.get(uid) else { return };
        let key = Key::new(server.id.namespace.clone(), server.id.name.clone());
        let (pool, id) = (server.pool.clone(), server.id.uid.0.clone());
        match self.budget.take(Kind::Server, &pool, reason, now) {
            Turn::Own => self.warn(Kind::Server, key, id, reason, message),
            Turn::Rest => {
                let note = format!(
                    "more servers have the trouble {} than are told of one by one: kubectl get dsrv shows them; {message}",
                    reason.name()
                );
                // A pool that does not exist has no Event; its first servers had.
                if let Some(object) = self.pools.get(&pool).and_then(|pool| pool.object.as_ref()) {
                    let id = object.uid.clone();
                    self.warn(Kind::Pool, pool, id, reason, &note);
                }
            }
            Turn::None => {}
        }
    }

    /// Why pods of this pool cannot host: what the first of them says that has been at it for longer than a start takes.
    pub(super) fn pool_problem(&self, key: &Key, now: Instant) -> Option<Problem> {
        let pods = &self.pools.get(key)?.pods;
        let sessions = pods.iter().filter_map(|pod| self.cluster.sessions.get(pod));
        let lasts = |session: &&Session| {
            session
                .problem_since
                .is_some_and(|since| now - since >= alarms::patience(alarms::of_pod(&session.problem_reason)))
        };
        let mut troubled = sessions.filter(|session| !session.draining).filter(lasts);
        let first = troubled.next()?;
        let others = match troubled.count() {
            0 => String::new(),
            n => format!(" (and {n} more)"),
        };
        let message = format!("pod {}{others} cannot host: {}", first.name, first.problem);
        Some(Problem { reason: alarms::of_pod(&first.problem_reason), message })
    }

    /// Tells of a pool's problem, once.
    pub(super) fn pool_alarm(&mut self, key: &Key, problem: Option<&Problem>, now: Instant) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        let Some(uid) = pool.object.as_ref().map(|object| object.uid.clone()) else { return };
        let recent = |at: Instant| now - at < AGAIN;
        let Some(problem) = problem else {
            pool.alarmed = pool.alarmed.filter(|(_, at)| recent(*at));
            return;
        };
        if pool.alarmed.is_some_and(|(reason, at)| reason == problem.reason && recent(at)) {
            return;
        }
        pool.alarmed = Some((problem.reason, now));
        self.warn(Kind::Pool, key.clone(), uid, problem.reason, &problem.message);
    }

    /// Tells a pod's people that its pool does not exist.
    pub(super) fn pod_alarm(&mut self, uid: &PodUid, pool: &Key, now: Instant) {
        let Some(entry) = self.cluster.pods.get_mut(uid) else { return };
        if entry.warned.is_some_and(|at| now - at < AGAIN) {
            return;
        }
        entry.warned = Some(now);
        let key = entry.pod.key.clone();
        if self.budget.take(Kind::Pod, pool, Reason::NoPool, now) == Turn::Own {
            let note = format!(
                "its label durableserver.io/pool names {}, but there is no such DurableServerPool in this namespace, or it \
                 is not accepted: the pod hosts nothing until there is one",
                pool.name
            );
            self.warn(Kind::Pod, key, uid.0.clone(), Reason::NoPool, &note);
        }
    }

    fn warn(&mut self, kind: Kind, key: Key, uid: String, reason: Reason, note: &str) {
        tracing::warn!(kind = kind.name(), object = %key, reason = reason.name(), note, "alarm");
        let note = clip(note, MAX_NOTE).to_owned();
        self.effects.push(Effect::Publish(Box::new(Note {
            kind,
            key,
            uid,
            related: None,
            warning: true,
            reason,
            action: "Report",
            note,
        })));
    }
}
