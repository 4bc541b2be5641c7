//! Which pods may host a server, and which of those is best. Pure functions of an index of the world.

use std::collections::{HashMap, HashSet};

use crate::ids::PodUid;

/// What is known of a pod when a server looks for a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own, and each has a reason of its own when it is missing
pub struct PodFacts {
    /// Which pod.
    pub pod: PodUid,
    /// Its Ready condition.
    pub ready: bool,
    /// Phase Running.
    pub running: bool,
    /// It has a deletionTimestamp.
    pub deleting: bool,
    /// It has the condition `DisruptionTarget=True`.
    pub disrupted: bool,
    /// Its node is not cordoned.
    pub schedulable: bool,
    /// Its agent's session is open.
    pub session: bool,
    /// Its agent is emptying it.
    pub draining: bool,
    /// It is of the newest revision of its workload.
    pub newest: bool,
    /// Servers it has, or is about to get.
    pub load: u32,
    /// Servers it may have.
    pub capacity: u32,
    /// Of these, by type; only where a type has a limit of its own.
    pub of_type: HashMap<String, u32>,
    /// (type, state version) pairs that its host can load.
    pub loads: HashSet<(String, u32)>,
    /// Types that its host serves, for servers without a state yet.
    pub types: HashSet<String>,
}

/// Why a pod cannot take a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Ineligible {
    /// Terminating.
    #[error("is terminating")]
    Deleting,
    /// About to be evicted or preempted.
    #[error("is about to be disrupted")]
    Disrupted,
    /// Not running.
    #[error("is not running")]
    NotRunning,
    /// Not ready.
    #[error("is not ready")]
    NotReady,
    /// Its node is cordoned.
    #[error("is on a cordoned node")]
    NodeCordoned,
    /// No session.
    #[error("has no agent connected")]
    NoSession,
    /// Draining.
    #[error("is being drained")]
    Draining,
    /// Full.
    #[error("is full")]
    Full,
    /// Its host does not know the type, or cannot load the state.
    #[error("cannot load the server")]
    CannotLoad,
}

/// What a server needs of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its type.
    pub kind: String,
    /// The version of its state; `None` before the first.
    pub state_version: Option<u32>,
    /// Servers of its type that one pod may have, within the pod's capacity.
    pub max_of_type: Option<u32>,
}

impl PodFacts {
    /// Whether this pod may get any server now, capacity and type aside.
    pub fn can_host(&self) -> Result<(), Ineligible> {
        let facts = [
            (!self.deleting, Ineligible::Deleting),
            (!self.disrupted, Ineligible::Disrupted),
            (self.running, Ineligible::NotRunning),
            (self.ready, Ineligible::NotReady),
            (self.schedulable, Ineligible::NodeCordoned),
            (self.session, Ineligible::NoSession),
            (!self.draining, Ineligible::Draining),
        ];
        facts.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(*why))
    }

    /// Whether this pod may get this server now.
    pub fn can_take(&self, need: &Need) -> Result<(), Ineligible> {
        self.can_host()?;
        let of_type = self.of_type.get(&need.kind).copied().unwrap_or(0);
        if self.load >= self.capacity || need.max_of_type.is_some_and(|max| of_type >= max) {
            return Err(Ineligible::Full);
        }
        let loads = match need.state_version {
            Some(version) => self.loads.contains(&(need.kind.clone(), version)),
            None => self.types.contains(&need.kind),
        };
        if loads { Ok(()) } else { Err(Ineligible::CannotLoad) }
    }

    /// Counts one server more.
    pub fn take(&mut self, kind: &str) {
        self.load += 1;
        *self.of_type.entry(kind.to_owned()).or_default() += 1;
    }

    /// Lower is better: newest revision first, since a server should move once in a rollout; then the lowest load
    /// ratio; then the uid, so that the choice is the same wherever it is made.
    fn rank(&self) -> (bool, u64, &PodUid) {
        let ratio = u64::from(self.load) * 1_000_000 / u64::from(self.capacity.max(1));
        (!self.newest, ratio, &self.pod)
    }
}

/// The best pod for a server.
#[must_use]
pub fn choose<'a>(pods: impl IntoIterator<Item = &'a PodFacts>, need: &Need) -> Option<&'a PodFacts> {
    pods.into_iter().filter(|pod| pod.can_take(need).is_ok()).min_by(|a, b| a.rank().cmp(&b.rank()))
}

/// Places many servers at once, each choice seeing the load of those before it. `None`: no pod can take that server.
#[must_use]
pub fn spread(pods: &mut [PodFacts], needs: &[Need]) -> Vec<Option<PodUid>> {
    needs
        .iter()
        .map(|need| {
            let chosen = choose(pods.iter(), need)?.pod.clone();
            let pod = pods.iter_mut().find(|pod| pod.pod == chosen)?;
            pod.take(&need.kind);
            Some(chosen)
        })
        .collect()
}
