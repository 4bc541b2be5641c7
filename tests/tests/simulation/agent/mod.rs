//! One agent: the real machines, and around them what the agent's own edges do, without sockets. Each file here does
//! what the file of that name in `agent/src` does.

mod adopt;
mod drain;
mod give;
mod keeper;
mod moves;
mod receive;
mod recover;
mod release;
mod session;
mod start;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ::agent::start::Silent;
use bytes::Bytes;
use handoff::{
    Epoch, HandoffId, PodUid, Sequence, ServerId, ServerUid, drain as machine,
    log::{Header, Writer},
    source::{Mark, State},
};
use store::{Body, Heartbeats, Log};
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use wire::session::{self as words, from_agent, gone::How};

pub use self::give::{FromSource, FromTarget};
use self::keeper::Keeper;
use crate::{
    host::{CALL, Host, Listed},
    lock,
    net::{Node, Sender},
    process::{Clock, Process},
    sim::Sim,
    steps::Step,
    watch,
};

/// How long one record may take to be written before the attempt is reported as failed.
const APPEND: Duration = Duration::from_secs(5);

const STARTS_AT_ONCE: usize = 50;

/// The state of a server on its way.
type Moving = State<Bytes>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Active,
    HandingOff,
    Stopping,
}

/// What changes about a held server.
#[derive(Clone)]
struct Held {
    epoch: Epoch,
    phase: Phase,
    sequence: Sequence,
    state_at: Sequence,
    state_version: u32,
    synced: Option<Mark>,
    sync_due: Instant,
    durable: bool,
    granted: Option<HandoffId>,
    handed_off: bool,
}

impl Held {
    fn state_at(&self) -> Body {
        Body::At { sequence: self.state_at, version: self.state_version }
    }
}

/// One held server.
pub struct Server {
    id: ServerId,
    writer: Writer,
    log: Log,
    turn: tokio::sync::Mutex<()>,
    held: Mutex<Held>,
}

impl Server {
    fn held(&self) -> Held {
        lock(&self.held).clone()
    }

    fn update(&self, change: impl FnOnce(&mut Held)) {
        change(&mut lock(&self.held));
    }

    fn epoch(&self) -> Epoch {
        lock(&self.held).epoch
    }

    fn wrote(&self, header: &Header, mark: Option<Mark>) {
        self.update(|held| {
            held.sequence = header.sequence;
            held.state_at = header.state_at;
            held.durable = true;
            if header.bears_state() {
                held.state_version = header.state_version;
                held.synced = mark;
            }
        });
    }

    fn report(&self) -> words::Held {
        let held = self.held();
        words::Held {
            server: Some(server_ref(&self.id)),
            epoch: held.epoch.0,
            phase: match held.phase {
                Phase::Starting => words::Phase::Starting,
                Phase::Active => words::Phase::Active,
                Phase::HandingOff => words::Phase::HandingOff,
                Phase::Stopping => words::Phase::Stopping,
            }
            .into(),
            sequence: held.sequence.0,
            state_version: held.state_version,
            durable: held.durable,
            ..words::Held::default()
        }
    }
}

fn server_ref(id: &ServerId) -> words::ServerRef {
    words::ServerRef { namespace: id.namespace.clone(), name: id.name.clone(), uid: id.uid.0.clone() }
}

fn server_id(reference: Option<words::ServerRef>) -> Option<ServerId> {
    let reference = reference?;
    Some(ServerId { namespace: reference.namespace, name: reference.name, uid: ServerUid(reference.uid) })
}

/// The operator's plan, and when it came.
#[derive(Clone)]
struct StandingPlan {
    plan: machine::Plan,
    at: Instant,
}

/// Servers on their way here.
type Receiving = BTreeMap<ServerUid, (HandoffId, mpsc::UnboundedSender<handoff::target::Event<Bytes>>)>;

/// The agent.
pub struct Agent {
    sim: Arc<Sim>,
    pub pod: PodUid,
    node: Node,
    name: String,
    clock: Clock,
    pub process: Arc<Process>,
    pub host: Arc<Host>,
    lease: Keeper,
    /// The pool's settings are known.
    pool: watch::Sender<bool>,
    /// The host answers, as this instance.
    described: watch::Sender<Option<u64>>,
    servers: Mutex<BTreeMap<ServerUid, Arc<Server>>>,
    receiving: Mutex<Receiving>,
    starting: Mutex<BTreeSet<ServerUid>>,
    /// What goes on from before a restart, and is not held yet.
    adopting: Mutex<BTreeMap<ServerUid, Listed>>,
    moves: Mutex<BTreeMap<ServerUid, watch::Sender<bool>>>,
    silent: Silent,
    operator: Mutex<Option<Sender<from_agent::Body>>>,
    plan: watch::Sender<Option<StandingPlan>>,
    draining: AtomicBool,
    announced: AtomicBool,
    done: AtomicBool,
    report: Mutex<Option<words::DrainReport>>,
    freezes: Arc<Semaphore>,
    starts: Semaphore,
    first_attempt: u64,
    attempts: AtomicU64,
}

impl Agent {
    /// Starts an agent beside a host that may run since long.
    pub fn start(sim: &Arc<Sim>, pod: &PodUid, number: u32, clock: Clock, host: &Arc<Host>) -> Arc<Self> {
        let agent = Arc::new(Self {
            sim: sim.clone(),
            pod: pod.clone(),
            node: Node::Pod(number),
            name: format!("rooms-{number}"),
            clock,
            process: Arc::default(),
            host: host.clone(),
            lease: Keeper::new(sim, pod.clone(), clock),
            pool: watch::Sender::new(false),
            described: watch::Sender::new(None),
            servers: Mutex::default(),
            receiving: Mutex::default(),
            starting: Mutex::default(),
            adopting: Mutex::default(),
            moves: Mutex::default(),
            silent: Silent::default(),
            operator: Mutex::default(),
            plan: watch::Sender::new(None),
            draining: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            done: AtomicBool::new(false),
            report: Mutex::default(),
            freezes: Arc::new(Semaphore::new(1)),
            starts: Semaphore::new(STARTS_AT_ONCE),
            first_attempt: sim.now_ms() << 16,
            attempts: AtomicU64::new(sim.now_ms() << 16),
        });
        host.is_behind(&agent);
        let running = agent.clone();
        agent.process.spawn(async move {
            let leftovers = adopt::take_up(&running).await;
            running.process.spawn(recover::watch_host(running.clone()));
            running.process.spawn(keeper::keep(running.clone()));
            running.process.spawn(keeper::tell_host(running.clone()));
            running.process.spawn(release::sync_all(running.clone()));
            running.process.spawn(recover::release_leftovers(running.clone(), leftovers));
            session::run(running).await;
        });
        agent
    }

    /// The process ends: its connections are closed.
    pub fn kill(&self) {
        self.process.kill();
        *lock(&self.operator) = None;
        lock(&self.receiving).clear();
    }

    /// The drain of this pod is over.
    pub fn is_drained(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// The kubelet says that the pod ends.
    pub fn pre_stop(self: &Arc<Self>) {
        drain::begin(self, false);
    }

    /// Whether requests pass to the host at all.
    pub fn gate_is_open(&self) -> bool {
        !self.process.is_dead() && (self.lease.gate_is_open() || self.sim.skips_the_fence())
    }

    /// Whether requests for this server do.
    pub fn lets_through(&self, server: &ServerUid) -> bool {
        self.gate_is_open() && self.get(server).is_some()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    fn get(&self, uid: &ServerUid) -> Option<Arc<Server>> {
        lock(&self.servers).get(uid).cloned()
    }

    fn all(&self) -> Vec<Arc<Server>> {
        lock(&self.servers).values().cloned().collect()
    }

    fn insert(&self, server: &Arc<Server>) {
        lock(&self.servers).entry(server.id.uid.clone()).or_insert_with(|| server.clone());
    }

    fn new_server(&self, id: ServerId, epoch: Epoch) -> Arc<Server> {
        let held = Held {
            epoch,
            phase: Phase::Starting,
            sequence: Sequence::NONE,
            state_at: Sequence::NONE,
            state_version: 0,
            synced: None,
            sync_due: Instant::now(),
            durable: false,
            granted: None,
            handed_off: false,
        };
        let log = self.open_log(&id);
        Arc::new(Server {
            id,
            writer: self.lease.writer(),
            log,
            turn: tokio::sync::Mutex::default(),
            held: held.into(),
        })
    }

    fn open_log(&self, id: &ServerId) -> Log {
        let lanes = self.sim.store.seen_from(self.node).into();
        Log::new(lanes, "", id, 1 << 20).expect("the name of a server")
    }

    fn heartbeats(&self) -> Heartbeats {
        Heartbeats::new(self.sim.store.seen_from(self.node).into(), "")
    }

    fn tell(&self, body: from_agent::Body) {
        if let Some(operator) = lock(&self.operator).as_ref() {
            operator.send(body);
        }
    }

    fn has_session(&self) -> bool {
        lock(&self.operator).is_some()
    }

    fn step(&self, server: &ServerUid, step: Step) {
        self.sim.trace(|| format!("{} {server}: {step:?}", self.pod));
        self.sim.steps.enter(&self.pod, server, step);
    }

    /// Drops a server that is served here no more, and tells the operator.
    fn gone(&self, server: &Arc<Server>, how: How, grantee: Option<&PodUid>) {
        let held = server.held();
        {
            let mut servers = lock(&self.servers);
            if servers.get(&server.id.uid).is_some_and(|here| Arc::ptr_eq(here, server)) {
                servers.remove(&server.id.uid);
            }
        }
        self.sim.trace(|| format!("{} {} gone: {how:?} in epoch {}", self.pod, server.id.uid, held.epoch));
        self.tell(from_agent::Body::Gone(words::Gone {
            server: Some(server_ref(&server.id)),
            epoch: held.epoch.0,
            how: how.into(),
            grantee_pod_uid: grantee.map(|pod| pod.0.clone()).unwrap_or_default(),
            sequence: held.sequence.0,
            state_version: held.state_version,
            ..words::Gone::default()
        }));
    }

    /// Stops a server in the host.
    async fn stop_in_host(&self, server: &Server) -> bool {
        let call = (server.epoch(), self.next_attempt());
        matches!(tokio::time::timeout(CALL, self.host.stop(&server.id.uid, call)).await, Ok(Ok(())))
    }

    /// Makes sure that the state as of this call is in the store.
    pub async fn sync_now(self: &Arc<Self>, uid: &ServerUid) -> bool {
        let Some(server) = self.get(uid) else { return false };
        release::sync(self, &server).await || server.held().handed_off
    }

    /// Whether all that goes on from before a restart is held again.
    pub fn has_adopted(&self) -> bool {
        lock(&self.adopting).is_empty()
    }

    /// What this agent holds, for people.
    pub fn holds(&self) -> Vec<String> {
        self.all()
            .iter()
            .map(|server| format!("{} e{} {:?}", server.id.name, server.epoch(), server.held().phase))
            .collect()
    }
}
