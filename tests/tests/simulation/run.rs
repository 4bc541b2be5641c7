//! One run: a cluster, its clients, drains and faults, and then calm in which all must be well again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use handoff::{PodUid, ServerUid};
use tokio::{runtime::Builder, sync::mpsc, time::sleep};

use crate::{
    faults::{self, Fault, Mutation, strike},
    lock,
    operator::begin_leading,
    pods::Pod,
    sim::Sim,
    steps::Table,
};

/// Faults happen until then.
const FAULTS: Duration = Duration::from_secs(18);
/// Then what was cut is healed.
const CALM: Duration = Duration::from_secs(22);
/// And so long after that every server must be served, and every drain over.
const WELL: Duration = Duration::from_mins(3);
/// All must be well for so long.
const STEADY: u32 = 10;
const LOOK: Duration = Duration::from_millis(100);

/// What came of a run.
pub struct Outcome {
    /// What was broken, if anything was.
    pub broken: Option<String>,
    pub table: Table,
    /// Servers handed over and started, writes answered and durable.
    pub counts: [u64; 4],
    /// Virtual time that passed.
    pub took: Duration,
    pub trace: Vec<String>,
}

/// Runs one seed.
pub fn run(seed: u64, mutation: Option<Mutation>, traced: bool) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (fire, fired) = mpsc::unbounded_channel();
        let sim = Sim::new(seed, mutation, traced, fire);
        let broken = live(&sim, fired).await;
        let outcome = Outcome {
            broken,
            table: sim.steps.table(),
            counts: sim.check.counts(),
            took: sim.elapsed(),
            trace: sim.traced(),
        };
        sim.take_apart();
        outcome
    })
}

/// `Some`: what was broken.
async fn live(sim: &Arc<Sim>, fired: mpsc::UnboundedReceiver<(Fault, PodUid)>) -> Option<String> {
    for server in &sim.servers {
        sim.kube.add_server(server);
    }
    for _ in 0..sim.chance.within(3..6) {
        Pod::start(sim);
    }
    begin_leading(sim);
    tokio::spawn(strike_when_fired(sim.clone(), fired));
    let written = Arc::new(AtomicU32::new(0));
    for server in &sim.servers {
        tokio::spawn(client(sim.clone(), server.clone(), written.clone()));
    }
    for _ in 0..sim.chance.within(1..4) {
        tokio::spawn(drain_one(sim.clone()));
    }
    faults::plan(sim, FAULTS);
    let mut calm = false;
    let mut steady = 0;
    loop {
        sleep(LOOK).await;
        if let Some(broken) = sim.check.broken() {
            return Some(broken);
        }
        let now = sim.elapsed();
        if now < FAULTS {
            continue;
        }
        for fault in sim.steps.disarm() {
            strike(sim, fault, None);
        }
        if now < CALM {
            continue;
        }
        if !std::mem::replace(&mut calm, true) {
            sim.trace(|| "CALM".into());
            sim.net.heal_all();
            sim.store.heal();
            if lock(&sim.leader).is_none() {
                begin_leading(sim);
            }
        }
        let unwell = unwell(sim);
        steady = if unwell.is_none() { steady + 1 } else { 0 };
        if steady >= STEADY {
            return None;
        }
        if now > CALM + WELL {
            return unwell;
        }
    }
}

async fn strike_when_fired(sim: Arc<Sim>, mut fired: mpsc::UnboundedReceiver<(Fault, PodUid)>) {
    while let Some((fault, pod)) = fired.recv().await {
        strike(&sim, fault, Some(&pod));
    }
}

/// Every run has some drains.
async fn drain_one(sim: Arc<Sim>) {
    sleep(sim.chance.ms(1_500..10_000)).await;
    let candidates: Vec<Arc<Pod>> = sim.living().into_iter().filter(|pod| !pod.is_deleting()).collect();
    if let Some(pod) = sim.chance.pick(&candidates) {
        pod.delete();
    }
}

/// Somebody who writes to one server now and then, wherever it is served.
async fn client(sim: Arc<Sim>, server: ServerUid, written: Arc<AtomicU32>) {
    loop {
        sleep(sim.chance.ms(300..4_000)).await;
        let serving = sim.living().into_iter().find(|pod| pod.is_awake() && pod.host.serves(&server));
        let Some(pod) = serving else { continue };
        let write = written.fetch_add(1, Ordering::Relaxed);
        if pod.host.write(&server, write).is_none() || !sim.chance.percent(40) {
            continue;
        }
        let agent = pod.agent();
        let (sim, server) = (sim.clone(), server.clone());
        agent.process.spawn({
            let agent = agent.clone();
            async move {
                if agent.sync_now(&server).await {
                    sim.trace(|| format!("{server}: {write} is durable"));
                    sim.check.durable(&server, write);
                }
            }
        });
    }
}

/// What is not well yet.
fn unwell(sim: &Arc<Sim>) -> Option<String> {
    let pods = sim.living();
    if let Some(pod) = pods.iter().find(|pod| pod.is_deleting()) {
        return Some(format!("{} is not drained: it has {:?}", pod.uid, pod.agent().holds()));
    }
    if let Some(pod) = pods.iter().find(|pod| !pod.agent().has_adopted()) {
        return Some(format!("{} does not hold all that goes on there", pod.uid));
    }
    for server in &sim.servers {
        let by: Vec<&PodUid> = pods.iter().filter(|pod| pod.host.serves(server)).map(|pod| &pod.uid).collect();
        if by.len() != 1 {
            return Some(format!("{server} is served by {by:?} at the end"));
        }
    }
    None
}
