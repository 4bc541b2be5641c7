//! Chat rooms as durable servers: each keeps its messages, counter and members while pods come and go.
//!
//! Environment: `POD_NAME` and `NODE_NAME` (shown to people), `DURABLE_DIR` (the volume shared with the agent,
//! `/run/durable` by default), `LEDGER` (`http://host:port`, where terms of serving are reported; none by default),
//! `ROOMS_STATE_VERSION` (`2`: write states that rooms without it cannot load).

mod later;
mod ledger;
mod room;
mod routes;

use std::{env, sync::LazyLock};

use durable_sdk::Host;

use crate::{later::Later, ledger::Ledger, routes::Room};

/// Where this process runs.
struct Place {
    pod: String,
    node: String,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| Place { pod: variable("POD_NAME"), node: variable("NODE_NAME") });

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| "unknown".into())
}

/// One thread: rooms do little, and waking a second one up costs more than it would do.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let dir = env::var("DURABLE_DIR").unwrap_or_else(|_| "/run/durable".into());
    let host = match env::var("ROOMS_STATE_VERSION").as_deref() {
        Ok("2") => Host::new().serve::<Later>(),
        _ => Host::new().serve::<Room>(),
    };
    let url = env::var("LEDGER").unwrap_or_default();
    if url.is_empty() {
        return Ok(host.run(dir).await?);
    }
    let ledger = Ledger::start(&url, &PLACE.pod)?;
    host.observe(ledger.clone()).run(dir).await?;
    ledger.flush().await;
    Ok(())
}
