//! Servers that move off pods which live on.

use wire::session::{Move, MoveEnded};

use super::*;

/// So many servers on pod 1, an empty pod 2, and this in the pool.
pub(super) fn story(servers: u64, pool: &Value) -> Story {
    let mut story = Story::with_pods(&[1, 2]);
    set_pool(&mut story, pool);
    for n in 0..servers {
        story.server(n, owned(1, 3));
        story.says(1, from_agent::Body::Held(held(n, 3)));
    }
    story.pass(300);
    assert_eq!(moves(&mut story), []);
    story
}

pub(super) fn set_pool(story: &mut Story, more: &Value) {
    let mut spec = json!({ "store": { "s3": { "bucket": "b-1" } }, "handoffOnShutdown": { "enabled": true } });
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    let spec: DurableServerPoolSpec = serde_json::from_value(spec).unwrap();
    story.event(Event::Pool(Box::new(PoolObject {
        key: Key::new("ns", "rooms"),
        uid: "pool".into(),
        generation: 2,
        settings: crds::settings::pool(&spec),
        spec,
        status: DurableServerPoolStatus::default(),
    })));
}

/// Orders given since the last look: to which session, and what.
pub(super) fn moves(story: &mut Story) -> Vec<(u64, Move)> {
    let of = |(session, bodies): (u64, Vec<to_agent::Body>)| {
        bodies.into_iter().filter_map(move |body| match body {
            to_agent::Body::Move(order) => Some((session, order)),
            _ => None,
        })
    };
    std::mem::take(&mut story.sessions).into_iter().flat_map(of).collect()
}

/// The agents do as they were told.
pub(super) fn carry_out(story: &mut Story, to: u64, orders: &[(u64, Move)]) {
    for (session, order) in orders {
        let n = order.server.as_ref().unwrap().name[1..].parse().unwrap();
        story.says(to, from_agent::Body::Held(held(n, order.epoch + 1)));
        story.says(*session, gone(n, order.epoch, How::HandedOff));
        story.says(*session, ended(order, true));
    }
}

fn ended(order: &Move, moved: bool) -> from_agent::Body {
    from_agent::Body::MoveEnded(MoveEnded {
        order: order.order,
        server: order.server.clone(),
        moved,
        reason: String::new(),
    })
}

pub(super) fn to(orders: &[(u64, Move)]) -> Vec<(u64, String)> {
    orders.iter().map(|(session, order)| (*session, order.target.clone().unwrap().pod)).collect()
}

#[test]
fn a_pod_that_a_person_drains_is_emptied_a_few_at_a_time() {
    let mut story = story(10, &json!({}));
    story.event(Event::Pod(Box::new(Pod { cordoned: true, emptied: true, ..pod(1) })));
    let first = moves(&mut story);
    assert_eq!(to(&first), vec![(1, "rooms-2".to_owned()); handoff::window::FIRST]);
    assert!(first.iter().all(|(_, order)| order.epoch == 3));
    carry_out(&mut story, 2, &first);
    let rest = moves(&mut story);
    assert_eq!(rest.len(), 2);
    carry_out(&mut story, 2, &rest);
    story.pass(2_000);
    assert_eq!(moves(&mut story), []);
}

#[test]
fn one_that_does_not_move_is_tried_again_later() {
    let mut story = story(1, &json!({}));
    story.event(Event::Pod(Box::new(Pod { cordoned: true, emptied: true, ..pod(1) })));
    let first = moves(&mut story);
    story.says(1, ended(&first[0].1, false));
    story.says(1, ended(&first[0].1, false));
    assert_eq!(moves(&mut story), [], "not at once");
    story.pass(1_500);
    let second = moves(&mut story);
    assert_eq!(to(&second), [(1, "rooms-2".to_owned())]);
    story.event(Event::Pod(Box::new(pod(3))));
    story.open(3, 3, vec![]);
    story.says(1, ended(&second[0].1, false));
    story.pass(1_500);
    assert_eq!(moves(&mut story), [], "later each time");
    story.pass(1_000);
    assert_eq!(to(&moves(&mut story)), [(1, "rooms-3".to_owned())], "another one, if there is one");
}

#[test]
fn servers_follow_the_active_service_there_and_back() {
    let mut story = story(3, &json!({ "activeService": "active" }));
    let colour = |name: &str| BTreeMap::from([("colour".to_owned(), name.to_owned())]);
    let service = |name: &str| Event::Service(Key::new("ns", "active"), colour(name));
    for (n, name) in [(1, "blue"), (2, "green")] {
        story.event(Event::Pod(Box::new(Pod { labels: colour(name), ..pod(n) })));
    }
    story.event(service("blue"));
    assert_eq!(moves(&mut story), []);
    story.server(9, json!({}));
    assert_eq!(story.assigns().iter().map(|(to, _)| *to).collect::<Vec<_>>(), [1], "a preview pod gets nothing");
    story.event(service("green"));
    let flip = moves(&mut story);
    assert_eq!(to(&flip), vec![(1, "rooms-2".to_owned()); 3]);
    // One is over when it is flipped back; the others arrive all the same, and return.
    carry_out(&mut story, 2, &flip[..1]);
    story.event(service("blue"));
    assert_eq!(to(&moves(&mut story)), [(2, "rooms-1".to_owned())]);
    carry_out(&mut story, 2, &flip[1..]);
    assert_eq!(to(&moves(&mut story)), vec![(2, "rooms-1".to_owned()); 2]);
}

#[test]
fn ahead_servers_go_to_the_new_revision_while_the_old_pods_live_and_no_pod_gets_more_than_its_share() {
    let set = |uid: &str, revision| {
        let deployment = Some("d".to_owned());
        Event::ReplicaSet(ReplicaSet { uid: uid.into(), deployment, revision, replicas: 1, desired: 2, ends: None })
    };
    let of = |n, set: &str| Event::Pod(Box::new(Pod { replica_set: Some(set.into()), ..pod(n) }));
    let with = |ahead: bool| json!({ "handoffOnShutdown": { "enabled": true, "ahead": ahead } });
    let mut story = story(4, &with(false));
    story.event(set("old", 1));
    story.event(set("new", 2));
    story.event(of(1, "old"));
    story.event(of(2, "new"));
    story.pass(300);
    assert_eq!(moves(&mut story), [], "only if it was asked for");
    set_pool(&mut story, &with(true));
    let first = moves(&mut story);
    assert_eq!(first.len(), 3, "of four servers on two pods");
    carry_out(&mut story, 2, &first);
    story.pass(300);
    assert_eq!(moves(&mut story), []);
    story.event(of(3, "new"));
    story.open(3, 3, vec![]);
    assert_eq!(to(&moves(&mut story)), [(1, "rooms-3".to_owned())]);
}

#[test]
fn what_a_service_led_to_is_left_in_the_time_until_its_pods_end() {
    for (seconds, at_once) in [(None, 8), (Some(3_600), 8), (Some(15), 11), (Some(6), 50), (Some(-9), 50)] {
        let mut story = story(100, &json!({ "activeService": "active" }));
        let ends = seconds.map(|seconds| story.now().wall + jiff::SignedDuration::from_secs(seconds));
        story.event(Event::ReplicaSet(ReplicaSet { uid: "blue".into(), ends, ..ReplicaSet::default() }));
        story.event(Event::Pod(Box::new(Pod { replica_set: Some("blue".into()), ..pod(1) })));
        let green: BTreeMap<_, _> = [("colour".to_owned(), "green".to_owned())].into();
        story.event(Event::Pod(Box::new(Pod { labels: green.clone(), ..pod(2) })));
        story.event(Event::Service(Key::new("ns", "active"), green));
        assert_eq!(moves(&mut story).len(), at_once, "{seconds:?}");
    }
}

#[test]
fn what_is_uneven_is_evened_out_slowly_and_only_if_it_was_asked_for() {
    let mut uneven = story(9, &json!({}));
    uneven.pass(2_000);
    assert_eq!(moves(&mut uneven), []);
    set_pool(&mut uneven, &json!({ "placement": { "rebalance": true } }));
    let mut moved = 0;
    loop {
        let orders = moves(&mut uneven);
        assert!(orders.len() <= 2);
        if orders.is_empty() {
            break;
        }
        moved += orders.len();
        carry_out(&mut uneven, 2, &orders);
    }
    assert_eq!(moved, 4, "five of nine are no more than a tenth over an even part");
}

#[test]
fn a_paused_pool_moves_nothing_and_neither_does_one_whose_handoff_is_off() {
    for pool in [json!({ "paused": true }), json!({ "handoffOnShutdown": { "enabled": false } })] {
        let mut story = story(2, &pool);
        story.event(Event::Pod(Box::new(Pod { cordoned: true, emptied: true, ..pod(1) })));
        story.pass(1_000);
        assert_eq!(moves(&mut story), [], "{pool}");
    }
}

#[test]
fn a_cordoned_node_is_left_only_ahead_and_a_shutting_pod_by_its_own_drain() {
    for (ahead, expected) in [(false, 0), (true, 2)] {
        let mut story = story(2, &json!({ "handoffOnShutdown": { "enabled": true, "ahead": ahead } }));
        story.event(Event::Pod(Box::new(Pod { node: "other".into(), ..pod(2) })));
        story.event(Event::Node("node".into(), Node::default()));
        assert_eq!(moves(&mut story).len(), expected);
    }
    let mut story = story(2, &json!({}));
    story.event(Event::Pod(Box::new(Pod { cordoned: true, emptied: true, deleting: true, ..pod(1) })));
    assert_eq!(moves(&mut story), []);
}
