//! Whole stories through the index: events in, effects out, no cluster.

mod costs;
mod crashing;
mod deleting;
mod foretell;
mod leases;
mod letting_in;
mod look;
mod misfortune;
mod moves;
mod near;
mod noise;
mod placing;
mod telling;
mod wishes;

use std::collections::BTreeMap;

use crds::DurableServerPoolSpec;
use jiff::Timestamp;
use serde_json::{Value, json};
use wire::session::{
    Assign, AssignFailed, Directory, DirectoryEntry, DrainReport, Gone, Held, Hello, HostType, Moved, Phase, Plan,
    ServerRef, Status, assign_failed::Why, from_agent, gone::How, to_agent,
};

use super::*;
use crate::model::{Identity, Node, Opening, Pod, Refusal, ReplicaSet, ServerObject, What, Write};

/// A world, its clock, and what its agents were told.
struct Story {
    world: World,
    ms: u64,
    sessions: BTreeMap<u64, Vec<to_agent::Body>>,
    writes: Vec<Write>,
    notes: Vec<crate::model::Note>,
    closed: Vec<(u64, Refusal)>,
    certified: Vec<(u64, wire::identity::PodIdentity)>,
}

impl Story {
    /// One pool, and nothing read yet.
    fn unread() -> Self {
        let world = World::new("cluster".into(), 1);
        let mut story = Self {
            world,
            ms: 0,
            sessions: BTreeMap::new(),
            writes: Vec::new(),
            notes: Vec::new(),
            closed: Vec::new(),
            certified: Vec::new(),
        };
        let spec: DurableServerPoolSpec =
            serde_json::from_value(json!({ "store": { "s3": { "bucket": "b-1" } } })).unwrap();
        story.event(Event::Pool(Box::new(PoolObject {
            key: Key::new("ns", "rooms"),
            uid: "pool".into(),
            generation: 1,
            settings: crds::settings::pool(&spec),
            spec,
            status: DurableServerPoolStatus::default(),
        })));
        story
    }

    /// Pods of these numbers with agents, all read.
    fn with_pods(pods: &[u64]) -> Self {
        let mut story = Self::unread();
        for n in pods {
            story.event(Event::Pod(Box::new(pod(*n))));
        }
        story.read();
        for n in pods {
            story.open(*n, *n, vec![]);
        }
        story
    }

    fn read(&mut self) {
        for kind in Kind::ALL {
            self.event(Event::Initialised(kind));
        }
    }

    fn now(&self) -> Now {
        let wall = Timestamp::from_millisecond(1_000_000_000 + i64::try_from(self.ms).unwrap()).unwrap();
        Now { mono: Instant(Duration::from_millis(self.ms)), wall }
    }

    fn event(&mut self, event: Event) {
        self.world.apply(event, self.now());
        self.settle();
    }

    fn settle(&mut self) {
        let effects = self.world.settle(self.now());
        for effect in effects {
            match effect {
                Effect::Send(id, body) => self.sessions.entry(id.0).or_default().push(body),
                Effect::Close(id, refusal) => self.closed.push((id.0, refusal)),
                Effect::Write(write) => self.writes.push(write),
                Effect::Publish(note) => {
                    assert!(note.reason.has_event(), "{note:?}");
                    self.notes.push(*note);
                }
                Effect::Certify { session, pod, .. } => self.certified.push((session.0, pod)),
            }
        }
    }

    /// Lets time pass as the driver would.
    fn pass(&mut self, ms: u64) {
        let end = self.ms + ms;
        while self.ms < end {
            self.ms += 10;
            if self.ms.is_multiple_of(250) {
                self.world.beat(self.now());
            }
            self.settle();
        }
    }

    fn open(&mut self, session: u64, pod: u64, inventory: Vec<Held>) {
        self.open_starting(session, pod, inventory, &[]);
    }

    /// The same for an agent that is about to start these.
    fn open_starting(&mut self, session: u64, pod: u64, inventory: Vec<Held>, starting: &[u64]) {
        let identity = Identity { namespace: "ns".into(), pod: format!("rooms-{pod}"), uid: uid(pod) };
        let hello = Hello {
            protocol: wire::PROTOCOL,
            peer_address: format!("10.0.0.{pod}:7071"),
            gateway_address: format!("10.0.0.{pod}:7070"),
            types: vec![HostType { name: "room".into(), state_version: 1, loads: vec![1] }],
            inventory,
            starting: starting.iter().map(|n| format!("server-{n}")).collect(),
            ..Hello::default()
        };
        self.event(Event::Open(Box::new(Opening { id: SessionId(session), identity, hello, outbox: None })));
    }

    fn says(&mut self, session: u64, body: from_agent::Body) {
        self.event(Event::Message(SessionId(session), Box::new(body)));
    }

    fn server(&mut self, n: u64, status: Value) {
        self.server_with(n, status, |_| {});
    }

    fn server_with(&mut self, n: u64, status: Value, change: impl FnOnce(&mut ServerObject)) {
        let mut object = ServerObject {
            id: ServerId { namespace: "ns".into(), name: format!("s{n}"), uid: ServerUid(format!("server-{n}")) },
            generation: 1,
            resource_version: "1".into(),
            deleting: false,
            finalizers: vec![FINALIZER.into()],
            wish: None,
            spec: serde_json::from_value(json!({ "pool": "rooms", "type": "room" })).unwrap(),
            status: serde_json::from_value(status).unwrap(),
        };
        change(&mut object);
        self.event(Event::Server(Box::new(object)));
    }

    fn take(&mut self, session: u64) -> Vec<to_agent::Body> {
        self.sessions.remove(&session).unwrap_or_default()
    }

    fn assigns(&mut self) -> Vec<(u64, Assign)> {
        let all = std::mem::take(&mut self.sessions);
        let of = |(session, bodies): (u64, Vec<to_agent::Body>)| {
            bodies.into_iter().filter_map(move |body| match body {
                to_agent::Body::Assign(assign) => Some((session, assign)),
                _ => None,
            })
        };
        all.into_iter().flat_map(of).collect()
    }

    fn statuses(&self, name: &str) -> Vec<Value> {
        let of = |write: &Write| match &write.what {
            What::Status(body) if write.key.name == name => Some(body["status"].clone()),
            _ => None,
        };
        self.writes.iter().filter_map(of).collect()
    }
}

fn uid(pod: u64) -> PodUid {
    PodUid(format!("pod-{pod}"))
}

fn pod(n: u64) -> Pod {
    Pod {
        uid: uid(n),
        key: Key::new("ns", format!("rooms-{n}")),
        pool: "rooms".into(),
        node: "node".into(),
        running: true,
        ready: true,
        ..Pod::default()
    }
}

fn reference(n: u64) -> ServerRef {
    ServerRef { namespace: "ns".into(), name: format!("s{n}"), uid: format!("server-{n}") }
}

fn held(n: u64, epoch: u64) -> Held {
    Held {
        server: Some(reference(n)),
        epoch,
        phase: Phase::Active.into(),
        state_version: 1,
        sequence: epoch * 10,
        durable: true,
        ..Held::default()
    }
}

fn gone(n: u64, epoch: u64, how: How) -> from_agent::Body {
    from_agent::Body::Gone(Gone { server: Some(reference(n)), epoch, how: how.into(), ..Gone::default() })
}

fn failed(assign: &Assign, why: Why) -> AssignFailed {
    AssignFailed {
        server: assign.server.clone(),
        assignment: assign.assignment,
        why: why.into(),
        ..AssignFailed::default()
    }
}

fn owned(pod: u64, epoch: u64) -> Value {
    json!({ "phase": "Running", "pod": format!("rooms-{pod}"), "podUID": format!("pod-{pod}"), "epoch": epoch })
}

fn last_plan(bodies: &[to_agent::Body]) -> Option<Plan> {
    bodies.iter().rev().find_map(|body| match body {
        to_agent::Body::Plan(plan) => Some(plan.clone()),
        _ => None,
    })
}

fn directories(bodies: &[to_agent::Body]) -> Vec<Directory> {
    let directory = |body: &to_agent::Body| match body {
        to_agent::Body::Directory(directory) => Some(directory.clone()),
        _ => None,
    };
    bodies.iter().filter_map(directory).collect()
}
