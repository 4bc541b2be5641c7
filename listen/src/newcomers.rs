//! Connections that have not shown their use yet.
//!
//! Opening a connection costs its maker nothing, so whoever opens thousands must not take the place of those who have
//! something to say. A newcomer has so much time, and when there are too many the oldest goes: whoever speaks at once is
//! served, whatever waits around it.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::Seldom;

/// The newcomers of one listener. Cheap to clone.
#[derive(Clone)]
pub struct Newcomers(Arc<Room>);

struct Room {
    what: &'static str,
    max: usize,
    patience: Duration,
    waiting: Mutex<Waiting>,
    pushed_out: Seldom,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    oldest_first: BTreeMap<u64, CancellationToken>,
}

impl Newcomers {
    /// At most `max` at once, and each for `patience`; `what` names the listener in logs.
    #[must_use]
    pub fn new(what: &'static str, max: usize, patience: Duration) -> Self {
        let (waiting, pushed_out) = (Mutex::default(), Seldom::new());
        Self(Arc::new(Room { what, max, patience, waiting, pushed_out }))
    }

    /// One more, for which the oldest leaves if there are too many.
    #[must_use]
    pub fn enter(&self, from: SocketAddr) -> Newcomer {
        let out = CancellationToken::new();
        let mut waiting = self.0.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.oldest_first.insert(number, out.clone());
        let oldest = if waiting.oldest_first.len() > self.0.max { waiting.oldest_first.pop_first() } else { None };
        drop(waiting);
        if let Some((_, oldest)) = oldest {
            oldest.cancel();
            if let Some(left_out) = self.0.pushed_out.say() {
                let (listener, at_once) = (self.0.what, self.0.max);
                tracing::warn!(listener, at_once, left_out, "too many connections say nothing: the oldest is closed");
            }
        }
        let until = Instant::now() + self.0.patience;
        Newcomer(Arc::new(Seat { room: self.0.clone(), number, from, out, until, settled: AtomicBool::new(false) }))
    }

    /// The listener's name.
    pub(crate) fn what(&self) -> &'static str {
        self.0.what
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().oldest_first.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection, until [`Newcomer::settle`]. Cheap to clone; gone with its last clone.
#[derive(Clone)]
pub struct Newcomer(Arc<Seat>);

struct Seat {
    room: Arc<Room>,
    number: u64,
    from: SocketAddr,
    out: CancellationToken,
    until: Instant,
    settled: AtomicBool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.lock().oldest_first.remove(&self.number);
    }
}

impl fmt::Debug for Newcomer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "newcomer from {}", self.0.from)
    }
}

impl Newcomer {
    /// The other end.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        self.0.from
    }

    /// It has shown its use: it may stay.
    pub fn settle(&self) {
        if !self.0.settled.swap(true, Ordering::Relaxed) {
            self.0.room.lock().oldest_first.remove(&self.0.number);
        }
    }

    fn is_settled(&self) -> bool {
        self.0.settled.load(Ordering::Relaxed)
    }

    /// Returns when it has to go; never, once settled.
    pub async fn out(&self) {
        tokio::select! {
            () = self.0.out.cancelled() => {}
            () = sleep_until(self.0.until) => {}
        }
        if self.is_settled() {
            std::future::pending::<()>().await;
        }
    }
}

/// A connection whose reading fails once its newcomer has to go, for servers that cannot be told otherwise.
pub struct Guarded<S> {
    stream: S,
    newcomer: Newcomer,
    out: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<S> Guarded<S> {
    /// This connection of this newcomer.
    #[must_use]
    pub fn new(stream: S, newcomer: Newcomer) -> Self {
        let waits = newcomer.clone();
        Self { stream, newcomer, out: Some(Box::pin(async move { waits.out().await })) }
    }

    /// Its newcomer.
    #[must_use]
    pub fn newcomer(&self) -> &Newcomer {
        &self.newcomer
    }

    /// The connection alone, of a newcomer that has shown its use.
    #[must_use]
    pub fn settled(self) -> S {
        self.newcomer.settle();
        self.stream
    }
}

impl<S> Connected for Guarded<S> {
    type ConnectInfo = Newcomer;

    fn connect_info(&self) -> Newcomer {
        self.newcomer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(out) = &mut this.out {
            if this.newcomer.is_settled() {
                this.out = None;
            } else if out.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::advance;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn room(max: usize) -> Newcomers {
        Newcomers::new("test", max, PATIENCE)
    }

    fn enter(room: &Newcomers) -> Newcomer {
        room.enter("127.0.0.1:1".parse().unwrap())
    }

    fn must_go(newcomer: &Newcomer) -> bool {
        newcomer.out().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_makes_room_for_the_newest() {
        let room = room(2);
        let [first, second] = [enter(&room), enter(&room)];
        assert!(!must_go(&first) && !must_go(&second));
        let third = enter(&room);
        assert!(must_go(&first) && !must_go(&second) && !must_go(&third));
        assert_eq!(room.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_shown_its_use_stays() {
        let room = room(1);
        let settled = enter(&room);
        settled.settle();
        let other = enter(&room);
        assert!(!must_go(&settled) && !must_go(&other));
        advance(PATIENCE * 2).await;
        assert!(!must_go(&settled) && must_go(&other));
    }

    #[tokio::test]
    async fn whoever_left_takes_no_place() {
        let room = room(2);
        let stays = enter(&room);
        for _ in 0..10 {
            drop(enter(&room));
        }
        assert!(!must_go(&stays));
        assert_eq!(room.len(), 1);
    }
}
