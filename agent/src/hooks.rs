//! Health, metrics and the preStop hook, for the kubelet.

use std::sync::Arc;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use listen::{accept, http::Keep};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    draining::{self, Trigger},
    servers::Phase,
};

/// The routes of the hook port.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route(&agent.config.hook_path, get(prestop))
        .with_state(agent)
}

/// Serves them until the process ends.
pub async fn serve(agent: Arc<Agent>, listener: TcpListener) {
    let connections = accept::plain(listener, listen::http::newcomers("hooks"));
    listen::http::serve(connections, router(agent), Keep::One, CancellationToken::new()).await;
}

/// Ready means: can host. It stays so while operator or store are away, since servers here go on (see the design, 7).
async fn ready(State(agent): State<Arc<Agent>>) -> (StatusCode, String) {
    match readiness(&agent) {
        Ok(()) => (StatusCode::OK, "ok".into()),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}

fn readiness(agent: &Arc<Agent>) -> Result<(), String> {
    agent.pool()?;
    if !agent.credentials.is_known() {
        return Err("the operator has not given this agent a certificate for its peers yet".into());
    }
    if !agent.routes.is_complete() {
        return Err("the directory of servers has not come yet".into());
    }
    if agent.described.borrow().is_none() {
        return Err("the host does not answer on its socket".into());
    }
    Ok(())
}

async fn metrics(State(agent): State<Arc<Agent>>) -> String {
    for (operation, result, total) in agent.store_counts.all().filter(|(.., total)| *total > 0) {
        agent.metrics.store_operations(operation, result, total);
    }
    let servers = agent.servers.all();
    for phase in Phase::ALL {
        agent.metrics.servers(phase.name(), servers.iter().filter(|server| server.phase() == phase).count());
    }
    let oldest = servers.iter().filter_map(|server| server.held().last_sync?.elapsed().ok()).max();
    agent.metrics.oldest_sync(oldest.unwrap_or_default());
    agent.metrics.encode()
}

/// Answers when the last server is durable somewhere: the kubelet sends SIGTERM to the host only then. It ignores the
/// status and does not time the call out but by the grace period, and it may call more than once.
async fn prestop(State(agent): State<Arc<Agent>>) -> &'static str {
    draining::begin(&agent, Trigger::PreStop);
    agent.draining.finished().await;
    "drained"
}
