//! The rules of crate `handoff` under a model checker: one server, three agents, a store, a network, an operator, and
//! every order of events that the bounds of a [`Rules`] admit.
//!
//! What is real: `Source`, `Target`, `log::found`, `log::deletable` and `claim::decide`, called exactly as the agent
//! calls them. What is modelled: everything around them.
//!
//! - *Store.* A create may land at any time, any number of times, or never, and its answer may be lost; an agent that
//!   does not know stays with the same sequence and nonce. So one pending append is enough to stand for every lost,
//!   late and doubled create. What its agent no longer waits for is kept apart and may land at any later time.
//! - *Network.* Every message of a handoff stays deliverable for as long as its receiver may act on it: lost, late,
//!   doubled and reordered messages are all orders of deliveries.
//! - *Time.* All limits are zero, so a Tick is due whenever it is chosen: any timer may fire at any moment.
//! - *Host.* A verb takes effect some time after it is called, and its answer may be lost. What it has is lost with
//!   its agent's: a crash is the end of the pod, which the operator then knows.
//! - *Operator.* Assigns to any agent, at any time, with any grounds that it ever had; grounds never cease to hold.
//! - *State.* The set of client writes in it, one bit each, so that two histories never look alike.

mod agent;
pub mod graph;
mod operator;
mod rules;
mod store;
mod world;

pub use rules::{Act, Bounds, Mutation, Rules};
pub use world::{Pod, World};
