//! Reports of which pod served which room when, to a ledger outside: `POST /terms` with a JSON array of terms.
//!
//! A report whose answer was lost is sent again, so the ledger may see a term twice.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use durable_sdk::{EndReason, Observer, ServerName};
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

/// Terms are reported together that lie no further apart.
const BATCH_TIME: Duration = Duration::from_millis(20);
const BATCH_TERMS: usize = 4096;
/// Waiting to be reported; more are dropped while the ledger is away.
const MAX_WAITING: usize = 65_536;
const POST_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(100);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Term {
    server: String,
    uid: String,
    epoch: u64,
    pod: String,
    event: &'static str,
    at_ns: u64,
}

enum Note {
    Term(Term),
    Flush(oneshot::Sender<()>),
}

#[derive(Clone)]
pub struct Ledger {
    pod: String,
    notes: mpsc::Sender<Note>,
}

impl Ledger {
    /// Starts to report to `url`, `http://host:port`.
    pub fn start(url: &str, pod: &str) -> anyhow::Result<Self> {
        let url: Uri = url.parse().context("LEDGER is not a URL")?;
        let authority = url.authority().context("LEDGER must be http://host:port")?;
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        let (notes, waiting) = mpsc::channel(MAX_WAITING);
        tokio::spawn(report(Remote { address, connection: None }, waiting));
        Ok(Self { pod: pod.to_owned(), notes })
    }

    /// Waits until everything that was observed is reported, a second at most.
    pub async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        let flushed = async {
            let _ = self.notes.send(Note::Flush(done)).await;
            is_done.await
        };
        if !matches!(timeout(FLUSH_TIMEOUT, flushed).await, Ok(Ok(()))) {
            tracing::error!("terms were not all reported");
        }
    }

    fn note(&self, server: &ServerName, epoch: u64, event: &'static str) {
        // The clock first: what it is compared with happens elsewhere.
        let at_ns = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let term = Term {
            server: server.to_string(),
            uid: server.uid.clone(),
            epoch,
            pod: self.pod.clone(),
            event,
            at_ns: u64::try_from(at_ns).unwrap_or(u64::MAX),
        };
        if self.notes.try_send(Note::Term(term)).is_err() {
            tracing::error!(%server, epoch, event, "a term is not reported: too many are waiting");
        }
    }
}

impl Observer for Ledger {
    fn begin(&self, server: &ServerName, epoch: u64) {
        self.note(server, epoch, "begin");
    }

    fn end(&self, server: &ServerName, epoch: u64, _: EndReason) {
        self.note(server, epoch, "end");
    }
}

async fn report(mut remote: Remote, mut waiting: mpsc::Receiver<Note>) {
    let mut notes = Vec::new();
    while let Some(first) = waiting.recv().await {
        sleep(BATCH_TIME).await;
        notes.push(first);
        while notes.len() < BATCH_TERMS
            && let Ok(note) = waiting.try_recv()
        {
            notes.push(note);
        }
        let (mut terms, mut flushes) = (Vec::new(), Vec::new());
        for note in notes.drain(..) {
            match note {
                Note::Term(term) => terms.push(term),
                Note::Flush(done) => flushes.push(done),
            }
        }
        if !terms.is_empty() {
            remote.deliver(&terms).await;
        }
        for done in flushes {
            let _ = done.send(());
        }
    }
}

struct Remote {
    address: String,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Remote {
    async fn deliver(&mut self, terms: &[Term]) {
        let Ok(body) = serde_json::to_vec(terms).map(Bytes::from) else { return };
        let mut warned = false;
        loop {
            let error = match timeout(POST_TIMEOUT, self.post(body.clone())).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => anyhow::anyhow!("no answer in {POST_TIMEOUT:?}"),
            };
            if !warned {
                tracing::warn!(ledger = self.address, error = format!("{error:#}"), "terms wait to be reported");
                warned = true;
            }
            self.connection = None;
            sleep(RETRY).await;
        }
    }

    async fn post(&mut self, body: Bytes) -> anyhow::Result<()> {
        let request = Request::post("/terms")
            .header(header::HOST, &self.address)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        let answer = connection.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        anyhow::ensure!(status.is_success(), "it answered {status}");
        // One that was answered in full can be used again.
        connection.ready().await?;
        self.connection = Some(connection);
        Ok(())
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
