//! The servers that this agent holds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crds::{DurableServerSpec, settings::Resolved};
use handoff::{
    Epoch, HandoffId, Sequence, ServerId, ServerUid,
    log::{Header, Kind, Writer},
    source::{Limits, Mark},
};
use store::{Body, Log};
use tokio::time::Instant;
use wire::session;

use crate::agent::{Agent, Pool};

/// Where a held server is in its life here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Claimed, not serving yet.
    Starting,
    /// Serving.
    Active,
    /// Final was sent: the target may be serving it.
    HandingOff,
    /// On its way to a Release.
    Stopping,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Active, Self::HandingOff, Self::Stopping];

    /// The name that metrics use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::HandingOff => "handing_off",
            Self::Stopping => "stopping",
        }
    }
}

/// What changes about a held server.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its present term.
    pub epoch: Epoch,
    /// Where it is in its life here.
    pub phase: Phase,
    /// Newest record known.
    pub sequence: Sequence,
    /// Newest record known that bears its state.
    pub state_at: Sequence,
    /// Version of the state there.
    pub state_version: u32,
    /// Size of the newest state seen, bytes.
    pub state_bytes: u64,
    /// The state that is in the store.
    pub synced: Option<Mark>,
    /// When it was last found to be in the store.
    pub last_sync: Option<SystemTime>,
    /// When the next periodic sync is due.
    pub sync_due: Instant,
    /// The first record of its epoch is written.
    pub durable: bool,
    /// The newest handoff that a Grant was, or may have been, written for in this epoch.
    pub granted: Option<HandoffId>,
    /// Its final state is in the store by another's record or by a Grant: a sync that waited is answered.
    pub handed_off: bool,
    /// Its log is closed by a Tombstone.
    pub tombstone: bool,
    /// Why the last sync failed.
    pub error: Option<String>,
}

impl Held {
    /// Where its newest state in the store is, for a record that bears none itself.
    #[must_use]
    pub fn state_at(&self) -> Body {
        Body::At { sequence: self.state_at, version: self.state_version }
    }
}

/// One held server.
pub struct Server {
    /// Its name and uid.
    pub id: ServerId,
    /// Its resource's spec.
    pub spec: DurableServerSpec,
    /// The same as it came, to be passed on.
    pub spec_json: String,
    /// The pod, and the generation under which it came here: when that is over, all that is done about it is.
    pub writer: Writer,
    /// Its log.
    pub log: Arc<Log>,
    /// The server's turn: whoever starts, syncs, hands off or stops it holds it, so that these never overlap.
    pub turn: tokio::sync::Mutex<()>,
    held: Mutex<Held>,
}

impl Server {
    /// A server that is about to be claimed or handed over.
    pub fn new(agent: &Agent, pool: &Pool, id: ServerId, spec_json: String, epoch: Epoch) -> Result<Arc<Self>, String> {
        let spec: DurableServerSpec =
            serde_json::from_str(&spec_json).map_err(|error| format!("its spec cannot be read: {error}"))?;
        crds::settings::server(&pool.spec, &spec).map_err(|invalid| invalid.to_string())?;
        let log = agent.open_log(pool, &id).map_err(|error| error.to_string())?;
        let held = Held {
            epoch,
            phase: Phase::Starting,
            sequence: Sequence::NONE,
            state_at: Sequence::NONE,
            state_version: 0,
            state_bytes: 0,
            synced: None,
            last_sync: None,
            sync_due: Instant::now(),
            durable: false,
            granted: None,
            handed_off: false,
            tombstone: false,
            error: None,
        };
        let (log, turn, held) = (Arc::new(log), tokio::sync::Mutex::default(), Mutex::new(held));
        let writer = agent.lease.writer();
        Ok(Arc::new(Self { id, spec, spec_json, writer, log, turn, held }))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of what changes.
    #[must_use]
    pub fn held(&self) -> Held {
        self.lock().clone()
    }

    /// Changes it.
    pub fn update(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.lock());
    }

    /// Its present term.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.lock().epoch
    }

    /// Where it is in its life here.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Notes a record that this agent wrote; with `mark`, the state that it bears.
    pub fn wrote(&self, header: &Header, mark: Option<Mark>) {
        let mut held = self.lock();
        held.sequence = header.sequence;
        held.state_at = header.state_at;
        held.durable = true;
        held.tombstone = matches!(header.kind, Kind::Tombstone { .. });
        held.error = None;
        if header.bears_state() {
            held.state_version = header.state_version;
            held.synced = mark;
            held.last_sync = Some(SystemTime::now());
        }
    }

    /// What holds for it now. Both specs were found valid when they came.
    pub fn settings(&self, pool: &Pool) -> Result<Resolved, String> {
        crds::settings::server(&pool.spec, &self.spec).map_err(|invalid| invalid.to_string())
    }

    /// Bounds of one handoff of it.
    #[must_use]
    pub fn limits(&self, pool: &Pool) -> Limits {
        let Ok(settings) = self.settings(pool) else { return Limits::default() };
        Limits { per_server: settings.per_server_timeout, freeze: settings.freeze_timeout, ..Limits::default() }
    }

    /// Its `config`, as the host gets it.
    #[must_use]
    pub fn config(&self) -> Option<serde_json::Value> {
        self.spec.config.clone().map(serde_json::Value::Object)
    }

    /// What the operator is told.
    #[must_use]
    pub fn report(&self) -> session::Held {
        let held = self.lock();
        session::Held {
            server: Some(server_ref(&self.id)),
            epoch: held.epoch.0,
            phase: match held.phase {
                Phase::Starting => session::Phase::Starting,
                Phase::Active => session::Phase::Active,
                Phase::HandingOff => session::Phase::HandingOff,
                Phase::Stopping => session::Phase::Stopping,
            }
            .into(),
            sequence: held.sequence.0,
            state_bytes: held.state_bytes,
            last_sync_unix_ms: held.last_sync.map_or(0, unix_ms),
            state_version: held.state_version,
            durable: held.durable,
            error: held.error.clone().unwrap_or_default(),
        }
    }
}

/// A server's name as the session's messages write it.
#[must_use]
pub fn server_ref(id: &ServerId) -> session::ServerRef {
    session::ServerRef { namespace: id.namespace.clone(), name: id.name.clone(), uid: id.uid.0.clone() }
}

/// The name that a session's message bears; `None` if it is incomplete.
#[must_use]
pub fn server_id(reference: Option<session::ServerRef>) -> Option<ServerId> {
    let reference = reference?;
    let complete = !reference.namespace.is_empty() && !reference.name.is_empty() && !reference.uid.is_empty();
    complete.then_some(ServerId { namespace: reference.namespace, name: reference.name, uid: ServerUid(reference.uid) })
}

/// Milliseconds since 1970.
#[must_use]
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// All servers held here, by uid.
#[derive(Default)]
pub struct Servers(Mutex<HashMap<ServerUid, Arc<Server>>>);

impl Servers {
    fn lock(&self) -> MutexGuard<'_, HashMap<ServerUid, Arc<Server>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server of this uid.
    #[must_use]
    pub fn get(&self, uid: &ServerUid) -> Option<Arc<Server>> {
        self.lock().get(uid).cloned()
    }

    /// Adds a server unless one of its uid is held already.
    #[must_use]
    pub fn insert(&self, server: &Arc<Server>) -> bool {
        let mut servers = self.lock();
        if servers.contains_key(&server.id.uid) {
            return false;
        }
        servers.insert(server.id.uid.clone(), server.clone());
        true
    }

    /// Removes exactly this server.
    pub fn remove(&self, server: &Arc<Server>) {
        let mut servers = self.lock();
        if servers.get(&server.id.uid).is_some_and(|held| Arc::ptr_eq(held, server)) {
            servers.remove(&server.id.uid);
        }
    }

    /// Removes all, and returns them.
    #[must_use]
    pub fn take_all(&self) -> Vec<Arc<Server>> {
        std::mem::take(&mut *self.lock()).into_values().collect()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Server>> {
        self.lock().values().cloned().collect()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The next periodic sync: the interval, less up to a tenth of it, so that servers that started together drift apart.
#[must_use]
pub fn next_sync(interval: Duration) -> Instant {
    Instant::now() + interval.mul_f64(1.0 - rand::random::<f64>() / 10.0)
}
