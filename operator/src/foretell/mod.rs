//! What would happen now if: a question over HTTP, answered by the task that owns the world, with what its moves are decided by.
//!
//! ```text
//!  GET /plan ──Question──► driver (owns the world): World::foretell ──Foretold──► JSON
//! ```

mod account;

use std::{fmt, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use crds::plan::Foretold;
use serde::Deserialize;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

pub use account::Account;

use crate::{leader::Leadership, model::Key};

/// Questions are answered so far apart: the world has other things to do.
pub const EVERY: Duration = Duration::from_millis(100);
/// The world takes a question well within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Servers in one question.
const MAX_SERVERS: usize = 500;
/// Longest name of an object.
const MAX_NAME: usize = 253;

/// What is asked, of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The pool.
    pub pool: Key,
    /// What is done to it.
    pub what: What,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// This pod gets the annotation that drains it.
    Drain(String),
    /// This node is cordoned, and its pods evicted.
    Node(String),
    /// The pods of the pool are replaced by ones of a new revision.
    Rollout,
    /// These servers are sent somewhere.
    Move(Vec<String>, To),
}

/// Where servers are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// Each to the pod that is best for it.
    Best,
    /// To this pod.
    Pod(String),
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = &self.pool;
        match &self.what {
            What::Drain(pod) => write!(f, "pod {pod} of pool {pool} is drained"),
            What::Node(node) => write!(f, "node {node}, with pods of pool {pool}, is cordoned or drained"),
            What::Rollout => write!(f, "the pods of pool {pool} are replaced by ones of a new revision"),
            What::Move(servers, To::Best) => {
                write!(f, "{} servers of pool {pool} are moved to the best pods", servers.len())
            }
            What::Move(servers, To::Pod(pod)) => {
                write!(f, "{} servers of pool {pool} are moved to pod {pod}", servers.len())
            }
        }
    }
}

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// It cannot be understood.
    #[error(
        "{0}; ask /plan?pool=<namespace>/<name> with one of &drain=<pod>, &node=<node>, &rollout, &move=<server,...>&to=<pod|best>"
    )]
    Malformed(String),
    /// Of the pool.
    #[error("there is no pool {0}, or its spec is not accepted: look at its condition Accepted")]
    NoPool(Key),
    /// Of the pod.
    #[error("pool {pool} has no pod {pod}: kubectl get pods -l durableserver.io/pool={} lists them", pool.name)]
    NoPod {
        /// The pool.
        pool: Key,
        /// The pod.
        pod: String,
    },
    /// Of the node.
    #[error("no pod of pool {pool} is on a node {node}")]
    NoNode {
        /// The pool.
        pool: Key,
        /// The node.
        node: String,
    },
    /// Nothing replaces the pods.
    #[error("no Deployment or StatefulSet made the pods of pool {0}, so nothing rolls them out")]
    NoWorkload(Key),
    /// Not yet.
    #[error("the operator is starting, and does not know yet where servers are: ask again in a few seconds")]
    Starting,
    /// Another replica is to be asked.
    #[error("this replica of the operator does not lead: ask the one that holds the Lease")]
    NotLeading,
    /// The world has other things to do.
    #[error("the operator is busy: ask again in a second")]
    Busy,
}

impl IntoResponse for Unanswerable {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Starting | Self::NotLeading | Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        (code, format!("{self}\n")).into_response()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    pool: String,
    drain: Option<String>,
    node: Option<String>,
    rollout: Option<String>,
    #[serde(rename = "move")]
    servers: Option<String>,
    to: Option<String>,
}

impl Words {
    fn question(self) -> Result<Question, Unanswerable> {
        let malformed = |why: &str| Unanswerable::Malformed(why.to_owned());
        let names = [&self.drain, &self.node, &self.to];
        if self.pool.len() > 2 * MAX_NAME || names.into_iter().flatten().any(|name| name.len() > MAX_NAME) {
            return Err(malformed("no name is as long as that"));
        }
        let (namespace, name) = self.pool.split_once('/').ok_or_else(|| malformed("the pool has no namespace"))?;
        if self.servers.is_some() != self.to.is_some() {
            return Err(malformed("move and to go together"));
        }
        let what = match (self.drain, self.node, self.rollout, self.servers.zip(self.to)) {
            (Some(pod), None, None, None) => What::Drain(pod),
            (None, Some(node), None, None) => What::Node(node),
            (None, None, Some(_), None) => What::Rollout,
            (None, None, None, Some((servers, to))) => {
                let servers: Vec<String> =
                    servers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
                if servers.is_empty() || servers.len() > MAX_SERVERS {
                    return Err(Unanswerable::Malformed(format!("one to {MAX_SERVERS} servers can be moved at once")));
                }
                What::Move(servers, if to == "best" { To::Best } else { To::Pod(to) })
            }
            _ => return Err(malformed("exactly one thing can be asked")),
        };
        Ok(Question { pool: Key::new(namespace, name), what })
    }
}

/// A question on its way.
#[derive(Debug)]
pub struct Ask {
    /// What.
    pub question: Question,
    /// Whom to tell.
    pub answer: oneshot::Sender<Result<Foretold, Unanswerable>>,
}

/// Where questions are asked.
#[derive(Clone, Debug)]
pub struct Asking {
    asks: mpsc::Sender<Ask>,
    leadership: watch::Receiver<Leadership>,
}

/// Both ends: the server's and the driver's.
#[must_use]
pub fn new(leadership: watch::Receiver<Leadership>) -> (Asking, mpsc::Receiver<Ask>) {
    let (asks, incoming) = mpsc::channel(1);
    (Asking { asks, leadership }, incoming)
}

impl Asking {
    /// `/plan`.
    pub fn routes(self) -> Router {
        Router::new().route("/plan", get(plan)).with_state(self)
    }

    async fn ask(&self, question: Question) -> Result<Foretold, Unanswerable> {
        if *self.leadership.borrow() != Leadership::Ours {
            return Err(Unanswerable::NotLeading);
        }
        let (answer, answered) = oneshot::channel();
        self.asks.try_send(Ask { question, answer }).map_err(|_| Unanswerable::Busy)?;
        match timeout(PATIENCE, answered).await {
            Ok(Ok(foretold)) => foretold,
            _ => Err(Unanswerable::Busy),
        }
    }
}

async fn plan(
    State(asking): State<Asking>,
    words: Result<Query<Words>, QueryRejection>,
) -> Result<Json<Foretold>, Unanswerable> {
    let Query(words) = words.map_err(|error| Unanswerable::Malformed(error.body_text()))?;
    Ok(Json(asking.ask(words.question()?).await?))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
