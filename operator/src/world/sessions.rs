//! Agents come, speak and go. What they say is believed of their own pod and of servers of their own pool only.

use std::{net::SocketAddr, time::Duration};

use crds::{HandoffOutcome, LastHandoff, Reason};
use handoff::{Epoch, Instant, PodUid, ServerId, ServerUid};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use wire::{
    PROTOCOL,
    identity::PodIdentity,
    session::{
        AssignFailed, CertificateRequest, DrainReport, Gone, Heartbeat, Held, Hello, Moved, ServerRef, Status, Stop,
        Welcome, assign_failed::Why, from_agent, gone::How, to_agent,
    },
};

use super::{Session, World};
use crate::{
    drains::{self, Drain},
    metrics::METRICS,
    model::{Effect, Identity, Key, Now, Pod, Refusal, SessionId, clip},
    ownership::{Claimed, Failure, Trouble},
};

/// The longest lease that an agent may say it has: that of the longest setting.
const MAX_LEASE: Duration = Duration::from_mins(10);
/// Longest text of an agent that is kept.
const MAX_TEXT: usize = 512;
/// Longest word.
const MAX_WORD: usize = 64;
/// One agent gets certificates so far apart: making one costs more than asking.
const CERTIFY_EVERY: Duration = Duration::from_secs(5);

impl World {
    pub(super) fn open(&mut self, id: SessionId, identity: &Identity, hello: Hello, now: Now) {
        match self.admit(identity, &hello) {
            Err(refusal) => {
                tracing::info!(pod = identity.pod, reason = %refusal, "session refused");
                if let Refusal::NoPool(pool) = &refusal {
                    self.pod_alarm(&identity.uid, pool, now.mono);
                }
                self.effects.push(Effect::Close(id, refusal));
            }
            Ok(pool) => self.admitted(id, identity, &pool, hello, now),
        }
    }

    /// The pool of the pod that the token names.
    fn admit(&self, identity: &Identity, hello: &Hello) -> Result<Key, Refusal> {
        if !self.initialised_all() {
            return Err(Refusal::Starting);
        }
        if hello.protocol.abs_diff(PROTOCOL) > 1 {
            return Err(Refusal::Protocol { agent: hello.protocol, operator: PROTOCOL });
        }
        let unknown = || Refusal::UnknownPod(format!("{}/{}", identity.namespace, identity.pod));
        let pod = self.cluster.pods.get(&identity.uid).map(|entry| &entry.pod).ok_or_else(unknown)?;
        if pod.key != Key::new(identity.namespace.clone(), identity.pod.clone()) {
            return Err(unknown());
        }
        if pod.over {
            return Err(Refusal::PodOver);
        }
        if let Some(said) = [&hello.peer_address, &hello.gateway_address].into_iter().find(|said| !is_of(pod, said)) {
            return Err(Refusal::Address { said: clip(said, MAX_WORD).to_owned(), pod: identity.pod.clone() });
        }
        let key = Key::new(identity.namespace.clone(), pod.pool.clone());
        match self.pools.get(&key) {
            Some(pool) if pool.settings.is_some() => Ok(key),
            _ => Err(Refusal::NoPool(key)),
        }
    }

    fn admitted(&mut self, id: SessionId, identity: &Identity, pool: &Key, hello: Hello, now: Now) {
        let pod = identity.uid.clone();
        tracing::info!(
            pod = identity.pod,
            held = hello.inventory.len(),
            version = hello.agent_version,
            "session opened"
        );
        if let Some(old) = self.cluster.sessions.get(&pod) {
            let old = old.id;
            self.effects.push(Effect::Close(old, Refusal::Replaced));
            self.closed(old, now.mono);
        }
        if let Some(entry) = self.cluster.pods.get_mut(&pod) {
            entry.gateway.clone_from(&hello.gateway_address);
            entry.silent_since = None;
        }
        self.session_pods.insert(id, pod.clone());
        let is_heard = self.heard(&pod, pool, hello.heartbeat, hello.lease_ms, now.mono);
        let session = Session {
            id,
            name: identity.pod.clone(),
            pool: pool.clone(),
            peer: hello.peer_address,
            gateway: hello.gateway_address,
            types: hello.types,
            starting: hello.starting.into_iter().map(ServerUid).collect(),
            draining: hello.draining,
            ..Session::default()
        };
        self.cluster.sessions.insert(pod.clone(), session);
        self.effects.push(Effect::Send(
            id,
            to_agent::Body::Welcome(Welcome {
                protocol: PROTOCOL,
                cluster_id: self.cluster_id.clone(),
                pod_uid: pod.0.clone(),
                settings: Some(self.settings_of(pool)),
                heard: hello.heartbeat.filter(|_| is_heard),
            }),
        ));
        self.take_inventory(&pod, hello.inventory, now.mono);
        self.unpark(pool);
        self.send_plan(pool, &pod);
        let deleting = self.cluster.pods.get(&pod).is_some_and(|entry| entry.pod.deleting);
        if deleting && !hello.draining {
            let pool = self.pool_mut(pool);
            pool.deletion_seen.get_or_insert(now.mono);
            pool.to_drain.insert(pod);
        }
    }

    fn take_inventory(&mut self, pod: &PodUid, inventory: Vec<Held>, now: Instant) {
        let before = self.owned_by(pod);
        let assigned = self.servers_assigned_to(pod);
        for held in inventory {
            self.held(pod, held, now);
        }
        for uid in before.into_iter().chain(assigned) {
            if self.is_absent(pod, &uid) {
                self.change(&uid, now, |ownership| ownership.absent(pod));
            }
        }
    }

    /// Whether a pod with a session has not got a server, and is not about to.
    pub(super) fn is_absent(&self, pod: &PodUid, uid: &ServerUid) -> bool {
        let has = |session: &Session| session.held.contains_key(uid) || session.starting.contains(uid);
        !self.cluster.sessions.get(pod).is_some_and(has)
    }

    /// Assignments that were under way when the pod's session ended.
    fn servers_assigned_to(&self, pod: &PodUid) -> Vec<ServerUid> {
        let key = self.cluster.sessions.get(pod).map(|session| &session.pool);
        let Some(pool) = key.and_then(|key| self.pools.get(key)) else { return Vec::new() };
        let to = |uid: &ServerUid| self.servers.get(uid).and_then(|s| s.ownership.outstanding.as_ref()).map(|o| &o.to);
        pool.ready.iter().chain(&pool.parked).filter(|uid| to(uid) == Some(pod)).cloned().collect()
    }

    pub(super) fn closed(&mut self, id: SessionId, now: Instant) {
        let Some(pod) = self.session_pods.remove(&id) else { return };
        let Some(session) = self.cluster.sessions.remove(&pod) else { return };
        tracing::info!(pod = session.name, held = session.held.len(), "session ended");
        if let Some(entry) = self.cluster.pods.get_mut(&pod) {
            entry.silent_since = Some(now);
        }
        for uid in self.owned_by(&pod) {
            self.change(&uid, now, |ownership| ownership.silent(&pod));
        }
        self.unpark(&session.pool);
    }

    pub(super) fn message(&mut self, id: SessionId, body: from_agent::Body, now: Now) {
        let Some(pod) = self.session_pods.get(&id).cloned() else { return };
        match body {
            from_agent::Body::Hello(_) => tracing::warn!(%pod, "a second hello in one session"),
            from_agent::Body::Held(held) => self.held(&pod, held, now.mono),
            from_agent::Body::Gone(gone) => self.gone(&pod, &gone, now),
            from_agent::Body::AssignFailed(failed) => self.assign_failed(&pod, &failed, now.mono),
            from_agent::Body::Moved(moved) => self.moved(&pod, &moved, now),
            from_agent::Body::MoveEnded(ended) => self.move_ended(&pod, &ended, now.mono),
            from_agent::Body::Drain(report) => self.drain_reported(&pod, id, report, now),
            from_agent::Body::Status(status) => {
                self.answer_heartbeat(&pod, id, &status, now.mono);
                self.agent_status(&pod, status, now.mono);
            }
            from_agent::Body::Certificate(request) => self.certify(&pod, request, now.mono),
        }
    }

    /// Whoever decides calls this only while it leads: from an answer on, its agent serves for a whole lease.
    fn answer_heartbeat(&mut self, pod: &PodUid, id: SessionId, status: &Status, now: Instant) {
        let pool = self.cluster.sessions.get(pod).map(|session| session.pool.clone());
        let (Some(pool), Some(heartbeat)) = (pool, status.heartbeat) else { return };
        if self.heard(pod, &pool, Some(heartbeat), status.lease_ms, now) {
            self.effects.push(Effect::Send(id, to_agent::Body::Heard(heartbeat)));
        }
    }

    /// A sign of life, by which the agent counts so many milliseconds, or by what its pool says if it does not know yet.
    /// Whether it is news, and may be answered.
    fn heard(&mut self, pod: &PodUid, pool: &Key, heartbeat: Option<Heartbeat>, lease_ms: u64, now: Instant) -> bool {
        let Some(heartbeat) = heartbeat else { return false };
        let settings = self.pools.get(pool).and_then(|pool| pool.settings.as_ref());
        let of_pool = settings.map(|settings| settings.lease_duration).unwrap_or_default();
        let duration = of_pool.max(Duration::from_millis(lease_ms).min(MAX_LEASE));
        self.cluster.heard.entry(pod.clone()).or_default().beat(heartbeat.into(), duration, now)
    }

    /// A server that this pod may speak of.
    pub(super) fn of_its_pool(&self, pod: &PodUid, reference: Option<&ServerRef>) -> Option<ServerUid> {
        let uid = ServerUid(reference?.uid.clone());
        let session = self.cluster.sessions.get(pod)?;
        match self.servers.get(&uid) {
            Some(server) if server.pool != session.pool => {
                tracing::warn!(%pod, server = %server.id, "an agent speaks of a server of another pool");
                None
            }
            Some(_) => Some(uid),
            None => None,
        }
    }

    pub(super) fn held(&mut self, pod: &PodUid, mut held: Held, now: Instant) {
        let Some(session) = self.cluster.sessions.get_mut(pod) else { return };
        let Some(reference) = held.server.clone() else { return };
        let uid = ServerUid(reference.uid.clone());
        held.error.truncate(held.error.floor_char_boundary(MAX_TEXT));
        let epoch = Epoch(held.epoch);
        let Some(server) = self.servers.get(&uid) else {
            session.strays.entry(uid.clone()).or_insert(now);
            session.held.insert(uid, held);
            return;
        };
        if server.pool != session.pool {
            tracing::warn!(%pod, server = %server.id, "an agent claims a server of another pool");
            return;
        }
        session.strays.remove(&uid);
        session.starting.remove(&uid);
        let version = Some(held.state_version).filter(|version| *version > 0);
        let sequence = held.sequence;
        session.held.insert(uid.clone(), held);
        let id = session.id;
        match self.change(&uid, now, |ownership| ownership.held(pod, epoch)) {
            Some(Claimed::Owner) => {
                if let Some(server) = self.servers.get_mut(&uid) {
                    server.state_version = version.or(server.state_version);
                    server.sequence = server.sequence.max(sequence);
                }
                self.mark(&uid, now);
            }
            Some(Claimed::Stale) => self.stop_stale(id, reference, epoch, &uid),
            Some(Claimed::Passing) | None => {}
        }
    }

    fn stop_stale(&mut self, id: SessionId, reference: ServerRef, epoch: Epoch, uid: &ServerUid) {
        let newest = self.servers.get(uid).map(|server| server.ownership.epoch).unwrap_or_default();
        tracing::warn!(server = reference.name, %epoch, %newest, "a pod holds a server in an old epoch");
        let reason = format!("epoch {newest} of it is owned by another pod");
        let stop = Stop { server: Some(reference), epoch: epoch.0, reason, ..Stop::default() };
        self.effects.push(Effect::Send(id, to_agent::Body::Stop(stop)));
    }

    fn gone(&mut self, pod: &PodUid, gone: &Gone, now: Now) {
        let Some(reference) = &gone.server else { return };
        let uid = ServerUid(reference.uid.clone());
        let Some(session) = self.cluster.sessions.get_mut(pod) else { return };
        let epoch = Epoch(gone.epoch);
        session.starting.remove(&uid);
        if session.held.get(&uid).is_some_and(|held| held.epoch <= gone.epoch) {
            session.held.remove(&uid);
            session.strays.remove(&uid);
        }
        let (draining, from) = (session.draining, session.name.clone());
        let Some(uid) = self.of_its_pool(pod, gone.server.as_ref()) else { return };
        let how = gone.how();
        let grantee = Some(PodUid(gone.grantee_pod_uid.clone())).filter(|grantee| !grantee.0.is_empty());
        tracing::debug!(server = reference.name, %pod, %epoch, how = how.as_str_name(), reason = gone.reason, "gone");
        let changed = self.change(&uid, now.mono, |ownership| ownership.gone(pod, epoch, how, grantee, now.mono));
        if changed != Some(true) {
            return;
        }
        if how == How::Crashed {
            self.crashed(&uid, pod, now.mono);
        }
        if let Some(server) = self.servers.get_mut(&uid) {
            server.state_version = Some(gone.state_version).filter(|v| *v > 0).or(server.state_version);
            server.sequence = server.sequence.max(gone.sequence);
            server.deletion.closed |= gone.tombstone;
            if draining && how == How::Released {
                server.last_handoff = Some(LastHandoff {
                    from,
                    to: None,
                    gap: None,
                    result: HandoffOutcome::Stopped,
                    reason: word(&gone.reason),
                    time: Time(now.wall),
                });
            }
        }
        self.mark(&uid, now.mono);
    }

    fn crashed(&mut self, uid: &ServerUid, pod: &PodUid, now: Instant) {
        let Some(key) = self.servers.get(uid).map(|server| server.pool.clone()) else { return };
        let pool = self.pool_mut(&key);
        let pods = pool.pods.len();
        if !pool.crashes.add(pod, pods, now) {
            self.change(uid, now, |ownership| ownership.crashed(now));
        }
    }

    fn assign_failed(&mut self, pod: &PodUid, failed: &AssignFailed, now: Instant) {
        let Some(uid) = self.of_its_pool(pod, failed.server.as_ref()) else { return };
        if let Some(session) = self.cluster.sessions.get_mut(pod) {
            session.starting.remove(&uid);
        }
        self.found_alive(&uid, failed, now);
        let failure = failure(pod, failed);
        METRICS.assignments.with_label_values(&[failed.why().as_str_name()]).inc();
        tracing::info!(
            server = failed.server.as_ref().map(|server| server.name.as_str()).unwrap_or_default(),
            %pod,
            why = failed.why().as_str_name(),
            message = clip(&failed.message, MAX_TEXT),
            "assignment failed"
        );
        let jitter = spread(failed.assignment);
        let ours = self.change(&uid, now, |o| o.failed(pod, failed.assignment, failure, now, jitter));
        if let Some(server) = self.servers.get_mut(&uid).filter(|_| ours == Some(true)) {
            server.deletion.closed |= failed.why() == Why::Deleted;
        }
    }

    /// A pod that was taken for silent has a newer heartbeat in the store: its silence begins anew.
    fn found_alive(&mut self, uid: &ServerUid, failed: &AssignFailed, now: Instant) {
        let Some(server) = self.servers.get(uid).filter(|_| failed.why() == Why::Alive) else { return };
        let (alive, ownership) = (PodUid(failed.alive_pod_uid.clone()), &server.ownership);
        // Nobody was asked about any other.
        if ownership.owner.as_ref() == Some(&alive) || ownership.grant.as_ref().is_some_and(|grant| grant.to == alive) {
            let pool = server.pool.clone();
            self.heard(&alive, &pool, failed.alive, 0, now);
        }
    }

    fn moved(&mut self, pod: &PodUid, moved: &Moved, now: Now) {
        let done = moved.result == "Moved";
        METRICS.moved(done, moved.gap_us);
        if let Some(drain) = self.drains.get_mut(pod) {
            drain.moved(done, moved.gap_us);
        }
        let Some(uid) = self.of_its_pool(pod, moved.server.as_ref()) else { return };
        if done && let Some(key) = self.servers.get(&uid).map(|server| server.pool.clone()) {
            self.gap(&key, Duration::from_micros(moved.gap_us));
        }
        let from = self.cluster.name_of(pod).unwrap_or_default();
        let to = self.cluster.name_of(&PodUid(moved.to_pod_uid.clone()));
        if let Some(server) = self.servers.get_mut(&uid) {
            server.last_handoff = Some(LastHandoff {
                from,
                to,
                gap: done.then(|| drains::text(moved.gap_us)),
                result: if done { HandoffOutcome::Moved } else { HandoffOutcome::Failed },
                reason: word(&moved.reason),
                time: Time(now.wall),
            });
        }
        self.mark(&uid, now.mono);
    }

    fn drain_reported(&mut self, pod: &PodUid, id: SessionId, report: DrainReport, now: Now) {
        let Some(session) = self.cluster.sessions.get_mut(pod) else { return };
        let news = !std::mem::replace(&mut session.draining, true);
        let (pool, name) = (session.pool.clone(), session.name.clone());
        let drain = self
            .drains
            .entry(pod.clone())
            .or_insert_with(|| Drain::new(pool.clone(), name, pod.clone(), now.mono, now.wall));
        drain.reported(report, id, now.wall);
        if news {
            self.unpark(&pool);
        }
    }

    /// What a certificate says is what the token and the API server say, never the agent.
    fn certify(&mut self, pod: &PodUid, request: CertificateRequest, now: Instant) {
        let Some(session) = self.cluster.sessions.get_mut(pod) else { return };
        if session.certified.is_some_and(|at| now < at + CERTIFY_EVERY) {
            return;
        }
        session.certified = Some(now);
        let Key { namespace, name: pool } = session.pool.clone();
        let (session, pod) = (session.id, PodIdentity { namespace, pool, pod_uid: pod.clone() });
        self.effects.push(Effect::Certify { session, pod, public_key: request.public_key });
    }

    fn agent_status(&mut self, pod: &PodUid, status: Status, now: Instant) {
        let Some(session) = self.cluster.sessions.get_mut(pod) else { return };
        let can = status.host_ready && status.problem.is_empty();
        let types = if can { status.types } else { Vec::new() };
        clip(&status.problem, MAX_TEXT).clone_into(&mut session.problem);
        let reason = clip(&status.reason, MAX_WORD);
        let since = session.problem_since.filter(|_| session.problem_reason == reason);
        session.problem_since = (!can).then(|| since.unwrap_or(now));
        reason.clone_into(&mut session.problem_reason);
        if session.types != types || session.draining != status.draining {
            session.types = types;
            session.draining = status.draining;
            let pool = session.pool.clone();
            self.unpark(&pool);
        }
    }
}

/// Whether an agent of this pod may be at `said`, as far as the kubelet has told.
fn is_of(pod: &Pod, said: &str) -> bool {
    let known = |address: SocketAddr| pod.addresses.contains(&address.ip());
    pod.addresses.is_empty() || said.is_empty() || said.parse().is_ok_and(known)
}

/// A server's name as the session's messages write it.
pub(super) fn server_ref(id: &ServerId) -> ServerRef {
    ServerRef { namespace: id.namespace.clone(), name: id.name.clone(), uid: id.uid.0.clone() }
}

/// 0..1, as far apart as can be for numbers that follow each other: what failed together is not tried again together.
fn spread(n: u64) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let high = u32::try_from(n.wrapping_mul(GOLDEN) >> 32).unwrap_or_default();
    f64::from(high) / (f64::from(u32::MAX) + 1.0)
}

/// The first word of a reason: the schema has room for one.
fn word(reason: &str) -> Option<String> {
    let word = clip(reason, 128).trim();
    (!word.is_empty()).then(|| word.to_owned())
}

fn failure(pod: &PodUid, failed: &AssignFailed) -> Failure {
    let message = clip(&failed.message, MAX_TEXT).to_owned();
    let trouble = |reason, fatal| Trouble { reason, message: message.clone(), fatal };
    let claimed = Some(Epoch(failed.newest_epoch)).filter(|_| failed.newest_pod_uid == pod.0);
    match failed.why() {
        Why::RefusedByLog | Why::Granted => Failure::Refused {
            epoch: Epoch(failed.newest_epoch),
            owner: PodUid(failed.newest_pod_uid.clone()),
            grantee: Some(PodUid(failed.grantee_pod_uid.clone())).filter(|grantee| !grantee.0.is_empty()),
        },
        Why::Host => Failure::Pod(trouble(Reason::HostRefused, false), claimed),
        Why::NotHere => Failure::Pod(trouble(Reason::PodRefused, false), claimed),
        Why::Alive => Failure::Everywhere(trouble(Reason::OwnerAlive, false)),
        Why::Store | Why::Unspecified => Failure::Everywhere(trouble(Reason::StoreUnavailable, false)),
        Why::Corrupt => Failure::Everywhere(Trouble {
            reason: Reason::Corrupt,
            message: format!(
                "its log cannot be read, or lacks what was written, and it is not started from an older state by itself: \
                 {message}. Restore the object in the store; it is tried again every minute"
            ),
            fatal: true,
        }),
        Why::Undecided => Failure::Everywhere(Trouble {
            reason: Reason::RestoreUndecided,
            message: format!("{message}. It is tried again every minute"),
            fatal: true,
        }),
        Why::Deleted => Failure::Everywhere(Trouble {
            reason: Reason::Deleted,
            message: format!("its log ends in a Tombstone: delete this resource and make a new one. {message}"),
            fatal: true,
        }),
    }
}
