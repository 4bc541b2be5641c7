//! A request's body. One that is short is taken whole first, so that a slow client keeps no host busy, and the request can
//! follow its server. A longer one is passed on as it comes, and what was passed on is kept as long as that is little: so
//! it too can follow, if the host that was asked first does not have the server any more.

use std::{
    error::Error,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    StatusCode,
    body::{Body, Frame, Incoming},
};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::{
    gate::Gate,
    gateway::{answer::Refusal, bounds::Buffer},
};

/// How long a client may take to send a body that is taken whole.
const SEND_BODY: Duration = Duration::from_secs(30);

/// For so long a body that does not say how long it is may turn out to be short.
const SHORT: Duration = Duration::from_millis(100);

/// A client that sends nothing more for so long is given up.
const STALLED: Duration = Duration::from_secs(30);

/// Kept bytes that are sent again at once.
const CHUNK: usize = 64 << 10;

/// How much of a body is taken, bytes.
#[derive(Clone, Copy)]
pub struct Most {
    /// Of one that is kept.
    pub kept: usize,
    /// Of any.
    pub passed: u64,
}

/// What is sent on, in one try.
pub type Outgoing = Either<Full<Bytes>, Streamed>;

/// A request's body, as it came.
pub enum Taken {
    /// All of it.
    Whole {
        /// What the client sent.
        bytes: Bytes,
        /// Given back with it.
        _room: Option<Buffer>,
    },
    /// The rest comes while it is passed on.
    Stream(Stream),
}

impl Taken {
    /// An empty one.
    pub fn none() -> Self {
        Self::Whole { bytes: Bytes::new(), _room: None }
    }

    /// Reads as much of it as must be here before the request is sent on.
    pub async fn read(body: Incoming, most: Most, room: Buffer) -> Result<Self, Refusal> {
        if body.is_end_stream() {
            return Ok(Self::none());
        }
        let length = body.size_hint().exact();
        if length.is_some_and(|length| length > most.passed) {
            return Err(too_large(most));
        }
        let mut reading = Reading { body, most, room, first: Bytes::new(), more: BytesMut::new() };
        if length.is_some_and(|length| length > most.kept as u64) {
            return Ok(Self::Stream(reading.stream()));
        }
        let within = if length.is_some() { SEND_BODY } else { SHORT };
        match timeout(within, reading.read()).await {
            Ok(Ok(true)) => Ok(reading.whole()),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) if length.is_some() => {
                let late = format!("the body did not come within {SEND_BODY:?}");
                Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, late))
            }
            Ok(Ok(false)) | Err(_) => Ok(Self::Stream(reading.stream())),
        }
    }

    /// For one more try, which ends those before it. What passes through a gate passes while that is open.
    pub fn send(&self, gate: Option<Gate>) -> Outgoing {
        match self {
            Self::Whole { bytes, .. } => Either::Left(Full::new(bytes.clone())),
            Self::Stream(stream) => Either::Right(stream.send(gate)),
        }
    }

    /// The stream, if it is one.
    pub fn stream(&self) -> Option<&Stream> {
        match self {
            Self::Whole { .. } => None,
            Self::Stream(stream) => Some(stream),
        }
    }
}

/// A body of which a part is here.
struct Reading {
    body: Incoming,
    most: Most,
    room: Buffer,
    /// Most bodies come in one piece, which is not copied.
    first: Bytes,
    /// All pieces, once there is a second.
    more: BytesMut,
}

impl Reading {
    /// Reads to the end, `true`, or to the first piece that is too much.
    async fn read(&mut self) -> Result<bool, Refusal> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|_| broke_off())?;
            let Ok(data) = frame.into_data() else { continue };
            self.room.take(data.len())?;
            if self.first.is_empty() {
                self.first = data;
            } else {
                if self.more.is_empty() {
                    self.more.extend_from_slice(&self.first);
                }
                self.more.extend_from_slice(&data);
            }
            if self.first.len().max(self.more.len()) > self.most.kept {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn whole(self) -> Taken {
        let bytes = if self.more.is_empty() { self.first } else { self.more.freeze() };
        Taken::Whole { bytes, _room: Some(self.room) }
    }

    fn stream(self) -> Stream {
        let kept = if self.more.is_empty() { BytesMut::from(self.first) } else { self.more };
        Stream(Arc::new(Mutex::new(Flow {
            body: self.body,
            most: self.most,
            length: kept.len() as u64,
            room: self.room,
            kept: Some(kept),
            came: Came::Part,
            sending: 0,
            reader: None,
            moved: Instant::now(),
        })))
    }
}

/// How much of a body has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    Part,
    All,
    /// It broke off.
    Broken,
    /// Its client sent nothing for too long.
    Stalled,
    /// It is longer than any may be.
    TooLarge,
}

/// A body of which more comes.
struct Flow {
    body: Incoming,
    most: Most,
    /// How much came so far.
    length: u64,
    room: Buffer,
    /// All that came so far; `None` once that was too much.
    kept: Option<BytesMut>,
    came: Came,
    /// The try that may read: the last one.
    sending: u64,
    reader: Option<Waker>,
    /// When more was taken of it last.
    moved: Instant,
}

impl Flow {
    /// Keeps a piece that is passed on, if it is not too much now.
    fn keep(&mut self, data: &[u8]) {
        let Some(kept) = &mut self.kept else { return };
        if kept.len() + data.len() <= self.most.kept && self.room.take(data.len()).is_ok() {
            kept.extend_from_slice(data);
        } else {
            self.kept = None;
            self.room.give_back();
        }
    }

    /// Nobody of those who were reading reads on.
    fn turn(&mut self) -> u64 {
        self.sending += 1;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        self.sending
    }
}

/// A body that is passed on as it comes. Cheap to clone.
#[derive(Clone)]
pub struct Stream(Arc<Mutex<Flow>>);

impl Stream {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, gate: Option<Gate>) -> Streamed {
        let sending = self.flow().turn();
        Streamed { stream: self.clone(), sending, at: 0, gate, stalled: Box::pin(sleep(STALLED)) }
    }

    /// Whether it can be sent once more.
    pub fn is_kept(&self) -> bool {
        self.flow().kept.is_some()
    }

    /// When more of it was passed on last.
    pub fn moved(&self) -> Instant {
        self.flow().moved
    }

    /// Ends what is being sent, unless all of it has been: then the host may be about to answer.
    pub fn cut_short(&self) -> bool {
        let mut flow = self.flow();
        let is_part = flow.came != Came::All;
        if is_part {
            flow.turn();
        }
        is_part
    }

    /// What is wrong with it.
    pub fn fault(&self) -> Option<Refusal> {
        let flow = self.flow();
        match flow.came {
            Came::Part | Came::All => None,
            Came::Broken => Some(broke_off()),
            Came::TooLarge => Some(too_large(flow.most)),
            Came::Stalled => {
                let stalled = format!("nothing more of the body came within {STALLED:?}");
                Some(Refusal::new(StatusCode::REQUEST_TIMEOUT, stalled))
            }
        }
    }
}

fn broke_off() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "the body broke off")
}

fn too_large(most: Most) -> Refusal {
    let message = format!("the body is larger than {} bytes", most.passed);
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// One try to send it. An error breaks the request off for whoever receives it.
pub struct Streamed {
    stream: Stream,
    sending: u64,
    /// How much of what is kept was sent.
    at: usize,
    gate: Option<Gate>,
    stalled: Pin<Box<Sleep>>,
}

type BoxError = Box<dyn Error + Send + Sync>;

/// Ends a try, saying why to the log.
fn cut<T>(why: &'static str) -> Poll<Option<Result<T, BoxError>>> {
    Poll::Ready(Some(Err(why.into())))
}

impl Streamed {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        let stream = self.stream.clone();
        let mut flow = stream.flow();
        if flow.sending != self.sending {
            return cut("it goes elsewhere");
        }
        if self.gate.as_ref().is_some_and(Gate::is_closed) {
            return cut("the lease is over");
        }
        if let Some(rest) =
            flow.kept.as_ref().map(|kept| &kept[self.at.min(kept.len())..]).filter(|rest| !rest.is_empty())
        {
            let chunk = Bytes::copy_from_slice(&rest[..rest.len().min(CHUNK)]);
            self.at += chunk.len();
            flow.moved = Instant::now();
            return Poll::Ready(Some(Ok(chunk)));
        }
        match flow.came {
            Came::Part => {}
            Came::All => return Poll::Ready(None),
            Came::Broken | Came::Stalled | Came::TooLarge => return cut("not all of it came"),
        }
        flow.reader = Some(cx.waker().clone());
        loop {
            let next = match Pin::new(&mut flow.body).poll_frame(cx) {
                Poll::Ready(next) => next,
                Poll::Pending => {
                    ready!(self.stalled.as_mut().poll(cx));
                    flow.came = Came::Stalled;
                    return cut("its client sends nothing more");
                }
            };
            flow.moved = Instant::now();
            self.stalled.as_mut().reset(flow.moved + STALLED);
            match next.transpose() {
                Ok(None) => {
                    flow.came = Came::All;
                    return Poll::Ready(None);
                }
                Ok(Some(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    flow.length += data.len() as u64;
                    if flow.length > flow.most.passed {
                        flow.came = Came::TooLarge;
                        return cut("it is too large");
                    }
                    flow.keep(&data);
                    self.at += data.len();
                    // Of a body whose length is known, the host has all with the last byte.
                    if flow.body.is_end_stream() {
                        flow.came = Came::All;
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Err(error) => {
                    flow.came = Came::Broken;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.get_mut().poll_data(cx).map_ok(Frame::data)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::Future};

    use hyper::{Request, Response, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::{
        gateway::{Limits, bounds::Bounds},
        metrics::Metrics,
    };

    const MOST: Most = Most { kept: 10, passed: 1000 };

    /// Has `check` look at a body, said to be of 100 bytes, of which these come at first.
    async fn with<F: Future<Output = ()>>(first: &str, check: impl Fn(Stream, DuplexStream) -> F) {
        let (mut client, server) = tokio::io::duplex(4096);
        let head = format!("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{first}");
        client.write_all(head.as_bytes()).await.unwrap();
        let client = Mutex::new(Some(client));
        let service = service_fn(async |request: Request<Incoming>| {
            let room = Bounds::new(&Limits::default(), Metrics::new().unwrap()).enter("lobby").unwrap().buffer();
            let Ok(Taken::Stream(stream)) = Taken::read(request.into_body(), MOST, room).await else { panic!() };
            let client = client.lock().unwrap().take().unwrap();
            check(stream, client).await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        // Its client has gone by then.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(server), service).await;
        assert!(client.lock().unwrap().is_none(), "nothing was looked at");
    }

    async fn next(sent: &mut Streamed) -> Option<Bytes> {
        sent.frame().await?.ok()?.into_data().ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_to_send_is_given_up() {
        with("abc", async |stream, _client| {
            let (began, mut sent) = (Instant::now(), stream.send(None));
            assert_eq!(next(&mut sent).await.unwrap(), "abc");
            assert!(stream.fault().is_none());
            assert!(sent.frame().await.unwrap().is_err());
            assert_eq!(began.elapsed(), STALLED);
            assert_eq!(stream.fault().unwrap().into_response().status(), StatusCode::REQUEST_TIMEOUT);
        })
        .await;
    }

    #[tokio::test]
    async fn another_try_sends_what_is_kept_again_and_ends_the_one_before() {
        with("abc", async |stream, mut client| {
            let mut first = stream.send(None);
            assert_eq!(next(&mut first).await.unwrap(), "abc");
            let waiting = first.frame();
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
            let second = &mut stream.send(None);
            assert!(waiting.await.unwrap().is_err());
            assert_eq!(next(second).await.unwrap(), "abc");
            client.write_all(b"defg").await.unwrap();
            assert_eq!(next(second).await.unwrap(), "defg");
            assert!(stream.is_kept());
            client.write_all(b"hijkl").await.unwrap();
            assert_eq!(next(second).await.unwrap(), "hijkl");
            assert!(!stream.is_kept(), "more than ten bytes were sent");
        })
        .await;
    }

    #[tokio::test]
    async fn what_was_sent_to_its_end_is_not_cut_short() {
        with("abc", async |stream, mut client| {
            let mut sent = stream.send(None);
            client.write_all(&[b'x'; 97]).await.unwrap();
            let mut length = 0;
            while length < 100 {
                length += next(&mut sent).await.unwrap().len();
            }
            assert!(!stream.cut_short(), "the host may have handled it");
            assert!(sent.frame().await.is_none());
        })
        .await;
    }

    #[tokio::test]
    async fn nothing_passes_a_gate_that_is_closed() {
        with("abc", async |stream, _client| {
            let gate = Gate::open(|| handoff::Instant(Duration::from_secs(9)));
            let mut sent = stream.send(Some(gate.clone()));
            assert_eq!(next(&mut sent).await.unwrap(), "abc");
            gate.close_at(None);
            assert!(sent.frame().await.unwrap().is_err());
        })
        .await;
    }
}
