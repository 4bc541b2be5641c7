//! Write a host of durable servers in Rust.
//!
//! A *durable server* is a named thing that lives in memory in one pod at a time: a chat room, a game match, a
//! document session. You say how it loads, handles a request and writes its state down ([`DurableServer`]); the agent
//! beside your program starts it, keeps its state in a store, and moves it to another pod before this one ends.
//!
//! ```no_run
//! use bytes::Bytes;
//! use durable_sdk::{Context, DurableServer, Host, LoadError, ServerName, State};
//!
//! struct Counter(u64);
//!
//! impl DurableServer for Counter {
//!     const TYPE: &str = "counter";
//!     const STATE_VERSION: u32 = 1;
//!
//!     fn load(_: &ServerName, _: Option<serde_json::Value>, state: Option<State>) -> Result<Self, LoadError> {
//!         let Some(state) = state else { return Ok(Self(0)) };
//!         serde_json::from_slice(&state.body).map(Self).map_err(LoadError::new)
//!     }
//!
//!     async fn handle(&mut self, _: http::Request<Bytes>, _: &mut Context) -> http::Response<Bytes> {
//!         self.0 += 1;
//!         http::Response::new(self.0.to_string().into())
//!     }
//!
//!     fn snapshot(&self) -> Bytes {
//!         self.0.to_string().into()
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), durable_sdk::HostError> {
//!     Host::new().serve::<Counter>().run("/run/durable").await
//! }
//! ```
//!
//! The crate speaks the host contract, version 1, and knows nothing else of the project: a host in any other
//! language is as good.

mod agent;
mod answer;
mod cell;
mod control;
mod headers;
mod host;
mod lease;
mod listen;
mod observer;
mod registry;
mod requests;
mod server;
mod socket;
mod stream;

pub use agent::{AgentError, Location};
pub use host::Host;
pub use listen::{HostError, Listening};
pub use observer::{EndReason, Observer};
pub use server::{Context, DurableServer, LoadError, ServerName, State};
pub use socket::{Message, Socket};
pub use stream::Stream;
