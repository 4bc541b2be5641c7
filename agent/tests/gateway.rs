//! Gateways with a tiny host each, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent::{
    connections::{Address, Connections},
    gateway::{Gateway, Identity, Limits},
    host::HostClient,
    metrics::Metrics,
    routes::{DirectoryEntry, DirectoryUpdate, Found, Routes, Way},
};
use bytes::Bytes;
use handoff::{Epoch, PodUid, ServerId, ServerUid};
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener},
    task::JoinHandle,
    time::{sleep, timeout},
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
    name: &'static str,
    address: SocketAddr,
    routes: Routes,
    gateway: Gateway,
    served: JoinHandle<()>,
    host: Arc<Host>,
    metrics: Metrics,
    _dir: TempDir,
}

impl Pod {
    async fn start(name: &'static str) -> Self {
        Self::limited(name, Limits::default()).await
    }

    async fn limited(name: &'static str, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("host.sock");
        let host = Arc::new(Host::default());
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(serve_host(listener, host.clone(), name));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Routes::new(PodUid(name.into()));
        let metrics = Metrics::new().unwrap();
        let identity = Identity { pod: name.into(), pod_uid: PodUid(name.into()), address };
        let gateway =
            Gateway::new(identity, limits, routes.clone(), HostClient::new(&socket, 1 << 20), metrics.clone());
        let serving = gateway.clone();
        let served = tokio::spawn(async move { serving.serve(listener).await });
        Self { name, address, routes, gateway, served, host, metrics, _dir: dir }
    }

    fn points_at(&self, other: &Pod, epoch: u64) {
        let id = room();
        self.routes.set_there(&id.name, &id.uid, Epoch(epoch), PodUid(other.name.into()), other.address);
    }

    async fn get(&self, path: &str) -> (StatusCode, HeaderMap, String) {
        ask(self.address, Request::get(path)).await
    }

    /// A request that is not answered yet.
    async fn held(&self, path: &'static str) -> JoinHandle<(StatusCode, HeaderMap, String)> {
        let address = self.address;
        let asked = tokio::spawn(async move { ask(address, Request::post(path)).await });
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

async fn ask(address: SocketAddr, request: hyper::http::request::Builder) -> (StatusCode, HeaderMap, String) {
    let request = request.header("host", "test").body(Full::default()).unwrap();
    let answer = Connections::default().send(&Address::Peer(address), request).await.unwrap();
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn room() -> ServerId {
    ServerId { namespace: "ns".into(), name: "lobby".into(), uid: ServerUid("u1".into()) }
}

fn directory(entries: Vec<DirectoryEntry>) -> DirectoryUpdate {
    DirectoryUpdate { version: 1, complete: true, entries, removed: Vec::new() }
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
    let asked = tokio::spawn(ask(a.address, Request::post("/lobby/x")));
    let (mut stream, _) = listener.accept().await.unwrap();
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    drop(stream);
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
    let asked = tokio::spawn(ask(a.address, Request::get("/lobby/x")));
    let (mut stream, _) = listener.accept().await.unwrap();
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    b.routes.set_here(&room(), Epoch(4));
    a.points_at(&b, 4);
    drop(stream);
    assert_eq!(asked.await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn every_bound_answers_503_with_retry_after() {
    let a = Pod::limited("a", Limits { held: 1, body: 16, buffered: 8, ..brief() }).await;
    a.routes.hold(&room());
    let first = a.held("/lobby/x").await;
    let (status, headers, body) = a.get("/lobby/x").await;
    assert_eq!((status, &headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    assert!(body.contains("1 requests wait"), "{body}");
    let (status, headers, body) = first.await.unwrap();
    assert_eq!((status, &headers["retry-after"]), (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap()));
    assert!(body.contains("within 200ms: it starts, stops or moves"), "{body}");

    a.routes.set_here(&room(), Epoch(1));
    for (length, expected) in [(8, 200), (9, 503), (17, 413)] {
        let request = Request::post("/lobby/x").header("host", "test").body(Full::from("x".repeat(length))).unwrap();
        let answer = Connections::default().send(&Address::Peer(a.address), request).await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "{length}");
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
    let only = || Request::get("/lobby").header("durable-no-forward", "1");
    assert_eq!(ask(b.address, only()).await.0, StatusCode::OK);
    let (status, _, body) = ask(a.address, only()).await;
    assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
    assert!(body.contains(&format!("epoch 2 in pod b, gateway {}", b.address)), "{body}");
    b.routes.hold(&room());
    assert_eq!(ask(b.address, only()).await.0, StatusCode::MISDIRECTED_REQUEST);
    b.routes.set_here(&room(), Epoch(2));
    b.host.not_here.store(true, Ordering::Relaxed);
    assert_eq!(ask(b.address, only()).await.0, StatusCode::MISDIRECTED_REQUEST);
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
    timeout(Duration::from_secs(1), a.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn peers_do_not_pool_connections_to_a_draining_gateway() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.routes.set_here(&room(), Epoch(2));
    a.points_at(&b, 2);
    b.gateway.drain_connections();
    for _ in 0..3 {
        let (status, headers, _) = a.get("/lobby").await;
        assert_eq!(status, StatusCode::OK);
        assert!(!headers.contains_key("connection"));
    }
    sleep(SETTLE).await;
    assert!(b.metrics.encode().contains("durable_agent_gateway_connections 0"));
}

#[tokio::test]
async fn connections_are_used_again() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.routes.set_here(&room(), Epoch(2));
    a.points_at(&b, 2);
    let pool = Connections::default();
    let address = Address::Peer(a.address);
    let client = async || {
        for _ in 0..100 {
            let request = Request::post("/lobby").header("host", "test").body(Full::from("x")).unwrap();
            let answer = pool.send(&address, request).await.unwrap();
            answer.into_body().collect().await.unwrap();
        }
    };
    futures::future::join_all((0..8).map(|_| client())).await;
    assert_eq!(b.host.requests(), 800);
    let connections = b.host.connections.load(Ordering::Relaxed);
    assert!(connections <= 16, "{connections}");
    assert!(b.metrics.encode().contains("durable_agent_gateway_connections 8"), "{}", b.metrics.encode());
}

#[tokio::test]
async fn bodies_pass_whole_both_ways() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.routes.set_here(&room(), Epoch(2));
    a.points_at(&b, 2);
    let sent = "0123456789".repeat(100_000);
    let pool = Connections::default();
    for _ in 0..3 {
        let mut request = Request::new(Full::from(sent.clone()));
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = "/lobby/file".parse().unwrap();
        request.headers_mut().insert("host", "test".parse().unwrap());
        let answer = pool.send(&Address::Peer(a.address), request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.ends_with(sent.as_bytes()));
    }
}

mod rules {
    use super::*;

    /// What is done to the routes of pod `me`, in order.
    enum Step {
        Here(&'static str, u64),
        Hold(&'static str),
        There(&'static str, u64, &'static str),
        Release(&'static str),
        Directory(&'static str, u64, &'static str),
        Complete,
        Removed,
    }
    use Step::{Complete, Directory, Here, Hold, Release, Removed, There};

    fn gateway() -> SocketAddr {
        "10.0.0.1:7070".parse().unwrap()
    }

    fn take(routes: &Routes, step: &Step) {
        let id = |uid: &str| ServerId { uid: ServerUid(uid.into()), ..room() };
        match step {
            Here(uid, epoch) => routes.set_here(&id(uid), Epoch(*epoch)),
            Hold(uid) => routes.hold(&id(uid)),
            There(uid, epoch, pod) => {
                routes.set_there("lobby", &ServerUid((*uid).into()), Epoch(*epoch), PodUid((*pod).into()), gateway());
            }
            Release(uid) => routes.release_local(&id(uid)),
            Directory(uid, epoch, pod) => routes.apply(DirectoryUpdate {
                entries: vec![DirectoryEntry {
                    name: "lobby".into(),
                    uid: ServerUid((*uid).into()),
                    epoch: Epoch(*epoch),
                    pod_uid: PodUid((*pod).into()),
                    gateway: (!pod.is_empty()).then(gateway),
                }],
                ..DirectoryUpdate::default()
            }),
            Complete => routes.apply(directory(Vec::new())),
            Removed => {
                routes.apply(DirectoryUpdate { removed: vec!["lobby".into()], ..DirectoryUpdate::default() });
            }
        }
    }

    fn shown(routes: &Routes) -> String {
        match routes.find("lobby") {
            Found::NotYet => "not yet".into(),
            Found::Unknown => "unknown".into(),
            Found::Known(route) => {
                let way = match &route.way {
                    Way::Here(_) => "here".to_owned(),
                    Way::Held => "held".to_owned(),
                    Way::There { pod, .. } => pod.0.clone(),
                    Way::Nowhere => "nowhere".to_owned(),
                };
                format!("{way} {}/{}", route.uid, route.epoch)
            }
        }
    }

    #[test]
    fn what_counts_of_what_is_known() {
        let table: &[(&[Step], &str)] = &[
            (&[], "not yet"),
            (&[Complete], "unknown"),
            (&[Directory("u", 3, "a")], "a u/3"),
            (&[Directory("u", 0, "")], "nowhere u/0"),
            (&[Directory("u", 3, "me")], "nowhere u/3"),
            (&[Directory("u", 3, "a"), Directory("u", 0, "")], "nowhere u/0"),
            // What this pod holds counts against the same or an older epoch, and against its own name.
            (&[Here("u", 3), Directory("u", 3, "a")], "here u/3"),
            (&[Here("u", 3), Directory("u", 2, "a")], "here u/3"),
            (&[Here("u", 3), Directory("u", 0, "")], "here u/3"),
            (&[Here("u", 3), Directory("u", 4, "a")], "a u/4"),
            (&[Here("u", 3), Directory("u", 4, "me")], "here u/3"),
            (&[Here("u", 3), Hold("u"), Directory("u", 3, "a")], "held u/3"),
            // A start holds the requests of a dead owner's server, not those of a later one's.
            (&[Directory("u", 3, "a"), Hold("u")], "held u/3"),
            (&[Directory("u", 3, "a"), Hold("u"), Directory("u", 5, "b")], "b u/5"),
            (&[Directory("u", 3, "a"), Hold("u"), Here("u", 5)], "here u/5"),
            (&[Directory("u", 3, "a"), Hold("u"), Release("u")], "a u/3"),
            // A handoff from here is known here first.
            (&[Here("u", 3), Hold("u"), There("u", 4, "b")], "b u/4"),
            (&[Here("u", 3), There("u", 4, "b"), Directory("u", 3, "me")], "b u/4"),
            (&[Here("u", 3), There("u", 4, "b"), Directory("u", 4, "b")], "b u/4"),
            (&[Here("u", 3), There("u", 4, "b"), Directory("u", 6, "c")], "c u/6"),
            (&[Here("u", 3), There("u", 4, "b"), There("u", 3, "a")], "b u/4"),
            (&[Here("u", 3), There("u", 3, "a")], "here u/3"),
            (&[Here("u", 3), There("u", 4, "me")], "here u/3"),
            // What was released is not looked for where it was before.
            (&[Directory("u", 2, "a"), Here("u", 3), Release("u")], "nowhere u/3"),
            (&[Here("u", 3), Release("u"), Directory("u", 5, "b")], "b u/5"),
            (&[Directory("u", 5, "b"), Here("u", 3), Release("u")], "b u/5"),
            (&[Directory("u", 5, "b"), Hold("v"), Release("u")], "b u/5"),
            // A name that was deleted and made again.
            (&[Here("u", 3), Directory("v", 1, "b")], "b v/1"),
            (&[Here("u", 3), Directory("v", 0, "")], "nowhere v/0"),
            (&[There("u", 9, "a"), Directory("v", 1, "b")], "b v/1"),
            (&[Directory("v", 1, "b"), There("u", 9, "a")], "b v/1"),
            (&[Here("u", 3), Directory("v", 1, "b"), Here("v", 2)], "here v/2"),
            // A whole directory, and names that are gone.
            (&[There("u", 4, "b"), Complete], "unknown"),
            (&[Directory("u", 4, "b"), Complete], "unknown"),
            (&[Here("u", 3), Complete], "here u/3"),
            (&[Here("u", 3), Hold("u"), Complete, Release("u")], "nowhere u/3"),
            (&[Here("u", 3), Directory("u", 3, "me"), Removed], "here u/3"),
            (&[Directory("u", 3, "a"), Complete, Removed], "unknown"),
        ];
        for (row, (steps, expected)) in table.iter().enumerate() {
            let routes = Routes::new(PodUid("me".into()));
            steps.iter().for_each(|step| take(&routes, step));
            assert_eq!(shown(&routes), *expected, "row {row}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_by_a_change_and_by_nothing_else() {
        let routes = Routes::new(PodUid("me".into()));
        routes.set_here(&room(), Epoch(1));
        routes.hold(&room());
        let seen = routes.find("lobby");
        let woken = async || timeout(SETTLE, routes.changed("lobby", &seen)).await.is_ok();
        assert!(!woken().await);
        routes.hold(&room());
        assert!(!woken().await);
        let (woken, ()) = tokio::join!(woken(), async { routes.set_here(&room(), Epoch(1)) });
        assert!(woken);
        // Frozen and thawed: the same again, but not what was seen.
        routes.hold(&room());
        routes.changed("lobby", &seen).await;
    }
}
