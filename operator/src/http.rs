//! Health, metrics, the page, and what would happen if.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, http::StatusCode, routing::get};
use listen::{accept, http::Keep};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{foretell::Asking, metrics::METRICS, page::Page};

/// The routes; `ready` once all watches told what was there.
pub fn routes(ready: Arc<AtomicBool>, page: Page, asking: Asking) -> Router {
    let readyz = move || async move {
        if ready.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not all objects have been read yet")
        }
    };
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(|| async { METRICS.text() }))
        .merge(page.routes())
        .merge(asking.routes())
}

/// Serves them until `stop`.
pub async fn serve(routes: Router, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
    tracing::info!(address = %listener.local_addr()?, "health, metrics and the page");
    let connections = accept::plain(listener, listen::http::newcomers("health"));
    listen::http::serve(connections, routes, Keep::One, stop).await;
    Ok(())
}
