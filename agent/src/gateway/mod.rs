//! Users' requests: `http://<Service>/<server>/<path>` reaches the server from any pod of the pool.
//!
//! ```text
//!  mod      connections: accepted, bounded, ended without losing a request
//!  request  what a request asks: its server and its headers
//!  body     its body: short, or passed on as it comes
//!  route    to the host, to another gateway, or held until either is known
//!  peers    the connections to other gateways
//!  answer   what goes back
//!  bounds   how much may be done at once, in all and for one server
//!  sockets  WebSockets, and how their clients learn that a server went elsewhere
//!  frames   where a Close may be put in
//! ```
//!
//! Users speak plain HTTP, other gateways TLS, in which they prove that they are of the pool: only they may say how far a
//! request has come, and are told who owns a server. Both come to the same port; the first byte tells which it is.
//!
//! How a pod leaves without failing a request: [`Gateway::drain_connections`] has every answer say `Connection: close`,
//! so that clients come back on a new connection, which the Service leads elsewhere once it knows. Until
//! [`Gateway::shutdown`] everything is still served. Called after a time without requests, it ends connections that no
//! client has used lately; other gateways are told on theirs (HTTP/2: GOAWAY) which requests will still be answered.

mod answer;
mod body;
mod bounds;
mod frames;
mod peers;
mod request;
mod route;
mod sockets;

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use handoff::PodUid;
use hyper::{
    Method, Request, Response, StatusCode, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use listen::{Newcomer, Newcomers, Seldom};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{self, Instant},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::body::{Outgoing, Streamed};
use crate::{
    credentials::Credentials,
    gateway::{
        answer::{Answer, Refusal},
        bounds::Bounds,
        peers::{Peers, Purpose},
        request::{Origin, upgrade},
        sockets::Stays,
    },
    host::HostClient,
    metrics::Metrics,
    routes::Routes,
};

/// A connection on which no request head came for this long is closed. Longer than clients keep idle ones (load
/// balancers: 60 s).
const IDLE: Duration = Duration::from_secs(75);

/// Connections without a request yet, and how long each may take to send the head of one. Whoever has something to ask
/// does so at once, and is not kept from it by those who open connections only. As many as may come at once ([`BACKLOG`]).
const NEWCOMERS: (usize, Duration) = (BACKLOG, Duration::from_secs(10));

/// The first byte of a TLS handshake (RFC 8446, section 5.1); no request begins with it.
const HANDSHAKE: u8 = 22;

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
    /// Connections at once, further ones wait in the kernel; and requests and sockets under way at once.
    pub connections: usize,
    /// What is kept of one request's body, bytes, so that it can be routed again. A longer one is passed on as it comes.
    pub body: usize,
    /// Body of one request, bytes.
    pub longest: u64,
    /// Kept bodies together, bytes.
    pub buffered: usize,
    /// Requests that wait for their server at once.
    pub held: usize,
    /// How long one request waits for its server, in all.
    pub hold: Duration,
    /// How long a host or another gateway may take to begin its answer.
    pub answer: Duration,
    /// One server may take one part in so many of what is under way, held and buffered.
    pub parts: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            body: 2 << 20,
            longest: 256 << 20,
            buffered: 64 << 20,
            held: 4096,
            hold: Duration::from_secs(4),
            answer: Duration::from_mins(1),
            parts: 4,
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
    tls: TlsAcceptor,
    refused: Seldom,
    newcomers: Newcomers,
    metrics: Metrics,
    leaving: watch::Sender<bool>,
    in_flight: Arc<AtomicUsize>,
    at_host: Arc<AtomicUsize>,
    last_request: Mutex<Option<Instant>>,
    no_more: CancellationToken,
}

impl Gateway {
    /// A gateway that does not listen yet.
    #[must_use]
    pub fn new(
        identity: Identity,
        limits: Limits,
        credentials: Arc<Credentials>,
        routes: Routes,
        host: HostClient,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            // A pod's name is plain ASCII.
            pod: HeaderValue::try_from(&identity.pod).unwrap_or(HeaderValue::from_static("")),
            bounds: Bounds::new(&limits, metrics.clone()),
            identity,
            limits,
            routes,
            host,
            tls: TlsAcceptor::from(credentials.server_config()),
            peers: Peers::new(credentials),
            refused: Seldom::new(),
            newcomers: Newcomers::new("gateway", NEWCOMERS.0, NEWCOMERS.1),
            metrics,
            leaving: watch::Sender::new(false),
            in_flight: Arc::default(),
            at_host: Arc::default(),
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
        let begin = |(stream, from), slot| {
            let requests = Requests { inner: inner.clone(), sockets: TaskTracker::new(), end: end.clone() };
            let connection = Connection { requests, newcomer: inner.newcomers.enter(from) };
            connections.spawn(connection.run(stream, slot));
        };
        while let Some((stream, slot)) = self.accept(&listener, &slots).await {
            begin(stream, slot);
        }
        // Clients whom the kernel connected already are answered, not reset.
        for _ in 0..BACKLOG {
            let Ok(slot) = slots.clone().try_acquire_owned() else { break };
            let Some(Ok(stream)) = listener.accept().now_or_never() else { break };
            begin(stream, slot);
        }
        drop(listener);
        time::sleep(LAST_WORDS).await;
        end.cancel();
        connections.close();
        connections.wait().await;
    }

    /// From now on every answer asks its client to come back on another connection, and so are those asked whose sockets
    /// lead through here to another pod. Everything is still served.
    pub fn drain_connections(&self) {
        self.0.leaving.send_replace(true);
    }

    /// Stops accepting, and ends each connection after the answer under way on it.
    pub fn shutdown(&self) {
        self.drain_connections();
        self.0.no_more.cancel();
    }

    /// Requests whose answers are not out yet, and sockets that are open.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Relaxed)
    }

    /// Those of them that this pod's host has to do with.
    #[must_use]
    pub fn at_host(&self) -> usize {
        self.0.at_host.load(Ordering::Relaxed)
    }

    /// When the last request came, if any did.
    #[must_use]
    pub fn last_request(&self) -> Option<Instant> {
        *self.0.last_request.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the connection to another gateway before it is needed.
    pub async fn make_ahead(&self, gateway: SocketAddr, pod: &PodUid) {
        if let Err(error) = self.0.peers.connected(gateway, pod, Purpose::Requests).await {
            tracing::debug!(%error, %gateway, "no connection to a gateway yet");
        }
    }

    /// The next connection; `None` once there shall be no more.
    async fn accept(
        &self,
        listener: &TcpListener,
        slots: &Arc<Semaphore>,
    ) -> Option<((TcpStream, SocketAddr), OwnedSemaphorePermit)> {
        let next = async {
            let slot = slots.clone().acquire_owned().await.ok()?;
            loop {
                match listener.accept().await {
                    Ok(stream) => return Some((stream, slot)),
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

/// What answers the requests of one connection.
#[derive(Clone)]
struct Requests {
    inner: Arc<Inner>,
    /// What requests became.
    sockets: TaskTracker,
    end: CancellationToken,
}

impl Requests {
    async fn handle(&self, mut request: Request<Incoming>, from: Origin) -> Response<Answer> {
        let inner = &self.inner;
        *inner.last_request.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let (version, connects) = (request.version(), request.method() == Method::CONNECT);
        let client = hyper::upgrade::on(&mut request);
        let (mut answer, under_way) = inner.answer(request, from).await;
        let stays = answer.extensions_mut().remove::<Stays>();
        if let Some(stays) = stays.clone()
            && answer.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            let (inner, server, end) = (inner.clone(), hyper::upgrade::on(&mut answer), self.end.clone());
            self.sockets.spawn(async move { inner.pass(client, server, stays, end, under_way).await });
            if version < Version::HTTP_2 {
                upgrade(answer.headers_mut());
            } else {
                *answer.status_mut() = StatusCode::OK;
            }
            return answer.map(|body| Answer::new(body, None));
        }
        if connects && answer.status().is_success() {
            // In HTTP/2 it would say that there is a socket.
            let sentence = "the server answered in place of opening a socket";
            answer = Refusal::new(StatusCode::BAD_GATEWAY, sentence).into_response();
        }
        let mut answer = answer.map(|body| {
            let (answer, inner) = (Answer::new(body, Some(under_way)), inner.clone());
            match stays {
                Some(stays) => answer.until(async move { inner.over(&stays).await }),
                None => answer,
            }
        });
        // HTTP/2 has no such word: its connections are told at the end, and lose nothing by that.
        if *inner.leaving.borrow() && version < Version::HTTP_2 {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

/// One connection, from its first byte on.
struct Connection {
    requests: Requests,
    newcomer: Newcomer,
}

impl Connection {
    async fn run(self, stream: TcpStream, _slot: OwnedSemaphorePermit) {
        // The client is gone already if this fails, and reading will say so.
        let _ = stream.set_nodelay(true);
        let metrics = &self.requests.inner.metrics;
        metrics.connected();
        tokio::select! {
            () = self.speak(stream) => {}
            () = self.newcomer.out() => {}
        }
        // As long as one is open it counts as the connection that it was.
        self.requests.sockets.close();
        self.requests.sockets.wait().await;
        metrics.disconnected();
    }

    async fn speak(&self, stream: TcpStream) {
        let mut first = [0];
        let peeked = tokio::select! {
            peeked = stream.peek(&mut first) => peeked,
            // Nothing was asked.
            () = self.requests.end.cancelled() => return,
        };
        if !matches!(peeked, Ok(1)) {
            return;
        }
        if first != [HANDSHAKE] {
            return self.serve(stream, Origin::User).await;
        }
        let shaken = tokio::select! {
            shaken = self.requests.inner.tls.accept(stream) => shaken,
            () = self.requests.end.cancelled() => return,
        };
        match shaken {
            Ok(tls) => {
                // It has proved that it is of the pool: it may wait until there is something to ask.
                self.newcomer.settle();
                self.serve(tls, Origin::Peer).await;
            }
            Err(error) => {
                if let Some(left_out) = self.requests.inner.refused.say() {
                    tracing::info!(from = %self.newcomer.from(), %error, left_out, "no peer");
                }
            }
        }
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, from: Origin) {
        let service = service_fn(|request| {
            self.newcomer.settle();
            let requests = self.requests.clone();
            async move { Ok::<_, Infallible>(requests.handle(request, from).await) }
        });
        let builder = protocols();
        let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.requests.end.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "client connection ended");
        }
    }
}

fn protocols() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(READ_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .enable_connect_protocol()
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(READ_BUFFER).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}
