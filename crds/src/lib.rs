//! The resources that people write and read: [`DurableServerPool`], [`DurableServer`] and [`Handoff`], their
//! validation, and the resolution of their settings. No client and no decisions: the operator has those.
//!
//! - What the schema refuses, it refuses with a sentence that says what to write (`limits`, CEL rules on the fields).
//! - What slips through all the same (an older schema, a direct write to etcd) is refused by [`settings`] in the same
//!   terms, so that it ends as a condition on that object alone.
//! - Defaults live in [`settings`], not in the schema: the API server would write them into objects for ever.

#![allow(clippy::duplicated_attributes, reason = "printer columns share a type; the lint takes that for a repetition")]

mod duration;
mod generate;
mod handoff;
mod limits;
pub mod plan;
mod pool;
mod reason;
mod server;
pub mod settings;
mod size;

pub use duration::{Duration, MalformedDuration};
pub use generate::{all, file_name, to_yaml};
pub use handoff::{Handoff, HandoffPhase, HandoffSpec, HandoffStatus, Trigger};
pub use pool::{
    DurableServerPool, DurableServerPoolSpec, DurableServerPoolStatus, Placement, PoolHandoff, Recovery, S3, SecretRef,
    Sticky, Store, SyncPolicy, Transfer, TypeHandoff, TypeOverride,
};
pub use reason::Reason;
pub use server::{
    DurableServer, DurableServerSpec, DurableServerStatus, HandoffOutcome, LastHandoff, NodeLabel, Phase,
    ReclaimPolicy, RestoreFrom, ServerHandoff,
};
pub use size::{ByteSize, MalformedSize};

/// The API group of all resources.
pub const GROUP: &str = "durableserver.io";

/// The API version of all resources.
pub const VERSION: &str = "v1alpha1";

/// The label that puts a pod into a pool; its value is the pool's name.
pub const POOL_LABEL: &str = "durableserver.io/pool";
/// Annotation of a pod; `true`: it gets no more servers.
pub const CORDON_ANNOTATION: &str = "durableserver.io/cordon";
/// Annotation of a pod; `true`: it gets no more servers, and those it has move to other pods, live.
pub const DRAIN_ANNOTATION: &str = "durableserver.io/drain";
/// Annotation of a pod: the deletion cost that the operator gave it. If the pod has another one, somebody else did.
pub const DELETION_COST_ANNOTATION: &str = "durableserver.io/deletion-cost";
/// Annotation of a server: the pod that it is to be in, for as long as the annotation is there.
pub const MOVE_ANNOTATION: &str = "durableserver.io/move";

/// Types of the conditions in the resources' status.
pub mod condition {
    /// Pool, server: the spec can be acted on. `False` names the field and what to write.
    pub const ACCEPTED: &str = "Accepted";
    /// Server: a pod has been chosen for it.
    pub const PLACED: &str = "Placed";
    /// Server: it serves. Pool: at least one pod can host.
    pub const READY: &str = "Ready";
    /// Server: its first record of this term, and what was last to be synced, are in the store.
    pub const DURABLE: &str = "Durable";
    /// Server: it is in the pod that its annotation asks for; only while there is one.
    pub const MOVED: &str = "Moved";
    /// Handoff: it has ended, one way or another.
    pub const COMPLETE: &str = "Complete";

    /// All of them.
    pub const ALL: [&str; 6] = [ACCEPTED, PLACED, READY, DURABLE, MOVED, COMPLETE];
}
