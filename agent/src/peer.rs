//! Agent to agent: connections, the endpoint that takes offers, and the messages' translation.

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use handoff::source::{Final, Mark};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::UnboundedReceiverStream};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};
use wire::peer::{self, from_source, peer_client::PeerClient, peer_server};

use crate::agent::{Agent, State};

/// To reach a peer. Pods of one cluster answer in milliseconds; one that does not in this time is no target.
const CONNECT: Duration = Duration::from_secs(1);

/// Handoffs that may arrive here at once, from all sources together. Each holds a state in memory.
const STREAMS_AT_ONCE: u32 = 1024;

/// Peers whose connections are kept: more than a pool has pods to hand to.
const MAX_PEERS: usize = 256;

/// Connections to peers, kept open: opening one does not belong into a handoff.
#[derive(Default)]
pub struct Peers(Mutex<HashMap<SocketAddr, Channel>>);

impl Peers {
    /// A client of the peer at this address, for messages of up to `max_message` bytes.
    pub fn client(&self, address: SocketAddr, max_message: usize) -> PeerClient<Channel> {
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Pods come and go; what is under way on a forgotten connection goes on.
        if channels.len() >= MAX_PEERS && !channels.contains_key(&address) {
            channels.clear();
        }
        let channel = channels.entry(address).or_insert_with(|| open(address)).clone();
        PeerClient::new(channel).max_decoding_message_size(max_message).max_encoding_message_size(max_message)
    }
}

/// An address always makes a valid URI, so it cannot be refused; the connection is opened at first use.
fn open(address: SocketAddr) -> Channel {
    let uri =
        tonic::transport::Uri::builder().scheme("http").authority(address.to_string()).path_and_query("/").build();
    Endpoint::from(uri.unwrap_or_default())
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .connect_lazy()
}

/// The endpoint that takes offers.
pub struct PeerEndpoint(pub Arc<Agent>);

#[tonic::async_trait]
impl peer_server::Peer for PeerEndpoint {
    type HandoffStream = Pin<Box<dyn Stream<Item = Result<peer::FromTarget, Status>> + Send>>;

    async fn handoff(
        &self,
        request: Request<Streaming<peer::FromSource>>,
    ) -> Result<Response<Self::HandoffStream>, Status> {
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(CONNECT, incoming.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the offer did not come"))??;
        let Some(peer::FromSource { handoff, body: Some(from_source::Body::Offer(offer)) }) = first else {
            return Err(Status::invalid_argument("the first message of a handoff is its offer"));
        };
        let (answers, outbound) = mpsc::unbounded_channel();
        let agent = self.0.clone();
        tokio::spawn(crate::receive::receive(agent, handoff, offer, incoming, answers));
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outbound).map(Ok))))
    }

    async fn tell(&self, request: Request<peer::News>) -> Result<Response<peer::Heard>, Status> {
        crate::news::heard(&self.0, request.into_inner()).map_err(Status::invalid_argument)?;
        Ok(Response::new(peer::Heard {}))
    }
}

/// Serves offers from peers until the process ends.
pub async fn serve(agent: Arc<Agent>, listener: tokio::net::TcpListener) -> anyhow::Result<()> {
    let max_message = agent.max_message();
    let service = peer_server::PeerServer::new(PeerEndpoint(agent))
        .max_decoding_message_size(max_message)
        .max_encoding_message_size(max_message);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_AT_ONCE)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(2)))
        .add_service(service)
        .serve_with_incoming(incoming)
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
