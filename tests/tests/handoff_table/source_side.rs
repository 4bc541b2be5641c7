use handoff::source::{Action, Event, Outcome};

use super::{
    Cause, Final, GRANT, Grantee, HandoffId, Header, Kind, LATE, LIMITS, START, Sequence, Source, State, at, header,
    mark, state, why, writer,
};

/// The events that lead from each phase to the next, in a handoff in which nothing fails.
fn path() -> Vec<(&'static str, Vec<Event<u8>>)> {
    vec![
        ("offering", vec![]),
        ("preparing", vec![Event::Accepted(writer("b")), Event::Copied(state(1))]),
        ("granted", vec![Event::Granted(GRANT)]),
        ("queued", vec![Event::Ready]),
        ("freezing", vec![Event::FreezeTurn]),
        ("sent", vec![Event::Frozen(Final::State(state(2)))]),
        ("serving", vec![Event::Activated]),
        ("insuring", vec![Event::PeerLost]),
        ("waiting", vec![Event::InsureFailed]),
    ]
}

fn is_past_final(phase: &str) -> bool {
    ["sent", "serving", "insuring", "waiting"].contains(&phase)
}

/// The machine in a phase.
fn source_in(phase: &str) -> Source {
    let (mut source, _) = Source::start::<u8>(LIMITS, START);
    for (name, events) in path() {
        for event in events {
            source.on(event, START);
        }
        if name == phase {
            return source;
        }
    }
    panic!("no phase {phase}");
}

fn every_event() -> Vec<Event<u8>> {
    vec![
        Event::Accepted(writer("c")),
        Event::Rejected(why()),
        Event::Copied(state(9)),
        Event::CopyFailed(why()),
        Event::Granted(Sequence(9)),
        Event::GrantFailed(why()),
        Event::Fenced(header(Kind::Claim, 3, "c")),
        Event::Ready,
        Event::FreezeTurn,
        Event::Frozen(Final::State(state(9))),
        Event::FreezeFailed(why()),
        Event::Activated,
        Event::Durable(Sequence(8)),
        Event::Refused(why()),
        Event::PeerLost,
        Event::Insured(Sequence(8)),
        Event::InsureFailed,
        Event::Abort(why()),
        Event::Tick,
    ]
}

fn kept(cause: Cause, reason: &str, thaw: bool) -> Vec<Action<u8>> {
    let end = Action::End(Outcome::Kept { cause, reason: reason.into() });
    if thaw { vec![Action::Cancel, Action::Thaw, end] } else { vec![Action::Cancel, end] }
}

#[test]
fn all_goes_well() {
    let (mut source, actions) = Source::start::<u8>(LIMITS, START);
    assert_eq!(actions, [Action::SendOffer, Action::Wake(at(5))]);
    let last = Final::Unchanged(mark(1));
    let steps: Vec<(Event<u8>, Vec<Action<u8>>)> = vec![
        (Event::Accepted(writer("b")), vec![Action::Copy, Action::Grant(writer("b"))]),
        (Event::Copied(state(1)), vec![Action::SendWarm(state(1))]),
        (Event::Granted(GRANT), vec![]),
        (Event::Ready, vec![Action::WantFreeze]),
        (Event::FreezeTurn, vec![Action::Freeze { since: Some(mark(1)) }, Action::Wake(at(1))]),
        (Event::Frozen(last.clone()), vec![Action::SendFinal { grant: GRANT, last }, Action::Wake(at(2))]),
        (Event::Activated, vec![Action::Forward]),
        (Event::Durable(Sequence(8)), vec![Action::Forward, Action::Discard, Action::End(Outcome::Moved)]),
    ];
    for (event, actions) in steps {
        assert_eq!(source.on(event.clone(), START), actions, "{event:?}");
    }
    assert!(source.is_ended() && !source.is_past_final());
    assert_eq!(source.target(), Some(&writer("b")));
}

#[test]
fn ready_may_come_before_the_grant_is_durable() {
    let mut source = source_in("preparing");
    assert_eq!(source.on::<u8>(Event::Ready, START), []);
    assert_eq!(source.on::<u8>(Event::Granted(GRANT), START), [Action::WantFreeze]);
}

#[test]
fn what_fails_before_final_keeps_the_server() {
    for phase in ["offering", "preparing", "granted", "queued", "freezing"] {
        let thaw = phase == "freezing";
        let failures = [
            (Event::Rejected(why()), kept(Cause::Rejected, "why", thaw)),
            (Event::CopyFailed(why()), kept(Cause::Host, "why", thaw)),
            (Event::GrantFailed(why()), kept(Cause::StoreUnavailable, "why", thaw)),
            (Event::FreezeFailed(why()), kept(Cause::Host, "why", thaw)),
            (Event::Abort(why()), kept(Cause::Failed, "why", thaw)),
            (Event::PeerLost, kept(Cause::Failed, "the target's connection broke", thaw)),
        ];
        for (event, actions) in failures {
            let mut source = source_in(phase);
            assert_eq!(source.on(event.clone(), START), actions, "{event:?} when {phase}");
            assert!(source.is_ended(), "{event:?} when {phase}");
        }
    }
}

#[test]
fn what_takes_too_long_before_final_keeps_the_server() {
    let grant = "the Grant could not be written within perServerTimeout";
    let cases = [
        ("offering", 5, Cause::Failed, "the target did not answer the offer in time"),
        ("preparing", 5, Cause::Failed, "perServerTimeout passed"),
        ("granted", 5, Cause::Failed, "perServerTimeout passed"),
        ("queued", 5, Cause::Failed, "perServerTimeout passed"),
        ("freezing", 1, Cause::Host, "the host did not freeze within freezeTimeout"),
    ];
    for (phase, limit, cause, reason) in cases {
        let mut source = source_in(phase);
        assert_eq!(source.on::<u8>(Event::Tick, at(limit - 1)), [], "{phase}");
        assert_eq!(source.on(Event::Tick, at(limit)), kept(cause, reason, phase == "freezing"), "{phase}");
    }
    let mut ready = source_in("preparing");
    ready.on::<u8>(Event::Ready, START);
    assert_eq!(ready.on(Event::Tick, at(5)), kept(Cause::StoreUnavailable, grant, false));
}

#[test]
fn silence_after_final_is_insured_and_disclaimed() {
    for phase in ["sent", "serving"] {
        let mut source = source_in(phase);
        assert_eq!(source.on::<u8>(Event::Tick, at(1)), [], "{phase}");
        assert_eq!(source.on::<u8>(Event::Tick, at(2)), [Action::Insure], "{phase}");
        assert_eq!(source.on::<u8>(Event::Tick, LATE), [], "one insurance at a time, {phase}");
        assert_eq!(source.on::<u8>(Event::InsureFailed, at(2)), [Action::Wake(at(5))], "{phase}");
        assert_eq!(source.on::<u8>(Event::Tick, at(4)), [], "{phase}");
        assert_eq!(source.on::<u8>(Event::Tick, at(5)), [Action::Insure], "{phase}");
        let ends = [Action::Disclaim, Action::Discard, Action::End(Outcome::Disclaimed)];
        assert_eq!(source.on::<u8>(Event::Insured(Sequence(8)), at(5)), ends, "{phase}");
    }
}

#[test]
fn only_a_refusal_thaws_after_final() {
    for phase in ["sent", "insuring", "waiting"] {
        let actions = source_in(phase).on(Event::Refused(why()), START);
        assert_eq!(actions, kept(Cause::Failed, "why", true), "{phase}");
    }
    assert_eq!(source_in("serving").on::<u8>(Event::Refused(why()), START), [], "it serves there already");
}

#[test]
fn durable_ends_it_however_late() {
    for phase in ["sent", "serving", "insuring", "waiting"] {
        let actions = source_in(phase).on::<u8>(Event::Durable(Sequence(8)), LATE);
        assert_eq!(actions, [Action::Forward, Action::Discard, Action::End(Outcome::Moved)], "{phase}");
    }
}

#[test]
fn the_log_has_the_last_word() {
    let moved = [Action::Forward, Action::Discard, Action::End(Outcome::Moved)];
    let fenced = [Action::Cancel, Action::Discard, Action::End(Outcome::Fenced)];
    let grant = Kind::Grant(Grantee { to: writer("b"), handoff: HandoffId(1) });
    let found: [(Header, bool); 5] = [
        (header(Kind::Snapshot, 2, "b"), true),
        (header(Kind::Release, 2, "b"), true),
        (header(Kind::Claim, 3, "b"), false),
        (header(Kind::Snapshot, 2, "c"), false),
        (header(grant, 1, "b"), false),
    ];
    for (phase, _) in path() {
        for (header, by_grantee) in &found {
            let expected = if *by_grantee && is_past_final(phase) { &moved } else { &fenced };
            let mut source = source_in(phase);
            assert_eq!(source.on::<u8>(Event::Fenced(header.clone()), START), expected, "{header:?} when {phase}");
            assert!(source.is_ended());
        }
    }
}

/// Which events mean anything in a phase. `Tick` is early here.
fn means_something(phase: &str, event: &Event<u8>) -> bool {
    let before_final = !is_past_final(phase);
    match event {
        Event::Accepted(_) => phase == "offering",
        Event::Granted(_) => phase == "preparing",
        Event::Ready => ["preparing", "granted"].contains(&phase),
        Event::FreezeTurn => phase == "queued",
        Event::Frozen(_) => phase == "freezing",
        Event::Activated => phase == "sent",
        Event::Durable(_) => !before_final,
        Event::Refused(_) => !before_final && phase != "serving",
        Event::PeerLost => before_final || ["sent", "serving"].contains(&phase),
        Event::Insured(_) | Event::InsureFailed => ["insuring", "waiting"].contains(&phase),
        Event::Rejected(_)
        | Event::CopyFailed(_)
        | Event::GrantFailed(_)
        | Event::FreezeFailed(_)
        | Event::Abort(_) => before_final,
        Event::Fenced(_) => true,
        // The copy came already.
        Event::Copied(_) | Event::Tick => false,
    }
}

#[test]
fn late_and_doubled_events_do_nothing() {
    for (phase, _) in path() {
        let source = source_in(phase);
        for event in every_event() {
            let mut after = source.clone();
            let actions = after.on(event.clone(), START);
            let did = !actions.is_empty() || after != source;
            assert_eq!(did, means_something(phase, &event), "{event:?} when {phase}: {actions:?}");
        }
    }
}

#[test]
fn nothing_happens_after_the_end() {
    let ends: [(&str, Event<u8>); 5] = [
        ("sent", Event::Durable(Sequence(8))),
        ("insuring", Event::Insured(Sequence(8))),
        ("sent", Event::Refused(why())),
        ("freezing", Event::Abort(why())),
        ("queued", Event::Fenced(header(Kind::Claim, 3, "c"))),
    ];
    for (phase, end) in ends {
        let mut source = source_in(phase);
        source.on(end.clone(), START);
        for event in every_event() {
            assert_eq!(source.on(event.clone(), LATE), [], "{event:?} after {end:?}");
        }
    }
}

#[test]
fn the_final_state_is_the_frozen_one() {
    let last = Final::State(State { body: 5, ..state(2) });
    let actions = source_in("freezing").on(Event::Frozen(last.clone()), at(1));
    assert_eq!(actions, [Action::SendFinal { grant: GRANT, last }, Action::Wake(at(3))]);
}
