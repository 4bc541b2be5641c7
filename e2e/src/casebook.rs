//! All that can go wrong and was tried: the cases, beside a pool that nothing may happen to, and the table.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::LocalBoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use serde_json::json;
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::load::Load;
use crate::scene::{Case, SOON, Scene};
use crate::{bad_input, fallbacks, figures, report};

/// Cases at once: each has two pods or three, and waits most of its time.
const AT_ONCE: usize = 3;
/// A case that takes longer hangs.
const LONGEST: Duration = Duration::from_mins(5);
/// The pool that nothing may happen to.
const BYSTANDERS: usize = 6;
const WRITES: u32 = 20;

type Run = for<'a> fn(&'a Cluster) -> LocalBoxFuture<'a, Result<Case>>;

/// The cases of minutes' worth, in an order that keeps slow ones from being last.
const CASES: [(&str, Run); 18] = [
    ("host that never answers", |cluster| bad_input::silent(cluster).boxed_local()),
    ("host that dies at start", |cluster| bad_input::exits(cluster).boxed_local()),
    ("host that answers garbage", |cluster| bad_input::garbage(cluster).boxed_local()),
    ("handoff off", |cluster| fallbacks::off(cluster).boxed_local()),
    ("handoff partly off", |cluster| fallbacks::partly_off(cluster).boxed_local()),
    ("no eligible pod", |cluster| fallbacks::recreate(cluster).boxed_local()),
    ("targets that refuse", |cluster| fallbacks::refused(cluster).boxed_local()),
    ("targets that hang", |cluster| fallbacks::hangs(cluster).boxed_local()),
    ("failures in a row", |cluster| fallbacks::breaker(cluster).boxed_local()),
    ("too little time", |cluster| fallbacks::short(cluster).boxed_local()),
    ("a type's limit", |cluster| fallbacks::crowded(cluster).boxed_local()),
    ("unknown pool", |cluster| bad_input::unknown_pool(cluster).boxed_local()),
    ("pool deleted", |cluster| bad_input::pool_deleted(cluster).boxed_local()),
    ("state over the limit", |cluster| bad_input::too_large(cluster).boxed_local()),
    ("wrong bucket", |cluster| bad_input::wrong_bucket(cluster).boxed_local()),
    ("wrong credentials", |cluster| bad_input::wrong_credentials(cluster).boxed_local()),
    ("conditions ignored", |cluster| bad_input::ignores_conditions(cluster).boxed_local()),
    ("second cluster", |cluster| bad_input::second_cluster(cluster).boxed_local()),
];

/// The cases that nothing else should run beside.
const ALONE: [(&str, Run); 2] = [
    ("pod of a missing pool", |cluster| bad_input::pod_without_pool(cluster).boxed_local()),
    ("10,000 servers", |cluster| bad_input::many(cluster).boxed_local()),
];

/// Runs the cases and writes `target/figures/faults.json`; the largest one only if `all`. Fails if one of them, or the pool
/// that nothing may happen to, did not go as it should.
pub async fn run(cluster: &Cluster, all: bool) -> Result<()> {
    let bystander = Bystander::begin(cluster).await?;
    let mut outcomes: Vec<Result<Case>> =
        stream::iter(CASES).map(|case| one(cluster, case)).buffered(AT_ONCE).collect().await;
    for case in ALONE.into_iter().take(if all { ALONE.len() } else { 1 }) {
        outcomes.push(one(cluster, case).await);
    }
    let spared = bystander.end().await;
    let (mut cases, mut errors) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Ok(case) => cases.push(case),
            Err(error) => errors.push(error),
        }
    }
    errors.extend(spared.context("the pool that nothing may happen to").err());
    println!("\n{}\n", table(&cases));
    report::write("faults", &cases)?;
    for error in &errors {
        println!("  FAIL  {error:#}");
    }
    ensure!(errors.is_empty(), "{} cases did not go as they should", errors.len());
    Ok(())
}

async fn one(cluster: &Cluster, (name, run): (&'static str, Run)) -> Result<Case> {
    let begun = Instant::now();
    let outcome = timeout(LONGEST, run(cluster)).await.context("it hangs").and_then(|outcome| outcome);
    let verdict = if outcome.is_ok() { "as it should" } else { "NOT as it should" };
    println!("{:>6.1} s  {name}: {verdict}", begun.elapsed().as_secs_f64());
    let case = outcome.with_context(|| name.to_owned())?;
    if case.acked_lost > 0 {
        bail!("{name}: {} acknowledged writes are gone", case.acked_lost);
    }
    Ok(case)
}

/// A pool beside all of it.
struct Bystander {
    scene: Scene,
    load: Load,
}

impl Bystander {
    async fn begin(cluster: &Cluster) -> Result<Self> {
        let scene = Scene::with_pods(cluster, "bystander", 2, json!({})).await?;
        scene.declare(BYSTANDERS, |_| json!({})).await?;
        scene.rooms.all_running(BYSTANDERS, SOON).await?;
        let load = scene.rooms.load(BYSTANDERS, WRITES).await?;
        Ok(Self { scene, load })
    }

    async fn end(self) -> Result<()> {
        let seen = self.load.stop().await?;
        let lost = self.scene.judge(&seen).await?;
        let moved = self.scene.rooms.view.handoffs().len();
        let failed = figures::traffic(&seen.answers).failed;
        ensure!(lost == 0, "{lost} acknowledged writes are gone");
        ensure!(failed == 0, "requests failed: {:?}", seen.failures);
        ensure!(moved == 0, "{moved} of its pods were drained");
        self.scene.rooms.all_running(BYSTANDERS, SOON).await?;
        self.scene.close().await
    }
}

/// The cases, one a line.
#[must_use]
pub fn table(cases: &[Case]) -> String {
    let mut table = format!(
        "{:<50}{:>8}{:>7}{:>9}{:>12}{:>10}  seen",
        "case", "servers", "moved", "stopped", "acked lost", "back (ms)"
    );
    for case in cases {
        let back = case.serving_after_ms.map_or_else(|| "-".into(), |ms| ms.to_string());
        let seen: String = case.seen.chars().take(100).collect();
        let _ = write!(
            table,
            "\n{:<50}{:>8}{:>7}{:>9}{:>12}{back:>10}  {seen}",
            case.case, case.servers, case.moved, case.stopped, case.acked_lost
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_a_case() {
        let case = Case { case: "wrong bucket".into(), servers: 4, serving_after_ms: Some(12), ..Case::default() };
        let text = table(&[case, Case::default()]);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().nth(1).unwrap().contains("12"), "{text}");
    }
}
