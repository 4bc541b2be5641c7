//! The way to the operator: TLS by the authority that the pod was given, and straight to the replica that leads.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::time::timeout;
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri},
};

use crate::config::Config;

/// To reach the operator's address, handshake included.
const CONNECT: Duration = Duration::from_secs(2);

/// Connects to the operator, or to the replica at `leader`, which has the same certificate.
pub async fn connect(config: &Config, leader: Option<SocketAddr>) -> anyhow::Result<Channel> {
    let to = leader.map_or_else(|| config.operator.clone(), |leader| format!("https://{leader}"));
    let unreachable = || format!("the operator at {to} cannot be reached");
    let endpoint = endpoint(config, &to)?;
    timeout(CONNECT, endpoint.connect()).await.with_context(unreachable)?.with_context(unreachable)
}

fn endpoint(config: &Config, to: &str) -> anyhow::Result<Endpoint> {
    let wrong = || format!("DURABLE_OPERATOR must be an address such as https://name.namespace.svc:9443, and is {to}");
    let operator: Uri = config.operator.parse().with_context(wrong)?;
    let name = operator.host().filter(|_| operator.scheme_str() == Some("https")).with_context(wrong)?;
    let authority = config.operator_ca.as_ref().context(
        "DURABLE_OPERATOR_CA is not set: it must hold the operator's authority (ca.crt of the Secret with its certificates)",
    )?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority)).domain_name(name);
    let endpoint = Endpoint::from_shared(to.to_owned()).with_context(wrong)?;
    let endpoint = endpoint.tls_config(tls).context("DURABLE_OPERATOR_CA is not a PEM certificate")?;
    Ok(endpoint
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3)))
}

/// Where the replica that refused a session says that the leader is.
#[must_use]
pub fn leader(refusal: &Status) -> Option<SocketAddr> {
    refusal.metadata().get(wire::LEADER)?.to_str().ok()?.parse().ok()
}
