//! What the operator is told at its start, by flags or by the environment.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};

/// Places durable servers, plans their handoffs, and reports on both.
#[derive(Clone, Debug, Parser)]
#[command(name = "durable-operator", version)]
pub struct Args {
    /// Where agents open their sessions.
    #[arg(long, env = "SESSION_ADDRESS", default_value = "0.0.0.0:9443")]
    pub session_address: SocketAddr,
    /// Health and metrics.
    #[arg(long, env = "HTTP_ADDRESS", default_value = "0.0.0.0:8080")]
    pub http_address: SocketAddr,
    /// Audience of the agents' tokens.
    #[arg(long, env = "AUDIENCE", default_value = "durable-operator")]
    pub audience: String,
    /// How to log.
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to log, such as `info` or `operator=debug`.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

/// A form of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
