//! Deletion costs of pods.

use super::*;
use crate::model::DELETION_COST;

const NOTHING: [&str; 0] = [];

/// Two pods of a `ReplicaSet`, of which the first has so many servers, and an operator that writes costs, or not.
fn story(writes: bool, servers: u64, change: impl Fn(&mut Pod)) -> Story {
    let mut story = Story::unread();
    story.world = std::mem::replace(&mut story.world, World::new("cluster".into(), 1)).with_costs(writes);
    for n in [1, 2] {
        let mut pod = Pod { replica_set: Some("set".into()), ..pod(n) };
        change(&mut pod);
        story.event(Event::Pod(Box::new(pod)));
    }
    story.read();
    let inventory = (0..servers).map(|n| held(n, 3)).collect();
    for n in 0..servers {
        story.server(n, owned(1, 3));
    }
    story.open(1, 1, inventory);
    story.open(2, 2, vec![]);
    story.pass(1_500);
    story
}

/// Costs of the first pod that were written since the last look.
fn costs(story: &mut Story) -> Vec<String> {
    let of = |write: Write| match write.what {
        What::Metadata(body) if write.kind == Kind::Pod && write.key.name == "rooms-1" => {
            let annotations = &body["metadata"]["annotations"];
            assert_eq!(annotations[DELETION_COST], annotations[crds::DELETION_COST_ANNOTATION]);
            assert_eq!(body["metadata"]["uid"], uid(1).0);
            Some(annotations[DELETION_COST].as_str().unwrap().to_owned())
        }
        _ => None,
    };
    std::mem::take(&mut story.writes).into_iter().filter_map(of).collect()
}

#[test]
fn a_pod_costs_what_it_has_and_is_not_written_often() {
    let mut story = story(true, 3, |_| {});
    assert!(story.writes.iter().all(|write| write.key.name != "rooms-2"), "without a word an empty pod costs nothing");
    assert_eq!(costs(&mut story), ["3"]);
    story.event(Event::Pod(Box::new(Pod { replica_set: Some("set".into()), deletion_cost: 3, ..pod(1) })));
    for n in 0..2 {
        story.says(2, from_agent::Body::Held(held(n, 4)));
        story.says(1, gone(n, 3, How::HandedOff));
    }
    story.pass(2_000);
    assert_eq!(costs(&mut story), NOTHING, "not within five seconds");
    story.pass(4_000);
    assert_eq!(costs(&mut story), ["1"]);
}

#[test]
fn what_others_decide_stays() {
    assert_eq!(costs(&mut story(false, 3, |_| {})), NOTHING, "not asked for");
    let given = |pod: &mut Pod| (pod.deletion_cost, pod.cost_is_given) = (-7, true);
    assert_eq!(costs(&mut story(true, 3, given)), NOTHING, "given by somebody else");
    assert_eq!(costs(&mut story(true, 3, |pod| pod.replica_set = None)), NOTHING, "nobody chooses by it");
    assert_eq!(costs(&mut story(true, 3, |pod| pod.deleting = true)), NOTHING, "chosen already");
}
