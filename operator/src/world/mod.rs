//! The index of everything, owned by one task. Events change it; what follows is collected as effects, which others
//! carry out. Nothing here waits, and nothing here talks to anybody.
//!
//! ```text
//!  events ──► objects, sessions ──► (what changed is marked) ──► attend, bury: ownership, placement ──► effects
//!                                                           └──► report: plans, directory, status, drains
//! ```

mod alarms;
mod attend;
mod bury;
mod cluster;
mod costs;
mod foretell;
mod index;
mod look;
mod moves;
mod near;
mod objects;
mod publish;
mod report;
mod sessions;
mod wishes;

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use crds::{DurableServerPoolStatus, DurableServerSpec, DurableServerStatus, LastHandoff, Reason, settings};
use handoff::{Epoch, Instant, PodUid, ServerId, ServerUid, placement::Need};

pub use bury::{Deletion, FINALIZER};
pub use cluster::{Cluster, PodEntry, Session};
pub use report::POD_UID_LABEL;

use crate::{
    alarms::Budget,
    crashes::Masses,
    directory::Changes,
    drains::Drain,
    model::{Effect, Event, HandoffObject, Key, Kind, Now, PoolObject, SessionId},
    ownership::{Ownership, Trouble},
    plan::Standing,
    status::Problem,
};

/// Of a server whose owner gave no sign at the start, nothing is changed for so long: agents may be connecting.
const SETTLE: Duration = Duration::from_secs(10);
/// How often waiting servers are looked at again.
pub const BEAT: Duration = Duration::from_millis(250);
/// Beats between two plans.
const PLAN_BEATS: u64 = 4;

/// One server.
#[derive(Clone, Debug)]
pub struct Server {
    /// Name and uid.
    pub id: ServerId,
    /// Its pool.
    pub pool: Key,
    /// Generation of the spec.
    pub generation: i64,
    /// Version of the object.
    pub resource_version: String,
    /// It has a deletionTimestamp.
    pub deleting: bool,
    /// Its finalizers.
    pub finalizers: Vec<String>,
    /// The pod that a person wants it in.
    pub wish: Option<String>,
    /// Why it does not go there.
    pub unmet: Option<Problem>,
    /// The version at which a change of the finalizers was asked for.
    pub finalizers_at: String,
    /// What it is to be.
    pub spec: DurableServerSpec,
    /// The same, as agents get it.
    pub spec_json: String,
    /// Why its spec is not acted on.
    pub refused: Option<String>,
    /// It is not to be started again.
    pub stopped: bool,
    /// Who owns it.
    pub ownership: Ownership,
    /// Version of its state, once there is one.
    pub state_version: Option<u32>,
    /// The newest record of its log known to exist.
    pub sequence: u64,
    /// Why no pod gets it.
    pub unplaced: Option<Trouble>,
    /// The term after which it has no pod, and since when it could be started in any.
    pub podless: Option<(Epoch, Instant)>,
    /// Its last move.
    pub last_handoff: Option<LastHandoff>,
    /// Its status, as it was last read or handed to the writer.
    pub status: DurableServerStatus,
    /// When it was last handed to the writer.
    pub written: Option<Instant>,
    /// The session that was told to stop it for good, and when.
    pub stop_sent: Option<(SessionId, Instant)>,
    /// How far its deletion is.
    pub deletion: Deletion,
}

impl Server {
    /// What it needs of a pod, which may have so many of its type, and should be near that.
    fn need(&self, max_of_type: Option<u32>, near: Vec<String>) -> Need {
        Need { kind: self.spec.type_.clone(), state_version: self.state_version, max_of_type, near }
    }
}

/// One pool: its resource, and what is marked to be done.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    object: Option<Box<PoolObject>>,
    settings: Option<settings::Pool>,
    spec_json: String,
    servers: BTreeSet<ServerUid>,
    /// Those of them that a person wants in a certain pod.
    wishes: BTreeSet<ServerUid>,
    pods: BTreeSet<PodUid>,
    settled: bool,
    /// Servers to look at now.
    ready: BTreeSet<ServerUid>,
    /// Servers that wait for something.
    parked: BTreeSet<ServerUid>,
    plan: Standing,
    pods_changed: bool,
    deletion_seen: Option<Instant>,
    to_drain: BTreeSet<PodUid>,
    changes: Changes,
    moves: moves::Moves,
    status: BTreeSet<ServerUid>,
    status_since: Option<Instant>,
    own_status: Option<DurableServerPoolStatus>,
    /// When hosts crashed.
    crashes: Masses,
    /// The problem that people were last told of, and when.
    alarmed: Option<(Reason, Instant)>,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    cluster_id: String,
    cluster: Cluster,
    pools: HashMap<Key, Pool>,
    servers: HashMap<ServerUid, Server>,
    names: HashMap<Key, ServerUid>,
    owned: HashMap<PodUid, BTreeSet<ServerUid>>,
    session_pods: HashMap<SessionId, PodUid>,
    drains: HashMap<PodUid, Drain>,
    handoffs: HashMap<Key, HandoffObject>,
    malformed: HashMap<String, i64>,
    unread: BTreeSet<Kind>,
    read_since: Option<Instant>,
    assignment: u64,
    version: u64,
    beats: u64,
    awake: BTreeSet<Key>,
    timers: BTreeSet<(Instant, Key)>,
    effects: Vec<Effect>,
    budget: Budget,
    /// Pods' deletion costs are written.
    writes_costs: bool,
    /// Servers that changed since the page was last shown them; `None`: nobody looks.
    unseen: Option<BTreeSet<Key>>,
}

impl World {
    /// An empty world. `first` begins the numbers of assignments, plans and directories: higher than any before a restart.
    #[must_use]
    pub fn new(cluster_id: String, first: u64) -> Self {
        Self {
            cluster_id,
            cluster: Cluster::default(),
            pools: HashMap::new(),
            servers: HashMap::new(),
            names: HashMap::new(),
            owned: HashMap::new(),
            session_pods: HashMap::new(),
            drains: HashMap::new(),
            handoffs: HashMap::new(),
            malformed: HashMap::new(),
            unread: Kind::ALL.into(),
            read_since: None,
            assignment: first,
            version: first,
            beats: 0,
            awake: BTreeSet::new(),
            timers: BTreeSet::new(),
            effects: Vec::new(),
            budget: Budget::default(),
            writes_costs: false,
            unseen: None,
        }
    }

    /// Takes in one event. What follows from it comes with the next [`Self::settle`].
    pub fn apply(&mut self, event: Event, now: Now) {
        match event {
            Event::Pool(pool) => self.pool_seen(pool, now.mono),
            Event::PoolGone(key) => self.pool_gone(&key, now.mono),
            Event::Server(server) => self.server_seen(*server, now.mono),
            Event::ServerGone(uid) => self.server_gone(&uid, now.mono),
            Event::Pod(pod) => self.pod_seen(&pod, now),
            Event::PodGone(uid) => self.pod_gone(&uid, now),
            Event::Node(name, node) => self.node_seen(&name, Some(&node)),
            Event::NodeGone(name) => self.node_seen(&name, None),
            Event::ReplicaSet(set) => self.replica_set_seen(&set, now.mono),
            Event::ReplicaSetGone(uid) => self.replica_set_gone(&uid),
            Event::StatefulSet(uid, revision) => self.stateful_set_seen(uid, Some(&revision)),
            Event::StatefulSetGone(uid) => self.stateful_set_seen(uid, None),
            Event::Service(key, selector) => self.service_seen(&key, Some(&selector)),
            Event::ServiceGone(key) => self.service_seen(&key, None),
            Event::Handoff(handoff) => {
                self.handoffs.insert(handoff.key.clone(), *handoff);
            }
            Event::HandoffGone(key) => {
                self.handoffs.remove(&key);
            }
            Event::Malformed(malformed) => self.malformed_seen(&malformed, now.wall),
            Event::Initialised(kind) => self.initialised(kind, now.mono),
            Event::Open(opening) => self.open(opening.id, &opening.identity, opening.hello, now),
            Event::Message(id, body) => self.message(id, *body, now),
            Event::Closed(id) => self.closed(id, now.mono),
            Event::Recorded(key, body) => self.recorded(&key, &body, now.mono),
        }
    }

    fn initialised(&mut self, kind: Kind, now: Instant) {
        if self.unread.remove(&kind) && self.unread.is_empty() {
            tracing::info!(servers = self.servers.len(), pools = self.pools.len(), "all objects read");
            self.read_since = Some(now);
            self.awake.extend(self.pools.keys().cloned());
        }
    }

    /// Whether all objects that were there at the start are known.
    #[must_use]
    pub fn initialised_all(&self) -> bool {
        self.unread.is_empty()
    }

    /// How many servers are known.
    #[must_use]
    pub fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Every [`BEAT`]: waiting servers are looked at again, and every second plans, pools and drains.
    pub fn beat(&mut self, now: Now) {
        self.beats += 1;
        let full = self.beats.is_multiple_of(PLAN_BEATS);
        for (key, pool) in &mut self.pools {
            pool.ready.append(&mut pool.parked);
            pool.moves.look();
            self.awake.insert(key.clone());
        }
        if full && self.initialised_all() {
            self.beat_full(now);
        }
    }

    fn beat_full(&mut self, now: Now) {
        let keys: Vec<Key> = self.pools.keys().cloned().collect();
        for key in &keys {
            self.renew_plan(key);
            self.weigh(key, now.mono);
            self.report_pool(key, now);
        }
        self.look_for_silence(now.mono);
        self.stop_strays(now.mono);
        self.finish_forgotten_drains(now);
        self.forget(now);
    }

    /// Decides whatever is marked, and hands out what follows.
    pub fn settle(&mut self, now: Now) -> Vec<Effect> {
        while let Some((at, key)) = self.timers.first().cloned().filter(|(at, _)| *at <= now.mono) {
            self.timers.remove(&(at, key.clone()));
            self.awake.insert(key);
        }
        if self.initialised_all() {
            for key in std::mem::take(&mut self.awake) {
                self.settle_pool(&key, now);
            }
            self.report_drains(now);
        }
        std::mem::take(&mut self.effects)
    }

    /// When [`Self::settle`] has something to do even without an event.
    #[must_use]
    pub fn wake(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn settle_pool(&mut self, key: &Key, now: Now) {
        self.notice_settled(key, now.mono);
        self.attend(key, now.mono);
        self.publish_plan(key, now.mono);
        self.move_some(key, now);
        self.publish_directory(key, now.mono);
        self.report_servers(key, now);
        let empty = |pool: &Pool| pool.object.is_none() && pool.servers.is_empty() && pool.pods.is_empty();
        if self.pools.get(key).is_some_and(empty) {
            self.pools.remove(key);
        }
    }

    /// A pool is acted upon once its agents are connected, or had the time to.
    fn notice_settled(&mut self, key: &Key, now: Instant) {
        let Some(pool) = self.pools.get_mut(key).filter(|pool| !pool.settled) else { return };
        let cluster = &self.cluster;
        let connected = |uid: &PodUid| {
            cluster.sessions.contains_key(uid)
                || cluster.pods.get(uid).is_none_or(|entry| !entry.pod.running || entry.pod.over)
        };
        let waited = self.read_since.is_some_and(|since| now - since >= SETTLE);
        pool.settled = waited || pool.pods.iter().all(connected);
    }
}

#[cfg(test)]
mod tests;
