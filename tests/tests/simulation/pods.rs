//! Pods: a host and an agent on one machine's clock, and the kubelet that starts and ends them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use handoff::PodUid;
use operator::model::{Key, Pod as Object};
use tokio::time::{Instant, sleep};

use crate::{
    agent::Agent,
    host::{BOOT, Host},
    lock,
    net::Node,
    process::Clock,
    sim::Sim,
};

/// How long the kubelet waits for a pod that ends.
const GRACE: Duration = Duration::from_secs(40);
/// Between the end of a pod and the start of another in its place, milliseconds.
const REPLACED: std::ops::Range<u64> = 200..4_000;

/// One pod.
pub struct Pod {
    sim: Arc<Sim>,
    pub uid: PodUid,
    number: u32,
    clock: Clock,
    pub host: Arc<Host>,
    agent: Mutex<Arc<Agent>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    deleting: bool,
    dead: bool,
}

impl Pod {
    /// The kubelet starts a pod.
    pub fn start(sim: &Arc<Sim>) {
        let number = u32::try_from(lock(&sim.pods).len()).unwrap_or_default();
        let uid = PodUid(format!("pod-{number}"));
        let ppm = i64::try_from(sim.chance.within(0..8_000)).unwrap_or_default() - 4_000;
        let clock = Clock::new(sim.chance.ms(0..10_000_000), ppm);
        let host = Host::new(sim, &uid, clock);
        let agent = Agent::start(sim, &uid, number, clock, &host);
        sim.trace(|| format!("{uid} starts"));
        sim.kube.put_pod(Object {
            uid: uid.clone(),
            key: Key::new("ns", format!("rooms-{number}")),
            pool: "rooms".into(),
            node: format!("node-{number}"),
            running: true,
            ready: true,
            ..Object::default()
        });
        let pod = Self {
            sim: sim.clone(),
            uid: uid.clone(),
            number,
            clock,
            host,
            agent: agent.into(),
            state: Mutex::default(),
        };
        lock(&sim.pods).insert(uid, Arc::new(pod));
    }

    /// Another pod comes in place of one that goes.
    fn replace(&self) {
        let sim = self.sim.clone();
        tokio::spawn(async move {
            sleep(sim.chance.ms(REPLACED)).await;
            Self::start(&sim);
        });
    }

    pub fn node(&self) -> Node {
        Node::Pod(self.number)
    }

    pub fn agent(&self) -> Arc<Agent> {
        lock(&self.agent).clone()
    }

    pub fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    pub fn is_deleting(&self) -> bool {
        lock(&self.state).deleting
    }

    /// Whether its host handles requests at all.
    pub fn is_awake(&self) -> bool {
        !self.is_dead() && self.host.asleep().is_none()
    }

    /// All processes end at once.
    pub fn kill(&self) {
        lock(&self.state).dead = true;
        self.agent().kill();
        self.host.crash();
        self.sim.steps.forget(&self.uid);
        self.sim.trace(|| format!("{} is dead", self.uid));
    }

    /// The kubelet reports that every container is terminated, and then the object goes.
    pub fn report_over(&self) {
        let (sim, uid) = (self.sim.clone(), self.uid.clone());
        tokio::spawn(async move {
            sleep(sim.chance.ms(20..2_000)).await;
            sim.kube.change_pod(&uid, |pod| (pod.over, pod.running, pod.ready) = (true, false, false));
            sleep(sim.chance.ms(100..3_000)).await;
            sim.kube.remove_pod(&uid);
        });
    }

    /// A person, or a rollout, deletes it: the kubelet calls the hook, and waits for its answer for some time.
    pub fn delete(self: &Arc<Self>) {
        if std::mem::replace(&mut lock(&self.state).deleting, true) {
            return;
        }
        self.sim.trace(|| format!("{} is deleted", self.uid));
        self.sim.kube.change_pod(&self.uid, |pod| pod.deleting = true);
        self.replace();
        let pod = self.clone();
        tokio::spawn(async move {
            let until = Instant::now() + GRACE;
            sleep(pod.sim.chance.ms(1..600)).await;
            let hooked = pod.agent();
            hooked.process.spawn({
                let hooked = hooked.clone();
                async move { hooked.pre_stop() }
            });
            while Instant::now() < until && !pod.is_dead() && !pod.agent().is_drained() {
                sleep(Duration::from_millis(50)).await;
            }
            if !pod.is_dead() {
                pod.kill();
                pod.report_over();
            }
        });
    }

    /// Its object goes, and some time later what ran.
    pub fn force_delete(self: &Arc<Self>) {
        lock(&self.state).deleting = true;
        self.sim.kube.remove_pod(&self.uid);
        self.replace();
        let pod = self.clone();
        tokio::spawn(async move {
            sleep(pod.sim.chance.ms(500..15_000)).await;
            if !pod.is_dead() {
                pod.kill();
            }
        });
    }

    /// The kubelet saw that its containers ended.
    pub fn crash(&self) {
        self.kill();
        self.report_over();
        if !self.is_deleting() {
            self.replace();
        }
    }

    /// Its machine is gone without a word: nobody's connection is closed, and nobody says that it is over.
    pub fn lose(&self) {
        let others: Vec<Node> = lock(&self.sim.pods).values().map(|pod| pod.node()).collect();
        for other in others.into_iter().chain([Node::Operator, Node::Store]) {
            self.sim.net.cut(self.node(), other);
        }
        self.kill();
        if self.sim.chance.percent(50) {
            let (sim, uid) = (self.sim.clone(), self.uid.clone());
            tokio::spawn(async move {
                sleep(sim.chance.ms(1_000..30_000)).await;
                sim.kube.remove_pod(&uid);
            });
        }
        if !self.is_deleting() {
            self.replace();
        }
    }

    pub fn crash_host(self: &Arc<Self>) {
        self.host.crash();
        let pod = self.clone();
        tokio::spawn(async move {
            sleep(pod.sim.chance.ms(BOOT)).await;
            if !pod.is_dead() {
                pod.host.restart();
            }
        });
    }

    /// The agent's container is started again beside a living host.
    pub fn restart_agent(self: &Arc<Self>) {
        self.agent().kill();
        self.sim.steps.forget(&self.uid);
        let pod = self.clone();
        tokio::spawn(async move {
            sleep(pod.sim.chance.ms(BOOT)).await;
            if !pod.is_dead() && pod.agent().process.is_dead() {
                *lock(&pod.agent) = Agent::start(&pod.sim, &pod.uid, pod.number, pod.clock, &pod.host);
            }
        });
    }

    /// The agent does not run for some time.
    pub fn agent_sleeps(&self, lasts: Duration) {
        self.agent().process.sleep_until(Instant::now() + lasts);
    }

    /// The host does not run for some time.
    pub fn host_sleeps(&self, lasts: Duration) {
        self.host.sleep_until(Instant::now() + lasts);
    }
}
