//! The host as a whole: its socket, its connections, its paths and headers, its limits.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use bytes::Bytes;
use handoff::source::{Mark, State};
use http_body_util::Full;
use hyper::{Method, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use super::{
    exchange::{Answered, Exchange},
    report::{Failure, Verdict},
    rules,
    subject::Subject,
};
use crate::host::{HostError, Mode, Snapshot};

/// Longer than the second for which an agent uses an idle connection again.
const SILENCE: Duration = Duration::from_millis(1200);

/// A body that no host need be afraid of, bytes.
const SOME_BODY: usize = 64 << 10;

/// A body that makes a state large, if the host takes it, and how often.
const LARGE_BODY: usize = 1 << 20;
const LARGE_BODIES: usize = 8;

const DESCRIBE: &str = "/.durable/v1/describe";

/// The socket's mode.
pub fn socket(subject: &Subject) -> Verdict {
    let path = &subject.socket;
    let came = match std::fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o777 == 0o666 => return Ok(String::new()),
        Ok(metadata) => format!("mode {:04o}", metadata.permissions().mode() & 0o777),
        Err(error) => error.to_string(),
    };
    let sent = format!("a look at {}", path.display());
    Err(Failure { after: String::new(), sent, came, rule: rules::SOCKET })
}

/// What is under `/.durable/` and no call.
pub async fn other_paths(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let before = scratch.state(1).await?;
    let uid = scratch.uid().0.clone();
    let headers = [("durable-uid", uid.as_str()), ("durable-epoch", "1"), ("durable-attempt", "2")];
    let dance = format!("/.durable/v1/servers/{uid}/dance");
    for (method, path) in [
        (Method::GET, "/.durable/v1/nothing"),
        (Method::POST, "/.durable/v1/nothing"),
        (Method::GET, "/.durable/v2/describe"),
        (Method::POST, &dance),
    ] {
        subject
            .raw(method, path, &headers, Bytes::from_static(b"not for a server"))
            .await
            .status(404, rules::OTHER_PATHS)?;
    }
    scratch.snapshot(1, Some(before.mark)).await.judge(rules::SINCE, |came| match came {
        Snapshot::Unchanged(_) => Ok(()),
        Snapshot::State(_) => Err((rules::OTHER_PATHS, "a changed state after calls that do not exist".into())),
    })?;
    Ok(String::new())
}

/// What cannot be read is refused, and does nothing.
pub async fn malformed(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let freeze = format!("/.durable/v1/servers/{}/freeze", scratch.uid());
    for headers in [
        [("durable-attempt", "2")].as_slice(),
        &[("durable-epoch", "1")],
        &[("durable-epoch", "one"), ("durable-attempt", "2")],
        &[("durable-epoch", "1"), ("durable-attempt", "-2")],
    ] {
        subject.raw(Method::POST, &freeze, headers, Bytes::new()).await.status(400, rules::MALFORMED)?;
    }
    scratch.request(1).await.served()?;
    let start = format!("/.durable/v1/servers/{}/start", subject.scratch().uid());
    let kind = subject.kind.name.as_str();
    for (state, mode, config) in [("some", "active", "e30="), ("none", "asleep", "e30="), ("none", "active", "%")] {
        let headers = [
            ("durable-epoch", "1"),
            ("durable-attempt", "1"),
            ("durable-server", "check-host/scratch"),
            ("durable-type", kind),
            ("durable-state", state),
            ("durable-mode", mode),
            ("durable-config", config),
        ];
        subject.raw(Method::POST, &start, &headers, Bytes::new()).await.status(400, rules::MALFORMED)?;
    }
    Ok(String::new())
}

/// One connection for several calls.
pub async fn connections(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    scratch.last(1, 2).await?;
    let uid = scratch.uid().0.as_str();
    let mut line = Line::open(subject).await?;
    line.call(Method::POST, "/", uid, vec![b'x'; SOME_BODY]).await?.not_here()?;
    line.describes("a refused request with a body").await?;
    let nothing = "/.durable/v1/nothing";
    line.call(Method::POST, nothing, uid, vec![b'x'; SOME_BODY]).await?.status(404, rules::OTHER_PATHS)?;
    line.describes("a refused call with a body").await?;
    sleep(SILENCE).await;
    line.describes("1.2 s of silence").await?;
    Ok(String::new())
}

/// One connection.
struct Line<'a> {
    subject: &'a Subject,
    sender: http1::SendRequest<Full<Bytes>>,
}

impl<'a> Line<'a> {
    async fn open(subject: &'a Subject) -> Result<Self, Failure> {
        let failed = |came: String| Failure {
            after: String::new(),
            sent: format!("a connection to {}", subject.socket.display()),
            came,
            rule: rules::CONNECTION,
        };
        let stream = UnixStream::connect(&subject.socket).await.map_err(|error| failed(error.to_string()))?;
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| failed(error.to_string()))?;
        tokio::spawn(connection);
        Ok(Self { subject, sender })
    }

    async fn call(
        &mut self,
        method: Method,
        path: &str,
        uid: &str,
        body: Vec<u8>,
    ) -> Result<Exchange<Answered>, Failure> {
        let sent = format!("{method} {path} with Durable-Uid: {uid}, Durable-Epoch: 1, a body of {} bytes", body.len());
        let failed = |came: String| Failure { after: String::new(), sent: sent.clone(), came, rule: rules::CONNECTION };
        let request = Request::builder().method(method).uri(path).header("host", "durable");
        let request = request.header("durable-server", "check-host/scratch").header("durable-uid", uid);
        let request = request.header("durable-epoch", 1).body(Full::new(Bytes::from(body)));
        let request = request.map_err(|error| failed(error.to_string()))?;
        let exchange = async {
            self.sender.ready().await.map_err(|_| "the host has closed the connection".to_owned())?;
            let answer = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
            Answered::read(answer, SOME_BODY).await.map_err(|error| error.to_string())
        };
        let came = timeout(self.subject.within, exchange).await;
        let came = came.unwrap_or_else(|_| Err(HostError::Timeout(self.subject.within).to_string()));
        let came = Ok(came.map_err(failed)?);
        Ok(Exchange { after: String::new(), sent, came, broken: None })
    }

    async fn describes(&mut self, after: &str) -> Result<(), Failure> {
        let failed = |sent: String, came: String| Failure {
            after: format!("{after}, on the same connection"),
            sent,
            came,
            rule: rules::CONNECTION,
        };
        let sent = format!("GET {DESCRIBE}");
        let exchange = self.call(Method::GET, DESCRIBE, "-", Vec::new()).await;
        let answered = exchange.map_err(|failure| failed(sent.clone(), failure.came))?;
        match answered.came {
            Ok(answered) if answered.status.is_success() => Ok(()),
            Ok(answered) => Err(failed(sent, answered.status.to_string())),
            Err(error) => Err(failed(sent, error.to_string())),
        }
    }
}

/// A body of the largest size is read whole, whether it is a state or not.
pub async fn large_state_in(subject: &Subject) -> Verdict {
    let source = subject.active().await?;
    source.request(1).await.served()?;
    let mut body = source.state(1).await?.body.to_vec();
    // Space at its end makes no difference to JSON, and to most texts.
    body.resize(usize::try_from(subject.max_state).unwrap_or(usize::MAX).max(body.len()), b' ');
    let mark = Mark { instance: 0, revision: 0, checksum: crc32fast::hash(&body) };
    let bytes = body.len();
    let state = State { mark, version: subject.kind.state_version, body: body.into() };
    let scratch = subject.scratch();
    let started = scratch.start(1, 1, Mode::Active, Some(&state)).await;
    if let Err(HostError::Refused { status, .. }) = &started.came
        && status.as_u16() == 422
    {
        return Ok(format!("{bytes} bytes were read; they are no state to this host"));
    }
    started.done(rules::SIZE)?;
    scratch.last(1, 2).await?;
    Ok(format!("{bytes} bytes"))
}

/// A state of several mebibytes comes out whole.
pub async fn large_state_out(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let text = "x".repeat(LARGE_BODY);
    let requests = LARGE_BODIES.min(usize::try_from(subject.max_state).unwrap_or(usize::MAX) / LARGE_BODY / 2);
    let mut taken = 0;
    while taken < requests {
        let answered = scratch.request_with(1, &text).await.done(rules::ACTIVE)?;
        if !answered.status.is_success() {
            break;
        }
        taken += 1;
    }
    let state = scratch.state(1).await?;
    let last = scratch.last(1, 2).await?;
    if last.body.len() < taken.max(1) * LARGE_BODY {
        return Ok(format!("{} bytes; its requests do not make it larger", last.body.len()));
    }
    if last.body != state.body {
        let came = format!("{} bytes that are not those of the snapshot before it", last.body.len());
        return scratch.freeze(1, 3, None).await.judge(rules::FREEZE, |_| Err((rules::FREEZE, came)));
    }
    Ok(format!("{} bytes", last.body.len()))
}
