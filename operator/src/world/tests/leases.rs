//! Signs of life: who is answered, who is taken for silent and when, and what a new leader makes of it.

use wire::session::Heartbeat;

use super::*;

const LEASE: u64 = 15_000;

fn beat(counter: u64) -> Heartbeat {
    Heartbeat { generation: 7, counter }
}

fn alive(counter: u64) -> from_agent::Body {
    let types = vec![HostType { name: "room".into(), state_version: 1, loads: vec![1] }];
    let (heartbeat, lease_ms) = (Some(beat(counter)), LEASE);
    from_agent::Body::Status(Status { host_ready: true, types, heartbeat, lease_ms, ..Status::default() })
}

fn is_answered(story: &mut Story, counter: u64) -> bool {
    story.take(1);
    story.says(1, alive(counter));
    story.take(1).contains(&to_agent::Body::Heard(beat(counter)))
}

/// Pods 1 and 2; server 1 is held by pod 1, whose agent was heard of at 1 s and whose session then ended.
fn with_silent_owner() -> Story {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, owned(1, 3));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    story.pass(1_000);
    story.says(1, alive(5));
    story.event(Event::Closed(SessionId(1)));
    story.sessions.clear();
    story
}

#[test]
fn a_heartbeat_is_answered_with_its_own_number() {
    let mut story = Story::with_pods(&[1]);
    story.take(1);
    story.says(1, alive(5));
    let answers: Vec<_> = story.take(1);
    assert!(answers.contains(&to_agent::Body::Heard(beat(5))), "{answers:?}");
    story.says(1, from_agent::Body::Status(Status { host_ready: true, ..Status::default() }));
    assert!(!story.take(1).iter().any(|body| matches!(body, to_agent::Body::Heard(_))), "it was none");
}

/// Its agent would count its lease from there, while the operator counts the pod's silence from the later one.
#[test]
fn a_heartbeat_before_one_that_was_heard_is_not_answered() {
    let mut story = Story::with_pods(&[1]);
    assert!(is_answered(&mut story, 5));
    assert!(!is_answered(&mut story, 3));
    assert!(is_answered(&mut story, 6));
}

#[test]
fn a_restarted_agent_is_asked_for_what_goes_on_beside_it_and_nobody_else_is() {
    let mut story = with_silent_owner();
    story.pass(3_000);
    story.open_starting(3, 1, vec![], &[1]);
    let assigns = story.assigns();
    assert_eq!(assigns.len(), 1);
    let (to, assign) = &assigns[0];
    assert_eq!((*to, assign.superseded_epoch, assign.superseded_pod_uid.as_str()), (3, 3, "pod-1"));
    assert!(assign.spec_json.contains("room"), "it knows no spec any more: {assign:?}");
    story.says(3, from_agent::Body::AssignFailed(failed(assign, Why::Store)));
    story.pass(1_000);
    let again = story.assigns();
    assert!(!again.is_empty() && again.iter().all(|(to, _)| *to == 3), "its store is away: {again:?}");
    story.says(3, from_agent::Body::Held(held(1, 3)));
    story.pass(LEASE * 2);
    assert_eq!(story.assigns(), []);
}

#[test]
fn servers_of_a_silent_pod_go_elsewhere_after_a_whole_lease_and_not_before() {
    let mut story = with_silent_owner();
    story.pass(LEASE - 10);
    assert_eq!(story.assigns(), []);
    story.pass(300);
    let assigns = story.assigns();
    assert_eq!(assigns.len(), 1);
    let (to, assign) = &assigns[0];
    assert_eq!((*to, assign.superseded_epoch, assign.superseded_pod_uid.as_str()), (2, 3, "pod-1"));
    assert_eq!((assign.superseded_silent, assign.grantee_silent), (Some(beat(5)), None), "the claiming agent looks");
}

#[test]
fn a_pod_that_comes_back_in_time_keeps_its_servers() {
    let mut story = with_silent_owner();
    story.pass(LEASE - 1_000);
    story.open(3, 1, vec![held(1, 3)]);
    story.pass(LEASE * 2);
    assert_eq!(story.assigns(), []);
}

#[test]
fn one_that_is_found_alive_in_the_store_is_silent_anew() {
    let mut story = with_silent_owner();
    story.pass(LEASE + 300);
    let (to, assign) = story.assigns().remove(0);
    let found = AssignFailed { alive: Some(beat(9)), alive_pod_uid: "pod-1".into(), ..failed(&assign, Why::Alive) };
    story.says(to, from_agent::Body::AssignFailed(found));
    story.pass(LEASE - 300);
    assert_eq!(story.assigns(), []);
    story.pass(600);
    assert_eq!(story.assigns()[0].1.superseded_silent, Some(beat(9)));
}

#[test]
fn what_is_said_of_other_pods_is_not_believed() {
    let mut story = with_silent_owner();
    story.pass(LEASE + 300);
    let (to, assign) = story.assigns().remove(0);
    let found = AssignFailed { alive: Some(beat(99)), alive_pod_uid: "pod-3".into(), ..failed(&assign, Why::Alive) };
    story.says(to, from_agent::Body::AssignFailed(found));
    story.pass(2_000);
    assert_eq!(story.assigns()[0].1.superseded_silent, Some(beat(5)), "pod 1 was not found");
}

#[test]
fn a_new_leader_counts_from_its_own_beginning() {
    let mut story = Story::unread();
    for n in [1, 2] {
        story.event(Event::Pod(Box::new(pod(n))));
    }
    story.server(1, owned(1, 3));
    story.pass(LEASE);
    story.read();
    story.open(2, 2, vec![]);
    story.pass(LEASE - 10);
    assert_eq!(story.assigns(), [], "it has listened for less than a lease");
    story.pass(300);
    assert_eq!(story.assigns()[0].1.superseded_silent, Some(Heartbeat::default()), "it never heard of pod 1");
}

#[test]
fn what_was_answered_while_the_pool_was_gone_counts() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, owned(1, 3));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    story.pass(LEASE);
    let pool = story.world.pools[&Key::new("ns", "rooms")].object.clone().unwrap();
    story.event(Event::PoolGone(Key::new("ns", "rooms")));
    story.take(1);
    story.says(1, alive(5));
    assert!(story.take(1).contains(&to_agent::Body::Heard(beat(5))), "it serves on");
    story.event(Event::Closed(SessionId(1)));
    story.event(Event::Pool(pool));
    story.pass(LEASE - 10);
    assert_eq!(story.assigns(), []);
}

#[test]
fn a_grantee_of_a_silent_owner_is_asked_and_looks_too() {
    let mut story = Story::with_pods(&[1, 2, 3]);
    story.server(1, owned(1, 3));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    story.says(1, alive(5));
    story.event(Event::Closed(SessionId(1)));
    story.sessions.clear();
    story.pass(LEASE + 300);
    let (to, assign) = story.assigns().remove(0);
    let grantee = if to == 2 { 3 } else { 2 };
    let refusal = AssignFailed {
        newest_epoch: 3,
        newest_pod_uid: "pod-1".into(),
        grantee_pod_uid: format!("pod-{grantee}"),
        ..failed(&assign, Why::Granted)
    };
    story.says(to, from_agent::Body::AssignFailed(refusal));
    story.pass(1_000);
    let assigns = story.assigns();
    assert_eq!((assigns[0].0, assigns[0].1.superseded_silent), (grantee, Some(beat(5))));
}

/// A leader that followed never heard of the pod that a Grant names, and its object is gone.
#[test]
fn a_granted_pod_that_is_gone_is_believed_alive_only_for_a_lease_after_its_last_heartbeat() {
    let mut story = Story::with_pods(&[1, 2]);
    story.pass(LEASE);
    story.server(1, owned(1, 3));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    let mut disclaimed = Gone { server: Some(reference(1)), epoch: 3, how: How::Disclaimed.into(), ..Gone::default() };
    disclaimed.grantee_pod_uid = "pod-9".into();
    story.assigns();
    story.says(1, from_agent::Body::Gone(disclaimed));
    story.pass(500);
    let (to, assign) = story.assigns().into_iter().next().unwrap();
    assert_eq!(assign.grantee_silent, Some(Heartbeat { generation: 0, counter: 0 }), "never heard of");
    let found = AssignFailed { alive: Some(beat(13)), alive_pod_uid: "pod-9".into(), ..failed(&assign, Why::Alive) };
    story.says(to, from_agent::Body::AssignFailed(found));
    story.pass(LEASE - 1_000);
    assert_eq!(story.assigns(), [], "it may serve");
    story.pass(4_000);
    assert_eq!(story.assigns().first().and_then(|(_, assign)| assign.grantee_silent), Some(beat(13)));
}
