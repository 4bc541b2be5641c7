//! What the agent is told at its start, by flags or by the pod's environment.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Parser;

/// Starts, syncs and hands off the durable servers of one pod.
#[derive(Clone, Debug, Parser)]
#[command(name = "durable-agent", version)]
pub struct Config {
    /// Name of this pod.
    #[arg(long, env = "POD_NAME")]
    pub pod: String,
    /// Namespace of this pod.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Uid of this pod.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: String,
    /// Address at which other pods reach this one.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: IpAddr,
    /// Pool that this pod hosts.
    #[arg(long, env = "DURABLE_POOL")]
    pub pool: String,
    /// Where the operator takes sessions, for example `https://durable-server-operator.durable.svc:9443`.
    #[arg(long, env = "DURABLE_OPERATOR")]
    pub operator: String,
    /// The authority of its certificate, PEM.
    #[arg(long, env = "DURABLE_OPERATOR_CA")]
    pub operator_ca: Option<String>,
    /// The projected service-account token of audience `durable-operator`.
    #[arg(long, env = "DURABLE_TOKEN", default_value = "/var/run/durable/token/token")]
    pub token: PathBuf,
    /// Directory of the host's and the agent's sockets.
    #[arg(long, env = "DURABLE_DIR", default_value = "/run/durable")]
    pub dir: PathBuf,
    /// Address that this agent listens on. Every one of its pod, by default: the kubelet calls it at the pod's own, and hooks
    /// and `kubectl port-forward` at 127.0.0.1.
    #[arg(long, env = "DURABLE_BIND", default_value = "0.0.0.0")]
    pub bind: IpAddr,
    /// Port of the gateway for users' requests.
    #[arg(long, env = "DURABLE_GATEWAY_PORT", default_value_t = 7070)]
    pub gateway_port: u16,
    /// Port for other agents.
    #[arg(long, env = "DURABLE_PEER_PORT", default_value_t = 7071)]
    pub peer_port: u16,
    /// Port of health, metrics and the preStop hook.
    #[arg(long, env = "DURABLE_HOOK_PORT", default_value_t = 7072)]
    pub hook_port: u16,
    /// Path of the preStop hook. It is the pod's own random one where the webhook chose it: who does not know it cannot
    /// drain the pod.
    #[arg(long, env = "DURABLE_HOOK_PATH", default_value = "/prestop", value_parser = hook_path)]
    pub hook_path: String,
    /// The pod's terminationGracePeriodSeconds.
    #[arg(long, env = "TERMINATION_GRACE_PERIOD_SECONDS", default_value_t = 30)]
    pub grace_seconds: u64,
}

/// What the kubelet's own delays may take of the grace period (see the design, section 6).
pub const GRACE_MARGIN: Duration = Duration::from_secs(3);

/// Apart from the port's other paths, and without what means something in a route.
fn hook_path(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("/prestop").filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let plain =
        |rest: &str| rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_'));
    match rest {
        Some(rest) if plain(rest) => Ok(text.to_owned()),
        _ => Err("write /prestop, or a path below it of letters, digits, -, _ and /".into()),
    }
}

impl Config {
    /// The pod's grace period.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }

    /// Socket that the host listens on.
    #[must_use]
    pub fn host_socket(&self) -> PathBuf {
        self.dir.join("host.sock")
    }

    /// Socket that this agent listens on, for the host.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_has_a_path_of_its_own() {
        for good in ["/prestop", "/prestop/0123456789abcdef"] {
            assert_eq!(hook_path(good).as_deref(), Ok(good));
        }
        for bad in ["", "/", "prestop", "/metrics", "/prestopped", "/prestop/{any}", "/prestop/*", "/prestop/a b"] {
            assert!(hook_path(bad).is_err(), "{bad}");
        }
    }
}
