//! The protobuf contracts: [`session`] between agents and the operator, [`peer`] between two agents, and the
//! [`identity`] by which two agents know each other.

pub mod identity;

/// Messages of a handoff, agent to agent.
#[allow(missing_docs, clippy::pedantic, clippy::unwrap_used)] // generated; the .proto files are the documentation
pub mod peer {
    tonic::include_proto!("durable.peer.v1");
}

/// Messages of a session, agent to operator.
#[allow(missing_docs, clippy::pedantic, clippy::unwrap_used)] // generated; the .proto files are the documentation
pub mod session {
    tonic::include_proto!("durable.session.v1");
}

/// The version of both contracts. Peers one apart understand each other.
pub const PROTOCOL: u32 = 1;

impl From<handoff::lease::Heartbeat> for session::Heartbeat {
    fn from(heartbeat: handoff::lease::Heartbeat) -> Self {
        Self { generation: heartbeat.generation.0, counter: heartbeat.counter }
    }
}

impl From<session::Heartbeat> for handoff::lease::Heartbeat {
    fn from(heartbeat: session::Heartbeat) -> Self {
        Self { generation: handoff::Generation(heartbeat.generation), counter: heartbeat.counter }
    }
}

/// Room for one message's envelope beside the state that it bears, bytes.
pub const ENVELOPE_BYTES: usize = 256 * 1024;

/// Metadata of a refused session: the address at which the replica of the operator that leads takes sessions.
pub const LEADER: &str = "durable-leader";
