//! Requests whose bodies are long, or come slowly, or not whole, through gateways to hosts over real sockets.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use agent::gateway::Limits;
use bytes::Bytes;
use handoff::Epoch;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixListener},
    time::{sleep, timeout},
};

use support::{
    gated::{Gated, room},
    served::SOON,
};

/// Long enough for what was sent to be where it goes.
const SETTLE: Duration = Duration::from_millis(250);

/// What the gateways of these tests keep of a body.
const KEPT: usize = 1 << 20;

/// When a host says that it has not the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NotHere {
    Never,
    /// At once.
    Early,
    /// When it has read the body.
    Late,
}

/// Counts what comes.
struct Host {
    not_here: NotHere,
    bytes: AtomicUsize,
    broken: AtomicBool,
    whole: Mutex<Vec<usize>>,
}

impl Host {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if self.not_here == NotHere::Early {
            return not_here();
        }
        let mut body = request.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                self.broken.store(true, Ordering::Relaxed);
                break;
            };
            let bytes = frame.into_data().unwrap_or_default().len();
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            length += bytes;
        }
        if self.not_here == NotHere::Late {
            return not_here();
        }
        if !self.broken.load(Ordering::Relaxed) {
            self.whole.lock().unwrap().push(length);
        }
        Response::new(Full::from(length.to_string()))
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// The lengths of the bodies that came whole.
    fn whole(&self) -> Vec<usize> {
        self.whole.lock().unwrap().clone()
    }
}

fn not_here() -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    answer.headers_mut().insert("durable-not-here", "1".parse().unwrap());
    answer
}

struct Pod {
    gated: Gated,
    host: Arc<Host>,
}

impl Pod {
    async fn start(name: &'static str) -> Self {
        Self::with(name, NotHere::Never, Limits::default()).await
    }

    async fn with(name: &'static str, not_here: NotHere, limits: Limits) -> Self {
        let gated = Gated::start(name, Limits { body: KEPT, ..limits }).await;
        let (bytes, broken, whole) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::default());
        let host = Arc::new(Host { not_here, bytes, broken, whole });
        let (listener, serving) = (UnixListener::bind(gated.socket()).unwrap(), host.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let host = serving.clone();
                let service = service_fn(move |request| {
                    let host = host.clone();
                    async move { Ok::<_, Infallible>(host.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { gated, host }
    }

    /// It has the server.
    fn serves(&self, epoch: u64) {
        self.gated.routes.set_here(&room(), Epoch(epoch));
    }

    fn points_at(&self, other: &Self, epoch: u64) {
        self.gated.points_at(&other.gated, epoch);
    }

    /// A request whose body begins with so many bytes; `length`: what it says of it.
    async fn begin(&self, length: Option<usize>, bytes: usize) -> Client {
        let stream = TcpStream::connect(self.gated.address).await.unwrap();
        let framing = length.map_or("transfer-encoding: chunked".into(), |length| format!("content-length: {length}"));
        let mut client = Client { stream, in_chunks: length.is_none() };
        client.write(format!("POST /lobby/x HTTP/1.1\r\nhost: t\r\n{framing}\r\n\r\n").as_bytes()).await;
        client.send(bytes).await;
        client
    }
}

struct Client {
    stream: TcpStream,
    in_chunks: bool,
}

impl Client {
    async fn write(&mut self, bytes: &[u8]) {
        // A gateway that has answered takes no more.
        let _ = timeout(SOON, self.stream.write_all(bytes)).await.expect("it is not taken");
    }

    async fn send(&mut self, bytes: usize) {
        let body = vec![b'x'; bytes];
        if self.in_chunks {
            self.write(&[format!("{bytes:x}\r\n").as_bytes(), &body, b"\r\n"].concat()).await;
        } else {
            self.write(&body).await;
        }
    }

    /// The answer, once nothing more comes.
    async fn answer(mut self) -> String {
        if self.in_chunks {
            self.write(b"0\r\n\r\n").await;
        }
        self.hear().await
    }

    async fn hear(&mut self) -> String {
        let mut answer = vec![0; 4096];
        let length = timeout(SOON, self.stream.read(&mut answer)).await.unwrap().unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(SOON, waiting).await.is_ok(), "never: {what}");
}

fn served(answer: &str, length: usize) -> bool {
    answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n\r\n{length}"))
}

#[tokio::test]
async fn a_long_body_is_passed_on_while_it_comes() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.serves(3);
    a.points_at(&b, 3);
    for through in [&b, &a] {
        let before = b.host.bytes();
        let mut client = through.begin(Some(4 * KEPT), 2 * KEPT).await;
        until("half of it comes", || b.host.bytes() == before + 2 * KEPT).await;
        client.send(2 * KEPT).await;
        let answer = client.answer().await;
        assert!(served(&answer, 4 * KEPT), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_end_soon_is_passed_on_and_a_short_one_is_taken_whole_first() {
    let a = Pod::start("a").await;
    a.serves(3);
    let mut endless = a.begin(None, 10).await;
    until("its beginning comes", || a.host.bytes() == 10).await;
    let mut short = a.begin(Some(20), 19).await;
    sleep(SETTLE).await;
    assert_eq!(a.host.bytes(), 10, "a slow client would keep the host busy");
    short.send(1).await;
    assert!(served(&short.answer().await, 20));
    endless.send(5).await;
    assert!(served(&endless.answer().await, 15));
}

#[tokio::test]
async fn a_long_body_follows_its_server_as_long_as_all_that_was_sent_is_kept() {
    let (a, b) = (Pod::with("a", NotHere::Early, Limits::default()).await, Pod::start("b").await);
    a.serves(3);
    let mut client = a.begin(Some(2 * KEPT), KEPT / 2).await;
    sleep(SETTLE).await;
    b.serves(4);
    a.points_at(&b, 4);
    client.send(KEPT + KEPT / 2).await;
    let answer = client.answer().await;
    assert!(served(&answer, 2 * KEPT), "{answer}");
    assert_eq!((a.host.whole(), b.host.whole()), (vec![], vec![2 * KEPT]));
}

#[tokio::test]
async fn one_of_which_too_much_was_sent_goes_to_nobody_else() {
    let (a, b) = (Pod::with("a", NotHere::Late, Limits::default()).await, Pod::start("b").await);
    b.serves(4);
    a.serves(3);
    let client = a.begin(Some(2 * KEPT), 2 * KEPT).await;
    let answer = client.answer().await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    assert!(answer.contains("send it again"), "{answer}");
    assert_eq!(b.host.bytes(), 0);
}

#[tokio::test]
async fn a_server_that_goes_does_not_wait_for_a_body() {
    for (sent, follows) in [(KEPT / 2, true), (KEPT + 1, false)] {
        let (a, b) = (Pod::start("a").await, Pod::start("b").await);
        a.serves(3);
        let mut client = a.begin(Some(2 * KEPT), sent).await;
        until("its beginning comes", || a.host.bytes() == sent).await;
        a.gated.routes.hold(&room());
        sleep(SETTLE).await;
        assert!(!a.host.is_broken(), "it may be thawed");
        b.serves(4);
        a.points_at(&b, 4);
        until("it is broken off", || a.host.is_broken()).await;
        until("nothing is at the host", || a.gated.gateway.at_host() == 0).await;
        let answer = if follows {
            client.send(2 * KEPT - sent).await;
            client.answer().await
        } else {
            client.hear().await
        };
        assert_eq!(served(&answer, 2 * KEPT), follows, "{answer}");
        assert_eq!(answer.starts_with("HTTP/1.1 503"), !follows, "{answer}");
        assert!(a.host.whole().is_empty());
    }
}

#[tokio::test]
async fn what_a_client_breaks_off_is_broken_off_for_the_host() {
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    b.serves(3);
    a.points_at(&b, 3);
    for (through, length) in [(&b, None), (&b, Some(2 * KEPT)), (&a, None), (&a, Some(2 * KEPT))] {
        let before = b.host.bytes();
        let client = through.begin(length, KEPT / 2).await;
        until("its beginning comes", || b.host.bytes() == before + KEPT / 2).await;
        drop(client);
        until("it breaks off", || b.host.broken.swap(false, Ordering::Relaxed)).await;
        until("it is over", || through.gated.gateway.in_flight() == 0).await;
        assert!(b.host.whole().is_empty());
    }
}

#[tokio::test]
async fn a_host_has_time_as_long_as_the_body_comes() {
    let brief = Limits { answer: Duration::from_millis(300), ..Limits::default() };
    let a = Pod::with("a", NotHere::Never, brief).await;
    a.serves(3);
    let mut client = a.begin(Some(KEPT + 5), KEPT).await;
    for _ in 0..5 {
        sleep(Duration::from_millis(100)).await;
        client.send(1).await;
    }
    let answer = client.answer().await;
    assert!(served(&answer, KEPT + 5), "{answer}");
}

#[tokio::test]
async fn nothing_passes_that_is_longer_than_any_may_be() {
    let a = Pod::with("a", NotHere::Never, Limits { longest: 2 << 20, ..Limits::default() }).await;
    a.serves(3);
    for length in [Some((2 << 20) + 1), None] {
        let mut client = a.begin(length, if length.is_some() { 0 } else { (2 << 20) + 1 }).await;
        let answer = client.hear().await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    until("the host sees that it breaks off", || a.host.is_broken()).await;
    assert!(a.host.whole().is_empty());
}

#[tokio::test]
async fn what_passes_through_needs_no_room() {
    let small = Limits { buffered: 1000, parts: 1, ..Limits::default() };
    let a = Pod::with("a", NotHere::Never, small).await;
    a.serves(3);
    let clients = futures::future::join_all((0..3).map(|_| a.begin(Some(2 * KEPT), KEPT))).await;
    until("half of each comes", || a.host.bytes() == 3 * KEPT).await;
    // What they were kept in is free again.
    assert!(served(&a.begin(Some(1000), 1000).await.answer().await, 1000));
    for mut client in clients {
        client.send(KEPT).await;
        assert!(served(&client.answer().await, 2 * KEPT));
    }
}
