//! HTTP answers, the refusals among them.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use serde::Serialize;

use crate::{headers, server::LoadError};

/// A call that was not done, and why: a 4xx with a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {sentence}")]
pub(crate) struct Refusal {
    pub status: StatusCode,
    pub sentence: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into() }
    }

    pub(crate) fn bad_request(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    pub(crate) fn no_such_server(uid: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("this host does not have a server with uid {uid}"))
    }

    pub(crate) fn conflict(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, sentence)
    }
}

impl From<LoadError> for Refusal {
    fn from(error: LoadError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl From<Refusal> for Response<Bytes> {
    fn from(refusal: Refusal) -> Self {
        text(refusal.status, refusal.sentence)
    }
}

pub(crate) fn text(status: StatusCode, sentence: impl Into<Bytes>) -> Response<Bytes> {
    let mut answer = Response::new(sentence.into());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

pub(crate) fn json(value: &impl Serialize) -> Response<Bytes> {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let mut answer = Response::new(body.into());
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            answer
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The request was not given to the server: the agent may send it elsewhere.
pub(crate) fn not_here() -> Response<Bytes> {
    let mut answer = text(StatusCode::MISDIRECTED_REQUEST, "this server is not served here at this epoch");
    answer.headers_mut().insert(headers::NOT_HERE, HeaderValue::from_static("1"));
    answer
}
