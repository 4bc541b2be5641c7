//! Placement: who is eligible, and who is best.

use handoff::{
    PodUid,
    placement::{Ineligible, Need, PodFacts, choose, spread},
};
use proptest::prelude::*;

fn pod(name: &str) -> PodFacts {
    PodFacts {
        pod: PodUid(name.into()),
        ready: true,
        running: true,
        schedulable: true,
        session: true,
        newest: true,
        capacity: 100,
        types: [String::from("room")].into(),
        loads: [(String::from("room"), 1)].into(),
        ..PodFacts::default()
    }
}

fn room(state_version: Option<u32>) -> Need {
    Need { kind: "room".into(), state_version, max_of_type: None }
}

type Spoil = fn(&mut PodFacts);

#[test]
fn each_missing_fact_has_a_reason_of_its_own() {
    let table: [(Ineligible, Spoil); 9] = [
        (Ineligible::Deleting, |pod| pod.deleting = true),
        (Ineligible::Disrupted, |pod| pod.disrupted = true),
        (Ineligible::NotRunning, |pod| pod.running = false),
        (Ineligible::NotReady, |pod| pod.ready = false),
        (Ineligible::NodeCordoned, |pod| pod.schedulable = false),
        (Ineligible::NoSession, |pod| pod.session = false),
        (Ineligible::Draining, |pod| pod.draining = true),
        (Ineligible::Full, |pod| pod.load = 100),
        (Ineligible::CannotLoad, |pod| pod.loads.clear()),
    ];
    assert_eq!(pod("a").can_take(&room(Some(1))), Ok(()));
    for (reason, spoil) in table {
        let mut pod = pod("a");
        spoil(&mut pod);
        assert_eq!(pod.can_take(&room(Some(1))), Err(reason));
        assert!(choose([&pod], &room(Some(1))).is_none());
    }
}

#[test]
fn a_server_without_a_state_needs_only_its_type() {
    let mut pod = pod("a");
    pod.loads.clear();
    assert_eq!(pod.can_take(&room(None)), Ok(()));
    pod.types.clear();
    assert_eq!(pod.can_take(&room(None)), Err(Ineligible::CannotLoad));
}

#[test]
fn the_newest_revision_comes_before_an_emptier_pod() {
    let old = PodFacts { newest: false, ..pod("a") };
    let new = PodFacts { load: 99, ..pod("b") };
    assert_eq!(choose([&old, &new], &room(None)).map(|pod| pod.pod.0.as_str()), Some("b"));
    let full = PodFacts { load: 100, ..new };
    assert_eq!(choose([&old, &full], &room(None)).map(|pod| pod.pod.0.as_str()), Some("a"));
}

#[test]
fn a_type_has_a_limit_of_its_own() {
    let few = Need { max_of_type: Some(2), ..room(None) };
    let mut pods = [pod("a"), pod("b")];
    let placed = spread(&mut pods, &[few.clone(), few.clone(), few.clone(), few.clone(), few.clone()]);
    assert_eq!(placed.iter().flatten().count(), 4);
    assert_eq!(pods[0].can_take(&few), Err(Ineligible::Full));
    assert_eq!(pods[0].can_take(&room(None)), Ok(()), "others have none");
}

proptest! {
    /// A batch never overfills a pod, and pods of one capacity end within one server of each other.
    #[test]
    fn batches_spread(pods in 1..6usize, servers in 0..200usize, capacity in 1..50u32) {
        let mut pods: Vec<PodFacts> = (0..pods).map(|n| PodFacts { capacity, ..pod(&n.to_string()) }).collect();
        let placed = spread(&mut pods, &vec![room(None); servers]);
        let room_for = usize::try_from(capacity).unwrap() * pods.len();
        prop_assert_eq!(placed.iter().flatten().count(), servers.min(room_for));
        let loads: Vec<u32> = pods.iter().map(|pod| pod.load).collect();
        prop_assert!(loads.iter().all(|load| *load <= capacity));
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
    }
}
