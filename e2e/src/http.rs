//! A small HTTP/1.1 client that does what it is told: it keeps connections alive and never repeats a request.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// No answer that a test asks for is larger (bytes).
const MAX_ANSWER: usize = 4 << 20;

/// Keep-alive connections to one address, used in turn so that all the pods behind a Service are spoken to.
#[derive(Debug)]
pub struct Pool {
    address: SocketAddr,
    idle: Mutex<VecDeque<SendRequest<Full<Bytes>>>>,
}

impl Pool {
    /// A pool without connections yet.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::default() }
    }

    /// Opens this many connections ahead.
    pub async fn warm(&self, connections: usize) -> Result<()> {
        for _ in 0..connections {
            let sender = self.connect().await?;
            self.put_back(sender);
        }
        Ok(())
    }

    /// Sends the request once and reads the whole answer.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
        let mut sender = match self.take() {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = match Limited::new(body, MAX_ANSWER).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => bail!("reading the answer: {error}"),
        };
        self.put_back(sender);
        Ok(Response::from_parts(head, body))
    }

    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is neither closed nor ready has only not yet noticed that its last answer is complete.
        for _ in 0..idle.len() {
            let sender = idle.pop_front()?;
            if sender.is_ready() {
                return Some(sender);
            }
            if !sender.is_closed() {
                idle.push_back(sender);
            }
        }
        None
    }

    fn put_back(&self, sender: SendRequest<Full<Bytes>>) {
        if !sender.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push_back(sender);
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream =
            TcpStream::connect(self.address).await.with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // How a connection ended is told by the request that was on it; without one it does not matter.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// One GET with a connection of its own, within the time given: its body, if the status is 200.
pub async fn get(address: SocketAddr, path: &str, patience: Duration) -> Result<Bytes> {
    let request = Request::get(path).header("Host", address.to_string()).body(Full::default())?;
    let answer = tokio::time::timeout(patience, Pool::new(address).send(request)).await??;
    if answer.status() != 200 {
        bail!("GET http://{address}{path}: {}: {}", answer.status(), String::from_utf8_lossy(answer.body()));
    }
    Ok(answer.into_body())
}
