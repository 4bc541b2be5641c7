//! What the page is shown: names, places and numbers. No spec of a server or a pool is in it.

use crds::{HandoffOutcome, HandoffPhase, HandoffStatus, LastHandoff, Phase, Trigger};
use serde::Serialize;

use crate::model::Key;

/// What changed since the look before.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Nobody looked before: what was shown earlier does not count any more.
    pub first: bool,
    /// The present time, milliseconds since 1970.
    pub at: i64,
    /// All pools.
    pub pools: Vec<PoolView>,
    /// All pods of pools.
    pub pods: Vec<PodView>,
    /// All drains that are remembered.
    pub drains: Vec<DrainView>,
    /// Servers that changed, at most so many as one look shows; `None`: there is no such server any more.
    pub servers: Vec<(Key, Option<ServerView>)>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolView {
    /// Namespace and name.
    pub key: String,
    /// Whether its servers are handed off by default.
    pub handoff: bool,
    /// Why it cannot be acted on; empty if it can.
    pub why: String,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodView {
    /// Its uid.
    pub uid: String,
    /// Its pool.
    pub pool: String,
    /// Its name.
    pub name: String,
    /// Its node; empty while unscheduled.
    pub node: String,
    /// Revision of its Deployment; 0 for pods of other workloads.
    pub revision: u64,
    /// No newer revision is there.
    pub newest: bool,
    /// Where it is in its life.
    pub state: PodState,
    /// Why it cannot host, in its agent's words; empty if it did not say.
    pub why: String,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PodState {
    /// Not ready yet, or not any more.
    NotReady,
    /// Its agent has no session.
    Silent,
    /// Its agent cannot host.
    CannotHost,
    /// It is cordoned, or its node is.
    Cordoned,
    /// It can host.
    Ready,
    /// It is emptied.
    Draining,
    /// Its containers are over.
    Ended,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerView {
    /// Its pool.
    pub pool: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Uid of the pod that owns it, or is to; empty for none.
    pub pod: String,
    /// The number of its ownership term.
    pub epoch: u64,
    /// Its last move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<MoveView>,
    /// Why it has no pod: told by group, not with each server.
    #[serde(skip)]
    pub waits: Option<(String, String)>,
}

/// A server's last move.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MoveView {
    /// Name of the pod that gave it away.
    pub from: String,
    /// Name of the pod that received it, or was to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// How long nobody served it, such as 4.2ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<String>,
    /// How it ended.
    pub result: HandoffOutcome,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, milliseconds since 1970.
    pub at: i64,
}

impl From<&LastHandoff> for MoveView {
    fn from(last: &LastHandoff) -> Self {
        Self {
            from: last.from.clone(),
            to: last.to.clone(),
            gap: last.gap.clone(),
            result: last.result,
            reason: last.reason.clone(),
            at: last.time.0.as_millisecond(),
        }
    }
}

/// A drain.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainView {
    /// Name of its `Handoff`.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// The pod that is emptied.
    pub pod: String,
    /// That pod's uid.
    pub pod_uid: String,
    /// Why; `None`: not known yet.
    pub trigger: Option<Trigger>,
    /// Where it is.
    pub phase: HandoffPhase,
    /// Servers that the pod had.
    pub total: u32,
    /// Handed to another pod.
    pub moved: u32,
    /// Stopped gracefully.
    pub stopped: u32,
    /// Neither.
    pub failed: u32,
    /// Half of the gaps were at most so long.
    pub gap_p50: Option<String>,
    /// All of them were.
    pub gap_max: Option<String>,
    /// When it began, milliseconds since 1970.
    pub started: Option<i64>,
    /// When it ended.
    pub ended: Option<i64>,
    /// What keeps it from going on, or why servers were not moved; empty if nothing does.
    pub why: String,
}

impl DrainView {
    /// A drain as its `Handoff`'s status says.
    #[must_use]
    pub fn new(key: &Key, pool: &Key, (pod, uid): (&str, &str), trigger: Option<Trigger>, s: HandoffStatus) -> Self {
        let reasons = s.conditions.into_iter().next().map(|condition| condition.message).unwrap_or_default();
        Self {
            name: key.name.clone(),
            pool: pool.to_string(),
            pod: pod.to_owned(),
            pod_uid: uid.to_owned(),
            trigger,
            phase: s.phase.unwrap_or_default(),
            total: s.total,
            moved: s.moved,
            stopped: s.stopped,
            failed: s.failed,
            gap_p50: s.gap_p50,
            gap_max: s.gap_max,
            started: s.start_time.map(|time| time.0.as_millisecond()),
            ended: s.completion_time.map(|time| time.0.as_millisecond()),
            why: s.blocked_by.unwrap_or(reasons),
        }
    }
}

/// Servers of one pool that wait for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// The pool.
    pub pool: String,
    /// One word.
    pub reason: String,
    /// One of their sentences.
    pub why: String,
    /// How many they are.
    pub servers: usize,
}
