//! The two machines of a handoff, step by step: what each event does in each phase, and that everything else does
//! nothing.

mod source_side;
mod target_side;

use std::time::Duration;

use handoff::{
    ids::{Epoch, Generation, HandoffId, Instant, PodUid, Sequence},
    log::{Grantee, Header, Kind, Writer},
    source::{Cause, Final, Limits, Mark, Source, State},
    target::Target,
};

const LIMITS: Limits = Limits {
    per_server: Duration::from_secs(5),
    freeze: Duration::from_secs(1),
    durable: Duration::from_secs(2),
    retry: Duration::from_secs(3),
};
const PATIENCE: Duration = Duration::from_secs(8);
const START: Instant = Instant(Duration::from_secs(100));
const LATE: Instant = Instant(Duration::from_secs(1000));
const GRANT: Sequence = Sequence(7);

fn at(seconds: u64) -> Instant {
    START + Duration::from_secs(seconds)
}

fn writer(pod: &str) -> Writer {
    Writer { pod: PodUid(pod.into()), generation: Generation(1) }
}

fn mark(revision: u64) -> Mark {
    Mark { instance: 1, revision, checksum: 9 }
}

fn state(revision: u64) -> State<u8> {
    State { mark: mark(revision), version: 3, body: 4 }
}

fn header(kind: Kind, epoch: u64, pod: &str) -> Header {
    let sequence = Sequence(8);
    Header { sequence, epoch: Epoch(epoch), kind, writer: writer(pod), nonce: 1, state_at: sequence, state_version: 3 }
}

fn why() -> String {
    "why".into()
}
