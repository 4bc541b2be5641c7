//! Servers that cannot be handed over, each for another reason: they are stopped in order, and come back.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::rooms::room;
use crate::scene::{Case, GOOD, SOON, Scene};
use crate::view::HandoffStatus;
use crate::wait::until;

/// Permanent servers are served again so soon after the next pod is ready.
const BACK: Duration = Duration::from_secs(3);
const WRITES: u32 = 20;
/// What a pod's life goes on for after its last server has gone, at most: stray requests are passed on.
const GRACE: u64 = 60;

/// One way in which servers cannot be handed over.
struct Fallback {
    name: &'static str,
    case: &'static str,
    servers: usize,
    pool: Value,
    /// Of each server's spec.
    spec: fn(usize) -> Value,
    /// Of the Deployment's.
    deployment: Value,
    /// How the hosts of the next revision behave.
    next: &'static str,
    moved: RangeInclusive<usize>,
    /// Why the others are stopped: all of them for this one.
    reason: &'static str,
    /// What `blockedBy` says.
    says: &'static str,
}

impl Default for Fallback {
    fn default() -> Self {
        Self {
            name: "",
            case: "",
            servers: 8,
            pool: json!({}),
            spec: |_| json!({}),
            deployment: json!({}),
            next: GOOD,
            moved: 0..=0,
            reason: "",
            says: "",
        }
    }
}

/// Handoff is off for the pool.
pub async fn off(cluster: &Cluster) -> Result<Case> {
    let off = Fallback {
        name: "off",
        case: "handoff off for the pool",
        pool: json!({ "handoffOnShutdown": { "enabled": false } }),
        reason: "HandoffOff",
        says: "handoff is off",
        ..Fallback::default()
    };
    off.run(cluster).await
}

/// Handoff is off for the type, and on for every other server.
pub async fn partly_off(cluster: &Cluster) -> Result<Case> {
    let partly = Fallback {
        name: "partly-off",
        case: "handoff off for the type, on for half of its servers",
        pool: json!({ "types": [{ "name": "room", "handoffOnShutdown": { "enabled": false } }] }),
        spec: |number| json!({ "handoffOnShutdown": { "enabled": number.is_multiple_of(2) } }),
        moved: 4..=4,
        reason: "HandoffOff",
        says: "handoff is off",
        ..Fallback::default()
    };
    partly.run(cluster).await
}

/// There is no other pod, and none comes before this one is gone.
pub async fn recreate(cluster: &Cluster) -> Result<Case> {
    let recreate = Fallback {
        name: "recreate",
        case: "no eligible pod: one replica, Recreate",
        deployment: json!({ "strategy": { "$retainKeys": ["type"], "type": "Recreate" } }),
        reason: "NoTarget",
        says: "run more than one replica",
        ..Fallback::default()
    };
    recreate.run(cluster).await
}

/// The only target's host refuses whatever is handed to it.
pub async fn refused(cluster: &Cluster) -> Result<Case> {
    let refused = Fallback {
        name: "refused",
        case: "every target refuses",
        next: "refuse-standby",
        reason: "AllRejected",
        says: "this host takes nothing that is handed to it",
        ..Fallback::default()
    };
    refused.run(cluster).await
}

/// The only target's host never answers, and the time runs out.
pub async fn hangs(cluster: &Cluster) -> Result<Case> {
    let hangs = Fallback {
        name: "hangs",
        case: "a target that hangs",
        pool: json!({ "handoffOnShutdown": { "timeout": "6s", "perServerTimeout": "5s", "stopAfterFailures": 100 } }),
        next: "hang-standby",
        reason: "Deadline",
        says: "the time for handoffs ran out",
        ..Fallback::default()
    };
    hangs.run(cluster).await
}

/// The same, but two failures in a row are enough.
pub async fn breaker(cluster: &Cluster) -> Result<Case> {
    let breaker = Fallback {
        name: "breaker",
        case: "stopAfterFailures",
        pool: json!({ "handoffOnShutdown": { "perServerTimeout": "500ms", "stopAfterFailures": 2 } }),
        next: "hang-standby",
        reason: "TooManyFailures",
        says: "perServerTimeout passed",
        ..Fallback::default()
    };
    breaker.run(cluster).await
}

/// Each handoff takes longer than there is time for all; those of the highest priority go first.
pub async fn short(cluster: &Cluster) -> Result<Case> {
    let short = Fallback {
        name: "short",
        case: "a deadline too short for all",
        servers: 16,
        pool: json!({ "handoffOnShutdown": { "timeout": "5s", "maxConcurrency": 1 } }),
        // The last room first.
        spec: |number| json!({ "handoffOnShutdown": { "priority": number } }),
        next: "slow-standby",
        moved: 1..=15,
        reason: "Deadline",
        says: "raise handoffOnShutdown.timeout",
        ..Fallback::default()
    };
    short.run(cluster).await
}

impl Fallback {
    async fn run(self, cluster: &Cluster) -> Result<Case> {
        let scene = Scene::open(cluster, self.name, self.pool.clone()).await?;
        scene.revise(GOOD, self.deployment.clone()).await?;
        scene.scale(1).await?;
        scene.declare(self.servers, self.spec).await?;
        let before = scene.rooms.ready_pods(1).await?;
        let source = before.first().context("no pod")?;
        scene.rooms.all_running(self.servers, SOON).await?;
        let load = scene.rooms.load(self.servers, WRITES).await?;

        scene.revise(self.next, json!({})).await?;
        let drain = scene.drained(source).await?;
        scene.successor(&before).await?;
        let after = scene.served(self.servers, Instant::now()).await?;
        scene.rooms.all_running(self.servers, SOON).await?;
        let lost = scene.judge(&load.stop().await?).await?;

        let status = &drain.status;
        self.check(status).with_context(|| format!("{status:?}"))?;
        let took = scene.rooms.drain_nanos(&source.name).context("the pod never ended to serve")? / 1_000_000_000;
        ensure!(took < GRACE, "the last server was stopped {took} s after the pod was told to end");
        ensure!(lost == 0, "{lost} acknowledged writes are gone");
        ensure!(u128::from(after) <= BACK.as_millis(), "served again only {after} ms after the next pod was ready");
        self.order(&scene, status.moved).await?;
        let case = Case {
            case: self.case.into(),
            servers: self.servers,
            moved: status.moved,
            stopped: status.stopped,
            acked_lost: lost,
            seen: format!("{} {}: {}", self.reason, status.reasons.values().sum::<usize>(), status.blocked_by),
            serving_after_ms: Some(after),
        };
        scene.close().await?;
        Ok(case)
    }

    fn check(&self, status: &HandoffStatus) -> Result<()> {
        ensure!(status.phase == "Complete" && status.failed == 0, "some were neither moved nor stopped");
        ensure!(self.moved.contains(&status.moved), "{} moved, not {:?}", status.moved, self.moved);
        ensure!(
            status.moved + status.stopped == self.servers && status.total == self.servers,
            "the counts do not add up"
        );
        let only = [(self.reason.to_owned(), status.stopped)].into();
        ensure!(status.reasons == only, "stopped for other reasons than {}", self.reason);
        ensure!(status.blocked_by.contains(self.says), "blockedBy does not say `{}`", self.says);
        Ok(())
    }

    /// Where servers have a priority, it is the highest that moved.
    async fn order(&self, scene: &Scene, moved: usize) -> Result<()> {
        if self.moved == (0..=0) || self.moved.start() == self.moved.end() {
            return Ok(());
        }
        for number in 0..self.servers {
            let server = scene.objects("DurableServer").get(&room(number)).await?;
            let result = server.data["status"]["lastHandoff"]["result"].as_str().unwrap_or_default().to_owned();
            let expected = if number >= self.servers - moved { "Moved" } else { "Stopped" };
            ensure!(result == expected, "{} of priority {number} was {result}, with {moved} moved", room(number));
        }
        Ok(())
    }
}

/// A type that may have few servers in one pod: what is too much waits, says so, and a drain does not overfill a pod.
pub async fn crowded(cluster: &Cluster) -> Result<Case> {
    let (servers, most) = (6, 4);
    let pool = json!({ "types": [{ "name": "room", "maxServersPerPod": most }] });
    let scene = Scene::with_pods(cluster, "crowded", 1, pool).await?;
    scene.declare(servers, |_| json!({})).await?;
    let before = scene.rooms.ready_pods(1).await?;
    let placed = |pod: &str| scene.rooms.view.servers().iter().filter(|server| server.pod == pod).count();
    let source = before.first().context("no pod")?;
    until("one pod has as many as it may", SOON, async || Ok((placed(&source.name) == most).then_some(()))).await?;
    let waiting = scene.rooms.view.servers().into_iter().find(|server| server.pod.is_empty()).context("none waits")?;
    let (_, message) = scene.condition("DurableServer", &waiting.name, "Placed", "PodsFull").await?;
    scene.event("DurableServer", &waiting.name, "PodsFull").await?;

    scene.scale(2).await?;
    scene.successor(&before).await?;
    let after = scene.served(servers, Instant::now()).await?;
    scene.rooms.all_running(servers, SOON).await?;
    let load = scene.rooms.load(servers, WRITES).await?;
    scene.rooms.delete_pod(&source.name).await?;
    let drain = scene.drained(source).await?;
    scene.rooms.all_running(servers, SOON).await?;
    for pod in scene.rooms.ready_pods(2).await? {
        let here = placed(&pod.name);
        ensure!(here <= most, "{} has {here} servers of a type that may have {most}", pod.name);
    }
    let lost = scene.judge(&load.stop().await?).await?;
    ensure!(lost == 0, "{lost} acknowledged writes are gone");
    let (moved, stopped) = (drain.status.moved, drain.status.stopped);
    ensure!(moved + stopped == most && moved >= 2, "{:?}", drain.status);
    scene.close().await?;
    Ok(Case {
        case: "more servers of a type than its pods may have".into(),
        servers,
        moved,
        stopped,
        acked_lost: lost,
        seen: format!("Placed=False PodsFull: {message}"),
        serving_after_ms: Some(after),
    })
}
