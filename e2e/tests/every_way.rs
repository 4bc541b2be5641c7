//! Servers go to other pods in every way that a cluster knows, and no client notices.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use anyhow::Result;
use e2e::rollouts;

#[tokio::test]
async fn servers_move_once_and_no_request_fails_whatever_sends_them() -> Result<()> {
    rollouts::run("", 2).await
}
