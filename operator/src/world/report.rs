//! What people are told: status of servers, pools and drains.

use std::time::Duration;

use crds::{HandoffPhase, HandoffSpec, Reason, Trigger};
use handoff::{Instant, PodUid, ServerUid};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};
use wire::session::{DrainSeen, Held, Stop, to_agent};

use super::World;
use crate::{
    drains,
    metrics::METRICS,
    model::{Effect, HandoffObject, Key, Kind, Note, Now, What, Write},
    ownership::Standing,
    status::{self, PoolFacts, Problem, ServerFacts},
};

/// Changes of servers within this time of the first are reported together.
const STATUS_SETTLE: Duration = Duration::from_millis(100);
/// What every sync changes is written at most so often.
const SYNCS_EVERY: Duration = Duration::from_mins(5);
/// So long a lost session is not shown: agents come back.
const SILENCE: Duration = Duration::from_secs(10);
/// A held server without a resource is stopped after this time: its resource may just not be known yet.
const STRAY: Duration = Duration::from_secs(30);
/// A drain is remembered for so long after its end was recorded.
const TOLD: Duration = Duration::from_mins(1);
/// Facts about pods that are gone are kept at least so long.
const REMEMBER: Duration = Duration::from_hours(1);

impl World {
    pub(super) fn report_servers(&mut self, key: &Key, now: Now) {
        let Some(pool) = self.pools.get_mut(key).filter(|pool| pool.settled) else { return };
        let Some(due) = pool.status_since.map(|since| since + STATUS_SETTLE) else { return };
        if now.mono < due {
            self.timers.insert((due, key.clone()));
            return;
        }
        pool.status_since = None;
        for uid in std::mem::take(&mut pool.status) {
            self.report_server(&uid, now);
        }
    }

    fn report_server(&mut self, uid: &ServerUid, now: Now) {
        let Some(server) = self.servers.get(uid) else { return };
        let status = self.server_facts(uid, now).map(|facts| facts.status());
        let Some(status) = status.filter(|status| *status != server.status) else { return };
        let stale = server.written.is_none_or(|written| now.mono - written >= SYNCS_EVERY);
        if !status::differs(&status, &server.status) && !stale {
            return;
        }
        let key = Key::new(server.id.namespace.clone(), server.id.name.clone());
        let what = What::Status(status::server_patch(&status).into());
        self.effects.push(Effect::Write(Write { kind: Kind::Server, key, what }));
        self.server_alarm(uid, &status, now.mono);
        if let Some(server) = self.servers.get_mut(uid) {
            server.status = status;
            server.written = Some(now.mono);
        }
    }

    pub(super) fn server_facts(&self, uid: &ServerUid, now: Now) -> Option<ServerFacts<'_>> {
        let server = self.servers.get(uid)?;
        let ownership = &server.ownership;
        let outstanding = ownership.outstanding.as_ref().map(|outstanding| &outstanding.to);
        let pod = outstanding.filter(|_| ownership.standing != Standing::Held).or(ownership.owner.as_ref());
        let entry = pod.and_then(|pod| self.cluster.pods.get(pod));
        Some(ServerFacts {
            generation: server.generation,
            refused: server.refused.clone(),
            poolless: self.is_poolless(&server.pool).then_some(server.pool.name.as_str()),
            stopped: server.stopped,
            ownership,
            pod: entry.map(|e| (e.pod.key.name.as_str(), e.pod.uid.0.as_str(), e.pod.node.as_str())),
            held: self.word_of_owner(uid),
            silent: ownership.standing == Standing::Unheard && entry.is_some_and(|e| silent(e.silent_since, now.mono)),
            unplaced: server.unplaced.as_ref(),
            topology: self.topology(server),
            wish: server.wish.as_deref(),
            unmet: server.unmet.as_ref(),
            last_handoff: server.last_handoff.clone(),
            previous: &server.status,
            now: now.wall,
        })
    }

    /// Whether a pool does not exist, as far as is known.
    fn is_poolless(&self, key: &Key) -> bool {
        self.pools.get(key).is_none_or(|pool| pool.object.is_none())
    }

    fn word_of_owner(&self, uid: &ServerUid) -> Option<&Held> {
        let ownership = &self.servers.get(uid)?.ownership;
        let owner = ownership.owner.as_ref().filter(|_| ownership.standing == Standing::Held)?;
        self.cluster.sessions.get(owner)?.held.get(uid)
    }

    /// Servers whose agent is away for long are reported as such.
    pub(super) fn look_for_silence(&mut self, now: Instant) {
        let just = |since: Instant| silent(Some(since), now) && now - since < SILENCE + Duration::from_secs(2);
        let pods = self.cluster.pods.iter().filter(|(_, entry)| entry.silent_since.is_some_and(just));
        let pods: Vec<PodUid> = pods.map(|(uid, _)| uid.clone()).collect();
        for uid in pods.iter().flat_map(|pod| self.owned_by(pod)).collect::<Vec<_>>() {
            self.mark(&uid, now);
        }
    }

    pub(super) fn report_pool(&mut self, key: &Key, now: Now) {
        let Some(pool) = self.pools.get(key) else { return };
        let (Some(object), Some(previous)) = (&pool.object, &pool.own_status) else { return };
        let sessions = || pool.pods.iter().filter_map(|pod| self.cluster.sessions.get(pod));
        let running = |uid: &&ServerUid| self.word_of_owner(uid).is_some_and(|held| status::serves(held.phase()));
        let refused = object.settings.as_ref().err().map(ToString::to_string);
        let problem = self.pool_problem(key, now.mono);
        let status = PoolFacts {
            generation: object.generation,
            refused: refused.clone(),
            servers: pool.servers.len(),
            running: pool.servers.iter().filter(running).count(),
            pods: sessions().count(),
            leaving: self.leaving(pool),
            eligible: pool.plan.targets.len(),
            problem: problem.as_ref(),
            previous,
            now: now.wall,
        }
        .status();
        let (settled, news) = (pool.settled, status != *previous);
        let invalid = refused.map(|message| Problem { reason: Reason::Invalid, message });
        self.pool_alarm(key, invalid.as_ref().or(problem.as_ref()), now.mono);
        if !news || !settled {
            return;
        }
        let what = What::Status(status::pool_patch(&status).into());
        self.effects.push(Effect::Write(Write { kind: Kind::Pool, key: key.clone(), what }));
        if let Some(pool) = self.pools.get_mut(key) {
            pool.own_status = Some(status);
        }
    }

    pub(super) fn report_drains(&mut self, now: Now) {
        for uid in self.drains.keys().cloned().collect::<Vec<_>>() {
            self.make_handoff(&uid, now.mono);
            let Some(drain) = self.drains.get_mut(&uid) else { continue };
            if !drain.made {
                self.timers.insert((drain.made_by(), drain.pool.clone()));
            } else if drain.due(now.mono) {
                let what = What::Status(status::handoff_patch(&drain.status()).into());
                self.effects.push(Effect::Write(Write { kind: Kind::Handoff, key: drain.key.clone(), what }));
            }
        }
    }

    fn make_handoff(&mut self, uid: &PodUid, now: Instant) {
        let Some(drain) = self.drains.get(uid) else { return };
        let pod = self.cluster.pods.get(uid).map(|entry| &entry.pod);
        let known = pod.is_some_and(|pod| pod.deleting || pod.disrupted);
        if drain.made || !drain.can_be_made(known, now) {
            return;
        }
        let spec = HandoffSpec {
            pool: drain.pool.name.clone(),
            source_pod: drain.pod.clone(),
            trigger: self.trigger_of(uid, now),
        };
        let body = json!({
            "apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION),
            "kind": Kind::Handoff.name(),
            "metadata": {
                "name": drain.key.name,
                "namespace": drain.key.namespace,
                "labels": { crds::POOL_LABEL: drain.pool.name, POD_UID_LABEL: drain.pod_uid.0 },
            },
            "spec": spec,
        });
        tracing::info!(pod = drain.pod, trigger = ?spec.trigger, "drain");
        let write = Write { kind: Kind::Handoff, key: drain.key.clone(), what: What::Create(body.into()) };
        self.effects.push(Effect::Write(write));
        if let Some(drain) = self.drains.get_mut(uid) {
            drain.made = true;
        }
    }

    /// Why a pod is emptied, as far as is known.
    pub(super) fn trigger_of(&self, uid: &PodUid, now: Instant) -> Trigger {
        let pod = self.cluster.pods.get(uid).map(|entry| &entry.pod);
        drains::trigger(
            pod,
            pod.is_none_or(|pod| self.cluster.newest(pod)),
            pod.is_some_and(|pod| self.cluster.shrank(pod, now)),
            pod.is_some_and(|pod| self.cluster.cordoned(pod)),
        )
    }

    /// A `Handoff`'s status is recorded, or never will be: the agent may go, and people are told once.
    pub(super) fn recorded(&mut self, key: &Key, body: &Value, now: Instant) {
        if body.pointer("/status/completionTime").is_none_or(Value::is_null) {
            return;
        }
        let Some(drain) = self.drains.values_mut().find(|drain| drain.key == *key && drain.end.is_some()) else {
            return;
        };
        if let Some(session) = drain.waiting.take() {
            self.effects.push(Effect::Send(session, to_agent::Body::DrainSeen(DrainSeen {})));
        }
        if drain.told.replace(now).is_some() {
            return;
        }
        let failed = drain.status().phase == Some(HandoffPhase::Failed);
        METRICS.drains.with_label_values(&[if failed { "failed" } else { "complete" }]).inc();
        let pool = self.pools.get(&drain.pool).and_then(|pool| pool.object.as_ref());
        let note = Note {
            kind: Kind::Pool,
            key: drain.pool.clone(),
            uid: pool.map(|pool| pool.uid.clone()).unwrap_or_default(),
            related: Some((Kind::Handoff, drain.key.clone())),
            warning: failed,
            reason: if failed { Reason::DrainFailed } else { Reason::Drained },
            action: "Drain",
            note: drain.summary(),
        };
        self.effects.push(Effect::Publish(Box::new(note)));
    }

    /// `Handoff`s that say Running though their pod is gone: the operator was not there when it went.
    pub(super) fn finish_forgotten_drains(&mut self, now: Now) {
        let forgotten = |handoff: &&HandoffObject| {
            !matches!(handoff.phase, Some(HandoffPhase::Complete | HandoffPhase::Failed))
                && !self.drains.contains_key(&handoff.pod_uid)
                && !self.cluster.pods.contains_key(&handoff.pod_uid)
                && handoff.created.is_some_and(|at| now.wall.as_second() - at.as_second() > 30)
        };
        for handoff in self.handoffs.values().filter(forgotten).map(|h| h.key.clone()).collect::<Vec<_>>() {
            self.finish_forgotten(&handoff, now.wall);
        }
    }

    fn finish_forgotten(&mut self, key: &Key, now: Timestamp) {
        let Some(handoff) = self.handoffs.get_mut(key) else { return };
        handoff.phase = Some(HandoffPhase::Failed);
        let why = "the pod ended while no operator was watching";
        let condition = status::stamped(&[], 1, now, (crds::condition::COMPLETE, "True", Reason::Failed, why));
        let fields = json!({
            "phase": HandoffPhase::Failed, "completionTime": Time(now), "blockedBy": null, "conditions": [condition],
        });
        let what = What::Status(json!({ "status": fields }).into());
        self.effects.push(Effect::Write(Write { kind: Kind::Handoff, key: key.clone(), what }));
    }

    /// Held servers whose resource is gone are stopped, their state kept.
    pub(super) fn stop_strays(&mut self, now: Instant) {
        for session in self.cluster.sessions.values_mut() {
            // A resource that cannot be read is a resource all the same.
            let known = |uid: &ServerUid| self.malformed.contains_key(&uid.0);
            let due = session.strays.iter().filter(|(uid, since)| now - **since >= STRAY && !known(uid));
            for uid in due.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
                let Some(held) = session.held.get(&uid) else {
                    session.strays.remove(&uid);
                    continue;
                };
                session.strays.insert(uid, now);
                let stop = Stop {
                    server: held.server.clone(),
                    epoch: held.epoch,
                    reason: "it has no resource".into(),
                    ..Stop::default()
                };
                self.effects.push(Effect::Send(session.id, to_agent::Body::Stop(stop)));
            }
        }
    }

    /// Forgets what nothing depends on any more.
    pub(super) fn forget(&mut self, now: Now) {
        let owned = &self.owned;
        self.budget.forget(now.mono);
        self.cluster.over.retain(|pod, since| owned.contains_key(pod) || now.mono - *since < REMEMBER);
        let (pods, sessions) = (&self.cluster.pods, &self.cluster.sessions);
        // Long after its time is over. A pod that only a Grant names is none of these, and while nothing is remembered of it, any
        // heartbeat in the store makes it seem alive, again and again.
        self.cluster.heard.retain(|pod, heard| {
            let known = pods.contains_key(pod) || sessions.contains_key(pod) || owned.contains_key(pod);
            known || !heard.is_silent(Instant::default(), REMEMBER, now.mono)
        });
        // The watch may show an older status of its Handoff for a while.
        let recent = |told: Instant| now.mono - told < TOLD;
        self.drains.retain(|uid, drain| pods.contains_key(uid) || drain.told.is_none_or(recent));
        let mut pools: Vec<Key> =
            self.handoffs.values().map(|h| Key::new(h.key.namespace.clone(), h.pool.clone())).collect();
        pools.sort_unstable();
        pools.dedup();
        for pool in pools {
            let of_pool = self.handoffs.values().filter(|h| h.pool == pool.name && h.key.namespace == pool.namespace);
            for key in drains::superfluous(of_pool, now.wall) {
                self.handoffs.remove(&key);
                self.effects.push(Effect::Write(Write { kind: Kind::Handoff, key, what: What::Delete }));
            }
        }
    }
}

/// Label of a `Handoff`: uid of the pod that is emptied.
pub const POD_UID_LABEL: &str = "durableserver.io/pod-uid";

fn silent(since: Option<Instant>, now: Instant) -> bool {
    since.is_some_and(|since| now - since >= SILENCE)
}
