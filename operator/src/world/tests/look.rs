//! What the page is shown.

use super::*;
use crate::page::view::{Look, PodState};

fn look(story: &mut Story) -> Look {
    let now = story.now();
    story.world.look(now)
}

fn names(look: &Look) -> Vec<(&str, bool)> {
    look.servers.iter().map(|(key, server)| (key.name.as_str(), server.is_some())).collect()
}

#[test]
fn everything_first_and_then_what_changed() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    story.server(2, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 1)));
    assert!(!story.world.is_looked_at());
    let first = look(&mut story);
    assert!(first.first && names(&first) == [("s1", true), ("s2", true)]);
    let s1 = first.servers[0].1.as_ref().unwrap();
    assert_eq!((s1.phase, s1.pod.as_str(), s1.epoch), (crds::Phase::Running, "pod-1", 1));
    assert_eq!(
        first.pods.iter().map(|pod| (pod.name.as_str(), pod.state)).collect::<Vec<_>>(),
        [("rooms-1", PodState::Ready), ("rooms-2", PodState::Ready)]
    );

    let none = look(&mut story);
    assert!(!none.first && none.servers.is_empty());
    story.says(2, from_agent::Body::Held(held(1, 2)));
    let moved = Moved {
        server: Some(reference(1)),
        to_pod_uid: "pod-2".into(),
        result: "Moved".into(),
        gap_us: 4_200,
        ..Moved::default()
    };
    story.says(1, from_agent::Body::Moved(moved));
    let changed = look(&mut story);
    assert_eq!(names(&changed), [("s1", true)]);
    let s1 = changed.servers[0].1.as_ref().unwrap();
    let last = s1.last.as_ref().unwrap();
    assert_eq!((s1.pod.as_str(), s1.epoch), ("pod-2", 2));
    assert_eq!(
        (last.from.as_str(), last.to.as_deref(), last.gap.as_deref()),
        ("rooms-1", Some("rooms-2"), Some("4.2ms"))
    );

    story.event(Event::ServerGone(ServerUid("server-1".into())));
    assert_eq!(names(&look(&mut story)), [("s1", false)]);
    story.world.look_away();
    story.server(3, json!({}));
    assert!(!story.world.is_looked_at());
    let again = look(&mut story);
    assert!(again.first && names(&again) == [("s2", true), ("s3", true)]);
}

#[test]
fn a_server_without_a_pod_says_why_and_a_pod_what_it_does() {
    let mut story = Story::with_pods(&[1]);
    look(&mut story);
    story.says(
        1,
        from_agent::Body::Drain(DrainReport { phase: "Running".into(), total: 3, moved: 1, ..DrainReport::default() }),
    );
    story.server(1, json!({}));
    story.pass(10);
    let seen = look(&mut story);
    let waits = seen.servers[0].1.as_ref().unwrap().waits.clone().unwrap();
    assert_eq!(waits.0, "NoEligiblePod");
    assert!(waits.1.contains("no pod of pool rooms can host"), "{}", waits.1);
    assert_eq!(seen.pods[0].state, PodState::Draining);
    let drain = &seen.drains[0];
    assert_eq!((drain.pod.as_str(), drain.moved, drain.total), ("rooms-1", 1, 3));
    assert_eq!((drain.pool.as_str(), drain.pod_uid.as_str(), drain.ended), ("ns/rooms", "pod-1", None));
}

#[test]
fn no_servers_config_and_no_pools_store_is_shown() {
    let mut story = Story::with_pods(&[1]);
    story.server_with(1, json!({}), |object| {
        object.spec.config = json!({ "token": "hunter2" }).as_object().cloned();
    });
    let text = format!("{:?}", look(&mut story));
    assert!(text.contains("s1") && !text.contains("hunter2") && !text.contains("b-1"), "{text}");
}

#[test]
fn one_look_does_not_take_long_however_much_changed() {
    let mut story = Story::with_pods(&[1]);
    for n in 0..4_500 {
        story.server(n, json!({}));
    }
    let sizes: Vec<usize> = (0..4).map(|_| look(&mut story).servers.len()).collect();
    assert_eq!(sizes[..2], [2_000, 2_000]);
    assert_eq!(sizes.iter().sum::<usize>(), 4_500);
}
