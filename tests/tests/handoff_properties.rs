//! What holds for the machines of a handoff whatever comes, in whatever order.

use std::time::Duration;

use handoff::{
    ids::{Epoch, Generation, Instant, PodUid, Sequence},
    log::{Header, Kind, Writer},
    source::{self, Final, Limits, Mark, Source, State},
    target::{self, Target},
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{RngSeed, TestRunner},
};

const RETRY: Duration = Duration::from_millis(500);
/// Later than any deadline.
const LATE: Instant = Instant(Duration::from_hours(1));

fn writer(pod: &str) -> Writer {
    Writer { pod: PodUid(pod.into()), generation: Generation(1) }
}

fn state(revision: u64) -> State<u8> {
    State { mark: Mark { instance: 1, revision, checksum: 0 }, version: 1, body: 0 }
}

fn any_header() -> impl Strategy<Value = Header> {
    let kind = prop_oneof![
        Just(Kind::Claim),
        Just(Kind::Snapshot),
        Just(Kind::Release),
        Just(Kind::Tombstone { delete: false })
    ];
    (kind, 1..4u64, prop_oneof![Just("a"), Just("b"), Just("c")]).prop_map(|(kind, epoch, pod)| Header {
        sequence: Sequence(5),
        epoch: Epoch(epoch),
        kind,
        writer: writer(pod),
        nonce: 1,
        state_at: Sequence(5),
        state_version: 1,
    })
}

fn any_final() -> impl Strategy<Value = Final<u8>> {
    (0..2u64, any::<bool>()).prop_map(|(revision, unchanged)| {
        if unchanged { Final::Unchanged(state(revision).mark) } else { Final::State(state(revision)) }
    })
}

fn source_event() -> impl Strategy<Value = source::Event<u8>> {
    use source::Event;
    prop_oneof![
        Just(Event::Accepted(writer("b"))),
        Just(Event::Copied(state(0))),
        Just(Event::Granted(Sequence(3))),
        Just(Event::Ready),
        Just(Event::FreezeTurn),
        any_final().prop_map(Event::Frozen),
        Just(Event::Activated),
        Just(Event::Refused(String::new())),
        Just(Event::PeerLost),
        Just(Event::Insured(Sequence(4))),
        Just(Event::InsureFailed),
        Just(Event::Tick),
        Just(Event::Durable(Sequence(4))),
        Just(Event::Rejected(String::new())),
        Just(Event::CopyFailed(String::new())),
        Just(Event::GrantFailed(String::new())),
        Just(Event::FreezeFailed(String::new())),
        Just(Event::Abort(String::new())),
        any_header().prop_map(Event::Fenced),
    ]
}

fn target_event() -> impl Strategy<Value = target::Event<u8>> {
    use target::Event;
    prop_oneof![
        (0..2u64).prop_map(|revision| Event::Warm(state(revision))),
        Just(Event::StandbyStarted),
        any_final().prop_map(|last| Event::Final { grant: Sequence(3), last }),
        Just(Event::Activated),
        Just(Event::Stopped),
        Just(Event::ActivateFailed(String::new())),
        Just(Event::StopFailed),
        Just(Event::AppendFailed),
        Just(Event::PeerLost),
        Just(Event::Tick),
        Just(Event::Appended(Sequence(4))),
        Just(Event::StandbyFailed(String::new())),
        Just(Event::Withdraw(String::new())),
        any_header().prop_map(Event::Fenced),
    ]
}

fn source_events() -> impl Strategy<Value = Vec<(source::Event<u8>, Instant)>> {
    use source::Event;
    let path = vec![
        Event::Accepted(writer("b")),
        Event::Copied(state(0)),
        Event::Granted(Sequence(3)),
        Event::Ready,
        Event::FreezeTurn,
        Event::Frozen(Final::State(state(1))),
    ];
    let moves = [path.clone(), vec![Event::Activated]].concat();
    let insures = [path, vec![Event::PeerLost, Event::Insured(Sequence(4))]].concat();
    events(vec![moves, insures], source_event)
}

fn target_events() -> impl Strategy<Value = Vec<(target::Event<u8>, Instant)>> {
    use target::Event;
    let last = Event::Final { grant: Sequence(3), last: Final::Unchanged(state(0).mark) };
    let path = vec![Event::Warm(state(0)), Event::StandbyStarted, last];
    let fails = [path.clone(), vec![Event::ActivateFailed(String::new()), Event::PeerLost, Event::Stopped]].concat();
    let serves = [path, vec![Event::Activated]].concat();
    events(vec![serves, fails], target_event)
}

/// Some way along one of the paths with one thing in between, then anything, each a while after the one before: events
/// without any order would seldom get far.
fn events<E, S>(paths: Vec<Vec<E>>, one: impl Fn() -> S) -> impl Strategy<Value = Vec<(E, Instant)>>
where
    E: Clone + std::fmt::Debug + 'static,
    S: Strategy<Value = E>,
{
    let way = (proptest::sample::select(paths), 0..10usize)
        .prop_map(|(path, steps)| path.into_iter().take(steps).collect::<Vec<E>>());
    let between = proptest::option::of((any::<proptest::sample::Index>(), one()));
    let after = proptest::collection::vec((one(), 0..1500u64), 0..12);
    (way, between, after).prop_map(|(mut way, between, after)| {
        if let Some((place, event)) = between {
            way.insert(place.index(way.len() + 1), event);
        }
        let mut now = Instant::default();
        let mut later = |(event, millis)| {
            now = now + Duration::from_millis(millis);
            (event, now)
        };
        way.into_iter().map(|event| (event, 50)).chain(after).map(&mut later).collect()
    })
}

/// The actions, and after which event each was taken.
struct Trace<E, A>(Vec<(E, A)>);

impl<E, A: PartialEq> Trace<E, A> {
    fn count(&self, is: impl Fn(&A) -> bool) -> usize {
        self.0.iter().filter(|(_, action)| is(action)).count()
    }

    fn first(&self, is: impl Fn(&A) -> bool) -> Option<usize> {
        self.0.iter().position(|(_, action)| is(action))
    }

    /// Wherever one of these is, one of the others was before.
    fn follows(&self, these: impl Fn(&A) -> bool, others: impl Fn(&A) -> bool) -> bool {
        self.first(these).is_none_or(|place| self.first(others).is_some_and(|before| before < place))
    }
}

fn run_source(events: &[(source::Event<u8>, Instant)]) -> (Source, Trace<source::Event<u8>, source::Action<u8>>) {
    let (mut source, _) = Source::start::<u8>(Limits::default(), Instant::default());
    let mut trace = Vec::new();
    for (event, now) in events {
        let actions = source.on(event.clone(), *now);
        trace.extend(actions.into_iter().map(|action| (event.clone(), action)));
    }
    (source, Trace(trace))
}

fn run_target(events: &[(target::Event<u8>, Instant)]) -> (Target<u8>, Trace<target::Event<u8>, target::Action<u8>>) {
    let (mut target, _) = Target::accept(Instant::default(), Duration::from_secs(8), RETRY);
    let mut trace = Vec::new();
    for (event, now) in events {
        let actions = target.on(event.clone(), *now);
        trace.extend(actions.into_iter().map(|action| (event.clone(), action)));
    }
    (target, Trace(trace))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, rng_seed: RngSeed::Fixed(3), ..ProptestConfig::default() })]

    #[test]
    fn final_follows_the_grant_and_is_sent_once(events in source_events()) {
        use source::{Action, Event};
        let (_, trace) = run_source(&events);
        let is_final = |action: &Action<u8>| matches!(action, Action::SendFinal { .. });
        prop_assert!(trace.count(is_final) <= 1);
        let is_freeze = |action: &Action<u8>| matches!(action, Action::Freeze { .. });
        prop_assert!(trace.follows(is_final, is_freeze));
        prop_assert!(trace.follows(is_final, |action| matches!(action, Action::Grant(_))));
        if trace.count(is_final) == 1 {
            prop_assert!(events.iter().any(|(event, _)| matches!(event, Event::Granted(_))));
            prop_assert!(events.iter().any(|(event, _)| matches!(event, Event::Ready)));
        }
    }

    #[test]
    fn after_final_only_a_refusal_thaws(events in source_events()) {
        use source::{Action, Event};
        let (_, trace) = run_source(&events);
        let sent = trace.first(|action| matches!(action, Action::SendFinal { .. }));
        for (place, (event, action)) in trace.0.iter().enumerate() {
            if *action == Action::Thaw && sent.is_some_and(|sent| sent < place) {
                prop_assert!(matches!(event, Event::Refused(_)), "thawed by {event:?}");
            }
        }
        let is_freeze = |action: &Action<u8>| matches!(action, Action::Freeze { .. });
        prop_assert!(trace.follows(|action| *action == Action::Thaw, is_freeze));
    }

    #[test]
    fn a_source_ends_once_and_is_silent_then(events in source_events()) {
        use source::Action;
        let (source, trace) = run_source(&events);
        let ends = trace.count(|action| matches!(action, Action::End(_)));
        prop_assert_eq!(ends, usize::from(source.is_ended()));
        if source.is_ended() {
            prop_assert!(matches!(trace.0.last(), Some((_, Action::End(_)))));
        }
    }

    /// It forgets the state only when the target has it for good, the log has it, or the log says that it is void.
    #[test]
    fn a_source_keeps_the_state_until_it_is_safe(events in source_events()) {
        use source::{Action, Event};
        let (_, trace) = run_source(&events);
        for (event, action) in &trace.0 {
            match action {
                Action::Discard => {
                    let safe = matches!(event, Event::Durable(_) | Event::Insured(_) | Event::Fenced(_));
                    prop_assert!(safe, "discarded by {event:?}");
                }
                Action::Disclaim => prop_assert!(matches!(event, Event::Insured(_)), "disclaimed by {event:?}"),
                _ => {}
            }
        }
        let is_insured = |action: &Action<u8>| *action == Action::Disclaim;
        prop_assert!(trace.follows(is_insured, |action| *action == Action::Insure));
        let is_final = |action: &Action<u8>| matches!(action, Action::SendFinal { .. });
        prop_assert!(trace.follows(|action| *action == Action::Insure, is_final));
    }

    /// Time and a store that can be written are enough, wherever it is.
    #[test]
    fn a_source_always_comes_to_an_end(events in source_events()) {
        let (mut source, _) = run_source(&events);
        source.on::<u8>(source::Event::Tick, LATE);
        source.on::<u8>(source::Event::Insured(Sequence(4)), LATE);
        prop_assert!(source.is_ended(), "{source:?}");
    }

    #[test]
    fn a_target_activates_once_and_after_final(events in target_events()) {
        use target::{Action, Event};
        let (_, trace) = run_target(&events);
        let is_activate = |action: &Action<u8>| matches!(action, Action::Activate(_));
        prop_assert!(trace.count(is_activate) <= 1);
        prop_assert!(trace.count(|action| *action == Action::Serve) <= 1);
        prop_assert!(trace.follows(|action| *action == Action::Serve, is_activate));
        for (event, action) in &trace.0 {
            if is_activate(action) {
                prop_assert!(matches!(event, Event::Final { .. }), "activated by {event:?}");
            }
        }
    }

    #[test]
    fn a_target_that_refused_never_serves(events in target_events()) {
        use target::Action;
        let (_, trace) = run_target(&events);
        let no = |action: &Action<u8>| matches!(action, Action::SendRefused(_) | Action::SendReject(_));
        let yes = |action: &Action<u8>| {
            matches!(action, Action::Serve | Action::Append { .. } | Action::SendDurable(_))
        };
        prop_assert!(trace.first(no).is_none() || trace.first(yes).is_none());
        let activated = trace.first(|action| matches!(action, Action::Activate(_)));
        let refused = trace.first(no);
        if let (Some(activated), Some(refused)) = (activated, refused) {
            prop_assert!(activated < refused, "activated after it had refused");
            let stopped = trace.first(|action| *action == Action::Stop);
            prop_assert!(stopped.is_some_and(|stopped| stopped < refused), "refused without having stopped the host");
        }
    }

    #[test]
    fn a_target_has_one_append_under_way(events in target_events()) {
        use target::{Action, Event};
        let (mut target, _) = Target::accept(Instant::default(), Duration::from_secs(8), RETRY);
        let mut under_way = false;
        for (event, now) in events {
            if event == Event::AppendFailed {
                under_way = false;
            }
            for action in target.on(event, now) {
                if let Action::Append { release, .. } = action {
                    prop_assert!(!under_way);
                    prop_assert_eq!(release, !target.is_serving());
                    under_way = true;
                }
            }
        }
    }

    #[test]
    fn a_target_ends_once_and_then_only_refuses(events in target_events()) {
        use target::Action;
        let (target, trace) = run_target(&events);
        let end = trace.first(|action| matches!(action, Action::End(_)));
        prop_assert_eq!(end.is_some(), target.is_ended());
        for (_, action) in trace.0.iter().skip(end.map_or(trace.0.len(), |end| end + 1)) {
            prop_assert!(matches!(action, Action::SendRefused(_)), "{action:?} after the end");
        }
    }

    /// A host that answers, a store that can be written and time are enough, wherever it is.
    #[test]
    fn a_target_always_comes_to_an_end(events in target_events()) {
        use target::Event;
        let (mut target, _) = run_target(&events);
        for event in [Event::Tick, Event::Activated, Event::Stopped, Event::Appended(Sequence(4))] {
            target.on(event, LATE);
        }
        prop_assert!(target.is_ended(), "{target:?}");
    }
}

/// The share of sequences in which this happens, in percent.
fn share<E: std::fmt::Debug>(events: impl Strategy<Value = E>, happens: impl Fn(&E) -> bool) -> usize {
    let mut runner = TestRunner::deterministic();
    let happened = (0..1000).filter_map(|_| events.new_tree(&mut runner).ok()).filter(|tree| happens(&tree.current()));
    happened.count() / 10
}

/// Properties of sequences that never get anywhere would say little.
#[test]
fn the_sequences_get_far() {
    let sent = |action: &source::Action<u8>| matches!(action, source::Action::SendFinal { .. });
    let insured = |action: &source::Action<u8>| *action == source::Action::Disclaim;
    let thawed = |action: &source::Action<u8>| *action == source::Action::Thaw;
    let served = |action: &target::Action<u8>| *action == target::Action::Serve;
    let refused = |action: &target::Action<u8>| matches!(action, target::Action::SendRefused(_));
    let released = |action: &target::Action<u8>| matches!(action, target::Action::Append { release: true, .. });
    let shares = [
        share(source_events(), |events| run_source(events).1.count(sent) > 0),
        share(source_events(), |events| run_source(events).1.count(insured) > 0),
        share(source_events(), |events| run_source(events).1.count(thawed) > 0),
        share(target_events(), |events| run_target(events).1.count(served) > 0),
        share(target_events(), |events| run_target(events).1.count(refused) > 0),
        share(target_events(), |events| run_target(events).1.count(released) > 0),
    ];
    println!("sent, insured, thawed; served, refused, released, in percent: {shares:?}");
    assert!(shares.iter().all(|share| *share > 0) && shares[0] > 15 && shares[3] > 15, "{shares:?}");
}
