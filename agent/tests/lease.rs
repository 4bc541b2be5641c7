//! An agent with its lease, a host and a store: what it does when nobody answers, and what it claims from whom.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{sync::Arc, time::Duration};

use agent::{
    agent::Agent,
    host::{HostClient, HostError, ListedPhase, Mode, StartCall},
    lease, recover,
    release::release,
    start,
};
use bytes::Bytes;
use durable_sdk::Host;
use handoff::{
    Epoch, Generation, PodUid, Sequence,
    adopt::Told,
    log::{Authority, Kind, Writer},
};
use http_body_util::{Either, Full};
use hyper::Request;
use store::{
    Body, Draft, Heartbeats, Log, Memory, StoreError,
    memory::{Fault, Operation},
};
use support::notes::{self, Note, server};
use tempfile::TempDir;
use tokio::{sync::mpsc, time};
use wire::session::{self, FromAgent, assign_failed::Why, from_agent};

struct Scene {
    agent: Arc<Agent>,
    store: Arc<Memory>,
    told: mpsc::UnboundedReceiver<FromAgent>,
    _dir: TempDir,
}

const PATIENCE: Duration = Duration::from_secs(20);

impl Scene {
    /// An agent whose first heartbeat was answered, with a lease of this length.
    async fn begin(lease: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tokio::spawn(Host::new().serve::<Note>().listen(dir.path()).unwrap().serve_until(std::future::pending()));
        Self::beside(dir, lease).await
    }

    /// The same, beside the host that has its socket there.
    async fn beside(dir: TempDir, lease: Duration) -> Self {
        let agent = notes::agent(dir.path());
        let store = Arc::new(Memory::default());
        agent.pool.send_replace(Some(notes::pool(&store)));
        agent.lease.set_duration(lease);
        let told = agent.operator.open(|| from_agent::Body::Status(session::Status::default()));
        tokio::spawn(lease::keep(agent.clone()));
        tokio::spawn(lease::tell_host(agent.clone()));
        tokio::spawn(recover::watch_host(agent.clone()));
        agent.lease.answered(agent.lease.beat().unwrap().0);
        assert!(agent.lease.ready(PATIENCE).await);
        Self { agent, store, told, _dir: dir }
    }

    fn log(&self) -> Log {
        let pool = self.agent.pool().unwrap();
        self.agent.open_log(&pool, &server()).unwrap()
    }

    fn assign(&self, superseded: u64, silent: Option<session::Heartbeat>) {
        self.assign_of("note", superseded, silent);
    }

    fn assign_of(&self, kind: &str, superseded: u64, silent: Option<session::Heartbeat>) {
        let id = server();
        start::assigned(
            &self.agent,
            session::Assign {
                assignment: 1,
                server: Some(session::ServerRef { namespace: id.namespace, name: id.name, uid: id.uid.0 }),
                spec_json: serde_json::json!({ "pool": "notes", "type": kind }).to_string(),
                superseded_epoch: superseded,
                superseded_pod_uid: "pod-a".into(),
                superseded_silent: silent,
                ..session::Assign::default()
            },
        );
    }

    /// The next word about the assigned server.
    async fn hear(&mut self) -> from_agent::Body {
        notes::hear(&mut self.told).await
    }

    async fn started(&mut self) {
        self.assign(0, None);
        assert!(matches!(self.hear().await, from_agent::Body::Held(_)));
    }

    async fn post(&self, text: &'static str) -> Option<u16> {
        notes::post(&self.agent, text, 1).await
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&Self) -> bool) {
        let begun = time::Instant::now();
        while !holds(self).await {
            assert!(begun.elapsed() < PATIENCE, "never: {what}");
            time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn beat(counter: u64) -> session::Heartbeat {
    session::Heartbeat { generation: 7, counter }
}

#[tokio::test]
async fn without_an_answer_all_is_stopped_and_the_last_states_are_kept() {
    let logs = support::Logs::gather();
    let mut scene = Scene::begin(Duration::from_secs(2)).await;
    scene.started().await;
    assert_eq!(scene.post("answered, and not yet synced").await, Some(200));
    let generation = scene.agent.lease.writer().generation;
    for operation in [Operation::Create, Operation::List] {
        scene.store.inject(operation, vec![Fault::Fail(StoreError::Unknown("cut off".into())); 1000]);
    }
    scene.agent.lease.ended(generation).await;
    assert_eq!(scene.post("too late").await, None, "nothing passes to the host, whatever it does");
    scene.until("a new generation", async |scene| scene.agent.lease.writer().generation > generation).await;
    assert!(scene.agent.servers.is_empty(), "the next inventory is empty");
    let listed = scene.agent.host.list(PATIENCE).await.unwrap();
    assert!(listed.iter().all(|server| server.phase == ListedPhase::Frozen), "{listed:?}");
    let waits = |line: &String| line.contains("leftover server waits");
    scene.until("a first try that fails", async |_| logs.lines().iter().any(waits)).await;
    scene.store.heal();
    scene
        .until("a Release", async |scene| {
            let newest = scene.log().read_newest(Sequence::NONE).await.unwrap().unwrap();
            newest.header.kind == Kind::Release
                && newest.state.is_some_and(|state| state.body == "answered, and not yet synced")
        })
        .await;
}

#[tokio::test]
async fn while_the_store_answers_servers_go_on_without_a_session() {
    let mut scene = Scene::begin(Duration::from_secs(3)).await;
    scene.started().await;
    let run = scene.agent.lease.writer();
    time::sleep(Duration::from_secs(4)).await;
    assert!(scene.agent.lease.holds(run.generation));
    assert_eq!(scene.post("still here").await, Some(200));
    let heartbeats = scene.store.keys().into_iter().filter(|key| key.starts_with("heartbeats/pod-b/"));
    assert!((1..=2).contains(&heartbeats.count()), "the newest, and perhaps one that is about to go");
}

#[tokio::test]
async fn a_silent_owner_is_looked_up_in_the_store() {
    let mut scene = Scene::begin(Duration::from_mins(1)).await;
    let pool = scene.agent.pool().unwrap();
    let writer = Writer { pod: PodUid("pod-a".into()), generation: Generation(7) };
    let claim = Draft {
        epoch: Epoch(1),
        kind: Kind::Claim,
        writer: writer.clone(),
        body: Body::At { sequence: Sequence::NONE, version: 0 },
    };
    let until = time::Instant::now() + PATIENCE;
    scene.log().append(&Authority::Reader, claim, Sequence::NONE, until).await.unwrap();
    Heartbeats::new(pool.store, "").write(&writer, 12).await.unwrap();

    scene.assign(1, Some(beat(5)));
    let from_agent::Body::AssignFailed(failed) = scene.hear().await else { panic!("claimed from a pod that lives") };
    assert_eq!((failed.why(), failed.alive_pod_uid.as_str(), failed.alive), (Why::Alive, "pod-a", Some(beat(12))));

    scene.store.inject(Operation::List, [Fault::None, Fault::Fail(StoreError::Unknown("cut off".into()))]);
    scene.assign(1, Some(beat(12)));
    let from_agent::Body::AssignFailed(failed) = scene.hear().await else { panic!("a failed read is not silence") };
    assert_eq!(failed.why(), Why::Store);

    scene.assign(1, Some(beat(12)));
    let from_agent::Body::Held(held) = scene.hear().await else { panic!("not claimed") };
    assert_eq!(held.epoch, 3);
}

async fn signal(process: &tokio::process::Child, name: &str) {
    let pid = process.id().unwrap().to_string();
    let sent = tokio::process::Command::new("kill").args([name, &pid]).status().await.unwrap();
    assert!(sent.success());
}

/// A host that runs as a process of its own, and its socket's place.
fn host_process() -> (TempDir, tokio::process::Child) {
    let dir = tempfile::tempdir().unwrap();
    let process = tokio::process::Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/notes-python/notes.py"))
        .env("DURABLE_DIR", dir.path())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 is installed: e2e/setup does it");
    (dir, process)
}

/// What it was asked while it hung is in its socket: told to be free, the server would be started elsewhere, and then served
/// here as well once the host goes on.
#[tokio::test]
async fn a_server_is_not_given_up_while_its_host_hangs() {
    let (dir, process) = host_process();
    let mut scene = Scene::beside(dir, Duration::from_mins(1)).await;
    scene.assign_of("notes", 0, None);
    assert!(matches!(scene.hear().await, from_agent::Body::Held(_)));
    let held = scene.agent.servers.get(&server().uid).unwrap();
    signal(&process, "-STOP").await;
    assert!(!release(&scene.agent, &held, "Drain", time::Instant::now(), Kind::Release).await);
    assert!(time::timeout(Duration::from_millis(500), scene.hear()).await.is_err(), "the host may still serve it");
    signal(&process, "-CONT").await;
    let from_agent::Body::Gone(gone) = scene.hear().await else { panic!("never given up") };
    assert_eq!(gone.how(), session::gone::How::Disclaimed);
    assert_eq!(scene.agent.host.list(PATIENCE).await.unwrap().len(), 0);
}

/// It wakes with both in its socket, the new lease and a request, and must look at the clock before it takes up either.
#[tokio::test]
async fn a_host_that_slept_past_its_deadline_serves_nothing() {
    let (dir, process) = host_process();
    let host = HostClient::new(&dir.path().join("host.sock"), 1 << 20);
    while host.describe(PATIENCE).await.is_err() {
        time::sleep(Duration::from_millis(20)).await;
    }
    let lease = |ms| {
        let deadline = lease::boot_time() + Duration::from_millis(ms);
        host.lease(Told { generation: Generation(5), deadline }, 0, PATIENCE)
    };
    lease(1_000).await.unwrap();
    let id = server();
    let call = StartCall {
        id: &id,
        kind: "notes",
        epoch: Epoch(1),
        attempt: 1,
        mode: Mode::Active,
        config: None,
        state: None,
    };
    host.start(&call, PATIENCE).await.unwrap();
    signal(&process, "-STOP").await;
    time::sleep(Duration::from_millis(1_100)).await;
    let request = Request::post("/")
        .header("host", "x")
        .header("durable-uid", "u-1")
        .header("durable-epoch", 1)
        .body(Either::Left(Full::new(Bytes::from("late"))))
        .unwrap();
    let woken = async {
        time::sleep(Duration::from_millis(100)).await;
        signal(&process, "-CONT").await;
    };
    let (renewed, answered, ()) = tokio::join!(lease(60_000), host.forward(request), woken);
    assert!(matches!(renewed, Err(HostError::Refused { status: hyper::StatusCode::CONFLICT, .. })), "{renewed:?}");
    assert_eq!(answered.unwrap().status(), hyper::StatusCode::MISDIRECTED_REQUEST);
}
