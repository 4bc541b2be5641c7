//! What the operator knows of Kubernetes' objects, reduced to what decisions need. No client, no clock.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use bytes::Bytes;
use crds::{
    DurableServerPoolSpec, DurableServerSpec, DurableServerStatus, HandoffPhase, HandoffStatus, Trigger, settings,
};
use handoff::{PodUid, ServerId, ServerUid};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tonic::Status;
use wire::{
    identity::PodIdentity,
    session::{Hello, ToAgent, from_agent, to_agent},
};

/// By this annotation a `ReplicaSet` that is scaled down chooses which pods end.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// By this annotation Argo Rollouts says when it scales a `ReplicaSet` to nothing that it has replaced.
pub const SCALE_DOWN_DEADLINE: &str = "argo-rollouts.argoproj.io/scale-down-deadline";

/// An object by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kubernetes namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// Object name.
    pub name: String,
}

impl Key {
    /// The object `name` in `namespace`.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `DurableServerPool`.
    Pool,
    /// `DurableServer`.
    Server,
    /// `Handoff`.
    Handoff,
    /// `Pod`, those with the pool label.
    Pod,
    /// `Node`.
    Node,
    /// `ReplicaSet`, those with the pool label.
    ReplicaSet,
    /// `StatefulSet`.
    StatefulSet,
    /// `Service`.
    Service,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pool,
        Self::Server,
        Self::Handoff,
        Self::Pod,
        Self::Node,
        Self::ReplicaSet,
        Self::StatefulSet,
        Self::Service,
    ];

    /// As the API writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pool => "DurableServerPool",
            Self::Server => "DurableServer",
            Self::Handoff => "Handoff",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::Service => "Service",
        }
    }
}

/// A pool as last seen.
#[derive(Clone, Debug)]
pub struct PoolObject {
    /// Its name.
    pub key: Key,
    /// Its uid, for Events.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// What agents are told.
    pub spec: DurableServerPoolSpec,
    /// The same, resolved; or which field is wrong.
    pub settings: Result<settings::Pool, settings::Invalid>,
    /// What was written last.
    pub status: crds::DurableServerPoolStatus,
}

/// A server's resource as last seen.
#[derive(Clone, Debug)]
pub struct ServerObject {
    /// Name and uid.
    pub id: ServerId,
    /// Generation of the spec.
    pub generation: i64,
    /// Version of the object, for writes that must not overwrite another's.
    pub resource_version: String,
    /// It has a deletionTimestamp.
    pub deleting: bool,
    /// All its finalizers.
    pub finalizers: Vec<String>,
    /// Annotation [`crds::MOVE_ANNOTATION`]: the pod that it is to be in.
    pub wish: Option<String>,
    /// What agents are told.
    pub spec: DurableServerSpec,
    /// What was written last.
    pub status: DurableServerStatus,
}

/// A pod of a pool as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own
pub struct Pod {
    /// Its uid.
    pub uid: PodUid,
    /// Its name.
    pub key: Key,
    /// Value of its pool label.
    pub pool: String,
    /// Where it runs; empty while unscheduled.
    pub node: String,
    /// Its addresses; empty until the kubelet has reported them.
    pub addresses: Vec<IpAddr>,
    /// Phase Pending.
    pub pending: bool,
    /// Phase Running.
    pub running: bool,
    /// Its Ready condition.
    pub ready: bool,
    /// It has a deletionTimestamp.
    pub deleting: bool,
    /// Condition `DisruptionTarget=True`.
    pub disrupted: bool,
    /// Annotation [`crds::CORDON_ANNOTATION`] is `true`, or the next.
    pub cordoned: bool,
    /// Annotation [`crds::DRAIN_ANNOTATION`] is `true`.
    pub emptied: bool,
    /// Uid of the `StatefulSet` that made it.
    pub stateful_set: Option<String>,
    /// The lower, the sooner it ends: annotation [`DELETION_COST`], 0 without one; of a
    /// `StatefulSet`, whose highest ordinal is the first to go, the ordinal below zero.
    pub deletion_cost: i32,
    /// Somebody else than the operator gave it that.
    pub cost_is_given: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Uid of the `ReplicaSet` that made it.
    pub replica_set: Option<String>,
    /// Every container is reported terminated, and the kubelet will not start one again.
    pub over: bool,
}

/// A `ReplicaSet` as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaSet {
    /// Its uid.
    pub uid: String,
    /// Uid of its `Deployment`.
    pub deployment: Option<String>,
    /// Annotation `deployment.kubernetes.io/revision`.
    pub revision: u64,
    /// Replicas wanted.
    pub replicas: i32,
    /// Replicas that its `Deployment` wants in all: annotation `deployment.kubernetes.io/desired-replicas`.
    pub desired: i32,
    /// When its pods end, now that a Service leads to others: annotation [`SCALE_DOWN_DEADLINE`].
    pub ends: Option<Timestamp>,
}

/// A node as last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Pods may be put on it.
    pub schedulable: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A `Handoff` as last seen.
#[derive(Clone, Debug)]
pub struct HandoffObject {
    /// Its name.
    pub key: Key,
    /// Its pool's name.
    pub pool: String,
    /// The pod that is emptied.
    pub pod: String,
    /// Its uid.
    pub pod_uid: PodUid,
    /// Why it is.
    pub trigger: Trigger,
    /// Where it is.
    pub phase: Option<HandoffPhase>,
    /// All that was written of it last.
    pub status: HandoffStatus,
    /// When it was made.
    pub created: Option<Timestamp>,
}

/// An object whose spec cannot be read.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Generation of the spec.
    pub generation: i64,
    /// What is wrong.
    pub error: String,
}

/// One session of one agent; grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// The pod that a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Namespace of the service account, so of the pod.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: PodUid,
}

/// The way to one agent. Dropping it ends the session.
#[derive(Debug)]
pub struct Outbox {
    /// Bounded: an agent that does not read loses its session, and begins again with its inventory.
    pub sender: mpsc::Sender<Result<ToAgent, Status>>,
    /// Ends the reading half.
    pub cancel: DropGuard,
}

/// A session that begins.
#[derive(Debug)]
pub struct Opening {
    /// Its number.
    pub id: SessionId,
    /// The pod that its token names.
    pub identity: Identity,
    /// What the agent said first.
    pub hello: Hello,
    /// The way to the agent; whoever carries out effects takes it.
    pub outbox: Option<Outbox>,
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A pool is there or changed.
    Pool(Box<PoolObject>),
    /// It is there no more.
    PoolGone(Key),
    /// A server's resource is there or changed.
    Server(Box<ServerObject>),
    /// It is there no more.
    ServerGone(ServerUid),
    /// A pod is there or changed.
    Pod(Box<Pod>),
    /// Its object is there no more, which says nothing of its containers.
    PodGone(PodUid),
    /// A node is there or changed, by name.
    Node(String, Node),
    /// It is there no more.
    NodeGone(String),
    /// A `ReplicaSet` is there or changed.
    ReplicaSet(ReplicaSet),
    /// It is there no more.
    ReplicaSetGone(String),
    /// A `StatefulSet` is there or changed: its uid, and the revision that its pods are to have.
    StatefulSet(String, String),
    /// It is there no more.
    StatefulSetGone(String),
    /// A `Service` is there or changed: what it selects.
    Service(Key, BTreeMap<String, String>),
    /// It is there no more.
    ServiceGone(Key),
    /// A `Handoff` is there or changed.
    Handoff(Box<HandoffObject>),
    /// It is there no more.
    HandoffGone(Key),
    /// An object cannot be read.
    Malformed(Box<Malformed>),
    /// All objects of a kind that were there at the start have been told of.
    Initialised(Kind),
    /// An agent came and said hello.
    Open(Box<Opening>),
    /// It said more.
    Message(SessionId, Box<from_agent::Body>),
    /// It went.
    Closed(SessionId),
    /// This status of a `Handoff` is in the API server, or was refused by it.
    Recorded(Key, Arc<serde_json::Value>),
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell an agent.
    Send(SessionId, to_agent::Body),
    /// Give an agent a certificate that names its pod.
    Certify {
        /// Its session.
        session: SessionId,
        /// Its pod.
        pod: PodIdentity,
        /// The key that the certificate is for.
        public_key: Bytes,
    },
    /// End a session, saying why.
    Close(SessionId, Refusal),
    /// Write to the API server.
    Write(Write),
    /// Publish an Event.
    Publish(Box<Note>),
}

/// Why a session is ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not all objects have been read yet.
    #[error("the operator is starting: try again in a second")]
    Starting,
    /// The token's pod is not known.
    #[error("pod {0} is not known (yet), or has not the label durableserver.io/pool")]
    UnknownPod(String),
    /// Its pool does not exist.
    #[error("pool {0} does not exist, or its spec is not accepted: look at its condition Accepted")]
    NoPool(Key),
    /// The contract's versions are too far apart.
    #[error("the agent speaks version {agent} of the session contract, the operator {operator}: update the older one")]
    Protocol {
        /// The agent's.
        agent: u32,
        /// Ours.
        operator: u32,
    },
    /// A newer session of the same pod.
    #[error("replaced by a newer session of this pod")]
    Replaced,
    /// It names an address that is not its pod's: the token is another pod's.
    #[error("the agent says that it is at {said}, which is not an address of pod {pod}, whose token it shows")]
    Address {
        /// What it said, cut.
        said: String,
        /// The token's pod.
        pod: String,
    },
    /// The pod's containers are over.
    #[error("every container of this pod is reported terminated")]
    PodOver,
}

/// One write to the API server. Later writes of an object replace earlier ones that were not carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Kind of the object.
    pub kind: Kind,
    /// The object.
    pub key: Key,
    /// What to write.
    pub what: What,
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Create the object, if it is not there.
    Create(Arc<serde_json::Value>),
    /// Merge into its status.
    Status(Arc<serde_json::Value>),
    /// Merge into its metadata; refused, and forgotten, if the object has changed.
    Metadata(Arc<serde_json::Value>),
    /// Delete it.
    Delete,
}

/// An Event for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Kind of the object that it is about.
    pub kind: Kind,
    /// The object.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// Another object that it is about; `None`: no other.
    pub related: Option<(Kind, Key)>,
    /// Something is wrong.
    pub warning: bool,
    /// One word.
    pub reason: crds::Reason,
    /// What was done.
    pub action: &'static str,
    /// A sentence.
    pub note: String,
}

/// The present time by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By the clock that never goes back; for decisions.
    pub mono: handoff::Instant,
    /// By the calendar; for reports.
    pub wall: Timestamp,
}

/// At most `max` bytes of a text from the network, cut between characters.
#[must_use]
pub fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
