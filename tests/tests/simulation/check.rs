//! What must hold at every instant, as a bystander sees it who knows what every host does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use handoff::{Epoch, PodUid, ServerUid};

use crate::lock;

/// How a host came to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// From the log.
    Start,
    /// By a handoff: whatever the source answered is there.
    Activate,
    /// It did before.
    Thaw,
}

#[derive(Default)]
struct Known {
    broken: Option<String>,
    /// Who served an epoch.
    terms: BTreeMap<(ServerUid, Epoch), PodUid>,
    /// Writes that a host has answered, by epoch.
    answered: BTreeMap<ServerUid, Vec<(Epoch, u32)>>,
    /// Writes of which somebody was told that they are durable.
    durable: BTreeMap<ServerUid, BTreeSet<u32>>,
    moved: u64,
    started: u64,
}

/// The bystander.
#[derive(Default)]
pub struct Check(Mutex<Known>);

impl Known {
    fn term(&mut self, pod: &PodUid, server: &ServerUid, epoch: Epoch) {
        let first = self.terms.entry((server.clone(), epoch)).or_insert_with(|| pod.clone()).clone();
        if first != *pod {
            self.broken.get_or_insert(format!("epoch {epoch} of {server} is served by {first} and by {pod}"));
        }
    }
}

impl Check {
    /// An agent lets requests through to a server that was handed to it. What its host activates later than it waits for
    /// serves nobody, and is stopped before the source hears that it was refused.
    pub fn lets_through(&self, pod: &PodUid, server: &ServerUid, epoch: Epoch) {
        lock(&self.0).term(pod, server, epoch);
    }

    /// What was broken first, if anything was.
    pub fn broken(&self) -> Option<String> {
        lock(&self.0).broken.clone()
    }

    /// A host serves from now on with these writes; `others` serve the same server at this instant.
    pub fn serves(&self, pod: &PodUid, server: &ServerUid, epoch: Epoch, how: How, writes: &[u32], others: &[PodUid]) {
        let mut known = lock(&self.0);
        if !others.is_empty() {
            let what = format!("{server} is served by {pod} in epoch {epoch} ({how:?}) and by {others:?} at once");
            known.broken.get_or_insert(what);
        }
        if how != How::Activate {
            known.term(pod, server, epoch);
        }
        let has: BTreeSet<u32> = writes.iter().copied().collect();
        let before = |(of, _): &&(Epoch, u32)| how == How::Activate && of.handed_off() == epoch;
        let answered = known.answered.get(server).into_iter().flatten().filter(before).map(|(_, write)| *write);
        let must: BTreeSet<u32> = known.durable.get(server).into_iter().flatten().copied().chain(answered).collect();
        let lost: Vec<u32> = must.difference(&has).copied().collect();
        if !lost.is_empty() {
            let what = format!("{server} is served by {pod} in epoch {epoch} ({how:?}) without writes {lost:?}");
            known.broken.get_or_insert(what);
        }
        match how {
            How::Start => known.started += 1,
            How::Activate => known.moved += 1,
            How::Thaw => {}
        }
    }

    /// A host answered a write.
    pub fn answered(&self, server: &ServerUid, epoch: Epoch, write: u32) {
        lock(&self.0).answered.entry(server.clone()).or_default().push((epoch, write));
    }

    /// Somebody was told that this write is durable.
    pub fn durable(&self, server: &ServerUid, write: u32) {
        lock(&self.0).durable.entry(server.clone()).or_default().insert(write);
    }

    /// The last state of an epoch is durable: so is all that was answered in it.
    pub fn ended_well(&self, server: &ServerUid, epoch: Epoch) {
        let mut known = lock(&self.0);
        let answered = known.answered.get(server).into_iter().flatten();
        let of: Vec<u32> = answered.filter(|(of, _)| *of == epoch).map(|(_, write)| *write).collect();
        known.durable.entry(server.clone()).or_default().extend(of);
    }

    /// How often a server was handed over and started; writes answered, and durable.
    pub fn counts(&self) -> [u64; 4] {
        let known = lock(&self.0);
        let answered = known.answered.values().map(Vec::len).sum::<usize>();
        let durable = known.durable.values().map(BTreeSet::len).sum::<usize>();
        [known.moved, known.started, answered as u64, durable as u64]
    }
}
