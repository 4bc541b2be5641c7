//! A fenced log per server on an object store. Every write creates the next key of the log and none is ever
//! overwritten, so whoever lost its ownership finds the key taken.
//!
//! ```text
//!  objects     what is asked of a store, and its errors
//!  s3          a store that speaks S3
//!  memory      a store in memory, with faults on demand, for tests
//!  count       counts operations by result
//!  pace        keeps the rate at what the store bears; claims, grants and releases go before snapshots
//!  heartbeats  signs of life of agents that have no session
//!  record      a record as bytes
//!  known       what one process knows of a log without asking
//!  log         appending: the fence
//!  read        reading, cleanup
//!  keys        where things lie
//!  logs        all logs of a name or of a prefix; deleting whole ones
//!  probe       checks at start: does the store honour conditions, is the prefix ours
//! ```

pub mod count;
pub mod heartbeats;
mod keys;
mod known;
pub mod log;
pub mod logs;
pub mod memory;
pub mod objects;
pub mod pace;
pub mod probe;
mod read;
pub mod record;
pub mod s3;

pub use heartbeats::Heartbeats;
pub use log::{AppendError, Body, Draft, Log, State};
pub use memory::Memory;
pub use objects::{Created, Lanes, Listed, Objects, Part, StoreError};
pub use read::{Cleaned, Newest, ReadError, Shown};
pub use s3::S3;
