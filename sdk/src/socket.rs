//! `WebSockets`: each message is handled by the server in its turn, like a request; what the server says goes out beside.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream::SplitStream};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{cell::Cell, host::Running, requests::MAX_BODY_BYTES, stream::Said};

/// Messages that may wait for a slow client.
const QUEUE: usize = 256;

/// How long what was said last may take to go out when a socket ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// The version of the protocol of RFC 6455.
const VERSION: &str = "13";

/// A message of a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Of text.
    Text(String),
    /// Of bytes.
    Binary(Bytes),
}

/// A client's WebSocket, from [`Context::accept`](crate::Context::accept). Cheap to clone; to be kept by a server that
/// speaks to its clients unasked. It is no part of the state: when the server moves, clients are told to connect again
/// once it serves in the other pod.
#[derive(Clone, Debug)]
pub struct Socket(mpsc::Sender<tungstenite::Message>);

impl Socket {
    /// Says something to the client, without waiting. `false`: the socket is closed, or its client so slow that this was
    /// not taken.
    pub fn send(&self, message: Message) -> bool {
        self.0.try_send(message.into()).is_ok()
    }

    /// Closes the socket, after what was said before. `false`: as for [`Self::send`].
    #[must_use]
    pub fn close(&self) -> bool {
        self.0.try_send(close(CloseCode::Normal)).is_ok()
    }

    /// Whether it is the same client's.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

impl From<Message> for tungstenite::Message {
    fn from(message: Message) -> Self {
        match message {
            Message::Text(text) => Self::Text(text.into()),
            Message::Binary(bytes) => Self::Binary(bytes),
        }
    }
}

fn close(code: CloseCode) -> tungstenite::Message {
    tungstenite::Message::Close(Some(CloseFrame { code, reason: String::new().into() }))
}

/// A request that opens a socket if its server takes it.
#[derive(Debug)]
pub(crate) struct Offer {
    upgrade: OnUpgrade,
    accept: HeaderValue,
}

impl Offer {
    pub(crate) fn read(request: &mut Request<Bytes>) -> Option<Self> {
        let headers = request.headers();
        let opens = has(headers, &UPGRADE, "websocket") && has(headers, &SEC_WEBSOCKET_VERSION, VERSION);
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|_| opens)?;
        let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).ok()?;
        Some(Self { upgrade: hyper::upgrade::on(request), accept })
    }

    pub(crate) fn accept(self) -> (Socket, Accepted) {
        let (sender, to_send) = mpsc::channel(QUEUE);
        let socket = Socket(sender);
        (socket.clone(), Accepted { offer: self, socket, to_send })
    }
}

fn has(headers: &HeaderMap, name: &http::HeaderName, wanted: &str) -> bool {
    headers.get(name).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
}

/// A socket that a server took.
#[derive(Debug)]
pub(crate) struct Accepted {
    offer: Offer,
    socket: Socket,
    to_send: mpsc::Receiver<tungstenite::Message>,
}

impl Accepted {
    /// The answer that opens it.
    pub(crate) fn answer(&self) -> Response<Said> {
        let mut answer = Response::new(Said::new(Bytes::new(), None));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.offer.accept.clone());
        answer
    }

    /// Serves it until its client or its server ends it, or the server's term is over.
    pub(crate) async fn serve(self, cell: Arc<Cell>, epoch: u64, host: Arc<Running>) {
        let Self { offer, socket, mut to_send } = self;
        let Ok(upgraded) = offer.upgrade.await else { return };
        let config =
            WebSocketConfig::default().max_message_size(Some(MAX_BODY_BYTES)).max_frame_size(Some(MAX_BODY_BYTES));
        let io = TokioIo::new(upgraded);
        let (mut sink, messages) = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await.split();
        let (end, mut ended) = oneshot::channel();
        let write = async {
            let why = loop {
                let message = tokio::select! {
                    biased;
                    Some(message) = to_send.recv() => message,
                    why = &mut ended => break why.ok().flatten(),
                };
                if sink.send(message).await.is_err() {
                    break None;
                }
            };
            // Nobody is told that anything said from here on went out.
            to_send.close();
            let farewell = async {
                if let Some(code) = why {
                    sink.send(close(code)).await?;
                }
                sink.close().await
            };
            let _ = timeout(FAREWELL, farewell).await;
        };
        let read = async {
            let why = handle(messages, &socket, &cell, epoch, &host).await;
            let _ = end.send(why);
        };
        tokio::join!(write, read);
    }
}

/// Handles messages one after the other. What comes while the server is frozen waits for it to be thawed, or for its end.
/// Returns what the client is told, if it has not ended the socket itself.
async fn handle(
    mut messages: SplitStream<WebSocketStream<TokioIo<Upgraded>>>,
    socket: &Socket,
    cell: &Cell,
    epoch: u64,
    host: &Running,
) -> Option<CloseCode> {
    loop {
        let next = tokio::select! {
            next = messages.next() => next,
            // Whoever connects again finds it where it is, or is asked to wait.
            () = cell.over(epoch) => return Some(CloseCode::Restart),
        };
        let message = match next {
            Some(Ok(tungstenite::Message::Text(text))) => Message::Text(text.as_str().to_owned()),
            Some(Ok(tungstenite::Message::Binary(bytes))) => Message::Binary(bytes),
            // Answered within the protocol.
            Some(Ok(_)) => continue,
            Some(Err(_)) | None => return None,
        };
        match cell.message(socket, message, epoch, &host.around).await {
            Ok(None) => {}
            Ok(Some(reply)) => {
                if !socket.send(reply) {
                    return Some(CloseCode::Policy);
                }
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "a message of a socket was not handled, or may not be answered");
                let failed = refusal.status == StatusCode::SERVICE_UNAVAILABLE;
                return Some(if failed { CloseCode::Error } else { CloseCode::Restart });
            }
        }
    }
}
