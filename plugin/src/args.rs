//! What can be asked for.

use std::time::Duration;

use clap::{Parser, Subcommand};

/// Looks at durable servers, and tells them where to be.
#[derive(Clone, Debug, Parser)]
#[command(name = "kubectl durable", version)]
pub struct Args {
    /// The namespace; that of the kubeconfig's context if it is not named.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// The kubeconfig's context.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Where the operator is.
    #[command(flatten)]
    pub operator: Operator,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Where the operator is.
#[derive(Clone, Debug, clap::Args)]
pub struct Operator {
    /// The operator's namespace.
    #[arg(id = "operator-namespace", long, global = true, default_value = "durable-server-system")]
    pub namespace: String,
    /// The Lease there that names the replica to ask.
    #[arg(id = "operator-lease", long, global = true, default_value = "durable-server-operator")]
    pub lease: String,
    /// The operator's port for health, metrics and the page.
    #[arg(id = "operator-port", long, global = true, default_value_t = 8080)]
    pub port: u16,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// The pods of a pool, and what they have.
    Get {
        /// The pool; not needed if there is one only.
        pool: Option<String>,
    },
    /// What would happen now if. Changes nothing.
    Plan {
        /// The pool; not needed if there is one only.
        #[arg(long)]
        pool: Option<String>,
        /// What is done.
        #[command(subcommand)]
        what: Plan,
    },
    /// Move all servers of a pod to others; it gets none until `undrain`.
    Drain {
        /// The pod.
        pod: String,
    },
    /// The pod may have servers again. What has not moved yet stays.
    Undrain {
        /// The pod.
        pod: String,
    },
    /// Move servers to a pod.
    Move(Move),
    /// A pod gets no more servers, or a server stays where it is.
    Cordon(Cordoned),
    /// The opposite.
    Uncordon(Cordoned),
    /// Move no server of a pool while its pod lives.
    Pause {
        /// The pool; not needed if there is one only.
        pool: Option<String>,
    },
    /// The opposite.
    Resume {
        /// The pool; not needed if there is one only.
        pool: Option<String>,
    },
    /// Pods and servers, live.
    Watch {
        /// The pool; not needed if there is one only.
        pool: Option<String>,
    },
}

/// What would be done.
#[derive(Clone, Debug, Subcommand)]
pub enum Plan {
    /// A pod is drained.
    Drain {
        /// The pod.
        pod: String,
    },
    /// A node is cordoned, or drained.
    Node {
        /// The node.
        node: String,
    },
    /// The pods are replaced by ones of a new revision.
    Rollout,
    /// Servers are moved.
    Move {
        /// The servers.
        servers: Vec<String>,
        /// All servers with these labels instead.
        #[arg(short = 'l', long, conflicts_with = "servers", required_unless_present = "servers")]
        selector: Option<String>,
        /// A pod, or `best`.
        #[arg(long)]
        to: String,
    },
}

/// Which servers go where.
#[derive(Clone, Debug, clap::Args)]
pub struct Move {
    /// The servers.
    pub servers: Vec<String>,
    /// All servers with these labels instead.
    #[arg(short = 'l', long, conflicts_with = "servers", required_unless_present = "servers")]
    pub selector: Option<String>,
    /// A pod, or `best`: for each server the pod that is best for it now.
    #[arg(long)]
    pub to: String,
    /// Wait until they are there, and take the annotation away again: from then on they may move like all others.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, default_value = "120", value_parser = seconds)]
    pub timeout: Duration,
}

/// A pod or a server.
#[derive(Clone, Debug, clap::Args)]
pub struct Cordoned {
    /// The pod.
    #[arg(long, conflicts_with = "server", required_unless_present = "server")]
    pub pod: Option<String>,
    /// The server.
    #[arg(long)]
    pub server: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_sound() {
        Args::command().debug_assert();
        let parsed = |words: &[&str]| Args::try_parse_from([&["kubectl durable"], words].concat());
        let args =
            parsed(&["get", "--operator-namespace", "a", "--operator-lease", "b", "--operator-port", "1"]).unwrap();
        assert_eq!((args.operator.namespace.as_str(), args.operator.lease.as_str(), args.operator.port), ("a", "b", 1));
        assert_eq!(args.namespace, None);
        for good in [
            &["get"][..],
            &["plan", "rollout"],
            &["plan", "--pool", "rooms", "move", "a", "b", "--to", "best"],
            &["move", "-l", "tier=gold", "--to", "rooms-1", "--wait"],
            &["-n", "games", "cordon", "--server", "a"],
        ] {
            assert!(parsed(good).is_ok(), "{good:?}");
        }
        for bad in [&["move", "a"][..], &["move", "--to", "b"], &["cordon"], &["plan", "drain"]] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
