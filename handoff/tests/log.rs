//! What a found record means, what a start may do, what cleanup may delete.

use std::time::Duration;

use handoff::{
    Epoch, Generation, HandoffId, PodUid, Sequence,
    claim::{Refusal, Start, Supersedes, decide},
    ids::LAST,
    log::{Authority, Found, Grantee, Header, Kind, Retention, Seen, Writer, deletable, found},
};
use proptest::prelude::*;

fn writer(pod: &str) -> Writer {
    Writer { pod: PodUid(pod.into()), generation: Generation(1) }
}

fn grant(to: &str, id: u64) -> Kind {
    Kind::Grant(Grantee { to: writer(to), handoff: HandoffId(id) })
}

fn record(sequence: u64, epoch: u64, kind: Kind, state_at: u64) -> Header {
    Header {
        sequence: Sequence(sequence),
        epoch: Epoch(epoch),
        kind,
        writer: writer("a"),
        nonce: sequence,
        state_at: Sequence(state_at),
        state_version: 1,
    }
}

#[test]
fn what_a_found_record_means() {
    let owner = Authority::Owner { epoch: Epoch(4), granted: Some(HandoffId(7)) };
    let handed = Authority::Handed { from: Epoch(4), handoff: HandoffId(7) };
    let snapshot = |epoch| record(9, epoch, Kind::Snapshot, 9);
    let table = [
        (&owner, snapshot(4), Found::InTheWay),
        (&owner, snapshot(3), Found::Fenced),
        (&owner, snapshot(5), Found::Fenced),
        (&owner, record(9, 4, grant("b", 7), 8), Found::InTheWay),
        (&owner, record(9, 4, grant("b", 8), 8), Found::Fenced),
        (&owner, record(9, 4, Kind::Release, 8), Found::Fenced),
        (&handed, snapshot(4), Found::InTheWay),
        (&handed, snapshot(5), Found::InTheWay),
        (&handed, snapshot(6), Found::Fenced),
        (&handed, record(9, 4, grant("b", 7), 9), Found::InTheWay),
        (&handed, record(9, 4, grant("c", 8), 9), Found::Fenced),
        (&handed, record(9, 4, Kind::Release, 9), Found::Fenced),
        (&handed, record(9, 6, Kind::Claim, 8), Found::Fenced),
        (&Authority::Reader, snapshot(4), Found::Fenced),
    ];
    for (authority, header, expected) in table {
        assert_eq!(found(authority, 1, &header), expected, "{authority:?} finds {header:?}");
        assert_eq!(found(authority, header.nonce, &header), Found::Ours);
    }
}

fn supersedes(epoch: u64, grantee: Option<&str>) -> Supersedes {
    Supersedes {
        epoch: Epoch(epoch),
        owner: PodUid("a".into()).into(),
        grantee: grantee.map(|pod| PodUid(pod.into()).into()),
    }
}

#[test]
fn how_a_server_starts() {
    let me = writer("c");
    let claim = |epoch, after, state_at| Start::Claim {
        epoch: Epoch(epoch),
        after: Sequence(after),
        state_at: Sequence(state_at),
        doubts: Vec::new(),
    };
    let snapshot = record(5, 3, Kind::Snapshot, 5);
    let released = record(6, 3, Kind::Release, 6);
    let granted = record(6, 3, grant("b", 7), 5);
    let table = [
        (None, None, claim(1, 0, 0)),
        (None, Some(supersedes(3, None)), Start::Refuse(Refusal::LogMissing { expected: Epoch(3) })),
        (Some(&snapshot), Some(supersedes(3, None)), claim(5, 5, 5)),
        (
            Some(&snapshot),
            Some(supersedes(1, None)),
            Start::Refuse(Refusal::OtherEpoch { found: Epoch(3), superseded: Epoch(1) }),
        ),
        (Some(&snapshot), None, Start::Refuse(Refusal::OtherEpoch { found: Epoch(3), superseded: Epoch(0) })),
        (Some(&released), None, claim(5, 6, 6)),
        (Some(&released), Some(supersedes(1, None)), claim(5, 6, 6)),
        (
            Some(&granted),
            Some(supersedes(3, None)),
            Start::Refuse(Refusal::Granted { epoch: Epoch(3), to: PodUid("b".into()) }),
        ),
        (Some(&granted), Some(supersedes(3, Some("b"))), claim(5, 6, 5)),
    ];
    for (newest, supersedes, expected) in table {
        assert_eq!(decide(newest, supersedes.as_ref(), &me), expected, "{newest:?} {supersedes:?}");
    }
    let to_me = decide(Some(&granted), Some(&supersedes(3, None)), &writer("b"));
    assert!(matches!(to_me, Start::ServeGrant { epoch: Epoch(4), after: Sequence(6), state_at: Sequence(5), .. }));
    let tombstone = record(7, 3, Kind::Tombstone { delete: false }, 5);
    assert_eq!(decide(Some(&tombstone), Some(&supersedes(3, None)), &me), Start::Refuse(Refusal::Deleted));
}

/// `durable-agent store restore` writes a Release of the epoch that a claim would take.
#[test]
fn a_restored_state_fences_owner_source_and_target_and_is_claimed_by_anyone() {
    let me = writer("me");
    for newest in [record(6, 4, Kind::Snapshot, 6), record(6, 4, grant("b", 7), 5), record(6, 5, Kind::Snapshot, 6)] {
        let restored = record(7, newest.epoch.claimed().0, Kind::Release, 7);
        for authority in [
            Authority::Owner { epoch: Epoch(4), granted: None },
            Authority::Owner { epoch: Epoch(4), granted: Some(HandoffId(7)) },
            Authority::Owner { epoch: Epoch(5), granted: None },
            Authority::Handed { from: Epoch(4), handoff: HandoffId(7) },
            Authority::Reader,
        ] {
            assert_eq!(found(&authority, 1, &restored), Found::Fenced, "{authority:?} after {newest:?}");
        }
        for over in [None, Some(supersedes(4, None)), Some(supersedes(5, Some("b"))), Some(supersedes(9, None))] {
            let (epoch, after, state_at) = (restored.epoch.claimed(), Sequence(7), Sequence(7));
            let claim = Start::Claim { epoch, after, state_at, doubts: Vec::new() };
            assert_eq!(decide(Some(&restored), over.as_ref(), &me), claim);
        }
    }
}

fn seen(header: Header, hours: Option<u64>) -> Seen {
    Seen { header, succeeded_for: hours.map(Duration::from_hours) }
}

#[test]
fn cleanup_counts_states_and_not_records() {
    // A state, and then three claims that point at it, each long succeeded.
    let log = [
        seen(record(1, 1, Kind::Snapshot, 1), Some(9)),
        seen(record(2, 3, Kind::Claim, 1), Some(9)),
        seen(record(3, 5, Kind::Claim, 1), Some(9)),
        seen(record(4, 7, Kind::Claim, 1), None),
    ];
    let retention = Retention { keep: 1, ..Retention::default() };
    assert_eq!(deletable(&log, &retention), [Sequence(2), Sequence(3)]);
}

proptest! {
    /// Numbers come from the network and from the store: none of them stops the process, and none is taken twice.
    #[test]
    fn any_numbers_are_judged(
        newest: [u64; 3], over: u64, from: u64, handoff: u64, kind in 0..5usize, to_me: bool,
    ) {
        let [sequence, epoch, state_at] = newest;
        let kinds = [Kind::Claim, Kind::Snapshot, grant(if to_me { "me" } else { "b" }, handoff), Kind::Release];
        let kind = kinds.get(kind).cloned().unwrap_or(Kind::Tombstone { delete: to_me });
        for sequence in [sequence, u64::MAX] {
            for epoch in [epoch, over, u64::MAX - 1, u64::MAX] {
                let newest = record(sequence, epoch, kind.clone(), state_at);
                for authority in [
                    Authority::Owner { epoch: Epoch(from), granted: Some(HandoffId(handoff)) },
                    Authority::Handed { from: Epoch(from), handoff: HandoffId(handoff) },
                    Authority::Handed { from: Epoch(u64::MAX), handoff: HandoffId(handoff) },
                ] {
                    let _ = found(&authority, sequence.wrapping_add(1), &newest);
                }
                let start = decide(Some(&newest), Some(&supersedes(over, None)), &writer("me"));
                if let Start::Claim { epoch: claimed, after, state_at, .. }
                | Start::ServeGrant { epoch: claimed, after, state_at, .. } = start
                {
                    prop_assert!(claimed > newest.epoch || epoch > LAST);
                    prop_assert!(after.next() > after || sequence == u64::MAX);
                    prop_assert_eq!((after, state_at), (newest.sequence, newest.state_at), "never a fresh start");
                }
            }
        }
    }

    /// However old everything is: the newest record stays, the newest states stay, and so does what a kept record
    /// points at; and nothing goes whose successor is young.
    #[test]
    fn cleanup_keeps_the_fence(
        kinds in prop::collection::vec((0..3u8, any::<bool>(), 0..120u64), 1..30),
        keep in 1..4usize,
    ) {
        let mut log: Vec<Seen> = Vec::new();
        let mut state = 0;
        let last = kinds.len() - 1;
        for (n, (kind, bears, minutes)) in kinds.into_iter().enumerate() {
            let sequence = n as u64 + 1;
            let kind = [Kind::Snapshot, Kind::Claim, Kind::Release][usize::from(kind)].clone();
            if bears || matches!(kind, Kind::Snapshot) {
                state = sequence;
            }
            let known = (n < last).then(|| Duration::from_mins(minutes));
            log.push(Seen { header: record(sequence, 1, kind, state), succeeded_for: known });
        }
        let retention = Retention { keep, ..Retention::default() };
        let gone = deletable(&log, &retention);
        let stays = |sequence: &Sequence| !gone.contains(sequence);
        prop_assert!(stays(&Sequence(log.len() as u64)));
        for seen in &log {
            let header = &seen.header;
            if stays(&header.sequence) && header.state_at > Sequence::NONE {
                prop_assert!(stays(&header.state_at), "{:?} points at a deleted record", header);
            }
            if !stays(&header.sequence) {
                let least = if header.kind == Kind::Snapshot { 10 } else { 60 };
                prop_assert!(seen.succeeded_for.is_some_and(|known| known >= Duration::from_mins(least)));
            }
        }
        let states: Vec<Sequence> =
            log.iter().filter(|seen| seen.header.bears_state()).map(|seen| seen.header.sequence).collect();
        prop_assert!(states.iter().rev().take(keep).all(stays));
    }
}
