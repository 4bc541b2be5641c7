//! Who gets a server, and who does not.

use super::*;

#[test]
fn new_servers_are_spread() {
    let mut story = Story::with_pods(&[1, 2, 3]);
    for n in 0..9 {
        story.server(n, json!({}));
    }
    let assigns = story.assigns();
    for session in 1..=3 {
        assert_eq!(assigns.iter().filter(|(to, _)| *to == session).count(), 3);
    }
    assert!(assigns.iter().all(|(_, assign)| assign.superseded_epoch == 0));
}

#[test]
fn starts_are_bounded_per_pod_and_go_on_as_they_are_answered() {
    let mut story = Story::with_pods(&[1]);
    for n in 0..120 {
        story.server(n, json!({}));
    }
    let first = story.assigns();
    assert_eq!(first.len(), 50);
    for (_, assign) in &first {
        let n = assign.server.as_ref().unwrap().name[1..].parse().unwrap();
        story.says(1, from_agent::Body::Held(held(n, 1)));
    }
    assert_eq!(story.assigns().len(), 50);
    story.pass(4_000);
    assert_eq!(story.assigns().len(), 0, "unanswered ones keep their turns");
    story.pass(1_500);
    assert_eq!(story.assigns().len(), 20, "but not for ever");
}

#[test]
fn a_restart_moves_nothing() {
    let mut story = Story::unread();
    story.event(Event::Pod(Box::new(pod(1))));
    story.event(Event::Pod(Box::new(pod(2))));
    for n in 0..10 {
        story.server(n, owned(1 + n % 2, 3));
    }
    story.server(99, json!({}));
    story.read();
    story.open(1, 1, (0..10).step_by(2).map(|n| held(n, 3)).collect());
    story.pass(3_000);
    let bodies = story.take(1);
    assert_eq!(directories(&bodies), [], "the agent knows better where servers are");
    assert!(!bodies.iter().any(|body| matches!(body, to_agent::Body::Assign(_) | to_agent::Body::Stop(_))));
    assert_eq!(story.writes, [], "nothing is reported that is not known");
    assert!(last_plan(&bodies).unwrap().more_expected, "a drain now would rather wait");
    story.open(2, 2, (1..10).step_by(2).map(|n| held(n, 3)).collect());
    story.pass(12_000);
    let assigns = story.assigns();
    assert_eq!(
        assigns.iter().map(|(_, a)| a.server.clone().unwrap().name).collect::<Vec<_>>(),
        ["s99"; 2],
        "sent again"
    );
}

/// It may have claimed it in the store, and not know it yet: a new leader that hears of the claim from another pod would have
/// it claimed over that, and both would serve.
#[test]
fn what_an_agent_is_about_to_start_is_not_absent() {
    for (starting, elsewhere) in [(vec![], true), (vec![1], false)] {
        let mut story = Story::unread();
        // As the owner it is asked all the same; any other server would go to the other pod.
        story.event(Event::Pod(Box::new(Pod { ready: false, ..pod(1) })));
        story.event(Event::Pod(Box::new(pod(2))));
        story.server(1, owned(1, 3));
        story.read();
        story.open(2, 2, vec![]);
        story.open_starting(1, 1, vec![], &starting);
        story.pass(3_000);
        let assigns = story.assigns();
        assert!(!assigns.is_empty(), "it is asked");
        assert_eq!(assigns.iter().any(|(to, _)| *to == 2), elsewhere, "{starting:?}");
        if !elsewhere {
            story.says(1, from_agent::Body::AssignFailed(failed(&assigns[0].1, Why::NotHere)));
            story.pass(3_000);
            assert!(story.assigns().iter().any(|(to, _)| *to == 2), "what becomes of it counts");
        }
    }
}

#[test]
fn an_agent_that_does_not_come_back_is_waited_for_ten_seconds_and_then_only_its_servers_wait() {
    let mut story = Story::unread();
    story.event(Event::Pod(Box::new(pod(1))));
    story.event(Event::Pod(Box::new(pod(2))));
    story.server(1, owned(2, 3));
    story.server(2, json!({}));
    story.read();
    story.open(1, 1, vec![]);
    story.pass(9_000);
    assert_eq!(story.assigns(), []);
    story.pass(2_000);
    let assigns = story.assigns();
    assert_eq!(assigns.len(), 1);
    assert_eq!(assigns[0].1.server, Some(reference(2)));
}

#[test]
fn the_inventory_decides_what_a_record_only_claims() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, owned(1, 3));
    let assigns = story.assigns();
    assert_eq!(assigns.len(), 1, "pod 1 does not hold it");
    assert_eq!((assigns[0].1.superseded_epoch, assigns[0].1.superseded_pod_uid.as_str()), (3, "pod-1"));
}

#[test]
fn a_terminated_pods_servers_go_elsewhere_and_a_missing_ones_do_not() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    let (first, _) = story.assigns()[0].clone();
    story.says(first, from_agent::Body::Held(held(1, 1)));
    let other = 3 - first;
    story.event(Event::Closed(SessionId(first)));
    story.pass(1_000);
    assert_eq!(story.assigns(), [], "its agent may come back");
    story.event(Event::Pod(Box::new(Pod { deleting: true, over: true, running: false, ..pod(first) })));
    let assigns = story.assigns();
    assert_eq!((assigns[0].0, assigns[0].1.superseded_epoch, assigns[0].1.hint), (other, 1, 10));

    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    let (first, _) = story.assigns()[0].clone();
    story.says(first, from_agent::Body::Held(held(1, 1)));
    story.event(Event::Closed(SessionId(first)));
    story.event(Event::PodGone(uid(first)));
    let (to, assign) = story.assigns()[0].clone();
    assert_eq!(assign.superseded_epoch, 0, "only a Release lets that claim succeed");
    story.says(
        to,
        from_agent::Body::AssignFailed(AssignFailed {
            newest_epoch: 1,
            newest_pod_uid: uid(first).0,
            ..failed(&assign, Why::RefusedByLog)
        }),
    );
    story.pass(300);
    assert_eq!(story.assigns(), []);
    let status = story.statuses("s1").last().unwrap().clone();
    assert_eq!((status["phase"].as_str(), status["pod"].as_str()), (Some("Pending"), None));
    assert!(status["conditions"][1]["message"].as_str().unwrap().contains("known to be over"), "{status}");
}

#[test]
fn facts_about_terminated_pods_outlive_their_objects() {
    let mut story = Story::with_pods(&[1]);
    story.event(Event::Pod(Box::new(Pod { deleting: true, over: true, running: false, ..pod(2) })));
    story.event(Event::PodGone(uid(2)));
    story.server(1, owned(2, 3));
    let assigns = story.assigns();
    assert_eq!((assigns[0].1.superseded_epoch, assigns[0].1.superseded_pod_uid.as_str()), (3, "pod-2"));
}

#[test]
fn the_lower_of_two_owners_is_stopped() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 5)));
    story.take(2);
    story.says(2, from_agent::Body::Held(held(1, 3)));
    let stops = story.take(2);
    assert!(stops.iter().any(|body| matches!(body, to_agent::Body::Stop(stop) if stop.epoch == 3 && !stop.tombstone)));
    story.says(2, from_agent::Body::Held(held(1, 4)));
    assert!(story.take(2).is_empty(), "the source of a handoff ends by itself");
}

#[test]
fn released_servers_start_elsewhere_unless_they_are_not_permanent_or_cordoned() {
    for (spec, again) in
        [(json!({}), true), (json!({ "permanent": false }), false), (json!({ "cordoned": true }), false)]
    {
        let mut story = Story::with_pods(&[1, 2]);
        story.server(1, json!({}));
        story.says(1, from_agent::Body::Held(held(1, 1)));
        story.event(Event::Pod(Box::new(Pod { deleting: true, ..pod(1) })));
        story.server_with(1, json!({}), |object| {
            let mut whole = json!({ "pool": "rooms", "type": "room" });
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            object.spec = serde_json::from_value(whole).unwrap();
            object.generation = 2;
        });
        story.assigns();
        story.says(1, gone(1, 1, How::Released));
        story.pass(200);
        assert_eq!(story.assigns().len(), usize::from(again), "{spec}");
    }
}

#[test]
fn failures_choose_another_pod_and_say_why() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    let (first, assign) = story.assigns()[0].clone();
    let answer = AssignFailed { message: "no such template".into(), ..failed(&assign, Why::Host) };
    story.says(first, from_agent::Body::AssignFailed(answer));
    story.pass(200);
    let status = story.statuses("s1").last().unwrap().clone();
    assert_eq!(status["conditions"][1]["message"], "no such template");
    story.pass(1_000);
    assert_eq!(story.assigns()[0].0, 3 - first);
}

#[test]
fn a_missing_pool_is_named_and_waited_for() {
    let mut story = Story::with_pods(&[1]);
    story.server_with(1, json!({}), |object| object.spec.pool = "lobbies".into());
    story.pass(200);
    let status = story.statuses("s1").last().unwrap().clone();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["conditions"][1]["message"], "there is no DurableServerPool lobbies in this namespace");
}

#[test]
fn ten_thousand_servers_on_ten_pods() {
    let pods: Vec<u64> = (1..=10).collect();
    let mut story = Story::with_pods(&pods);
    for n in 0..10_000 {
        story.server(n, json!({}));
    }
    let mut placed = 0;
    while placed < 10_000 {
        let assigns = story.assigns();
        assert!(!assigns.is_empty(), "stuck at {placed}");
        placed += assigns.len();
        for (session, assign) in assigns {
            let n = assign.server.unwrap().name[1..].parse().unwrap();
            story.says(session, from_agent::Body::Held(held(n, 1)));
        }
    }
    story.pass(1_000);
    assert!(story.world.cluster.sessions.values().all(|session| session.held.len() == 1_000));
}
