//! Logs of deleted servers.

use std::time::Duration;

use handoff::{
    Epoch, HandoffId, Sequence, ServerUid,
    afterlife::{Earlier, End, GRACE, Inherited, Left, Undecided, Wish, heir, may_go},
    log::{Grantee, Header, Kind, Writer},
};

const KEPT: Kind = Kind::Tombstone { delete: false };
const UNWANTED: Kind = Kind::Tombstone { delete: true };

fn uid(name: &str) -> ServerUid {
    ServerUid(name.into())
}

fn log(name: &str, kind: Kind, at: u64) -> Earlier {
    let (sequence, state_at) = (Sequence(9), Sequence(7));
    let newest =
        Header { sequence, epoch: Epoch(3), kind, writer: Writer::default(), nonce: 1, state_at, state_version: 1 };
    Earlier { uid: uid(name), newest, at }
}

fn of(name: &str) -> Inherited {
    Inherited { uid: uid(name), state_at: Sequence(7) }
}

#[test]
fn a_new_server_starts_from_the_newest_state_that_was_kept() {
    assert_eq!(heir(&[], &Wish::Newest), Ok(None));
    let logs = [log("a", KEPT, 10), log("b", KEPT, 30), log("c", UNWANTED, 40), log("d", Kind::Release, 20)];
    assert_eq!(heir(&logs, &Wish::Newest), Ok(Some(of("b"))));
    assert_eq!(
        heir(&logs[2..], &Wish::Newest),
        Ok(Some(of("d"))),
        "released by the last pod, with nobody left to end it"
    );
    assert_eq!(heir(&logs[2..3], &Wish::Newest), Ok(None));
    assert_eq!(heir(&[log("a", KEPT, 10), log("b", KEPT, 10)], &Wish::Newest), Ok(Some(of("b"))));
}

#[test]
fn its_resource_may_say_otherwise() {
    let logs = [log("a", KEPT, 10), log("b", KEPT, 30), log("c", UNWANTED, 40)];
    assert_eq!(heir(&logs, &Wish::Fresh), Ok(None));
    for name in ["a", "c"] {
        assert_eq!(heir(&logs, &Wish::From(uid(name))), Ok(Some(of(name))));
    }
    assert_eq!(heir(&logs, &Wish::From(uid("z"))), Err(Undecided::NoLog(uid("z"))));
    let mut empty = log("a", KEPT, 10);
    empty.newest.state_at = Sequence::NONE;
    assert_eq!(heir(std::slice::from_ref(&empty), &Wish::From(uid("a"))), Err(Undecided::NoState(uid("a"))));
    assert_eq!(heir(&[empty], &Wish::Newest), Ok(None));
}

#[test]
fn a_log_that_does_not_end_is_neither_ignored_nor_taken_for_the_last_word() {
    let grant = Kind::Grant(Grantee { to: Writer::default(), handoff: HandoffId(1) });
    for kind in [Kind::Claim, Kind::Snapshot, grant] {
        let logs = [log("a", KEPT, 10), log("b", kind, 30)];
        assert_eq!(heir(&logs, &Wish::Newest), Err(Undecided::Open(uid("b"))));
        assert_eq!(heir(&logs, &Wish::From(uid("b"))), Ok(Some(of("b"))));
        assert_eq!(heir(&logs, &Wish::Fresh), Ok(None));
    }
    let older = [log("a", Kind::Snapshot, 10), log("b", KEPT, 30)];
    assert_eq!(heir(&older, &Wish::Newest), Ok(Some(of("b"))));
}

#[test]
fn whole_logs_go_only_when_nobody_can_need_them() {
    let young = GRACE.saturating_sub(Duration::from_secs(1));
    // How it ends, its age, the resource is known not to exist, kept states too; whether it goes.
    let cases = [
        (End::Deleted, young, true, true, false),
        (End::Deleted, GRACE, false, false, true),
        (End::Retained, GRACE, true, false, false),
        (End::Retained, GRACE, false, true, true),
        (End::Retained, young, false, true, false),
        (End::Released, GRACE * 100, false, true, false),
        (End::Released, GRACE, true, false, true),
        (End::Released, young, true, false, false),
        (End::Open, GRACE * 100, false, true, false),
        (End::Open, GRACE, true, false, true),
        (End::Open, young, true, false, false),
    ];
    for (end, age, unknown, retained, goes) in cases {
        let (may, why) = may_go(Left { end, age, unknown }, retained);
        assert_eq!(may, goes, "{end:?} {age:?} {unknown} {retained}: {why}");
    }
}
