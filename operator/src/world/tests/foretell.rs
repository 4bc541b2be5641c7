//! What would happen now if, and that it then does.

use crds::plan::{Arrival, Foretold};

use super::{
    moves::{carry_out, moves, set_pool, story},
    *,
};
use crate::foretell::{Question, To, Unanswerable, What as If};

fn ask(story: &Story, what: If) -> Result<Foretold, Unanswerable> {
    story.world.foretell(&Question { pool: Key::new("ns", "rooms"), what })
}

/// How many would go where, by the names of both pods.
fn went(told: &Foretold) -> BTreeMap<(String, String), usize> {
    let of = |arrival: &Arrival| arrival.pod.clone().unwrap_or_else(|| arrival.revision.clone());
    told.moves.iter().flat_map(|d| d.to.iter().map(move |to| ((d.from.clone(), of(to)), to.servers))).collect()
}

/// Carries out all moves that are ordered, and counts them the same way.
fn happens(story: &mut Story) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..50 {
        let orders = moves(story);
        for (from, order) in &orders {
            let to = order.target.clone().unwrap().pod;
            let session = to.rsplit('-').next().unwrap().parse().unwrap();
            *counts.entry((format!("rooms-{from}"), to)).or_default() += 1;
            carry_out(story, session, &[(*from, order.clone())]);
        }
        story.pass(300);
    }
    counts
}

/// The same story with pods 3 and 4 besides, and a few servers on 3.
fn four(servers: u64, pool: &Value) -> Story {
    let mut story = story(servers, pool);
    for n in [3, 4] {
        story.event(Event::Pod(Box::new(Pod { node: format!("node-{n}"), ..pod(n) })));
        story.open(n, n, vec![]);
    }
    for n in 100..103 {
        story.server(n, owned(3, 3));
        story.says(3, from_agent::Body::Held(held(n, 3)));
    }
    story
}

#[test]
fn a_drain_goes_as_foretold() {
    let mut story = four(11, &json!({}));
    story.server_with(0, owned(1, 3), |object| object.wish = Some("rooms-1".into()));
    story.server_with(1, owned(1, 3), |object| {
        object.generation = 2;
        object.spec.cordoned = Some(true);
    });
    let told = ask(&story, If::Drain("rooms-1".into())).unwrap();
    assert_eq!(moves(&mut story), [], "a question changes nothing");
    assert_eq!(
        told.stays.iter().map(|stay| (stay.servers, stay.names.clone())).collect::<Vec<_>>(),
        [(1, vec!["s1".into()])]
    );
    assert!(told.stays[0].reason.contains("spec.cordoned"), "{told:?}");
    let told = went(&told);
    assert_eq!(told.values().sum::<usize>(), 10);
    story.event(Event::Pod(Box::new(Pod { cordoned: true, emptied: true, ..pod(1) })));
    assert_eq!(happens(&mut story), told);
}

#[test]
fn a_cordoned_node_is_left_as_foretold() {
    let mut story = four(9, &json!({ "handoffOnShutdown": { "enabled": true, "ahead": true } }));
    let told = ask(&story, If::Node("node".into())).unwrap();
    assert!(told.when.contains("as soon as the node is cordoned"));
    let told = went(&told);
    assert_eq!(
        told,
        [(("rooms-1", "rooms-3"), 3), (("rooms-1", "rooms-4"), 6)].map(|((a, b), n)| ((a.into(), b.into()), n)).into()
    );
    story.event(Event::Node("node".into(), Node::default()));
    assert_eq!(happens(&mut story), told);
    assert_eq!(
        ask(&story, If::Node("elsewhere".into())),
        Err(Unanswerable::NoNode { pool: Key::new("ns", "rooms"), node: "elsewhere".into() })
    );
}

#[test]
fn servers_that_are_sent_go_as_foretold_and_each_that_does_not_has_its_reason() {
    let mut story = four(6, &json!({ "placement": { "maxServersPerPod": 6 } }));
    let names = |all: &[u64]| all.iter().map(|n| format!("s{n}")).collect::<Vec<_>>();
    let told = ask(&story, If::Move(names(&[0, 1, 2, 3, 100, 999]), To::Pod("rooms-3".into()))).unwrap();
    let reasons: Vec<(usize, &str)> = told.stays.iter().map(|stay| (stay.servers, stay.reason.as_str())).collect();
    assert_eq!(reasons.len(), 3);
    for part in ["pod rooms-3 is full", "it is there already", "pool ns/rooms has no such server"] {
        assert!(reasons.iter().any(|(n, reason)| *n == 1 && reason.contains(part)), "{part}: {reasons:?}");
    }
    assert_eq!(told.servers.iter().map(|sent| sent.name.as_str()).collect::<Vec<_>>(), ["s0", "s1", "s2"]);
    let told = ask(&story, If::Move(names(&[0, 1, 2]), To::Best)).unwrap();
    for sent in &told.servers {
        let n = sent.name[1..].parse().unwrap();
        story.server_with(n, owned(1, 3), |object| object.wish = Some(sent.to.clone()));
    }
    assert_eq!(happens(&mut story), went(&told));
    let none = ask(&story, If::Move(names(&[0]), To::Pod("rooms-9".into())));
    assert_eq!(none, Err(Unanswerable::NoPod { pool: Key::new("ns", "rooms"), pod: "rooms-9".into() }));
    set_pool(&mut story, &json!({ "paused": true }));
    let told = ask(&story, If::Move(names(&[4]), To::Best)).unwrap();
    assert!(told.moves.is_empty() && told.stays[0].reason.contains("paused"), "{told:?}");
}

#[test]
fn a_rollout_sends_everything_to_pods_that_are_still_to_come_and_what_cannot_go_is_named() {
    for ahead in [false, true] {
        let mut story = four(9, &json!({ "handoffOnShutdown": { "enabled": true, "ahead": ahead }, "paused": true }));
        assert_eq!(ask(&story, If::Rollout), Err(Unanswerable::NoWorkload(Key::new("ns", "rooms"))));
        let (uid, deployment) = ("set".into(), Some("d".into()));
        let set = ReplicaSet { uid, deployment, revision: 1, replicas: 4, desired: 4, ends: None };
        story.event(Event::ReplicaSet(set));
        for n in 1..5 {
            story.event(Event::Pod(Box::new(Pod { replica_set: Some("set".into()), ..pod(n) })));
        }
        story.server_with(0, owned(1, 3), |object| {
            object.generation = 2;
            object.spec = serde_json::from_value(
                json!({ "pool": "rooms", "type": "room", "handoffOnShutdown": { "enabled": false } }),
            )
            .unwrap();
        });
        let told = ask(&story, If::Rollout).unwrap();
        let expected =
            [(("rooms-1", "next"), 8), (("rooms-3", "next"), 3)].map(|((a, b), n)| ((a.into(), b.into()), n));
        assert_eq!(went(&told), expected.into(), "ahead: {ahead}");
        assert!(told.moves[0].to.iter().all(|to| to.pod.is_none()));
        assert_eq!(told.stays[0].names, ["s0"]);
        assert!(told.stays[0].reason.contains("handoff is off") && told.otherwise.contains("stopped"), "{told:?}");
    }
}

#[test]
fn what_finds_no_pod_is_told_why() {
    let mut story = story(3, &json!({ "placement": { "maxServersPerPod": 2 } }));
    set_pool(&mut story, &json!({ "placement": { "maxServersPerPod": 2 } }));
    let told = ask(&story, If::Drain("rooms-1".into())).unwrap();
    assert_eq!((told.moves[0].servers, told.stays[0].servers), (2, 1));
    assert!(told.stays[0].reason.contains("full"), "{told:?}");
    let unread = Story::unread();
    assert_eq!(ask(&unread, If::Rollout), Err(Unanswerable::Starting));
    let other = Question { pool: Key::new("ns", "other"), what: If::Rollout };
    assert_eq!(story.world.foretell(&other), Err(Unanswerable::NoPool(Key::new("ns", "other"))));
}
