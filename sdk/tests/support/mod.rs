//! A host under test, and an agent to speak to it and to be spoken to.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex},
};

use bytes::Bytes;
use durable_sdk::{Context, DurableServer, EndReason, Host, LoadError, Message, Observer, ServerName, Socket, State};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{client::conn::http1 as client, server::conn::http1 as server, service::service_fn};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
};

/// Where handlers of `/slow` wait, by the server's uid.
static SLOW: LazyLock<Mutex<HashMap<String, Arc<Semaphore>>>> = LazyLock::new(Mutex::default);

/// States that were frozen.
pub static FROZEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

pub fn slow(uid: &str) -> Arc<Semaphore> {
    Arc::clone(SLOW.lock().unwrap().entry(uid.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(0))))
}

/// A server whose state is the text that was posted to it.
pub struct Notes(String);

impl DurableServer for Notes {
    const TYPE: &str = "notes";
    const STATE_VERSION: u32 = 2;

    fn loads() -> Vec<u32> {
        vec![1, 2]
    }

    fn load(_: &ServerName, config: Option<serde_json::Value>, state: Option<State>) -> Result<Self, LoadError> {
        if config.is_some_and(|config| config["bad"] == true) {
            return Err(LoadError::new("a bad config"));
        }
        let Some(state) = state else { return Ok(Self(String::new())) };
        let text = String::from_utf8(state.body.to_vec()).map_err(LoadError::new)?;
        // Version 1 was written in lower case.
        Ok(Self(if state.version == 1 { text.to_uppercase() } else { text }))
    }

    async fn handle(&mut self, request: Request<Bytes>, context: &mut Context) -> Response<Bytes> {
        let text = std::str::from_utf8(request.body()).unwrap();
        match request.uri().path() {
            "/peek" => context.unchanged(),
            "/touch" => {
                context.changed();
                self.0.push('!');
            }
            "/durable" => {
                context.answer_when_durable();
                self.0.push_str(text);
            }
            "/slow" => {
                slow(&context.server().uid).acquire().await.unwrap().forget();
                self.0.push_str(text);
            }
            "/panic" => {
                self.0.push('?');
                panic!("as asked");
            }
            "/forge" => {
                return Response::builder().header("durable-not-here", "1").body(Bytes::new()).unwrap();
            }
            "/socket" => {
                context.unchanged();
                if context.accept().is_none() {
                    return Response::builder().status(StatusCode::UPGRADE_REQUIRED).body(Bytes::new()).unwrap();
                }
            }
            "/stream" => {
                let (stream, turns) = (context.stream(), slow(&context.server().uid));
                tokio::spawn(async move {
                    for line in ["two ", "three"] {
                        turns.acquire().await.unwrap().forget();
                        stream.send(line).await;
                    }
                });
                return Response::new("one ".into());
            }
            "/lookup" => {
                let found = context.lookup("default", "other").await;
                return Response::new(format!("{found:?}").into());
            }
            _ => self.0.push_str(text),
        }
        Response::new(self.0.clone().into())
    }

    async fn message(&mut self, socket: &Socket, message: Message, context: &mut Context) -> Option<Message> {
        let Message::Text(text) = message else { return Some(message) };
        match text.as_str() {
            "slow" => slow(&context.server().uid).acquire().await.unwrap().forget(),
            "durable" => context.answer_when_durable(),
            "close" => assert!(socket.close()),
            _ => {}
        }
        self.0.push_str(&text);
        Some(Message::Text(self.0.clone()))
    }

    fn snapshot(&self) -> Bytes {
        self.0.clone().into()
    }

    fn freeze(&self) {
        FROZEN.lock().unwrap().push(self.0.clone());
    }
}

/// Writes down what it is told.
#[derive(Clone, Default)]
pub struct Terms(Arc<Mutex<Vec<String>>>);

impl Terms {
    pub fn told(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Terms {
    fn begin(&self, server: &ServerName, epoch: u64) {
        self.0.lock().unwrap().push(format!("begin {} {epoch}", server.uid));
    }

    fn end(&self, server: &ServerName, epoch: u64, reason: EndReason) {
        self.0.lock().unwrap().push(format!("end {} {epoch} {reason:?}", server.uid));
    }
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn mark(&self) -> Option<[String; 3]> {
        let read = |name| Some(self.headers.get(name)?.to_str().unwrap().to_owned());
        Some([read("durable-instance")?, read("durable-revision")?, read("durable-checksum")?])
    }
}

pub struct Harness {
    pub dir: TempDir,
    pub terms: Terms,
    end: oneshot::Sender<()>,
    host: JoinHandle<()>,
}

impl Harness {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let terms = Terms::default();
        let (end, ended) = oneshot::channel();
        let listening = Host::new().serve::<Notes>().observe(terms.clone()).listen(dir.path()).unwrap();
        let host = tokio::spawn(listening.serve_until(async {
            let _ = ended.await;
        }));
        Self { dir, terms, end, host }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("host.sock")
    }

    /// A user's request for the server.
    pub async fn user(&self, method: Method, path: &str, uid: &str, epoch: u64, body: &str) -> Answer {
        let epoch = epoch.to_string();
        let headers = [("durable-server", "default/a"), ("durable-uid", uid), ("durable-epoch", &epoch)];
        call(&self.socket(), method, path, &headers, body).await
    }

    /// A control call.
    pub async fn control(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        call(&self.socket(), method, &format!("/.durable/v1/{path}"), headers, body).await
    }

    /// A control call for a server, in the given order, without a state.
    pub async fn verb(&self, verb: &str, uid: &str, epoch: u64, attempt: u64) -> Answer {
        let (epoch, attempt) = (epoch.to_string(), attempt.to_string());
        let headers = [
            ("durable-server", "default/a"),
            ("durable-type", "notes"),
            ("durable-mode", "active"),
            ("durable-state", "none"),
            ("durable-epoch", &epoch),
            ("durable-attempt", &attempt),
        ];
        self.control(Method::POST, &format!("servers/{uid}/{verb}"), &headers, "").await
    }

    /// The host's list of servers.
    pub async fn list(&self) -> Vec<serde_json::Value> {
        serde_json::from_str(&self.control(Method::GET, "servers", &[], "").await.body).unwrap()
    }

    /// Ends the host and waits for that.
    pub async fn end(self) -> Terms {
        tokio::time::pause();
        self.end.send(()).unwrap();
        self.host.await.unwrap();
        assert!(!self.dir.path().join("host.sock").exists());
        self.terms
    }
}

pub async fn call(socket: &Path, method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "host");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

/// An agent that answers everything with this status and text, once `turn` has a permit for it; and what it was asked.
pub fn agent(dir: &Path, status: StatusCode, text: &'static str, turn: Arc<Semaphore>) -> Arc<Mutex<Vec<String>>> {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let listener = UnixListener::bind(dir.join("agent.sock")).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (log, turn) = (Arc::clone(&log), Arc::clone(&turn));
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
                let turn = Arc::clone(&turn);
                async move {
                    turn.acquire().await.unwrap().forget();
                    Response::builder().status(status).body(Full::new(Bytes::from_static(text.as_bytes())))
                }
            });
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    asked
}
