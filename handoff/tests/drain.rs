//! The drain: order, concurrency, retries, breaker, budget.

use std::time::Duration;

use handoff::{
    Instant, PodUid, ServerUid,
    drain::{Action, Blocked, Candidate, Drain, Ended, Event, Job, Limits, Plan, StopReason, Summary, foremost},
    source::Cause,
    window::FIRST,
};
use proptest::prelude::*;

fn at(ms: u64) -> Instant {
    Instant(Duration::from_millis(ms))
}

fn uid(n: usize) -> ServerUid {
    ServerUid(format!("s{n}"))
}

fn job(n: usize) -> Job {
    Job { server: uid(n), handoff: true, priority: 0, dirty: false }
}

fn candidate(pod: &str, newest: bool, load: u32, capacity: u32) -> Candidate {
    Candidate { pod: PodUid(pod.into()), newest, deletion_cost: 0, far: 0, load, capacity }
}

fn plan(candidates: Vec<Candidate>) -> Plan {
    Plan { candidates, more_expected: false }
}

fn handoffs(actions: &[Action]) -> Vec<(String, String)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Handoff(server, pod) => Some((server.0.clone(), pod.0.clone())),
            _ => None,
        })
        .collect()
}

fn stops(actions: &[Action]) -> Vec<(String, StopReason)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Stop(server, reason) => Some((server.0.clone(), *reason)),
            _ => None,
        })
        .collect()
}

fn done(actions: &[Action]) -> Option<Summary> {
    actions.iter().find_map(|action| match action {
        Action::Done(summary) => Some(summary.clone()),
        _ => None,
    })
}

const MINUTE: u64 = 60_000;

fn start(jobs: Vec<Job>, standing: Option<Plan>, limits: Limits) -> (Drain, Vec<Action>) {
    Drain::start(limits, jobs, standing, at(0), at(MINUTE))
}

#[test]
fn priority_goes_first_then_what_is_dirty() {
    let jobs = vec![
        job(0),
        Job { dirty: true, ..job(1) },
        Job { priority: 5, ..job(2) },
        Job { priority: 5, dirty: true, ..job(3) },
    ];
    let (_, actions) = start(jobs, Some(plan(vec![candidate("b", true, 0, 10)])), Limits::default());
    let order: Vec<String> = handoffs(&actions).into_iter().map(|(server, _)| server).collect();
    assert_eq!(order, ["s3", "s2", "s1", "s0"]);
}

#[test]
fn no_more_than_the_limit_is_in_flight_and_each_end_begins_another() {
    let limits = Limits { max_concurrency: 2, ..Limits::default() };
    let (mut drain, actions) = start((0..3).map(job).collect(), Some(plan(vec![candidate("b", true, 0, 9)])), limits);
    assert_eq!(handoffs(&actions).len(), 2);
    let actions = drain.on(Event::HandoffEnded(uid(0), Ended::Moved), at(1));
    assert_eq!(handoffs(&actions), [("s2".into(), "b".into())]);
    drain.on(Event::HandoffEnded(uid(1), Ended::Moved), at(2));
    let actions = drain.on(Event::HandoffEnded(uid(2), Ended::Moved), at(3));
    assert_eq!(done(&actions).map(|summary| (summary.total, summary.moved)), Some((3, 3)));
}

#[test]
fn more_at_once_only_while_gaps_are_short() {
    let limits = Limits::default();
    let (mut drain, actions) = start((0..42).map(job).collect(), Some(plan(vec![candidate("b", true, 0, 99)])), limits);
    assert_eq!(handoffs(&actions).len(), FIRST);
    assert_eq!(handoffs(&drain.on(Event::Gap(Duration::from_millis(3)), at(1))).len(), 1);
    assert_eq!(handoffs(&drain.on(Event::Gap(Duration::from_millis(30)), at(2))).len(), 0);
    assert_eq!(handoffs(&drain.on(Event::HandoffEnded(uid(0), Ended::Moved), at(3))).len(), 0);
    // Past half of the time there is no more waiting.
    assert_eq!(handoffs(&drain.on(Event::Gap(Duration::from_millis(30)), at(MINUTE / 2))).len(), 33);
}

#[test]
fn a_plan_of_pods_that_die_next_is_not_begun_on() {
    assert!(!plan(vec![candidate("old", false, 0, 9)]).is_good_enough());
    assert!(plan(vec![candidate("old", false, 0, 9), candidate("new", true, 0, 9)]).is_good_enough());
}

#[test]
fn servers_go_to_the_newest_revision_and_spread_by_load() {
    let pods = vec![candidate("old", false, 0, 100), candidate("b", true, 1, 100), candidate("c", true, 0, 100)];
    let (_, actions) = start((0..3).map(job).collect(), Some(plan(pods)), Limits::default());
    let targets: Vec<String> = handoffs(&actions).into_iter().map(|(_, pod)| pod).collect();
    assert_eq!(targets, ["c", "b", "c"]);
}

#[test]
fn overflow_goes_to_older_pods_when_the_newest_are_full() {
    let pods = vec![candidate("old", false, 0, 100), candidate("new", true, 0, 1)];
    let (_, actions) = start((0..3).map(job).collect(), Some(plan(pods)), Limits::default());
    let targets: Vec<String> = handoffs(&actions).into_iter().map(|(_, pod)| pod).collect();
    assert_eq!(targets, ["new", "old", "old"]);
}

#[test]
fn a_refused_server_is_offered_to_the_next_pod_and_stopped_when_all_refused() {
    let pods = vec![candidate("b", true, 0, 9), candidate("c", true, 0, 9)];
    let (mut drain, actions) = start(vec![job(0)], Some(plan(pods)), Limits::default());
    assert_eq!(handoffs(&actions), [("s0".into(), "b".into())]);
    let actions = drain.on(Event::HandoffEnded(uid(0), Ended::Kept(Cause::Rejected)), at(1));
    assert_eq!(handoffs(&actions), [("s0".into(), "c".into())]);
    let actions = drain.on(Event::HandoffEnded(uid(0), Ended::Kept(Cause::Rejected)), at(2));
    assert_eq!(actions, [Action::Wake(at(1000))], "a pod that replaces this one may be on its way");
    let actions = drain.on(Event::Tick, at(1000));
    assert_eq!(stops(&actions), [("s0".into(), StopReason::AllRejected)]);
}

#[test]
fn failures_in_a_row_stop_the_rest_and_a_success_between_forgives_them() {
    let limits = Limits { max_concurrency: 1, stop_after_failures: 2, ..Limits::default() };
    let pods = vec![candidate("b", true, 0, 9), candidate("c", true, 0, 9), candidate("d", true, 0, 9)];
    let (mut drain, _) = start((0..3).map(job).collect(), Some(plan(pods)), limits);
    drain.on(Event::HandoffEnded(uid(0), Ended::Kept(Cause::Failed)), at(1));
    drain.on(Event::HandoffEnded(uid(0), Ended::Moved), at(2));
    drain.on(Event::HandoffEnded(uid(1), Ended::Kept(Cause::Failed)), at(3));
    let actions = drain.on(Event::HandoffEnded(uid(1), Ended::Kept(Cause::Failed)), at(4));
    let reasons: Vec<StopReason> = stops(&actions).into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, [StopReason::TooManyFailures, StopReason::TooManyFailures]);
}

#[test]
fn without_a_plan_it_waits_a_second_and_then_stops() {
    let (mut drain, actions) = start(vec![job(0)], None, Limits::default());
    assert_eq!(actions, [Action::Wake(at(1000))]);
    assert!(stops(&drain.on(Event::Tick, at(999))).is_empty());
    assert_eq!(stops(&drain.on(Event::Tick, at(1000))), [("s0".into(), StopReason::NoTarget)]);
}

#[test]
fn with_no_pod_eligible_it_serves_on_only_while_one_is_expected() {
    let hope = Plan { candidates: vec![], more_expected: true };
    let (mut drain, actions) = start(vec![job(0)], Some(hope), Limits::default());
    assert!(stops(&actions).is_empty() && handoffs(&actions).is_empty());
    let actions = drain.on(Event::Plan(plan(vec![candidate("b", true, 0, 9)])), at(5000));
    assert_eq!(handoffs(&actions), [("s0".into(), "b".into())]);

    let (mut drain, actions) = start(vec![job(0)], Some(plan(vec![])), Limits::default());
    assert_eq!(actions, [Action::Wake(at(1000))]);
    assert_eq!(stops(&drain.on(Event::Tick, at(1000))), [("s0".into(), StopReason::NoTarget)]);
}

#[test]
fn time_is_kept_back_to_stop_the_rest() {
    let limits = Limits::default();
    let hope = Plan { candidates: vec![], more_expected: true };
    let (mut drain, _) = start((0..100).map(job).collect(), Some(hope), limits);
    // Two rounds of 50 stops, and the floor.
    let halt = MINUTE - 2 * 250 - 2000;
    assert!(stops(&drain.on(Event::Tick, at(halt - 1))).is_empty());
    let actions = drain.on(Event::Tick, at(halt));
    assert_eq!(stops(&actions).len(), limits.stop_concurrency);
    assert_eq!(stops(&actions)[0].1, StopReason::Deadline);
}

#[test]
fn while_there_is_time_few_are_stopped_at_once() {
    let limits = Limits::default();
    let off = |n| Job { handoff: false, ..job(n) };
    let (mut drain, actions) = start((0..100).map(off).collect(), Some(plan(vec![])), limits);
    let first = stops(&actions);
    assert_eq!(first.len(), limits.gentle_stops);
    // The next one when the first is served elsewhere.
    let next = drain.on(Event::StopEnded(ServerUid(first[0].0.clone()), true), at(100));
    assert_eq!(stops(&next).len(), 1);
    let hurry = drain.on(Event::Tick, at(MINUTE - 2 * 250 - 2000));
    assert_eq!(stops(&hurry).len(), limits.stop_concurrency - limits.gentle_stops);
}

#[test]
fn while_the_store_is_down_servers_serve_on_and_are_tried_again() {
    let pods = plan(vec![candidate("b", true, 0, 9)]);
    let (mut drain, _) = start(vec![job(0)], Some(pods), Limits::default());
    let actions = drain.on(Event::HandoffEnded(uid(0), Ended::Kept(Cause::StoreUnavailable)), at(100));
    assert!(handoffs(&actions).is_empty() && stops(&actions).is_empty());
    assert_eq!(handoffs(&drain.on(Event::Tick, at(600))).len(), 1);
    drain.on(Event::HandoffEnded(uid(0), Ended::Kept(Cause::StoreUnavailable)), at(700));
    let actions = drain.on(Event::Tick, at(MINUTE - 2250));
    assert_eq!(stops(&actions), [("s0".into(), StopReason::StoreUnavailable)]);
    let summary = done(&drain.on(Event::StopEnded(uid(0), false), at(MINUTE)));
    assert_eq!(summary.map(|summary| summary.failed), Some(1));
}

#[test]
fn a_server_with_handoff_off_is_stopped_at_once() {
    let jobs = vec![Job { handoff: false, ..job(0) }, job(1)];
    let (_, actions) = start(jobs, Some(plan(vec![candidate("b", true, 0, 9)])), Limits::default());
    assert_eq!(stops(&actions), [("s0".into(), StopReason::HandoffOff)]);
    assert_eq!(handoffs(&actions).len(), 1);
}

fn aborts(actions: &[Action]) -> Vec<String> {
    let aborted = actions.iter().filter_map(|action| match action {
        Action::Abort(server) => Some(server.0.clone()),
        _ => None,
    });
    aborted.collect()
}

#[test]
fn a_near_pod_comes_before_an_emptier_one_but_not_before_one_of_the_newest_revision() {
    let far = |far, candidate| Candidate { far, ..candidate };
    let near = far(0, candidate("near", true, 5, 6));
    let pods = vec![far(0, candidate("old", false, 0, 9)), far(1, candidate("far", true, 0, 9)), near];
    let (_, actions) = start((0..2).map(job).collect(), Some(plan(pods)), Limits::default());
    assert_eq!(handoffs(&actions), [("s0".into(), "near".into()), ("s1".into(), "far".into())]);
}

fn kept(server: usize, cause: Cause) -> Event {
    Event::HandoffEnded(uid(server), Ended::Kept(cause))
}

#[test]
fn what_is_under_way_when_time_runs_out_is_given_up_and_stopped_in_time() {
    let limits = Limits { max_concurrency: 2, ..Limits::default() };
    let (mut drain, _) = start((0..3).map(job).collect(), Some(plan(vec![candidate("hangs", true, 0, 9)])), limits);
    let halt = MINUTE - 250 - 2000;
    let actions = drain.on(Event::Tick, at(halt));
    assert_eq!(aborts(&actions), ["s0", "s1"]);
    assert_eq!(stops(&actions), [("s2".into(), StopReason::Deadline)]);
    assert!(aborts(&drain.on(Event::Tick, at(halt + 1))).is_empty(), "once");
    let actions = drain.on(kept(1, Cause::Failed), at(halt + 2));
    assert_eq!(stops(&actions), [("s1".into(), StopReason::Deadline)]);
}

#[test]
fn a_breaker_that_tripped_stays_so() {
    let limits = Limits { max_concurrency: 3, stop_after_failures: 2, ..Limits::default() };
    let pods = vec![candidate("b", true, 0, 9), candidate("c", true, 0, 9)];
    let (mut drain, _) = start((0..4).map(job).collect(), Some(plan(pods)), limits);
    drain.on(kept(0, Cause::Failed), at(1));
    let actions = drain.on(kept(1, Cause::Failed), at(2));
    assert!(aborts(&actions).is_empty(), "what is under way may succeed");
    assert!(!stops(&actions).is_empty());
    let actions = drain.on(Event::HandoffEnded(uid(2), Ended::Moved), at(3));
    assert!(handoffs(&actions).is_empty());
}

#[test]
fn a_server_that_was_kept_goes_back_to_its_place() {
    let limits = Limits { max_concurrency: 1, gentle_stops: 1, stop_after_failures: 1, ..Limits::default() };
    let jobs = vec![job(0), Job { priority: 9, ..job(1) }, Job { priority: 5, ..job(2) }];
    let (mut drain, actions) = start(jobs, Some(plan(vec![candidate("b", true, 0, 9)])), limits);
    assert_eq!(handoffs(&actions)[0].0, "s1");
    let mut actions = drain.on(kept(1, Cause::Failed), at(1));
    let mut order = Vec::new();
    while let Some((server, _)) = stops(&actions).pop() {
        actions = drain.on(Event::StopEnded(ServerUid(server.clone()), true), at(2));
        order.push(server);
    }
    assert_eq!(order, ["s1", "s2", "s0"]);

    let limits = Limits { max_concurrency: 1, ..Limits::default() };
    let pods = vec![candidate("b", true, 0, 9), candidate("c", true, 0, 9)];
    let jobs = vec![job(0), Job { priority: -1, ..job(1) }, Job { priority: 1, ..job(2) }];
    let (mut drain, _) = start(jobs, Some(Plan { candidates: pods, more_expected: true }), limits);
    drain.on(Event::HandoffEnded(uid(2), Ended::Moved), at(1));
    drain.on(kept(0, Cause::Rejected), at(2));
    let actions = drain.on(kept(0, Cause::Rejected), at(3));
    assert_eq!(handoffs(&actions)[0].0, "s1", "who waits for another pod does not hold up the rest");
}

#[test]
fn a_host_that_does_not_give_one_state_is_no_reason_to_stop_the_others() {
    let limits = Limits { max_concurrency: 1, stop_after_failures: 1, ..Limits::default() };
    let (mut drain, _) = start((0..2).map(job).collect(), Some(plan(vec![candidate("b", true, 0, 9)])), limits);
    for ms in 1..3 {
        let actions = drain.on(kept(0, Cause::Host), at(ms));
        assert_eq!(handoffs(&actions)[0].0, "s0", "it may be busy");
    }
    let actions = drain.on(kept(0, Cause::Host), at(3));
    assert_eq!(stops(&actions), [("s0".into(), StopReason::HostFailed)]);
    assert_eq!(handoffs(&actions), [("s1".into(), "b".into())]);
}

#[test]
fn when_every_pod_is_full_the_rest_is_stopped_once_nothing_is_on_its_way() {
    let limits = Limits::default();
    let (mut drain, actions) = start((0..3).map(job).collect(), Some(plan(vec![candidate("b", true, 8, 9)])), limits);
    assert_eq!((handoffs(&actions).len(), stops(&actions).len()), (1, 0));
    // The one on its way may fail, and another have its place.
    let actions = drain.on(kept(0, Cause::Rejected), at(1001));
    assert_eq!(stops(&actions), [("s0".into(), StopReason::AllRejected)]);
    assert_eq!(handoffs(&actions), [("s1".into(), "b".into())]);
    let actions = drain.on(Event::Plan(plan(vec![candidate("b", true, 8, 9)])), at(1002));
    assert!(handoffs(&actions).is_empty(), "a new plan does not count what is on its way");
    let actions = drain.on(Event::HandoffEnded(uid(1), Ended::Moved), at(1003));
    assert_eq!(stops(&actions), [("s2".into(), StopReason::PodsFull)]);
}

#[test]
fn it_says_what_it_waits_for() {
    let hope = |candidates| Some(Plan { candidates, more_expected: true });
    let b = || candidate("b", true, 0, 9);
    let cases = [
        ("no plan, for a moment", None, None, None),
        ("no pod", hope(vec![]), None, Some(Blocked::NoTarget)),
        ("full", hope(vec![candidate("b", true, 9, 9)]), None, Some(Blocked::PodsFull)),
        ("moving", hope(vec![b()]), None, None),
        ("refused", hope(vec![b()]), Some(Cause::Rejected), Some(Blocked::AllRejected)),
        ("store", hope(vec![b()]), Some(Cause::StoreUnavailable), Some(Blocked::StoreUnavailable)),
        ("no hope", Some(plan(vec![])), None, None),
    ];
    for (name, standing, ended, blocked) in cases {
        let (mut drain, _) = start(vec![job(0)], standing, Limits::default());
        if let Some(cause) = ended {
            drain.on(kept(0, cause), at(1));
        }
        assert_eq!(drain.blocked(at(1)), blocked, "{name}");
    }
    let off = vec![Job { handoff: false, ..job(0) }];
    let (drain, _) = start(off, None, Limits::default());
    assert_eq!(drain.blocked(at(1)), None, "there is nothing to move");
}

#[test]
fn the_foremost_reason_is_the_commonest_that_nobody_chose() {
    let of = |reasons: &[(StopReason, usize)]| foremost(&reasons.iter().copied().collect());
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[(StopReason::HandoffOff, 9)]), Some(StopReason::HandoffOff));
    assert_eq!(of(&[(StopReason::HandoffOff, 9), (StopReason::NoTarget, 1)]), Some(StopReason::NoTarget));
    assert_eq!(of(&[(StopReason::Deadline, 2), (StopReason::NoTarget, 1)]), Some(StopReason::Deadline));
    for reason in StopReason::ALL {
        assert!(reason.sentence().len() > reason.name().len(), "{reason:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Handoff(usize, u8),
    Stop(usize, bool),
    Plan(u32, bool),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..8usize, 0..5u8).prop_map(|(server, how)| Step::Handoff(server, how)),
        2 => (0..8usize, any::<bool>()).prop_map(|(server, ok)| Step::Stop(server, ok)),
        1 => (0..3u32, any::<bool>()).prop_map(|(pods, hope)| Step::Plan(pods, hope)),
        1 => (0..2000u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens in whatever order: no server is moved and stopped at once, bounds hold, and once time is up
    /// and what was begun has ended, every server is accounted for exactly once.
    #[test]
    fn every_server_is_accounted_for_once(steps in prop::collection::vec(step(), 0..60)) {
        let limits = Limits { max_concurrency: 3, stop_concurrency: 2, gentle_stops: 2, ..Limits::default() };
        let (mut drain, first) = start((0..8).map(job).collect(), None, limits);
        let (mut moving, mut stopping) = (Vec::new(), Vec::new());
        let (mut now, mut summary) = (0, None);
        let mut take = |actions: Vec<Action>, moving: &mut Vec<ServerUid>, stopping: &mut Vec<ServerUid>| {
            for action in actions {
                match action {
                    Action::Handoff(server, _) => {
                        assert!(!moving.contains(&server) && !stopping.contains(&server));
                        moving.push(server);
                    }
                    Action::Stop(server, _) => {
                        assert!(!moving.contains(&server) && !stopping.contains(&server));
                        stopping.push(server);
                    }
                    Action::Done(done) => {
                        assert!(summary.is_none());
                        summary = Some(done);
                    }
                    Action::Abort(server) => assert!(moving.contains(&server)),
                    Action::Wake(_) => {}
                }
                assert!(moving.len() <= 3 && stopping.len() <= 2);
            }
        };
        take(first, &mut moving, &mut stopping);
        for step in steps {
            let event = match step {
                Step::Handoff(server, how) => {
                    let Some(at) = moving.iter().position(|moving| *moving == uid(server)) else { continue };
                    moving.remove(at);
                    Event::HandoffEnded(uid(server), match how {
                        0 | 1 => Ended::Moved,
                        2 => Ended::Kept(Cause::Rejected),
                        3 => Ended::Kept(Cause::Failed),
                        _ => Ended::Kept(Cause::StoreUnavailable),
                    })
                }
                Step::Stop(server, ok) => {
                    let Some(at) = stopping.iter().position(|stopping| *stopping == uid(server)) else { continue };
                    stopping.remove(at);
                    Event::StopEnded(uid(server), ok)
                }
                Step::Plan(pods, more_expected) => {
                    let candidates = (0..pods).map(|n| candidate(&format!("p{n}"), true, 0, 4)).collect();
                    Event::Plan(Plan { candidates, more_expected })
                }
                Step::Wait(ms) => {
                    now += ms;
                    Event::Tick
                }
            };
            let actions = drain.on(event, at(now));
            take(actions, &mut moving, &mut stopping);
        }
        while !moving.is_empty() || !stopping.is_empty() || drain.remaining() > 0 {
            now += MINUTE;
            let event = match (moving.pop(), stopping.is_empty()) {
                (Some(server), _) => Event::HandoffEnded(server, Ended::Moved),
                (None, false) => Event::StopEnded(stopping.remove(0), true),
                (None, true) => Event::Tick,
            };
            let actions = drain.on(event, at(now));
            take(actions, &mut moving, &mut stopping);
        }
        let summary = summary.expect("done");
        prop_assert_eq!(summary.moved + summary.stopped + summary.failed, 8);
    }
}
