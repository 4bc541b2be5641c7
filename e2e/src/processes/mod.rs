//! Real processes on loopback: a real API server and a real S3 server, operators, agents and hosts, and one of them killed
//! or paused at one step of the protocol, or the store out of order. Whoever serves is known from outside: from the hosts'
//! ledger, from the client's answers, and from asking each pod.
//!
//! ```text
//!  ground: etcd, API server, S3 ◄── cell: a namespace for each case ──► kubelet: what runs a pod's processes
//!                     └──── gate: S3 with a fault ◄──┘
//! ```

mod cases;
mod cell;
mod child;
mod ground;
mod kubelet;
mod service;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use futures::stream;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use self::cases::{Case, Misfortune};
use self::cell::Cell;
use self::ground::Ground;
use crate::figures::{self, Kind};
use crate::report;

pub use self::cases::Part;

/// Cases side by side: more would wait for the processors, and not for each other.
const AT_ONCE: usize = 6;
/// A case that takes longer hangs.
const LONGEST: Duration = Duration::from_mins(3);
/// From the drain's beginning to a step of it.
const HIT: Duration = Duration::from_secs(40);
/// From the misfortune's end until all is well.
const BACK: Duration = Duration::from_mins(1);
/// Load runs so long before anything breaks, and after all is well.
const MARGIN: Duration = Duration::from_millis(500);

/// One case, as it is written to `target/figures/processes.json`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// Where.
    pub step: String,
    /// What happened there.
    pub fault: String,
    /// How often: processes that were struck, or requests to the store.
    pub hit: usize,
    /// Answers of two owners, and terms that overlap in the outside ledger.
    pub double_served: usize,
    /// Writes acknowledged as stored.
    pub acked: usize,
    /// Those of them that are gone.
    pub acked_lost: u64,
    /// From the fault until every room was served by a pod that stays.
    pub recovery_ms: u64,
    /// All requests.
    pub requests: usize,
    /// Those of them that failed.
    pub failed_requests: usize,
    /// Why the case itself failed; empty if it did not.
    pub problem: String,
}

/// Tries the cases of this part whose names contain `only`, prints the table, and writes `target/figures/processes.json`.
/// Fails if something was served twice or lost, did not come back, or was not hit at all.
pub async fn run(part: Part, only: &str) -> Result<()> {
    let begun = Instant::now();
    let ground = Ground::start().await?;
    println!("the ground stands after {:?}; logs are in {}", begun.elapsed(), ground.dir.display());
    let cases = cases::all(part).into_iter().filter(|case| case.name().contains(only));
    let runs = cases.zip(1u8..).map(|(case, number)| row(&ground, case, number));
    let rows: Vec<Row> = stream::iter(runs).buffered(AT_ONCE).inspect(|row| println!("{}", line(row))).collect().await;
    println!("\n{}\n{} cases in {:?}\n", table(&rows), rows.len(), begun.elapsed());
    report::write("processes", &rows)?;
    let bad: Vec<String> = rows.iter().filter(|row| !row.is_good()).map(line).collect();
    ensure!(bad.is_empty() && !rows.is_empty(), "{} of {} cases:\n{}", bad.len(), rows.len(), bad.join("\n"));
    let dir = ground.dir.clone();
    drop(ground);
    Ok(std::fs::remove_dir_all(dir)?)
}

impl Row {
    fn is_good(&self) -> bool {
        self.hit > 0 && self.acked > 0 && self.double_served == 0 && self.acked_lost == 0 && self.problem.is_empty()
    }
}

async fn row(ground: &Ground, case: Case, number: u8) -> Row {
    let mut row = Row { step: case.step.into(), fault: case.misfortune.name(), ..Row::default() };
    let tried = timeout(LONGEST, strike(ground, &case, number, &mut row)).await.context("it hangs");
    if let Err(error) = tried.and_then(|tried| tried) {
        row.problem = format!("{error:#}");
    }
    row
}

async fn strike(ground: &Ground, case: &Case, number: u8, row: &mut Row) -> Result<()> {
    let cell = Cell::open(ground, number, &case.name()).await?;
    let load = cell.load().await?;
    sleep(MARGIN).await;
    let at = happens(&cell, case, row).await?;
    let recovered = cell.recovered(BACK).await;
    row.recovery_ms = u64::try_from(at.elapsed().as_millis())?;
    sleep(MARGIN).await;
    let seen = load.stop().await?;
    let overlaps = cell.ledger.overlaps(&cell.killed()).await;
    let traffic = figures::traffic(&seen.answers);
    row.double_served = figures::double_served(&seen.answers) + overlaps.len();
    row.acked = seen.answers.iter().filter(|a| a.kind == Kind::SyncedWrite && a.said.is_some()).count();
    row.acked_lost = figures::lost(&seen.answers).acked;
    (row.requests, row.failed_requests) = (traffic.requests, traffic.failed);
    ensure!(overlaps.is_empty(), "served by two at once: {overlaps:?}");
    recovered?;
    cell.each_is_served_once().await
}

/// Drains the pod, and lets it happen. When it did.
async fn happens(cell: &Cell, case: &Case, row: &mut Row) -> Result<Instant> {
    match case.misfortune {
        Misfortune::Store(fault, lasts) => {
            cell.gate.fail(fault);
            let at = Instant::now();
            cell.drain().await?;
            sleep(lasts).await;
            cell.gate.mend();
            row.hit = cell.gate.met();
            Ok(at)
        }
        Misfortune::Killed(role) => {
            cell.arm(role, case.step, "KILL", case.times)?;
            cell.drain().await?;
            cell.hit(role, HIT).await?;
            row.hit = 1;
            Ok(Instant::now())
        }
        Misfortune::Paused(role) => {
            cell.arm(role, case.step, "STOP", case.times)?;
            cell.drain().await?;
            let pid = cell.hit(role, HIT).await?;
            let at = Instant::now();
            row.hit = 1;
            sleep(cases::pause(role)).await;
            child::wake(pid);
            Ok(at)
        }
    }
}

fn table(rows: &[Row]) -> String {
    let head = format!(
        "{:<30}{:<24}{:>6}{:>7}{:>7}{:>11}{:>13}{:>10}{:>8}",
        "step", "fault", "hit", "twice", "acked", "acked lost", "recovery ms", "requests", "failed"
    );
    report::listed(head, rows.iter().map(line))
}

fn line(row: &Row) -> String {
    let Row { step, fault, hit, double_served, acked, acked_lost, .. } = row;
    let Row { recovery_ms, requests, failed_requests, problem, .. } = row;
    format!("{step:<30}{fault:<24}{hit:>6}{double_served:>7}{acked:>7}{acked_lost:>11}")
        + &format!("{recovery_ms:>13}{requests:>10}{failed_requests:>8} {problem}")
}
