//! What the status of servers and pools should be. Pure.

use crds::{DurableServerPoolStatus, DurableServerStatus, LastHandoff, NodeLabel, Phase, Reason, condition};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde::Serialize;
use serde_json::{Map, Value, json};
use wire::session::{self, Held};

use crate::{
    model::clip,
    ownership::{Ownership, Standing, Trouble},
};

/// Longest message of a condition.
const MAX_MESSAGE: usize = 1_024;

/// All that a server's status is made from.
#[derive(Clone, Debug)]
pub struct ServerFacts<'a> {
    /// Generation of the spec.
    pub generation: i64,
    /// Why the spec is not acted on.
    pub refused: Option<String>,
    /// Name of its pool, if that does not exist.
    pub poolless: Option<&'a str>,
    /// It is not to be started again.
    pub stopped: bool,
    /// Who owns it.
    pub ownership: &'a Ownership,
    /// Pod (name, uid, node) that owns it, or is to.
    pub pod: Option<(&'a str, &'a str, &'a str)>,
    /// The owner's word, while it holds the server.
    pub held: Option<&'a Held>,
    /// The owner's session is gone for so long that it should be seen.
    pub silent: bool,
    /// Why no pod gets it.
    pub unplaced: Option<&'a Trouble>,
    /// What its pod's node has, or its last pod's had, of the labels that servers stay near by.
    pub topology: Vec<NodeLabel>,
    /// The pod that a person wants it in.
    pub wish: Option<&'a str>,
    /// Why it does not go there.
    pub unmet: Option<&'a Problem>,
    /// Its last move.
    pub last_handoff: Option<LastHandoff>,
    /// What the status is now.
    pub previous: &'a DurableServerStatus,
    /// The present time.
    pub now: Timestamp,
}

impl ServerFacts<'_> {
    /// What the status should be.
    #[must_use]
    pub fn status(&self) -> DurableServerStatus {
        let phase = self.phase();
        let mut status = DurableServerStatus {
            observed_generation: Some(self.generation),
            phase: Some(phase),
            epoch: Some(self.ownership.epoch.0).filter(|epoch| *epoch > 0),
            last_handoff: self.last_handoff.clone().or_else(|| self.previous.last_handoff.clone()),
            sequence: self.previous.sequence,
            state_bytes: self.previous.state_bytes,
            last_sync: self.previous.last_sync.clone(),
            topology: self.topology.clone(),
            conditions: self.conditions(phase),
            ..DurableServerStatus::default()
        };
        if let Some((pod, uid, node)) =
            self.pod.filter(|_| !matches!(phase, Phase::Pending | Phase::Stopped | Phase::Failed))
        {
            status.pod = Some(pod.to_owned());
            status.pod_uid = Some(uid.to_owned());
            status.node = Some(node.to_owned()).filter(|node| !node.is_empty());
        }
        if let Some(held) = self.held {
            status.sequence = Some(held.sequence);
            status.state_bytes = Some(held.state_bytes);
            let synced = i64::try_from(held.last_sync_unix_ms).ok().filter(|ms| *ms > 0);
            status.last_sync =
                synced.and_then(|ms| Timestamp::from_millisecond(ms).ok()).map(Time).or(status.last_sync);
        }
        status
    }

    fn phase(&self) -> Phase {
        if let Some(held) = self.held {
            return match held.phase() {
                session::Phase::Active => Phase::Running,
                session::Phase::HandingOff => Phase::HandingOff,
                session::Phase::Stopping => Phase::Stopping,
                session::Phase::Starting | session::Phase::Unspecified => Phase::Starting,
            };
        }
        if self.ownership.outstanding.is_some() {
            return Phase::Starting;
        }
        if self.stopped {
            return Phase::Stopped;
        }
        if self.ownership.trouble.as_ref().is_some_and(|trouble| trouble.fatal) {
            return Phase::Failed;
        }
        match self.previous.phase {
            // It may serve still.
            Some(phase) if self.ownership.standing == Standing::Unheard && self.pod.is_some() => phase,
            _ => Phase::Pending,
        }
    }

    fn conditions(&self, phase: Phase) -> Vec<Condition> {
        let set = |kind, (status, reason, message): (&str, Reason, &str)| self.condition(kind, status, reason, message);
        let no_pool = self.poolless.map(|pool| no_pool(pool, self.held.is_some())).unwrap_or_default();
        let accepted = match &self.refused {
            _ if self.poolless.is_some() => ("False", Reason::NoPool, no_pool.as_str()),
            Some(why) => ("False", Reason::Invalid, why.as_str()),
            None => ("True", Reason::Valid, ""),
        };
        let mut conditions = vec![
            set(condition::ACCEPTED, accepted),
            set(condition::PLACED, self.placed(phase)),
            set(condition::READY, self.ready(phase)),
        ];
        if let Some(durable) = self.durable() {
            conditions.push(set(condition::DURABLE, durable));
        } else if let Some(before) = find(&self.previous.conditions, condition::DURABLE) {
            conditions.push(before.clone());
        }
        if let Some(wish) = self.wish {
            conditions.push(set(condition::MOVED, self.moved(wish)));
        }
        conditions
    }

    fn moved(&self, wish: &str) -> (&str, Reason, &str) {
        match self.unmet {
            _ if self.pod.is_some_and(|(name, ..)| name == wish) => ("True", Reason::InPlace, ""),
            Some(why) => ("False", why.reason, why.message.as_str()),
            None => ("False", Reason::OnItsWay, "it is handed to that pod in its turn"),
        }
    }

    fn placed(&self, phase: Phase) -> (&str, Reason, &str) {
        let waiting = self.ownership.trouble.as_ref().or(self.unplaced);
        match phase {
            Phase::Pending | Phase::Failed => waiting.map_or(("False", Reason::Waiting, self.waits_for()), |trouble| {
                ("False", trouble.reason, clip(&trouble.message, MAX_MESSAGE))
            }),
            Phase::Stopped => ("False", Reason::Stopped, "its pod shut down, and permanent is false"),
            _ => ("True", Reason::Assigned, ""),
        }
    }

    /// What a server without trouble waits for.
    fn waits_for(&self) -> &'static str {
        match self.ownership.standing {
            Standing::Unheard if self.ownership.owner.is_some() => {
                "the pod that had it may serve it still: it is started elsewhere once that pod's agent gives it up or its \
                 containers are reported terminated"
            }
            _ => "it waits for its turn to be started",
        }
    }

    fn ready(&self, phase: Phase) -> (&str, Reason, &str) {
        match phase {
            _ if self.silent => {
                ("Unknown", Reason::AgentSilent, "the pod's agent is not connected to the operator; it may serve still")
            }
            Phase::Running => ("True", Reason::Serving, ""),
            Phase::HandingOff => ("True", Reason::HandingOff, "another pod is taking it over"),
            Phase::Pending => ("False", Reason::Pending, "it has no pod: condition Placed says why"),
            Phase::Starting => {
                ("False", Reason::Starting, "its pod was told to start it and has not said yet that it serves")
            }
            Phase::Stopping => ("False", Reason::Stopping, "it is being stopped, its last state being written"),
            Phase::Stopped => ("False", Reason::Stopped, "its pod shut down, and permanent is false"),
            Phase::Failed => ("False", Reason::Failed, "it cannot run: condition Placed says why"),
        }
    }

    fn durable(&self) -> Option<(&str, Reason, &str)> {
        let held = self.held?;
        Some(match (held.error.is_empty(), held.durable) {
            (false, _) => ("False", Reason::SyncFailed, clip(&held.error, MAX_MESSAGE)),
            (true, true) => ("True", Reason::Synced, ""),
            (true, false) => ("False", Reason::FirstRecordPending, "its owner's first record is not written yet"),
        })
    }

    fn condition(&self, kind: &str, status: &str, reason: Reason, message: &str) -> Condition {
        stamped(&self.previous.conditions, self.generation, self.now, (kind, status, reason, message))
    }
}

fn no_pool(pool: &str, serves: bool) -> String {
    let now = if serves { "it serves on where it is until its pod ends" } else { "it is not started" };
    format!("there is no DurableServerPool {pool} in this namespace, so {now}: make the pool, or delete this server")
}

/// Why pods cannot host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// One word.
    pub reason: Reason,
    /// A sentence.
    pub message: String,
}

/// All that a pool's status is made from.
#[derive(Clone, Debug)]
pub struct PoolFacts<'a> {
    /// Generation of the spec.
    pub generation: i64,
    /// Why the spec is not acted on.
    pub refused: Option<String>,
    /// Servers that name it.
    pub servers: usize,
    /// Those that serve.
    pub running: usize,
    /// Pods with a session.
    pub pods: usize,
    /// Servers in pods that they are to leave.
    pub leaving: usize,
    /// Pods that can host.
    pub eligible: usize,
    /// Why agents cannot host, if some said so.
    pub problem: Option<&'a Problem>,
    /// What the status is now.
    pub previous: &'a DurableServerPoolStatus,
    /// The present time.
    pub now: Timestamp,
}

impl PoolFacts<'_> {
    /// What the status should be.
    #[must_use]
    pub fn status(&self) -> DurableServerPoolStatus {
        let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
        let accepted = match &self.refused {
            Some(why) => ("False", Reason::Invalid, why.as_str()),
            None => ("True", Reason::Valid, ""),
        };
        let ready = match (self.eligible, self.pods, self.problem) {
            (0, 0, _) => {
                ("False", Reason::NoPods, "no pod with the label durableserver.io/pool has an agent that is connected")
            }
            (0, _, Some(problem)) => ("False", problem.reason, problem.message.as_str()),
            (0, _, None) => {
                ("False", Reason::NoEligiblePod, "no pod is ready, on a schedulable node and not about to stop")
            }
            (_, _, Some(problem)) => ("True", Reason::SomePodsCannotHost, problem.message.as_str()),
            (_, _, None) => ("True", Reason::PodsCanHost, ""),
        };
        let set = |kind, (status, reason, message)| {
            stamped(&self.previous.conditions, self.generation, self.now, (kind, status, reason, message))
        };
        DurableServerPoolStatus {
            observed_generation: Some(self.generation),
            servers: count(self.servers),
            running: count(self.running),
            pods: count(self.pods),
            leaving: count(self.leaving),
            conditions: vec![set(condition::ACCEPTED, accepted), set(condition::READY, ready)],
        }
    }
}

fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// A condition that keeps the time of its last transition if it did not change.
#[must_use]
pub fn stamped(
    previous: &[Condition],
    generation: i64,
    now: Timestamp,
    (kind, status, reason, message): (&str, &str, Reason, &str),
) -> Condition {
    let before = find(previous, kind).filter(|before| before.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.name().to_owned(),
        message: clip(message, MAX_MESSAGE).to_owned(),
        last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
        observed_generation: Some(generation),
    }
}

/// Whether two statuses differ in more than what every sync changes.
#[must_use]
pub fn differs(a: &DurableServerStatus, b: &DurableServerStatus) -> bool {
    let lasting = |status: &DurableServerStatus| DurableServerStatus {
        sequence: None,
        state_bytes: None,
        last_sync: None,
        ..status.clone()
    };
    lasting(a) != lasting(b)
}

/// Whether a server in this phase answers requests.
#[must_use]
pub fn serves(phase: session::Phase) -> bool {
    matches!(phase, session::Phase::Active | session::Phase::HandingOff)
}

/// Fields that may be absent from a server's status, and must then be taken out of the object.
const SERVER: &[&str] = &[
    "observedGeneration",
    "phase",
    "pod",
    "podUID",
    "node",
    "epoch",
    "sequence",
    "stateBytes",
    "lastSync",
    "lastHandoff",
    "topology",
    "conditions",
];
const LAST_HANDOFF: &[&str] = &["to", "gap", "reason"];
const HANDOFF: &[&str] =
    &["phase", "gapP50", "gapP99", "gapMax", "startTime", "completionTime", "reasons", "blockedBy", "conditions"];
const POOL: &[&str] = &["observedGeneration", "conditions"];

/// The merge patch that makes a server's status exactly this.
#[must_use]
pub fn server_patch(status: &DurableServerStatus) -> Value {
    let mut fields = with_nulls(status, SERVER);
    if let Some(Value::Object(last)) = fields.get_mut("lastHandoff") {
        add_nulls(last, LAST_HANDOFF);
    }
    json!({ "status": fields })
}

/// The merge patch that makes a `Handoff`'s status exactly this.
#[must_use]
pub fn handoff_patch(status: &crds::HandoffStatus) -> Value {
    json!({ "status": with_nulls(status, HANDOFF) })
}

/// The merge patch that makes a pool's status exactly this.
#[must_use]
pub fn pool_patch(status: &DurableServerPoolStatus) -> Value {
    json!({ "status": with_nulls(status, POOL) })
}

fn with_nulls(status: &impl Serialize, fields: &[&str]) -> Map<String, Value> {
    let mut object = match serde_json::to_value(status) {
        Ok(Value::Object(object)) => object,
        _ => Map::new(),
    };
    add_nulls(&mut object, fields);
    object
}

fn add_nulls(object: &mut Map<String, Value>, fields: &[&str]) {
    for field in fields {
        object.entry(*field).or_insert(Value::Null);
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
