//! Being told of the terms in which this process serves.

use crate::server::ServerName;

/// Why a term of serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Frozen, to be moved, or to be thawed again.
    Frozen,
    /// The agent had it stopped.
    Stopped,
    /// Its agent's lease is over: it may be started elsewhere.
    LeaseOver,
    /// The process ends.
    Exit,
}

/// Is told when a server begins and ends to serve. Called while the server waits, so it must not block.
pub trait Observer: Send + Sync + 'static {
    /// The server begins to serve; its first request comes after this returns.
    fn begin(&self, server: &ServerName, epoch: u64);

    /// The server's last request was handled before this was called.
    fn end(&self, server: &ServerName, epoch: u64, reason: EndReason);
}

/// Nobody wants to know.
impl Observer for () {
    fn begin(&self, _: &ServerName, _: u64) {}
    fn end(&self, _: &ServerName, _: u64, _: EndReason) {}
}
