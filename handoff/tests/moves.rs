//! Moves off pods that live on.

mod common;

use std::{collections::HashSet, time::Duration};

use handoff::{
    PodUid, ServerUid,
    moves::{self, Leaving, Move, Resident, in_time, share},
    placement::{Board, Need, PodFacts},
    window::{FIRST, FLOOR, SHORT_GAP, Window},
};
use proptest::prelude::*;

const MANY: u32 = 1000;

fn pod(name: &str, leaving: Option<Leaving>) -> PodFacts {
    PodFacts { newest: leaving != Some(Leaving::Replaced), leaving, ..common::pod(name) }
}

fn resident(n: usize, pod: &str) -> Resident {
    Resident {
        server: ServerUid(format!("s{n}")),
        pod: PodUid(pod.into()),
        need: common::room(None),
        priority: 0,
        tried: HashSet::new(),
    }
}

/// The next moves on a board of these pods.
fn next(pods: &[PodFacts], residents: Vec<Resident>, share: u32, room: usize) -> Vec<Move> {
    moves::next(&mut Board::new(pods.to_vec()), residents, share, room)
}

fn targets(moves: &[Move]) -> Vec<(&str, &str)> {
    moves.iter().map(|next| (next.server.0.as_str(), next.to.0.as_str())).collect()
}

#[test]
fn only_pods_that_servers_leave_are_left_and_never_for_each_other() {
    let pods = [pod("a", Some(Leaving::Asked)), pod("b", Some(Leaving::NodeCordoned)), pod("c", None)];
    let residents = vec![resident(0, "a"), resident(1, "b"), resident(2, "c"), resident(3, "unknown")];
    assert_eq!(targets(&next(&pods, residents, MANY, 9)), [("s0", "c"), ("s1", "c")]);
}

#[test]
fn what_is_asked_for_goes_first_then_by_priority_and_no_more_than_there_is_room() {
    let pods = [pod("a", Some(Leaving::Inactive)), pod("b", Some(Leaving::Asked)), pod("c", None)];
    let urgent = Resident { priority: 5, ..resident(2, "a") };
    let residents = vec![resident(0, "a"), resident(1, "b"), urgent];
    assert_eq!(targets(&next(&pods, residents, MANY, 2)), [("s1", "c"), ("s2", "c")]);
}

#[test]
fn a_replaced_pod_is_left_for_new_pods_only_and_evenly() {
    let old = || pod("old", Some(Leaving::Replaced));
    let residents = || (0..6).map(|n| resident(n, "old")).collect::<Vec<_>>();
    assert_eq!(next(&[old(), PodFacts { newest: false, ..pod("older", None) }], residents(), MANY, 9), []);
    let one = [old(), pod("new", None)];
    assert_eq!(next(&one, residents(), 4, 9).len(), 4, "the rest waits for pods that are still to come");
    let two = [old(), PodFacts { load: 4, ..pod("new", None) }, pod("newer", None)];
    assert!(next(&two, residents(), 4, 9).iter().all(|next| next.to.0 == "newer"));
}

#[test]
fn replaced_pods_are_emptied_one_after_another_the_one_that_ends_next_first() {
    let old = |name: &str, deletion_cost, load| PodFacts { deletion_cost, load, ..pod(name, Some(Leaving::Replaced)) };
    let residents = vec![resident(0, "fuller"), resident(1, "dear"), resident(2, "emptier"), resident(3, "cheap")];
    let pods = [old("fuller", 0, 9), old("dear", 5, 1), old("emptier", 0, 2), old("cheap", -1, 50), pod("new", None)];
    let order: Vec<_> = next(&pods, residents, MANY, 9).into_iter().map(|next| next.from.0).collect();
    assert_eq!(order, ["cheap", "emptier", "fuller", "dear"]);
}

#[test]
fn who_is_sent_somewhere_goes_there_if_that_pod_may_have_it_and_no_more_than_there_is_room() {
    let sent = |n, to: &str| (resident(n, "a"), PodUid(to.into()));
    let full = PodFacts { load: 99, ..pod("full", None) };
    let replaced = pod("old", Some(Leaving::Replaced));
    let pods = [pod("a", None), pod("b", None), full, replaced, PodFacts { ready: false, ..pod("late", None) }];
    let wishes = vec![sent(0, "full"), sent(1, "full"), sent(2, "old"), sent(3, "late"), sent(4, "gone"), sent(5, "b")];
    let mut board = Board::new(pods.to_vec());
    assert_eq!(targets(&moves::asked(&mut board, wishes.clone(), 9)), [("s0", "full"), ("s5", "b")]);
    assert_eq!(board.pod(&PodUid("full".into())).map(|pod| pod.load), Some(100), "what is sent counts");
    assert_eq!(targets(&moves::asked(&mut Board::new(pods.to_vec()), wishes, 1)), [("s0", "full")]);
}

#[test]
fn the_best_pod_is_another_one_and_none_that_servers_leave() {
    let pods =
        [pod("a", None), PodFacts { load: 1, ..pod("b", None) }, pod("c", Some(Leaving::Replaced)), pod("d", None)];
    let residents = || (0..3).map(|n| resident(n, "a")).collect::<Vec<_>>();
    let moves = moves::best(&mut Board::new(pods.to_vec()), residents());
    assert_eq!(targets(&moves), [("s0", "d"), ("s1", "b"), ("s2", "d")]);
    assert_eq!(moves::best(&mut Board::new(pods[..1].to_vec()), residents()), []);
}

#[test]
fn who_would_not_have_it_is_not_asked_again_while_another_may() {
    let pods = [pod("a", Some(Leaving::Asked)), pod("b", None), PodFacts { load: 9, ..pod("c", None) }];
    let refused = Resident { tried: [PodUid("b".into())].into(), ..resident(0, "a") };
    assert_eq!(targets(&next(&pods, vec![refused.clone(), resident(1, "a")], MANY, 9)), [("s0", "c"), ("s1", "b")]);
    let pods = [pod("a", Some(Leaving::Asked)), pod("b", None)];
    assert_eq!(targets(&next(&pods, vec![refused], MANY, 9)), [("s0", "b")]);
}

#[test]
fn a_share_is_a_tenth_more_than_an_even_part() {
    for (servers, pods, expected) in [(1200, 6, 220), (10, 3, 4), (0, 3, 1), (5, 0, 6)] {
        assert_eq!(share(servers, pods), expected, "{servers} on {pods}");
    }
}

#[test]
fn the_less_time_there_is_the_more_move_at_once() {
    let cases = [(600, 30, 25), (600, 605, 2), (0, 30, 1), (1, 5, usize::MAX), (1, 0, usize::MAX)];
    for (servers, seconds, at_once) in cases {
        assert_eq!(in_time(servers, Duration::from_secs(seconds)), at_once, "{servers} in {seconds} s");
    }
}

#[test]
fn of_free_pods_the_nearest_is_taken_but_no_more_than_its_share_of_a_rollout() {
    let zone = |zone: &str, pod| PodFacts { near: vec![zone.to_owned()], ..pod };
    let resident = |n| {
        let resident = resident(n, "old");
        Resident { need: Need { near: vec!["z1".into()], ..resident.need }, ..resident }
    };
    for (why, to) in [(Leaving::Asked, ["n1", "n1", "n1"]), (Leaving::Replaced, ["n1", "n1", "n2"])] {
        let pods = [zone("z1", pod("old", Some(why))), zone("z2", pod("n2", None)), zone("z1", pod("n1", None))];
        let moves = next(&pods, (0..3).map(resident).collect(), 2, 9);
        assert_eq!(moves.iter().map(|next| next.to.0.as_str()).collect::<Vec<_>>(), to, "{why:?}");
    }
}

#[test]
fn more_at_once_only_while_gaps_are_short() {
    let mut window = Window::default();
    assert_eq!(window.size(50), FIRST);
    assert_eq!(window.size(2), 2);
    window.gap(SHORT_GAP, 50);
    assert_eq!(window.size(50), FIRST + 1);
    for _ in 0..9 {
        window.gap(SHORT_GAP + Duration::from_millis(1), 50);
    }
    assert_eq!(window.size(50), FLOOR);
    window.open(50);
    assert_eq!(window.size(50), 50);
}

proptest! {
    #[test]
    fn nothing_moves_twice_nor_past_capacity_nor_into_what_is_left(
        pods in prop::collection::vec((0..5_usize, 0..4_u32), 1..7), residents in prop::collection::vec(0..7_usize, 0..40),
        room in 0..30_usize, limit in 1..9_u32,
    ) {
        let why = [None, Some(Leaving::Asked), Some(Leaving::NodeCordoned), Some(Leaving::Inactive), Some(Leaving::Replaced)];
        let facts: Vec<PodFacts> = pods.iter().enumerate()
            .map(|(n, (leaving, load))| PodFacts { load: *load, capacity: 5, ..pod(&n.to_string(), why[*leaving]) })
            .collect();
        let residents: Vec<Resident> = residents.iter().enumerate().map(|(n, pod)| resident(n, &pod.to_string())).collect();
        let mut board = Board::new(facts.clone());
        let moves = moves::next(&mut board, residents, limit, room);
        prop_assert!(moves.len() <= room);
        let servers: HashSet<_> = moves.iter().map(|next| &next.server).collect();
        prop_assert_eq!(servers.len(), moves.len());
        for next in &moves {
            let of = |uid: &PodUid| facts.iter().find(|pod| pod.pod == *uid);
            prop_assert!(of(&next.from).is_some_and(|pod| pod.leaving.is_some()));
            prop_assert!(of(&next.to).is_some_and(|pod| pod.leaving.is_none()));
        }
        prop_assert!(board.pods().iter().all(|pod| pod.load <= 5));
    }
}
