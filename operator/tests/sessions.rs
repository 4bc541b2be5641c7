//! Who gets no session, what is written of it, and that nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use handoff::PodUid;
use operator::{
    leader::Leadership,
    model::{Event, Identity},
    session::{self, AuthError, Authenticator, Sessions},
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};
use tracing::subscriber::DefaultGuard;
use wire::session::{FromAgent, Hello, from_agent, operator_client::OperatorClient};

const SOON: Duration = Duration::from_secs(5);
const CROWD: usize = 10_000;
/// What a token may look like; none of it may be written anywhere.
const SECRET: &str = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl";

/// The API server's word on two tokens.
struct Tokens;

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, token: &str) -> Result<Identity, AuthError> {
        match token {
            "good" => Ok(Identity { namespace: "ns".into(), pod: "rooms-1".into(), uid: PodUid("u1".into()) }),
            _ => Err(AuthError::Refused("[invalid bearer token, service account token has expired]".into())),
        }
    }
}

struct Running {
    address: SocketAddr,
    opened: mpsc::Receiver<Event>,
    _leads: watch::Sender<Leadership>,
}

impl Running {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (events, opened) = mpsc::channel(64);
        let leads = watch::Sender::new(Leadership::Ours);
        let sessions = Sessions::new(Arc::new(Tokens), events, leads.subscribe());
        let connections = listen::accept::plain(listener, session::newcomers());
        tokio::spawn(session::serve(sessions, connections, CancellationToken::new()));
        Self { address, opened, _leads: leads }
    }

    /// A session with this token. It lives as long as what is returned.
    async fn connect(&self, token: &str) -> Result<mpsc::Sender<FromAgent>, Status> {
        let mut client = OperatorClient::connect(format!("http://{}", self.address)).await.unwrap();
        let (say, said) = mpsc::channel(4);
        let hello = from_agent::Body::Hello(Hello { protocol: wire::PROTOCOL, ..Hello::default() });
        say.send(FromAgent { body: Some(hello) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(said));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        client.session(request).await?;
        Ok(say)
    }
}

/// What is logged on this thread, from `info` on, while this lives.
struct Logs(Arc<Mutex<Vec<u8>>>, #[expect(dead_code, reason = "it gathers until it is dropped")] DefaultGuard);

impl Logs {
    fn gather() -> Self {
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let into = written.clone();
        let logs = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO);
        let logs = logs.with_writer(move || Shared(into.clone())).finish();
        Self(written, tracing::subscriber::set_default(logs))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

struct Shared(Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn an_expired_token_is_refused_and_that_is_written_once_without_it() {
    let operator = Running::start().await;
    let logs = Logs::gather();
    let refused = operator.connect(SECRET).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("expired") && !refused.message().contains(SECRET), "{refused}");
    let text = logs.text();
    assert_eq!(text.matches("session refused").count(), 1, "{text}");
    assert!(text.contains("127.0.0.1:") && text.contains("expired"), "{text}");
    assert!(SECRET.split('.').all(|part| !text.contains(part)), "{text}");
}

#[tokio::test]
async fn ten_thousand_connections_without_a_token_keep_no_agent_out() {
    let mut operator = Running::start().await;
    let mut crowd = Vec::with_capacity(CROWD);
    for n in 0..CROWD {
        let mut stream = TcpStream::connect(operator.address).await.unwrap();
        // The server may have closed it already.
        let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        crowd.push(stream);
        if n % 2_500 == 0 {
            let session = timeout(SOON, operator.connect("good")).await.expect("not let in").unwrap();
            assert!(matches!(timeout(SOON, operator.opened.recv()).await, Ok(Some(Event::Open(_)))));
            drop(session);
            // Its end.
            assert!(timeout(SOON, operator.opened.recv()).await.is_ok());
        }
    }
    // Of the others only so many are kept.
    let waits = |stream: &&TcpStream| {
        let mut buffer = [0; 1024];
        loop {
            match stream.try_read(&mut buffer) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Ok(0) | Err(_) => return false,
            }
        }
    };
    let mut left = CROWD;
    for _ in 0..100 {
        left = crowd.iter().filter(waits).count();
        if left <= 8_192 {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("{left} connections are still there");
}
