//! The standing plan of a pool: where servers of a pod that drains may go. Pure.

use std::collections::HashMap;

use handoff::{
    PodUid,
    placement::{PodFacts, far},
};
use wire::session;

/// One pod of the pool.
#[derive(Clone, Debug, Default)]
pub struct Candidate {
    /// What placement knows of it.
    pub facts: PodFacts,
    /// Phase Pending or Running.
    pub alive: bool,
    /// Its name.
    pub name: String,
    /// `ip:port` for other agents.
    pub peer_address: String,
    /// `ip:port` for requests.
    pub gateway_address: String,
    /// What its host can load.
    pub types: Vec<session::HostType>,
}

/// The plan of a pool, before it is cut for each pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Pods that may be targets.
    pub targets: Vec<session::Target>,
    /// Pods on their way to become targets.
    pub expected: Vec<PodUid>,
    /// What the nodes of all pods have of the labels that servers stay near by, if there are any.
    pub near: HashMap<String, Vec<String>>,
}

impl Standing {
    /// The plan for these pods.
    #[must_use]
    pub fn of(pool: &[Candidate]) -> Self {
        let mut standing = Self::default();
        for pod in pool {
            if pod.facts.can_host().is_ok() && !pod.types.is_empty() {
                standing.targets.push(target(pod));
            } else if pod.alive && pod.facts.may_come() {
                standing.expected.push(pod.facts.pod.clone());
            }
            if !pod.facts.near.is_empty() {
                standing.near.insert(pod.facts.pod.0.clone(), pod.facts.near.clone());
            }
        }
        standing
    }

    /// The plan for one pod: never itself.
    #[must_use]
    pub fn without(&self, pod: &PodUid, version: u64) -> session::Plan {
        let others = self.targets.iter().filter(|target| target.pod_uid != pod.0).cloned();
        let near = |pod: &str| self.near.get(pod).map(Vec::as_slice).unwrap_or_default();
        let from = near(&pod.0);
        session::Plan {
            version,
            targets: others.map(|target| session::Target { far: far(from, near(&target.pod_uid)), ..target }).collect(),
            more_expected: self.expected.iter().any(|expected| expected != pod),
        }
    }

    /// Targets that were none before.
    #[must_use]
    pub fn newcomers(&self, before: &Self) -> Vec<PodUid> {
        let known = |pod: &str| before.targets.iter().any(|target| target.pod_uid == pod);
        let new = self.targets.iter().filter(|target| !known(&target.pod_uid));
        new.map(|target| PodUid(target.pod_uid.clone())).collect()
    }

    /// Whether an agent must know at once: pods came or went, not merely their loads.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        let same = |a: &session::Target, b: &session::Target| {
            session::Target { load: 0, ..a.clone() } == session::Target { load: 0, ..b.clone() }
        };
        self.expected != other.expected
            || self.targets.len() != other.targets.len()
            || self.targets.iter().zip(&other.targets).any(|(a, b)| !same(a, b))
    }
}

/// A pod, as agents are told of it.
#[must_use]
pub fn target(pod: &Candidate) -> session::Target {
    session::Target {
        pod_uid: pod.facts.pod.0.clone(),
        pod: pod.name.clone(),
        peer_address: pod.peer_address.clone(),
        gateway_address: pod.gateway_address.clone(),
        newest: pod.facts.newest,
        load: pod.facts.load,
        capacity: pod.facts.capacity,
        types: pod.types.clone(),
        deletion_cost: pod.facts.deletion_cost,
        far: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str) -> Candidate {
        Candidate {
            facts: PodFacts {
                pod: PodUid(name.into()),
                ready: true,
                running: true,
                schedulable: true,
                session: true,
                capacity: 10,
                ..PodFacts::default()
            },
            alive: true,
            name: name.into(),
            types: vec![session::HostType { name: "room".into(), state_version: 1, loads: vec![1] }],
            ..Candidate::default()
        }
    }

    fn with(name: &str, change: impl FnOnce(&mut Candidate)) -> Candidate {
        let mut candidate = candidate(name);
        change(&mut candidate);
        candidate
    }

    #[test]
    fn who_is_a_target_and_who_is_worth_waiting_for() {
        let cases: [(&str, Candidate, bool, bool); 9] = [
            ("eligible", candidate("b"), true, false),
            ("terminating", with("b", |c| c.facts.deleting = true), false, false),
            ("disrupted", with("b", |c| c.facts.disrupted = true), false, false),
            ("cordoned", with("b", |c| c.facts.schedulable = false), false, false),
            ("draining", with("b", |c| c.facts.draining = true), false, false),
            (
                "pending",
                with("b", |c| {
                    c.facts.running = false;
                    c.facts.ready = false;
                }),
                false,
                true,
            ),
            ("not ready", with("b", |c| c.facts.ready = false), false, true),
            (
                "no session yet",
                with("b", |c| {
                    c.facts.session = false;
                    c.types.clear();
                }),
                false,
                true,
            ),
            (
                "ended",
                with("b", |c| {
                    c.facts.running = false;
                    c.alive = false;
                }),
                false,
                false,
            ),
        ];
        for (name, pod, target, expected) in cases {
            let plan = Standing::of(&[candidate("a"), pod]).without(&PodUid("a".into()), 1);
            assert_eq!((plan.targets.len() == 1, plan.more_expected), (target, expected), "{name}");
        }
    }

    #[test]
    fn a_pod_is_not_its_own_target_nor_worth_its_own_waiting() {
        let standing = Standing::of(&[candidate("a"), with("b", |c| c.facts.ready = false)]);
        assert_eq!(standing.without(&PodUid("a".into()), 1).targets, []);
        assert!(!standing.without(&PodUid("b".into()), 1).more_expected);
    }

    #[test]
    fn each_pod_is_told_how_far_the_others_are_from_it() {
        let near = |name: &str, near: [&str; 2]| with(name, |c| c.facts.near = near.map(Into::into).into());
        let pods = [near("a", ["z1", "r1"]), near("b", ["z1", "r1"]), near("c", ["z2", "r1"]), near("d", ["z3", ""])];
        let standing = Standing::of(&pods);
        let told = |from: &str| standing.without(&PodUid(from.into()), 1).targets;
        let far = |from| told(from).iter().map(|target| (target.pod.clone(), target.far)).collect::<Vec<_>>();
        assert_eq!(far("a"), [("b".into(), 0), ("c".into(), 1), ("d".into(), 2)]);
        assert_eq!(far("d"), [("a".into(), 2), ("b".into(), 2), ("c".into(), 2)]);
        assert!(Standing::of(&[candidate("a"), candidate("b")]).without(&PodUid("a".into()), 1).targets[0].far == 0);
    }

    #[test]
    fn loads_alone_are_no_news() {
        let plan = |load| Standing::of(&[with("a", |c| c.facts.load = load)]);
        assert!(!plan(1).differs(&plan(2)));
        assert!(plan(1).differs(&Standing::default()));
        assert!(plan(1).differs(&Standing::of(&[with("a", |c| c.facts.newest = true)])));
    }
}
