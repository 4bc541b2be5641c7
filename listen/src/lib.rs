//! Listeners that no crowd of idle connections can block, for operator and agents.
//!
//! ```text
//!  accept     TCP, or TLS handshakes side by side ──► connections, each a newcomer
//!  newcomers  until it has shown its use, a connection has only so long, and the oldest makes room for the newest
//!  http       small HTTP servers on such connections
//!  seldom     what the network could fill a log with is written a few times and then counted
//! ```

pub mod accept;
pub mod http;
pub mod newcomers;
pub mod seldom;

pub use newcomers::{Guarded, Newcomer, Newcomers};
pub use seldom::Seldom;
