//! Servers that stay near by labels of nodes.

use super::{
    moves::{moves, set_pool},
    *,
};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Node `node-<n>` is in a zone of its own, and in region `r`, but for the third; each has the pod of its number.
fn story(status: Value) -> Story {
    let mut story = Story::unread();
    set_pool(
        &mut story,
        &json!({ "placement": { "sticky": [{ "topologyKey": ZONE }, { "topologyKey": "region", "after": "1m" }] } }),
    );
    for n in 1..4 {
        let region = if n == 3 { "q" } else { "r" };
        let labels = [(ZONE.to_owned(), format!("z{n}")), ("region".to_owned(), region.to_owned())].into();
        story.event(Event::Node(format!("node-{n}"), Node { schedulable: true, labels }));
        story.event(Event::Pod(Box::new(on_its_node(n))));
    }
    story.server(1, status);
    // Loads are such that pod 3 is the best but for its place, and pod 1 the worst.
    for n in 10..14 {
        story.server(n, owned(1 + u64::from(n == 13), 3));
    }
    story.read();
    story.open(1, 1, (10..13).map(|n| held(n, 3)).collect());
    story.open(2, 2, vec![held(13, 3)]);
    story.open(3, 3, vec![]);
    story
}

fn on_its_node(n: u64) -> Pod {
    Pod { node: format!("node-{n}"), ..pod(n) }
}

fn topology(zone: &str) -> Value {
    json!([{ "topologyKey": ZONE, "value": zone }, { "topologyKey": "region", "value": "r" }])
}

fn placed(story: &Story) -> Value {
    let status = story.statuses("s1").last().unwrap().clone();
    status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Placed").unwrap().clone()
}

/// The pods that server 1 was assigned to.
fn to(story: &mut Story) -> Vec<u64> {
    let assigns = story.assigns().into_iter();
    assigns.filter(|(_, assign)| assign.server == Some(reference(1))).map(|(to, _)| to).collect()
}

#[test]
fn a_server_that_was_nowhere_yet_goes_to_the_best_pod() {
    assert_eq!(to(&mut story(json!({}))).first(), Some(&3));
}

#[test]
fn one_that_lost_its_pod_goes_to_a_near_one_by_what_its_status_says() {
    assert_eq!(to(&mut story(json!({ "epoch": 3, "topology": topology("z1") }))).first(), Some(&1));
}

#[test]
fn one_that_finds_no_near_pod_waits_for_each_label_in_turn_and_says_so() {
    let mut story = story(json!({ "epoch": 3, "topology": topology("gone") }));
    story.pass(29_000);
    assert!(to(&mut story).is_empty());
    let condition = placed(&story);
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("NoPodNearby")));
    let message = condition["message"].as_str().unwrap();
    assert!(message.contains("topology.kubernetes.io/zone=gone") && message.contains("30s at most"), "{message}");
    story.pass(2_000);
    assert_eq!(to(&mut story).first(), Some(&2), "of the region the emptier");
}

#[test]
fn in_the_end_any_pod_will_do() {
    let mut story = story(json!({ "epoch": 3, "topology": topology("gone") }));
    for n in [1, 2] {
        story.event(Event::Pod(Box::new(Pod { ready: false, ..on_its_node(n) })));
    }
    story.take(1);
    story.take(2);
    story.pass(59_000);
    assert!(to(&mut story).is_empty());
    assert!(placed(&story)["message"].as_str().unwrap().contains("region=r"));
    story.pass(2_000);
    assert_eq!(to(&mut story).first(), Some(&3));
}

#[test]
fn a_status_keeps_where_its_server_was_when_the_pod_is_gone() {
    let mut story = story(json!({}));
    story.assigns();
    story.says(3, from_agent::Body::Held(held(1, 1)));
    story.pass(500);
    let expected = json!([{ "topologyKey": ZONE, "value": "z3" }, { "topologyKey": "region", "value": "q" }]);
    assert_eq!(story.statuses("s1").last().unwrap()["topology"], expected);
    story.event(Event::Pod(Box::new(Pod { deleting: true, over: true, ..on_its_node(3) })));
    story.event(Event::PodGone(uid(3)));
    story.event(Event::NodeGone("node-3".into()));
    story.pass(1_000);
    assert_eq!(placed(&story)["reason"], "NoPodNearby");
    assert_eq!(story.statuses("s1").last().unwrap()["topology"], expected);
}

#[test]
fn a_move_prefers_a_near_pod_and_waits_for_none() {
    let mut story = story(json!({}));
    story.assigns();
    story.says(3, from_agent::Body::Held(held(1, 1)));
    let emptied = |n| Event::Pod(Box::new(Pod { cordoned: true, emptied: true, ..on_its_node(n) }));
    story.event(emptied(2));
    let orders = moves(&mut story);
    assert_eq!(
        orders.iter().map(|(from, order)| (*from, order.target.as_ref().unwrap().pod.as_str())).collect::<Vec<_>>(),
        [(2, "rooms-1")]
    );
    story.event(emptied(1));
    let orders = moves(&mut story);
    assert_eq!(orders.len(), 3);
    assert!(orders.iter().all(|(_, order)| order.target.as_ref().unwrap().pod == "rooms-3"), "{orders:?}");
}
