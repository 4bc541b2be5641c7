//! An S3 server with a fault: passes everything on to the real one but for what it is made to get wrong.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::header::{CONNECTION, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::http::Pool;

/// No record of a test is larger (bytes).
const MAX_BODY: usize = 8 << 20;
const NO_BUCKET: &str = r#"<?xml version="1.0" encoding="UTF-8"?><Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>"#;
const SLOW_DOWN: &str = r#"<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"#;

/// What it gets wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A PUT of a key that exists is said to have succeeded, `If-None-Match` or not.
    IgnoresConditions,
    /// It has no bucket.
    NoBucket,
    /// It answers nothing, and does nothing.
    CutOff,
    /// It asks to be asked less.
    SlowDown,
    /// It does what it is asked so much later, even if nobody waits any more, and answers then.
    Slow(Duration),
    /// It does what it is asked at once, and answers so much later.
    AnswersLate(Duration),
}

/// A server that listens until it is dropped.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    behind: Arc<Behind>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Behind {
    fault: Mutex<Option<Fault>>,
    met: AtomicUsize,
    store: Pool,
}

impl Gate {
    /// Listens where pods can reach it, before the store at `store`.
    pub async fn open(here: IpAddr, store: SocketAddr, fault: impl Into<Option<Fault>>) -> Result<Self> {
        let listener = TcpListener::bind((here, 0)).await.with_context(|| format!("S3 with a fault on {here}"))?;
        let address = listener.local_addr()?;
        let behind = Behind { fault: Mutex::new(fault.into()), met: AtomicUsize::new(0), store: Pool::new(store) };
        let behind = Arc::new(behind);
        let app = Router::new().fallback(answer).with_state(Arc::clone(&behind));
        let server = tokio::spawn(async move {
            // Ends only when the gate is dropped.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { address, behind, server })
    }

    /// Its URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it gets this wrong.
    pub fn fail(&self, fault: Fault) {
        *self.behind.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }

    /// From now on it gets nothing wrong.
    pub fn mend(&self) {
        *self.behind.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// How many requests have met a fault.
    #[must_use]
    pub fn met(&self) -> usize {
        self.behind.met.load(Ordering::Relaxed)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(behind): State<Arc<Behind>>, request: Request) -> Response {
    let fault = *behind.fault.lock().unwrap_or_else(PoisonError::into_inner);
    behind.met.fetch_add(usize::from(fault.is_some()), Ordering::Relaxed);
    let xml = |status: StatusCode, text| (status, [("content-type", "application/xml")], text).into_response();
    let (before, after) = match fault {
        Some(Fault::NoBucket) => return xml(StatusCode::NOT_FOUND, NO_BUCKET),
        Some(Fault::SlowDown) => return xml(StatusCode::SERVICE_UNAVAILABLE, SLOW_DOWN),
        Some(Fault::CutOff) => std::future::pending().await,
        Some(Fault::Slow(late)) => (late, Duration::ZERO),
        Some(Fault::AnswersLate(late)) => (Duration::ZERO, late),
        Some(Fault::IgnoresConditions) | None => Default::default(),
    };
    let is_put = request.method() == Method::PUT;
    // On its own: a client that waits no longer ends what answers it.
    let passed_on = tokio::spawn(async move {
        let request = whole(request).await?;
        sleep(before).await;
        let answer = pass_on(&behind.store, request).await;
        sleep(after).await;
        answer
    });
    match passed_on.await.map_err(Into::into).and_then(|answer| answer) {
        // The signature covers the condition, so it cannot be taken out on the way; its outcome can.
        Ok(answer)
            if is_put
                && fault == Some(Fault::IgnoresConditions)
                && answer.status() == StatusCode::PRECONDITION_FAILED =>
        {
            StatusCode::OK.into_response()
        }
        Ok(answer) => answer,
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    }
}

async fn whole(request: Request) -> Result<http::Request<Full<Bytes>>> {
    let (mut head, body) = request.into_parts();
    head.headers.remove(CONNECTION);
    head.headers.remove(TRANSFER_ENCODING);
    let body = to_bytes(body, MAX_BODY).await?;
    Ok(http::Request::from_parts(head, Full::new(body)))
}

async fn pass_on(store: &Pool, request: http::Request<Full<Bytes>>) -> Result<Response> {
    let answer = store.send(request).await?;
    let (mut head, body) = answer.into_parts();
    head.headers.remove(CONNECTION);
    head.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(head, Body::from(body)))
}
