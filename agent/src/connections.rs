//! Pooled HTTP/1.1 connections to the host.
//!
//! A request must not be lost to a connection that its other end has just closed. So a connection that was idle for
//! longer than [`IDLE`] is never used again, while whoever we talk to keeps idle ones for longer than that; and a
//! request that did not leave this process is sent again on another connection.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    client::conn::http1::{self, SendRequest},
    header::{CONNECTION, HeaderMap},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Instant, timeout},
};

use crate::gateway::Outgoing;

/// A connection idle for longer than this is not used again. Shorter than the 5 s after which some HTTP servers that
/// a host may be written with close theirs.
pub const IDLE: Duration = Duration::from_secs(1);

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_millis(250);

/// Idle connections kept.
const MAX_IDLE: usize = 256;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The request was not handed over.
    #[error("cannot connect: {0}")]
    NotSent(String),
    /// The request was handed over, and may or may not have been processed.
    #[error("the connection broke before an answer came: {0}")]
    Broken(String),
}

type Sender = SendRequest<Outgoing>;

struct Parked {
    sender: Sender,
    since: Instant,
}

/// A pool of connections to one socket. Cheap to clone.
#[derive(Clone)]
pub struct Connections {
    socket: Arc<Path>,
    idle: Arc<Mutex<VecDeque<Parked>>>,
}

impl Connections {
    /// A pool without connections yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.into(), idle: Arc::default() }
    }

    /// Sends a request and returns the answer as soon as its head is here.
    pub async fn send(&self, mut request: Request<Outgoing>) -> Result<Response<Lent>, SendError> {
        while let Some(mut sender) = self.take() {
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok(self.lend(sender, answer)),
                Err(mut refused) => match refused.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(SendError::Broken(refused.into_error().to_string())),
                },
            }
        }
        let mut sender = connect(&self.socket).await?;
        match sender.try_send_request(request).await {
            Ok(answer) => Ok(self.lend(sender, answer)),
            Err(mut refused) => match refused.take_message() {
                Some(_) => Err(SendError::NotSent(refused.into_error().to_string())),
                None => Err(SendError::Broken(refused.into_error().to_string())),
            },
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Parked>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection used last, so that surplus ones age and go.
    fn take(&self) -> Option<Sender> {
        let mut idle = self.idle();
        drop_aged(&mut idle, Instant::now());
        let ready = idle.iter().rposition(|parked| parked.sender.is_ready())?;
        idle.remove(ready).map(|parked| parked.sender)
    }

    fn give(&self, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let now = Instant::now();
        let mut idle = self.idle();
        drop_aged(&mut idle, now);
        if idle.len() < MAX_IDLE {
            idle.push_back(Parked { sender, since: now });
        }
    }

    fn lend(&self, sender: Sender, answer: Response<Incoming>) -> Response<Lent> {
        let is_used_up = closes(answer.headers()) || answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        let lender = (!is_used_up).then(|| Lender { pool: self.clone(), sender });
        answer.map(|body| Lent { body, ended: false, lender })
    }
}

fn drop_aged(parked: &mut VecDeque<Parked>, now: Instant) {
    while parked.front().is_some_and(|parked| now - parked.since > IDLE) {
        parked.pop_front();
    }
}

fn closes(headers: &HeaderMap) -> bool {
    headers.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

async fn connect(socket: &Path) -> Result<Sender, SendError> {
    let connecting = async {
        let stream = UnixStream::connect(socket).await.map_err(not_sent)?;
        let (sender, connection) = http1::handshake(TokioIo::new(Answered(stream))).await.map_err(not_sent)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection ended");
            }
        });
        Ok(sender)
    };
    let late = || SendError::NotSent(format!("not connected within {CONNECT:?}"));
    timeout(CONNECT, connecting).await.unwrap_or_else(|_| Err(late()))
}

/// A connection whose other end may answer, and close it, while it is still written to. hyper would report that nothing can be
/// written any more, though the answer can be read: so that is not said, and what is read next is the answer, or the end.
struct Answered(UnixStream);

fn written(result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
    match result {
        Poll::Ready(Err(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
            Poll::Pending
        }
        other => other,
    }
}

impl AsyncRead for Answered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Answered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        written(Pin::new(&mut self.0).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        written(Pin::new(&mut self.0).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

// By value for `map_err`.
#[allow(clippy::needless_pass_by_value)]
fn not_sent(error: impl ToString) -> SendError {
    SendError::NotSent(error.to_string())
}

struct Lender {
    pool: Connections,
    sender: Sender,
}

/// The body of an answer. Read to its end it gives its connection back to the pool; dropped earlier it closes it.
pub struct Lent {
    body: Incoming,
    ended: bool,
    lender: Option<Lender>,
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(None) = frame {
            self.ended = true;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if (self.ended || self.body.is_end_stream())
            && let Some(Lender { pool, sender }) = self.lender.take()
        {
            pool.give(sender);
        }
    }
}
