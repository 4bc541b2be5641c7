use super::*;

fn at(ms: u64) -> Instant {
    Instant(Duration::from_millis(ms))
}

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn drain() -> Drain {
    Drain::new(Key::new("ns", "rooms"), "rooms-1".into(), PodUid("u1".into()), at(0), wall(0))
}

fn report(phase: &str, moved: u32) -> DrainReport {
    DrainReport { phase: phase.into(), total: 10, moved, started_unix_ms: 1_000, ..DrainReport::default() }
}

#[test]
fn percentiles_are_nearest_rank_and_p99_needs_a_hundred() {
    assert_eq!(percentile(&[], 50), None);
    assert_eq!(percentile(&[7], 50), Some(7));
    let hundred: Vec<u64> = (1..=100).collect();
    assert_eq!((percentile(&hundred, 50), percentile(&hundred, 99)), (Some(50), Some(99)));
    for (n, p99) in [(99, None), (100, Some("99.0ms".to_owned()))] {
        let mut drain = drain();
        let gaps_us = (1..=n).map(|ms| ms * 1000).collect();
        drain.reported(DrainReport { gaps_us, ..report("Complete", 10) }, SessionId(1), wall(9));
        assert_eq!(drain.status().gap_p99, p99);
        assert_eq!(drain.status().gap_max, Some(format!("{n}.0ms")));
    }
}

#[test]
fn gaps_read_well() {
    for (us, expected) in [(0, "0.0ms"), (420, "0.4ms"), (4_210, "4.2ms"), (1_250_000, "1.25s")] {
        assert_eq!(text(us), expected);
    }
}

#[test]
fn phases_follow_the_reports() {
    let mut drain = drain();
    drain.reported(report("Running", 3), SessionId(1), wall(2));
    assert_eq!(drain.status().phase, Some(HandoffPhase::Running));
    drain.reported(DrainReport { blocked_by: "no pod is ready".into(), ..report("Blocked", 3) }, SessionId(1), wall(2));
    assert_eq!(
        (drain.status().phase, drain.status().blocked_by.as_deref()),
        (Some(HandoffPhase::Blocked), Some("no pod is ready"))
    );
    drain.reported(report("Complete", 10), SessionId(1), wall(5));
    let status = drain.status();
    assert_eq!((status.phase, status.completion_time), (Some(HandoffPhase::Complete), Some(Time(wall(5)))));
    assert_eq!(drain.waiting, Some(SessionId(1)));
    drain.died("too late to matter", wall(6));
    assert_eq!(drain.status().phase, Some(HandoffPhase::Complete));
}

#[test]
fn a_pod_that_dies_is_finished_from_what_it_told() {
    let mut drain = drain();
    drain.reported(report("Running", 1), SessionId(1), wall(2));
    for gap in [1_000, 3_000, 2_000] {
        drain.moved(true, gap);
    }
    drain.moved(false, 0);
    drain.died("the pod was gone before its drain ended", wall(7));
    let status = drain.status();
    assert_eq!((status.phase, status.moved, status.failed), (Some(HandoffPhase::Failed), 3, 7));
    assert_eq!((status.gap_p50.as_deref(), status.gap_max.as_deref()), (Some("2.0ms"), Some("3.0ms")));
    assert!(drain.summary().contains("the pod was gone"), "{}", drain.summary());
}

#[test]
fn servers_left_over_are_a_failure() {
    let mut drain = drain();
    let reasons = [("StoreUnavailable".to_owned(), 2)].into();
    drain.reported(DrainReport { failed: 2, reasons, ..report("Complete", 8) }, SessionId(1), wall(5));
    assert_eq!(drain.status().phase, Some(HandoffPhase::Failed));
    assert_eq!(drain.status().conditions[0].message, "StoreUnavailable 2");
}

#[test]
fn what_was_stopped_is_told_by_reason_and_as_a_sentence_also_once_it_is_over() {
    let mut drain = drain();
    let reasons = [("HandoffOff".to_owned(), 2), ("Deadline".to_owned(), 3)].into();
    let why = "the time for handoffs ran out";
    let over = DrainReport { stopped: 5, reasons, blocked_by: why.into(), ..report("Complete", 5) };
    drain.reported(over, SessionId(1), wall(5));
    let status = drain.status();
    assert_eq!((status.phase, status.blocked_by.as_deref()), (Some(HandoffPhase::Complete), Some(why)));
    assert_eq!(status.reasons, [("HandoffOff".to_owned(), 2), ("Deadline".to_owned(), 3)].into());
    assert!(
        drain.summary().ends_with("(Deadline 3, HandoffOff 2): the time for handoffs ran out"),
        "{}",
        drain.summary()
    );
    let mut running = self::drain();
    running.reported(DrainReport { blocked_by: why.into(), ..report("Running", 1) }, SessionId(1), wall(2));
    assert_eq!(running.status().phase, Some(HandoffPhase::Running), "others move still");
}

#[test]
fn status_is_paced_while_running_and_final_at_once() {
    let mut drain = drain();
    drain.reported(report("Running", 1), SessionId(1), wall(1));
    assert!(drain.due(at(0)));
    assert!(!drain.due(at(2_000)), "nothing new");
    drain.reported(report("Running", 2), SessionId(1), wall(1));
    assert!(drain.due(at(2_000)));
    drain.reported(report("Running", 3), SessionId(1), wall(1));
    assert!(!drain.due(at(2_500)));
    drain.reported(report("Complete", 10), SessionId(1), wall(1));
    assert!(drain.due(at(2_500)));
}

#[test]
fn the_trigger_is_waited_for_but_not_long() {
    let drain = drain();
    assert!(drain.can_be_made(true, at(0)));
    assert!(!drain.can_be_made(false, at(499)));
    assert!(drain.can_be_made(false, at(500)));
}

#[test]
fn triggers() {
    let pod = |deleting, disrupted| Pod { deleting, disrupted, ..Pod::default() };
    let cases = [
        (pod(true, false), false, false, false, Trigger::Rollout),
        (pod(true, false), false, true, false, Trigger::Rollout),
        (pod(true, false), true, true, false, Trigger::ScaleDown),
        (pod(true, true), true, false, false, Trigger::Eviction),
        (pod(true, true), true, false, true, Trigger::NodeDrain),
        (pod(true, false), true, false, true, Trigger::NodeDrain),
        (pod(true, false), true, false, false, Trigger::Deletion),
        (pod(false, false), true, false, false, Trigger::Shutdown),
    ];
    for (pod, newest, shrank, cordoned, expected) in cases {
        assert_eq!(trigger(Some(&pod), newest, shrank, cordoned), expected, "{pod:?}");
    }
    assert_eq!(trigger(None, true, false, false), Trigger::Shutdown);
}

#[test]
fn twenty_or_an_hour_are_kept() {
    let handoff = |age: i64, phase| HandoffObject {
        key: Key::new("ns", format!("h{age}")),
        pool: "rooms".into(),
        pod: "rooms-1".into(),
        pod_uid: PodUid::default(),
        trigger: Trigger::Rollout,
        phase: Some(phase),
        status: HandoffStatus::default(),
        created: Some(wall(10_000 - age)),
    };
    let young: Vec<_> = (0..30).map(|age| handoff(age, HandoffPhase::Complete)).collect();
    assert_eq!(superfluous(&young, wall(10_000)), []);
    let old: Vec<_> = (0..22).map(|age| handoff(4_000 + age, HandoffPhase::Failed)).collect();
    assert_eq!(superfluous(&old, wall(10_000)), [Key::new("ns", "h4020"), Key::new("ns", "h4021")]);
    let running: Vec<_> = (0..22).map(|age| handoff(4_000 + age, HandoffPhase::Running)).collect();
    assert_eq!(superfluous(&running, wall(10_000)), []);
}

#[test]
fn a_handoffs_name_is_always_the_same() {
    assert_eq!(name("rooms-1", &PodUid("u1".into())), name("rooms-1", &PodUid("u1".into())));
    assert_ne!(name("rooms-0", &PodUid("u1".into())), name("rooms-0", &PodUid("u2".into())));
    assert!(name(&"x".repeat(400), &PodUid("u".into())).len() <= 253);
}
