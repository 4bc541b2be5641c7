//! Users' requests: `http://<Service>/<server>/<path>` reaches the server from any pod of the pool.
//!
//! ```text
//!  mod      connections: accepted, bounded, ended without losing a request
//!  request  what a request asks: its server, its headers, its buffered body
//!  route    to the host, to another gateway, or held until either is known
//!  peers    the connections to other gateways
//!  answer   what goes back
//!  bounds   how much may be held
//! ```
//!
//! How a pod leaves without failing a request: [`Gateway::drain_connections`] has every answer say `Connection: close`,
//! so that clients come back on a new connection, which the Service leads elsewhere once it knows. Until
//! [`Gateway::shutdown`] everything is still served. Called after a time without requests, it ends connections that no
//! client has used lately; other gateways are told on theirs (HTTP/2: GOAWAY) which requests will still be answered.

mod answer;
mod bounds;
mod peers;
mod request;
mod route;

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use handoff::PodUid;
use hyper::{
    Request, Response, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{self, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    gateway::{
        answer::{Answer, InFlight},
        bounds::Bounds,
        peers::Peers,
    },
    host::HostClient,
    metrics::Metrics,
    routes::Routes,
};

/// A connection on which no request head came for this long is closed. Longer than clients keep idle ones (load
/// balancers: 60 s).
const IDLE: Duration = Duration::from_secs(75);

/// From the end of accepting until connections are told to end: a request may be on its way on one just accepted.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Most that is buffered of one connection's unread input, bytes; also the bound of a request's head.
const READ_BUFFER: usize = 64 << 10;

/// An HTTP/2 connection is asked this often for a sign of life, and ended without one.
const PING_EVERY: Duration = Duration::from_secs(20);

/// Requests at once on one HTTP/2 connection: all that may be held may come from one other gateway.
const STREAMS: u32 = 4096;

/// Bytes of request bodies under way on one HTTP/2 request, and on its connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Most connections that the kernel may have ready at the end of accepting: its own limit of a backlog (somaxconn).
const BACKLOG: usize = 4096;

/// What a gateway may use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once. Further ones wait in the kernel.
    pub connections: usize,
    /// Body of one request, bytes. Bodies are buffered, so that a request can be routed again.
    pub body: usize,
    /// Buffered bodies together, bytes.
    pub buffered: usize,
    /// Requests that wait for their server at once.
    pub held: usize,
    /// How long one request waits for its server, in all.
    pub hold: Duration,
    /// How long a host or another gateway may take to begin its answer.
    pub answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            body: 2 << 20,
            buffered: 64 << 20,
            held: 4096,
            hold: Duration::from_secs(4),
            answer: Duration::from_mins(1),
        }
    }
}

/// Who this gateway is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of this pod.
    pub pod: String,
    /// Uid of this pod.
    pub pod_uid: PodUid,
    /// This gateway, as other pods reach it.
    pub address: SocketAddr,
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    identity: Identity,
    pod: HeaderValue,
    limits: Limits,
    bounds: Arc<Bounds>,
    routes: Routes,
    host: HostClient,
    peers: Peers,
    metrics: Metrics,
    draining: AtomicBool,
    in_flight: Arc<AtomicUsize>,
    last_request: Mutex<Option<Instant>>,
    no_more: CancellationToken,
}

impl Gateway {
    /// A gateway that does not listen yet.
    #[must_use]
    pub fn new(identity: Identity, limits: Limits, routes: Routes, host: HostClient, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            // A pod's name is plain ASCII.
            pod: HeaderValue::try_from(&identity.pod).unwrap_or(HeaderValue::from_static("")),
            bounds: Bounds::new(limits.held, limits.buffered, metrics.clone()),
            identity,
            limits,
            routes,
            host,
            peers: Peers::default(),
            metrics,
            draining: AtomicBool::new(false),
            in_flight: Arc::default(),
            last_request: Mutex::default(),
            no_more: CancellationToken::new(),
        }))
    }

    /// Serves until [`Self::shutdown`], and then until the last answer is out. An answer without end keeps it from
    /// returning: give it a time.
    pub async fn serve(&self, listener: TcpListener) {
        let inner = &self.0;
        let slots = Arc::new(Semaphore::new(inner.limits.connections));
        let connections = TaskTracker::new();
        let end = CancellationToken::new();
        let begin = |stream, slot| {
            connections.spawn(connection(inner.clone(), stream, slot, end.clone()));
        };
        while let Some((stream, slot)) = self.accept(&listener, &slots).await {
            begin(stream, slot);
        }
        // Clients whom the kernel connected already are answered, not reset.
        for _ in 0..BACKLOG {
            let Ok(slot) = slots.clone().try_acquire_owned() else { break };
            let Some(Ok((stream, _))) = listener.accept().now_or_never() else { break };
            begin(stream, slot);
        }
        drop(listener);
        time::sleep(LAST_WORDS).await;
        end.cancel();
        connections.close();
        connections.wait().await;
    }

    /// From now on every answer asks its client to come back on another connection. Everything is still served.
    pub fn drain_connections(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Stops accepting, and ends each connection after the answer under way on it.
    pub fn shutdown(&self) {
        self.drain_connections();
        self.0.no_more.cancel();
    }

    /// Requests whose answers are not out yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// When the last request came, if any did.
    #[must_use]
    pub fn last_request(&self) -> Option<Instant> {
        *self.0.last_request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next connection; `None` once there shall be no more.
    async fn accept(
        &self,
        listener: &TcpListener,
        slots: &Arc<Semaphore>,
    ) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        let next = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => return Some((stream, slot)),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        };
        tokio::select! {
            accepted = next => accepted,
            () = self.0.no_more.cancelled() => None,
        }
    }
}

impl Inner {
    async fn handle(&self, request: Request<Incoming>) -> Response<Answer> {
        let in_flight = InFlight::begin(&self.in_flight);
        *self.last_request.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let version = request.version();
        let (way, answer) = self.answer(request).await;
        self.metrics.request(way, answer.status());
        let mut answer = answer.map(|body| Answer::new(body, in_flight));
        // HTTP/2 has no such word: its connections are told at the end, and lose nothing by that.
        if self.draining.load(Ordering::Relaxed) && version < Version::HTTP_2 {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

async fn connection(inner: Arc<Inner>, stream: TcpStream, _slot: OwnedSemaphorePermit, end: CancellationToken) {
    // The client is gone already if this fails, and reading will say so.
    let _ = stream.set_nodelay(true);
    inner.metrics.connected();
    let spoke = Arc::new(AtomicBool::new(false));
    let service = service_fn(|request| {
        spoke.store(true, Ordering::Relaxed);
        let inner = inner.clone();
        async move { Ok::<_, Infallible>(inner.handle(request).await) }
    });
    let builder = protocols();
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // Until its first bytes tell which protocol it speaks, no other time runs.
    let silent = async {
        time::sleep(IDLE).await;
        if spoke.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silent => Ok(()),
        () = end.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "client connection ended");
    }
    inner.metrics.disconnected();
}

fn protocols() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(READ_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(READ_BUFFER).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}
