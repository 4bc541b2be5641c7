//! Agent to agent: connections, the endpoint that takes offers, and the messages' translation.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use handoff::{
    PodUid,
    source::{Final, Mark},
};
use hyper_util::rt::TokioIo;
use listen::{Guarded, Newcomers, Seldom, accept};
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::client::TlsStream;
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};
use tower::Service;
use wire::{
    identity::PodIdentity,
    peer::{self, from_source, peer_client::PeerClient, peer_server},
};

use crate::{
    agent::{Agent, State, Target},
    credentials::{Credentials, NotReached},
};

/// To reach a peer. Pods of one cluster answer in milliseconds; one that does not in this time is no target.
const CONNECT: Duration = Duration::from_secs(1);

/// Handoffs that may arrive here at once, from all sources together. Each holds a state in memory.
const STREAMS_AT_ONCE: u32 = 1024;

/// Peers whose connections are kept: more than a pool has pods to hand to.
const MAX_PEERS: usize = 256;

/// Connections whose maker has not proved who it is, and how long each may take to.
pub const NEWCOMERS: (usize, Duration) = (1024, Duration::from_secs(5));

type Channels = HashMap<(SocketAddr, PodUid), Channel>;

/// Connections to peers, kept open: opening one does not belong into a handoff.
pub struct Peers {
    credentials: Arc<Credentials>,
    channels: Mutex<Channels>,
}

impl Peers {
    /// No connection yet; they will be made with these credentials.
    #[must_use]
    pub fn new(credentials: Arc<Credentials>) -> Self {
        Self { credentials, channels: Mutex::default() }
    }

    /// A client of this peer, for messages of up to `max_message` bytes.
    pub fn client(&self, target: &Target, max_message: usize) -> PeerClient<Channel> {
        let key = (target.peer, target.pod.clone());
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        // Pods come and go; what is under way on a forgotten connection goes on.
        if channels.len() >= MAX_PEERS && !channels.contains_key(&key) {
            channels.clear();
        }
        let lazily = || endpoint(target.peer).connect_with_connector_lazy(self.dial(target));
        let channel = channels.entry(key).or_insert_with(lazily).clone();
        PeerClient::new(channel).max_decoding_message_size(max_message).max_encoding_message_size(max_message)
    }

    fn dial(&self, target: &Target) -> Dial {
        Dial { credentials: self.credentials.clone(), address: target.peer, pod: target.pod.clone() }
    }
}

/// Connects whenever its channel has no connection, with the certificate that holds then.
struct Dial {
    credentials: Arc<Credentials>,
    address: SocketAddr,
    pod: PodUid,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = NotReached;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotReached>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (credentials, address, pod) = (self.credentials.clone(), self.address, self.pod.clone());
        Box::pin(async move { credentials.connect(address, &pod).await.map(TokioIo::new) })
    }
}

/// The scheme says that TLS is none of its business: the connector's connections have it.
fn endpoint(address: SocketAddr) -> Endpoint {
    // An address always makes a valid URI.
    let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/").build();
    Endpoint::from(uri.unwrap_or_default())
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
}

/// Which pod sent this request: it has proved that, or there would be no connection.
fn sender<T>(request: &Request<T>) -> Result<PodIdentity, Status> {
    let shown = request.peer_certs();
    let shown = shown
        .as_ref()
        .and_then(|shown| shown.first())
        .ok_or_else(|| Status::unauthenticated("peers speak TLS, and show a certificate of the operator"))?;
    PodIdentity::of_certificate(shown).map_err(|unnamed| Status::unauthenticated(unnamed.to_string()))
}

/// The endpoint that takes offers.
pub struct PeerEndpoint {
    agent: Arc<Agent>,
    refused: Seldom,
}

impl PeerEndpoint {
    /// An offer is taken only from the pod that it says it is from.
    fn check(&self, sender: &PodIdentity, offer: &peer::Offer) -> Result<(), Status> {
        if offer.source_pod_uid == sender.pod_uid.0 {
            return Ok(());
        }
        if let Some(left_out) = self.refused.say() {
            tracing::warn!(%sender, said = clip(&offer.source_pod_uid), left_out, "an offer in another pod's name");
        }
        Err(Status::permission_denied("the offer is in another pod's name than the certificate"))
    }
}

/// Of a text that a stranger chose, as much as a log needs.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

#[tonic::async_trait]
impl peer_server::Peer for PeerEndpoint {
    type HandoffStream = Pin<Box<dyn Stream<Item = Result<peer::FromTarget, Status>> + Send>>;

    async fn handoff(
        &self,
        request: Request<Streaming<peer::FromSource>>,
    ) -> Result<Response<Self::HandoffStream>, Status> {
        let sender = sender(&request)?;
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(CONNECT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the offer did not come"))??;
        let Some(peer::FromSource { handoff, body: Some(from_source::Body::Offer(offer)) }) = first else {
            return Err(Status::invalid_argument("the first message of a handoff is its offer"));
        };
        self.check(&sender, &offer)?;
        let (answers, outbound) = mpsc::unbounded_channel();
        let agent = self.agent.clone();
        tokio::spawn(crate::receive::receive(agent, handoff, offer, incoming, answers));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outbound).map(Ok))))
    }

    async fn tell(&self, request: Request<peer::News>) -> Result<Response<peer::Heard>, Status> {
        // Any pod of the pool may say where servers went, and nobody else.
        sender(&request)?;
        crate::news::heard(&self.agent, request.into_inner()).map_err(Status::invalid_argument)?;
        Ok(Response::new(peer::Heard {}))
    }
}

/// Serves offers from peers until the process ends.
pub async fn serve(agent: Arc<Agent>, listener: tokio::net::TcpListener) -> anyhow::Result<()> {
    let max_message = agent.max_message();
    let newcomers = Newcomers::new("peers", NEWCOMERS.0, NEWCOMERS.1);
    let connections = accept::tls(listener, agent.credentials.server_config(), newcomers);
    let service = peer_server::PeerServer::new(PeerEndpoint { agent, refused: Seldom::new() })
        .max_decoding_message_size(max_message)
        .max_encoding_message_size(max_message);
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_AT_ONCE)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .add_service(service)
        .serve_with_incoming(connections.map(|connection| connection.map(Guarded::settled)))
        .await?;
    Ok(())
}

/// A mark as the wire has it.
#[must_use]
pub fn mark_to_wire(mark: &Mark) -> peer::Mark {
    peer::Mark { instance: mark.instance, revision: mark.revision, checksum: mark.checksum }
}

/// A state as the wire has it.
#[must_use]
pub fn state_to_wire(state: &State) -> peer::State {
    peer::State { mark: Some(mark_to_wire(&state.mark)), version: state.version, body: state.body.clone() }
}

/// A final state as the wire has it.
#[must_use]
pub fn final_to_wire(last: &Final<Bytes>) -> peer::r#final::Last {
    match last {
        Final::State(state) => peer::r#final::Last::State(state_to_wire(state)),
        Final::Unchanged(mark) => peer::r#final::Last::Unchanged(mark_to_wire(mark)),
    }
}

/// A mark from the wire.
#[must_use]
pub fn mark_from_wire(mark: peer::Mark) -> Mark {
    Mark { instance: mark.instance, revision: mark.revision, checksum: mark.checksum }
}

/// A state from the wire; `None` if it is incomplete or its bytes are not those of its mark.
#[must_use]
pub fn state_from_wire(state: peer::State) -> Option<State> {
    let mark = mark_from_wire(state.mark?);
    let intact = crc32fast::hash(&state.body) == mark.checksum;
    intact.then_some(State { mark, version: state.version, body: state.body })
}

/// A final state from the wire; `None` if it is incomplete.
#[must_use]
pub fn final_from_wire(last: peer::r#final::Last) -> Option<Final<Bytes>> {
    match last {
        peer::r#final::Last::State(state) => state_from_wire(state).map(Final::State),
        peer::r#final::Last::Unchanged(mark) => Some(Final::Unchanged(mark_from_wire(mark))),
    }
}
