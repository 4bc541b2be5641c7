//! What the operator says would happen is what happens.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use anyhow::Result;
use e2e::foretold;

#[tokio::test]
async fn what_is_foretold_happens() -> Result<()> {
    foretold::run().await
}
