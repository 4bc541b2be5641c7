//! Why a pod is not let in: one sentence for whoever wrote it, and what to do.

use super::{AGENT_RESOURCES, CONTAINER, PRESTOP, SOCKETS};

/// Why a pod is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its pool is not there.
    #[error(
        "there is no DurableServerPool {pool} in namespace {namespace}, which the pod's label durableserver.io/pool names: make the pool first, or correct the label"
    )]
    NoPool {
        /// As the label says.
        pool: String,
        /// The pod's.
        namespace: String,
    },
    /// Its pool says what cannot be acted on.
    #[error("the pod's DurableServerPool {pool} cannot be used: {problem}")]
    BadPool {
        /// Its name.
        pool: String,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// Nobody knows whether its pool is there.
    #[error("the pod's DurableServerPool {pool} could not be looked up, try again: {problem}")]
    UnknownPool {
        /// Its name.
        pool: String,
        /// What the API server said.
        problem: String,
    },
    /// A container already has a hook.
    #[error(
        "container {0} has a preStop hook of its own, so its SIGTERM would not wait until its servers are elsewhere: remove the hook, or let it call the URL in $DURABLE_PRESTOP_URL and annotate the pod {PRESTOP}: keep"
    )]
    OwnHook(String),
    /// An annotation says something else than it can.
    #[error("the annotation {annotation} cannot be used: {problem}")]
    BadAnnotation {
        /// Which.
        annotation: &'static str,
        /// What is wrong, and what to write.
        problem: String,
    },
    /// A container or volume has our name.
    #[error(
        "the pod has a {what} {name}, which is what the agent's is called, and which was not injected: rename or remove it, or label the pod durableserver.io/inject: \"false\" and write all of the agent by hand"
    )]
    NameTaken {
        /// Container or volume.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A container has our port.
    #[error(
        "container {container} has the port {port}, which the agent in its pod needs: let it listen on another, and give that another name"
    )]
    PortTaken {
        /// Which.
        container: String,
        /// Number or name.
        port: String,
    },
    /// A container has something else where the sockets go.
    #[error(
        "container {0} mounts another volume at {SOCKETS}, where the sockets of host and agent go: mount it elsewhere"
    )]
    PathTaken(String),
    /// It is not a pod that could be understood.
    #[error("the pod cannot be read: {0}")]
    Unreadable(String),
}

impl Refusal {
    /// A pod without what every pod has.
    pub(super) fn without(what: &str) -> Self {
        Self::Unreadable(format!("it has no {what}"))
    }

    /// An annotation about the agent's resources.
    pub(super) fn resources(problem: &str) -> Self {
        let example = r#"{"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}"#;
        let problem = format!("{problem}; write JSON such as {example}");
        Self::BadAnnotation { annotation: AGENT_RESOURCES, problem }
    }

    /// A container of our name.
    pub(super) fn container() -> Self {
        Self::NameTaken { what: "container", name: CONTAINER.into() }
    }
}
