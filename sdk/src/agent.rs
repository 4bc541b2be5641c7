//! What a host asks of the agent, on the agent's socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::UnixStream, time::timeout};

/// A sync waits for the store, and in a handoff for the target's first record too.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why the agent did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It could not be reached, or broke off.
    #[error("the agent cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("the agent did not answer within {0:?}")]
    Late(Duration),
    /// It said no.
    #[error("{sentence}")]
    Refused {
        /// HTTP status of its answer.
        status: u16,
        /// Its reason.
        sentence: String,
    },
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Location {
    /// Uid of its resource.
    pub uid: String,
    /// The present term of ownership.
    pub epoch: u64,
    /// Address of the owning pod's gateway, `host:port`; `None` while nobody has it.
    pub address: Option<String>,
    /// Whether that is this pod.
    pub here: bool,
}

/// The agent beside this host.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { socket: dir.join("agent.sock") }
    }

    pub(crate) async fn sync(&self, uid: &str) -> Result<(), AgentError> {
        match self.ask(Method::POST, &format!("/v1/servers/{uid}/sync"), SYNC_TIMEOUT).await? {
            (StatusCode::OK, _) => Ok(()),
            (status, body) => Err(refused(status, &body)),
        }
    }

    pub(crate) async fn lookup(&self, namespace: &str, name: &str) -> Result<Option<Location>, AgentError> {
        match self.ask(Method::GET, &format!("/v1/servers/{namespace}/{name}"), LOOKUP_TIMEOUT).await? {
            (StatusCode::OK, body) => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|error| unreachable(&format!("not its answer: {error}"))),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, body) => Err(refused(status, &body)),
        }
    }

    async fn ask(&self, method: Method, path: &str, patience: Duration) -> Result<(StatusCode, Bytes), AgentError> {
        timeout(patience, self.exchange(method, path)).await.map_err(|_| AgentError::Late(patience))?
    }

    /// A connection for each call: next to a write to the store its cost is nothing, and no stale one is ever used.
    async fn exchange(&self, method: Method, path: &str) -> Result<(StatusCode, Bytes), AgentError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "agent")
            .body(Empty::<Bytes>::new())
            .map_err(|error| unreachable(&error))?;
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| unreachable(&error))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        // It ends by itself once `sender` is gone.
        tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        body.map(|body| (status, body.to_bytes())).map_err(|error| unreachable(&error))
    }
}

fn unreachable(error: &impl ToString) -> AgentError {
    AgentError::Unreachable(error.to_string())
}

fn refused(status: StatusCode, body: &Bytes) -> AgentError {
    AgentError::Refused { status: status.as_u16(), sentence: String::from_utf8_lossy(body).trim().to_owned() }
}
