//! A host: its types, its servers, and which part answers which call.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use crate::{
    agent::Agent,
    answer::{Refusal, text},
    cell::Surroundings,
    control,
    lease::Lease,
    listen::{HostError, Listening},
    observer::Observer,
    registry::Registry,
    requests,
    server::{DurableServer, Kind},
    stream::Said,
};

/// JSON numbers are exact below this, in every language.
const MAX_INSTANCE: u64 = 1 << 53;

/// A pool's `sync.maxStateBytes` unless it says otherwise.
const MAX_STATE_BYTES: usize = 64 << 20;

/// A program that runs durable servers, to be configured and then [run](Host::run).
#[must_use]
pub struct Host {
    kinds: BTreeMap<&'static str, Arc<Kind>>,
    observer: Box<dyn Observer>,
    max_state_bytes: usize,
    max_body_bytes: usize,
}

impl Default for Host {
    fn default() -> Self {
        let (max_state_bytes, max_body_bytes) = (MAX_STATE_BYTES, requests::MAX_BODY_BYTES);
        Self { kinds: BTreeMap::new(), observer: Box::new(()), max_state_bytes, max_body_bytes }
    }
}

impl Host {
    /// A host of no types yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs servers of type `S` too. Of two types with one name, the one given last counts.
    pub fn serve<S: DurableServer>(mut self) -> Self {
        self.kinds.insert(S::TYPE, Arc::new(Kind::of::<S>()));
        self
    }

    /// Tells `observer` when servers begin and end to serve.
    pub fn observe(mut self, observer: impl Observer) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Takes states up to this size: the pool's `sync.maxStateBytes`, if that is not the default of 64 MiB.
    pub fn max_state_bytes(mut self, bytes: usize) -> Self {
        self.max_state_bytes = bytes;
        self
    }

    /// Takes requests with bodies up to this size, in place of 2 MiB. Each is in memory as a whole before its server is
    /// given it; a longer one is answered 413.
    pub fn max_body_bytes(mut self, bytes: usize) -> Self {
        self.max_body_bytes = bytes;
        self
    }

    /// Opens the socket in `dir`, the volume that is shared with the agent (`/run/durable` unless it says otherwise).
    pub fn listen(self, dir: impl AsRef<Path>) -> Result<Listening, HostError> {
        let dir = dir.as_ref();
        let around = Surroundings {
            instance: rand::random_range(1..MAX_INSTANCE),
            agent: Arc::new(Agent::new(dir)),
            observer: self.observer,
            lease: Lease::default(),
        };
        let Self { kinds, max_state_bytes, max_body_bytes, .. } = self;
        let registry = Registry::default();
        Listening::open(dir, Running { kinds, registry, around, max_state_bytes, max_body_bytes })
    }

    /// Listens in `dir` and serves until SIGTERM or SIGINT, then ends as [`Listening::serve_until`] does.
    pub async fn run(self, dir: impl AsRef<Path>) -> Result<(), HostError> {
        self.listen(dir)?.serve_until_signal().await
    }
}

/// A host that listens.
pub(crate) struct Running {
    pub kinds: BTreeMap<&'static str, Arc<Kind>>,
    pub registry: Registry,
    pub around: Surroundings,
    max_state_bytes: usize,
    max_body_bytes: usize,
}

impl Running {
    /// Answers one call. A server is not given a request before all of its body is here: whoever sends it slowly, or goes
    /// away in the middle, keeps no server from others, nor from moving. What was begun is finished even if the caller goes
    /// away: a handler that was cut off in the middle would leave a state that nobody meant.
    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Said> {
        let (parts, body) = request.into_parts();
        let is_control = parts.uri.path().starts_with(control::PREFIX);
        let max_bytes = if is_control { self.max_state_bytes } else { self.max_body_bytes };
        match read(body, max_bytes).await {
            Ok(body) => tokio::spawn(self.dispatch(is_control, parts, body)).await.unwrap_or_else(|error| {
                tracing::error!(%error, "a call panicked");
                whole(text(StatusCode::INTERNAL_SERVER_ERROR, "the host panicked in this call"))
            }),
            Err(refusal) => whole(refusal.into()),
        }
    }

    async fn dispatch(self: Arc<Self>, is_control: bool, parts: Parts, body: Bytes) -> Response<Said> {
        let answer = if is_control {
            control::answer(&self, &parts, body).await.map(whole)
        } else {
            requests::answer(&self, parts, body).await
        };
        answer.unwrap_or_else(|refusal| whole(refusal.into()))
    }
}

/// An answer of which nothing is to come.
fn whole(answer: Response<Bytes>) -> Response<Said> {
    answer.map(|body| Said::new(body, None))
}

async fn read(body: Incoming, max_bytes: usize) -> Result<Bytes, Refusal> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let mut whole = BytesMut::with_capacity(expected.min(max_bytes));
    let mut body = Limited::new(body, max_bytes);
    loop {
        let frame = timeout(requests::BODY_STALLED, body.frame()).await;
        let stalled = || Refusal::new(StatusCode::REQUEST_TIMEOUT, "nothing more of the body came in time");
        match frame.map_err(|_| stalled())? {
            None => return Ok(whole.freeze()),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    whole.extend_from_slice(&data);
                }
            }
            Some(Err(error)) if error.is::<LengthLimitError>() => {
                let sentence = format!("the body is larger than {max_bytes} bytes");
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence));
            }
            Some(Err(error)) => return Err(Refusal::bad_request(format!("the body broke off: {error}"))),
        }
    }
}
