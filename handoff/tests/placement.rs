//! Placement: who is eligible, and who is best.

mod common;

use std::time::{Duration, Instant};

use common::{pod, room};
use handoff::{
    PodUid,
    placement::{Board, Ineligible, Need, PodFacts, far, held_near, new_deletion_cost},
};
use proptest::prelude::*;

const LIMIT: Duration = Duration::from_millis(50);

fn best(pods: &[PodFacts], need: &Need) -> Option<String> {
    Board::new(pods.to_vec()).best(need, |_| true).map(|pod| pod.pod.0.clone())
}

/// Places servers one after another. `None`: no pod can take that one.
fn spread(board: &mut Board, needs: &[Need]) -> Vec<Option<PodUid>> {
    let place = |need: &Need| {
        let chosen = board.best(need, |_| true)?.pod.clone();
        board.take(&chosen, &need.kind);
        Some(chosen)
    };
    needs.iter().map(place).collect()
}

type Spoil = fn(&mut PodFacts);

#[test]
fn each_missing_fact_has_a_reason_of_its_own() {
    let table: [(Ineligible, Spoil); 11] = [
        (Ineligible::Deleting, |pod| pod.deleting = true),
        (Ineligible::Disrupted, |pod| pod.disrupted = true),
        (Ineligible::NotRunning, |pod| pod.running = false),
        (Ineligible::NotReady, |pod| pod.ready = false),
        (Ineligible::NodeCordoned, |pod| pod.schedulable = false),
        (Ineligible::Cordoned, |pod| pod.cordoned = true),
        (Ineligible::Inactive, |pod| pod.inactive = true),
        (Ineligible::NoSession, |pod| pod.session = false),
        (Ineligible::Draining, |pod| pod.draining = true),
        (Ineligible::Full, |pod| pod.load = 100),
        (Ineligible::CannotLoad, |pod| pod.types.clear()),
    ];
    assert_eq!(pod("a").can_take(&room(Some(1))), Ok(()));
    for (reason, spoil) in table {
        let mut pod = pod("a");
        spoil(&mut pod);
        assert_eq!(pod.can_take(&room(Some(1))), Err(reason));
        assert!(best(&[pod], &room(Some(1))).is_none());
    }
}

#[test]
fn a_server_without_a_state_needs_only_its_type() {
    let mut pod = pod("a");
    pod.types = [(String::from("room"), Vec::new())].into();
    assert_eq!(pod.can_take(&room(None)), Ok(()));
    assert_eq!(pod.can_take(&room(Some(1))), Err(Ineligible::CannotLoad));
    pod.types.clear();
    assert_eq!(pod.can_take(&room(None)), Err(Ineligible::CannotLoad));
}

#[test]
fn the_newest_revision_comes_before_an_emptier_pod() {
    let old = PodFacts { newest: false, ..pod("a") };
    let new = PodFacts { load: 99, ..pod("b") };
    assert_eq!(best(&[old.clone(), new.clone()], &room(None)).as_deref(), Some("b"));
    let full = PodFacts { load: 100, ..new };
    assert_eq!(best(&[old, full], &room(None)).as_deref(), Some("a"));
}

#[test]
fn of_older_pods_the_one_that_ends_last_is_best() {
    let old = |name: &str, deletion_cost, load| PodFacts { newest: false, deletion_cost, load, ..pod(name) };
    let pods = [old("next", -3, 0), old("last", 0, 50), old("later", -1, 0)];
    assert_eq!(best(&pods, &room(None)).as_deref(), Some("last"));
}

#[test]
fn a_deletion_cost_changes_only_when_it_says_something_else() {
    let cases = [(0, 0, None), (1, 0, Some(1)), (0, 1, Some(0)), (10, 0, Some(10)), (10, 8, None), (10, 7, Some(10))];
    for (load, told, expected) in cases.into_iter().chain([(8, 10, None), (8, 11, Some(8)), (4, -1000, Some(4))]) {
        assert_eq!(new_deletion_cost(load, told), expected, "{load} servers, told {told}");
    }
}

#[test]
fn a_type_has_a_limit_of_its_own() {
    let few = Need { max_of_type: Some(2), ..room(None) };
    let mut board = Board::new(vec![pod("a"), pod("b")]);
    let placed = spread(&mut board, &vec![few.clone(); 5]);
    assert_eq!(placed.iter().flatten().count(), 4);
    assert_eq!(board.pods()[0].can_take(&few), Err(Ineligible::Full));
    assert_eq!(board.pods()[0].can_take(&room(None)), Ok(()), "others have none");
}

/// Of a pod on a node in a zone of a region, and of a server from there.
fn near(zone: &str, region: &str) -> Vec<String> {
    vec![zone.into(), region.into()]
}

#[test]
fn a_server_stays_near_by_the_narrowest_label_that_it_can() {
    let mut pods = vec![
        PodFacts { near: near("z1", "r1"), load: 50, ..pod("a") },
        PodFacts { near: near("z2", "r1"), load: 10, ..pod("b") },
        PodFacts { near: near("z3", "r2"), ..pod("c") },
        PodFacts { near: near("", ""), ..pod("d") },
    ];
    let from = |zone, region| Need { near: near(zone, region), ..room(None) };
    let cases = [("z1", "r1", "a"), ("", "r1", "b"), ("z9", "r1", "b"), ("z9", "r9", "c"), ("", "", "c")];
    for (zone, region, expected) in cases {
        assert_eq!(best(&pods, &from(zone, region)).as_deref(), Some(expected), "{zone} {region}");
    }
    for (full, next) in [(0, "b"), (1, "c"), (2, "d")] {
        pods[full].load = 100;
        assert_eq!(best(&pods, &from("z1", "r1")).as_deref(), Some(next));
    }
}

#[test]
fn how_long_a_server_waits_for_a_near_pod() {
    let lasts = [30, 60].map(Duration::from_secs);
    let cases = [
        (near("z1", "r1"), 0, Some(0)),
        (near("z1", "r1"), 30, Some(1)),
        (near("z1", "r1"), 60, None),
        (near("", "r1"), 0, Some(1)),
        (near("", ""), 0, None),
        (Vec::new(), 0, None),
    ];
    for (near, since, expected) in cases {
        assert_eq!(held_near(&near, &lasts, Duration::from_secs(since)), expected, "{near:?} after {since} s");
    }
    let board = Board::new(vec![PodFacts { near: near("z2", "r1"), ..pod("a") }]);
    let need = Need { near: near("z1", "r1"), ..room(None) };
    let [zone, region] = [0, 1].map(|label| board.nearest(label, &need, |_| true));
    assert!(zone.is_none() && region.is_some());
}

/// Shown on the console and not only here: `cargo test --release --workspace --test placement -- --nocapture ten_thousand`.
#[test]
fn ten_thousand_servers_are_placed_on_two_hundred_pods_in_milliseconds_and_twice_as_many_in_twice_the_time() {
    let zone = |n: usize| near(&format!("zone-{}", n % 3), "region");
    let time = |servers: usize| {
        let pod = |n| PodFacts { capacity: 1_000, near: zone(n), ..pod(&format!("{n:03}")) };
        let mut board = Board::new((0..200).map(pod).collect());
        let needs: Vec<Need> = (0..servers).map(|n| Need { near: zone(n / 7), ..room(Some(1)) }).collect();
        let begun = Instant::now();
        assert!(spread(&mut board, &needs).iter().all(Option::is_some));
        begun.elapsed()
    };
    let best_of = |servers| (0..5).map(|_| time(servers)).min().unwrap_or_default();
    let (once, twice) = (best_of(10_000), best_of(20_000));
    let verdict = |passes| if passes { "pass" } else { "FAIL" };
    println!("  {}  10,000 servers on 200 pods: {once:?} (limit {LIMIT:?})", verdict(once <= LIMIT));
    println!("  {}  20,000 servers: {twice:?} (limit twice that, and half)", verdict(twice <= once * 5 / 2));
    assert!(once <= LIMIT * 5 && twice <= once * 10);
}

proptest! {
    /// The board chooses as one would who compares every pod with every other.
    #[test]
    fn the_best_is_better_than_all_others(
        pods in prop::collection::vec((any::<bool>(), 0..3_i32, 0..4_u32, 0..3_usize, 0..2_usize), 1..9),
        needs in prop::collection::vec((0..3_usize, 0..2_usize), 1..20),
    ) {
        let place = |zone: usize, region: usize| near(["", "z1", "z2"][zone], ["", "r1"][region]);
        let facts = pods.iter().enumerate().map(|(n, (newest, deletion_cost, load, zone, region))| PodFacts {
            newest: *newest, deletion_cost: *deletion_cost, load: *load, capacity: 5, near: place(*zone, *region),
            ..pod(&n.to_string())
        });
        let mut board = Board::new(facts.collect());
        for (zone, region) in needs {
            let need = Need { near: place(zone, region), ..room(None) };
            let rank = |pod: &&PodFacts| {
                let ends_soon = if pod.newest { 0 } else { -pod.deletion_cost };
                (!pod.newest, ends_soon, far(&need.near, &pod.near), pod.load, pod.pod.clone())
            };
            let expected = board.pods().iter().filter(|pod| pod.can_take(&need).is_ok()).min_by_key(rank).cloned();
            let chosen = board.best(&need, |_| true).cloned();
            prop_assert_eq!(&chosen, &expected);
            if let Some(chosen) = chosen {
                board.take(&chosen.pod, &need.kind);
            }
        }
    }

    /// A batch never overfills a pod, and pods of one capacity end within one server of each other.
    #[test]
    fn batches_spread(pods in 1..6usize, servers in 0..200usize, capacity in 1..50u32) {
        let mut board = Board::new((0..pods).map(|n| PodFacts { capacity, ..pod(&n.to_string()) }).collect());
        let placed = spread(&mut board, &vec![room(None); servers]);
        let room_for = usize::try_from(capacity).unwrap() * board.pods().len();
        prop_assert_eq!(placed.iter().flatten().count(), servers.min(room_for));
        let loads: Vec<u32> = board.pods().iter().map(|pod| pod.load).collect();
        prop_assert!(loads.iter().all(|load| *load <= capacity));
        prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
    }
}
