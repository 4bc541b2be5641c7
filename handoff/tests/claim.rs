//! Claims over owners that were only silent: what must be looked up first. The rest of claiming is under the model checker.

use handoff::{
    Epoch, Generation, HandoffId, PodUid, Sequence,
    claim::{Doubt, Over, Refusal, Start, Supersedes, decide},
    lease::Heartbeat,
    log::{Grantee, Header, Kind, Writer},
};

fn run(pod: &str, generation: u64) -> Writer {
    Writer { pod: PodUid(pod.into()), generation: Generation(generation) }
}

fn newest(kind: Kind, writer: Writer) -> Header {
    let (sequence, state_at) = (Sequence(4), Sequence(3));
    Header { sequence, epoch: Epoch(3), kind, writer, nonce: 1, state_at, state_version: 1 }
}

fn silent(pod: &str, generation: u64, counter: u64) -> Over {
    Over { pod: PodUid(pod.into()), silent: Some(Heartbeat { generation: Generation(generation), counter }) }
}

fn proven(pod: &str) -> Over {
    PodUid(pod.into()).into()
}

fn grant(to: Writer) -> Kind {
    Kind::Grant(Grantee { to, handoff: HandoffId(1) })
}

fn doubts(newest: &Header, owner: Over, grantee: Option<Over>) -> Result<Vec<Doubt>, Refusal> {
    match decide(Some(newest), Some(&Supersedes { epoch: Epoch(3), owner, grantee }), &run("me", 2)) {
        Start::Claim { doubts, .. } | Start::ServeGrant { doubts, .. } => Ok(doubts),
        Start::Refuse(refusal) => Err(refusal),
    }
}

#[test]
fn a_silent_owner_is_looked_up_by_the_generation_that_wrote_the_log() {
    let doubt = |of: Writer, above| Ok(vec![Doubt { of, above }]);
    let newest = newest(Kind::Snapshot, run("a", 7));
    for (name, owner, expected) in [
        ("proven: nothing to look up", proven("a"), Ok(vec![])),
        ("its last heartbeat", silent("a", 7, 12), doubt(run("a", 7), 12)),
        ("never heard of: any heartbeat", silent("a", 0, 0), doubt(run("a", 7), 0)),
        ("heard of an earlier generation only", silent("a", 6, 99), doubt(run("a", 7), 0)),
        ("a later generation has nothing left of this one", silent("a", 8, 1), Ok(vec![])),
        (
            "the silence of another pod is nothing",
            silent("x", 7, 12),
            Err(Refusal::OtherOwner { epoch: Epoch(3), found: PodUid("a".into()), named: PodUid("x".into()) }),
        ),
        (
            "nor is what is proven of another, which never claimed it",
            proven("x"),
            Err(Refusal::OtherOwner { epoch: Epoch(3), found: PodUid("a".into()), named: PodUid("x".into()) }),
        ),
        (
            "an owner that is not known must be asked for",
            proven(""),
            Err(Refusal::OtherOwner { epoch: Epoch(3), found: PodUid("a".into()), named: PodUid::default() }),
        ),
    ] {
        assert_eq!(doubts(&newest, owner, None), expected, "{name}");
    }
}

#[test]
fn of_a_grant_both_pods_are_looked_up() {
    let to_b = newest(grant(run("b", 2)), run("a", 7));
    let a = || Doubt { of: run("a", 7), above: 12 };
    let b = || Doubt { of: run("b", 2), above: 5 };
    assert_eq!(doubts(&to_b, silent("a", 7, 12), Some(silent("b", 2, 5))), Ok(vec![a(), b()]));
    assert_eq!(doubts(&to_b, proven("a"), Some(silent("b", 2, 5))), Ok(vec![b()]));
    assert_eq!(doubts(&to_b, silent("a", 7, 12), Some(proven("b"))), Ok(vec![a()]));
    let granted = Err(Refusal::Granted { epoch: Epoch(3), to: PodUid("b".into()) });
    assert_eq!(doubts(&to_b, silent("a", 7, 12), None), granted);
    assert_eq!(doubts(&to_b, silent("a", 7, 12), Some(silent("c", 2, 5))), granted, "another pod is named");
    let to_me = newest(grant(run("me", 2)), run("a", 7));
    assert_eq!(doubts(&to_me, silent("a", 7, 12), None), Ok(vec![a()]), "the granted pod looks up the owner too");
}

#[test]
fn a_grant_to_an_earlier_generation_of_this_pod_is_claimed_and_not_served() {
    let to_me_before = newest(grant(run("me", 1)), run("a", 7));
    let supersedes = Supersedes { epoch: Epoch(3), owner: proven("a"), grantee: None };
    let start = decide(Some(&to_me_before), Some(&supersedes), &run("me", 2));
    assert!(matches!(start, Start::Claim { epoch: Epoch(5), .. }), "{start:?}");
}

#[test]
fn a_release_needs_no_grounds() {
    let released = newest(Kind::Release, run("a", 7));
    assert_eq!(doubts(&released, silent("x", 9, 9), None), Ok(vec![]));
}
