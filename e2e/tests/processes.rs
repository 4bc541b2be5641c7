//! One process killed or paused at each step of the protocol, and a store out of order: nothing is served twice, nothing
//! acknowledged is lost, and all come back by themselves.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use anyhow::Result;
use e2e::processes::{self, Part};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_or_sleeps_wherever_nothing_is_served_twice_or_lost() -> Result<()> {
    let all = std::env::var_os("PROCESSES").is_some_and(|part| part == "all");
    let only = std::env::var("ONLY").unwrap_or_default();
    processes::run(if all { Part::All } else { Part::Bounded }, &only).await
}
