//! An S3 server with a fault: passes everything on to the real one but for what it is made to get wrong.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::http::Pool;

/// No record of a test is larger (bytes).
const MAX_BODY: usize = 8 << 20;
const NO_BUCKET: &str = r#"<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"#;

/// What it gets wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A PUT of a key that exists is said to have succeeded, `If-None-Match` or not.
    IgnoresConditions,
    /// It has no bucket.
    NoBucket,
}

/// A server that listens until it is dropped.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    broken: Arc<AtomicBool>,
    server: JoinHandle<()>,
}

struct Behind {
    fault: Fault,
    broken: Arc<AtomicBool>,
    store: Pool,
}

impl Gate {
    /// Listens where pods can reach it, before the store at `store`.
    pub async fn open(here: IpAddr, store: SocketAddr, fault: Fault) -> Result<Self> {
        let listener = TcpListener::bind((here, 0)).await.with_context(|| format!("S3 with a fault on {here}"))?;
        let address = listener.local_addr()?;
        let broken = Arc::new(AtomicBool::new(true));
        let behind = Behind { fault, broken: Arc::clone(&broken), store: Pool::new(store) };
        let app = Router::new().fallback(answer).with_state(Arc::new(behind));
        let server = tokio::spawn(async move {
            // Ends only when the gate is dropped.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { address, broken, server })
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it gets nothing wrong.
    pub fn mend(&self) {
        self.broken.store(false, Ordering::Relaxed);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(behind): State<Arc<Behind>>, request: Request) -> Response {
    let fault = behind.broken.load(Ordering::Relaxed).then_some(behind.fault);
    if fault == Some(Fault::NoBucket) {
        return (StatusCode::NOT_FOUND, [("content-type", "application/xml")], NO_BUCKET).into_response();
    }
    let is_put = request.method() == Method::PUT;
    match pass_on(&behind.store, request).await {
        // The signature covers the condition, so it cannot be taken out on the way; its outcome can.
        Ok(answer) if is_put && fault.is_some() && answer.status() == StatusCode::PRECONDITION_FAILED => {
            StatusCode::OK.into_response()
        }
        Ok(answer) => answer,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

async fn pass_on(store: &Pool, request: Request) -> Result<Response> {
    let (mut head, body) = request.into_parts();
    head.headers.remove(CONNECTION);
    head.headers.remove(TRANSFER_ENCODING);
    let body = to_bytes(body, MAX_BODY).await?;
    let answer = store.send(http::Request::from_parts(head, Full::new(body))).await?;
    let (mut head, body) = answer.into_parts();
    head.headers.remove(CONNECTION);
    head.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(head, Body::from(body)))
}
