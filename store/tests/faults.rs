//! The log when the store loses, delays, refuses or damages: against the store in memory, in stopped time.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use common::{begin, fenced, grant, log, owner, pointing, snapshot, soon};
use handoff::{
    Epoch, HandoffId, Sequence,
    log::{Authority, Kind},
};
use store::{
    AppendError, Created, Listed, Memory, Objects, Part, ReadError, StoreError,
    memory::{Fault, Operation},
    probe::{Probe, probe},
    record::RecordError,
};
use tokio::time::{Instant, timeout};

fn store() -> (Arc<Memory>, Arc<dyn Objects>) {
    let memory = Arc::<Memory>::default();
    (Arc::clone(&memory), memory)
}

fn unknown() -> Fault {
    Fault::Fail(StoreError::Unknown("connection reset".into()))
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, AppendError>) -> StoreError {
    match result {
        Err(AppendError::Unavailable(error)) => error,
        other => panic!("expected to be unavailable, got {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_to_be_ours() {
    let (memory, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    memory.inject(Operation::Create, [Fault::LoseAnswer]);
    let second = log.append(&owner(1), snapshot(1, "second"), first.sequence, soon()).await.unwrap();
    assert_eq!(second.sequence, first.sequence.next());
    assert_eq!(memory.keys().len(), 3);
    assert_eq!(log.read_newest(second.sequence).await.unwrap().unwrap().header, second);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_passes_is_waited_out() {
    let (memory, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    let slow_down = Fault::Fail(StoreError::Throttled("SlowDown".into()));
    memory.inject(Operation::Create, [slow_down.clone(), unknown(), slow_down, Fault::LoseAnswer]);
    memory.inject(Operation::Get, [unknown()]);
    let second = log.append(&owner(1), snapshot(1, "second"), first.sequence, soon()).await.unwrap();
    assert_eq!(second.sequence, first.sequence.next());
}

#[tokio::test(start_paused = true)]
async fn refused_keys_are_reported_at_once() {
    let (memory, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    memory.inject(Operation::Create, [Fault::Fail(StoreError::Denied("AccessDenied".into()))]);
    let begin = Instant::now();
    let error = unavailable(log.append(&owner(1), snapshot(1, "second"), first.sequence, soon()).await);
    assert!(error.needs_a_person());
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn nothing_further_on_is_tried_while_a_create_is_unknown() {
    let (memory, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    memory.inject(Operation::Create, vec![unknown(); 1000]);
    for n in 0..3 {
        let begin = Instant::now();
        unavailable(log.append(&owner(1), snapshot(1, &n.to_string()), first.sequence, soon()).await);
        assert!(begin.elapsed() <= Duration::from_secs(20), "the deadline holds");
    }
    memory.heal();
    let next = log.append(&owner(1), snapshot(1, "at last"), first.sequence, soon()).await.unwrap();
    assert_eq!((next.sequence, memory.keys().len()), (first.sequence.next(), 3));
}

/// Every kind of record may be the one that was given up: the log goes on, wherever the late one lands.
#[tokio::test(start_paused = true)]
async fn a_late_create_is_resolved_by_the_next_append() {
    for kind in [Kind::Snapshot, grant(8), Kind::Release] {
        for lands_first in [true, false] {
            let (memory, objects) = store();
            let log = log(&objects, "");
            let first = begin(&log).await;
            memory.inject(Operation::Create, [Fault::Silent]);
            let mut given_up = snapshot(1, "given up");
            given_up.kind = kind.clone();
            let soon_over = Instant::now() + Duration::from_secs(3);
            unavailable(log.append(&owner(1), given_up, first.sequence, soon_over).await);
            if lands_first {
                assert_eq!(memory.release(), Some(Created::Created));
            }
            let next =
                log.append(&owner(1), pointing(1, grant(9), first.sequence), first.sequence, soon()).await.unwrap();
            if lands_first {
                assert_eq!(next.sequence, Sequence(4), "{kind:?}");
                assert_eq!(next.state_at, Sequence(3), "a pointer names the newest state, the late one's: {kind:?}");
                assert_eq!(log.read_state(next.state_at).await.unwrap().body, "given up");
            } else {
                assert_eq!((next.sequence, next.state_at), (Sequence(3), Sequence(2)), "{kind:?}");
                assert_eq!(memory.release(), Some(Created::Exists));
            }
            assert_eq!(log.read_newest(Sequence(2)).await.unwrap().unwrap().header, next);
            // Who has not tried to write it knows nothing of the late record, and is fenced by a Grant or Release.
            if lands_first && kind != Kind::Snapshot {
                let other = common::log(&objects, "");
                let there = fenced(other.append(&owner(1), snapshot(1, "other"), first.sequence, soon()).await);
                assert_eq!(there.sequence, Sequence(3));
            }
        }
    }
}

/// Its target refused while the Grant was being written, and the next target was granted it before that was answered.
#[tokio::test(start_paused = true)]
async fn a_grant_of_a_handoff_that_was_given_up_is_no_fence() {
    let (_, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    let granting = |handoff| {
        let authority = Authority::Owner { epoch: Epoch(1), granted: Some(HandoffId(handoff)) };
        (authority, pointing(1, grant(handoff), first.sequence))
    };
    let (given_up, next) = (granting(8), granting(9));
    log.append(&given_up.0, given_up.1, first.sequence, soon()).await.unwrap();
    let next = log.append(&next.0, next.1, first.sequence, soon()).await.unwrap();
    assert_eq!((next.sequence, next.kind), (Sequence(4), grant(9)));
}

#[tokio::test(start_paused = true)]
async fn a_late_create_of_an_earlier_epoch_is_looked_at_first() {
    let (memory, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    memory.inject(Operation::Create, [Fault::Late, Fault::Fail(StoreError::Denied("AccessDenied".into()))]);
    unavailable(log.append(&owner(1), pointing(1, grant(8), first.sequence), first.sequence, soon()).await);
    assert_eq!(memory.release(), Some(Created::Created));
    let claim = pointing(3, Kind::Claim, first.sequence);
    let there = fenced(log.append(&Authority::Reader, claim, first.sequence, soon()).await);
    assert_eq!((there.sequence, there.kind), (Sequence(3), grant(8)));
}

#[tokio::test(start_paused = true)]
async fn an_append_may_be_dropped_and_tried_again_many_times() {
    let (memory, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    let authority = owner(1);
    for n in 0..5 {
        memory.inject(Operation::Create, [Fault::Silent]);
        let dropped = log.append(&authority, pointing(1, grant(n), first.sequence), first.sequence, soon());
        assert!(timeout(Duration::from_millis(500), dropped).await.is_err());
    }
    // One of them lands, and it can only be one.
    assert_eq!(memory.release(), Some(Created::Created));
    let next = log.append(&owner(1), snapshot(1, "on"), first.sequence, soon()).await.unwrap();
    assert_eq!(next.sequence, Sequence(4));
    while let Some(created) = memory.release() {
        assert_eq!(created, Created::Exists);
    }
    assert_eq!(memory.keys().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn one_create_is_in_flight_at_a_time() {
    let (memory, objects) = store();
    let log = Arc::new(log(&objects, ""));
    let first = begin(&log).await;
    memory.inject(Operation::Create, [Fault::Silent]);
    let (one, after) = (Arc::clone(&log), first.sequence);
    let one = tokio::spawn(async move { one.append(&owner(1), snapshot(1, "one"), after, soon()).await });
    tokio::task::yield_now().await;
    let until = Instant::now() + Duration::from_secs(5);
    let error = unavailable(log.append(&owner(1), snapshot(1, "two"), after, until).await);
    assert!(error.to_string().contains("an earlier record"), "{error}");
    unavailable(one.await.unwrap());
    let two = log.append(&owner(1), snapshot(1, "two"), after, soon()).await.unwrap();
    assert_eq!(two.sequence, Sequence(3));
}

/// A store that answers creates late, though it answers.
#[derive(Debug)]
struct Slow(Arc<Memory>);

#[async_trait]
impl Objects for Slow {
    async fn create(&self, key: &str, body: Bytes) -> Result<Created, StoreError> {
        let created = self.0.create(key, body).await;
        // The process stands still, as in a paused virtual machine, and both the answer and the deadline are there when it goes on.
        tokio::time::advance(Duration::from_secs(30)).await;
        created
    }

    async fn get(&self, key: &str, part: Part) -> Result<Option<Bytes>, StoreError> {
        self.0.get(key, part).await
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Vec<Listed>, StoreError> {
        self.0.list(prefix, start_after, limit).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_success_after_the_deadline_does_not_count() {
    let (memory, objects) = store();
    let first = begin(&log(&objects, "")).await;
    let slow: Arc<dyn Objects> = Arc::new(Slow(Arc::clone(&memory)));
    let log = log(&slow, "");
    unavailable(log.append(&owner(1), snapshot(1, "late"), first.sequence, soon()).await);
    assert_eq!(memory.keys().len(), 3, "it was written all the same");
    let past = Instant::now();
    unavailable(log.append(&owner(1), snapshot(1, "later"), Sequence(3), past).await);
    assert_eq!(memory.keys().len(), 3, "nothing is sent after the deadline");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_exist_costs_no_request() {
    let (memory, objects) = store();
    let log = log(&objects, "");
    let first = begin(&log).await;
    log.append(&owner(1), snapshot(1, "second"), first.sequence, soon()).await.unwrap();
    memory.inject(Operation::Get, vec![unknown(); 100]);
    let granted = pointing(1, grant(1), first.sequence);
    let granted = log.append(&owner(1), granted, first.sequence, soon()).await.unwrap();
    assert_eq!((granted.sequence, granted.state_at), (Sequence(4), Sequence(3)));
}

#[tokio::test(start_paused = true)]
async fn the_target_passes_the_source_s_stragglers() {
    let (_, objects) = store();
    let (source, target) = (log(&objects, ""), log(&objects, ""));
    let first = begin(&source).await;
    let granted =
        source.append(&owner(1), pointing(1, grant(7), first.sequence), first.sequence, soon()).await.unwrap();
    let granting = Authority::Owner { epoch: handoff::Epoch(1), granted: Some(handoff::HandoffId(7)) };
    let mut repeat = snapshot(1, "final");
    repeat.kind = grant(7);
    let repeat = source.append(&granting, repeat, granted.sequence, soon()).await.unwrap();
    let handed = Authority::Handed { from: handoff::Epoch(1), handoff: handoff::HandoffId(7) };
    let there = target.append(&handed, snapshot(2, "final"), granted.sequence, soon()).await.unwrap();
    assert_eq!(there.sequence, repeat.sequence.next());
    assert_eq!(fenced(source.append(&granting, snapshot(1, "back"), repeat.sequence, soon()).await), there);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_newest_record_is_an_error_and_never_a_fresh_start() {
    let (memory, objects) = store();
    let writer = log(&objects, "");
    let first = begin(&writer).await;
    let key = writer.key(first.sequence);
    let intact = memory.peek(&key).unwrap();
    let mut flipped = intact.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    let elsewhere = memory.peek(&writer.key(Sequence(1))).unwrap();
    for damaged in [Bytes::new(), Bytes::from_static(b"<html>"), intact.slice(..40), flipped.into(), elsewhere] {
        memory.force(&key, damaged);
        let read = log(&objects, "").read_newest(Sequence::NONE).await;
        assert!(matches!(&read, Err(ReadError::Unreadable { sequence: Sequence(2), .. })), "{read:?}");
    }
    memory.force(&key, Bytes::from_static(b"DSRV\x00\x02.........."));
    let append = log(&objects, "").append(&owner(1), snapshot(1, "over"), Sequence(1), soon()).await;
    let newer = RecordError::Format { found: 2 };
    assert_eq!(append, Err(AppendError::Unreadable { sequence: Sequence(2), error: newer }));
    assert_eq!(memory.keys().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_read_is_not_an_empty_log() {
    let (memory, objects) = store();
    let reader = log(&objects, "");
    let error = StoreError::Other("500".into());
    memory.inject(Operation::List, [Fault::Fail(error.clone())]);
    assert_eq!(reader.read_newest(Sequence::NONE).await, Err(ReadError::Store(error.clone())));
    assert_eq!(reader.read_newest(Sequence(1)).await, Err(ReadError::HintMissing(Sequence(1))));
    let first = begin(&log(&objects, "")).await;
    memory.inject(Operation::Get, [Fault::Fail(error.clone())]);
    assert_eq!(reader.read_newest(Sequence::NONE).await, Err(ReadError::Store(error)));
    memory.inject(Operation::Get, [Fault::Absent]);
    assert_eq!(reader.read_newest(Sequence::NONE).await.unwrap().unwrap().header, first);
    memory.inject(Operation::Get, vec![Fault::Absent; 5]);
    assert_eq!(reader.read_newest(Sequence::NONE).await, Err(ReadError::Vanishing(Sequence(2))));
}

#[tokio::test(start_paused = true)]
async fn a_probe_tells_silence_from_disregard() {
    let (memory, objects) = store();
    memory.inject(Operation::Create, [Fault::LoseAnswer, unknown()]);
    assert_eq!(probe(objects.as_ref(), "p").await, Probe::Ok);
    memory.inject(Operation::Create, vec![unknown(); 5]);
    assert!(matches!(probe(objects.as_ref(), "p").await, Probe::Unreachable(_)));
    memory.inject(Operation::Create, [Fault::Fail(StoreError::Denied("AccessDenied".into()))]);
    assert!(matches!(probe(objects.as_ref(), "p").await, Probe::Denied(_)));
    assert_eq!(memory.keys(), Vec::<String>::new());
    let deaf = Memory::ignoring_conditions();
    deaf.inject(Operation::Create, [Fault::LoseAnswer, unknown()]);
    assert_eq!(probe(&deaf, "p").await, Probe::IgnoresConditions);
}
