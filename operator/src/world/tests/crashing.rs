//! Hosts that crash: where their servers are started again, when, and when no more.

use super::*;

/// Two pods; server 1 is held by pod 1, which has more to do than pod 2.
fn with_owner() -> Story {
    let mut story = Story::with_pods(&[1, 2]);
    story.server(1, owned(1, 1));
    story.server(2, owned(1, 1));
    story.says(1, from_agent::Body::Held(held(1, 1)));
    story.says(1, from_agent::Body::Held(held(2, 1)));
    story.pass(500);
    story.assigns();
    story
}

/// Crashes in its pod and starts again there; the epoch of the next start.
fn crash(story: &mut Story, epoch: u64) -> u64 {
    story.says(1, gone(1, epoch, How::Crashed));
    for waited in 0..40 {
        let assigns = story.assigns();
        if let Some((to, assign)) = assigns.iter().find(|(_, assign)| assign.server == Some(reference(1))) {
            assert_eq!(
                (*to, assign.superseded_epoch),
                (1, epoch),
                "in its own pod, after {waited} quarters of a second"
            );
            story.says(1, from_agent::Body::Held(held(1, epoch + 2)));
            return epoch + 2;
        }
        story.pass(250);
    }
    panic!("not started again");
}

#[test]
fn a_server_is_started_in_the_pod_where_its_host_crashed_and_left_alone_after_the_fifth_time() {
    let mut story = with_owner();
    let mut epoch = 1;
    for _ in 0..4 {
        epoch = crash(&mut story, epoch);
    }
    story.says(1, gone(1, epoch, How::Crashed));
    story.pass(60_000);
    assert_eq!(story.assigns(), []);
    let status = story.statuses("s1").last().unwrap().clone();
    assert_eq!(status["phase"], "Failed");
    assert!(story.notes.iter().any(|note| note.reason == crds::Reason::HostCrashes));
    // A person says that it is mended.
    story.server_with(1, owned(1, epoch), |object| object.generation = 2);
    story.pass(500);
    assert_eq!(story.assigns().len(), 1);
}

#[test]
fn a_server_whose_host_stays_away_is_started_elsewhere() {
    let mut story = with_owner();
    story.says(1, from_agent::Body::Status(Status::default()));
    story.says(1, gone(1, 1, How::Crashed));
    story.pass(500);
    let assigns = story.assigns();
    let seen: Vec<_> = assigns.iter().map(|(to, assign)| (*to, assign.superseded_epoch, &assign.server)).collect();
    assert_eq!(seen, [(2, 1, &Some(reference(1)))]);
}

#[test]
fn hosts_that_crash_in_masses_park_nobody() {
    let mut story = with_owner();
    story.server(3, owned(2, 1));
    story.says(2, from_agent::Body::Held(held(3, 1)));
    let mut epoch = 1;
    for _ in 0..8 {
        story.says(2, gone(3, epoch, How::Crashed));
        story.says(2, from_agent::Body::Held(held(3, epoch + 2)));
        epoch = crash(&mut story, epoch);
    }
}
