//! What agents and people are told.

use super::*;

#[test]
fn a_scale_down_is_planned_as_one_and_its_pods_are_drained() {
    let mut story = Story::with_pods(&[1, 2, 3, 4]);
    story.pass(1_000);
    story.sessions.clear();
    for n in [3, 4] {
        story.event(Event::Pod(Box::new(Pod { deleting: true, ..pod(n) })));
        story.pass(10);
    }
    assert!(!story.sessions.values().flatten().any(|body| matches!(body, to_agent::Body::Drain(_))));
    story.pass(50);
    for n in [3, 4] {
        let bodies = story.take(n);
        let targets = last_plan(&bodies).unwrap().targets;
        assert_eq!(targets.iter().map(|t| t.pod_uid.as_str()).collect::<Vec<_>>(), ["pod-1", "pod-2"]);
        assert_eq!(bodies.iter().filter(|body| matches!(body, to_agent::Body::Drain(_))).count(), 1);
    }
    assert!(!story.take(1).iter().any(|body| matches!(body, to_agent::Body::Drain(_))));
}

#[test]
fn the_directory_is_whole_at_first_and_then_changes() {
    let mut story = Story::with_pods(&[1, 2]);
    story.pass(100);
    let whole = directories(&story.take(1));
    assert!(whole.len() == 1 && whole[0].complete);
    story.server(1, json!({}));
    story.says(2, from_agent::Body::Held(held(1, 1)));
    story.pass(30);
    let changes = directories(&story.take(1));
    let entry = DirectoryEntry {
        name: "s1".into(),
        uid: "server-1".into(),
        epoch: 1,
        pod_uid: "pod-2".into(),
        gateway_address: "10.0.0.2:7070".into(),
    };
    assert_eq!(changes.last().unwrap().entries, std::slice::from_ref(&entry));
    assert!(changes.iter().all(|change| !change.complete && change.version > whole[0].version));
    story.event(Event::Closed(SessionId(2)));
    story.pass(30);
    let unchanged = directories(&story.take(1));
    assert!(unchanged.iter().flat_map(|change| &change.entries).all(|now| *now == entry), "it may serve still");
    story.says(1, from_agent::Body::Held(held(1, 2)));
    story.event(Event::ServerGone(ServerUid("server-1".into())));
    story.pass(30);
    assert_eq!(directories(&story.take(1)).last().unwrap().removed, ["s1"]);
}

#[test]
fn a_drain_is_recorded_once_and_its_agent_hears_of_it() {
    let mut story = Story::with_pods(&[1, 2]);
    let set = |uid: &str, revision| ReplicaSet {
        uid: uid.into(),
        deployment: Some("d".into()),
        revision,
        replicas: 1,
        desired: 1,
        ends: None,
    };
    story.event(Event::ReplicaSet(set("old", 1)));
    story.event(Event::ReplicaSet(set("new", 2)));
    let report = |phase: &str| DrainReport { phase: phase.into(), total: 3, moved: 3, ..DrainReport::default() };
    story.says(1, from_agent::Body::Drain(report("Running")));
    assert!(!story.writes.iter().any(|write| write.kind == Kind::Handoff), "why is not known yet");
    story.event(Event::Pod(Box::new(Pod { deleting: true, replica_set: Some("old".into()), ..pod(1) })));
    let made = story.writes.iter().find_map(|write| match &write.what {
        What::Create(body) => Some((write.key.clone(), body.clone())),
        _ => None,
    });
    let (key, body) = made.unwrap();
    assert_eq!(body["spec"], json!({ "pool": "rooms", "sourcePod": "rooms-1", "trigger": "Rollout" }));
    story.says(1, from_agent::Body::Drain(report("Complete")));
    let last = story.statuses(&key.name).last().unwrap().clone();
    assert_eq!((last["phase"].as_str(), last["moved"].as_u64()), (Some("Complete"), Some(3)));
    story.take(1);
    story.event(Event::Recorded(key.clone(), json!({ "status": { "phase": "Running" } }).into()));
    assert_eq!(story.take(1), [], "an earlier status is not the end");
    for _ in 0..2 {
        story.event(Event::Recorded(key.clone(), json!({ "status": last }).into()));
    }
    assert_eq!(story.notes.len(), 1);
    assert!(matches!(story.take(1)[..], [to_agent::Body::DrainSeen(_)]));
}

#[test]
fn sessions_are_admitted_for_the_very_pod_only() {
    let mut story = Story::unread();
    story.event(Event::Pod(Box::new(pod(1))));
    story.open(1, 1, vec![]);
    assert!(matches!(story.closed.pop(), Some((1, Refusal::Starting))));
    story.read();
    story.open(2, 7, vec![]);
    assert!(matches!(story.closed.pop(), Some((2, Refusal::UnknownPod(_)))));
    story.event(Event::Pod(Box::new(Pod { pool: "other".into(), ..pod(8) })));
    story.open(3, 8, vec![]);
    assert!(matches!(story.closed.pop(), Some((3, Refusal::NoPool(_)))));
    story.open(4, 1, vec![]);
    assert!(matches!(story.take(4)[0], to_agent::Body::Welcome(_)));
    story.open(5, 1, vec![]);
    assert!(matches!(story.closed.pop(), Some((4, Refusal::Replaced))));
    story.says(4, from_agent::Body::Held(held(1, 9)));
    story.server(1, json!({}));
    assert_eq!(story.assigns().len(), 1, "the word of a session that was replaced is not heard");
}

#[test]
fn nobody_speaks_for_another_pools_servers() {
    let mut story = Story::with_pods(&[1]);
    story.server_with(1, json!({}), |object| object.spec.pool = "other".into());
    story.says(1, from_agent::Body::Held(held(1, 9)));
    assert!(story.world.servers[&ServerUid("server-1".into())].ownership.owner.is_none());
}

#[test]
fn syncs_are_reported_rarely_and_moves_at_once() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 1)));
    story.pass(500);
    let first = story.statuses("s1").len();
    for n in 0..20 {
        story.says(1, from_agent::Body::Held(Held { sequence: 20 + n, ..held(1, 1) }));
        story.pass(500);
    }
    assert_eq!(story.statuses("s1").len(), first);
    story.says(2, from_agent::Body::Held(held(1, 2)));
    story.pass(200);
    let last = story.statuses("s1").last().unwrap().clone();
    assert_eq!((last["pod"].as_str(), last["epoch"].as_u64()), (Some("rooms-2"), Some(2)));
    story.says(2, from_agent::Body::Status(Status::default()));
}
