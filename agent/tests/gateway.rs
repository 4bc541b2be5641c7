//! Gateways with a tiny host each, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent::{
    gateway::Limits,
    routes::{DirectoryEntry, DirectoryUpdate, Found, Way},
};
use bytes::Bytes;
use handoff::{Epoch, PodUid};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::connect::HttpConnector,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use support::{
    OPERATOR,
    gated::{Gated, room, server},
};

/// Long enough for a request to reach its place when it is not to be answered yet.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Default)]
struct Host {
    not_here: AtomicBool,
    requests: AtomicUsize,
    connections: AtomicUsize,
}

impl Host {
    /// Says who it is and what it was asked.
    async fn answer(self: Arc<Self>, request: Request<Incoming>, pod: &str) -> Response<Full<Bytes>> {
        if self.not_here.load(Ordering::Relaxed) {
            let mut answer = Response::new(Full::default());
            *answer.status_mut() = StatusCode::MISDIRECTED_REQUEST;
            answer.headers_mut().insert("durable-not-here", "1".parse().unwrap());
            return answer;
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        let header = |name: &str| request.headers().get(name).map_or("-", |v| v.to_str().unwrap()).to_owned();
        let line = format!(
            "{pod} {} {} server={} uid={} epoch={}",
            request.method(),
            request.uri(),
            header("durable-server"),
            header("durable-uid"),
            header("durable-epoch")
        );
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Full::from(format!("{line} body={}", String::from_utf8_lossy(&body))))
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

struct Pod {
    gated: Gated,
    host: Arc<Host>,
}

impl Deref for Pod {
    type Target = Gated;

    fn deref(&self) -> &Gated {
        &self.gated
    }
}

impl Pod {
    async fn start(name: &'static str) -> Self {
        Self::limited(name, Limits::default()).await
    }

    async fn limited(name: &'static str, limits: Limits) -> Self {
        let gated = Gated::start(name, limits).await;
        let host = Arc::new(Host::default());
        let listener = UnixListener::bind(gated.socket()).unwrap();
        tokio::spawn(serve_host(listener, host.clone(), name));
        Self { gated, host }
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        ask(Request::get(url(self.address, path))).await
    }

    /// A request that is not answered yet.
    async fn held(&self, path: &'static str) -> JoinHandle<(StatusCode, HeaderMap, String)> {
        let address = self.address;
        let asked = tokio::spawn(async move { ask(Request::post(url(address, path))).await });
        sleep(SETTLE).await;
        assert!(!asked.is_finished());
        asked
    }
}

async fn serve_host(listener: UnixListener, host: Arc<Host>, pod: &'static str) {
    while let Ok((stream, _)) = listener.accept().await {
        host.connections.fetch_add(1, Ordering::Relaxed);
        let host = host.clone();
        let service = service_fn(move |request| {
            let host = host.clone();
            async move { Ok::<_, Infallible>(host.answer(request, pod).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

type Client = hyper_util::client::legacy::Client<HttpConnector, Full<Bytes>>;

/// A client that keeps connections and never sends a request twice.
fn client() -> Client {
    hyper_util::client::legacy::Client::builder(TokioExecutor::new()).retry_canceled_requests(false).build_http()
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

async fn ask(request: hyper::http::request::Builder) -> (StatusCode, HeaderMap, String) {
    let answer = client().request(request.body(Full::default()).unwrap()).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn directory(entries: Vec<DirectoryEntry>) -> DirectoryUpdate {
    DirectoryUpdate { version: 1, complete: true, entries, removed: Vec::new() }
}

/// A connection to this pod's gateway, on which a request has begun to come.
async fn begun(pod: &str, listener: &TcpListener) -> TlsStream<TcpStream> {
    let acceptor = TlsAcceptor::from(OPERATOR.credentials(&support::pod(pod)).server_config());
    let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    stream
}

fn brief() -> Limits {
    Limits { hold: Duration::from_millis(200), ..Limits::default() }
}

#[tokio::test]
async fn a_local_server_answers_with_its_name() {
    let a = Pod::start("a").await;
    a.routes.set_here(&room(), Epoch(3));
    let (status, headers, body) = a.get("/lobby/x/y?z=1").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body, "a GET /x/y?z=1 server=ns/lobby uid=u1 epoch=3 body=");
    assert_eq!(headers["durable-server"], "ns/lobby");
    assert_eq!(headers["durable-epoch"], "3");
    assert_eq!(headers["durable-pod"], "a");
    assert!(!headers.contains_key("durable-owner") && !headers.contains_key("connection"));
}

#[tokio::test]
async fn a_forwarded_answer_heals_the_senders_route() {
    let (a, b, c) = (Pod::start("a").await, Pod::start("b").await, Pod::start("c").await);
    c.routes.set_here(&room(), Epoch(3));
    b.points_at(&c, 3);
    a.points_at(&b, 2);
    let (status, headers, body) = a.get("/lobby/x").await;
    assert_eq!((status, &headers["durable-pod"]), (StatusCode::OK, &"c".parse().unwrap()), "{body}");
    assert_eq!(body, "c GET /x server=ns/lobby uid=u1 epoch=3 body=");
    assert!(!headers.contains_key("durable-owner"));
    let Found::Known(route) = a.routes.find("lobby") else { panic!() };
    assert_eq!(route.epoch, Epoch(3));
    assert_eq!(route.way, Way::There { pod: PodUid("c".into()), gateway: c.address });
}

#[tokio::test]
async fn a_held_request_goes_where_the_server_went() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    a.routes.set_here(&room(), Epoch(3));
    a.routes.hold(&room());
    let held = a.held("/lobby/x").await;
    b.routes.set_here(&room(), Epoch(4));
    a.points_at(&b, 4);
    let (status, _, body) = held.await.unwrap();
    assert_eq!((status, body.as_str()), (StatusCode::OK, "b POST /x server=ns/lobby uid=u1 epoch=4 body="));
    assert!(a.metrics.encode().contains("durable_agent_requests_total{class=\"2xx\",way=\"held\"} 1"));
}

#[tokio::test]
async fn a_request_that_the_host_did_not_take_is_routed_again() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    a.host.not_here.store(true, Ordering::Relaxed);
    a.routes.set_here(&room(), Epoch(3));
    let held = a.held("/lobby/x").await;
    b.routes.set_here(&room(), Epoch(4));
    a.points_at(&b, 4);
    assert_eq!(held.await.unwrap().0, StatusCode::OK);
    assert_eq!((a.host.requests(), b.host.requests()), (0, 1));
}

#[tokio::test]
async fn a_thawed_server_takes_what_it_refused() {
    let a = Pod::start("a").await;
    a.host.not_here.store(true, Ordering::Relaxed);
    a.routes.set_here(&room(), Epoch(3));
    let held = a.held("/lobby/x").await;
    a.host.not_here.store(false, Ordering::Relaxed);
    assert_eq!(held.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn an_owner_that_cannot_be_reached_is_waited_for() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    a.routes.set_there("lobby", &room().uid, Epoch(3), PodUid("gone".into()), gone);
    let held = a.held("/lobby/x").await;
    b.routes.set_here(&room(), Epoch(4));
    a.points_at(&b, 4);
    assert_eq!(held.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_sent_twice() {
    let a = Pod::start("a").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.routes.set_there("lobby", &room().uid, Epoch(3), PodUid("b".into()), listener.local_addr().unwrap());
    let asked = tokio::spawn(ask(Request::post(url(a.address, "/lobby/x"))));
    drop(begun("b", &listener).await);
    let (status, _, body) = asked.await.unwrap();
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(body.contains("may have been processed"), "{body}");
    assert!(timeout(SETTLE, listener.accept()).await.is_err());
}

#[tokio::test]
async fn a_safe_request_is_sent_again() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.routes.set_there("lobby", &room().uid, Epoch(3), PodUid("x".into()), listener.local_addr().unwrap());
    let asked = tokio::spawn(ask(Request::get(url(a.address, "/lobby/x"))));
    let stream = begun("x", &listener).await;
    b.routes.set_here(&room(), Epoch(4));
    a.points_at(&b, 4);
    drop(stream);
    assert_eq!(asked.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn every_bound_answers_503_with_retry_after() {
    let a = Pod::limited("a", Limits { held: 1, body: 16, buffered: 8, parts: 1, ..brief() }).await;
    a.routes.hold(&room());
    let first = a.held("/lobby/x").await;
    let (status, headers, body) = a.get("/lobby/x").await;
    assert_eq!((status, &headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    assert!(body.contains("1 requests wait"), "{body}");
    let (status, headers, body) = first.await.unwrap();
    assert_eq!((status, &headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    assert!(body.contains("within 200ms: it starts, stops or moves"), "{body}");

    a.routes.set_here(&room(), Epoch(1));
    for (length, expected) in [(8, 200), (9, 503)] {
        let request = Request::post(url(a.address, "/lobby/x")).body(Full::from("x".repeat(length))).unwrap();
        let answer = client().request(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "{length}");
    }
}

#[tokio::test]
async fn a_hot_server_leaves_room_for_the_others() {
    let a = Pod::limited("a", Limits { held: 4, parts: 2, ..Limits::default() }).await;
    a.routes.hold(&room());
    a.routes.hold(&server("kitchen"));
    let held = [a.held("/lobby").await, a.held("/lobby").await];
    let (status, _, body) = a.get("/lobby").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("2 requests wait for server lobby"), "{body}");
    let other = a.held("/kitchen").await;
    for name in ["lobby", "kitchen"] {
        a.routes.set_here(&server(name), Epoch(1));
    }
    for held in held.into_iter().chain([other]) {
        assert_eq!(held.await.unwrap().0, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back() {
    let a = Pod::limited("a", Limits { held: 1, ..Limits::default() }).await;
    a.routes.hold(&room());
    let first = a.held("/lobby/x").await;
    first.abort();
    sleep(SETTLE).await;
    assert!(a.metrics.encode().contains("durable_agent_held_requests 0"));
    let second = a.held("/lobby/x").await;
    a.routes.set_here(&room(), Epoch(1));
    assert_eq!(second.await.unwrap().0, StatusCode::OK);
    assert_eq!(a.gateway.in_flight(), 0);
}

#[tokio::test]
async fn a_name_is_unknown_only_to_a_complete_directory() {
    let a = Pod::limited("a", brief()).await;
    let (status, _, body) = a.get("/lobby").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("does not know yet where servers are"), "{body}");
    let held = a.held("/lobby").await;
    a.routes.apply(directory(Vec::new()));
    assert_eq!(held.await.unwrap().0, StatusCode::NOT_FOUND);
    assert_eq!(a.get("/").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn hops_are_bounded() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    a.points_at(&b, 1);
    b.points_at(&a, 1);
    let (status, headers, body) = a.get("/lobby").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(headers.contains_key("retry-after"));
    assert!(body.contains("went through 4 gateways"), "{body}");
}

#[tokio::test]
async fn a_pod_answers_for_itself_when_told_not_to_forward() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.routes.set_here(&room(), Epoch(2));
    a.points_at(&b, 2);
    let only = |address| Request::get(url(address, "/lobby")).header("durable-no-forward", "1");
    assert_eq!(ask(only(b.address)).await.0, StatusCode::OK);
    let (status, _, body) = ask(only(a.address)).await;
    assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
    assert!(body.contains(&format!("epoch 2 in pod b, gateway {}", b.address)), "{body}");
    b.routes.hold(&room());
    assert_eq!(ask(only(b.address)).await.0, StatusCode::MISDIRECTED_REQUEST);
    b.routes.set_here(&room(), Epoch(2));
    b.host.not_here.store(true, Ordering::Relaxed);
    assert_eq!(ask(only(b.address)).await.0, StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn users_cannot_reach_the_hosts_control_calls() {
    let a = Pod::start("a").await;
    a.routes.set_here(&room(), Epoch(1));
    assert_eq!(a.get("/lobby/.durable/v1/describe").await.0, StatusCode::NOT_FOUND);
    assert_eq!(a.host.requests(), 0);
}

async fn exchange(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET /lobby HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let length = timeout(Duration::from_secs(5), stream.read(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn a_draining_gateway_serves_and_asks_clients_to_leave() {
    let a = Pod::start("a").await;
    a.routes.set_here(&room(), Epoch(1));
    let mut kept = TcpStream::connect(a.address).await.unwrap();
    assert!(!exchange(&mut kept).await.contains("connection: close"));
    a.gateway.drain_connections();
    let answer = exchange(&mut kept).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(kept.read(&mut [0; 1]).await.unwrap(), 0);
    let (status, headers, _) = a.get("/lobby").await;
    assert_eq!((status, &headers["connection"]), (StatusCode::OK, &"close".parse().unwrap()));

    a.routes.hold(&room());
    let held = a.held("/lobby").await;
    a.gateway.shutdown();
    sleep(SETTLE).await;
    assert!(TcpStream::connect(a.address).await.is_err());
    a.routes.set_here(&room(), Epoch(1));
    assert_eq!(held.await.unwrap().0, StatusCode::OK);
    timeout(Duration::from_secs(1), a.gated.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_gateway_that_ends_breaks_no_request_of_another() {
    let (a, mut b) = (Pod::start("a").await, Pod::start("b").await);
    b.routes.set_here(&room(), Epoch(2));
    a.points_at(&b, 2);
    let client = client();
    let clients = (0..8).map(|_| {
        let (client, url) = (client.clone(), url(a.address, "/lobby"));
        tokio::spawn(async move {
            for _ in 0..100 {
                let answer = client.request(Request::post(&url).body(Full::from("x")).unwrap()).await.unwrap();
                assert_eq!(answer.status(), StatusCode::OK);
                answer.into_body().collect().await.unwrap();
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    while b.host.requests() < 200 {
        sleep(Duration::from_millis(1)).await;
    }
    b.gateway.drain_connections();
    b.gateway.shutdown();
    timeout(Duration::from_secs(5), &mut b.gated.served).await.unwrap().unwrap();
    a.routes.set_here(&room(), Epoch(3));
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(a.host.requests() + b.host.requests(), 800);
}

#[tokio::test]
async fn connections_are_used_again() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.routes.set_here(&room(), Epoch(2));
    a.points_at(&b, 2);
    let client = client();
    let asks = async || {
        for _ in 0..100 {
            let request = Request::post(url(a.address, "/lobby")).body(Full::from("x")).unwrap();
            let answer = client.request(request).await.unwrap();
            answer.into_body().collect().await.unwrap();
        }
    };
    futures::future::join_all((0..8).map(|_| asks())).await;
    assert_eq!(b.host.requests(), 800);
    let connections = b.host.connections.load(Ordering::Relaxed);
    assert!(connections <= 16, "{connections}");
    assert!(b.metrics.encode().contains("durable_agent_gateway_connections 1"), "{}", b.metrics.encode());
}

#[tokio::test]
async fn bodies_pass_whole_both_ways() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.routes.set_here(&room(), Epoch(2));
    a.points_at(&b, 2);
    let sent = "0123456789".repeat(100_000);
    let client = client();
    for _ in 0..3 {
        let request = Request::put(url(a.address, "/lobby/file")).body(Full::from(sent.clone())).unwrap();
        let answer = client.request(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.ends_with(sent.as_bytes()));
    }
}
