//! The webhook that puts an agent into every pod of a pool. Each replica answers, whoever leads: it needs no more than
//! the pools.
//!
//! ```text
//!  API server ──AdmissionReview──► serve ──pool──► pools
//!                                    └─ inject: refusals, then container and pod; pure ──JSON patch──► API server
//! ```

mod container;
mod inject;
mod pools;
mod refusal;
mod resources;
mod rules;
mod serve;

use std::{net::TcpListener, sync::Arc};

use kube::Client;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{args::Args, certificates::Certificates};

pub use container::Agent;
pub use inject::inject;
pub use pools::{KubePools, Pool, Pools};
pub use refusal::Refusal;
pub use resources::Resources;
pub use serve::{routes, serve};

/// Where the host finds its socket and the agent's.
pub const SOCKETS: &str = "/run/durable";
/// The agent's container.
pub const CONTAINER: &str = "durable-agent";
/// The volume of [`SOCKETS`].
pub const SOCKETS_VOLUME: &str = "durable";
/// The volume of the agent's token for the operator.
pub const TOKEN_VOLUME: &str = "durable-token";
/// An empty volume where the app's token for the API server would be.
pub const NO_API_TOKEN_VOLUME: &str = "durable-no-api-token";
/// The agent's ports: requests for servers, other agents, and health, metrics and hook.
pub const PORTS: [(&str, u16); 3] = [("durable", 7070), ("durable-peers", 7071), ("durable-http", HOOK_PORT)];
/// The port that the kubelet calls.
pub const HOOK_PORT: u16 = 7072;

/// Set on pods that were injected: the operator's version.
pub const INJECTED: &str = "durableserver.io/injected";
/// Set on pods whose grace period was raised: from what to what.
pub const GRACE_PERIOD: &str = "durableserver.io/grace-period";
/// On a pod: `keep` leaves containers the preStop hook that they have.
pub const PRESTOP: &str = "durableserver.io/prestop";
/// On a pod: resources of the agent, JSON.
pub const AGENT_RESOURCES: &str = "durableserver.io/agent-resources";

/// The hook's address, in containers whose own hook is to call it.
const PRESTOP_URL: &str = "DURABLE_PRESTOP_URL";
const HOOK_PATH: &str = "DURABLE_HOOK_PATH";
const GRACE: &str = "TERMINATION_GRACE_PERIOD_SECONDS";

/// Serves the webhook on this listener. Without one, or without an image, the task waits for ever.
pub fn spawn(
    client: &Client,
    args: &Args,
    listener: Option<TcpListener>,
    certificates: Arc<Certificates>,
    tasks: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> JoinHandle<anyhow::Result<()>> {
    let (Some(listener), Some(agent)) = (listener, agent(args, &certificates)) else {
        return tokio::spawn(std::future::pending());
    };
    let routes = routes(Arc::new(KubePools::watch(client.clone(), &args.watch_namespaces, tasks)), agent);
    let stop = stop.clone();
    tokio::spawn(async move { serve(routes, listener, &certificates, stop).await })
}

fn agent(args: &Args, certificates: &Certificates) -> Option<Agent> {
    let webhook = &args.webhook;
    Some(Agent {
        image: webhook.agent_image.clone()?,
        pull_policy: webhook.agent_pull_policy.clone(),
        resources: webhook.agent_resources.clone(),
        operator: webhook.agent_operator.clone()?,
        authority: certificates.bundle(),
        audience: args.audience.clone(),
    })
}

#[cfg(test)]
mod tests;
