//! What all parts of the agent share.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use crds::{DurableServerPoolSpec, Reason};
use handoff::{Instant, PodUid, ServerId, drain};
use store::{Heartbeats, Lanes, Log, StoreError, count::Counts};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time,
};
use wire::session::{FromAgent, from_agent};

use crate::{
    config::Config,
    credentials::Credentials,
    draining::Draining,
    gateway::Gateway,
    host::HostClient,
    lease::{Keeper, boot_time},
    metrics::Metrics,
    problem::Problem,
    routes::Routes,
    servers::Servers,
};

/// How long a control call to the host may take where no setting says otherwise. The contract's calls work in memory.
pub const HOST_CALL: Duration = Duration::from_secs(5);

/// How long one record may take to be written before the attempt is reported as failed. Retried by whoever asked.
pub const APPEND: Duration = Duration::from_secs(5);

/// Assigned servers started at once. Each costs two reads and a create.
const STARTS_AT_ONCE: usize = 50;

/// Servers that may be here at once where the pool does not say: what the whole product is tested for.
const MAX_SERVERS: usize = 10_000;

/// Periodic syncs at once.
const SYNCS_AT_ONCE: usize = 16;

/// Where a server may be handed to.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its pod.
    pub pod: PodUid,
    /// Its pod's name, for people.
    pub name: String,
    /// Its peer endpoint.
    pub peer: SocketAddr,
    /// Its gateway.
    pub gateway: SocketAddr,
}

impl Target {
    /// A pod as the operator names it; `None`: without addresses.
    #[must_use]
    pub fn of(target: &wire::session::Target) -> Option<Self> {
        Some(Self {
            pod: PodUid(target.pod_uid.clone()),
            name: target.pod.clone(),
            peer: target.peer_address.parse().ok()?,
            gateway: target.gateway_address.parse().ok()?,
        })
    }
}

/// The operator's standing plan.
#[derive(Clone, Debug)]
pub struct StandingPlan {
    /// What the drain decides by.
    pub plan: drain::Plan,
    /// How its pods are reached.
    pub targets: HashMap<PodUid, Target>,
    /// When it came.
    pub at: time::Instant,
}

/// The pool, once the operator told of it and its store was found good.
#[derive(Clone)]
pub struct Pool {
    /// Its spec, as the resource has it.
    pub spec: Arc<DurableServerPoolSpec>,
    /// The same with every default filled in.
    pub settings: Arc<crds::settings::Pool>,
    /// Its snapshots.
    pub store: Lanes,
}

impl Pool {
    /// Signs of life of agents that have no session.
    #[must_use]
    pub fn heartbeats(&self) -> Heartbeats {
        Heartbeats::new(self.store.clone(), &self.settings.store.prefix)
    }
}

/// A drain machine's or a handoff machine's view of time.
#[derive(Clone, Copy)]
pub struct Clock(time::Instant);

impl Clock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn start() -> Self {
        Self(time::Instant::now())
    }

    /// The present time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(self.0.elapsed())
    }

    /// When the runtime reaches this time.
    #[must_use]
    pub fn at(&self, instant: Instant) -> time::Instant {
        self.0 + instant.0
    }
}

/// The session's sending half, when there is a session. What is said without one is said again by the inventory.
#[derive(Default)]
pub struct Operator(Mutex<Option<mpsc::UnboundedSender<FromAgent>>>);

impl Operator {
    /// Tells the operator, if it listens.
    pub fn tell(&self, body: from_agent::Body) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            // A closed channel is a session that just ended: the next one begins with the whole inventory.
            let _ = sender.send(FromAgent { body: Some(body) });
        }
    }

    /// Opens a session with `hello`, which is made while nothing else can be told: what changes later is told later.
    pub fn open(&self, hello: impl FnOnce() -> from_agent::Body) -> mpsc::UnboundedReceiver<FromAgent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = sender.send(FromAgent { body: Some(hello()) });
        *slot = Some(sender);
        receiver
    }

    /// Ends the session.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a session is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Half of the cores, at least one: the other half is for the host, which has a part in all that the agent does.
#[must_use]
pub fn half_of_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// The agent.
pub struct Agent {
    /// What it was told at its start.
    pub config: Config,
    /// Time for the pure machines.
    pub clock: Clock,
    /// For how long this agent may serve, and which of its generations this is.
    pub lease: Keeper,
    /// The host.
    pub host: HostClient,
    /// What the host said of itself; `None` while it does not answer.
    pub described: watch::Sender<Option<crate::host::Describe>>,
    /// Where every server is.
    pub routes: Routes,
    /// Users' requests.
    pub gateway: Gateway,
    /// Counters.
    pub metrics: Metrics,
    /// The pool; `None` until it is known and its store is good.
    pub pool: watch::Sender<Option<Pool>>,
    /// Why this agent cannot host, but for its host.
    pub problem: watch::Sender<Problem>,
    /// Why the host cannot be spoken with.
    pub host_problem: watch::Sender<Problem>,
    /// The store, while it is being opened.
    pub setup: crate::store_setup::Setup,
    /// Held servers.
    pub servers: Servers,
    /// Servers that are being received here, by uid.
    pub receiving: crate::receive::Receiving,
    /// Assignments under way.
    pub starting: crate::start::Starting,
    /// What goes on from before this agent was restarted, and waits for its spec.
    pub adopting: crate::adopt::Adopting,
    /// Agents that are known to be over.
    pub silent: crate::start::Silent,
    /// The session.
    pub operator: Operator,
    /// Where servers may go.
    pub plan: watch::Sender<Option<StandingPlan>>,
    /// The drain of this pod.
    pub draining: Draining,
    /// Who this agent is to its peers.
    pub credentials: Arc<Credentials>,
    /// Connections to peers.
    pub peers: crate::peer::Peers,
    /// Moves that the operator ordered.
    pub moves: crate::moves::Moves,
    /// Where servers went from here, until other gateways are told.
    pub news: crate::news::News,
    /// Requests to the store, counted.
    pub store_counts: Arc<Counts>,
    /// Turns to freeze: on half of the cores, since a freeze in one pod is an activation in another at the same time.
    pub freezes: Arc<Semaphore>,
    /// Turns to start.
    pub starts: Arc<Semaphore>,
    /// Turns to sync.
    pub syncs: Arc<Semaphore>,
    /// Of this run. Those of an earlier one are below it.
    pub first_attempt: u64,
    attempts: AtomicU64,
    instance: AtomicU64,
}

impl Agent {
    /// An agent that has not begun anything.
    #[must_use]
    pub fn new(
        config: Config,
        credentials: Arc<Credentials>,
        routes: Routes,
        gateway: Gateway,
        host: HostClient,
        metrics: Metrics,
    ) -> Arc<Self> {
        let lease = Keeper::new(PodUid(config.pod_uid.clone()), boot_time, host.gate());
        // Attempts of a later run of this agent must be higher than those of an earlier one.
        let first_attempt = crate::servers::unix_ms(std::time::SystemTime::now()) << 16;
        Arc::new(Self {
            config,
            clock: Clock::start(),
            lease,
            host,
            described: watch::Sender::new(None),
            routes,
            gateway,
            metrics,
            pool: watch::Sender::new(None),
            problem: watch::Sender::new(Problem::new(Reason::CannotHost, "no session with the operator yet")),
            host_problem: watch::Sender::new(Problem::new(
                Reason::HostUnreachable,
                "the host has not answered on its socket yet",
            )),
            setup: crate::store_setup::Setup::default(),
            servers: Servers::default(),
            receiving: crate::receive::Receiving::default(),
            starting: crate::start::Starting::default(),
            adopting: crate::adopt::Adopting::default(),
            silent: crate::start::Silent::default(),
            operator: Operator::default(),
            plan: watch::Sender::new(None),
            draining: Draining::default(),
            peers: crate::peer::Peers::new(credentials.clone()),
            credentials,
            moves: crate::moves::Moves::default(),
            news: crate::news::News::default(),
            store_counts: Arc::default(),
            freezes: Arc::new(Semaphore::new(half_of_the_cores())),
            starts: Arc::new(Semaphore::new(STARTS_AT_ONCE)),
            syncs: Arc::new(Semaphore::new(SYNCS_AT_ONCE)),
            first_attempt,
            attempts: AtomicU64::new(first_attempt),
            instance: AtomicU64::new(0),
        })
    }

    /// A number for the next control call of the host contract, higher than any before it.
    pub fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes which process the host is. `true`: it was another before.
    pub fn host_instance(&self, instance: u64) -> bool {
        let before = self.instance.swap(instance, Ordering::Relaxed);
        before != 0 && before != instance
    }

    /// The pool, or why there is none.
    pub fn pool(&self) -> Result<Pool, String> {
        self.pool.borrow().clone().ok_or_else(|| self.problem.borrow().to_string())
    }

    /// Opens a server's log.
    pub fn open_log(&self, pool: &Pool, id: &ServerId) -> Result<Log, StoreError> {
        Log::new(pool.store.clone(), &pool.settings.store.prefix, id, pool.settings.max_state_bytes)
    }

    /// How many servers may be here at once.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let limit = self.pool.borrow().as_ref().and_then(|pool| pool.settings.max_servers_per_pod);
        limit.map_or(MAX_SERVERS, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// The largest message between peers, bytes.
    #[must_use]
    pub fn max_message(&self) -> usize {
        let state = self.pool.borrow().as_ref().map_or(64 << 20, |pool| pool.settings.max_state_bytes);
        usize::try_from(state).unwrap_or(usize::MAX).saturating_add(wire::ENVELOPE_BYTES)
    }

    /// The version in which this host writes states of this type.
    #[must_use]
    pub fn state_version_of(&self, kind: &str) -> u32 {
        let described = self.described.borrow();
        described.as_ref().and_then(|host| host.types.iter().find(|t| t.name == kind)).map_or(0, |t| t.state_version)
    }

    /// Whether the host knows this type and, if there is a state already, loads its version.
    pub fn can_load(&self, kind: &str, version: Option<u32>) -> Result<(), String> {
        let described = self.described.borrow();
        let Some(host) = described.as_ref() else { return Err("the host does not answer".into()) };
        let Some(known) = host.types.iter().find(|known| known.name == kind) else {
            return Err(format!("the host does not know servers of type {kind}"));
        };
        match version {
            Some(version) if !known.loads.contains(&version) => {
                Err(format!("the host does not load version {version} of the state of type {kind}"))
            }
            _ => Ok(()),
        }
    }

    /// This pod's gateway, as others reach it.
    #[must_use]
    pub fn gateway_address(&self) -> SocketAddr {
        SocketAddr::new(self.config.pod_ip, self.config.gateway_port)
    }

    /// This pod's peer endpoint, as others reach it.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        SocketAddr::new(self.config.pod_ip, self.config.peer_port)
    }

    /// Drops a server that is served here no more, tells the operator, and lets its requests find their way.
    pub fn gone(
        &self,
        server: &Arc<crate::servers::Server>,
        how: wire::session::gone::How,
        reason: &str,
        grantee: Option<&PodUid>,
    ) {
        let held = server.held();
        self.servers.remove(server);
        if how != wire::session::gone::How::HandedOff {
            self.routes.release_local(&server.id);
        }
        tracing::info!(server = %server.id, epoch = held.epoch.0, how = how.as_str_name(), reason, "server gone");
        self.operator.tell(from_agent::Body::Gone(wire::session::Gone {
            server: Some(crate::servers::server_ref(&server.id)),
            epoch: held.epoch.0,
            how: how.into(),
            grantee_pod_uid: grantee.map(|pod| pod.0.clone()).unwrap_or_default(),
            reason: reason.to_owned(),
            sequence: held.sequence.0,
            state_version: held.state_version,
            tombstone: held.tombstone,
        }));
    }
}

/// The bytes of states, as the machines carry them.
pub type State = handoff::source::State<Bytes>;
