//! An agent that is started beside a host which an earlier one left with a server.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{sync::Arc, time::Duration};

use agent::{
    adopt,
    agent::Agent,
    host::{Describe, ListedPhase, Mode, StartCall},
    lease::{self, boot_time},
    recover, start,
};
use bytes::Bytes;
use durable_sdk::Host;
use handoff::{
    Epoch, Generation, HandoffId, PodUid, Sequence,
    adopt::Told,
    log::{Authority, Grantee, Header, Kind, Writer},
};
use store::{Body, Draft, Log, Memory};
use support::notes::{self, Note, server};
use tempfile::TempDir;
use tokio::{sync::mpsc, time};
use wire::session::{self, FromAgent, assign_failed::Why, from_agent};

const PATIENCE: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_mins(1);

/// Of the agent that is gone.
const GENERATION: Generation = Generation(7);

struct Scene {
    agent: Arc<Agent>,
    store: Arc<Memory>,
    told: mpsc::UnboundedReceiver<FromAgent>,
    _dir: TempDir,
}

impl Scene {
    /// A host that was told of a lease of this length, and runs a server at this epoch; and the next agent, which has not
    /// looked at it yet.
    async fn begin(lease: Duration, epoch: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tokio::spawn(Host::new().serve::<Note>().listen(dir.path()).unwrap().serve_until(std::future::pending()));
        let agent = notes::agent(dir.path());
        let told = agent.operator.open(|| from_agent::Body::Status(session::Status::default()));
        let lease = Told { generation: GENERATION, deadline: boot_time() + lease };
        agent.host.lease(lease, 1, PATIENCE).await.unwrap();
        let scene = Self { agent, store: Arc::default(), told, _dir: dir };
        let id = server();
        let call = StartCall {
            id: &id,
            kind: "note",
            epoch: Epoch(epoch),
            attempt: 1,
            mode: Mode::Active,
            config: None,
            state: None,
        };
        // Only the gate of an agent with a lease lets a start through.
        scene.agent.host.gate().close_at(Some(boot_time() + LONG));
        scene.agent.host.start(&call, PATIENCE).await.unwrap();
        assert_eq!(scene.post("answered", epoch).await, Some(200));
        scene.agent.host.gate().close_at(None);
        let describe = scene.agent.host.describe(PATIENCE).await.unwrap();
        scene.agent.described.send_replace(Some(describe));
        scene
    }

    async fn post(&self, text: &'static str, epoch: u64) -> Option<u16> {
        notes::post(&self.agent, text, epoch).await
    }

    fn log(&self) -> Log {
        self.agent.open_log(&notes::pool(&self.store), &server()).unwrap()
    }

    /// The newest record, and its state.
    async fn newest(&self) -> (Header, Option<Bytes>) {
        let newest = self.log().read_newest(Sequence::NONE).await.unwrap().unwrap();
        (newest.header, newest.state.map(|state| state.body))
    }

    /// A record without a state, by this pod's earlier agent or another's.
    async fn written(&self, epoch: u64, pod: &str, kind: Kind) {
        let log = self.log();
        let newest = log.read_newest(Sequence::NONE).await.unwrap();
        let after = newest.map(|newest| newest.header.sequence).unwrap_or_default();
        let draft = Draft {
            epoch: Epoch(epoch),
            kind,
            writer: run(pod),
            body: Body::At { sequence: Sequence::NONE, version: 0 },
        };
        let until = time::Instant::now() + PATIENCE;
        log.append(&Authority::Reader, draft, after, until).await.unwrap();
    }

    async fn take_up(&self) {
        let leftovers = adopt::take_up(&self.agent).await;
        tokio::spawn(recover::release_leftovers(self.agent.clone(), leftovers));
    }

    /// The operator's word comes, and the store answers.
    fn assign(&self) {
        self.agent.pool.send_replace(Some(notes::pool(&self.store)));
        let id = server();
        let assign = session::Assign {
            assignment: 1,
            server: Some(session::ServerRef { namespace: id.namespace, name: id.name, uid: id.uid.0 }),
            spec_json: serde_json::json!({ "pool": "notes", "type": "note" }).to_string(),
            superseded_epoch: 1,
            superseded_pod_uid: "pod-b".into(),
            ..session::Assign::default()
        };
        start::assigned(&self.agent, assign);
    }

    async fn hear(&mut self) -> from_agent::Body {
        notes::hear(&mut self.told).await
    }

    async fn phase(&self) -> Option<ListedPhase> {
        self.agent.host.list(PATIENCE).await.unwrap().first().map(|listed| listed.phase)
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let begun = time::Instant::now();
        while !holds(self).await {
            assert!(begun.elapsed() < PATIENCE, "never: {what}");
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn goes_on(&self) -> bool {
        self.agent.lease.holds(GENERATION) && self.agent.starting.has(&server().uid)
    }
}

fn run(pod: &str) -> Writer {
    Writer { pod: PodUid(pod.into()), generation: GENERATION }
}

fn grant(to: &str) -> Kind {
    Kind::Grant(Grantee { to: run(to), handoff: HandoffId(9) })
}

#[tokio::test]
async fn what_serves_goes_on_and_is_held_again_once_the_operator_asks() {
    let mut scene = Scene::begin(LONG, 1).await;
    scene.written(1, "pod-b", Kind::Claim).await;
    scene.take_up().await;
    assert!(scene.goes_on(), "the same generation, and no inventory without it");
    assert_eq!(scene.post("more", 1).await, Some(200), "neither operator nor store were asked");
    let (heartbeat, _) = scene.agent.lease.beat().unwrap();
    assert_eq!(heartbeat.generation, GENERATION);
    assert!(heartbeat.counter > 1_000_000, "above what one agent counts: {heartbeat:?}");
    scene.assign();
    let from_agent::Body::Held(held) = scene.hear().await else { panic!("not held") };
    assert_eq!((held.epoch, held.durable, held.phase()), (1, true, session::Phase::Active));
    let (header, state) = scene.newest().await;
    assert_eq!((header.epoch, header.kind, header.writer), (Epoch(1), Kind::Snapshot, run("pod-b")));
    assert_eq!(state.unwrap(), "more", "what was not synced yet is now");
    assert!(!scene.agent.starting.has(&server().uid));
    assert_eq!(scene.post("still", 1).await, Some(200));
}

/// Its own Grant was on its way, or written, when the agent ended: the host serves, so nobody was sent the state.
#[tokio::test]
async fn a_grant_that_was_not_used_is_void() {
    let mut scene = Scene::begin(LONG, 1).await;
    scene.written(1, "pod-b", Kind::Claim).await;
    scene.written(1, "pod-b", grant("pod-c")).await;
    scene.take_up().await;
    assert!(scene.goes_on());
    scene.assign();
    assert!(matches!(scene.hear().await, from_agent::Body::Held(_)));
    let (header, state) = scene.newest().await;
    assert_eq!((header.sequence, header.kind, state.unwrap()), (Sequence(3), Kind::Snapshot, "answered".into()));
}

#[tokio::test]
async fn what_was_handed_here_goes_on_without_a_record_of_its_epoch() {
    let mut scene = Scene::begin(LONG, 2).await;
    scene.written(1, "pod-a", grant("pod-b")).await;
    scene.take_up().await;
    assert!(scene.goes_on());
    scene.assign();
    let from_agent::Body::Held(held) = scene.hear().await else { panic!("not held") };
    assert_eq!(held.epoch, 2);
    let (header, state) = scene.newest().await;
    assert_eq!((header.epoch, header.writer, state.unwrap()), (Epoch(2), run("pod-b"), "answered".into()));
}

#[tokio::test]
async fn what_the_log_gave_to_another_is_stopped() {
    let mut scene = Scene::begin(LONG, 1).await;
    scene.written(3, "pod-c", Kind::Claim).await;
    scene.take_up().await;
    scene.assign();
    let from_agent::Body::AssignFailed(failed) = scene.hear().await else { panic!("held") };
    assert_eq!((failed.why(), failed.newest_epoch, failed.newest_pod_uid.as_str()), (Why::RefusedByLog, 3, "pod-c"));
    assert_eq!(scene.phase().await, None);
    assert!(!scene.agent.starting.has(&server().uid));
}

#[tokio::test]
async fn what_is_frozen_stays_so() {
    for (last, ends_with) in [(Kind::Claim, Kind::Release), (grant("pod-c"), grant("pod-c"))] {
        let scene = Scene::begin(LONG, 1).await;
        scene.written(1, "pod-b", last).await;
        scene.agent.host.freeze(&server().uid, Epoch(1), 2, None, PATIENCE).await.unwrap();
        scene.take_up().await;
        assert!(!scene.goes_on());
        assert!(scene.agent.lease.writer().generation > GENERATION);
        assert_eq!(scene.phase().await, Some(ListedPhase::Frozen));
        scene.agent.pool.send_replace(Some(notes::pool(&scene.store)));
        scene.until("its last state", async |scene| scene.newest().await.1.is_some()).await;
        let (header, state) = scene.newest().await;
        assert_eq!((header.kind, state.unwrap()), (ends_with, "answered".into()));
        scene.until("its end", async |scene| scene.phase().await.is_none()).await;
    }
}

#[tokio::test]
async fn nothing_goes_on_without_a_living_lease_that_the_host_minds_itself() {
    let over = Scene::begin(Duration::from_millis(300), 1).await;
    over.until("its end", async |scene| !scene.agent.host.told(PATIENCE).await.unwrap().lives(boot_time())).await;
    let older = Scene::begin(LONG, 1).await;
    let features = serde_json::json!({ "contract": 1, "instance": 7, "types": [], "features": ["lease"] });
    older.agent.described.send_replace(Some(serde_json::from_value::<Describe>(features).unwrap()));
    for scene in [over, older] {
        scene.take_up().await;
        assert!(!scene.goes_on());
        assert!(scene.agent.lease.writer().generation > GENERATION);
        assert_eq!(scene.phase().await, Some(ListedPhase::Frozen));
    }
}

/// An agent that begins a generation gives up, by its inventory, what an earlier one had: no later agent may take that up.
#[tokio::test]
async fn a_generation_begins_when_the_host_is_over_with_the_one_before() {
    let scene = Scene::begin(LONG, 1).await;
    scene.agent.host.freeze(&server().uid, Epoch(1), 2, None, PATIENCE).await.unwrap();
    scene.take_up().await;
    let told = scene.agent.host.told(PATIENCE).await.unwrap();
    assert!(told.generation > GENERATION && told.generation < scene.agent.lease.writer().generation, "{told:?}");
}

#[tokio::test]
async fn what_goes_on_ends_with_the_lease() {
    let scene = Scene::begin(Duration::from_millis(1500), 1).await;
    scene.written(1, "pod-b", Kind::Claim).await;
    scene.take_up().await;
    assert!(scene.goes_on());
    tokio::spawn(lease::keep(scene.agent.clone()));
    let after = |scene: &Scene| scene.agent.lease.writer().generation > GENERATION;
    scene.until("a new generation", async |scene| after(scene)).await;
    assert_eq!(scene.phase().await, Some(ListedPhase::Frozen));
    assert!(!scene.agent.starting.has(&server().uid), "its absence from the inventory is a word");
    scene.agent.pool.send_replace(Some(notes::pool(&scene.store)));
    scene.until("a Release", async |scene| scene.newest().await.0.kind == Kind::Release).await;
}

/// What the run before left in the socket of a host that was busy.
#[tokio::test]
async fn no_late_call_of_the_earlier_agent_is_done() {
    let scene = Scene::begin(LONG, 1).await;
    scene.take_up().await;
    let late = scene.agent.host.freeze(&server().uid, Epoch(1), 3, None, PATIENCE).await;
    assert!(late.is_err(), "{late:?}");
    assert_eq!(scene.phase().await, Some(ListedPhase::Active));
}
