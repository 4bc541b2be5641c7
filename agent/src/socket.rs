//! What the host may ask of its agent, on the agent's socket (see `docs/host-contract.md`).

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use handoff::ServerUid;
use serde_json::json;

use crate::{
    agent::Agent,
    routes::{Found, Way},
    sync::{SyncError, sync_now},
};

/// The routes of the agent's socket.
pub fn router(agent: Arc<Agent>) -> Router {
    Router::new()
        .route("/v1/servers/{uid}/sync", post(sync))
        .route("/v1/servers/{namespace}/{name}", get(lookup))
        .with_state(agent)
}

async fn sync(State(agent): State<Arc<Agent>>, Path(uid): Path<String>) -> Response {
    match sync_now(&agent, &ServerUid(uid)).await {
        Ok(sequence) => [("durable-sequence", sequence.to_string())].into_response(),
        Err(error @ SyncError::NotHere(_)) => (StatusCode::NOT_FOUND, error.to_string()).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

async fn lookup(State(agent): State<Arc<Agent>>, Path((namespace, name)): Path<(String, String)>) -> Response {
    if namespace != agent.config.namespace {
        return (StatusCode::NOT_FOUND, "only servers of this pod's namespace are known here").into_response();
    }
    let route = match agent.routes.find(&name) {
        Found::Known(route) => route,
        Found::Unknown => return (StatusCode::NOT_FOUND, "no server has this name").into_response(),
        Found::NotYet => return (StatusCode::SERVICE_UNAVAILABLE, "the directory is not complete yet").into_response(),
    };
    let address = match &route.way {
        Way::Here(_) | Way::Held => Some(agent.gateway_address()),
        Way::There { gateway, .. } => Some(*gateway),
        Way::Nowhere => None,
    };
    let here = matches!(route.way, Way::Here(_) | Way::Held);
    axum::Json(json!({"uid": route.uid, "epoch": route.epoch, "address": address, "here": here})).into_response()
}
