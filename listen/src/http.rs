//! Small HTTP/1.1 servers: health, metrics, hooks, the webhook.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};
use tokio_stream::{Stream, StreamExt};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Guarded, Newcomers, Seldom};

/// Connections without a request, and how long each may take to send the head of one.
pub const NEWCOMERS: (usize, Duration) = (256, Duration::from_secs(10));
/// Connections in all.
const CONNECTIONS: usize = 2 * NEWCOMERS.0;
/// Most of a request's head, bytes.
const HEAD: usize = 64 << 10;
/// For answers under way at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What a connection is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// One request: nobody can hold places by asking now and then.
    One,
    /// As many as come in time, where a new connection costs a handshake.
    Many,
}

/// The newcomers of such a server; `what` names it in logs.
#[must_use]
pub fn newcomers(what: &'static str) -> Newcomers {
    Newcomers::new(what, NEWCOMERS.0, NEWCOMERS.1)
}

/// Serves these routes until `stop`.
pub async fn serve<S>(
    mut connections: impl Stream<Item = io::Result<Guarded<S>>> + Unpin,
    routes: Router,
    keep: Keep,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let (tasks, full) = (TaskTracker::new(), Seldom::new());
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => break,
            next = connections.next() => next,
        };
        let Some(next) = next else { break };
        let Ok(connection) = next else { continue };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            if let Some(left_out) = full.say() {
                tracing::warn!(at_once = CONNECTIONS, left_out, "too many requests at once: a connection is closed");
            }
            continue;
        };
        let (routes, stop) = (routes.clone(), stop.clone());
        tasks.spawn(async move {
            serve_one(connection, routes, keep, stop).await;
            drop(slot);
        });
    }
    tasks.close();
    let _ = timeout(LAST_ANSWERS, tasks.wait()).await;
}

async fn serve_one<S>(connection: Guarded<S>, routes: Router, keep: Keep, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let newcomer = connection.newcomer().clone();
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(|request: Request<Incoming>| {
        newcomer.settle();
        hyper::service::Service::call(&routes, request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(NEWCOMERS.1).max_buf_size(HEAD);
    builder.keep_alive(keep == Keep::Many);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
