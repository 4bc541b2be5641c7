//! What goes wrong, and mistakes that must be found.

use std::{sync::Arc, time::Duration};

use handoff::PodUid;
use tokio::time::sleep;

use crate::{
    net::Node,
    operator::{begin_leading, stop_leading},
    pods::Pod,
    sim::Sim,
    steps::Step,
    store::Trouble,
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A pod's containers end, and the kubelet says so.
    PodCrash,
    /// A pod's machine is gone without a word.
    PodLost,
    /// A pod's object is deleted by force, while it runs.
    ForceDelete,
    /// The host ends and is started again.
    HostCrash,
    /// The agent ends and is started again beside its host.
    AgentCrash,
    /// The agent does not run for some time; its host does.
    AgentAsleep,
    /// The host does not run for some time; its agent does.
    HostAsleep,
    /// A pod's machine sleeps for some time.
    PodAsleep,
    /// A pod is cut off from the operator.
    CutOperator,
    /// A pod is cut off from all other pods.
    CutPeers,
    /// A pod is cut off from everybody.
    CutOff,
    /// The store answers nothing.
    StoreOutage,
    /// Creates are done, and their answers lost.
    StoreLostAnswers,
    /// Creates are done late.
    StoreLateCreates,
    /// Another replica of the operator leads.
    LeaderChange,
    /// This pod is deleted: it is drained.
    Drain,
    /// A person has this pod emptied for some time, while it lives.
    Emptied,
}

impl Fault {
    pub const ALL: [Self; 17] = [
        Self::PodCrash,
        Self::PodLost,
        Self::ForceDelete,
        Self::HostCrash,
        Self::AgentCrash,
        Self::AgentAsleep,
        Self::HostAsleep,
        Self::PodAsleep,
        Self::CutOperator,
        Self::CutPeers,
        Self::CutOff,
        Self::StoreOutage,
        Self::StoreLostAnswers,
        Self::StoreLateCreates,
        Self::LeaderChange,
        Self::Drain,
        Self::Emptied,
    ];

    /// It happens to no pod in particular.
    fn is_common(self) -> bool {
        matches!(self, Self::StoreOutage | Self::StoreLostAnswers | Self::StoreLateCreates | Self::LeaderChange)
    }
}

/// A mistake in the rules around the machines, that some seed must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Who was only silent is not looked up in the store before a claim.
    ClaimIgnoresDoubts,
    /// The end of a lease ends nothing.
    SkipFence,
    /// Final is sent before the Grant is written.
    FinalBeforeGrant,
    /// A snapshot is written while a handoff is under way.
    SyncWhileGranting,
    /// A sync is answered before its record is written.
    AckBeforeWritten,
    /// An assigned claim takes the epoch of a handoff.
    ClaimNextEpoch,
    /// The source serves again when it hears nothing after Final.
    ThawAfterFinal,
    /// A record is written over the one that is there.
    Overwrite,
    /// An answer counts from when it is looked at, however late: a generation that is over lives again.
    LateAnswerRevives,
    /// A server is given up while a host that does not answer may still run it.
    HungHostGivenUp,
    /// A server's last state is told to be in the store, and is not.
    ReleaseDropped,
    /// A restarted agent has frozen servers serve on.
    AdoptFrozen,
}

impl Mutation {
    pub const ALL: [Self; 12] = [
        Self::ClaimIgnoresDoubts,
        Self::SkipFence,
        Self::FinalBeforeGrant,
        Self::SyncWhileGranting,
        Self::AckBeforeWritten,
        Self::ClaimNextEpoch,
        Self::ThawAfterFinal,
        Self::Overwrite,
        Self::LateAnswerRevives,
        Self::HungHostGivenUp,
        Self::ReleaseDropped,
        Self::AdoptFrozen,
    ];
}

/// The fault happens: to this pod, if it needs one and this one lives; else to any.
pub fn strike(sim: &Arc<Sim>, fault: Fault, at: Option<&PodUid>) {
    let living = sim.living();
    let named = at.and_then(|uid| sim.pod(uid)).filter(|pod| !pod.is_dead());
    let Some(pod) = named.or_else(|| sim.chance.pick(&living).cloned()) else { return };
    sim.trace(|| format!("FAULT {fault:?} at {}", pod.uid));
    if at.is_none() {
        let all: Vec<PodUid> = living.iter().map(|pod| pod.uid.clone()).collect();
        let one = [pod.uid.clone()];
        sim.steps.struck(fault, if fault.is_common() { &all } else { &one });
    }
    match fault {
        Fault::PodCrash => pod.crash(),
        Fault::PodLost => pod.lose(),
        Fault::ForceDelete => pod.force_delete(),
        Fault::HostCrash => pod.crash_host(),
        Fault::AgentCrash => pod.restart_agent(),
        Fault::AgentAsleep => pod.agent_sleeps(sim.chance.ms(500..25_000)),
        Fault::HostAsleep => pod.host_sleeps(sim.chance.ms(500..25_000)),
        Fault::PodAsleep => {
            let lasts = sim.chance.ms(500..25_000);
            pod.agent_sleeps(lasts);
            pod.host_sleeps(lasts);
        }
        Fault::CutOperator => cut(sim, &pod, &[Node::Operator], 500..25_000),
        Fault::CutPeers => cut(sim, &pod, &others(sim, &pod), 500..15_000),
        Fault::CutOff => {
            let all: Vec<Node> = others(sim, &pod).into_iter().chain([Node::Operator, Node::Store]).collect();
            cut(sim, &pod, &all, 500..25_000);
        }
        Fault::StoreOutage => sim.store.trouble(Trouble::Outage, sim.chance.ms(500..15_000)),
        Fault::StoreLostAnswers => sim.store.trouble(Trouble::LostAnswers, sim.chance.ms(500..10_000)),
        Fault::StoreLateCreates => sim.store.trouble(Trouble::LateCreates, sim.chance.ms(500..10_000)),
        Fault::LeaderChange => change_leader(sim),
        Fault::Drain => pod.delete(),
        Fault::Emptied => empty(sim, &pod),
    }
}

fn empty(sim: &Arc<Sim>, pod: &Pod) {
    let (sim, uid) = (sim.clone(), pod.uid.clone());
    tokio::spawn(async move {
        for emptied in [true, false] {
            sim.kube.change_pod(&uid, |pod| {
                pod.cordoned = emptied;
                pod.emptied = emptied;
            });
            sleep(sim.chance.ms(500..15_000)).await;
        }
    });
}

fn others(sim: &Sim, pod: &Pod) -> Vec<Node> {
    sim.living().iter().filter(|other| other.uid != pod.uid).map(|other| other.node()).collect()
}

fn cut(sim: &Arc<Sim>, pod: &Pod, from: &[Node], lasts: std::ops::Range<u64>) {
    for other in from {
        sim.net.cut(pod.node(), *other);
    }
    let (sim, node, from) = (sim.clone(), pod.node(), from.to_vec());
    tokio::spawn(async move {
        sleep(sim.chance.ms(lasts)).await;
        for other in from {
            sim.net.heal(node, other);
        }
    });
}

/// The one that led ends at once, and the next begins when its Lease is over, or was left.
fn change_leader(sim: &Arc<Sim>) {
    stop_leading(sim);
    let sim = sim.clone();
    tokio::spawn(async move {
        sleep(sim.chance.ms(100..8_000)).await;
        begin_leading(&sim);
    });
}

/// The faults of one run, each at a step or at a time.
pub fn plan(sim: &Arc<Sim>, within: Duration) {
    for _ in 0..sim.chance.within(3..7) {
        let Some(fault) = sim.chance.pick(&Fault::ALL).copied() else { return };
        let at = sim.chance.ms(200..u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
        let step = sim.chance.percent(70).then(|| sim.chance.pick(&Step::ALL).copied()).flatten();
        let sim = sim.clone();
        tokio::spawn(async move {
            if let Some(step) = step.filter(|step| *step != Step::Idle) {
                sleep(at / 4).await;
                sim.steps.arm(fault, step);
            } else {
                sleep(at).await;
                strike(&sim, fault, None);
            }
        });
    }
}
