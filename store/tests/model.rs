//! Owners that come and go over one log while the store loses and delays: whatever the order, nothing that was
//! acknowledged is lost, nothing is written twice, and the log has no gap.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::{collections::HashSet, sync::Arc, time::Duration};

use common::{grant, log, owner, pointing, snapshot, writer};
use handoff::{
    Epoch, Sequence,
    log::{Authority, Header, Kind},
};
use proptest::prelude::*;
use store::{
    AppendError, Log, Memory, Objects, StoreError,
    memory::{Fault, Operation},
};
use tokio::time::Instant;

#[derive(Clone, Debug)]
enum Step {
    /// A process reads the log and claims it.
    Claim(usize),
    /// It writes what it thinks is next.
    Snapshot(usize),
    Grant(usize),
    /// Its next create meets this.
    Fault(Fault),
    /// A late create arrives.
    Release,
    Cleanup(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        Just(Fault::LoseAnswer),
        Just(Fault::Late),
        Just(Fault::Silent),
        Just(Fault::Fail(StoreError::Unknown("reset".into()))),
        Just(Fault::Fail(StoreError::Throttled("SlowDown".into()))),
        Just(Fault::Fail(StoreError::Denied("AccessDenied".into()))),
    ];
    prop_oneof![
        2 => (0..3usize).prop_map(Step::Claim),
        6 => (0..3usize).prop_map(Step::Snapshot),
        2 => (0..3usize).prop_map(Step::Grant),
        6 => fault.prop_map(Step::Fault),
        3 => Just(Step::Release),
        1 => (0..3usize).prop_map(Step::Cleanup),
    ]
}

/// One process with its log, and what it believes.
struct Process {
    name: String,
    log: Log,
    epoch: Option<Epoch>,
    last: Sequence,
    state_at: Sequence,
}

impl Process {
    async fn claim(&mut self, until: Instant) -> Option<Header> {
        let newest = self.log.read_newest(Sequence::NONE).await.unwrap().map(|newest| newest.header);
        let epoch = newest.as_ref().map_or(Epoch::NONE, |header| header.epoch).claimed();
        let (after, state_at) = newest.map_or_else(Default::default, |header| (header.sequence, header.state_at));
        let mut draft = pointing(epoch.0, Kind::Claim, state_at);
        draft.writer = writer(&self.name);
        let claimed = self.log.append(&Authority::Reader, draft, after, until).await.ok()?;
        self.epoch = Some(epoch);
        self.follow(&claimed);
        Some(claimed)
    }

    async fn write(&mut self, granting: Option<u64>, text: &str, until: Instant) -> Option<Header> {
        let epoch = self.epoch?;
        let mut draft = match granting {
            Some(handoff) => pointing(epoch.0, grant(handoff), self.state_at),
            None => snapshot(epoch.0, text),
        };
        draft.writer = writer(&self.name);
        match self.log.append(&owner(epoch.0), draft, self.last, until).await {
            Ok(header) => {
                self.follow(&header);
                Some(header)
            }
            Err(AppendError::Fenced(there)) => {
                assert_ne!((there.epoch, &there.writer.pod.0), (epoch, &self.name), "fenced by itself");
                self.epoch = None;
                None
            }
            Err(_) => None,
        }
    }

    fn follow(&mut self, header: &Header) {
        self.last = header.sequence;
        self.state_at = header.state_at;
    }
}

/// Runs the steps; returns every acknowledged header with its text.
async fn run(memory: &Arc<Memory>, steps: Vec<Step>) -> Vec<(Header, String)> {
    let objects: Arc<dyn Objects> = Arc::clone(memory) as _;
    let process = |n| Process {
        name: format!("process {n}"),
        log: log(&objects, ""),
        epoch: None,
        last: Sequence::NONE,
        state_at: Sequence::NONE,
    };
    let mut processes = [0, 1, 2].map(process);
    let mut acknowledged = Vec::new();
    for (n, step) in steps.into_iter().enumerate() {
        let (until, text) = (Instant::now() + Duration::from_secs(2), format!("text {n}"));
        let written = match step {
            Step::Claim(p) => processes[p].claim(until).await,
            Step::Snapshot(p) => processes[p].write(None, &text, until).await,
            Step::Grant(p) => processes[p].write(Some(n as u64), &text, until).await,
            Step::Fault(fault) => {
                memory.inject(Operation::Create, [fault]);
                None
            }
            Step::Release => {
                memory.release();
                None
            }
            // Nothing here is old enough to go, so this may not change anything.
            Step::Cleanup(p) => {
                assert_eq!(processes[p].log.cleanup(&handoff::log::Retention::default()).await.unwrap().deleted, 0);
                None
            }
        };
        acknowledged.extend(written.map(|header| (header, text)));
    }
    while memory.release().is_some() {}
    acknowledged
}

async fn check(memory: &Arc<Memory>, acknowledged: &[(Header, String)]) {
    let objects: Arc<dyn Objects> = Arc::clone(memory) as _;
    let reader = log(&objects, "");
    let length = memory.keys().len() as u64;
    let expected: Vec<String> = (1..=length).map(|n| reader.key(Sequence(n))).collect();
    assert_eq!(memory.keys(), expected, "the log has a gap");
    let headers: Vec<Header> =
        expected.iter().map(|key| store::record::decode_header(&memory.peek(key).unwrap()).unwrap()).collect();
    assert!(headers.is_sorted_by_key(|header| header.epoch), "a stale owner's record lies past its successor's");
    let nonces: HashSet<u64> = headers.iter().map(|header| header.nonce).collect();
    assert_eq!(nonces.len(), headers.len(), "a record was written twice");
    let mut state_at = Sequence::NONE;
    for header in &headers {
        if header.bears_state() {
            state_at = header.sequence;
        }
        assert_eq!(header.state_at, state_at, "{header:?} does not name the newest state");
    }
    for (header, text) in acknowledged {
        assert_eq!(headers.get(usize::try_from(header.sequence.0).unwrap() - 1), Some(header), "lost");
        if header.kind == Kind::Snapshot {
            assert_eq!(reader.read_state(header.sequence).await.unwrap().body, text.as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn nothing_acknowledged_is_lost(steps in proptest::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let memory = Arc::<Memory>::default();
            let acknowledged = run(&memory, steps).await;
            check(&memory, &acknowledged).await;
        });
    }
}
