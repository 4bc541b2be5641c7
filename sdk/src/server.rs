//! What the author of a host writes ([`DurableServer`]) and what it is given.

use std::{fmt::Display, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::{
    agent::{Agent, AgentError, Location},
    socket::{Accepted, Message, Offer, Socket},
    stream::Stream,
};

/// One type of durable server.
pub trait DurableServer: Send + Sized + 'static {
    /// The name that resources of this type carry in `spec.type`.
    const TYPE: &str;

    /// The number of the format that [`snapshot`](Self::snapshot) writes. Raise it when an older build of the host
    /// could not load the new format: servers then move to builds that can, and not back.
    const STATE_VERSION: u32;

    /// The formats that [`load`](Self::load) takes.
    #[must_use]
    fn loads() -> Vec<u32> {
        vec![Self::STATE_VERSION]
    }

    /// Makes the server from its state, or from nothing on its very first start. Called in a handoff too, before the
    /// server leaves its present pod: it must not touch anything outside of the server.
    fn load(server: &ServerName, config: Option<Value>, state: Option<State>) -> Result<Self, LoadError>;

    /// Answers one request. Requests of one server are handled one after the other; it runs to its end even if
    /// the client goes away. The path is what follows the server's name.
    ///
    /// Every request but `GET` and `HEAD` counts as a change of the state, unless [`Context::unchanged`] is called.
    /// What is not counted may be lost when the server moves.
    fn handle(
        &mut self,
        request: Request<Bytes>,
        context: &mut Context,
    ) -> impl Future<Output = Response<Bytes>> + Send;

    /// Handles one message of a socket that [`Context::accept`] took, in its turn among the requests; what is returned is
    /// said to its client. Each counts as a change of the state, unless [`Context::unchanged`] is called.
    fn message(
        &mut self,
        socket: &Socket,
        message: Message,
        context: &mut Context,
    ) -> impl Future<Output = Option<Message>> + Send {
        let _ = (socket, message, context);
        async { None }
    }

    /// Writes the state down. The same state should give the same bytes.
    fn snapshot(&self) -> Bytes;

    /// The last state was taken and no request reaches this server until it is thawed, if ever. For letting go of
    /// things outside of the state, which itself must stay: it may be asked for again.
    fn freeze(&self) {}
}

/// Which server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerName {
    /// Kubernetes namespace of the resource.
    pub namespace: String,
    /// Name of the resource.
    pub name: String,
    /// Uid of the resource: a name that is deleted and made again is another server.
    pub uid: String,
}

impl Display for ServerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A state as it was written by [`DurableServer::snapshot`], here or in another pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The format, one of [`DurableServer::loads`].
    pub version: u32,
    /// What was written.
    pub body: Bytes,
}

/// Why a server cannot be made from this state or config. The sentence ends up in the resource's status.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(String);

impl LoadError {
    /// From a sentence, or another error.
    pub fn new(reason: impl Display) -> Self {
        Self(reason.to_string())
    }
}

/// What a handler may know and say besides its answer.
#[derive(Debug)]
pub struct Context {
    server: Arc<ServerName>,
    epoch: u64,
    changed: bool,
    durable: bool,
    offer: Option<Offer>,
    accepted: Option<Accepted>,
    rest: Option<mpsc::Receiver<Bytes>>,
    agent: Arc<Agent>,
}

impl Context {
    pub(crate) fn new(
        server: Arc<ServerName>,
        epoch: u64,
        changed: bool,
        offer: Option<Offer>,
        agent: Arc<Agent>,
    ) -> Self {
        Self { server, epoch, changed, durable: false, offer, accepted: None, rest: None, agent }
    }

    /// The server that this is.
    #[must_use]
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// The number of the present term of ownership; it grows whenever the server moves.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// This request changed nothing in the state, although it is not a `GET` or `HEAD`.
    pub fn unchanged(&mut self) {
        self.changed = false;
    }

    /// This request changed the state, although it is a `GET` or `HEAD`.
    pub fn changed(&mut self) {
        self.changed = true;
    }

    /// Hold the answer back until the state, as this handler leaves it, is in the store. The server goes on with
    /// other requests meanwhile. If it cannot be stored now, the client gets 503 in place of the answer.
    pub fn answer_when_durable(&mut self) {
        self.durable = true;
    }

    /// Takes the WebSocket that this request opens: its messages come to [`DurableServer::message`], and what the handler
    /// returns is not sent. `None`: the request opens none.
    pub fn accept(&mut self) -> Option<Socket> {
        let (socket, accepted) = self.offer.take()?.accept();
        self.accepted = Some(accepted);
        Some(socket)
    }

    /// After the body that the handler returns, the answer goes on with what is sent here. It may outlast the handler, and
    /// the server's time in this pod: so it must need nothing of the server any more.
    pub fn stream(&mut self) -> Stream {
        let (stream, rest) = Stream::new();
        self.rest = Some(rest);
        stream
    }

    /// Where a server of this pool is, this one included; `None`: there is no such server.
    pub async fn lookup(&self, namespace: &str, name: &str) -> Result<Option<Location>, AgentError> {
        self.agent.lookup(namespace, name).await
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    pub(crate) fn take_accepted(&mut self) -> Option<Accepted> {
        self.accepted.take()
    }

    pub(crate) fn take_rest(&mut self) -> Option<mpsc::Receiver<Bytes>> {
        self.rest.take()
    }

    /// Waits for the store if the handler asked for that.
    pub(crate) async fn settle(&self) -> Result<(), AgentError> {
        if self.durable { self.agent.sync(&self.server.uid).await } else { Ok(()) }
    }
}

/// A [`DurableServer`] of any type.
pub(crate) trait AnyServer: Send {
    fn handle<'a>(
        &'a mut self,
        request: Request<Bytes>,
        context: &'a mut Context,
    ) -> Pin<Box<dyn Future<Output = Response<Bytes>> + Send + 'a>>;
    fn message<'a>(
        &'a mut self,
        socket: &'a Socket,
        message: Message,
        context: &'a mut Context,
    ) -> Pin<Box<dyn Future<Output = Option<Message>> + Send + 'a>>;
    fn snapshot(&self) -> Bytes;
    fn freeze(&self);
}

impl<S: DurableServer> AnyServer for S {
    fn handle<'a>(
        &'a mut self,
        request: Request<Bytes>,
        context: &'a mut Context,
    ) -> Pin<Box<dyn Future<Output = Response<Bytes>> + Send + 'a>> {
        Box::pin(DurableServer::handle(self, request, context))
    }

    fn message<'a>(
        &'a mut self,
        socket: &'a Socket,
        message: Message,
        context: &'a mut Context,
    ) -> Pin<Box<dyn Future<Output = Option<Message>> + Send + 'a>> {
        Box::pin(DurableServer::message(self, socket, message, context))
    }

    fn snapshot(&self) -> Bytes {
        DurableServer::snapshot(self)
    }

    fn freeze(&self) {
        DurableServer::freeze(self);
    }
}

type Load = fn(&ServerName, Option<Value>, Option<State>) -> Result<Box<dyn AnyServer>, LoadError>;

/// A registered type.
#[derive(Debug)]
pub(crate) struct Kind {
    pub name: &'static str,
    pub version: u32,
    pub loads: Vec<u32>,
    load: Load,
}

impl Kind {
    pub(crate) fn of<S: DurableServer>() -> Self {
        let load: Load = |server, config, state| Ok(Box::new(S::load(server, config, state)?));
        Self { name: S::TYPE, version: S::STATE_VERSION, loads: S::loads(), load }
    }

    pub(crate) fn load(
        &self,
        server: &ServerName,
        config: Option<Value>,
        state: Option<State>,
    ) -> Result<Box<dyn AnyServer>, LoadError> {
        if let Some(State { version, .. }) = state
            && !self.loads.contains(&version)
        {
            let (name, loads) = (self.name, &self.loads);
            return Err(LoadError(format!("type {name:?} of this host loads state versions {loads:?}, not {version}")));
        }
        (self.load)(server, config, state)
    }
}
