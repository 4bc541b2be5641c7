//! The webhook's endpoint: HTTPS, one review at a time from the API server.

use std::{net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use crds::POOL_LABEL;
use json_patch::diff;
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse, AdmissionReview},
};
use listen::{
    accept,
    http::{self, Keep},
};
use serde_json::Value;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{Agent, Pool, Pools, Refusal, inject};
use crate::certificates::Certificates;

/// The API server takes requests of 3 MiB, and says a little around them.
const MAX_REVIEW: usize = 4 << 20;
/// A whole review; the API server waits for 10 seconds.
const REVIEW: Duration = Duration::from_secs(8);
/// Reviews at once; whoever comes more often waits.
const REVIEWS: usize = 16;

struct Webhook {
    pools: Arc<dyn Pools>,
    agent: Agent,
    slots: Semaphore,
}

/// The routes: `/inject`.
pub fn routes(pools: Arc<dyn Pools>, agent: Agent) -> Router {
    let webhook = Webhook { pools, agent, slots: Semaphore::new(REVIEWS) };
    Router::new().route("/inject", post(review)).with_state(Arc::new(webhook))
}

/// Serves them until `stop`.
pub async fn serve(
    routes: Router,
    listener: TcpListener,
    certificates: &Certificates,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "webhook");
    listener.set_nonblocking(true)?;
    let config = Arc::new(certificates.server_config(&["http/1.1"])?);
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let connections = accept::tls(listener, config, http::newcomers("webhook"));
    http::serve(connections, routes, Keep::Many, stop).await;
    Ok(())
}

async fn review(State(webhook): State<Arc<Webhook>>, body: Body) -> Response {
    let answered = timeout(REVIEW, async {
        // Closed never.
        let _slot = webhook.slots.acquire().await;
        let body = to_bytes(body, MAX_REVIEW).await.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        let request = request(&body).map_err(|problem| (StatusCode::BAD_REQUEST, problem))?;
        Ok(webhook.answer(&request).await.into_review())
    });
    match answered.await {
        Ok(Ok(review)) => Json(review).into_response(),
        Ok(Err::<_, (StatusCode, String)>(refused)) => refused.into_response(),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, format!("not done within {REVIEW:?}")).into_response(),
    }
}

fn request(body: &[u8]) -> Result<AdmissionRequest<DynamicObject>, String> {
    let review: AdmissionReview<DynamicObject> =
        serde_json::from_slice(body).map_err(|error| format!("not an AdmissionReview of v1: {error}"))?;
    review.try_into().map_err(|_| "an AdmissionReview without a request".to_owned())
}

impl Webhook {
    async fn answer(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let response = AdmissionResponse::from(request);
        let namespace = request.namespace.as_deref().unwrap_or_default();
        let Some(pod) = &request.object else { return response };
        let Some(pool) = pod.metadata.labels.as_ref().and_then(|labels| labels.get(POOL_LABEL)) else {
            return response;
        };
        // A pod of a Deployment has no name yet.
        let name = pod.metadata.name.as_ref().or(pod.metadata.generate_name.as_ref()).cloned().unwrap_or_default();
        let injected = match self.pools.find(namespace, pool).await {
            Ok(pool) => self.patch(pod, &pool),
            Err(refusal) => Err(refusal),
        };
        let patched = injected.and_then(|patch| {
            if patch.is_empty() {
                return Ok(response.clone());
            }
            response.clone().with_patch(patch).map_err(|error| Refusal::Unreadable(error.to_string()))
        });
        match patched {
            Ok(response) => {
                tracing::debug!(namespace, pool, pod = name, "pod injected");
                response
            }
            Err(refusal) => {
                tracing::info!(namespace, pool, pod = name, %refusal, "pod refused");
                denied(response, &refusal)
            }
        }
    }

    fn patch(&self, pod: &DynamicObject, pool: &Pool) -> Result<json_patch::Patch, Refusal> {
        let before: Value = serde_json::to_value(pod).map_err(|error| Refusal::Unreadable(error.to_string()))?;
        let hook_path = format!("/prestop/{:032x}", rand::random::<u128>());
        let after = inject(&before, pool, &self.agent, &hook_path)?;
        Ok(diff(&before, &after))
    }
}

fn denied(response: AdmissionResponse, refusal: &Refusal) -> AdmissionResponse {
    let mut denied = response.deny(refusal);
    denied.result.code = StatusCode::FORBIDDEN.as_u16();
    denied.result.reason = "Forbidden".into();
    denied
}
