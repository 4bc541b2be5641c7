use handoff::target::{Action, Event, Outcome};

use super::{Final, GRANT, Kind, LATE, LIMITS, Mark, PATIENCE, START, Sequence, Target, at, header, mark, state, why};

const PHASES: [&str; 9] =
    ["reserved", "starting", "standby", "activating", "writing", "unwritten", "stopping", "releasing", "unreleased"];

fn last() -> Event<u8> {
    Event::Final { grant: GRANT, last: Final::State(state(2)) }
}

fn warm() -> Event<u8> {
    Event::Warm(state(1))
}

fn target_after(events: Vec<Event<u8>>) -> Target<u8> {
    let (mut target, _) = Target::accept(START, PATIENCE, LIMITS.retry);
    for event in events {
        target.on(event, START);
    }
    target
}

/// The machine in a phase.
fn target_in(phase: &str) -> Target<u8> {
    let standby = || vec![warm(), Event::StandbyStarted];
    let activating = || [standby(), vec![last()]].concat();
    let stopping = || [activating(), vec![Event::ActivateFailed(why())]].concat();
    let releasing = || [stopping(), vec![Event::PeerLost, Event::Stopped]].concat();
    target_after(match phase {
        "reserved" => vec![],
        "starting" => vec![warm()],
        "standby" => standby(),
        "activating" => activating(),
        "writing" => [activating(), vec![Event::Activated]].concat(),
        "unwritten" => [activating(), vec![Event::Activated, Event::AppendFailed]].concat(),
        "stopping" => stopping(),
        "releasing" => releasing(),
        "unreleased" => [releasing(), vec![Event::AppendFailed]].concat(),
        _ => panic!("no phase {phase}"),
    })
}

fn every_event() -> Vec<Event<u8>> {
    vec![
        warm(),
        Event::StandbyStarted,
        Event::StandbyFailed(why()),
        last(),
        Event::Activated,
        Event::ActivateFailed(why()),
        Event::Stopped,
        Event::StopFailed,
        Event::Appended(Sequence(8)),
        Event::Fenced(header(Kind::Claim, 4, "c")),
        Event::AppendFailed,
        Event::PeerLost,
        Event::Withdraw(why()),
        Event::Tick,
    ]
}

fn append(release: bool) -> Action<u8> {
    Action::Append { after: GRANT, state: state(2), release }
}

fn aborted(reason: &str) -> Action<u8> {
    Action::End(Outcome::Aborted(reason.into()))
}

#[test]
fn all_goes_well() {
    let (mut target, actions) = Target::accept(START, PATIENCE, LIMITS.retry);
    assert_eq!(actions, [Action::SendAccept, Action::Wake(at(8))]);
    let steps: Vec<(Event<u8>, Vec<Action<u8>>)> = vec![
        (warm(), vec![Action::StartStandby(state(1))]),
        (Event::StandbyStarted, vec![Action::SendReady]),
        (last(), vec![Action::Activate(Final::State(state(2)))]),
        (Event::Activated, vec![Action::Serve, append(false)]),
        (
            Event::Appended(Sequence(8)),
            vec![Action::SendDurable(Sequence(8)), Action::End(Outcome::Serving(Sequence(8)))],
        ),
    ];
    for (event, actions) in steps {
        assert_eq!(target.on(event.clone(), START), actions, "{event:?}");
        assert_eq!(target.is_serving(), event == Event::Activated, "{event:?}");
    }
    assert!(target.is_ended());
}

#[test]
fn an_unchanged_state_is_the_warm_copy() {
    let mut target = target_in("standby");
    let last = Final::Unchanged(mark(1));
    let actions = target.on(Event::Final { grant: GRANT, last: last.clone() }, START);
    assert_eq!(actions, [Action::Activate(last)]);
    let first = Action::Append { after: GRANT, state: state(1), release: false };
    assert_eq!(target.on(Event::Activated, START), [Action::Serve, first]);
}

#[test]
fn another_state_than_the_warm_copy_is_refused() {
    let others = [Mark { instance: 2, ..mark(1) }, Mark { revision: 2, ..mark(1) }, Mark { checksum: 2, ..mark(1) }];
    for other in others {
        let mut target = target_in("standby");
        let actions = target.on(Event::Final { grant: GRANT, last: Final::Unchanged(other) }, START);
        let reason = "the standby is not of the state that Final names";
        assert_eq!(actions, [Action::Stop, Action::SendRefused(reason.into()), aborted(reason)], "{other:?}");
    }
}

#[test]
fn what_fails_before_final_gives_the_slot_back() {
    let mut starting = target_in("starting");
    let rejected = [Action::SendReject(why()), Action::Stop, aborted("why")];
    assert_eq!(starting.on(Event::StandbyFailed(why()), START), rejected);
    for phase in ["reserved", "starting", "standby"] {
        let mut target = target_in(phase);
        assert_eq!(target.on(Event::Tick, at(7)), [], "{phase}");
        let reason = "no Final came in time";
        let rejected = [Action::SendReject(reason.into()), Action::Stop, aborted(reason)];
        assert_eq!(target.on(Event::Tick, at(8)), rejected, "{phase}");
        let lost = [Action::Stop, aborted("the source gave up")];
        assert_eq!(target_in(phase).on(Event::PeerLost, START), lost, "{phase}");
        let withdrawn = [Action::Stop, aborted("why")];
        assert_eq!(target_in(phase).on(Event::Withdraw(why()), START), withdrawn, "{phase}");
    }
}

#[test]
fn a_final_that_crosses_a_rejection_is_refused() {
    let mut target = target_in("starting");
    target.on(Event::StandbyFailed(why()), START);
    for _ in 0..2 {
        let refused = [Action::SendRefused("the standby was given up".into())];
        assert_eq!(target.on(last(), LATE), refused);
    }
}

#[test]
fn a_final_without_a_standby_is_refused() {
    for phase in ["reserved", "starting"] {
        let reason = "the standby is gone";
        let refused = [Action::Stop, Action::SendRefused(reason.into()), aborted(reason)];
        assert_eq!(target_in(phase).on(last(), START), refused, "{phase}");
    }
}

/// The operator may have had this pod serve by the log since: a thaw at the source would be a second server.
#[test]
fn a_final_after_a_withdrawal_is_ignored() {
    let mut target = target_in("standby");
    target.on(Event::Withdraw(why()), START);
    assert_eq!(target.on(last(), START), []);
}

#[test]
fn a_failed_activation_is_stopped_then_refused() {
    let mut target = target_in("activating");
    assert_eq!(target.on(Event::ActivateFailed(why()), START), [Action::Stop]);
    assert_eq!(target.on(Event::StopFailed, START), [Action::Wake(at(3))]);
    assert_eq!(target.on(Event::Tick, at(2)), []);
    assert_eq!(target.on(Event::Tick, at(3)), [Action::Stop]);
    assert_eq!(target.on(Event::Stopped, at(3)), [Action::SendRefused(why()), aborted("why")]);
}

#[test]
fn a_failed_activation_without_a_source_is_released() {
    let mut target = target_in("stopping");
    assert_eq!(target.on(Event::PeerLost, START), []);
    assert_eq!(target.on(Event::Stopped, START), [append(true)]);
    assert_eq!(target.on(Event::AppendFailed, START), [Action::Wake(at(3))]);
    assert_eq!(target.on(Event::Tick, at(3)), [append(true)]);
    assert_eq!(target.on(Event::Appended(Sequence(8)), at(3)), [Action::End(Outcome::Released)]);
}

#[test]
fn the_first_record_is_tried_until_it_is_written() {
    let mut target = target_in("writing");
    for _ in 0..3 {
        assert_eq!(target.on(Event::Tick, LATE), [], "one append at a time");
        assert_eq!(target.on(Event::AppendFailed, START), [Action::Wake(at(3))]);
        assert!(target.is_serving(), "it owns the server by the Grant");
        assert_eq!(target.on(Event::Tick, at(2)), []);
        assert_eq!(target.on(Event::Tick, at(3)), [append(false)]);
    }
}

#[test]
fn who_is_fenced_stops() {
    let header = header(Kind::Claim, 4, "c");
    for phase in ["writing", "unwritten", "releasing", "unreleased"] {
        let actions = target_in(phase).on(Event::Fenced(header.clone()), START);
        assert_eq!(actions, [Action::Stop, Action::End(Outcome::Fenced(header.clone()))], "{phase}");
    }
}

/// Which events mean anything in a phase. `Tick` is early here.
fn means_something(phase: &str, event: &Event<u8>) -> bool {
    let before_final = ["reserved", "starting", "standby"].contains(&phase);
    let appends = ["writing", "unwritten", "releasing", "unreleased"].contains(&phase);
    match event {
        Event::Warm(_) => phase == "reserved",
        Event::StandbyStarted | Event::StandbyFailed(_) => phase == "starting",
        Event::Final { .. } | Event::Withdraw(_) => before_final,
        Event::Activated | Event::ActivateFailed(_) => phase == "activating",
        Event::Stopped | Event::StopFailed => phase == "stopping",
        Event::Appended(_) | Event::Fenced(_) | Event::AppendFailed => appends,
        // Remembered; the way to a release has it already.
        Event::PeerLost => !["releasing", "unreleased"].contains(&phase),
        Event::Tick => false,
    }
}

#[test]
fn late_and_doubled_events_do_nothing() {
    for phase in PHASES {
        let target = target_in(phase);
        for event in every_event() {
            let mut after = target.clone();
            let actions = after.on(event.clone(), START);
            let did = !actions.is_empty() || after != target;
            assert_eq!(did, means_something(phase, &event), "{event:?} when {phase}: {actions:?}");
        }
    }
}

#[test]
fn nothing_happens_after_the_end() {
    let ends: [(&str, Event<u8>); 4] = [
        ("writing", Event::Appended(Sequence(8))),
        ("releasing", Event::Appended(Sequence(8))),
        ("stopping", Event::Stopped),
        ("writing", Event::Fenced(header(Kind::Claim, 4, "c"))),
    ];
    for (phase, end) in ends {
        let mut target = target_in(phase);
        target.on(end.clone(), START);
        for event in every_event() {
            assert_eq!(target.on(event.clone(), LATE), [], "{event:?} after {end:?}");
        }
    }
}
