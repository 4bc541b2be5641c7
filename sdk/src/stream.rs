//! Answers that take their time: the handler says how they begin, and something that outlives it says the rest.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// What may wait for a slow client.
const QUEUE: usize = 16;

/// The rest of an answer, from [`Context::stream`](crate::Context::stream). The answer ends when this is dropped.
#[derive(Debug)]
pub struct Stream(mpsc::Sender<Bytes>);

impl Stream {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Sends more of the answer. Waits while the client has not taken what was sent before; `false`: it has gone.
    pub async fn send(&self, more: impl Into<Bytes> + Send) -> bool {
        self.0.send(more.into()).await.is_ok()
    }
}

/// The body of an answer: what the handler said, and then what is streamed.
pub(crate) struct Said {
    first: Bytes,
    rest: Option<mpsc::Receiver<Bytes>>,
}

impl Said {
    pub(crate) fn new(first: Bytes, rest: Option<mpsc::Receiver<Bytes>>) -> Self {
        Self { first, rest }
    }
}

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let more = ready!(rest.poll_recv(cx));
        Poll::Ready(more.map(|more| Ok(Frame::data(more))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.len() as u64;
        if self.rest.is_none() {
            return SizeHint::with_exact(first);
        }
        let mut hint = SizeHint::new();
        hint.set_lower(first);
        hint
    }
}
