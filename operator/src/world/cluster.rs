//! Pods, nodes, replica sets and sessions: what the decisions about servers look at, and never change.

use std::collections::{BTreeMap, HashMap, HashSet};

use crds::settings;
use handoff::{Instant, PodUid, ServerUid, lease::Heard, moves::Leaving, placement::PodFacts};
use wire::session::{Held, HostType};

use crate::{
    model::{Key, Node, Pod, ReplicaSet, SessionId},
    ownership::PodView,
    plan::Candidate,
};

/// Capacity of a pod without a limit: large enough to be none, small enough that one server more changes the ratio by
/// which pods are compared.
const NO_LIMIT: u32 = 1_000_000;
/// Label of a `StatefulSet`'s pods: their revision.
const REVISION_LABEL: &str = "controller-revision-hash";
/// Label of a `ReplicaSet`'s pods: the same.
const TEMPLATE_LABEL: &str = "pod-template-hash";
/// A `ReplicaSet` that lost replicas within so many seconds is being scaled down.
const SHRINKING_SECONDS: u64 = 120;

/// A pod and what its agent said of itself, kept while the pod is there.
#[derive(Clone, Debug, Default)]
pub struct PodEntry {
    /// As last seen.
    pub pod: Pod,
    /// `ip:port` of its agent's gateway; empty until it was told.
    pub gateway: String,
    /// When its session ended.
    pub silent_since: Option<Instant>,
    /// When people were told that it has no pool.
    pub warned: Option<Instant>,
    /// When its deletion cost was last written.
    pub weighed: Option<Instant>,
}

/// An open session.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// Which.
    pub id: SessionId,
    /// Name of its pod.
    pub name: String,
    /// Its pool.
    pub pool: Key,
    /// `ip:port` for other agents.
    pub peer: String,
    /// `ip:port` for requests.
    pub gateway: String,
    /// What its host can load; empty while it cannot host.
    pub types: Vec<HostType>,
    /// Why it cannot, in its words.
    pub problem: String,
    /// The same in one word.
    pub problem_reason: String,
    /// Since when.
    pub problem_since: Option<Instant>,
    /// It empties its pod.
    pub draining: bool,
    /// What it holds.
    pub held: HashMap<ServerUid, Held>,
    /// What it is to start, and since when.
    pub assigned: HashMap<ServerUid, Instant>,
    /// What it is about to start, by its own word: it may have claimed that already.
    pub starting: HashSet<ServerUid>,
    /// Held servers that have no resource, and since when.
    pub strays: HashMap<ServerUid, Instant>,
    /// Servers that other agents were told to hand it.
    pub coming: HashSet<ServerUid>,
    /// It has the whole directory.
    pub directory: bool,
    /// When it was last given a certificate.
    pub certified: Option<Instant>,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// By uid.
    pub pods: HashMap<PodUid, PodEntry>,
    /// Pods that were seen to be over before their object went, and when.
    pub over: HashMap<PodUid, Instant>,
    /// By name.
    pub nodes: HashMap<String, Node>,
    /// By uid.
    pub replica_sets: HashMap<String, ReplicaSet>,
    /// The revision that the pods of a `StatefulSet` are to have, by uid.
    pub stateful_sets: HashMap<String, String>,
    /// What Services select.
    pub services: HashMap<Key, BTreeMap<String, String>>,
    /// When a `ReplicaSet` lost replicas, by uid.
    pub shrank: HashMap<String, Instant>,
    /// By pod.
    pub sessions: HashMap<PodUid, Session>,
    /// Signs of life by pod, also of those whose object is gone.
    pub heard: HashMap<PodUid, Heard>,
}

impl Cluster {
    /// What ownership wants to know of a pod, but for its silence.
    #[must_use]
    pub fn view(&self, uid: &PodUid) -> PodView {
        let entry = self.pods.get(uid);
        let session = self.sessions.contains_key(uid);
        let over = entry.is_some_and(|entry| entry.pod.over) || (entry.is_none() && self.over.contains_key(uid));
        PodView { exists: entry.is_some(), session, over: over && !session, silent: None }
    }

    /// Whether a pod is of the newest revision of its Deployment or `StatefulSet`. Pods of other workloads always are.
    #[must_use]
    pub fn newest(&self, pod: &Pod) -> bool {
        if let Some(wanted) = pod.stateful_set.as_ref().and_then(|uid| self.stateful_sets.get(uid)) {
            return wanted.is_empty() || pod.labels.get(REVISION_LABEL) == Some(wanted);
        }
        let set = pod.replica_set.as_ref().and_then(|uid| self.replica_sets.get(uid));
        let Some((set, deployment)) = set.and_then(|set| Some((set, set.deployment.as_ref()?))) else { return true };
        let siblings = self.replica_sets.values().filter(|other| other.deployment.as_ref() == Some(deployment));
        siblings.map(|other| other.revision).max().is_none_or(|newest| set.revision >= newest)
    }

    /// Whether a pod's `ReplicaSet` lost replicas lately.
    #[must_use]
    pub fn shrank(&self, pod: &Pod, now: Instant) -> bool {
        let at = pod.replica_set.as_ref().and_then(|uid| self.shrank.get(uid));
        at.is_some_and(|at| (now - *at).as_secs() < SHRINKING_SECONDS)
    }

    /// Whether a pod's node is cordoned. A node that is not known (yet) is not.
    #[must_use]
    pub fn cordoned(&self, pod: &Pod) -> bool {
        self.nodes.get(&pod.node).is_some_and(|node| !node.schedulable)
    }

    /// The pods of a pool, as plans and placement see them, by uid.
    #[must_use]
    pub fn candidates<'a>(
        &self,
        pods: impl IntoIterator<Item = &'a PodUid>,
        settings: Option<&settings::Pool>,
    ) -> Vec<Candidate> {
        pods.into_iter().filter_map(|uid| Some(self.candidate(self.pods.get(uid)?, settings))).collect()
    }

    fn candidate(&self, entry: &PodEntry, settings: Option<&settings::Pool>) -> Candidate {
        let pod = &entry.pod;
        let session = self.sessions.get(&pod.uid);
        let types = session.map(|session| session.types.clone()).unwrap_or_default();
        let prefer_newest = settings.is_none_or(|settings| settings.prefer_newest_revision);
        Candidate {
            facts: PodFacts {
                pod: pod.uid.clone(),
                ready: pod.ready,
                running: pod.running,
                deleting: pod.deleting,
                disrupted: pod.disrupted,
                schedulable: !self.cordoned(pod),
                cordoned: pod.cordoned,
                inactive: self.inactive(pod, settings),
                deletion_cost: pod.deletion_cost,
                leaving: self.leaving(pod, settings),
                session: session.is_some(),
                draining: session.is_some_and(|session| session.draining),
                newest: !prefer_newest || self.newest(pod),
                load: session.map_or(0, load),
                capacity: settings.and_then(|settings| settings.max_servers_per_pod).unwrap_or(NO_LIMIT),
                types: types.iter().map(|kind| (kind.name.clone(), kind.loads.clone())).collect(),
                of_type: HashMap::new(),
                near: settings.map(|settings| self.near(pod, settings)).unwrap_or_default(),
            },
            alive: pod.pending || pod.running,
            name: pod.key.name.clone(),
            peer_address: session.map(|session| session.peer.clone()).unwrap_or_default(),
            gateway_address: session.map(|session| session.gateway.clone()).unwrap_or_default(),
            types,
        }
    }

    /// What a pod's node has of the labels that servers of its pool stay near by.
    fn near(&self, pod: &Pod, settings: &settings::Pool) -> Vec<String> {
        let labels = self.nodes.get(&pod.node).map(|node| &node.labels);
        let value = |near: &settings::Near| labels.and_then(|labels| labels.get(&near.label)).cloned();
        settings.sticky.iter().map(|near| value(near).unwrap_or_default()).collect()
    }

    /// Whether the Service that the pool follows leads elsewhere. One that does not exist, or selects by other means than
    /// labels, leads nowhere, and changes nothing.
    fn inactive(&self, pod: &Pod, settings: Option<&settings::Pool>) -> bool {
        let name = settings.and_then(|settings| settings.active_service.clone());
        let selector = name.and_then(|name| self.services.get(&Key::new(pod.key.namespace.clone(), name)));
        selector.is_some_and(|selector| selector.iter().any(|(label, value)| pod.labels.get(label) != Some(value)))
    }

    /// Why servers leave a pod that lives on.
    #[must_use]
    pub fn leaving(&self, pod: &Pod, settings: Option<&settings::Pool>) -> Option<Leaving> {
        let ahead = settings.is_some_and(|settings| settings.ahead);
        match () {
            () if pod.deleting => None,
            () if pod.emptied => Some(Leaving::Asked),
            () if ahead && self.cordoned(pod) => Some(Leaving::NodeCordoned),
            () if self.inactive(pod, settings) => Some(Leaving::Inactive),
            () if ahead && !self.newest(pod) => Some(Leaving::Replaced),
            () => None,
        }
    }

    /// The name of a pod, if it is known still.
    #[must_use]
    pub fn name_of(&self, uid: &PodUid) -> Option<String> {
        let pod = self.pods.get(uid).map(|entry| entry.pod.key.name.clone());
        pod.or_else(|| self.sessions.get(uid).map(|session| session.name.clone()))
    }
}

/// The revision of its workload that made a pod, as Kubernetes labels it.
pub(super) fn revision(pod: &Pod) -> String {
    let mut labels = [TEMPLATE_LABEL, REVISION_LABEL].iter();
    labels.find_map(|label| pod.labels.get(*label)).cloned().unwrap_or_default()
}

/// Servers that a pod has, or is about to get.
pub(super) fn load(session: &Session) -> u32 {
    let coming = session.coming.iter().filter(|uid| !session.held.contains_key(*uid)).count();
    u32::try_from(session.held.len() + session.assigned.len() + coming).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(uid: &str, deployment: &str, revision: u64) -> (String, ReplicaSet) {
        let deployment = Some(deployment.to_owned());
        (uid.to_owned(), ReplicaSet { uid: uid.into(), deployment, revision, replicas: 1, desired: 1, ends: None })
    }

    fn pod_of(set: Option<&str>) -> Pod {
        Pod { replica_set: set.map(Into::into), ..Pod::default() }
    }

    #[test]
    fn the_newest_revision_is_that_of_its_own_deployment() {
        let replica_sets = [set("a1", "a", 1), set("a2", "a", 2), set("b7", "b", 7)].into();
        let cluster = Cluster { replica_sets, ..Cluster::default() };
        let cases =
            [(Some("a1"), false), (Some("a2"), true), (Some("b7"), true), (None, true), (Some("unknown"), true)];
        for (set, newest) in cases {
            assert_eq!(cluster.newest(&pod_of(set)), newest, "{set:?}");
        }
        let rolled_back = Cluster { replica_sets: [set("a1", "a", 3), set("a2", "a", 2)].into(), ..Cluster::default() };
        assert!(rolled_back.newest(&pod_of(Some("a1"))));
    }

    #[test]
    fn pods_of_a_stateful_set_are_of_the_revision_of_their_label() {
        let cluster = Cluster { stateful_sets: [("s".to_owned(), "new".to_owned())].into(), ..Cluster::default() };
        for (set, revision, newest) in [("s", "old", false), ("s", "new", true), ("unknown", "old", true)] {
            let labels = [(REVISION_LABEL.to_owned(), revision.to_owned())].into();
            let pod = Pod { stateful_set: Some(set.into()), labels, ..Pod::default() };
            assert_eq!(cluster.newest(&pod), newest, "{set} {revision}");
        }
    }

    #[test]
    fn a_missing_pod_is_over_only_if_it_was_seen_to_be() {
        let (seen, unseen) = (PodUid("seen".into()), PodUid("unseen".into()));
        let cluster = Cluster { over: [(seen.clone(), Instant::default())].into(), ..Cluster::default() };
        assert!(cluster.view(&seen).over);
        assert_eq!(cluster.view(&unseen), PodView::default());
    }
}
