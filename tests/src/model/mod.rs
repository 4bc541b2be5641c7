//! The rules of crate `handoff` under a model checker: one server, three agents, a store, a network, an operator, and
//! every order of events that the bounds of a [`Rules`] admit.
//!
//! What is real: `Source`, `Target`, `log::found`, `log::deletable`, `claim::decide` and `adopt`, called exactly as the
//! agent calls them. What is modelled: everything around them.
//!
//! - *Store.* A create may land at any time, any number of times, or never, and its answer may be lost; an agent that
//!   does not know stays with the same sequence and nonce. So one pending append is enough to stand for every lost,
//!   late and doubled create. What its agent no longer waits for is kept apart and may land at any later time.
//! - *Network.* Every message of a handoff stays deliverable for as long as its receiver may act on it: lost, late,
//!   doubled and reordered messages are all orders of deliveries.
//! - *Time.* All limits are zero, so a Tick is due whenever it is chosen: any timer may fire at any moment.
//! - *Host.* A verb takes effect some time after it is called, and its answer may be lost. What it has is lost with
//!   its agent's: a crash is the end of the pod, which the operator then knows, a loss one that it does not know. A restart is
//!   that of the agent alone, after which the host takes no late call of the one before.
//! - *Operator.* Decides by one reading of all that it knows, as soon as it can; what it decided reaches any agent, any
//!   number of times, at any later time.
//! - *Leases.* A heartbeat's lease ends whenever that is chosen, but at its agent (and in its host, by itself) before the
//!   operator may take the pod for silent: that order is the one thing that clocks are good for. An agent sleeps by not
//!   being chosen. Heartbeats go by the session or the store; another leader may follow at any time.
//! - *State.* The set of client writes in it, one bit each, so that two histories never look alike.

mod agent;
pub mod graph;
mod lease;
mod operator;
mod rules;
mod store;
mod world;

pub use lease::Beat;
pub use operator::{Grounds, Order};
pub use rules::{Act, Bounds, Mutation, Rules};
pub use world::{Pod, World};
