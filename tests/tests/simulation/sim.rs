//! One run's world: what all its parts share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use crds::settings;
use handoff::{HandoffId, PodUid, ServerUid};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use wire::session::{from_agent, to_agent};

use crate::{
    agent::{Agent, FromSource, FromTarget},
    chance::Chance,
    check::Check,
    faults::{Fault, Mutation},
    kube::Kube,
    lock,
    net::{End, Net, Node, Receiver, Sender},
    operator::{Arrival, Leader},
    pods::Pod,
    steps::Steps,
    store::Store,
};

/// Calendar time at which every run begins.
pub const EPOCH_MS: u64 = 1_800_000_000_000;

/// One run's world.
pub struct Sim {
    pub chance: Chance,
    pub net: Arc<Net>,
    pub store: Arc<Store>,
    pub check: Check,
    pub steps: Steps,
    pub settings: settings::Pool,
    pub kube: Kube,
    pub leader: Mutex<Option<Leader>>,
    pub pods: Mutex<BTreeMap<PodUid, Arc<Pod>>>,
    pub servers: Vec<ServerUid>,
    begin: Instant,
    mutation: Option<Mutation>,
    traced: Option<Mutex<Vec<String>>>,
}

impl Sim {
    pub fn new(
        seed: u64,
        mutation: Option<Mutation>,
        traced: bool,
        fire: mpsc::UnboundedSender<(Fault, PodUid)>,
    ) -> Arc<Self> {
        let chance = Chance::new(seed);
        let net = Arc::new(Net::new(chance.clone()));
        // Mostly short ones, so that they end; some are longer than an agent tries to thaw.
        let lease = if chance.percent(80) { chance.within(6..13) } else { 30 };
        let spec = serde_json::from_value(json!({
            "store": { "s3": { "bucket": "b-1" } },
            "recovery": { "leaseDuration": format!("{lease}s") },
        }));
        let spec = spec.expect("a pool's spec");
        let settings = settings::pool(&spec).expect("a pool's settings");
        let servers = (0..chance.within(20..27)).map(|n| ServerUid(format!("s{n}"))).collect();
        Arc::new(Self {
            store: Store::new(chance.clone(), net.clone(), mutation == Some(Mutation::Overwrite)),
            kube: Kube::new(chance.clone(), spec),
            net,
            chance,
            check: Check::default(),
            steps: Steps::new(fire),
            settings,
            leader: Mutex::default(),
            pods: Mutex::default(),
            servers,
            begin: Instant::now(),
            mutation,
            traced: traced.then(Mutex::default),
        })
    }

    pub fn mutated(&self, by: Mutation) -> bool {
        self.mutation == Some(by)
    }

    pub fn skips_the_fence(&self) -> bool {
        self.mutated(Mutation::SkipFence)
    }

    /// Calendar time.
    pub fn now_ms(&self) -> u64 {
        EPOCH_MS + u64::try_from(self.elapsed().as_millis()).unwrap_or_default()
    }

    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Notes what happened, if anybody will read it.
    pub fn trace(&self, what: impl FnOnce() -> String) {
        if let Some(traced) = &self.traced {
            lock(traced).push(format!("{:>9.3} {}", self.elapsed().as_secs_f64(), what()));
        }
    }

    /// What was noted.
    pub fn traced(&self) -> Vec<String> {
        self.traced.as_ref().map(|traced| lock(traced).clone()).unwrap_or_default()
    }

    pub fn pod(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        lock(&self.pods).get(uid).cloned()
    }

    /// All pods whose processes live.
    pub fn living(&self) -> Vec<Arc<Pod>> {
        lock(&self.pods).values().filter(|pod| !pod.is_dead()).cloned().collect()
    }

    /// Who but this pod serves this server at this instant.
    pub fn others_that_serve(&self, pod: &PodUid, server: &ServerUid) -> Vec<PodUid> {
        let pods = lock(&self.pods);
        pods.values()
            .filter(|other| other.uid != *pod && other.host.serves(server))
            .map(|other| other.uid.clone())
            .collect()
    }

    /// An agent comes to the operator; `None` while nobody leads.
    pub fn accept(&self, node: Node, name: &str, uid: &PodUid) -> Option<End<from_agent::Body, to_agent::Body>> {
        let leader = lock(&self.leader);
        let leader = leader.as_ref()?;
        let (agents, operators) = self.net.connect(node, Node::Operator);
        leader.arrivals.send(Arrival { name: name.to_owned(), uid: uid.clone(), end: operators }).ok()?;
        Some(agents)
    }

    /// Opens a stream from one agent to another, if it can be reached.
    pub async fn offer_stream(
        &self,
        from: &Arc<Agent>,
        to: &PodUid,
        id: HandoffId,
    ) -> Option<(Sender<FromSource>, Receiver<FromTarget>)> {
        let (source, target) = (self.pod(&from.pod)?, self.pod(to)?);
        if !self.net.reach(source.node(), target.node()).await || target.is_dead() {
            return None;
        }
        let agent = target.agent();
        if agent.process.is_dead() {
            return None;
        }
        let (mine, other) = self.net.connect(source.node(), target.node());
        agent.stream(id, other);
        Some((mine.sender, mine.receiver))
    }

    /// Nothing of this run refers to the rest any more.
    pub fn take_apart(&self) {
        lock(&self.pods).clear();
        lock(&self.leader).take();
        self.kube.unwatch();
    }
}
