//! Requests to other gateways: HTTP/2 in TLS, one connection to each, shared by all requests, one for sockets, and one for
//! long bodies.
//!
//! When a server moves, everyone who waited for it is sent on at once. With a connection a request that would be a
//! storm of connects, just when both pods are busiest; here it is a frame on a connection that is there.

use std::{
    collections::HashMap,
    error::Error,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use handoff::PodUid;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{TrySendError, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;

use crate::{connections::SendError, credentials::Credentials, gateway::Outgoing};

/// How long a connection may take to be made. A lost SYN is repeated only after 1 s: trying again is faster.
const CONNECT: Duration = Duration::from_millis(250);

/// A connection with requests on it that is silent for this long is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(1);

/// How long the sign may take; then the pod is taken for cut off, and its requests for broken.
const PING_ANSWER: Duration = Duration::from_secs(2);

type Sender = http2::SendRequest<Outgoing>;
/// Locked while its connection is being made, so that all who need it wait for the same one.
type Peer = Arc<tokio::sync::Mutex<Option<Sender>>>;
/// An address alone may be another pod's by now.
type Key = (SocketAddr, PodUid, Purpose);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Requests and their answers.
    Requests,
    /// Sockets, whose clients may stop to read for long: what waits for them fills a connection's window, which would stop
    /// the requests on it too.
    Sockets,
    /// Requests whose bodies come as they are passed on: what a busy host has not read yet fills a connection's window, too.
    Bodies,
}

impl Purpose {
    /// Bytes of answers under way: on one request or socket, and on the connection.
    const fn windows(self) -> (u32, u32) {
        match self {
            Self::Requests | Self::Bodies => (1 << 20, 16 << 20),
            Self::Sockets => (64 << 10, 64 << 20),
        }
    }
}

/// Connections to other gateways.
pub struct Peers {
    credentials: Arc<Credentials>,
    peers: Mutex<HashMap<Key, Peer>>,
}

impl Peers {
    /// No connection yet; they will be made with these credentials.
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, peers: Mutex::default() }
    }

    /// Sends a request and returns the answer as soon as its head is here.
    pub async fn send(
        &self,
        address: SocketAddr,
        pod: &PodUid,
        purpose: Purpose,
        request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, SendError> {
        let mut sender = self.connected(address, pod, purpose).await?;
        sender.try_send_request(request).await.map_err(judge)
    }

    /// Returns when there is a connection.
    pub async fn connected(&self, address: SocketAddr, pod: &PodUid, purpose: Purpose) -> Result<Sender, SendError> {
        let peer = self.peer((address, pod.clone(), purpose));
        let mut slot = peer.lock().await;
        if let Some(sender) = slot.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        *slot = None;
        let late = || SendError::NotSent(format!("not connected within {CONNECT:?}"));
        // Apart from the requests' own futures, which would all be as large as a handshake.
        let connecting = Box::pin(connect(&self.credentials, address, pod, purpose));
        let sender = timeout(CONNECT, connecting).await.map_err(|_| late())??;
        *slot = Some(sender.clone());
        Ok(sender)
    }

    /// Pods come and go: each new one is the occasion to forget those that are gone.
    fn peer(&self, key: Key) -> Peer {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&key) {
            return peer.clone();
        }
        peers.retain(|_, peer| {
            let in_use = peer.try_lock().map_or(true, |slot| slot.as_ref().is_some_and(|sender| !sender.is_closed()));
            in_use || Arc::strong_count(peer) > 1
        });
        peers.entry(key).or_default().clone()
    }
}

async fn connect(
    credentials: &Credentials,
    address: SocketAddr,
    pod: &PodUid,
    purpose: Purpose,
) -> Result<Sender, SendError> {
    let (of_one, of_all) = purpose.windows();
    let not_sent = |error: &dyn Error| SendError::NotSent(error.to_string());
    let stream = credentials.connect(address, pod).await.map_err(|error| not_sent(&error))?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .initial_stream_window_size(of_one)
        .initial_connection_window_size(of_all)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| not_sent(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, %address, "connection to a gateway ended");
        }
    });
    Ok(sender)
}

/// What a failure means for the request.
fn judge(mut failed: TrySendError<Request<Outgoing>>) -> SendError {
    let unsent = failed.take_message().is_some();
    let error = failed.into_error();
    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    if unsent || was_refused(&error) || was_unknown(&error) { SendError::NotSent(why) } else { SendError::Broken(why) }
}

/// Whether the other side said that it has not begun with the request: a stream refused, or above the last one that it
/// names when it goes away (RFC 9113, sections 6.8 and 8.7).
fn was_refused(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else { return false };
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// Whether the other side did not accept our certificate, which it says only after our side of the handshake is done:
/// nothing of the connection was processed.
fn was_unknown(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    let tls = h2.and_then(h2::Error::get_io).and_then(std::io::Error::get_ref);
    matches!(tls.and_then(|tls| tls.downcast_ref()), Some(rustls::Error::AlertReceived(_)))
}
