//! Deleted servers: their logs are closed, and their resources do not wait for ever.

use crds::Reason;
use wire::session::Bury;

use super::*;

/// As `kubectl delete` leaves it, with this policy.
fn delete(story: &mut Story, policy: &str) {
    let policy = serde_json::from_value(json!(policy)).unwrap();
    story.server_with(1, json!({}), |object| {
        object.deleting = true;
        object.resource_version = "2".into();
        object.spec.reclaim_policy = Some(policy);
    });
}

/// How often the finalizer was taken away.
fn let_go(story: &Story) -> usize {
    let without = json!([]);
    let taken =
        |write: &&Write| matches!(&write.what, What::Metadata(body) if body["metadata"]["finalizers"] == without);
    story.writes.iter().filter(taken).count()
}

fn burials(story: &mut Story) -> Vec<(u64, Bury)> {
    let all = std::mem::take(&mut story.sessions);
    let of = |(session, bodies): (u64, Vec<to_agent::Body>)| {
        bodies.into_iter().filter_map(move |body| match body {
            to_agent::Body::Bury(bury) => Some((session, bury)),
            _ => None,
        })
    };
    all.into_iter().flat_map(of).collect()
}

fn answer(story: &mut Story, (session, bury): &(u64, Bury), why: Why) {
    story.says(*session, from_agent::Body::AssignFailed(failed(bury.assign.as_ref().unwrap(), why)));
}

/// What people were told of logs that stay.
fn told(story: &Story) -> Vec<String> {
    story.notes.iter().filter(|note| note.reason == Reason::LogStays).map(|note| note.note.clone()).collect()
}

#[test]
fn one_that_runs_is_stopped_for_good_before_its_resource_goes() {
    for (policy, delete_log) in [("Retain", false), ("Delete", true)] {
        let mut story = Story::with_pods(&[1]);
        story.server(1, json!({}));
        story.says(1, from_agent::Body::Held(held(1, 1)));
        story.take(1);
        delete(&mut story, policy);
        let stop = story.take(1).into_iter().find_map(|body| match body {
            to_agent::Body::Stop(stop) => Some(stop),
            _ => None,
        });
        let stop = stop.unwrap();
        assert_eq!((stop.epoch, stop.tombstone, stop.delete_log), (1, true, delete_log));
        assert_eq!(let_go(&story), 0);
        let closed = Gone { tombstone: true, ..as_gone(gone(1, 1, How::Released)) };
        story.says(1, from_agent::Body::Gone(closed));
        assert_eq!(let_go(&story), 1);
        story.pass(2_000);
        assert_eq!(let_go(&story), 1, "asked for once");
        assert_eq!((burials(&mut story), told(&story)), (vec![], vec![]));
    }
}

fn as_gone(body: from_agent::Body) -> Gone {
    match body {
        from_agent::Body::Gone(gone) => gone,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_log_of_one_that_nobody_runs_is_closed_by_any_agent() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    story.says(1, from_agent::Body::Status(Status { draining: true, ..Status::default() }));
    // Its pod drains, and releases it while it is being deleted: a Release is in the log, and no Tombstone.
    delete(&mut story, "Delete");
    story.take(1);
    story.says(1, gone(1, 3, How::Released));
    let asked = burials(&mut story);
    assert_eq!(asked.len(), 1);
    let (session, bury) = &asked[0];
    let assign = bury.assign.clone().unwrap();
    assert_eq!((*session, bury.delete_log), (2, true), "not the one that is about to go");
    assert_eq!((assign.superseded_epoch, assign.superseded_pod_uid.as_str(), assign.hint), (3, "pod-1", 30));
    // The store does not answer at first.
    answer(&mut story, &asked[0], Why::Store);
    assert_eq!(let_go(&story), 0);
    story.pass(1_000);
    let again = burials(&mut story);
    assert_eq!(again.len(), 1);
    answer(&mut story, &again[0], Why::Deleted);
    assert_eq!(let_go(&story), 1);
    story.pass(5_000);
    assert_eq!((burials(&mut story), told(&story)), (vec![], vec![]));
}

#[test]
fn one_that_is_here_after_all_is_stopped() {
    let mut story = Story::with_pods(&[1]);
    story.server(1, owned(1, 3));
    story.take(1);
    delete(&mut story, "Retain");
    story.pass(300);
    story.says(1, from_agent::Body::Held(held(1, 3)));
    let stops = story.take(1);
    assert!(stops.iter().any(|body| matches!(body, to_agent::Body::Stop(stop) if stop.tombstone && stop.epoch == 3)));
}

#[test]
fn a_store_that_is_gone_keeps_a_resource_for_two_minutes_and_says_what_stays() {
    let mut story = Story::with_pods(&[1]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    delete(&mut story, "Retain");
    story.says(1, gone(1, 3, How::Disclaimed));
    for _ in 0..118 {
        for asked in burials(&mut story) {
            answer(&mut story, &asked, Why::Store);
        }
        story.pass(1_000);
    }
    assert_eq!((let_go(&story), told(&story)), (0, vec![]));
    story.pass(3_000);
    assert_eq!(let_go(&story), 1);
    let told = told(&story);
    assert_eq!(told.len(), 1, "{told:?}");
    let command = "durable-agent store gc --bucket b-1 --prefix '' --region us-east-1 ns/s1/server-1 --delete";
    assert!(told[0].contains(command), "{}", told[0]);
    assert!(told[0].len() < 900, "an Event has room for it");
}

#[test]
fn a_silent_owner_keeps_a_resource_for_a_lease() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    story.event(Event::Closed(SessionId(1)));
    delete(&mut story, "Retain");
    story.pass(14_000);
    assert_eq!((let_go(&story), burials(&mut story)), (0, vec![]), "its pod may serve it still");
    story.pass(2_000);
    let asked = burials(&mut story);
    assert_eq!(asked.len(), 1);
    assert!(asked[0].1.assign.as_ref().unwrap().superseded_silent.is_some(), "whoever closes the log must look");
    answer(&mut story, &asked[0], Why::Deleted);
    assert_eq!(let_go(&story), 1);
}

#[test]
fn without_any_pod_it_is_ten_seconds() {
    let mut story = Story::with_pods(&[]);
    story.pass(11_000);
    story.server(1, owned(1, 3));
    delete(&mut story, "Retain");
    story.pass(9_000);
    assert_eq!(let_go(&story), 0);
    story.pass(2_000);
    assert_eq!(let_go(&story), 1);
    assert_eq!(told(&story).len(), 1);
}

/// Protocol review, hole 18: an operator that knows only of the old term learns of a restore by the fence.
#[test]
fn a_server_whose_older_state_was_restored_is_started_again() {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, json!({}));
    story.says(1, from_agent::Body::Held(held(1, 3)));
    story.assigns();
    story.says(1, gone(1, 3, How::Fenced));
    let assigns = story.assigns();
    assert_eq!(assigns.len(), 1);
    assert_eq!(assigns[0].1.superseded_epoch, 3);
    // The log has a Release of epoch 5, over which any assignment may claim: epoch 7.
    story.says(assigns[0].0, from_agent::Body::Held(held(1, 7)));
    assert_eq!(story.world.servers[&ServerUid("server-1".into())].ownership.epoch, handoff::Epoch(7));
    assert_eq!(story.assigns(), []);
}

#[test]
fn a_server_that_nobody_holds_goes_at_once_and_a_new_one_gets_its_finalizer() {
    let mut story = Story::with_pods(&[]);
    story.server_with(1, json!({}), |object| object.finalizers.clear());
    assert!(matches!(&story.writes[..], [Write { what: What::Metadata(body), .. }]
        if body["metadata"]["finalizers"] == json!([FINALIZER])));
    story.server_with(1, json!({}), |object| {
        object.deleting = true;
        object.resource_version = "2".into();
    });
    let last = story.writes.iter().rev().find(|write| matches!(write.what, What::Metadata(_)));
    assert!(matches!(&last.unwrap().what, What::Metadata(body) if body["metadata"]["finalizers"] == json!([])));
}
