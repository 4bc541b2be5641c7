//! The session with the operator: begun with all that this agent holds, opened again whenever it ends.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use handoff::{PodUid, drain, lease::Heartbeat};
use tokio::time::{self, Instant};
use wire::session::{Hello, HostType, Status, from_agent, to_agent};

use super::{Agent, StandingPlan, drain as draining, moves, release, start};
use crate::{lock, net::Node};

const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Keeps a session open, for ever.
pub(super) async fn run(agent: Arc<Agent>) {
    let mut wait = RETRY.0;
    loop {
        let opened = Instant::now();
        session(&agent).await;
        *lock(&agent.operator) = None;
        wait = if opened.elapsed() > RETRY.1 { RETRY.0 } else { (wait * 2).min(RETRY.1) };
        let most = u64::try_from(wait.as_millis()).unwrap_or_default();
        time::sleep(agent.sim.chance.ms(most / 2..most)).await;
    }
}

async fn session(agent: &Arc<Agent>) {
    let generation = agent.lease.next().await;
    if !agent.sim.net.reach(agent.node, Node::Operator).await {
        return;
    }
    let Some(mut end) = agent.sim.accept(agent.node, &agent.name, &agent.pod) else { return };
    {
        let mut operator = lock(&agent.operator);
        end.sender.send(from_agent::Body::Hello(hello(agent)));
        *operator = Some(end.sender);
    }
    let report = lock(&agent.report).clone();
    if let Some(report) = report {
        agent.tell(from_agent::Body::Drain(report));
    }
    let mut every = time::interval(STATUS_EVERY);
    every.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = agent.lease.ended(generation) => return,
            order = end.receiver.recv() => match order {
                Some(order) => obey(agent, order),
                None => return,
            },
            _ = every.tick() => status(agent, agent.lease.beat()),
        }
    }
}

/// Tells the operator how this agent is.
pub(super) fn tell_status(agent: &Arc<Agent>) {
    status(agent, None);
}

fn status(agent: &Arc<Agent>, beat: Option<(Heartbeat, Duration)>) {
    let host_ready = agent.described.get().is_some();
    agent.tell(from_agent::Body::Status(Status {
        host_ready,
        draining: agent.is_draining(),
        types: host_types(agent),
        problem: if host_ready && !agent.pool.get() { "no pool yet".into() } else { String::new() },
        heartbeat: beat.map(|(heartbeat, _)| heartbeat.into()),
        lease_ms: beat.map_or(0, |(_, lease)| millis(lease)),
        ..Status::default()
    }));
}

fn host_types(agent: &Arc<Agent>) -> Vec<HostType> {
    agent.described.get().iter().map(|_| HostType { name: "room".into(), state_version: 1, loads: vec![1] }).collect()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn hello(agent: &Arc<Agent>) -> Hello {
    let (beat, counts) = (agent.lease.beat(), millis(agent.lease.counts()));
    let number = agent.name.trim_start_matches("rooms-");
    Hello {
        protocol: wire::PROTOCOL,
        peer_address: format!("10.0.0.{number}:7071"),
        gateway_address: format!("10.0.0.{number}:7070"),
        types: host_types(agent),
        draining: agent.is_draining(),
        starting: lock(&agent.starting).iter().map(|uid| uid.0.clone()).collect(),
        inventory: agent.all().iter().map(|server| server.report()).collect(),
        heartbeat: beat.map(|(heartbeat, _)| heartbeat.into()),
        lease_ms: if agent.pool.get() { beat.map_or(0, |(_, lease)| millis(lease)) } else { 0 }.max(counts),
        ..Hello::default()
    }
}

fn obey(agent: &Arc<Agent>, order: to_agent::Body) {
    match order {
        to_agent::Body::Welcome(welcome) => {
            agent.lease.set_duration(agent.sim.settings.lease_duration);
            if !agent.pool.replace(true) {
                tell_status(agent);
            }
            heard(agent, welcome.heard);
        }
        to_agent::Body::Assign(assign) => start::assigned(agent, assign),
        to_agent::Body::Plan(plan) => {
            agent.plan.replace(Some(standing_plan(plan)));
        }
        to_agent::Body::Move(order) => moves::ordered(agent, order),
        to_agent::Body::Drain(_) => {
            agent.announced.store(true, Ordering::Relaxed);
            draining::begin(agent, true);
        }
        to_agent::Body::Stop(stop) => release::ordered(agent, stop),
        to_agent::Body::Heard(heartbeat) => heard(agent, Some(heartbeat)),
        to_agent::Body::Settings(_)
        | to_agent::Body::Directory(_)
        | to_agent::Body::DrainSeen(_)
        | to_agent::Body::Bury(_)
        | to_agent::Body::Certificate(_) => {}
    }
}

fn heard(agent: &Arc<Agent>, heartbeat: Option<wire::session::Heartbeat>) {
    if let Some(heartbeat) = heartbeat {
        agent.lease.answered(heartbeat.into());
    }
}

fn standing_plan(plan: wire::session::Plan) -> StandingPlan {
    let candidates = plan.targets.into_iter().map(|target| drain::Candidate {
        pod: PodUid(target.pod_uid),
        newest: target.newest,
        deletion_cost: target.deletion_cost,
        far: target.far,
        load: target.load,
        capacity: target.capacity,
    });
    let plan = drain::Plan { candidates: candidates.collect(), more_expected: plan.more_expected };
    StandingPlan { plan, at: Instant::now() }
}
