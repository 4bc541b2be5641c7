//! `durable-operator check`: does a running operator answer? What `helm test` asks.

use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest answer that is read, bytes.
const MAX_ANSWER: usize = 4_096;

/// Whom to ask, and for how long.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// Its health, such as `http://durable-server-operator:8080/readyz`.
    #[arg(long)]
    pub health: Uri,
    /// Where agents open their sessions, `host:port`.
    #[arg(long)]
    pub sessions: String,
    /// Seconds in which it must have answered.
    #[arg(long, default_value_t = 30)]
    pub within: u64,
}

/// Asks until all is well; the last problem, if it never was.
pub async fn run(check: &Check) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(check.within);
    loop {
        let problem = match timeout(ATTEMPT, attempt(check)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(problem)) => problem,
            Err(_) => anyhow::anyhow!("no answer within {} s", ATTEMPT.as_secs()),
        };
        if Instant::now() + PAUSE > deadline {
            return Err(problem.context(format!("the operator was not well within {} s", check.within)));
        }
        sleep(PAUSE).await;
    }
}

async fn attempt(check: &Check) -> anyhow::Result<()> {
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(HttpConnector::new());
    let answer = client.get(check.health.clone()).await.with_context(|| format!("{} does not answer", check.health))?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    if !status.is_success() {
        let said = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        bail!("{} answers {status}: {}", check.health, String::from_utf8_lossy(&said));
    }
    TcpStream::connect(&check.sessions)
        .await
        .with_context(|| format!("{} takes no sessions of agents", check.sessions))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::{Router, http::StatusCode, routing::get};
    use tokio::net::TcpListener;

    use super::*;

    async fn serve(status: StatusCode) -> Check {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/readyz", get(move || async move { (status, "not all has been read") }));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let health = format!("http://{address}/readyz").parse().unwrap();
        Check { health, sessions: address.to_string(), within: 0 }
    }

    #[tokio::test]
    async fn a_ready_operator_passes_and_others_say_why_not() {
        let ready = serve(StatusCode::OK).await;
        run(&ready).await.unwrap();
        let starting = serve(StatusCode::SERVICE_UNAVAILABLE).await;
        let problem = format!("{:#}", run(&starting).await.unwrap_err());
        assert!(problem.contains("503") && problem.contains("not all has been read"), "{problem}");

        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let deaf = Check { sessions: closed.to_string(), ..ready.clone() };
        let problem = format!("{:#}", run(&deaf).await.unwrap_err());
        assert!(problem.contains("takes no sessions"), "{problem}");
        let gone = Check { health: format!("http://{closed}/readyz").parse().unwrap(), ..ready };
        let problem = format!("{:#}", run(&gone).await.unwrap_err());
        assert!(problem.contains("does not answer"), "{problem}");
    }
}
