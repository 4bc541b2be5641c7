//! `DurableServerPool`: which pods can host, where snapshots live, the defaults of every policy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration, limits};

/// What a pool of durable servers is.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "durableserver.io",
    version = "v1alpha1",
    kind = "DurableServerPool",
    namespaced,
    shortname = "dsp",
    status = "DurableServerPoolStatus",
    derive = "PartialEq",
    doc = "A pool of durable servers. Its pods are those of its namespace that are labelled durableserver.io/pool=<name>.",
    validation = ("size(self.metadata.name) <= 63", "choose a pool name of at most 63 characters: it is the value of the pods' label durableserver.io/pool"),
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.servers"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.running"),
    printcolumn(name = "Leaving", type_ = "integer", json_path = ".status.leaving"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".status.pods"),
    printcolumn(name = "Handoff", type_ = "boolean", json_path = ".spec.handoffOnShutdown.enabled"),
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.store.s3.bucket", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.conditions[?(@.status!=\"True\")].message")
)]
#[serde(rename_all = "camelCase")]
pub struct DurableServerPoolSpec {
    /// Where the servers' state is kept.
    pub store: Store,
    /// How state gets there while servers run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncPolicy>,
    /// What the host itself needs to stop after the drain, out of the pod's grace period. Default 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::HOST_STOP.rule())]
    pub host_stop_time: Option<Duration>,
    /// Whether and how servers are handed to other pods when theirs shuts down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handoff_on_shutdown: Option<PoolHandoff>,
    /// Which pods servers are put into.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// A Service of this namespace: servers run only in pods that its selector matches, and move there, live, when it
    /// changes. For blue-green deployments. Default: all pods of the pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::MAX_OBJECT_NAME))]
    #[x_kube(validation = limits::object_name())]
    pub active_service: Option<String>,
    /// Servers stay where they are while their pods live: no move is begun, but for pods that shut down. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// How servers come back that were not handed off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<Recovery>,
    /// Settings for single server types; they go before the pool's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::MAX_TYPES))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub types: Vec<TypeOverride>,
}

/// An object store.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// An S3 bucket, or one of a server that speaks S3 and honours `If-None-Match: *` on PUT.
    #[x_kube(validation = ("self.bucket == oldSelf.bucket && (has(self.prefix) ? self.prefix : '') == (has(oldSelf.prefix) ? oldSelf.prefix : '')", "bucket and prefix cannot be changed, because the servers' records are there: make a new pool for a new place"))]
    pub s3: S3,
}

/// A place in an S3 bucket. All pools may share a bucket.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct S3 {
    /// Name of the bucket. It must exist.
    #[schemars(length(max = 63))]
    #[x_kube(validation = ("self.matches('^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$')", "write a bucket name: 3 to 63 lower-case letters, digits, - and ."))]
    pub bucket: String,
    /// What all keys begin with, without slashes at either end. Default: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = ("self.matches('^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$')", "write a prefix such as teams/chat: letters, digits, -, _ and ., with single slashes between parts and none at the ends"))]
    pub prefix: Option<String>,
    /// Region of the bucket. Default us-east-1, which servers other than AWS ignore.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    #[x_kube(validation = ("self.matches('^[a-z0-9-]+$')", "write a region such as eu-central-1"))]
    pub region: Option<String>,
    /// URL of a server other than AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    #[x_kube(validation = ("isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHost() != ''", "write a URL such as https://s3.example.org:9000"))]
    pub endpoint: Option<String>,
    /// Put the bucket into the path instead of the host name. Default: true if an endpoint is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,
    /// Requests that one pod may send in a second. It sends fewer by itself when the store is slow or asks for it.
    /// Default 3000, which one prefix of S3 takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::REQUESTS.start(), max = *limits::REQUESTS.end()))]
    pub max_requests_per_second: Option<u32>,
    /// PEM certificates to trust instead of the public authorities, for an endpoint with a certificate of one's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65_536))]
    #[x_kube(validation = ("self.startsWith('-----BEGIN CERTIFICATE-----')", "write certificates in PEM text, beginning with -----BEGIN CERTIFICATE-----"))]
    pub ca_bundle: Option<String>,
    /// Secret with the keys `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, in the pool's namespace. It is for the
    /// agent's container alone, and the operator never reads it. Without one, the agent needs these variables by other means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretRef>,
}

/// A Secret of the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(max = limits::MAX_OBJECT_NAME))]
    #[x_kube(validation = limits::object_name())]
    pub name: String,
}

/// How state gets into the store while servers run.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncPolicy {
    /// How often servers that changed are written. What is newer is lost with the pod, unless it was synced explicitly.
    /// Default 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::SYNC_INTERVAL.rule())]
    pub interval: Option<Duration>,
    /// The largest state of one server. Default 64Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STATE.rule())]
    pub max_state_bytes: Option<ByteSize>,
    /// State-bearing records kept of each server. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::RECORDS.start(), max = *limits::RECORDS.end()))]
    pub keep_records: Option<u32>,
}

/// How a pod's servers are handed to other pods when it shuts down.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = limits::not_longer("perServerTimeout", "timeout"),
    validation = limits::not_longer("freezeTimeout", "perServerTimeout")
)]
#[serde(rename_all = "camelCase")]
pub struct PoolHandoff {
    /// Default false: servers are stopped, and started elsewhere from the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Move servers before their pods shut down: in a rollout as soon as pods of the new revision are ready, and off nodes that
    /// are cordoned. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<bool>,
    /// The whole drain of a pod; past it, what is left is stopped gracefully. Default 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::DRAIN.rule())]
    pub timeout: Option<Duration>,
    /// Handoffs under way from one pod. Default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::CONCURRENCY.start(), max = *limits::CONCURRENCY.end()))]
    pub max_concurrency: Option<u32>,
    /// State that one agent holds for handoffs. Default 64Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STATE.rule())]
    pub max_bytes_in_flight: Option<ByteSize>,
    /// One attempt at one handoff. Default 5s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STEP.rule())]
    pub per_server_timeout: Option<Duration>,
    /// How long the host may take to freeze a server; past it, the server serves on. Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STEP.rule())]
    pub freeze_timeout: Option<Duration>,
    /// After so many failures in a row the rest is stopped gracefully. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::FAILURES.start(), max = *limits::FAILURES.end()))]
    pub stop_after_failures: Option<u32>,
    /// How the state travels. Default Direct.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<Transfer>,
}

/// How the state travels in a handoff.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    /// From pod to pod, while requests wait.
    #[default]
    Direct,
    /// Through the store: stop, write, read, start. For networks without pod-to-pod traffic, and for comparison.
    Store,
}

/// Which pods servers are put into.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Servers in one pod, of all types together. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::SERVERS.start(), max = *limits::SERVERS.end()))]
    pub max_servers_per_pod: Option<u32>,
    /// Prefer pods of the newest revision, so that a server moves once in a rollout. Default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer_newest_revision: Option<bool>,
    /// Move servers from the fullest pods to the emptiest, slowly, while nothing else goes on: after a rollout or a scale-up, until
    /// no pod has a tenth more than its part. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<bool>,
    /// What servers stay near to, from the narrowest to the widest, such as a zone and then a region. Moves prefer pods on
    /// nodes that are as near; a server that has lost its pod waits for one. Default: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = limits::MAX_STICKY))]
    pub sticky: Vec<Sticky>,
}

/// A label of nodes by which pods are near to each other.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sticky {
    /// The label, such as `topology.kubernetes.io/zone`.
    #[schemars(length(min = 1, max = limits::MAX_LABEL))]
    pub topology_key: String,
    /// A server that has lost its pod is started only where this label has the value that it had there, for so long from when it
    /// could be started elsewhere; after that the next entry holds, and after the last one any pod will do. Default 30s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STICKY.rule())]
    pub after: Option<Duration>,
}

/// How servers come back that were not handed off.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// How long a pod serves on without a sign of life that the operator or the store answered; when it is over, its
    /// servers are started elsewhere. Default 15s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::LEASE.rule())]
    pub lease_duration: Option<Duration>,
    /// Servers that one pod starts at once. Default 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::CONCURRENCY.start(), max = *limits::CONCURRENCY.end()))]
    pub max_concurrency: Option<u32>,
}

/// Settings for the servers of one type.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeOverride {
    /// The type, as in the servers' `spec.type`.
    #[schemars(length(max = limits::MAX_TYPE_NAME))]
    #[x_kube(validation = limits::type_name())]
    pub name: String,
    /// Goes before the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handoff_on_shutdown: Option<TypeHandoff>,
    /// Servers of this type in one pod, within the pool's own limit. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = *limits::SERVERS.start(), max = *limits::SERVERS.end()))]
    pub max_servers_per_pod: Option<u32>,
}

/// What of a handoff may differ from type to type.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = limits::not_longer("freezeTimeout", "perServerTimeout"))]
#[serde(rename_all = "camelCase")]
pub struct TypeHandoff {
    /// Whether servers of this type are handed off. Default: as the pool says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Higher ones are handed off first. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// One attempt at one handoff. Default: as the pool says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STEP.rule())]
    pub per_server_timeout: Option<Duration>,
    /// How long the host may take to freeze a server. Default: as the pool says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = limits::STEP.rule())]
    pub freeze_timeout: Option<Duration>,
}

/// What the operator reports about a pool.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DurableServerPoolStatus {
    /// The generation of the spec that this speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Servers that name this pool.
    #[serde(default)]
    pub servers: u32,
    /// Those of them that serve.
    #[serde(default)]
    pub running: u32,
    /// Pods whose agent has a session.
    #[serde(default)]
    pub pods: u32,
    /// Servers in pods that live, but that servers are to leave: ahead of a rollout, for another active side, or because of a cordon.
    #[serde(default)]
    pub leaving: u32,
    /// `Accepted` and `Ready`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
