//! `WebSockets` and streamed answers through gateways, across handoffs, with real hosts.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{ops::Deref, time::Duration};

use agent::{
    gateway::Limits,
    host::{Mode, StartCall},
};
use bytes::Bytes;
use durable_sdk::{Context, DurableServer, Host, LoadError, Message as Said, ServerName, Socket, State};
use futures::{SinkExt, StreamExt};
use handoff::{
    Epoch,
    source::{Final, Mark, State as Bytes_},
};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, protocol::frame::coding::CloseCode},
};

use support::gated::{Gated, room};

/// Long enough for what must not happen, and for what was sent to reach its place.
const SETTLE: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(5);
const LINES: u32 = 40;

/// Counts messages, and says their number.
struct Count(u64);

impl DurableServer for Count {
    const TYPE: &str = "count";
    const STATE_VERSION: u32 = 1;

    fn load(_: &ServerName, _: Option<serde_json::Value>, state: Option<State>) -> Result<Self, LoadError> {
        let Some(state) = state else { return Ok(Self(0)) };
        serde_json::from_slice(&state.body).map(Self).map_err(LoadError::new)
    }

    async fn handle(&mut self, request: hyper::Request<Bytes>, context: &mut Context) -> Response<Bytes> {
        match request.uri().path() {
            "/socket" if context.accept().is_some() => {}
            "/lines" => {
                let stream = context.stream();
                tokio::spawn(async move {
                    for number in 0..LINES {
                        sleep(Duration::from_millis(25)).await;
                        stream.send(format!("{number}\n")).await;
                    }
                });
            }
            "/events" => {
                let stream = context.stream();
                tokio::spawn(async move {
                    while stream.send("data: x\n\n").await {
                        sleep(Duration::from_millis(5)).await;
                    }
                });
                return Response::builder().header("content-type", "text/event-stream").body(Bytes::new()).unwrap();
            }
            _ => return Response::new("no socket".into()),
        }
        Response::default()
    }

    async fn message(&mut self, _: &Socket, _: Said, _: &mut Context) -> Option<Said> {
        self.0 += 1;
        Some(Said::Text(self.0.to_string()))
    }

    fn snapshot(&self) -> Bytes {
        self.0.to_string().into()
    }
}

struct Pod {
    gated: Gated,
    running: JoinHandle<()>,
}

impl Deref for Pod {
    type Target = Gated;

    fn deref(&self) -> &Gated {
        &self.gated
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.running.abort();
    }
}

type Client = WebSocketStream<TcpStream>;
type Last = Option<Bytes_<Bytes>>;

impl Pod {
    async fn start(name: &'static str) -> Self {
        let gated = Gated::start(name, Limits::default()).await;
        let listening = Host::new().serve::<Count>().listen(gated.dir.path()).unwrap();
        let running = tokio::spawn(listening.serve_until(std::future::pending()));
        Self { gated, running }
    }

    /// Serves the server from now on.
    async fn serve(&self, epoch: u64, state: Last) {
        let (id, state) = (room(), state);
        let (epoch, mode) = (Epoch(epoch), Mode::Active);
        let call = StartCall { id: &id, kind: "count", epoch, attempt: 1, mode, config: None, state: state.as_ref() };
        self.host.start(&call, SOON).await.unwrap();
        self.routes.set_here(&id, epoch);
    }

    /// Takes it from its clients, and returns its last state.
    async fn freeze(&self, epoch: u64) -> Last {
        self.routes.hold(&room());
        match self.host.freeze(&room().uid, Epoch(epoch), 2, None, SOON).await.unwrap() {
            Final::State(state) => Some(state),
            Final::Unchanged(Mark { .. }) => None,
        }
    }

    async fn stop(&self, epoch: u64) {
        self.host.stop(&room().uid, Epoch(epoch), 3, SOON).await.unwrap();
    }

    async fn open(&self) -> Result<Client, Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let opening = client_async(format!("ws://{}/lobby/socket", self.address), stream);
        timeout(SOON, opening).await.expect("an answer in time").map(|(client, _)| client)
    }

    async fn get(&self, path: &str) -> Incoming {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request =
            Request::get(format!("/lobby/{path}")).header("host", "host").body(Empty::<Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body()
    }
}

/// Waits until it is so.
async fn until(mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.expect("it becomes so");
}

async fn echo(client: &mut Client) -> String {
    client.send(Message::text("x")).await.unwrap();
    let next = timeout(SOON, client.next()).await.expect("an echo in time");
    next.unwrap().unwrap().into_text().unwrap().to_string()
}

/// The code of the Close that comes next.
async fn closed(client: &mut Client) -> CloseCode {
    let next = timeout(SOON, client.next()).await.expect("it ends in time");
    let Some(Ok(Message::Close(Some(frame)))) = next else { panic!("{next:?}") };
    // The farewell is answered, and then the connection ends without an error.
    assert!(timeout(SOON, client.next()).await.expect("the connection ends").is_none());
    frame.code
}

#[tokio::test]
async fn a_socket_leads_to_the_server_wherever_it_is() {
    let (a, b, c) = (Pod::start("a").await, Pod::start("b").await, Pod::start("c").await);
    c.serve(3, None).await;
    b.points_at(&c, 3);
    a.points_at(&b, 2);
    for (pod, number) in [(&c, "1"), (&b, "2"), (&a, "3")] {
        assert_eq!(echo(&mut pod.open().await.unwrap()).await, number);
    }
    until(|| [&a, &b, &c].iter().all(|pod| pod.gateway.in_flight() == 0)).await;
    assert!(a.metrics.encode().contains("durable_agent_gateway_sockets 0"));
    assert!(a.metrics.encode().contains("durable_agent_requests_total{class=\"1xx\",way=\"forwarded\"} 1"));
}

#[tokio::test]
async fn what_opens_no_socket_is_answered_as_ever() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.serve(1, None).await;
    a.points_at(&b, 1);
    for (pod, status) in [(&b, StatusCode::OK), (&a, StatusCode::BAD_GATEWAY)] {
        let stream = TcpStream::connect(pod.address).await.unwrap();
        let Err(Error::Http(answer)) = client_async(format!("ws://{}/lobby/page", pod.address), stream).await else {
            panic!()
        };
        assert_eq!(answer.status(), status);
    }
}

#[tokio::test]
async fn clients_of_the_source_connect_again_once_the_target_serves() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    a.serve(1, None).await;
    let mut client = a.open().await.unwrap();
    assert_eq!(echo(&mut client).await, "1");
    let last = a.freeze(1).await;
    client.send(Message::text("too late")).await.unwrap();
    assert!(timeout(SETTLE, client.next()).await.is_err(), "neither answered nor closed before the target serves");
    assert_eq!(a.gateway.at_host(), 1);
    b.serve(2, last).await;
    a.points_at(&b, 2);
    assert_eq!(closed(&mut client).await, CloseCode::Restart);
    assert_eq!(echo(&mut a.open().await.unwrap()).await, "2", "what was too late was not handled");
    until(|| a.gateway.in_flight() == 0 && a.gateway.at_host() == 0).await;
}

#[tokio::test]
async fn clients_of_a_third_pod_connect_again_too() {
    let (a, b, c) = (Pod::start("a").await, Pod::start("b").await, Pod::start("c").await);
    a.serve(1, None).await;
    c.points_at(&a, 1);
    let mut client = c.open().await.unwrap();
    assert_eq!(echo(&mut client).await, "1");
    let last = a.freeze(1).await;
    b.serve(2, last).await;
    a.points_at(&b, 2);
    assert_eq!(closed(&mut client).await, CloseCode::Restart);
    assert_eq!(echo(&mut c.open().await.unwrap()).await, "2");
}

#[tokio::test]
async fn a_socket_waits_for_its_server_like_a_request() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    a.serve(1, None).await;
    let last = a.freeze(1).await;
    let opening = async { a.open().await.unwrap() };
    let moving = async {
        sleep(SETTLE).await;
        b.serve(2, last).await;
        a.points_at(&b, 2);
    };
    let (mut client, ()) = tokio::join!(opening, moving);
    assert_eq!(echo(&mut client).await, "1");
}

#[tokio::test]
async fn a_server_that_is_thawed_keeps_its_sockets() {
    let a = Pod::start("a").await;
    a.serve(1, None).await;
    let mut client = a.open().await.unwrap();
    a.freeze(1).await;
    client.send(Message::text("meanwhile")).await.unwrap();
    a.host.thaw(&room().uid, Epoch(1), 3, SOON).await.unwrap();
    a.routes.set_here(&room(), Epoch(1));
    assert_eq!(client.next().await.unwrap().unwrap().into_text().unwrap(), "1");
    assert_eq!(echo(&mut client).await, "2");
}

#[tokio::test]
async fn sockets_of_a_server_that_stops_are_closed_once_it_is_frozen_for_good() {
    let a = Pod::start("a").await;
    a.serve(1, None).await;
    let mut clients = [a.open().await.unwrap(), a.open().await.unwrap()];
    a.freeze(1).await;
    assert!(timeout(SETTLE, clients[0].next()).await.is_err());
    // Either may be first: the host forgets it, or the agent does.
    a.routes.release_local(&room());
    a.stop(1).await;
    for client in &mut clients {
        assert_eq!(closed(client).await, CloseCode::Restart);
    }
}

#[tokio::test]
async fn a_gateway_that_leaves_sends_on_whom_it_only_passes_on() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.serve(1, None).await;
    a.points_at(&b, 1);
    let (mut through, mut at) = (a.open().await.unwrap(), b.open().await.unwrap());
    assert_eq!(echo(&mut through).await, "1");
    a.gateway.drain_connections();
    b.gateway.drain_connections();
    assert_eq!(closed(&mut through).await, CloseCode::Restart);
    assert_eq!(echo(&mut at).await, "2", "its server is here still");
    let mut late = a.open().await.unwrap();
    assert!(timeout(SETTLE, late.next()).await.is_err(), "it would come back at once");
    assert_eq!(closed(&mut late).await, CloseCode::Restart);
    until(|| a.gateway.in_flight() == 0).await;
    b.gateway.shutdown();
    assert_eq!(closed(&mut at).await, CloseCode::Restart);
}

#[tokio::test]
async fn a_host_that_is_gone_has_its_clients_connect_again() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.serve(1, None).await;
    a.points_at(&b, 1);
    let mut client = a.open().await.unwrap();
    assert_eq!(echo(&mut client).await, "1");
    b.stop(1).await;
    assert_eq!(closed(&mut client).await, CloseCode::Restart);
}

#[tokio::test]
async fn a_streamed_answer_is_finished_by_the_source() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    a.serve(1, None).await;
    b.points_at(&a, 1);
    let (here, forwarded) = (a.get("lines").await, b.get("lines").await);
    let last = a.freeze(1).await;
    b.serve(2, last).await;
    a.points_at(&b, 2);
    a.stop(1).await;
    assert_eq!(a.gateway.at_host(), 2);
    let whole: Vec<String> = (0..LINES).map(|number| format!("{number}\n")).collect();
    for body in [here, forwarded] {
        assert_eq!(body.collect().await.unwrap().to_bytes(), whole.concat());
    }
    until(|| a.gateway.at_host() == 0).await;
}

#[tokio::test]
async fn a_stream_of_events_ends_once_the_target_serves() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    a.serve(1, None).await;
    b.points_at(&a, 1);
    let (here, forwarded) = (a.get("events").await, b.get("events").await);
    let bodies = tokio::spawn(async { (here.collect().await.unwrap(), forwarded.collect().await.unwrap()) });
    let last = a.freeze(1).await;
    sleep(SETTLE).await;
    assert!(!bodies.is_finished());
    b.serve(2, last).await;
    a.points_at(&b, 2);
    let (here, forwarded) = timeout(SOON, bodies).await.expect("both end").unwrap();
    assert!(here.to_bytes().ends_with(b"\n\n") && forwarded.to_bytes().ends_with(b"\n\n"));
}
