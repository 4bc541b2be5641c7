//! The host under test, and the servers that are made in it for that.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use handoff::{
    Epoch, Generation, Instant, ServerId, ServerUid,
    adopt::Told,
    source::{Final, Mark, State},
};
use http_body_util::{Either, Full};
use hyper::{Method, Request};
use tokio::time::timeout;

use super::{
    Change, Options,
    exchange::{Answered, Came, Exchange},
    report::Failure,
    rules::{self, Rule},
};
use crate::host::{HostClient, HostError, HostType, Listed, ListedPhase, Mode, Snapshot, StartCall, header};

/// Longest answer to a request that is read, bytes.
const MAX_ANSWER: usize = 16 << 20;

/// So many calls without an answer, and no more are made: the host hangs or has ended.
const MAX_SILENT: u32 = 3;

/// Calls before a failure that are shown.
const MAX_AFTER: usize = 8;

/// Higher than any epoch and attempt of the checks.
const LAST: u64 = 1000;

/// The host under test.
pub struct Subject {
    /// Its socket.
    pub socket: PathBuf,
    /// The type that is checked.
    pub kind: HostType,
    /// The largest state, bytes.
    pub max_state: u64,
    /// For one call.
    pub within: Duration,
    /// Whether it says that it ends by itself when its lease is over.
    pub knows_leases: bool,
    /// Whether it says that its servers go on when its agent is restarted.
    pub can_be_adopted: bool,
    client: HostClient,
    instance: u64,
    change: Change,
    config: Option<serde_json::Value>,
    /// Uids of servers made here begin with it.
    prefix: String,
    made: Mutex<Vec<ServerUid>>,
    numbers: AtomicU64,
    silent: AtomicU32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subject {
    /// Asks the host what it is.
    pub async fn open(options: &Options) -> Result<Self, Failure> {
        let client = HostClient::new(&options.socket, options.max_state_bytes);
        let within = Duration::from_secs(options.timeout_seconds);
        let came = client.describe(within).await;
        let failed = |came: String| Failure {
            after: String::new(),
            sent: "GET /.durable/v1/describe".into(),
            came,
            rule: rules::DESCRIBE,
        };
        let described = came.map_err(|error| match error {
            HostError::Unreachable(_) => Failure { rule: rules::LISTENS, ..failed(error.to_string()) },
            _ => failed(error.to_string()),
        })?;
        if described.instance >= 1 << 53 {
            return Err(failed(format!("instance {}", described.instance)));
        }
        let names: Vec<_> = described.types.iter().map(|kind| kind.name.as_str()).collect();
        let wanted = |kind: &&HostType| options.kind.as_ref().is_none_or(|name| *name == kind.name);
        let kind = described.types.iter().find(wanted).cloned().ok_or_else(|| {
            failed(format!("types {names:?}; to be checked: {}", options.kind.as_deref().unwrap_or("the first")))
        })?;
        if !kind.loads.contains(&kind.state_version) {
            return Err(failed(format!(
                "type {:?} writes version {} and loads {:?}",
                kind.name, kind.state_version, kind.loads
            )));
        }
        Ok(Self {
            knows_leases: described.knows_leases(),
            can_be_adopted: described.can_be_adopted(),
            socket: options.socket.clone(),
            max_state: options.max_state_bytes,
            within,
            client,
            instance: described.instance,
            kind,
            change: options.change.clone(),
            config: options.config.clone(),
            prefix: format!("check-{:08x}", rand::random::<u32>()),
            made: Mutex::default(),
            numbers: AtomicU64::new(0),
            silent: AtomicU32::new(0),
        })
    }

    /// Whether it has stopped answering.
    pub fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed) >= MAX_SILENT
    }

    /// A server that is not in the host yet.
    pub fn scratch(&self) -> Scratch<'_> {
        let uid = ServerUid(format!("{}-{}", self.prefix, self.number()));
        lock(&self.made).push(uid.clone());
        let id = ServerId { namespace: "check-host".into(), name: "scratch".into(), uid };
        Scratch { subject: self, id, seen: Mutex::default() }
    }

    /// A server that runs from no state, at epoch 1, attempt 1.
    pub async fn active(&self) -> Result<Scratch<'_>, Failure> {
        let scratch = self.scratch();
        scratch.start(1, 1, Mode::Active, None).await.done(rules::START)?;
        Ok(scratch)
    }

    /// A text that was not there before.
    pub fn token(&self) -> String {
        format!("{}-{:06}.", self.prefix, self.number())
    }

    /// Stops what was made since the last time. What does not stop is no news: a check has found it, or will.
    pub async fn clean_up(&self) {
        let made = std::mem::take(&mut *lock(&self.made));
        for uid in made {
            if !self.is_silent() {
                let stopped = self.client.stop(&uid, Epoch(LAST), LAST, self.within).await;
                self.tally(&stopped);
            }
        }
    }

    /// What the host has of these checks' servers.
    pub async fn listed(&self) -> Exchange<Vec<Listed>> {
        let came = self.client.list(self.within).await;
        self.tally(&came);
        let ours = |mut all: Vec<Listed>| {
            all.retain(|listed| listed.uid.0.starts_with(&self.prefix));
            all
        };
        Exchange { after: String::new(), sent: "GET /.durable/v1/servers".into(), came: came.map(ours), broken: None }
    }

    /// Tells it until when it may serve.
    pub async fn lease(&self, generation: Generation, deadline: Instant) -> Exchange<()> {
        self.lease_of(Told { generation, deadline }, 0).await
    }

    /// The same, as an agent whose calls begin with this attempt.
    pub async fn lease_of(&self, lease: Told, first: u64) -> Exchange<()> {
        let came = self.client.lease(lease, first, self.within).await;
        self.tally(&came);
        let (generation, ms) = (lease.generation.0, lease.deadline.0.as_millis());
        let sent = format!(
            "POST /.durable/v1/lease with Durable-Generation: {generation}, Durable-Deadline: {ms}, Durable-Attempt: {first}"
        );
        Exchange { after: String::new(), sent, came, broken: None }
    }

    /// What it was told last.
    pub async fn told(&self) -> Exchange<Told> {
        let came = self.client.told(self.within).await;
        self.tally(&came);
        Exchange { after: String::new(), sent: "GET /.durable/v1/lease".into(), came, broken: None }
    }

    /// A call as no agent makes it.
    pub async fn raw(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Exchange<Answered> {
        let named: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let sent = format!("{method} {path} with {}", named.join(", "));
        let mut request = Request::builder().method(method).uri(path).header("host", "durable");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let came = match request.body(Full::new(body)) {
            Ok(request) => self.send(request).await,
            Err(error) => Err(HostError::Invalid(format!("the call cannot be written as HTTP: {error}"))),
        };
        Exchange { after: String::new(), sent, came, broken: None }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answered, HostError> {
        let exchange = async {
            let answer = self.client.forward(request.map(Either::Left)).await?;
            let answered = Answered::read(answer, MAX_ANSWER).await;
            answered.map_err(|error| HostError::Invalid(format!("the answer's body: {error}")))
        };
        let came = timeout(self.within, exchange).await.unwrap_or(Err(HostError::Timeout(self.within)));
        self.tally(&came);
        came
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn tally<T>(&self, came: &Result<T, HostError>) {
        if matches!(came, Err(HostError::Timeout(_) | HostError::Unreachable(_))) {
            self.silent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Seen {
    said: Vec<String>,
    revision: u64,
    checksums: BTreeMap<u64, u32>,
}

/// A server of the checks.
pub struct Scratch<'a> {
    subject: &'a Subject,
    id: ServerId,
    seen: Mutex<Seen>,
}

impl Scratch<'_> {
    /// A text that was not there before.
    pub fn token(&self) -> String {
        self.subject.token()
    }

    /// Its uid.
    pub fn uid(&self) -> &ServerUid {
        &self.id.uid
    }

    /// Starts it.
    pub async fn start(&self, epoch: u64, attempt: u64, mode: Mode, state: Option<&State<Bytes>>) -> Exchange<Mark> {
        let kind = self.subject.kind.name.clone();
        self.start_as(&kind, epoch, attempt, mode, state).await
    }

    /// Starts it as this type.
    pub async fn start_as(
        &self,
        kind: &str,
        epoch: u64,
        attempt: u64,
        mode: Mode,
        state: Option<&State<Bytes>>,
    ) -> Exchange<Mark> {
        let call = StartCall {
            id: &self.id,
            kind,
            epoch: Epoch(epoch),
            attempt,
            mode,
            config: self.subject.config.as_ref(),
            state,
        };
        let came = self.subject.client.start(&call, self.subject.within).await;
        let mode = if mode == Mode::Active { "active" } else { "standby" };
        let state = state.map_or_else(
            || "Durable-State: none".into(),
            |state| {
                format!("Durable-State: full, Durable-State-Version: {}, {} bytes", state.version, state.body.len())
            },
        );
        self.exchange(&format!("start {mode}"), Some(attempt), epoch, &format!(", Durable-Mode: {mode}, {state}"), came)
    }

    /// Copies its state.
    pub async fn snapshot(&self, epoch: u64, since: Option<Mark>) -> Exchange<Snapshot> {
        let came = self.subject.client.snapshot(self.uid(), Epoch(epoch), since, self.subject.within).await;
        self.exchange("snapshot", None, epoch, &named(since), came)
    }

    /// Freezes it.
    pub async fn freeze(&self, epoch: u64, attempt: u64, since: Option<Mark>) -> Exchange<Final<Bytes>> {
        let came = self.subject.client.freeze(self.uid(), Epoch(epoch), attempt, since, self.subject.within).await;
        self.exchange("freeze", Some(attempt), epoch, &named(since), came)
    }

    /// Thaws it.
    pub async fn thaw(&self, epoch: u64, attempt: u64) -> Exchange<()> {
        let came = self.subject.client.thaw(self.uid(), Epoch(epoch), attempt, self.subject.within).await;
        self.exchange("thaw", Some(attempt), epoch, "", came)
    }

    /// Activates it.
    pub async fn activate(&self, epoch: u64, attempt: u64, last: &Final<Bytes>) -> Exchange<Mark> {
        let came = self.subject.client.activate(self.uid(), Epoch(epoch), attempt, last, self.subject.within).await;
        let more = match last {
            Final::State(state) => format!(", Durable-State: full, {} bytes", state.body.len()),
            Final::Unchanged(mark) => format!(", Durable-State: unchanged{}", named(Some(*mark))),
        };
        self.exchange("activate", Some(attempt), epoch, &more, came)
    }

    /// Stops it.
    pub async fn stop(&self, epoch: u64, attempt: u64) -> Exchange<()> {
        let came = self.subject.client.stop(self.uid(), Epoch(epoch), attempt, self.subject.within).await;
        self.exchange("stop", Some(attempt), epoch, "", came)
    }

    /// Sends it a request that changes its state.
    pub async fn request(&self, epoch: u64) -> Exchange<Answered> {
        self.request_with(epoch, &self.subject.token()).await
    }

    /// Sends it a request that changes its state, with this text in it.
    pub async fn request_with(&self, epoch: u64, text: &str) -> Exchange<Answered> {
        let came = match self.to_request(epoch, text) {
            Ok(request) => self.subject.send(request.map(Full::new)).await,
            Err(error) => Err(error),
        };
        self.answered(epoch, came)
    }

    /// A request that changes its state, with this text in it.
    pub fn to_request(&self, epoch: u64, text: &str) -> Result<Request<Bytes>, HostError> {
        let Change { method, path, body } = &self.subject.change;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "check-host")
            .header(header::SERVER, self.id.to_string())
            .header(header::UID, &self.uid().0)
            .header(header::EPOCH, epoch)
            .body(Bytes::from(body.replace("%n", text)));
        request.map_err(|error| HostError::Invalid(format!("the request cannot be written as HTTP: {error}")))
    }

    /// What came of such a request.
    pub fn answered(&self, epoch: u64, came: Result<Answered, HostError>) -> Exchange<Answered> {
        let exchange = self.note(&format!("request at epoch {epoch}"), came);
        let Change { method, path, .. } = &self.subject.change;
        let sent = format!("{method} {path} with Durable-Uid: {}, Durable-Epoch: {epoch}", self.uid());
        Exchange { sent, ..exchange }
    }

    /// Its state, now that it serves.
    pub async fn state(&self, epoch: u64) -> Result<State<Bytes>, Failure> {
        let version = self.subject.kind.state_version;
        self.snapshot(epoch, None).await.judge(rules::SNAPSHOT, |came| match came {
            Snapshot::State(state) if state.version == version => Ok(state),
            Snapshot::State(state) => {
                Err((rules::SNAPSHOT, format!("a state of version {}, where describe says {version}", state.version)))
            }
            Snapshot::Unchanged(_) => Err((rules::SINCE, "304, where the call named no state".into())),
        })
    }

    /// Its last state.
    pub async fn last(&self, epoch: u64, attempt: u64) -> Result<State<Bytes>, Failure> {
        self.freeze(epoch, attempt, None).await.judge(rules::FREEZE, |came| match came {
            Final::State(state) => Ok(state),
            Final::Unchanged(_) => Err((rules::SINCE, "204, where the call named no state".into())),
        })
    }

    /// It must be here in this phase at this epoch, or not at all.
    pub async fn is_listed(&self, as_: Option<(ListedPhase, u64)>) -> Result<(), Failure> {
        let listed = self.subject.listed().await;
        let after = self.said();
        Exchange { after, ..listed }.judge(rules::LIST, |all| {
            let lines: Vec<_> = all.iter().filter(|line| line.uid == *self.uid()).collect();
            let name = self.id.to_string();
            match (lines.as_slice(), as_) {
                ([], None) => Ok(()),
                ([], Some(_)) => Err((rules::LIST, format!("{} is not in the list", self.uid()))),
                ([line], Some((phase, epoch)))
                    if (line.phase, line.epoch.0, &line.kind, &line.server)
                        == (phase, epoch, &self.subject.kind.name, &name) =>
                {
                    Ok(())
                }
                (lines, _) => Err((rules::LIST, shown(lines))),
            }
        })
    }

    fn said(&self) -> String {
        let seen = lock(&self.seen);
        seen.said[seen.said.len().saturating_sub(MAX_AFTER)..].join(", ")
    }

    fn exchange<T: Came>(
        &self,
        verb: &str,
        attempt: Option<u64>,
        epoch: u64,
        more: &str,
        came: Result<T, HostError>,
    ) -> Exchange<T> {
        self.subject.tally(&came);
        let order = attempt.map_or_else(|| epoch.to_string(), |attempt| format!("{epoch}.{attempt}"));
        let exchange = self.note(&format!("{verb} {order}"), came);
        let word = verb.split(' ').next().unwrap_or(verb);
        let method = if word == "snapshot" { "GET" } else { "POST" };
        let attempt = attempt.map_or_else(String::new, |attempt| format!(", Durable-Attempt: {attempt}"));
        let uid = self.uid();
        let sent = format!("{method} /.durable/v1/servers/{uid}/{word} with Durable-Epoch: {epoch}{attempt}{more}");
        Exchange { sent, ..exchange }
    }

    fn note<T: Came>(&self, short: &str, came: Result<T, HostError>) -> Exchange<T> {
        let after = self.said();
        let mut seen = lock(&self.seen);
        let result = match &came {
            Ok(came) => came.shown().split([',', ' ']).next().unwrap_or_default().to_owned(),
            Err(HostError::Refused { status, .. }) => status.as_str().to_owned(),
            Err(_) => "no valid answer".into(),
        };
        seen.said.push(format!("{short} -> {result}"));
        let broken = came.as_ref().ok().and_then(Came::mark).and_then(|mark| seen.broken(mark, self.subject.instance));
        Exchange { after, sent: String::new(), came, broken }
    }
}

impl Seen {
    /// What this mark breaks next to those before it.
    fn broken(&mut self, mark: Mark, instance: u64) -> Option<(&'static Rule, String)> {
        if mark.instance != instance {
            let came = format!("Durable-Instance: {}, where describe says {instance}", mark.instance);
            return Some((rules::INSTANCE, came));
        }
        if mark.revision < self.revision {
            let came = format!("Durable-Revision: {}, which was {} before", mark.revision, self.revision);
            return Some((rules::REVISION, came));
        }
        self.revision = mark.revision;
        let known = *self.checksums.entry(mark.revision).or_insert(mark.checksum);
        (known != mark.checksum).then(|| {
            let Mark { revision, checksum, .. } = mark;
            (rules::ONE_MARK, format!("revision {revision} with checksum {checksum}, which came with {known} before"))
        })
    }
}

fn shown(lines: &[&Listed]) -> String {
    let shown = lines.iter().map(|Listed { uid, server, kind, epoch, phase, .. }| {
        format!("uid {uid}, server {server:?}, type {kind:?}, epoch {epoch}, phase {phase:?}")
    });
    shown.collect::<Vec<_>>().join("; ")
}

fn named(mark: Option<Mark>) -> String {
    mark.map_or_else(String::new, |mark| {
        format!(", Durable-Instance: {}, Durable-Revision: {}", mark.instance, mark.revision)
    })
}
