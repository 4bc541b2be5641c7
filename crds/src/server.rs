//! `DurableServer`: one named, stateful thing that runs in one pod at a time.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Duration, limits};

/// What a durable server is.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "durableserver.io",
    version = "v1alpha1",
    kind = "DurableServer",
    namespaced,
    shortname = "dsrv",
    status = "DurableServerStatus",
    derive = "PartialEq",
    doc = "A named, stateful server that runs in one pod of its pool at a time.",
    selectable = ".spec.pool",
    selectable = ".status.pod",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".status.pod"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch"),
    printcolumn(name = "Last-Gap", type_ = "string", json_path = ".status.lastHandoff.gap"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    // The API server shows the first that matches: of what is not as it should be, what all else follows from.
    printcolumn(name = "Why", type_ = "string", json_path = ".status.conditions[?(@.status!=\"True\")].message")
)]
#[serde(rename_all = "camelCase")]
pub struct DurableServerSpec {
    /// The pool, in the same namespace.
    #[schemars(length(max = limits::MAX_POOL_NAME))]
    #[x_kube(
        validation = limits::object_name(),
        validation = ("self == oldSelf", "pool cannot be changed: make a new server in the other pool")
    )]
    pub pool: String,
    /// The type, one of those that the pool's host describes.
    #[serde(rename = "type")]
    #[schemars(length(max = limits::MAX_TYPE_NAME))]
    #[x_kube(
        validation = limits::type_name(),
        validation = ("self == oldSelf", "type cannot be changed: make a new server of the other type")
    )]
    pub type_: String,
    /// Handed to the host as it is, as JSON, at each start; at most 4 KiB of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "opaque_object")]
    pub config: Option<Map<String, Value>>,
    /// Start it elsewhere when its pod shuts down and it could not be handed off. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permanent: Option<bool>,
    /// Leave it where it is: neither place it nor hand it off. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<bool>,
    /// What becomes of its state when it is deleted. Retain: it stays, and a new server of the same name starts from it.
    /// Delete: it goes a day later. Default Retain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaim_policy: Option<ReclaimPolicy>,
    /// Which state it starts from the first time. Default: the newest that an earlier server of its name left with
    /// reclaimPolicy Retain, or nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::restore_from())]
    pub restore_from: Option<RestoreFrom>,
    /// Goes before what the pool says, for this server and for its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handoff_on_shutdown: Option<ServerHandoff>,
}

/// What becomes of a deleted server's state.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReclaimPolicy {
    /// It stays in the store until somebody deletes it with `durable-agent store gc`.
    #[default]
    Retain,
    /// It is deleted a day later.
    Delete,
}

/// What a server that never ran starts from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreFrom {
    /// Uid of an earlier server of the same name: from its last state.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_UID))]
    #[x_kube(validation = limits::uid())]
    pub uid: Option<String>,
    /// From nothing, whatever an earlier server left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fresh: Option<bool>,
}

/// What of a handoff may differ from server to server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerHandoff {
    /// Whether this server is handed off. Default: as the pool says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Higher ones are handed off first. Default: as the pool says for the type, or 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// One attempt at one handoff. Default: as the pool says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STEP.rule())]
    pub per_server_timeout: Option<Duration>,
}

fn opaque_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "maxProperties": 64,
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// What the operator reports about a server.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DurableServerStatus {
    /// The generation of the spec that this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it is in its life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// The pod that it runs in, or is started in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_OBJECT_NAME))]
    pub pod: Option<String>,
    /// That pod's uid: a pod's name may come again.
    #[serde(rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_UID))]
    pub pod_uid: Option<String>,
    /// That pod's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_OBJECT_NAME))]
    pub node: Option<String>,
    /// The number of its present ownership term, or of its last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The newest record of its log that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Length of the state in that record, uncompressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_bytes: Option<u64>,
    /// When its state was last written to the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<Time>,
    /// Its last move from pod to pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handoff: Option<LastHandoff>,
    /// What its pod's node has, or that of its last pod had, of the labels in the pool's placement.sticky.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::MAX_STICKY))]
    pub topology: Vec<NodeLabel>,
    /// `Accepted`, `Placed`, `Ready`, `Durable`, and `Moved` where a person named a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a server is in its life.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// No pod yet.
    #[default]
    Pending,
    /// A pod has been told to start it.
    Starting,
    /// It serves.
    Running,
    /// It serves, and is on its way to another pod.
    HandingOff,
    /// It is being stopped, its last state being written.
    Stopping,
    /// It runs nowhere, and nobody will start it by himself.
    Stopped,
    /// It cannot run; the conditions say why.
    Failed,
}

/// A label of a node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLabel {
    /// The label.
    #[schemars(length(max = limits::MAX_LABEL))]
    pub topology_key: String,
    /// Its value.
    #[schemars(length(max = limits::MAX_LABEL_VALUE))]
    pub value: String,
}

/// A server's last move.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastHandoff {
    /// The pod that gave it away.
    #[schemars(length(max = limits::MAX_OBJECT_NAME))]
    pub from: String,
    /// The pod that received it, or was to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_OBJECT_NAME))]
    pub to: Option<String>,
    /// How long nobody served it, by the agents' clocks, such as 4.2ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_GAP))]
    pub gap: Option<String>,
    /// How it ended.
    pub result: HandoffOutcome,
    /// Why it ended so, as one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// When it ended.
    pub time: Time,
}

/// How a handoff of one server ended.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HandoffOutcome {
    /// The other pod serves it.
    Moved,
    /// It was stopped with its state in the store.
    Stopped,
    /// Neither; it was started again from its last record.
    Failed,
}
