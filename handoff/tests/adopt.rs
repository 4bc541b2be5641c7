//! What a restarted agent takes up: tables.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use handoff::{
    Epoch, Generation, HandoffId, Instant, PodUid, Sequence,
    adopt::{Hold, Phase, Told, goes_on, hold, last},
    log::{Authority, Found, Grantee, Header, Kind, Writer, found},
};

fn at(ms: u64) -> Instant {
    Instant(Duration::from_millis(ms))
}

fn writer(pod: &str, generation: u64) -> Writer {
    Writer { pod: PodUid(pod.into()), generation: Generation(generation) }
}

fn record(epoch: u64, kind: Kind, writer: Writer) -> Header {
    let (sequence, state_at) = (Sequence(8), Sequence(2));
    Header { sequence, epoch: Epoch(epoch), kind, writer, nonce: 1, state_at, state_version: 1 }
}

fn grant(to: Writer) -> Kind {
    Kind::Grant(Grantee { to, handoff: HandoffId(6) })
}

#[test]
fn only_what_serves_under_a_living_lease_goes_on() {
    let told = Some(Told { generation: Generation(3), deadline: at(1_000) });
    let cases = [
        (told, Phase::Active, 3, 999, true),
        (told, Phase::Active, 3, 1_000, false),
        (told, Phase::Active, 2, 999, false),
        (told, Phase::Frozen, 3, 999, false),
        (told, Phase::Standby, 3, 999, false),
        (None, Phase::Active, 3, 999, false),
        (Some(Told { generation: Generation(3), deadline: at(601_000) }), Phase::Active, 3, 999, false),
        (Some(Told { generation: Generation(3), deadline: at(601_000) }), Phase::Active, 3, 1_000, true),
    ];
    for case @ (told, phase, generation, now, expected) in cases {
        assert_eq!(goes_on(told, phase, Generation(generation), at(now)), expected, "{case:?}");
    }
}

#[test]
fn the_log_says_whose_it_is() {
    let me = writer("b", 3);
    let handed = Hold::Handed { from: Epoch(4), after: Sequence(8), handoff: HandoffId(6) };
    let cases = [
        (record(5, Kind::Claim, me.clone()), Hold::Owned),
        (record(5, Kind::Snapshot, me.clone()), Hold::Owned),
        (record(5, grant(writer("c", 1)), me.clone()), Hold::Owned),
        (record(5, Kind::Release, me.clone()), Hold::Lost),
        (record(5, Kind::Tombstone { delete: false }, me.clone()), Hold::Lost),
        (record(5, Kind::Snapshot, writer("b", 2)), Hold::Lost),
        (record(5, Kind::Snapshot, writer("c", 3)), Hold::Lost),
        (record(6, Kind::Snapshot, writer("c", 3)), Hold::Lost),
        (record(7, Kind::Claim, writer("b", 3)), Hold::Lost),
        (record(4, grant(me.clone()), writer("a", 9)), handed),
        (record(4, grant(writer("b", 2)), writer("a", 9)), Hold::Lost),
        (record(4, Kind::Snapshot, writer("a", 9)), Hold::Lost),
        (record(3, grant(me.clone()), writer("a", 9)), Hold::Lost),
    ];
    for (newest, expected) in cases {
        assert_eq!(hold(Some(&newest), Epoch(5), &me), expected, "{newest:?}");
    }
    assert_eq!(hold(None, Epoch(5), &me), Hold::Lost);
}

#[test]
fn a_frozen_server_may_have_been_sent() {
    let (me, to) = (writer("b", 3), grant(writer("c", 1)));
    let granted = record(5, to.clone(), me.clone());
    assert_eq!(last(&granted, Phase::Frozen), to);
    assert_eq!(last(&granted, Phase::Active), Kind::Release);
    assert_eq!(last(&record(5, Kind::Snapshot, me), Phase::Frozen), Kind::Release);
}

/// What the run before had on its way when it ended.
#[test]
fn its_own_records_are_in_the_way_whatever_they_are() {
    let authority = Authority::Adopted { epoch: Epoch(5) };
    let me = writer("b", 3);
    let cases = [
        (record(5, Kind::Snapshot, me.clone()), Found::InTheWay),
        (record(5, Kind::Claim, me.clone()), Found::InTheWay),
        (record(5, grant(writer("c", 1)), me.clone()), Found::InTheWay),
        (record(5, Kind::Release, me.clone()), Found::Fenced),
        (record(5, Kind::Tombstone { delete: true }, me.clone()), Found::Fenced),
        (record(6, Kind::Snapshot, writer("c", 1)), Found::Fenced),
        (record(7, Kind::Claim, writer("c", 1)), Found::Fenced),
    ];
    for (there, expected) in cases {
        assert_eq!(found(&authority, 77, &there), expected, "{there:?}");
    }
    assert_eq!(found(&authority, 1, &record(5, Kind::Snapshot, me)), Found::Ours);
}
