//! The real cluster: brings one up, installs the product, makes load from outside, breaks things, measures.
//!
//! Nothing here knows the product's own types: the tests read what `kubectl` would show and what a client would get,
//! so that a field that is renamed or a number that is wrong is seen.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

pub mod audit;
pub mod bad_input;
pub mod browser;
pub mod casebook;
pub mod chaos;
pub mod cluster;
pub mod fallbacks;
pub mod fault;
pub mod figures;
pub mod foretold;
pub mod gate;
pub mod http;
pub mod ledger;
pub mod live;
pub mod load;
pub mod metrics;
pub mod plugin;
pub mod process;
pub mod processes;
pub mod report;
pub mod rollout;
pub mod rollouts;
pub mod rooms;
pub mod scene;
pub mod sockets;
pub mod view;
pub mod wait;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
