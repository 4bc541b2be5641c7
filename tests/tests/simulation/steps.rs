//! Where each server is in the protocol, so that faults strike at every step; and what struck where.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use handoff::{PodUid, ServerUid};
use tokio::sync::mpsc;

use crate::{faults::Fault, lock};

/// A step of the protocol, as one pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Served, and nothing else.
    Idle,
    /// An assignment is being carried out.
    Claim,
    /// The host starts what was claimed.
    Start,
    /// A snapshot is being written.
    Sync,
    /// The source has offered it.
    Offer,
    /// The target has accepted, the Grant is being written.
    Grant,
    /// The warm copy is on its way.
    Warm,
    /// The target's host starts it in standby.
    Standby,
    /// The target is ready, or the source waits for its turn.
    Ready,
    /// The source's host freezes it.
    Freeze,
    /// Final was sent.
    Final,
    /// The target's host activates it.
    Activate,
    /// The target serves it, and writes its first record.
    Activated,
    /// That record is written.
    Durable,
    /// The source has heard nothing, and writes the last state itself.
    Insure,
    /// It is stopped, and its last state written as a Release.
    Release,
    /// It goes on beside a restarted agent, which has not written of it yet.
    Adopt,
}

impl Step {
    pub const ALL: [Self; 17] = [
        Self::Idle,
        Self::Claim,
        Self::Start,
        Self::Sync,
        Self::Offer,
        Self::Grant,
        Self::Warm,
        Self::Standby,
        Self::Ready,
        Self::Freeze,
        Self::Final,
        Self::Activate,
        Self::Activated,
        Self::Durable,
        Self::Insure,
        Self::Release,
        Self::Adopt,
    ];
}

/// How often each fault struck at each step.
pub type Table = BTreeMap<(Fault, Step), u64>;

/// The steps of one run.
pub struct Steps {
    now: Mutex<BTreeMap<(PodUid, ServerUid), Step>>,
    armed: Mutex<Vec<(Fault, Step)>>,
    fire: mpsc::UnboundedSender<(Fault, PodUid)>,
    table: Mutex<Table>,
}

impl Steps {
    pub fn new(fire: mpsc::UnboundedSender<(Fault, PodUid)>) -> Self {
        Self { now: Mutex::default(), armed: Mutex::default(), fire, table: Mutex::default() }
    }

    /// This fault strikes the next pod that comes to this step.
    pub fn arm(&self, fault: Fault, at: Step) {
        lock(&self.armed).push((fault, at));
    }

    /// The faults that have not struck yet strike no more.
    pub fn disarm(&self) -> Vec<Fault> {
        lock(&self.armed).drain(..).map(|(fault, _)| fault).collect()
    }

    pub fn enter(&self, pod: &PodUid, server: &ServerUid, step: Step) {
        if step == Step::Idle {
            lock(&self.now).remove(&(pod.clone(), server.clone()));
        } else {
            lock(&self.now).insert((pod.clone(), server.clone()), step);
        }
        let mut armed = lock(&self.armed);
        if let Some(at) = armed.iter().position(|(_, at)| *at == step) {
            let (fault, _) = armed.remove(at);
            *lock(&self.table).entry((fault, step)).or_default() += 1;
            let _ = self.fire.send((fault, pod.clone()));
        }
    }

    /// A pod is gone, and all that was under way in it.
    pub fn forget(&self, pod: &PodUid) {
        lock(&self.now).retain(|(of, _), _| of != pod);
    }

    /// This fault strikes these pods now, by chance.
    pub fn struck(&self, fault: Fault, pods: &[PodUid]) {
        let mut steps: BTreeSet<Step> =
            lock(&self.now).iter().filter(|((pod, _), _)| pods.contains(pod)).map(|(_, step)| *step).collect();
        steps.insert(Step::Idle);
        let mut table = lock(&self.table);
        for step in steps {
            *table.entry((fault, step)).or_default() += 1;
        }
    }

    pub fn table(&self) -> Table {
        lock(&self.table).clone()
    }
}
