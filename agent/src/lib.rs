//! The node agent: the sidecar that starts, syncs, hands off and stops the servers of one pod's host.
//!
//! ```text
//!  session ──orders──► start, draining, release          operator's word
//!  peer    ──offers──► receive                           another agent gives a server here (handoff::target)
//!  draining ─────────► give, release                     this pod is emptied (handoff::drain, handoff::source)
//!  sync, cleanup                                         snapshots of what changed; old records
//!  lease                                                 for how long all of this may go on, and its end
//!  gateway, routes                                       users' requests, wherever the server is
//!  host, gate                                            client of the host contract; closed when the lease is over
//!  check_host                                            whether any host keeps that contract; not part of a running agent
//!  agent                                                 what all of them share
//! ```

pub mod agent;
pub mod check_host;
pub mod cleanup;
pub mod config;
pub mod connections;
pub mod dial;
pub mod draining;
pub mod gate;
pub mod gateway;
pub mod give;
pub mod hooks;
pub mod host;
pub mod lease;
pub mod metrics;
pub mod peer;
pub mod problem;
pub mod receive;
pub mod recover;
pub mod release;
pub mod routes;
pub mod servers;
pub mod session;
pub mod socket;
pub mod start;
pub mod store_setup;
pub mod sync;
