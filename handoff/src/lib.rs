//! The rules of ownership and handoff, without I/O: time, messages, host answers and store answers come in as
//! events; what to do comes out as actions. The agent, the operator and the model checker run this same code.
//!
//! ```text
//!  ids        who: server, pod, epoch, sequence, handoff
//!  log        what a record says, what an append may do about a key that exists already, what cleanup may delete
//!  claim      how a server starts from its log, given an assignment
//!  lease      for how long an agent may serve, and when the operator may take it for silent
//!  adopt      what an agent takes up again that was restarted beside a living host
//!  afterlife  logs of deleted servers: which may go, and which a new server of the same name starts from
//!  source     one handoff, seen from the pod that gives the server away
//!  target     one handoff, seen from the pod that receives it
//!  drain      emptying a pod: order, concurrency, retries, breaker, budget
//!  window     how many handoffs at once
//!  placement  which pod is eligible, and which of those is best
//!  moves      which servers leave pods that live on, and where to
//! ```

pub mod adopt;
pub mod afterlife;
pub mod claim;
pub mod drain;
pub mod ids;
pub mod lease;
pub mod log;
pub mod moves;
pub mod placement;
pub mod source;
pub mod target;
pub mod window;

pub use ids::{Epoch, Generation, HandoffId, Instant, PodUid, Sequence, ServerId, ServerUid};
