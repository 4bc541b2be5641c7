//! The client of the host contract (`docs/host-contract.md`).

mod said;

use std::{
    fmt::Display,
    path::Path,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use handoff::{
    Epoch, Instant, ServerId, ServerUid,
    adopt::Told,
    ids::LAST,
    source::{Final, Mark, State},
};
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Body,
    header::{HOST, HeaderMap, HeaderName, HeaderValue},
    http::request::Builder,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::time::timeout;

use self::said::KnownLease;
pub use self::said::{Describe, HostType, Listed, ListedPhase};
use crate::{
    connections::{Connections, Lent, SendError},
    gate::Gate,
    gateway::Outgoing,
    lease::boot_time,
};

/// Header names of the contract.
pub mod header {
    use hyper::header::HeaderName;

    /// `namespace/name` of a server.
    pub const SERVER: HeaderName = HeaderName::from_static("durable-server");
    /// Uid of its resource.
    pub const UID: HeaderName = HeaderName::from_static("durable-uid");
    /// Ownership term.
    pub const EPOCH: HeaderName = HeaderName::from_static("durable-epoch");
    /// On a 421: the request was not given to the server.
    pub const NOT_HERE: HeaderName = HeaderName::from_static("durable-not-here");
    pub(super) const GENERATION: HeaderName = HeaderName::from_static("durable-generation");
    pub(super) const DEADLINE: HeaderName = HeaderName::from_static("durable-deadline");
    pub(super) const TYPE: HeaderName = HeaderName::from_static("durable-type");
    pub(super) const ATTEMPT: HeaderName = HeaderName::from_static("durable-attempt");
    pub(super) const CONFIG: HeaderName = HeaderName::from_static("durable-config");
    pub(super) const MODE: HeaderName = HeaderName::from_static("durable-mode");
    pub(super) const STATE: HeaderName = HeaderName::from_static("durable-state");
    pub(super) const STATE_VERSION: HeaderName = HeaderName::from_static("durable-state-version");
    pub(super) const INSTANCE: HeaderName = HeaderName::from_static("durable-instance");
    pub(super) const REVISION: HeaderName = HeaderName::from_static("durable-revision");
    pub(super) const CHECKSUM: HeaderName = HeaderName::from_static("durable-checksum");
}

/// The contract spoken here.
const CONTRACT: u32 = 1;

/// Longest sentence of a refusal that is read, bytes.
const MAX_MESSAGE: u64 = 16 << 10;

/// Longest description and list, bytes: 10,000 servers of some 200 bytes fit several times.
const MAX_JSON: u64 = 16 << 20;

/// What a uid may bear in a path without escaping.
const UID: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Why the host did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It said no.
    #[error("the host refused ({}): {message}", status.as_u16())]
    Refused {
        /// 404 no such server, 409 not in a phase that allows it, 412 overtaken by a later call, 422 cannot load.
        status: StatusCode,
        /// Its sentence.
        message: String,
    },
    /// No answer, and none to be expected from this process of it.
    #[error("the host cannot be reached: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("the host did not answer within {0:?}")]
    Timeout(Duration),
    /// The state is larger than the pool allows; how large it may be, in bytes.
    #[error(
        "the state is larger than spec.sync.maxStateBytes of the pool, {0} bytes: raise that, or make the state smaller"
    )]
    TooLarge(u64),
    /// Not asked: nothing may be served here any more.
    #[error("this pod's lease is over: neither the operator nor the store answered it in time")]
    LeaseOver,
    /// The answer breaks the contract.
    #[error("the host's answer breaks the contract: {0}")]
    Invalid(String),
}

impl From<SendError> for HostError {
    fn from(error: SendError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// How a server is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It serves at once.
    Active,
    /// It is loaded, and serves once activated.
    Standby,
}

/// What a start says.
#[derive(Clone, Copy, Debug)]
pub struct StartCall<'a> {
    /// Which server.
    pub id: &'a ServerId,
    /// Its type.
    pub kind: &'a str,
    /// Ownership term.
    pub epoch: Epoch,
    /// Grows with every call.
    pub attempt: u64,
    /// Serving or waiting.
    pub mode: Mode,
    /// The resource's own configuration.
    pub config: Option<&'a serde_json::Value>,
    /// What it starts from; `None` at its very first start.
    pub state: Option<&'a State<Bytes>>,
}

/// Answer to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// The state is the one asked about.
    Unchanged(Mark),
    /// The state now.
    State(State<Bytes>),
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// The host, over its socket. Cheap to clone.
#[derive(Clone)]
pub struct HostClient {
    connections: Connections,
    max_state: Arc<AtomicU64>,
    gate: Gate,
}

impl HostClient {
    /// A client of the host on this socket. A state larger than `max_state` bytes is refused.
    #[must_use]
    pub fn new(socket: &Path, max_state: u64) -> Self {
        let (connections, max_state) = (Connections::new(socket), Arc::new(AtomicU64::new(max_state)));
        Self { connections, max_state, gate: Gate::open(boot_time) }
    }

    /// What must be open for a server to serve, or to begin to.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// Changes the bound of a state's size, in bytes.
    pub fn set_max_state(&self, max_state: u64) {
        self.max_state.store(max_state, Ordering::Relaxed);
    }

    /// What the host is.
    pub async fn describe(&self, within: Duration) -> Result<Describe, HostError> {
        let describe: Describe = self.json("/.durable/v1/describe", within).await?;
        if describe.contract != CONTRACT {
            let spoken = describe.contract;
            return Err(HostError::Invalid(format!(
                "it speaks contract {spoken}, this agent speaks {CONTRACT}: use an SDK and an agent of one release"
            )));
        }
        Ok(describe)
    }

    /// What the host has.
    pub async fn list(&self, within: Duration) -> Result<Vec<Listed>, HostError> {
        self.json("/.durable/v1/servers", within).await
    }

    /// Tells it until when it may serve what this generation starts: a time of the boot clock. Calls with an attempt below
    /// `first` are of an earlier agent, and do nothing from then on.
    pub async fn lease(&self, lease: Told, first: u64, within: Duration) -> Result<(), HostError> {
        let request = Request::post("/.durable/v1/lease")
            .header(header::GENERATION, lease.generation.0)
            .header(header::DEADLINE, lease.deadline.0.as_millis().to_string())
            .header(header::ATTEMPT, first);
        self.expect_ok(request, Bytes::new(), within).await.map(drop)
    }

    /// The lease that it was told of last; 404 if it was told of none.
    pub async fn told(&self, within: Duration) -> Result<Told, HostError> {
        let KnownLease { generation, deadline } = self.json("/.durable/v1/lease", within).await?;
        if generation.0 > LAST {
            return Err(HostError::Invalid(format!("no lease has generation {}", generation.0)));
        }
        Ok(Told { generation, deadline: Instant(Duration::from_millis(deadline)) })
    }

    /// Starts a server.
    pub async fn start(&self, call: &StartCall<'_>, within: Duration) -> Result<Mark, HostError> {
        self.may_serve()?;
        let mode = match call.mode {
            Mode::Active => "active",
            Mode::Standby => "standby",
        };
        let mut request = control(Method::POST, &call.id.uid, "start", call.epoch)
            .header(header::ATTEMPT, call.attempt)
            .header(header::SERVER, call.id.to_string())
            .header(header::TYPE, call.kind)
            .header(header::MODE, mode);
        if let Some(config) = call.config {
            request = request.header(header::CONFIG, BASE64_STANDARD.encode(config.to_string()));
        }
        let (request, body) = match call.state {
            Some(state) => full(request, state),
            None => (request.header(header::STATE, "none"), Bytes::new()),
        };
        self.expect_ok(request, body, within).await?.mark()
    }

    /// Copies a server's state while it serves, unless it is still the one of `since`.
    pub async fn snapshot(
        &self,
        uid: &ServerUid,
        epoch: Epoch,
        since: Option<Mark>,
        within: Duration,
    ) -> Result<Snapshot, HostError> {
        let request = asking_since(control(Method::GET, uid, "snapshot", epoch), since);
        let answer = self.call(request, Bytes::new(), self.max_state(), within).await?;
        match answer.status {
            StatusCode::NOT_MODIFIED => Ok(Snapshot::Unchanged(answer.mark()?)),
            StatusCode::OK => Ok(Snapshot::State(answer.state()?)),
            _ => Err(answer.refusal()),
        }
    }

    /// Stops a server from changing, and returns its last state.
    pub async fn freeze(
        &self,
        uid: &ServerUid,
        epoch: Epoch,
        attempt: u64,
        since: Option<Mark>,
        within: Duration,
    ) -> Result<Final<Bytes>, HostError> {
        let request = control(Method::POST, uid, "freeze", epoch).header(header::ATTEMPT, attempt);
        let answer = self.call(asking_since(request, since), Bytes::new(), self.max_state(), within).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(Final::Unchanged(answer.mark()?)),
            StatusCode::OK => Ok(Final::State(answer.state()?)),
            _ => Err(answer.refusal()),
        }
    }

    /// Lets a frozen server serve on.
    pub async fn thaw(&self, uid: &ServerUid, epoch: Epoch, attempt: u64, within: Duration) -> Result<(), HostError> {
        self.may_serve()?;
        let request = control(Method::POST, uid, "thaw", epoch).header(header::ATTEMPT, attempt);
        self.expect_ok(request, Bytes::new(), within).await.map(drop)
    }

    /// Lets a standby serve, from its final state. Returns the mark in this host.
    pub async fn activate(
        &self,
        uid: &ServerUid,
        epoch: Epoch,
        attempt: u64,
        last: &Final<Bytes>,
        within: Duration,
    ) -> Result<Mark, HostError> {
        self.may_serve()?;
        let request = control(Method::POST, uid, "activate", epoch).header(header::ATTEMPT, attempt);
        let (request, body) = match last {
            Final::State(state) => full(request, state),
            Final::Unchanged(mark) => (marked(request.header(header::STATE, "unchanged"), *mark), Bytes::new()),
        };
        self.expect_ok(request, body, within).await?.mark()
    }

    /// Has the host forget a server.
    pub async fn stop(&self, uid: &ServerUid, epoch: Epoch, attempt: u64, within: Duration) -> Result<(), HostError> {
        let request = control(Method::POST, uid, "stop", epoch).header(header::ATTEMPT, attempt);
        self.expect_ok(request, Bytes::new(), within).await.map(drop)
    }

    /// Passes a user's request on. The answer's body is streamed.
    pub async fn forward(&self, request: Request<Outgoing>) -> Result<Response<Lent>, SendError> {
        let over = || HostError::LeaseOver.to_string();
        if self.gate.is_closed() {
            return Err(SendError::NotSent(over()));
        }
        let answer = self.connections.send(request).await?;
        // This process, or the host, may have slept meanwhile: nobody may see an answer that another pod's contradicts.
        if self.gate.is_closed() { Err(SendError::Broken(over())) } else { Ok(answer) }
    }

    fn may_serve(&self) -> Result<(), HostError> {
        if self.gate.is_closed() { Err(HostError::LeaseOver) } else { Ok(()) }
    }

    fn max_state(&self) -> u64 {
        self.max_state.load(Ordering::Relaxed)
    }

    async fn json<T: for<'de> Deserialize<'de>>(&self, path: &str, within: Duration) -> Result<T, HostError> {
        let answer = self.call(Request::get(path), Bytes::new(), MAX_JSON, within).await.map_err(no_state)?;
        if answer.status != StatusCode::OK {
            return Err(answer.refusal());
        }
        serde_json::from_slice(&answer.body).map_err(|error| HostError::Invalid(format!("{path}: {error}")))
    }

    async fn expect_ok(&self, request: Builder, body: Bytes, within: Duration) -> Result<Answer, HostError> {
        let answer = self.call(request, body, MAX_MESSAGE, within).await.map_err(no_state)?;
        if answer.status == StatusCode::OK { Ok(answer) } else { Err(answer.refusal()) }
    }

    async fn call(
        &self,
        request: Builder,
        body: Bytes,
        max_answer: u64,
        within: Duration,
    ) -> Result<Answer, HostError> {
        let request = request
            .header(HOST, HeaderValue::from_static("durable"))
            .body(Either::Left(Full::new(body)))
            .map_err(|error| HostError::Invalid(format!("the call cannot be written as HTTP: {error}")))?;
        let exchange = async {
            let (head, body) = self.connections.send(request).await?.into_parts();
            let body = read(body, max_answer).await?;
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        timeout(within, exchange).await.unwrap_or(Err(HostError::Timeout(within)))
    }
}

impl Answer {
    fn refusal(self) -> HostError {
        if !self.status.is_client_error() && !self.status.is_server_error() {
            return HostError::Invalid(format!("status {} is no answer to this call", self.status));
        }
        let length = self.body.len().min(usize::try_from(MAX_MESSAGE).unwrap_or(usize::MAX));
        let message = String::from_utf8_lossy(&self.body[..length]).trim().to_owned();
        HostError::Refused { status: self.status, message }
    }

    fn mark(&self) -> Result<Mark, HostError> {
        Ok(Mark {
            instance: self.number(&header::INSTANCE)?,
            revision: self.number(&header::REVISION)?,
            checksum: self.number(&header::CHECKSUM)?,
        })
    }

    fn state(self) -> Result<State<Bytes>, HostError> {
        let mark = self.mark()?;
        let actual = crc32fast::hash(&self.body);
        if actual != mark.checksum {
            return Err(HostError::Invalid(format!(
                "{} says {}, the body's CRC-32 is {actual}",
                header::CHECKSUM,
                mark.checksum
            )));
        }
        Ok(State { mark, version: self.number(&header::STATE_VERSION)?, body: self.body })
    }

    fn number<T: FromStr<Err: Display>>(&self, name: &HeaderName) -> Result<T, HostError> {
        let value = self.headers.get(name).ok_or_else(|| HostError::Invalid(format!("{name} is missing")))?;
        let text = value.to_str().map_err(|error| HostError::Invalid(format!("{name}: {error}")))?;
        text.parse().map_err(|error| HostError::Invalid(format!("{name} is {text:?}: {error}")))
    }
}

fn control(method: Method, uid: &ServerUid, verb: &str, epoch: Epoch) -> Builder {
    let uid = utf8_percent_encode(&uid.0, UID);
    Request::builder().method(method).uri(format!("/.durable/v1/servers/{uid}/{verb}")).header(header::EPOCH, epoch.0)
}

fn full(request: Builder, state: &State<Bytes>) -> (Builder, Bytes) {
    let request = request.header(header::STATE, "full").header(header::STATE_VERSION, state.version);
    (marked(request, state.mark), state.body.clone())
}

fn marked(request: Builder, mark: Mark) -> Builder {
    request
        .header(header::INSTANCE, mark.instance)
        .header(header::REVISION, mark.revision)
        .header(header::CHECKSUM, mark.checksum)
}

fn asking_since(request: Builder, since: Option<Mark>) -> Builder {
    match since {
        Some(mark) => request.header(header::INSTANCE, mark.instance).header(header::REVISION, mark.revision),
        None => request,
    }
}

/// Of an answer that bears no state, its length is the host's mistake.
fn no_state(error: HostError) -> HostError {
    match error {
        HostError::TooLarge(max) => HostError::Invalid(format!("the body is larger than {max} bytes")),
        other => other,
    }
}

async fn read(mut body: Lent, max: u64) -> Result<Bytes, HostError> {
    let too_large = || HostError::TooLarge(max);
    let expected = body.size_hint().lower();
    if expected > max {
        return Err(too_large());
    }
    let mut collected = BytesMut::with_capacity(usize::try_from(expected).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| HostError::Unreachable(format!("the answer broke off: {error}")))?;
        if let Ok(data) = frame.into_data() {
            if collected.len() as u64 + data.len() as u64 > max {
                return Err(too_large());
            }
            collected.extend_from_slice(&data);
        }
    }
    Ok(collected.freeze())
}
