use std::time::Duration;

use handoff::{Epoch, Instant, PodUid};

use super::*;
use crate::ownership::Outstanding;

fn wall(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn held(phase: session::Phase) -> Held {
    Held {
        phase: phase.into(),
        sequence: 5,
        state_bytes: 9,
        durable: true,
        last_sync_unix_ms: 1_000,
        ..Held::default()
    }
}

fn facts<'a>(ownership: &'a Ownership, previous: &'a DurableServerStatus) -> ServerFacts<'a> {
    ServerFacts {
        generation: 2,
        refused: None,
        poolless: None,
        stopped: false,
        ownership,
        pod: Some(("rooms-1", "u1", "node-a")),
        held: None,
        silent: false,
        unplaced: None,
        topology: Vec::new(),
        wish: None,
        unmet: None,
        last_handoff: None,
        previous,
        now: wall(100),
    }
}

fn owned(standing: Standing) -> Ownership {
    Ownership { epoch: Epoch(3), owner: Some(PodUid("u1".into())), standing, ..Ownership::default() }
}

fn word<'a>(status: &'a DurableServerStatus, kind: &str) -> (&'a str, &'a str) {
    let condition = find(&status.conditions, kind).unwrap();
    (condition.status.as_str(), condition.reason.as_str())
}

#[test]
fn phases() {
    let fresh = DurableServerStatus::default();
    let was_running = DurableServerStatus { phase: Some(Phase::Running), ..DurableServerStatus::default() };
    let waiting = Outstanding { id: 1, to: PodUid("u1".into()), since: Instant(Duration::ZERO) };
    let fatal = Trouble { reason: Reason::Corrupt, message: "m".into(), fatal: true };
    let active = held(session::Phase::Active);
    let moving = held(session::Phase::HandingOff);
    let (held_, unheard, over) = (owned(Standing::Held), owned(Standing::Unheard), owned(Standing::Over));
    let starting = Ownership { outstanding: Some(waiting), ..owned(Standing::Over) };
    let failed = Ownership { trouble: Some(fatal), ..owned(Standing::Over) };
    let cases = [
        ("running", ServerFacts { held: Some(&active), ..facts(&held_, &fresh) }, Phase::Running, true),
        ("moving", ServerFacts { held: Some(&moving), ..facts(&held_, &fresh) }, Phase::HandingOff, true),
        ("assigned", facts(&starting, &fresh), Phase::Starting, true),
        ("silent", facts(&unheard, &was_running), Phase::Running, true),
        ("silent, its pod gone", ServerFacts { pod: None, ..facts(&unheard, &was_running) }, Phase::Pending, false),
        ("nobody's", facts(&over, &was_running), Phase::Pending, false),
        ("stopped for good", ServerFacts { stopped: true, ..facts(&over, &was_running) }, Phase::Stopped, false),
        ("corrupt", facts(&failed, &was_running), Phase::Failed, false),
    ];
    for (name, facts, phase, pod) in cases {
        let status = facts.status();
        assert_eq!((status.phase, status.pod.is_some()), (Some(phase), pod), "{name}");
        assert_eq!(status.epoch, Some(3), "{name}");
    }
}

#[test]
fn conditions_say_why_and_keep_their_time() {
    let ownership = owned(Standing::Over);
    let fresh = DurableServerStatus::default();
    let none = Trouble { reason: Reason::NoEligiblePod, message: "no pod is ready".into(), fatal: false };
    let first = ServerFacts { unplaced: Some(&none), ..facts(&ownership, &fresh) }.status();
    assert_eq!(word(&first, condition::PLACED), ("False", "NoEligiblePod"));
    assert_eq!(word(&first, condition::READY), ("False", "Pending"));
    let later = ServerFacts { now: wall(200), unplaced: Some(&none), ..facts(&ownership, &first) }.status();
    assert_eq!(later, first, "nothing changed, so nothing is written");

    let ownership = owned(Standing::Held);
    let failing = Held { error: "503".into(), ..held(session::Phase::Active) };
    let running = ServerFacts { now: wall(300), held: Some(&failing), ..facts(&ownership, &first) }.status();
    assert_eq!(word(&running, condition::DURABLE), ("False", "SyncFailed"));
    assert_eq!(word(&running, condition::READY), ("True", "Serving"));
    assert_eq!(find(&running.conditions, condition::READY).unwrap().last_transition_time, Time(wall(300)));
    let silent = ServerFacts { silent: true, ..facts(&ownership, &running) }.status();
    assert_eq!(word(&silent, condition::READY), ("Unknown", "AgentSilent"));
    assert_eq!(word(&silent, condition::DURABLE), ("False", "SyncFailed"), "the last word stands");
}

#[test]
fn without_its_pool_a_server_says_so_whether_it_serves_or_not() {
    let fresh = DurableServerStatus::default();
    let active = held(session::Phase::Active);
    let (serving, waiting) = (owned(Standing::Held), Ownership::default());
    let serves = ServerFacts { held: Some(&active), poolless: Some("rooms"), ..facts(&serving, &fresh) }.status();
    assert_eq!(word(&serves, condition::ACCEPTED), ("False", "NoPool"));
    assert_eq!(word(&serves, condition::READY), ("True", "Serving"));
    let message = |status: &DurableServerStatus| find(&status.conditions, condition::ACCEPTED).unwrap().message.clone();
    assert!(message(&serves).contains("it serves on where it is"), "{}", message(&serves));
    let waits = ServerFacts { pod: None, poolless: Some("rooms"), ..facts(&waiting, &fresh) }.status();
    assert!(message(&waits).contains("DurableServerPool rooms"), "{}", message(&waits));
}

#[test]
fn syncs_alone_are_no_news() {
    let ownership = owned(Standing::Held);
    let fresh = DurableServerStatus::default();
    let (one, two) = (held(session::Phase::Active), Held { sequence: 6, ..held(session::Phase::Active) });
    let one = ServerFacts { held: Some(&one), ..facts(&ownership, &fresh) }.status();
    let two = ServerFacts { held: Some(&two), ..facts(&ownership, &one) }.status();
    assert_ne!(one, two);
    assert!(!differs(&one, &two));
    assert!(differs(&one, &fresh));
}

#[test]
fn a_patch_takes_out_what_is_absent() {
    let last = LastHandoff {
        from: "a".into(),
        to: None,
        gap: None,
        result: crds::HandoffOutcome::Failed,
        reason: None,
        time: Time(wall(1)),
    };
    let patch = server_patch(&DurableServerStatus { last_handoff: Some(last), ..DurableServerStatus::default() });
    for path in ["pod", "podUID", "epoch", "lastSync", "lastHandoff/to", "lastHandoff/gap", "conditions"] {
        assert_eq!(patch.pointer(&format!("/status/{path}")), Some(&Value::Null), "{path}");
    }
}

#[test]
fn every_field_that_may_be_absent_is_listed() {
    let keys = |value: Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let some = Some("x".to_owned());
    let time = Some(Time(wall(1)));
    let conditions = vec![stamped(&[], 1, wall(1), ("t", "True", Reason::Valid, ""))];
    let last_handoff = LastHandoff {
        from: "a".into(),
        to: some.clone(),
        gap: some.clone(),
        result: crds::HandoffOutcome::Moved,
        reason: some.clone(),
        time: Time(wall(1)),
    };
    let server = DurableServerStatus {
        observed_generation: Some(1),
        phase: Some(Phase::Running),
        pod: some.clone(),
        pod_uid: some.clone(),
        node: some.clone(),
        epoch: Some(1),
        sequence: Some(1),
        state_bytes: Some(1),
        last_sync: time.clone(),
        last_handoff: Some(last_handoff.clone()),
        topology: vec![NodeLabel::default()],
        conditions: conditions.clone(),
    };
    let handoff = crds::HandoffStatus {
        phase: Some(crds::HandoffPhase::Running),
        gap_p50: some.clone(),
        gap_p99: some.clone(),
        gap_max: some.clone(),
        start_time: time.clone(),
        completion_time: time,
        reasons: [("Deadline".to_owned(), 1)].into(),
        blocked_by: some,
        conditions: conditions.clone(),
        ..crds::HandoffStatus::default()
    };
    let pool =
        DurableServerPoolStatus { observed_generation: Some(1), conditions, ..DurableServerPoolStatus::default() };
    let cases = [
        (keys(serde_json::to_value(server).unwrap()), SERVER, &[][..]),
        (keys(serde_json::to_value(last_handoff).unwrap()), LAST_HANDOFF, &["from", "result", "time"]),
        (keys(serde_json::to_value(handoff).unwrap()), HANDOFF, &["total", "moved", "stopped", "failed"]),
        (keys(serde_json::to_value(pool).unwrap()), POOL, &["servers", "running", "pods", "leaving"]),
    ];
    for (mut keys, optional, always) in cases {
        keys.sort();
        let mut listed: Vec<&str> = optional.iter().chain(always).copied().collect();
        listed.sort_unstable();
        assert_eq!(keys, listed);
    }
}

#[test]
fn a_pool_says_what_it_lacks() {
    let previous = DurableServerPoolStatus::default();
    let denied = Problem { reason: Reason::StoreDenied, message: "pod rooms-1 cannot host: no access".into() };
    let facts = |eligible, pods, problem| PoolFacts {
        leaving: 0,
        generation: 1,
        refused: None,
        servers: 3,
        running: 1,
        pods,
        eligible,
        problem,
        previous: &previous,
        now: wall(1),
    };
    let cases = [
        (0, 0, None, "False", "NoPods"),
        (0, 2, None, "False", "NoEligiblePod"),
        (0, 2, Some(&denied), "False", "StoreDenied"),
        (1, 2, Some(&denied), "True", "SomePodsCannotHost"),
        (1, 2, None, "True", "PodsCanHost"),
    ];
    for (eligible, pods, problem, status_word, reason) in cases {
        let status = facts(eligible, pods, problem).status();
        let ready = find(&status.conditions, condition::READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), (status_word, reason));
        assert!(problem.is_none_or(|problem| ready.message == problem.message));
        assert_eq!((status.servers, status.running, status.pods), (3, 1, u32::try_from(pods).unwrap()));
    }
}
