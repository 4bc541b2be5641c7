//! The operator: the real world, driven as `operator::driver` does, and led by one replica after another.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use handoff::PodUid;
use jiff::Timestamp;
use operator::{
    model::{Effect, Event, Identity, Kind, Now, Opening, SessionId, What, Write},
    world::{BEAT, World},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use wire::session::{from_agent, to_agent};

use crate::{
    lock,
    net::{End, Receiver, Sender},
    process::{Clock, Process},
    sim::Sim,
};

const IDLE: Duration = Duration::from_secs(1);
const BATCH: usize = 512;

/// The replica that leads.
pub struct Leader {
    pub process: Arc<Process>,
    pub arrivals: mpsc::UnboundedSender<Arrival>,
}

/// An agent that comes.
pub struct Arrival {
    pub name: String,
    pub uid: PodUid,
    pub end: End<to_agent::Body, from_agent::Body>,
}

/// Nobody leads any more.
pub fn stop_leading(sim: &Arc<Sim>) {
    if let Some(leader) = lock(&sim.leader).take() {
        leader.process.kill();
    }
    sim.kube.unwatch();
}

/// A replica begins to lead.
pub fn begin_leading(sim: &Arc<Sim>) {
    stop_leading(sim);
    let (arrivals, incoming) = mpsc::unbounded_channel();
    let process = Arc::<Process>::default();
    process.spawn(lead(sim.clone(), process.clone(), incoming));
    *lock(&sim.leader) = Some(Leader { process, arrivals });
}

struct Driver {
    sim: Arc<Sim>,
    process: Arc<Process>,
    clock: Clock,
    world: World,
    events: mpsc::UnboundedSender<Event>,
    outboxes: BTreeMap<SessionId, Sender<to_agent::Body>>,
    sessions: u64,
}

async fn lead(sim: Arc<Sim>, process: Arc<Process>, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
    let ppm = i64::try_from(sim.chance.within(0..8_000)).unwrap_or_default() - 4_000;
    let (events, mut incoming) = mpsc::unbounded_channel();
    let mut driver = Driver {
        clock: Clock::new(Duration::ZERO, ppm),
        world: World::new("cluster".into(), sim.now_ms() << 10),
        outboxes: BTreeMap::new(),
        sessions: 0,
        sim: sim.clone(),
        process: process.clone(),
        events: events.clone(),
    };
    let (first, changes) = sim.kube.watch();
    sleep(sim.chance.ms(5..400)).await;
    for event in first {
        let _ = events.send(event);
    }
    process.spawn(forward(changes, events));
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        let wake = driver.world.wake().map_or_else(|| Instant::now() + IDLE, |at| driver.clock.at(at));
        let mut beats = false;
        tokio::select! {
            biased;
            _ = incoming.recv_many(&mut batch, BATCH) => {}
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => driver.arrives(arrival),
                None => return,
            },
            _ = beat.tick() => beats = true,
            () = sleep_until(wake) => {}
        }
        let now = driver.now();
        for event in batch.drain(..) {
            if let Event::Closed(id) = &event {
                driver.outboxes.remove(id);
            }
            driver.world.apply(event, now);
        }
        if beats {
            driver.world.beat(now);
        }
        driver.carry_out(now);
    }
}

async fn forward(mut changes: Receiver<Event>, events: mpsc::UnboundedSender<Event>) {
    while let Some(event) = changes.recv().await {
        let _ = events.send(event);
    }
}

impl Driver {
    fn now(&self) -> Now {
        let wall = i64::try_from(self.sim.now_ms()).unwrap_or_default();
        Now { mono: self.clock.now(), wall: Timestamp::from_millisecond(wall).unwrap_or_default() }
    }

    fn arrives(&mut self, arrival: Arrival) {
        self.sessions += 1;
        let id = SessionId(self.sessions);
        let Arrival { name, uid, end } = arrival;
        self.outboxes.insert(id, end.sender);
        self.process.spawn(read(
            id,
            Identity { namespace: "ns".into(), pod: name, uid },
            end.receiver,
            self.events.clone(),
        ));
    }

    /// Effects for different agents come in no order of their own: here they do, so that a seed tells all.
    fn carry_out(&mut self, now: Now) {
        let mut effects = self.world.settle(now);
        effects.sort_by_key(|effect| match effect {
            Effect::Send(id, _) | Effect::Close(id, _) => (0, id.0, String::new()),
            Effect::Write(write) => (1, 0, write.key.to_string()),
            Effect::Certify { .. } | Effect::Publish(_) => (2, 0, String::new()),
        });
        for effect in effects {
            match effect {
                Effect::Send(id, body) => self.send(id, body),
                Effect::Close(id, _) => drop(self.outboxes.remove(&id)),
                Effect::Write(write) => self.write(write),
                Effect::Certify { .. } | Effect::Publish(_) => {}
            }
        }
    }

    fn send(&self, id: SessionId, body: to_agent::Body) {
        if let to_agent::Body::Assign(assign) = &body {
            let uid = assign.server.as_ref().map(|server| server.uid.as_str()).unwrap_or_default();
            let (epoch, pod) = (assign.superseded_epoch, &assign.superseded_pod_uid);
            let silent = assign.superseded_silent;
            self.sim.trace(|| format!("operator: assign {uid} by session {} over e{epoch} of {pod} {silent:?}", id.0));
        }
        if let Some(outbox) = self.outboxes.get(&id) {
            outbox.send(body);
        }
    }

    fn write(&self, write: Write) {
        let (sim, events) = (self.sim.clone(), self.events.clone());
        let takes = sim.chance.ms(5..200);
        self.process.spawn(async move {
            sleep(takes).await;
            match (write.kind, write.what) {
                (Kind::Server, What::Status(body)) => sim.kube.write_status(&write.key.name, &body),
                (Kind::Handoff, What::Status(body)) => _ = events.send(Event::Recorded(write.key, body)),
                _ => {}
            }
        });
    }
}

async fn read(
    id: SessionId,
    identity: Identity,
    mut messages: Receiver<from_agent::Body>,
    events: mpsc::UnboundedSender<Event>,
) {
    if let Some(from_agent::Body::Hello(hello)) = messages.recv().await {
        let _ = events.send(Event::Open(Box::new(Opening { id, identity, hello, outbox: None })));
        while let Some(body) = messages.recv().await {
            let _ = events.send(Event::Message(id, Box::new(body)));
        }
    }
    let _ = events.send(Event::Closed(id));
}
