//! An agent that serves, without host, pool or operator.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use agent::{
    agent::{Agent, Target},
    config::Config,
    credentials::Credentials,
    hooks,
    peer::{self, Peers},
};
use clap::Parser;
use handoff::PodUid;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::Status;
use wire::peer::{FromSource, Offer, from_source, from_target};

/// Far longer than an answer takes.
pub const SOON: Duration = Duration::from_secs(5);

/// An agent of pod `b` that serves peers and the hook, without host, pool or operator.
pub struct Served {
    pub agent: Arc<Agent>,
    pub peers: SocketAddr,
    pub hooks: SocketAddr,
    pub gateway: SocketAddr,
}

impl Served {
    pub async fn start() -> Self {
        let arguments = ["a", "--pod=b", "--namespace=ns", "--pod-uid=b", "--pod-ip=127.0.0.1", "--pool=rooms"];
        let more = ["--operator=https://operator:9443", "--hook-path=/prestop/0123456789abcdef"];
        let config = Config::parse_from(arguments.into_iter().chain(more));
        let agent = super::agent(config);
        let listeners = [listen().await, listen().await, listen().await];
        let [to_peers, to_hooks, to_gateway] = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let [peers, hooks, requests] = listeners;
        tokio::spawn(peer::serve(agent.clone(), peers));
        tokio::spawn(hooks::serve(agent.clone(), hooks));
        let serving = agent.gateway.clone();
        tokio::spawn(async move { serving.serve(requests).await });
        Self { agent, peers: to_peers, hooks: to_hooks, gateway: to_gateway }
    }

    /// What becomes of an offer that this pod makes.
    pub async fn offer(&self, from: Arc<Credentials>, offer: Offer) -> Result<from_target::Body, Status> {
        let gateway = self.agent.gateway_address();
        let target = Target { pod: PodUid("b".into()), name: "b".into(), peer: self.peers, gateway };
        let first = FromSource { handoff: 1, body: Some(from_source::Body::Offer(offer)) };
        let mut client = Peers::new(from).client(&target, 1 << 20);
        let mut answers = client.handoff(tokio_stream::once(first)).await?.into_inner();
        Ok(answers.message().await?.unwrap().body.unwrap())
    }

    /// What the hook's port answers to these bytes, until it closes the connection.
    pub async fn ask(&self, request: &str) -> String {
        ask(self.hooks, request).await
    }
}

pub async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// What is answered to these bytes, until the other side closes the connection.
pub async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection stays open");
    String::from_utf8(answer).unwrap()
}
