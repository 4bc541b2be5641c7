//! `kubectl durable`, as a person uses it.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use anyhow::Result;
use e2e::plugin;

#[tokio::test]
async fn people_see_and_say_where_servers_are() -> Result<()> {
    plugin::run().await
}
