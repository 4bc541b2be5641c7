//! What the operator is told at its start, by flags or by the environment.

use std::net::{IpAddr, SocketAddr};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{admission::Resources, check::Check, finalizers::Release};

/// Places durable servers, plans their handoffs, and reports on both.
#[derive(Clone, Debug, Parser)]
#[command(name = "durable-operator", version)]
pub struct Args {
    /// Do this instead, and end.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Only what is in these namespaces.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Where agents open their sessions.
    #[arg(long, env = "SESSION_ADDRESS", default_value = "0.0.0.0:9443")]
    pub session_address: SocketAddr,
    /// The Lease of this namespace whose holder leads.
    #[arg(long, env = "LEASE", default_value = "durable-operator")]
    pub lease: String,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME", default_value = "durable-operator")]
    pub pod: String,
    /// Address of this pod, at which agents reach it when it leads.
    #[arg(long, env = "POD_IP", default_value = "127.0.0.1")]
    pub pod_ip: IpAddr,
    /// Health and metrics.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,
    /// Audience of the agents' tokens.
    #[arg(long, env = "AUDIENCE", default_value = "durable-operator")]
    pub audience: String,
    /// Secret of this namespace with the certificates.
    #[arg(long, env = "TLS_SECRET", default_value = "durable-operator-certificates")]
    pub tls_secret: String,
    /// Who makes them.
    #[arg(long, env = "TLS_MAKER", value_enum, default_value = "operator")]
    pub tls_maker: TlsMaker,
    /// Secret of this namespace for the authority of the agents' certificates, which this operator makes in any case.
    /// Without one it is that of its own certificates.
    #[arg(long, env = "PEER_SECRET", required_if_eq("tls_maker", "other"))]
    pub peer_secret: Option<String>,
    /// DNS names that they are for.
    #[arg(long, env = "TLS_NAMES", value_delimiter = ',')]
    pub tls_names: Vec<String>,
    /// Have a scale-down end the pods with the fewest servers first, by their annotation
    /// `controller.kubernetes.io/pod-deletion-cost`.
    #[arg(long, env = "POD_DELETION_COST")]
    pub pod_deletion_cost: bool,
    /// What is put into pods, and where.
    #[command(flatten)]
    pub webhook: WebhookArgs,
    /// How to log.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to log, such as `info` or `operator=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

/// What is done once.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Fails if a running operator does not answer.
    Check(Check),
    /// Takes the operator's finalizer from all servers, for an operator that is gone for good.
    ReleaseFinalizers(Release),
}

/// The webhook that puts agents into pods.
#[derive(Clone, Debug, clap::Args)]
pub struct WebhookArgs {
    /// The `MutatingWebhookConfiguration` that leads here. Without one there is no webhook.
    #[arg(long, env = "WEBHOOK_CONFIGURATION", requires_all = ["agent_image", "agent_operator"])]
    pub webhook_configuration: Option<String>,
    /// Where the API server reaches the webhook.
    #[arg(long, env = "WEBHOOK_ADDRESS", default_value = "0.0.0.0:8443")]
    pub webhook_address: SocketAddr,
    /// Image of the agent.
    #[arg(long, env = "AGENT_IMAGE")]
    pub agent_image: Option<String>,
    /// When the kubelet pulls it.
    #[arg(long, env = "AGENT_PULL_POLICY", default_value = "IfNotPresent")]
    pub agent_pull_policy: String,
    /// Requests and limits of an agent whose pod says nothing, JSON.
    #[arg(long, env = "AGENT_RESOURCES", default_value = "{}")]
    pub agent_resources: Resources,
    /// URL at which agents reach the operator.
    #[arg(long, env = "AGENT_OPERATOR")]
    pub agent_operator: Option<String>,
}

/// Who makes certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsMaker {
    /// This operator.
    Operator,
    /// cert-manager, or whoever else writes the Secret.
    Other,
}

/// A form of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_something_else_says_so() {
        let parse = |more: &[&str]| Args::try_parse_from(["durable-operator"].iter().chain(more));
        assert!(parse(&[]).is_ok_and(|args| args.webhook.webhook_configuration.is_none()));
        assert!(parse(&["--webhook-configuration", "w", "--agent-operator", "http://o:9443"]).is_err());
        let all = ["--webhook-configuration", "w", "--agent-operator", "http://o:9443", "--agent-image", "agent"];
        assert!(parse(&all).is_ok());
        assert!(parse(&["--tls-maker", "other"]).is_err(), "nobody else signs the agents' certificates");
        assert!(parse(&["--tls-maker", "other", "--peer-secret", "s"]).is_ok());
        assert!(parse(&["--agent-resources", r#"{"requests": {"cpu": "much"}}"#]).is_err());
    }
}
