//! The node agent: the sidecar that starts, syncs, hands off and stops the servers of one pod's host.
//!
//! ```text
//!  session ──orders──► start, draining, release, bury    operator's word
//!  peer    ──offers──► receive                           another agent gives a server here (handoff::target)
//!  draining ─────────► hand_over, release                this pod is emptied (handoff::drain)
//!  moves ────────────► hand_over                         one server goes, as the operator ordered
//!  hand_over ────────► give, or release                  pod to pod (handoff::source), or by the store
//!  sync, cleanup                                         snapshots of what changed; old records, and logs of deleted servers
//!  lease                                                 for how long all of this may go on, and its end
//!  gateway, routes, news                                 users' requests, wherever the server is
//!  credentials                                           who this agent is to its peers: key, certificate, TLS
//!  host, gate                                            client of the host contract; closed when the lease is over
//!  check_host                                            whether any host keeps that contract; not part of a running agent
//!  store_tool                                            logs by hand; not part of a running agent
//!  agent                                                 what all of them share
//! ```

pub mod adopt;
pub mod agent;
pub mod bury;
pub mod check_host;
pub mod cleanup;
pub mod config;
pub mod connections;
pub mod credentials;
pub mod dial;
pub mod draining;
pub mod gate;
pub mod gateway;
pub mod give;
pub mod hand_over;
pub mod hooks;
pub mod host;
mod inherit;
pub mod lease;
pub mod metrics;
pub mod moves;
pub mod news;
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
pub mod store_tool;
pub mod sync;
