//! Requests whose bodies come slowly, in chunks, or not whole.

use std::{fmt::Display, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use futures::channel::mpsc;
use http_body_util::StreamBody;
use hyper::{
    Request,
    body::{Body, Frame},
    client::conn::http1,
    header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING},
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::UnixStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    exchange::{Answered, Came, Exchange},
    report::Verdict,
    rules,
    subject::{Scratch, Subject},
};
use crate::host::{HostError, Snapshot};

/// For what was sent to have come, or a wrong answer to it.
const SETTLE: Duration = Duration::from_millis(300);

/// Longest answer that is read, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// In chunks, broken off, and around a freeze.
pub async fn bodies(subject: &Subject) -> Verdict {
    let scratch = subject.active().await?;
    let slow = Slow::begin(subject, &scratch, true);
    sleep(SETTLE).await;
    if slow.is_answered() {
        return slow.finish().await.judge(rules::BODY, |answered| {
            Err((rules::BODY, format!("{}, before its body was whole", answered.shown())))
        });
    }
    slow.finish().await.served_as(rules::BODY)?;
    for in_chunks in [false, true] {
        let before = scratch.state(1).await?;
        Slow::begin(subject, &scratch, in_chunks).break_off().await;
        scratch.snapshot(1, Some(before.mark)).await.judge(rules::SNAPSHOT, |came| match came {
            Snapshot::Unchanged(_) => Ok(()),
            Snapshot::State(state) => {
                let revision = state.mark.revision;
                Err((rules::BODY, format!("200, revision {revision}, after a request that broke off")))
            }
        })?;
    }
    let slow = Slow::begin(subject, &scratch, true);
    sleep(SETTLE).await;
    scratch.freeze(1, 2, None).await.done(rules::SLOW_BODY)?;
    slow.finish().await.not_here()?;
    Ok(String::new())
}

/// A request of which half the body was sent.
struct Slow<'a> {
    scratch: &'a Scratch<'a>,
    rest: Bytes,
    body: mpsc::UnboundedSender<io::Result<Frame<Bytes>>>,
    answer: JoinHandle<Result<Answered, HostError>>,
    within: Duration,
}

impl<'a> Slow<'a> {
    fn begin(subject: &Subject, scratch: &'a Scratch<'a>, in_chunks: bool) -> Self {
        let mut request = scratch.to_request(1, &scratch.token());
        let mut rest = Bytes::new();
        let (body, parts) = mpsc::unbounded();
        if let Ok(request) = &mut request {
            let length = request.body().len();
            let (name, value) = if in_chunks {
                (TRANSFER_ENCODING, HeaderValue::from_static("chunked"))
            } else {
                (CONTENT_LENGTH, length.into())
            };
            request.headers_mut().insert(name, value);
            rest = request.body().clone();
            // Nobody has dropped the other end yet.
            let _ = body.unbounded_send(Ok(Frame::data(rest.split_to(length / 2))));
        }
        let asking = ask(subject.socket.clone(), request.map(|request| request.map(|_| StreamBody::new(parts))));
        Self { scratch, rest, body, answer: tokio::spawn(asking), within: subject.within }
    }

    fn is_answered(&self) -> bool {
        self.answer.is_finished()
    }

    async fn finish(self) -> Exchange<Answered> {
        let Self { scratch, rest, body, answer, within } = self;
        // A host that has gone away says so in the answer.
        let _ = body.unbounded_send(Ok(Frame::data(rest)));
        drop(body);
        // Not from the beginning on: else it would end before a freeze that waits for it.
        let came = timeout(within, answer).await.map_err(|_| HostError::Timeout(within));
        let came = came.and_then(|ended| ended.map_err(|error| HostError::Invalid(error.to_string())));
        scratch.answered(1, came.flatten())
    }

    async fn break_off(self) {
        sleep(SETTLE).await;
        let _ = self.body.unbounded_send(Err(io::ErrorKind::BrokenPipe.into()));
        // It has come to nothing, as it should.
        let _ = timeout(self.within, self.answer).await;
        sleep(SETTLE).await;
    }
}

/// On a connection of its own.
async fn ask<B>(socket: PathBuf, request: Result<Request<B>, HostError>) -> Result<Answered, HostError>
where
    B: Body<Data = Bytes, Error = io::Error> + Send + 'static,
{
    let lost = |error: &dyn Display| HostError::Unreachable(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(|error| lost(&error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request?).await.map_err(|error| lost(&error))?;
    let answered = Answered::read(answer, MAX_ANSWER).await;
    connection.abort();
    answered.map_err(|error| HostError::Invalid(format!("the answer's body: {error}")))
}
