//! Servers that a person sends to a pod.

use super::{
    moves::{carry_out, moves, set_pool, story, to},
    *,
};

fn wish(story: &mut Story, n: u64, on: u64, pod: Option<&str>) {
    story.server_with(n, owned(on, 3), |object| object.wish = pod.map(Into::into));
}

/// Status, reason and message of the condition that tells of the wish.
fn told(story: &mut Story, server: &str) -> Option<(String, String, String)> {
    story.pass(300);
    let status = story.statuses(server).pop()?;
    let conditions = status["conditions"].as_array()?.clone();
    let moved = conditions.into_iter().find(|condition| condition["type"] == "Moved")?;
    let text = |field: &str| moved[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

fn reason(story: &mut Story, server: &str) -> Option<String> {
    told(story, server).map(|(_, reason, _)| reason)
}

#[test]
fn it_goes_to_the_pod_that_is_named_and_stays_whatever_would_be_even() {
    let mut story = story(1, &json!({}));
    wish(&mut story, 0, 1, Some("rooms-2"));
    let order = moves(&mut story);
    assert_eq!(to(&order), [(1, "rooms-2".to_owned())]);
    assert_eq!(reason(&mut story, "s0").as_deref(), Some("OnItsWay"));
    carry_out(&mut story, 2, &order);
    assert_eq!(reason(&mut story, "s0").as_deref(), Some("InPlace"));
    for n in 1..6 {
        story.server_with(n, owned(2, 3), |object| object.wish = Some("rooms-2".into()));
        story.says(2, from_agent::Body::Held(held(n, 3)));
    }
    set_pool(&mut story, &json!({ "placement": { "rebalance": true } }));
    story.pass(3_000);
    assert_eq!(moves(&mut story), [], "all of them are where a person wants them");
    wish(&mut story, 5, 2, None);
    story.pass(300);
    assert_eq!(to(&moves(&mut story)), [(2, "rooms-1".to_owned())]);
    assert_eq!(told(&mut story, "s5"), None, "the condition goes with the annotation");
}

#[test]
fn a_pod_that_does_not_exist_or_may_not_have_it_is_named_with_what_to_do() {
    let mut story = story(3, &json!({}));
    wish(&mut story, 0, 1, Some("rooms-9"));
    let (status, reason, message) = told(&mut story, "s0").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NoSuchPod"));
    assert!(message.contains("rooms-9") && message.contains("remove the annotation"), "{message}");
    story.event(Event::Pod(Box::new(Pod { cordoned: true, ..pod(2) })));
    wish(&mut story, 1, 1, Some("rooms-2"));
    let (_, reason, message) = told(&mut story, "s1").unwrap();
    assert_eq!(reason, "CannotMove");
    assert!(message.contains("pod rooms-2") && message.contains("is cordoned"), "{message}");
    story.server_with(2, owned(1, 3), |object| {
        object.wish = Some("rooms-2".into());
        object.generation = 2;
        object.spec.cordoned = Some(true);
    });
    assert!(told(&mut story, "s2").unwrap().2.contains("spec.cordoned of the server is true"));
    assert_eq!(moves(&mut story), []);
    story.event(Event::Pod(Box::new(pod(2))));
    assert_eq!(to(&moves(&mut story)), [(1, "rooms-2".to_owned())], "as soon as the pod may have it");
}

#[test]
fn a_paused_pool_says_so_and_a_drained_pod_is_left_in_spite_of_wishes() {
    let mut story = story(1, &json!({ "paused": true }));
    wish(&mut story, 0, 1, Some("rooms-2"));
    assert!(told(&mut story, "s0").unwrap().2.contains("is paused"));
    assert_eq!(moves(&mut story), []);
    wish(&mut story, 0, 1, Some("rooms-1"));
    set_pool(&mut story, &json!({}));
    assert_eq!(reason(&mut story, "s0").as_deref(), Some("InPlace"));
    story.event(Event::Pod(Box::new(Pod { cordoned: true, emptied: true, ..pod(1) })));
    let order = moves(&mut story);
    assert_eq!(to(&order), [(1, "rooms-2".to_owned())]);
    carry_out(&mut story, 2, &order);
    story.pass(1_000);
    assert_eq!(moves(&mut story), []);
    story.event(Event::Pod(Box::new(pod(1))));
    story.pass(300);
    assert_eq!(to(&moves(&mut story)), [(2, "rooms-1".to_owned())], "the wish stands");
}

#[test]
fn a_server_without_a_pod_is_started_where_a_person_wants_it() {
    let mut story = Story::with_pods(&[1, 2, 3]);
    for (n, pod) in [(7, "rooms-3"), (8, "rooms-2"), (9, "rooms-2")] {
        story.server_with(n, json!({}), |object| object.wish = Some(pod.into()));
    }
    let assigned = story.assigns().iter().map(|(session, _)| *session).collect::<Vec<_>>();
    assert_eq!(assigned, [2, 2, 3]);
}
