//! Clients that stay: `WebSockets` that say something every second, and answers that are streamed for ten. All that may
//! happen to a socket is a Close that asks to connect again, and to a stream nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use http::Request;
use http_body_util::Full;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::figures::Spread;
use crate::http::Pool;
use crate::load::come_first;
use crate::report::{self, Limit};
use crate::rooms::room;

const SOCKETS: usize = 200;
/// They share so many rooms.
const ROOMS: usize = 40;
const SAY_EVERY: Duration = Duration::from_secs(1);
const STREAMS: usize = 20;
const STREAM_SECONDS: u32 = 10;
const LINES_A_SECOND: u32 = 10;
/// A client waits no longer than this for an answer, or for more of one.
const PATIENCE: Duration = Duration::from_secs(5);
/// After something that should not have been.
const AGAIN: Duration = Duration::from_millis(100);
/// Sooner than this nobody who was asked to connect again notices (milliseconds).
const RECONNECT_P99: f64 = 100.0;

/// What came of them.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Open at once.
    pub sockets: usize,
    /// Messages that were answered.
    pub socket_messages: usize,
    /// Closed with the code that asks to connect again.
    pub sockets_closed: usize,
    /// Ended in any other way, or not opened, or not answered.
    pub sockets_broken: usize,
    /// Answers that do not count all that was answered before.
    pub socket_messages_lost: usize,
    /// From that Close to the first answer on the next socket.
    pub reconnect_ms: Spread,
    /// Streamed answers that were read to their end.
    pub streams: usize,
    /// Those that broke off, or came wrong.
    pub streams_broken: usize,
}

impl Figures {
    /// What must hold.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^53")]
    pub fn limits(&self, way: &str) -> Vec<Limit> {
        let none = |what: &str, count: usize| Limit::count(&format!("{way}: {what}"), count as f64, 0.0);
        vec![
            none("sockets ended otherwise than to connect again", self.sockets_broken),
            none("answered messages of sockets lost", self.socket_messages_lost),
            none("streamed answers broken", self.streams_broken),
            Limit::time(&format!("{way}: connected again, p99 (ms)"), self.reconnect_ms.p99, RECONNECT_P99),
        ]
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sockets, socket_messages, sockets_closed, sockets_broken, .. } = self;
        let Self { reconnect_ms, streams, streams_broken, socket_messages_lost, .. } = self;
        let time = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1}"));
        let (p50, p99, max) = (time(reconnect_ms.p50), time(reconnect_ms.p99), time(reconnect_ms.max));
        write!(
            f,
            "{sockets} sockets: {socket_messages} messages answered, {socket_messages_lost} of them lost; {sockets_closed} times \
             asked to connect again, done after p50/p99/max {p50} / {p99} / {max} ms, {sockets_broken} broken; \
             {streams} streams, {streams_broken} broken"
        )
    }
}

/// Clients that are there.
pub struct Clients {
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<()>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    figures: Figures,
    reconnects: Vec<u64>,
    failures: BTreeMap<String, usize>,
}

impl Clients {
    /// Opens all the sockets, and begins the streams.
    pub fn start(address: SocketAddr) -> Result<Self> {
        let (stop, mut stopped) = watch::channel(false);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let client = Client { address, seen: Arc::clone(&seen) };
        let thread = std::thread::Builder::new().name("sockets".into()).spawn(move || {
            come_first();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut clients = JoinSet::new();
                for number in 0..SOCKETS {
                    clients.spawn(client.clone().talk(number));
                }
                for number in 0..STREAMS {
                    clients.spawn(client.clone().listen(number));
                }
                // They go on until they are told to stop.
                let _ = stopped.wait_for(|stop| *stop).await;
                clients.shutdown().await;
            });
            Ok(())
        })?;
        Ok(Self { stop, thread, seen })
    }

    /// Ends them all.
    pub async fn stop(self) -> Result<Figures> {
        self.stop.send_replace(true);
        tokio::task::spawn_blocking(|| self.thread.join())
            .await?
            .map_err(|_| anyhow!("the sockets' thread panicked"))??;
        let mut seen = lock(&self.seen);
        report::failures(&seen.failures);
        let reconnects = std::mem::take(&mut seen.reconnects);
        Ok(Figures { sockets: SOCKETS, reconnect_ms: Spread::of(reconnects), ..std::mem::take(&mut seen.figures) })
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
struct Client {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// How a message was answered.
enum Answer {
    Count(u64),
    ConnectAgain,
}

impl Client {
    fn failed(&self, what: &str, error: &anyhow::Error, count: fn(&mut Figures) -> &mut usize) {
        let mut seen = lock(&self.seen);
        *seen.failures.entry(format!("{what}: {error:#}")).or_default() += 1;
        *count(&mut seen.figures) += 1;
    }

    /// One client with a socket, which it opens again as often as it has to.
    async fn talk(self, number: usize) {
        // Not all in the same millisecond of each second.
        sleep(SAY_EVERY * u32::try_from(number % 100).unwrap_or_default() / 100).await;
        let mut said = 0;
        let mut last = 0;
        let mut closed = None;
        loop {
            let ended = self.talk_once(number, &mut said, &mut last, closed.take()).await;
            match ended {
                Ok(at) => closed = Some(at),
                Err(error) => {
                    self.failed("a socket", &error, |figures| &mut figures.sockets_broken);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// Until it is asked to connect again; since when.
    async fn talk_once(
        &self,
        number: usize,
        said: &mut u64,
        last: &mut u64,
        mut closed: Option<Instant>,
    ) -> Result<Instant> {
        let opening = async {
            let stream = TcpStream::connect(self.address).await.context("connecting")?;
            stream.set_nodelay(true)?;
            let url = format!("ws://{}/{}/socket", self.address, room(number % ROOMS));
            anyhow::Ok(client_async(url, stream).await.context("opening")?.0)
        };
        let mut socket = timeout(PATIENCE, opening).await.context("not opened in time")??;
        loop {
            // Said again with its number if it was not answered: a room takes it once.
            let post = json!({ "id": format!("socket-{number}-{said}"), "from": "sockets", "text": said.to_string() });
            let answer = timeout(PATIENCE, ask(&mut socket, post.to_string())).await.context("no answer in time")??;
            let Answer::Count(count) = answer else { break };
            *said += 1;
            self.answered(count <= *last, closed.take());
            *last = count;
            let silence = timeout(SAY_EVERY, next(&mut socket)).await;
            match silence {
                Err(_) => {}
                Ok(Ok(Answer::ConnectAgain)) => break,
                Ok(Ok(Answer::Count(_))) => bail!("an answer that was not asked for"),
                Ok(Err(error)) => return Err(error),
            }
        }
        lock(&self.seen).figures.sockets_closed += 1;
        // The Close is answered, and the other side ends the connection.
        tokio::spawn(timeout(PATIENCE, async move { while socket.next().await.is_some() {} }));
        Ok(Instant::now())
    }

    /// A message was answered, on a socket that was opened because another had been closed then.
    fn answered(&self, lost: bool, closed: Option<Instant>) {
        let mut seen = lock(&self.seen);
        seen.figures.socket_messages += 1;
        seen.figures.socket_messages_lost += usize::from(lost);
        seen.reconnects.extend(closed.map(|at| u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX)));
    }

    /// One client that reads one streamed answer after the other.
    async fn listen(self, number: usize) {
        // Not all at once: at any time some have just begun, and some are about to end.
        sleep(Duration::from_secs(u64::from(STREAM_SECONDS)) * u32::try_from(number).unwrap_or_default() / 20).await;
        loop {
            match self.stream(number).await {
                Ok(()) => lock(&self.seen).figures.streams += 1,
                Err(error) => {
                    self.failed("a streamed answer", &error, |figures| &mut figures.streams_broken);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn stream(&self, number: usize) -> Result<()> {
        let path = format!("/{}/slow?seconds={STREAM_SECONDS}", room(number));
        let request = Request::get(path).header("Host", self.address.to_string()).body(Full::default())?;
        let within = Duration::from_secs(STREAM_SECONDS.into()) + PATIENCE;
        let answer = timeout(within, Pool::new(self.address).send(request)).await.context("no end in time")??;
        ensure!(answer.status() == 200, "{}", answer.status());
        let text = std::str::from_utf8(answer.body())?;
        check(text, STREAM_SECONDS * LINES_A_SECOND)
    }
}

async fn ask(socket: &mut WebSocketStream<TcpStream>, post: String) -> Result<Answer> {
    // A Close may have come already: then nothing may be said any more, and it is read next.
    let _ = socket.send(Message::text(post)).await;
    next(socket).await
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Result<Answer> {
    #[derive(Deserialize)]
    struct Counted {
        count: u64,
    }
    match socket.next().await.context("the connection ended without a Close")?? {
        Message::Text(text) => Ok(Answer::Count(serde_json::from_str::<Counted>(&text).context("no count")?.count)),
        Message::Close(Some(frame)) if frame.code == CloseCode::Restart => Ok(Answer::ConnectAgain),
        Message::Close(frame) => bail!("closed with {:?}", frame.map(|frame| u16::from(frame.code))),
        other => bail!("an unexpected message: {other:?}"),
    }
}

/// All the lines, in their order, each with what was true when the answer began.
fn check(text: &str, lines: u32) -> Result<()> {
    let said = text.lines().next().and_then(|line| line.split_once(' ')).context("an empty answer")?.1;
    let whole: Vec<String> = (1..=lines).map(|number| format!("{number} {said}\n")).collect();
    ensure!(text == whole.concat(), "{} lines, or not the right ones", text.lines().count());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_answer_is_whole_or_it_is_broken() {
        assert!(check("1 a\n2 a\n3 a\n", 3).is_ok());
        for broken in ["", "1 a\n2 a\n", "1 a\n2 b\n3 a\n", "1 a\n3 a\n2 a\n", "1 a\n2 a\n3 a"] {
            assert!(check(broken, 3).is_err(), "{broken}");
        }
    }
}
