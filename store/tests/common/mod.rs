//! What the tests share: drafts, and a log to write them to.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use handoff::{
    Epoch, Generation, HandoffId, PodUid, Sequence, ServerId, ServerUid,
    log::{Authority, Grantee, Header, Kind, Writer},
};
use store::{AppendError, Body, Draft, Lanes, Log, Objects, State};
use tokio::time::Instant;

pub const MAX_STATE: u64 = 4 << 20;

pub fn server(name: &str) -> ServerId {
    ServerId { namespace: "tests".into(), name: name.into(), uid: ServerUid(format!("uid-of-{name}")) }
}

pub fn log(objects: &Arc<dyn Objects>, prefix: &str) -> Log {
    Log::new(Lanes::from(Arc::clone(objects)), prefix, &server("room"), MAX_STATE).unwrap()
}

pub fn writer(pod: &str) -> Writer {
    Writer { pod: PodUid(pod.into()), generation: Generation(1) }
}

pub fn owner(epoch: u64) -> Authority {
    Authority::Owner { epoch: Epoch(epoch), granted: None }
}

pub fn snapshot(epoch: u64, text: &str) -> Draft {
    let body = Body::State(State { version: 7, body: Bytes::copy_from_slice(text.as_bytes()) });
    Draft { epoch: Epoch(epoch), kind: Kind::Snapshot, writer: writer(&format!("pod-{epoch}")), body }
}

pub fn pointing(epoch: u64, kind: Kind, state_at: Sequence) -> Draft {
    let writer = writer(&format!("pod-{epoch}"));
    Draft { epoch: Epoch(epoch), kind, writer, body: Body::At { sequence: state_at, version: 7 } }
}

pub fn grant(handoff: u64) -> Kind {
    Kind::Grant(Grantee { to: writer("target"), handoff: HandoffId(handoff) })
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Claims an empty log for epoch 1 and writes one snapshot.
pub async fn begin(log: &Log) -> Header {
    let claim = pointing(1, Kind::Claim, Sequence::NONE);
    let claim = log.append(&Authority::Reader, claim, Sequence::NONE, soon()).await.unwrap();
    log.append(&owner(1), snapshot(1, "first"), claim.sequence, soon()).await.unwrap()
}

pub fn fenced(result: Result<Header, AppendError>) -> Header {
    match result {
        Err(AppendError::Fenced(header)) => *header,
        other => panic!("expected to be fenced, got {other:?}"),
    }
}

/// A Snapshot, Claim or Grant that bears no state yet.
pub fn header(sequence: u64, kind: u8) -> Header {
    let kind = [Kind::Snapshot, Kind::Claim, grant(1)][usize::from(kind)].clone();
    let (sequence, state_at) = (Sequence(sequence), Sequence::NONE);
    Header { sequence, epoch: Epoch(1), kind, writer: writer("pod"), nonce: 0, state_at, state_version: 0 }
}
