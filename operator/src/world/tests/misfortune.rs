//! Bad input, and what people are told of it.

use super::*;

fn reasons(story: &Story) -> Vec<(Kind, String, &'static str)> {
    story.notes.iter().map(|note| (note.kind, note.key.name.clone(), note.reason.name())).collect()
}

fn word(status: &Value, kind: &str) -> (String, String, String) {
    let condition = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap();
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

fn pool_of(spec: &Value) -> PoolObject {
    let spec: DurableServerPoolSpec = serde_json::from_value(spec.clone()).unwrap();
    PoolObject {
        key: Key::new("ns", "rooms"),
        uid: "pool".into(),
        generation: 1,
        settings: crds::settings::pool(&spec),
        spec,
        status: DurableServerPoolStatus::default(),
    }
}

fn bucket() -> Value {
    json!({ "store": { "s3": { "bucket": "b-1" } } })
}

fn problem(reason: &str) -> from_agent::Body {
    let problem = format!("what {reason} is");
    from_agent::Body::Status(Status { host_ready: true, problem, reason: reason.into(), ..Status::default() })
}

#[test]
fn ten_thousand_servers_of_an_unknown_pool_have_a_condition_each_and_five_events_together() {
    let mut story = Story::with_pods(&[1]);
    story.server(20_000, json!({}));
    story.says(1, from_agent::Body::Held(held(20_000, 1)));
    for n in 0..10_000 {
        story.server_with(n, json!({}), |object| object.spec.pool = "unknown".into());
    }
    story.pass(2_000);
    let told = reasons(&story);
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told.iter().all(|(kind, _, reason)| (*kind, *reason) == (Kind::Server, "NoPool")));
    let written =
        story.writes.iter().filter(|write| matches!(write.what, What::Status(_)) && write.key.name != "rooms");
    assert_eq!(written.count(), 10_001, "one status each");
    let (status, reason, message) = word(&story.statuses("s7")[0], "Accepted");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NoPool"));
    assert!(message.contains("DurableServerPool unknown"), "{message}");
    assert_eq!(word(story.statuses("s20000").last().unwrap(), "Ready").1, "Serving", "the others do not mind");
}

#[test]
fn servers_whose_pool_is_deleted_serve_on_and_say_so_until_it_is_back() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 1)));
    story.pass(500);
    story.take(1);
    story.event(Event::PoolGone(Key::new("ns", "rooms")));
    story.pass(500);
    let status = story.statuses("s1").last().unwrap().clone();
    assert_eq!((word(&status, "Accepted").1.as_str(), word(&status, "Ready").1.as_str()), ("NoPool", "Serving"));
    assert_eq!(reasons(&story), [(Kind::Server, "s1".into(), "NoPool")]);
    assert!(!story.take(1).iter().any(|body| matches!(body, to_agent::Body::Stop(_))));

    story.says(1, gone(1, 1, How::Released));
    story.pass(500);
    assert_eq!(story.assigns(), [], "there is no telling where");
    story.event(Event::Pool(Box::new(pool_of(&bucket()))));
    story.pass(500);
    let assigns = story.assigns();
    assert!(assigns.iter().any(|(_, assign)| assign.superseded_epoch == 1), "{assigns:?}");
    assert_eq!(word(story.statuses("s1").last().unwrap(), "Accepted").1, "Valid");
}

#[test]
fn a_pod_of_a_missing_pool_is_told_of_once() {
    let mut story = Story::with_pods(&[]);
    story.event(Event::Pod(Box::new(Pod { pool: "missing".into(), ..pod(7) })));
    for session in 1..20 {
        story.open(session, 7, vec![]);
        story.pass(100);
    }
    assert_eq!(reasons(&story), [(Kind::Pod, "rooms-7".into(), "NoPool")]);
    assert!(story.closed.iter().all(|(_, refusal)| matches!(refusal, Refusal::NoPool(_))));
}

#[test]
fn a_pool_says_why_its_pods_cannot_host_in_one_condition_and_one_event() {
    for (reason, eligible) in
        [("StoreDenied", false), ("StoreIgnoresConditions", false), ("PrefixTaken", false), ("HostSilent", true)]
    {
        let mut story = if eligible { Story::with_pods(&[1, 2]) } else { Story::with_pods(&[1]) };
        story.says(1, problem(reason));
        story.pass(2_000);
        assert_eq!(reasons(&story), [], "it may be starting");
        for _ in 0..20 {
            story.says(1, problem(reason));
            story.pass(1_000);
        }
        let (status, word, message) = word(story.statuses("rooms").last().unwrap(), "Ready");
        let expected = if eligible { ("True", "SomePodsCannotHost") } else { ("False", reason) };
        assert_eq!((status.as_str(), word.as_str()), expected);
        assert_eq!(message, format!("pod rooms-1 cannot host: what {reason} is"));
        assert_eq!(reasons(&story), [(Kind::Pool, "rooms".into(), reason)]);
    }
}

#[test]
fn a_type_has_no_more_servers_in_a_pod_than_its_own_limit() {
    let mut story = Story::with_pods(&[1, 2]);
    let types = json!({ "types": [{ "name": "room", "maxServersPerPod": 2 }] });
    let mut spec = bucket();
    spec["types"] = types["types"].clone();
    story.event(Event::Pool(Box::new(pool_of(&spec))));
    for n in 0..6 {
        story.server(n, json!({}));
    }
    let assigns = story.assigns();
    for session in [1, 2] {
        assert_eq!(assigns.iter().filter(|(to, _)| *to == session).count(), 2);
    }
    for (session, assign) in &assigns {
        let n = assign.server.as_ref().unwrap().name[1..].parse().unwrap();
        story.says(*session, from_agent::Body::Held(held(n, 1)));
    }
    story.pass(1_000);
    assert_eq!(story.assigns(), []);
    let full = (0..6).filter(|n| {
        story.statuses(&format!("s{n}")).last().is_some_and(|status| word(status, "Placed").1 == "PodsFull")
    });
    assert_eq!(full.count(), 2);
}

#[test]
fn a_pod_that_comes_is_tried_at_once_for_servers_that_others_failed_to_start() {
    let mut story = Story::with_pods(&[1]);
    story.server(1, json!({}));
    let mut failures = 0;
    while failures < 4 {
        let Some((_, assign)) = story.assigns().pop() else {
            story.pass(1_000);
            continue;
        };
        story.says(1, from_agent::Body::AssignFailed(failed(&assign, Why::Host)));
        failures += 1;
    }
    story.pass(200);
    assert_eq!(story.assigns(), [], "it waits");
    story.event(Event::Pod(Box::new(pod(2))));
    story.open(2, 2, vec![]);
    story.pass(100);
    assert_eq!(story.assigns().len(), 1);
}

#[test]
fn a_state_that_is_not_stored_is_told_of() {
    let mut story = Story::with_pods(&[1]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 1)));
    story.pass(500);
    let error = "the state is larger than spec.sync.maxStateBytes";
    story.says(1, from_agent::Body::Held(Held { error: error.into(), ..held(1, 1) }));
    story.pass(500);
    let (status, reason, message) = word(story.statuses("s1").last().unwrap(), "Durable");
    assert_eq!((status.as_str(), reason.as_str(), message.as_str()), ("False", "SyncFailed", error));
    assert_eq!(reasons(&story), [(Kind::Server, "s1".into(), "SyncFailed")]);
}
