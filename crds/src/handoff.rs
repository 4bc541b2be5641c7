//! `Handoff`: the record of one drain, made and written by the operator.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits;

/// Which pod is emptied, and why.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "durableserver.io",
    version = "v1alpha1",
    kind = "Handoff",
    namespaced,
    shortname = "ho",
    status = "HandoffStatus",
    derive = "PartialEq",
    doc = "One pod being emptied of its durable servers. Made by the operator; read it to see what moves.",
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.sourcePod"),
    printcolumn(name = "Trigger", type_ = "string", json_path = ".spec.trigger"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Moved", type_ = "integer", json_path = ".status.moved"),
    printcolumn(name = "Total", type_ = "integer", json_path = ".status.total"),
    printcolumn(name = "Stopped", type_ = "integer", json_path = ".status.stopped"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(name = "Gap-P50", type_ = "string", json_path = ".status.gapP50"),
    printcolumn(name = "Gap-Max", type_ = "string", json_path = ".status.gapMax"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.blockedBy")
)]
#[serde(rename_all = "camelCase")]
pub struct HandoffSpec {
    /// The pool.
    #[schemars(length(max = limits::MAX_POOL_NAME))]
    pub pool: String,
    /// The pod that is emptied.
    #[schemars(length(max = limits::MAX_OBJECT_NAME))]
    pub source_pod: String,
    /// Why.
    pub trigger: Trigger,
}

/// Why a pod is emptied.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Trigger {
    /// Its workload has a newer revision.
    Rollout,
    /// Its workload has fewer replicas.
    ScaleDown,
    /// The pod was evicted, preempted or tainted away.
    Eviction,
    /// Its node is cordoned.
    NodeDrain,
    /// The pod was deleted, and none of the above is known.
    Deletion,
    /// The pod stops without having been deleted.
    Shutdown,
}

/// How the drain goes.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HandoffStatus {
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<HandoffPhase>,
    /// Servers that the pod had.
    #[serde(default)]
    pub total: u32,
    /// Handed to another pod.
    #[serde(default)]
    pub moved: u32,
    /// Stopped gracefully, their state in the store.
    #[serde(default)]
    pub stopped: u32,
    /// Neither.
    #[serde(default)]
    pub failed: u32,
    /// Half of the moved servers were served by nobody for at most so long, such as 4.2ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_GAP))]
    pub gap_p50: Option<String>,
    /// 99 of 100 of them; absent below 100 servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_GAP))]
    pub gap_p99: Option<String>,
    /// All of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_GAP))]
    pub gap_max: Option<String>,
    /// When the drain began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Servers that were stopped instead of moved, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reasons: BTreeMap<String, u32>,
    /// What keeps servers from moving now, or else why some were stopped instead, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub blocked_by: Option<String>,
    /// `Complete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where a drain is.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HandoffPhase {
    /// Servers move.
    #[default]
    Running,
    /// Nothing moves at present, and the servers that are left serve on; `blockedBy` says what is waited for.
    Blocked,
    /// The pod is empty, and every server was moved or stopped gracefully.
    Complete,
    /// The pod is gone, and had servers left.
    Failed,
}
