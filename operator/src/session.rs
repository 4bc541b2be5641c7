//! Sessions: agents connect, their token is reviewed, and from then on messages go both ways. No decisions here.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use listen::{Newcomer, Newcomers, Seldom};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::server::{Connected, Server},
};
use wire::session::{
    FromAgent, Hello, ToAgent, from_agent,
    operator_server::{Operator, OperatorServer},
};

use crate::{
    leader::Leadership,
    model::{Event, Identity, Opening, Outbox, SessionId},
};
use handoff::PodUid;

/// An inventory of 10,000 servers is 2 MiB.
const MAX_MESSAGE: usize = 16 << 20;
/// Messages that wait for one agent; a plan a second, and bursts of assignments.
const OUTBOX: usize = 8_192;
/// An agent says something every second.
const SILENCE: Duration = Duration::from_secs(10);
/// One review.
const REVIEW: Duration = Duration::from_secs(5);
/// Reviews at once: whoever connects without a good token costs no more than this.
const REVIEWS: usize = 16;
/// Longest token.
const MAX_TOKEN: usize = 8 << 10;
/// Connections that have not shown a good token, and how long each may take to. Behind a new leader all agents come at
/// once, within two seconds or so, and none of them must push out another.
const NEWCOMERS: (usize, Duration) = (8_192, Duration::from_secs(10));
/// How often a silent connection is asked for a sign of life, and how long it may take.
const KEEPALIVE: Duration = Duration::from_secs(5);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It is not good.
    #[error("the token is not accepted: {0}")]
    Refused(String),
    /// It could not be reviewed.
    #[error("the token cannot be reviewed now, try again: {0}")]
    Unavailable(String),
}

/// Who tells which pod a token names.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// The pod.
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError>;
}

/// The API server's word.
pub struct TokenReviews {
    client: Client,
    audience: String,
}

impl TokenReviews {
    /// Accepts tokens of this audience.
    #[must_use]
    pub fn new(client: Client, audience: String) -> Self {
        Self { client, audience }
    }
}

#[async_trait]
impl Authenticator for TokenReviews {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![self.audience.clone()]) },
            ..TokenReview::default()
        };
        let reviewed = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let reviewed = reviewed.map_err(|error| AuthError::Unavailable(error.to_string()))?;
        identity(&self.audience, reviewed.status.unwrap_or_default())
    }
}

fn identity(audience: &str, status: TokenReviewStatus) -> Result<Identity, AuthError> {
    let refused = |why: &str| AuthError::Refused(why.to_owned());
    if status.authenticated != Some(true) {
        return Err(refused(status.error.as_deref().unwrap_or("the API server does not know it")));
    }
    if !status.audiences.iter().flatten().any(|granted| granted == audience) {
        return Err(refused(&format!("it is not for audience {audience}: project one for it")));
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let namespace = username.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split(':').next());
    let extra = user.extra.unwrap_or_default();
    let single = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) => Some(value.clone()),
        _ => None,
    };
    match (namespace, single(POD_NAME), single(POD_UID)) {
        (Some(namespace), Some(pod), Some(uid)) => {
            Ok(Identity { namespace: namespace.to_owned(), pod, uid: PodUid(uid) })
        }
        _ => Err(refused("it is not bound to a pod: use a projected service-account token")),
    }
}

/// The service.
pub struct Sessions {
    authenticator: Arc<dyn Authenticator>,
    events: mpsc::Sender<Event>,
    leadership: watch::Receiver<Leadership>,
    next: AtomicU64,
    reviews: Semaphore,
    refused: Seldom,
}

/// The newcomers of the listener for sessions.
#[must_use]
pub fn newcomers() -> Newcomers {
    Newcomers::new("sessions", NEWCOMERS.0, NEWCOMERS.1)
}

impl Sessions {
    /// Tells of sessions by `events`; while another replica leads, says where that is.
    #[must_use]
    pub fn new(
        authenticator: Arc<dyn Authenticator>,
        events: mpsc::Sender<Event>,
        leadership: watch::Receiver<Leadership>,
    ) -> Self {
        let (next, reviews) = (AtomicU64::new(1), Semaphore::new(REVIEWS));
        Self { authenticator, events, leadership, next, reviews, refused: Seldom::new() }
    }

    fn leads(&self) -> Result<(), Status> {
        let address = match &*self.leadership.borrow() {
            Leadership::Ours => return Ok(()),
            Leadership::Unknown => None,
            Leadership::Other(address) => *address,
        };
        let mut status = Status::unavailable("another replica of the operator leads");
        if let Some(address) = address.and_then(|address| address.to_string().parse().ok()) {
            status.metadata_mut().insert(wire::LEADER, address);
        }
        Err(status)
    }

    async fn identify(&self, metadata: &MetadataMap) -> Result<Identity, Status> {
        let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer ")).filter(|token| token.len() <= MAX_TOKEN);
        let token = token.ok_or_else(|| Status::unauthenticated("send metadata authorization: Bearer <token>"))?;
        let review = async {
            let _turn = self.reviews.acquire().await;
            self.authenticator.authenticate(token).await
        };
        match timeout(REVIEW, review).await {
            Ok(Ok(identity)) => Ok(identity),
            Ok(Err(error @ AuthError::Refused(_))) => Err(Status::unauthenticated(error.to_string())),
            Ok(Err(error)) => Err(Status::unavailable(error.to_string())),
            Err(_) => Err(Status::unavailable("the token could not be reviewed in time, try again")),
        }
    }
}

#[tonic::async_trait]
impl Operator for Sessions {
    type SessionStream = ReceiverStream<Result<ToAgent, Status>>;

    async fn session(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::SessionStream>, Status> {
        self.leads()?;
        let newcomer = request.extensions().get::<Newcomer>().cloned();
        let identity = self.identify(request.metadata()).await.inspect_err(|refused| {
            if let Some(left_out) = self.refused.say() {
                tracing::info!(from = ?newcomer, reason = refused.message(), left_out, "session refused");
            }
        })?;
        if let Some(newcomer) = newcomer {
            newcomer.settle();
        }
        let (sender, receiver) = mpsc::channel(OUTBOX);
        let id = SessionId(self.next.fetch_add(1, Ordering::Relaxed));
        tokio::spawn(listen(id, identity, request.into_inner(), sender, self.events.clone()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Reads one agent until it goes or its session is ended.
async fn listen(
    id: SessionId,
    identity: Identity,
    mut stream: Streaming<FromAgent>,
    sender: mpsc::Sender<Result<ToAgent, Status>>,
    events: mpsc::Sender<Event>,
) {
    let hello = match hello(&mut stream).await {
        Ok(hello) => hello,
        Err(status) => {
            // Nobody may be listening any more.
            let _ = sender.try_send(Err(status));
            return;
        }
    };
    let ended = CancellationToken::new();
    let outbox = Some(Outbox { sender, cancel: ended.clone().drop_guard() });
    let opening = Event::Open(Box::new(Opening { id, identity, hello, outbox }));
    if events.send(opening).await.is_err() {
        return;
    }
    loop {
        let message = tokio::select! {
            () = ended.cancelled() => break,
            message = timeout(SILENCE, stream.message()) => message,
        };
        let Ok(Ok(Some(message))) = message else { break };
        // A kind of message that this version does not know has no body.
        let Some(body) = message.body else { continue };
        if events.send(Event::Message(id, Box::new(body))).await.is_err() {
            return;
        }
    }
    // A closed channel means that the operator stops.
    let _ = events.send(Event::Closed(id)).await;
}

async fn hello(stream: &mut Streaming<FromAgent>) -> Result<Hello, Status> {
    let first = timeout(SILENCE, stream.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
    match first.and_then(|message| message.body) {
        Some(from_agent::Body::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message must be a Hello")),
    }
}

/// Serves sessions on these connections until `stop`.
pub async fn serve<C>(
    sessions: Sessions,
    connections: impl Stream<Item = io::Result<C>>,
    stop: CancellationToken,
) -> anyhow::Result<()>
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let service = OperatorServer::new(sessions).max_decoding_message_size(MAX_MESSAGE);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .max_concurrent_streams(Some(8))
        .add_service(service)
        .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
        .await?;
    Ok(())
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
