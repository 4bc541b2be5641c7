//! The operator's answer to "what would happen now if": no resource, but what it and `kubectl durable plan` have in common.

use serde::{Deserialize, Serialize};

/// What would happen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Foretold {
    /// What was asked, as a sentence.
    pub question: String,
    /// When servers would move.
    pub when: String,
    /// Servers that would move, by the pod that they are in.
    pub moves: Vec<Departure>,
    /// What becomes of those that would not move.
    pub otherwise: String,
    /// Servers that would not move, by the reason.
    pub stays: Vec<Stay>,
    /// Which server goes to which pod; only where servers were asked for by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Sent>,
}

/// Servers that would leave one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Departure {
    /// The pod.
    pub from: String,
    /// The revision of its workload, as Kubernetes labels it.
    pub revision: String,
    /// How many.
    pub servers: usize,
    /// Where to.
    pub to: Vec<Arrival>,
}

/// Servers that would come to one pod, or to those of a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// The pod; none where pods do not exist yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The revision of its workload; `next` of one that does not exist yet.
    pub revision: String,
    /// How many.
    pub servers: usize,
}

/// Servers that would not move for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stay {
    /// A sentence that says what to do.
    pub reason: String,
    /// How many.
    pub servers: usize,
    /// The first of them.
    pub names: Vec<String>,
}

/// Where one server would go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// The server.
    pub name: String,
    /// The pod.
    pub to: String,
}
