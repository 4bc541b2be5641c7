//! Agents may say anything: it is taken in or ignored, and harms no server of another pool.

use proptest::{option, prelude::*};
use wire::session::Heartbeat;

use super::*;

// Boxed: as one value, all this is more than a test's stack holds.

/// Numbers at the edges, where sums overflow, and some that mean something here.
fn number() -> BoxedStrategy<u64> {
    prop_oneof![0..6u64, Just(u64::MAX >> 1), u64::MAX - 3..=u64::MAX, any::<u64>()].boxed()
}

fn small() -> BoxedStrategy<u32> {
    number().prop_map(|n| u32::try_from(n).unwrap_or(u32::MAX)).boxed()
}

fn text() -> BoxedStrategy<String> {
    prop_oneof!["[a-z ]{0,8}", "\\PC{0,40}", Just("é".repeat(700)), Just("pod-1".to_owned()), Just("pod-2".to_owned())]
        .boxed()
}

/// Server 1 is of this pool, 3 of another, 9 of none.
fn server_ref() -> BoxedStrategy<Option<ServerRef>> {
    prop_oneof![Just(Some(reference(1))), Just(Some(reference(3))), Just(Some(reference(9))), Just(None)].boxed()
}

fn any_held() -> BoxedStrategy<Held> {
    let numbers = (number(), number(), number(), number(), small());
    (server_ref(), 0..9i32, numbers, any::<bool>(), text())
        .prop_map(|(server, phase, numbers, durable, error)| {
            let (epoch, sequence, state_bytes, last_sync_unix_ms, state_version) = numbers;
            Held { server, epoch, phase, sequence, state_bytes, last_sync_unix_ms, state_version, durable, error }
        })
        .boxed()
}

fn any_gone() -> BoxedStrategy<Gone> {
    let numbers = (number(), number(), small());
    (server_ref(), 0..9i32, numbers, text(), text(), any::<bool>())
        .prop_map(|(server, how, (epoch, sequence, state_version), grantee_pod_uid, reason, tombstone)| Gone {
            server,
            epoch,
            how,
            grantee_pod_uid,
            reason,
            sequence,
            state_version,
            tombstone,
        })
        .boxed()
}

fn heartbeat() -> BoxedStrategy<Option<Heartbeat>> {
    option::of((number(), number()).prop_map(|(generation, counter)| Heartbeat { generation, counter })).boxed()
}

fn any_failed() -> BoxedStrategy<AssignFailed> {
    ((server_ref(), text(), heartbeat()), number(), 0..12i32, number(), [text(), text(), text()])
        .prop_map(|((server, alive_pod_uid, alive), assignment, why, newest_epoch, texts)| {
            let [message, newest_pod_uid, grantee_pod_uid] = texts;
            AssignFailed {
                server,
                assignment,
                why,
                message,
                newest_epoch,
                newest_pod_uid,
                grantee_pod_uid,
                alive_pod_uid,
                alive,
            }
        })
        .boxed()
}

fn any_report() -> BoxedStrategy<DrainReport> {
    let times = (number(), number(), prop::collection::vec(number(), 0..4));
    let counts = [small(), small(), small(), small()];
    let reasons = prop::collection::hash_map(text(), small(), 0..3);
    ([text(), text(), text()], counts, times, reasons)
        .prop_map(|([trigger, phase, blocked_by], [total, moved, stopped, failed], times, reasons)| {
            let (started_unix_ms, ended_unix_ms, gaps_us) = times;
            let phase = if phase.len() % 2 == 0 { "Complete".into() } else { phase };
            DrainReport {
                trigger,
                phase,
                total,
                moved,
                stopped,
                failed,
                reasons,
                started_unix_ms,
                ended_unix_ms,
                gaps_us,
                blocked_by,
            }
        })
        .boxed()
}

fn any_moved() -> BoxedStrategy<Moved> {
    (server_ref(), number(), number(), prop_oneof![Just("Moved".to_owned()), text()], [text(), text(), text()])
        .prop_map(|(server, epoch, gap_us, result, [handoff, to_pod_uid, reason])| Moved {
            server,
            handoff,
            to_pod_uid,
            epoch,
            result,
            reason,
            gap_us,
        })
        .boxed()
}

fn any_body() -> BoxedStrategy<from_agent::Body> {
    let kind =
        (text(), small()).prop_map(|(name, version)| HostType { name, state_version: version, loads: vec![version] });
    let numbers = (number(), heartbeat(), number());
    let status = (any::<[bool; 2]>(), prop::collection::vec(kind, 0..3), text(), text(), numbers).prop_map(
        |([host_ready, draining], types, problem, reason, (directory_version, heartbeat, lease_ms))| Status {
            host_ready,
            draining,
            types,
            problem,
            directory_version,
            reason,
            heartbeat,
            lease_ms,
        },
    );
    prop_oneof![
        any_held().prop_map(from_agent::Body::Held),
        any_gone().prop_map(from_agent::Body::Gone),
        any_failed().prop_map(from_agent::Body::AssignFailed),
        any_moved().prop_map(from_agent::Body::Moved),
        any_report().prop_map(from_agent::Body::Drain),
        status.prop_map(from_agent::Body::Status),
        prop::collection::vec(any_held(), 0..4)
            .prop_map(|inventory| from_agent::Body::Hello(Hello { inventory, ..Hello::default() })),
    ]
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_an_agent_says_the_rest_goes_on(
        said in prop::collection::vec((1..3u64, any_body()), 0..25),
        inventory in prop::collection::vec(any_held(), 0..4),
    ) {
        let mut story = Story::with_pods(&[1, 2]);
        story.server(1, json!({}));
        story.server_with(3, json!({}), |object| object.spec.pool = "others".into());
        for (session, body) in said {
            story.says(session, body);
            story.pass(100);
        }
        story.event(Event::Closed(SessionId(2)));
        story.open(3, 2, inventory);
        story.pass(3_000);
        let other = &story.world.servers[&ServerUid("server-3".into())];
        prop_assert_eq!(&other.ownership, &Ownership::default(), "a server of another pool");
        // One that nobody could have spoken of is started as ever.
        story.server(7, json!({}));
        story.open(4, 1, vec![]);
        story.says(4, from_agent::Body::Status(Status { host_ready: true, types: vec![HostType { name: "room".into(), state_version: 1, loads: vec![1] }], ..Status::default() }));
        story.pass(1_000);
        let new = &story.world.servers[&ServerUid("server-7".into())];
        prop_assert!(new.ownership.outstanding.is_some(), "{:?}", new.unplaced);
    }
}
