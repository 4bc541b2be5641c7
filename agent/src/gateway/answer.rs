//! What goes back to a client.

use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};

use crate::{connections::Lent, gateway::bounds::Visit};

/// What the host or another gateway answers.
pub type Passed = Either<Lent, Incoming>;

/// An answer's body: the gateway's own sentence, or what it passes on.
pub type Payload = Either<Full<Bytes>, Passed>;

/// Counts something from its beginning to the end of its answer or socket.
pub struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    pub fn begin(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter.clone())
    }
}

/// What lasts as long as the answer to a request, or the socket that it became.
pub struct UnderWay {
    _at_gateway: InFlight,
    /// Within the gateway's bounds.
    pub visit: Option<Arc<Visit>>,
    /// While this pod's host has to do with it.
    pub at_host: Option<InFlight>,
}

impl UnderWay {
    /// Begins at the gateway.
    pub fn begin(counter: &Arc<AtomicUsize>) -> Self {
        Self { _at_gateway: InFlight::begin(counter), visit: None, at_host: None }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body that is sent.
pub struct Answer {
    payload: Payload,
    /// When it ends though there may be more to say.
    until: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _under_way: Option<UnderWay>,
}

impl Answer {
    /// Without what is under way, that goes on elsewhere: it is a socket's.
    pub fn new(payload: Payload, under_way: Option<UnderWay>) -> Self {
        Self { payload, until: None, _under_way: under_way }
    }

    /// Ends it there, after what was said before.
    pub fn until(self, end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { until: Some(Box::pin(end)), ..self }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.payload).poll_frame(cx);
        match self.until.as_mut() {
            Some(until) if frame.is_pending() => until.as_mut().poll(cx).map(|()| None),
            _ => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.payload.size_hint()
    }
}

/// Why the gateway answers itself.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The same request may succeed in a moment.
    pub fn later(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub fn into_response(self) -> Response<Payload> {
        let mut response = Response::new(Either::Left(Full::from(self.message + "\n")));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
