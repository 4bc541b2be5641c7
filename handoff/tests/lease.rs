//! Leases: tables for each sentence, and a property over all orders of sending, answering, sleeping and taking over.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use handoff::{
    Generation, Instant,
    lease::{Heard, Heartbeat, Lease, Standing},
};
use proptest::prelude::*;

const LEASE: Duration = Duration::from_secs(15);

fn at(ms: u64) -> Instant {
    Instant(Duration::from_millis(ms))
}

fn lease() -> Lease {
    Lease::new(Generation(7), LEASE)
}

/// A lease whose heartbeat was sent at 1 s and answered at 2 s: it ends at 1 + 15 - 0.15 - 3 = 12.85 s.
fn answered() -> Lease {
    let mut lease = lease();
    let beat = lease.beat(at(1_000)).unwrap();
    assert!(lease.answered(beat, at(2_000)));
    lease
}

#[test]
fn a_lease_counts_from_before_its_heartbeat_was_sent() {
    let mut lease = answered();
    assert_eq!(lease.deadline(), Some(at(15_850)), "less one hundredth: clocks differ");
    assert_eq!(lease.ends(), Some(at(12_850)), "less a fifth, in which servers are stopped");
    assert_eq!(lease.store_from(), Some(at(7_000)), "the store hears of it well within two thirds");
    assert_eq!((lease.look(at(12_849)), lease.look(at(12_850))), (Standing::Alive, Standing::Over));
}

#[test]
fn a_restarted_agent_goes_on_for_what_is_left_and_counts_above() {
    let mut lease = lease();
    let last = Heartbeat { generation: Generation(3), counter: 500 };
    lease.resume(last, at(15_850), at(5_850));
    assert_eq!((lease.generation(), lease.look(at(5_850))), (Generation(3), Standing::Alive));
    assert_eq!((lease.deadline(), lease.ends()), (Some(at(15_750)), Some(at(13_750))), "not later than the host knows");
    assert_eq!(lease.counts(), Duration::from_secs(10), "whatever the pool says now");
    let next = lease.beat(at(6_000)).unwrap();
    assert_eq!(next, Heartbeat { generation: Generation(3), counter: 501 });
    assert!(lease.answered(next, at(6_100)));
    assert_eq!(lease.deadline(), Some(at(20_850)));
}

#[test]
fn a_restarted_agent_that_is_late_is_over() {
    let mut lease = lease();
    lease.resume(Heartbeat { generation: Generation(3), counter: 500 }, at(5_000), at(5_000));
    assert_eq!(lease.look(at(5_000)), Standing::Over);
    assert_eq!(lease.beat(at(5_000)), None);
}

#[test]
fn nothing_is_begun_before_an_answer() {
    let mut lease = lease();
    lease.beat(at(0));
    assert_eq!(lease.look(at(100_000)), Standing::Waiting);
    assert_eq!((lease.ends(), lease.store_from()), (None, None));
}

#[test]
fn no_late_answer_revives_a_generation() {
    let mut lease = answered();
    let second = lease.beat(at(12_000)).unwrap();
    // It was answered in time, and lay in the socket while this process slept: the clock is looked at first.
    assert!(!lease.answered(second, at(20_000)));
    assert_eq!(lease.look(at(12_001)), Standing::Over, "not even by a clock that goes back");
    assert_eq!(lease.beat(at(12_001)), None);
}

#[test]
fn an_answer_counts_for_the_heartbeat_that_it_names() {
    let mut lease = answered();
    let beats: Vec<Heartbeat> = [3_000, 4_000, 5_000].into_iter().filter_map(|ms| lease.beat(at(ms))).collect();
    assert_eq!(beats.iter().map(|beat| beat.counter).collect::<Vec<_>>(), [2, 3, 4]);
    assert!(lease.answered(beats[1], at(6_000)));
    assert_eq!(lease.deadline(), Some(at(18_850)));
    assert!(!lease.answered(beats[0], at(6_001)), "an older one says nothing new");
    assert!(!lease.answered(beats[1], at(6_002)), "nor does a doubled one");
    assert!(!lease.answered(Heartbeat { counter: 9, ..beats[0] }, at(6_003)), "nor one that was never sent");
    assert!(
        !lease.answered(Heartbeat { generation: Generation(6), ..beats[2] }, at(6_004)),
        "nor another generation's"
    );
    assert_eq!(lease.deadline(), Some(at(18_850)));
}

#[test]
fn the_first_answer_may_be_too_late_as_well() {
    let mut lease = lease();
    let beat = lease.beat(at(0)).unwrap();
    assert!(!lease.answered(beat, at(11_850)));
    assert_eq!(lease.look(at(11_850)), Standing::Waiting, "nothing was begun, so nothing ends");
}

#[test]
fn a_new_generation_begins_with_nothing_and_is_higher() {
    let mut lease = answered();
    let old = lease.beat(at(3_000)).unwrap();
    lease.end();
    assert_eq!(lease.look(at(3_000)), Standing::Over);
    lease.begin(Generation(3));
    assert_eq!((lease.generation(), lease.look(at(3_000))), (Generation(8), Standing::Waiting));
    assert!(!lease.answered(old, at(3_001)));
    assert_eq!(lease.beat(at(3_002)), Some(Heartbeat { generation: Generation(8), counter: 1 }));
}

#[test]
fn another_duration_never_makes_a_running_lease_longer() {
    let mut lease = answered();
    lease.set_duration(LEASE * 2);
    assert_eq!(lease.deadline(), Some(at(15_850)));
    let beat = lease.beat(at(3_000)).unwrap();
    lease.answered(beat, at(3_100));
    assert_eq!(lease.deadline(), Some(at(32_700)));
    lease.set_duration(LEASE);
    assert_eq!(lease.deadline(), Some(at(17_850)), "a shorter one counts at once");
    lease.set_duration(Duration::from_secs(1));
    assert_eq!(lease.look(at(5_000)), Standing::Over);
}

#[test]
fn a_pod_is_silent_after_a_whole_lease_under_one_leader() {
    let beat = |counter| Heartbeat { generation: Generation(7), counter };
    let mut heard = Heard::default();
    assert_eq!((heard.is_silent(at(0), LEASE, at(14_999)), heard.is_silent(at(0), LEASE, at(15_000))), (false, true));
    heard.beat(beat(5), LEASE, at(20_000));
    assert!(!heard.is_silent(at(0), LEASE, at(34_999)) && heard.is_silent(at(0), LEASE, at(35_000)));
    assert!(!heard.is_silent(at(30_000), LEASE, at(44_999)), "led for less");
    heard.beat(beat(4), LEASE, at(30_000));
    assert_eq!(heard.last(), beat(5), "late");
    assert!(heard.is_silent(at(0), LEASE, at(35_000)));
    heard.beat(beat(6), LEASE * 2, at(40_000));
    assert!(!heard.is_silent(at(0), LEASE, at(69_999)), "it counts longer itself");
    heard.beat(Heartbeat { generation: Generation(8), counter: 1 }, LEASE, at(80_000));
    assert_eq!(heard.last().generation, Generation(8));
}

#[derive(Clone, Debug)]
enum Step {
    /// A heartbeat is sent; it arrives after so long, and its answer after so long again, unless either is lost.
    Beat { there: Option<u64>, back: Option<u64> },
    /// Time passes in which the agent does nothing.
    Sleep(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let late =
        || prop_oneof![3 => (0_u64..2_000).prop_map(Some), 1 => (2_000_u64..40_000).prop_map(Some), 1 => Just(None)];
    let step = prop_oneof![
        3 => (late(), late()).prop_map(|(there, back)| Step::Beat { there, back }),
        2 => (1_u64..3_000).prop_map(Step::Sleep),
        1 => (3_000_u64..30_000).prop_map(Step::Sleep),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whenever the operator takes the pod for silent, its lease is over, by a clock that is one hundredth slower.
    #[test]
    fn the_agents_time_is_over_before_the_operators(steps in steps()) {
        let slow = |ms: u64| at(ms - ms / 100);
        let (mut lease, mut heard) = (lease(), Heard::default());
        let mut arrivals: Vec<(u64, Heartbeat, Option<u64>)> = Vec::new();
        let mut answers: Vec<(u64, Heartbeat)> = Vec::new();
        let mut now = 100_000;
        let begun = now;
        for step in steps {
            match step {
                Step::Beat { there, back } => {
                    if let (Some(beat), Some(there)) = (lease.beat(slow(now)), there) {
                        arrivals.push((now + there, beat, back));
                    }
                }
                Step::Sleep(ms) => now += ms,
            }
            arrivals.sort_unstable();
            while let Some((when, beat, back)) = arrivals.first().copied().filter(|(when, ..)| *when <= now) {
                arrivals.remove(0);
                // Before this one was taken in, the pod may have been silent; then it was over at that moment.
                if heard.is_silent(at(begun), LEASE, at(when)) && heard.last().counter > 0 {
                    prop_assert!(lease.deadline().is_none_or(|deadline| slow(when) >= deadline));
                }
                heard.beat(beat, LEASE, at(when));
                answers.extend(back.map(|back| (when + back, beat)));
            }
            answers.retain(|(when, beat)| {
                let due = *when <= now;
                if due {
                    lease.answered(*beat, slow(now));
                }
                !due
            });
            if heard.is_silent(at(begun), LEASE, at(now)) {
                prop_assert!(lease.look(slow(now)) != Standing::Alive && lease.deadline().is_none_or(|d| slow(now) >= d), "{lease:?} {heard:?} {now}");
            }
        }
    }
}
