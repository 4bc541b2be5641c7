//! One call and what came of it.

use std::error::Error;

use bytes::Bytes;
use handoff::{
    adopt::Told,
    source::{Final, Mark},
};
use http_body_util::{BodyExt, Limited};
use hyper::{Response, StatusCode, body::Body};

use super::{
    report::Failure,
    rules::{self, Rule},
};
use crate::host::{HostError, Listed, Snapshot, header};

/// Longest part of an answer that is shown, characters.
const MAX_SHOWN: usize = 120;

/// What an answer may be.
pub trait Came {
    /// For a reader.
    fn shown(&self) -> String;

    /// The mark in it.
    fn mark(&self) -> Option<Mark> {
        None
    }
}

impl Came for () {
    fn shown(&self) -> String {
        "200".into()
    }
}

impl Came for Mark {
    fn shown(&self) -> String {
        format!("200, revision {} checksum {}", self.revision, self.checksum)
    }

    fn mark(&self) -> Option<Mark> {
        Some(*self)
    }
}

impl Came for Snapshot {
    fn shown(&self) -> String {
        match self {
            Self::Unchanged(mark) => format!("304, revision {}", mark.revision),
            Self::State(state) => {
                format!("200, a state of {} bytes, revision {}", state.body.len(), state.mark.revision)
            }
        }
    }

    fn mark(&self) -> Option<Mark> {
        let (Self::Unchanged(mark) | Self::State(handoff::source::State { mark, .. })) = self;
        Some(*mark)
    }
}

impl Came for Final<Bytes> {
    fn shown(&self) -> String {
        match self {
            Self::Unchanged(mark) => format!("204, revision {}", mark.revision),
            Self::State(state) => {
                format!("200, a state of {} bytes, revision {}", state.body.len(), state.mark.revision)
            }
        }
    }

    fn mark(&self) -> Option<Mark> {
        let (Self::Unchanged(mark) | Self::State(handoff::source::State { mark, .. })) = self;
        Some(*mark)
    }
}

impl Came for Told {
    fn shown(&self) -> String {
        format!("200, generation {} deadline {}", self.generation.0, self.deadline.0.as_millis())
    }
}

impl Came for Vec<Listed> {
    fn shown(&self) -> String {
        format!("200, a list of {}", self.len())
    }
}

/// An answer to a request, or to a call that no agent makes.
#[derive(Debug)]
pub struct Answered {
    /// Its status.
    pub status: StatusCode,
    /// `Durable-Not-Here`, if it has one.
    pub not_here: Option<String>,
    /// Its body.
    pub text: String,
}

impl Answered {
    /// Reads it, if its body has no more than so many bytes.
    pub async fn read<B>(answer: Response<B>, most: usize) -> Result<Self, Box<dyn Error + Send + Sync>>
    where
        B: Body<Error: Into<Box<dyn Error + Send + Sync>>>,
    {
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, most).collect().await?.to_bytes();
        let not_here = head.headers.get(header::NOT_HERE);
        Ok(Self {
            status: head.status,
            not_here: not_here.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
            text: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// Whether it says that the server was not given the request.
    pub fn is_not_here(&self) -> bool {
        self.status == StatusCode::MISDIRECTED_REQUEST && self.not_here.as_deref() == Some("1")
    }
}

impl Came for Answered {
    fn shown(&self) -> String {
        let header =
            self.not_here.as_ref().map_or_else(String::new, |value| format!(" with Durable-Not-Here: {value}"));
        let text: String = self.text.trim().chars().take(MAX_SHOWN).collect();
        format!("{}{header} {text:?}", self.status.as_u16())
    }
}

/// What is to be done and is not late must not be taken for that.
fn ordered(error: &HostError) -> Option<&'static Rule> {
    matches!(error, HostError::Refused { status, .. } if *status == StatusCode::PRECONDITION_FAILED)
        .then_some(rules::LATE)
}

/// One call and what came of it.
pub struct Exchange<T> {
    /// The calls before it.
    pub after: String,
    /// The call.
    pub sent: String,
    /// The answer.
    pub came: Result<T, HostError>,
    /// What the answer's mark breaks.
    pub broken: Option<(&'static Rule, String)>,
}

impl<T: Came> Exchange<T> {
    /// Fails under `rule` without the answer that was asked for, and as `judge` says with it.
    pub fn judge<U>(
        self,
        rule: &'static Rule,
        judge: impl FnOnce(T) -> Result<U, (&'static Rule, String)>,
    ) -> Result<U, Failure> {
        let judged = match (self.broken, self.came) {
            (Some(broken), _) => Err(broken),
            (None, Ok(came)) => judge(came),
            (None, Err(error)) => Err((ordered(&error).unwrap_or(rule), error.to_string())),
        };
        judged.map_err(|(rule, came)| Failure { after: self.after, sent: self.sent, came, rule })
    }

    /// It must be done.
    pub fn done(self, rule: &'static Rule) -> Result<T, Failure> {
        self.judge(rule, Ok)
    }

    /// It must be refused like this.
    pub fn refused(self, status: u16, rule: &'static Rule) -> Result<(), Failure> {
        let judged = match self.came {
            Err(HostError::Refused { status: came, message }) if came.as_u16() == status => {
                if message.is_empty() {
                    Err((rules::SENTENCE, format!("{status} and an empty body")))
                } else {
                    Ok(())
                }
            }
            Err(error) => Err((rule, error.to_string())),
            Ok(came) => Err((rule, came.shown())),
        };
        judged.map_err(|(rule, came)| Failure { after: self.after, sent: self.sent, came, rule })
    }
}

impl Exchange<Answered> {
    /// The server must have answered, with success.
    pub fn served(self) -> Result<Answered, Failure> {
        self.served_as(rules::ACTIVE)
    }

    /// The server must have answered, with success, since this says so.
    pub fn served_as(self, rule: &'static Rule) -> Result<Answered, Failure> {
        self.judge(rule, |answered| match (answered.status.is_success(), &answered.not_here) {
            (false, _) => Err((rule, answered.shown())),
            (true, Some(_)) => Err((rules::HERE, answered.shown())),
            (true, None) => Ok(answered),
        })
    }

    /// The request must not have been given to the server.
    pub fn not_here(self) -> Result<(), Failure> {
        self.not_here_since(rules::NOT_HERE)
    }

    /// The request must not have been given to the server, since this says so.
    pub fn not_here_since(self, rule: &'static Rule) -> Result<(), Failure> {
        self.judge(
            rule,
            |answered: Answered| {
                if answered.is_not_here() { Ok(()) } else { Err((rule, answered.shown())) }
            },
        )
    }

    /// It must have this status, and a sentence.
    pub fn status(self, status: u16, rule: &'static Rule) -> Result<(), Failure> {
        self.judge(rule, |answered| match (answered.status.as_u16() == status, answered.text.trim()) {
            (false, _) => Err((rule, answered.shown())),
            (true, "") => Err((rules::SENTENCE, answered.shown())),
            (true, _) => Ok(()),
        })
    }
}
