//! Which pods may host a server, and which of those is best. Pure functions of an index of the world.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use crate::{ids::PodUid, moves::Leaving};

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
    /// A person said that it shall get no more servers.
    pub cordoned: bool,
    /// The Service that the pool follows leads to other pods.
    pub inactive: bool,
    /// The lower, the sooner Kubernetes ends it when it has the choice: a Deployment goes by the annotation
    /// `controller.kubernetes.io/pod-deletion-cost`, a `StatefulSet` ends its highest ordinal first.
    pub deletion_cost: i32,
    /// Why servers leave it, though it lives on.
    pub leaving: Option<Leaving>,
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
    /// Types that its host serves, and the versions of their states that it can load.
    pub types: HashMap<String, Vec<u32>>,
    /// What its node has of the labels that servers stay near by, from the narrowest to the widest; empty where it has none.
    pub near: Vec<String>,
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
    /// Cordoned itself.
    #[error("is cordoned")]
    Cordoned,
    /// A newer revision's pods are there, and servers leave it for them.
    #[error("is being replaced by pods of a newer revision")]
    Replaced,
    /// Not where the pool's Service leads.
    #[error("is not what the active Service selects")]
    Inactive,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Need {
    /// Its type.
    pub kind: String,
    /// The version of its state; `None` before the first.
    pub state_version: Option<u32>,
    /// Servers of its type that one pod may have, within the pod's capacity.
    pub max_of_type: Option<u32>,
    /// What the node of its pod has, or of its last pod had, of the labels that servers stay near by: as [`PodFacts::near`].
    pub near: Vec<String>,
}

/// How far a pod is from another, by what their nodes have of those labels: the place of the first that they have in common.
#[must_use]
pub fn far(from: &[String], to: &[String]) -> u32 {
    let common = from.iter().zip(to).position(|(from, to)| !from.is_empty() && from == to);
    u32::try_from(common.unwrap_or(from.len())).unwrap_or(u32::MAX)
}

/// The label by which a server that could have been started elsewhere `since` so long must stay `near` its last pod, by place:
/// the narrowest that still `lasts`. `None`: any pod will do.
#[must_use]
pub fn held_near(near: &[String], lasts: &[Duration], since: Duration) -> Option<usize> {
    near.iter().zip(lasts).position(|(value, lasts)| !value.is_empty() && since < *lasts)
}

impl PodFacts {
    /// Whether this pod may get any server now, capacity and type aside. What time alone mends comes last: see
    /// [`Self::may_come`].
    pub fn can_host(&self) -> Result<(), Ineligible> {
        let facts = [
            (!self.deleting, Ineligible::Deleting),
            (!self.disrupted, Ineligible::Disrupted),
            (!self.draining, Ineligible::Draining),
            (self.schedulable, Ineligible::NodeCordoned),
            (!self.cordoned, Ineligible::Cordoned),
            (!self.inactive, Ineligible::Inactive),
            (self.running, Ineligible::NotRunning),
            (self.ready, Ineligible::NotReady),
            (self.session, Ineligible::NoSession),
        ];
        facts.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(*why))
    }

    /// Whether nothing but time keeps this pod from getting servers.
    #[must_use]
    pub fn may_come(&self) -> bool {
        use Ineligible::{NoSession, NotReady, NotRunning};
        matches!(self.can_host(), Ok(()) | Err(NotRunning | NotReady | NoSession))
    }

    /// Whether this pod may get this server now.
    pub fn can_take(&self, need: &Need) -> Result<(), Ineligible> {
        self.can_host()?;
        let of_type = self.of_type.get(&need.kind).copied().unwrap_or(0);
        if self.load >= self.capacity || need.max_of_type.is_some_and(|max| of_type >= max) {
            return Err(Ineligible::Full);
        }
        let versions = self.types.get(&need.kind);
        let loads = versions.is_some_and(|known| need.state_version.is_none_or(|version| known.contains(&version)));
        if loads { Ok(()) } else { Err(Ineligible::CannotLoad) }
    }

    /// Whether a person may send this server here: servers that leave this pod would only take it along again.
    pub fn can_be_sent(&self, need: &Need) -> Result<(), Ineligible> {
        self.can_take(need)?;
        if self.leaving.is_some() { Err(Ineligible::Replaced) } else { Ok(()) }
    }

    /// Counts one server more.
    fn take(&mut self, kind: &str) {
        self.load += 1;
        *self.of_type.entry(kind.to_owned()).or_default() += 1;
    }

    fn rank(&self) -> Rank {
        rank(self.newest, self.deletion_cost, 0, self.load.into(), self.capacity)
    }

    /// Whether nothing but distance and load makes one of them better.
    fn is_as_good_as(&self, other: &Self) -> bool {
        let rank = |pod: &Self| rank(pod.newest, pod.deletion_cost, 0, 0, pod.capacity);
        rank(self) == rank(other)
    }

    fn is_open(&self) -> bool {
        self.load < self.capacity && self.can_host().is_ok()
    }
}

pub(crate) type Rank = (bool, i64, u32, u64);

/// Lower is better: newest revision first, since a server should move once in a rollout; of older pods the one that ends last;
/// then the nearest, then the lowest load ratio.
pub(crate) fn rank(newest: bool, deletion_cost: i32, far: u32, load: u64, capacity: u32) -> Rank {
    let ends_soon = if newest { 0 } else { -i64::from(deletion_cost) };
    (!newest, ends_soon, far, load * 1_000_000 / u64::from(capacity.max(1)))
}

/// The deletion cost of a pod with so many servers, if `told`, the one that it has, will not do. Of the pods of a `ReplicaSet`
/// that is scaled down those of the lowest cost end first: the emptiest. Kubernetes asks not to change it often, so it is only
/// about right: but for nothing and something, a quarter off is near enough.
#[must_use]
pub fn new_deletion_cost(load: u32, told: i32) -> Option<i32> {
    let cost = i32::try_from(load).unwrap_or(i32::MAX);
    let near = (told == 0) == (cost == 0) && told.abs_diff(cost) <= cost.unsigned_abs() / 4;
    (!near).then_some(cost)
}

/// Pods by rank, the best first.
type Ranked = BTreeSet<(Rank, usize)>;

/// The pods of a pool, in the order in which they are to get servers. Each choice sees the load of those before it.
#[derive(Clone, Debug)]
pub struct Board {
    /// By uid, so that the choice is the same wherever it is made.
    pods: Vec<PodFacts>,
    /// Those that may get any server.
    open: Ranked,
    /// The same by what their nodes have: for each of the labels that servers stay near by, by its value.
    near: Vec<HashMap<String, Ranked>>,
}

impl Board {
    /// A board of these.
    #[must_use]
    pub fn new(mut pods: Vec<PodFacts>) -> Self {
        pods.sort_unstable_by(|a, b| a.pod.cmp(&b.pod));
        let labels = pods.iter().map(|pod| pod.near.len()).max().unwrap_or_default();
        let (open, near) = (Ranked::new(), vec![HashMap::new(); labels]);
        let mut board = Self { pods, open, near };
        for n in 0..board.pods.len() {
            board.put(n);
        }
        board
    }

    /// All pods, by uid.
    #[must_use]
    pub fn pods(&self) -> &[PodFacts] {
        &self.pods
    }

    /// The pod of this uid.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Option<&PodFacts> {
        self.pods.binary_search_by(|other| other.pod.cmp(uid)).ok().and_then(|n| self.pods.get(n))
    }

    /// The best pod for a server, of those that are `allowed`.
    pub fn best(&self, need: &Need, allowed: impl Fn(&PodFacts) -> bool) -> Option<&PodFacts> {
        let best = self.first(&self.open, need, &allowed)?;
        let mut near = (0..need.near.len()).filter_map(|label| self.nearest(label, need, &allowed));
        near.find(|pod| pod.is_as_good_as(best)).or(Some(best))
    }

    /// The best of those that have the same value of this one label as the server's last pod.
    pub fn nearest(&self, label: usize, need: &Need, allowed: impl Fn(&PodFacts) -> bool) -> Option<&PodFacts> {
        let value = need.near.get(label).filter(|value| !value.is_empty())?;
        self.first(self.near.get(label)?.get(value)?, need, &allowed)
    }

    fn first(&self, ranked: &Ranked, need: &Need, allowed: &impl Fn(&PodFacts) -> bool) -> Option<&PodFacts> {
        let mut pods = ranked.iter().filter_map(|(_, n)| self.pods.get(*n));
        pods.find(|pod| allowed(pod) && pod.can_take(need).is_ok())
    }

    /// A pod gets a server of this type.
    pub fn take(&mut self, pod: &PodUid, kind: &str) {
        let Ok(n) = self.pods.binary_search_by(|other| other.pod.cmp(pod)) else { return };
        self.each(n, |ranked, place| {
            ranked.remove(&place);
        });
        if let Some(facts) = self.pods.get_mut(n) {
            facts.take(kind);
        }
        self.put(n);
    }

    fn put(&mut self, n: usize) {
        if self.pods.get(n).is_some_and(PodFacts::is_open) {
            self.each(n, |ranked, place| {
                ranked.insert(place);
            });
        }
    }

    /// All that a pod is ranked in, and its place there.
    fn each(&mut self, n: usize, change: impl Fn(&mut Ranked, (Rank, usize))) {
        let Some(pod) = self.pods.get(n) else { return };
        let place = (pod.rank(), n);
        change(&mut self.open, place);
        for (label, value) in self.near.iter_mut().zip(&pod.near).filter(|(_, value)| !value.is_empty()) {
            match label.get_mut(value) {
                Some(ranked) => change(ranked, place),
                None => change(label.entry(value.clone()).or_default(), place),
            }
        }
    }
}
