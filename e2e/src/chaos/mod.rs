//! What breaks without a word, one thing after another on the same rooms, under load: nobody is served twice, nothing
//! acknowledged is lost, and all come back by themselves.

mod faults;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde::Serialize;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::cluster::{Cluster, Store};
use crate::fault::{BACK, Killed, each_is_served_once};
use crate::figures::{self, Spread, Traffic};
use crate::metrics::StoreOps;
use crate::report::{self, Limit};
use crate::rooms::Rooms;

const PODS: i32 = 3;
const WRITES: u32 = 60;
const STATE: usize = 4096;
/// Of one pod to the store in a second.
const REQUESTS: u32 = 1000;
/// A fault that takes longer hangs.
const LONGEST: Duration = Duration::from_mins(6);
/// Load runs so long before anything breaks, and after all is well.
const MARGIN: Duration = Duration::from_secs(1);
/// The pool's, and the default.
const LEASE: Duration = Duration::from_secs(15);

/// How many faults to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Each kind of loss once, in minutes: for every landing.
    Bounded,
    /// All of them.
    All,
}

/// What broke, and what is expected of it.
#[derive(Debug, Default)]
struct Broken {
    /// When (nanoseconds since 1970).
    at: u64,
    /// Pods whose servers it took.
    pods: Vec<String>,
    /// Pods whose hosts could not report their last ends, and since when.
    killed: Killed,
}

/// A fault: breaks something, waits for what it is to cause, and mends what does not mend itself.
struct Fault {
    name: &'static str,
    run: for<'a> fn(&'a Rooms) -> LocalBoxFuture<'a, Result<Broken>>,
    /// Servers are served elsewhere within this; none: no server may stop at all.
    limit: Option<Duration>,
    part: Part,
}

const fn fault(
    name: &'static str,
    part: Part,
    limit: Option<Duration>,
    run: for<'a> fn(&'a Rooms) -> LocalBoxFuture<'a, Result<Broken>>,
) -> Fault {
    Fault { name, run, limit, part }
}

/// From the death of a container that a kubelet sees, to being served again.
const REPORTED: Option<Duration> = Some(Duration::from_secs(3));
/// From a loss that nobody reports.
const SILENT: Option<Duration> = Some(LEASE.saturating_add(Duration::from_secs(3)));
/// The same where another replica must take over first, which counts anew: a Lease of 8 s, and the time to read all.
const LEADERLESS: Option<Duration> = Some(LEASE.saturating_add(Duration::from_secs(12)));
/// Where what is lost must be started first.
const SLOW: Option<Duration> = Some(Duration::from_secs(40));

const FAULTS: [Fault; 16] = [
    fault("host container killed", Part::Bounded, REPORTED, |rooms| faults::host_killed(rooms).boxed_local()),
    fault("host out of memory", Part::Bounded, REPORTED, |rooms| faults::out_of_memory(rooms).boxed_local()),
    fault("agent container killed", Part::Bounded, None, |rooms| faults::agent_killed(rooms).boxed_local()),
    fault("deleted with --force", Part::Bounded, SILENT, |rooms| faults::forced(rooms).boxed_local()),
    fault("evicted", Part::All, REPORTED, |rooms| faults::evicted(rooms).boxed_local()),
    fault("pod cut off, yet alive", Part::Bounded, SILENT, |rooms| faults::cut_off(rooms).boxed_local()),
    fault("agent paused", Part::Bounded, SILENT, |rooms| faults::paused(rooms, false).boxed_local()),
    fault("agent and host paused", Part::All, SILENT, |rooms| faults::paused(rooms, true).boxed_local()),
    fault("node lost", Part::Bounded, SILENT, |rooms| faults::node_lost(rooms, false).boxed_local()),
    fault("node lost, and the leader", Part::All, LEADERLESS, |rooms| faults::node_lost(rooms, true).boxed_local()),
    fault("operator killed in mid-drain", Part::Bounded, SLOW, |rooms| faults::operator_killed(rooms).boxed_local()),
    fault("operator rolled", Part::Bounded, None, |rooms| faults::operator_rolled(rooms).boxed_local()),
    fault("API server away for 60 s", Part::All, None, |rooms| faults::api_server_stopped(rooms).boxed_local()),
    fault("store away for 60 s", Part::All, None, |rooms| faults::store_stopped(rooms).boxed_local()),
    fault("rollout without the store", Part::All, SLOW, |rooms| faults::rollout_without_store(rooms).boxed_local()),
    fault("everything restarted at once", Part::All, SLOW, |rooms| faults::everything(rooms).boxed_local()),
];

/// One fault, as it is written to `target/figures/chaos.json`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// What broke.
    pub fault: String,
    /// Servers that were running.
    pub servers: usize,
    /// Servers that it stopped.
    pub struck: usize,
    /// Answers of two owners, and terms that overlap in the outside ledger.
    pub double_served: usize,
    /// Writes acknowledged as stored that are gone.
    pub acked_lost: u64,
    /// From the fault until each server that it stopped was served again, by the ledger.
    pub recovery_ms: Spread,
    /// The most requests of any second that the store answered.
    pub store_ops_peak: f64,
    /// All requests, while it was broken and before and after.
    pub requests: usize,
    /// Status 400 or more, a broken connection, or no answer in five seconds.
    pub failed_requests: usize,
    /// Answered, but after more than 250 ms.
    pub slow_requests: usize,
}

/// Tries the faults of this part whose names contain `only` on so many servers, prints the table, and writes
/// `target/figures/chaos.json`. Fails if something was served twice or lost, or did not come back.
pub async fn run(servers: usize, part: Part, only: &str) -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    let pool = json!({ "store": { "s3": { "maxRequestsPerSecond": REQUESTS } } });
    let rooms = Rooms::start(&cluster, "chaos", PODS, pool).await?;
    faults::prepare(&rooms).await?;
    rooms.create(servers, STATE).await?;
    let (mut rows, mut limits) = (Vec::new(), Vec::new());
    for fault in FAULTS.iter().filter(|fault| (part == Part::All || fault.part == part) && fault.name.contains(only)) {
        let row = timeout(LONGEST, fault.strike(&rooms, servers)).await.context("it hangs").and_then(|row| row);
        let row = row.with_context(|| fault.name.to_owned())?;
        println!("{}", line(&row));
        limits.extend(fault.limits(&row));
        rows.push(row);
    }
    println!("\n{}\n", table(&rows));
    report::write("chaos", &rows)?;
    report::check(&limits)?;
    rooms.close().await
}

impl Fault {
    async fn strike(&self, rooms: &Rooms, servers: usize) -> Result<Row> {
        rooms.ready_pods(usize::try_from(PODS)?).await?;
        rooms.all_running(servers, BACK).await?;
        let load = rooms.load(servers, WRITES).await?;
        sleep(MARGIN).await;
        let mut peak = 0.0;
        let struck = async {
            let broken = (self.run)(rooms).await?;
            rooms.all_running(servers, BACK).await?;
            sleep(MARGIN).await;
            anyhow::Ok(broken)
        };
        let broken = tokio::select! {
            broken = struck => broken?,
            never = watch_store(rooms, &mut peak) => match never {},
        };
        let seen = load.stop().await?;
        report::failures(&seen.failures);
        let overlaps = rooms.ledger.overlaps(&broken.killed).await;
        for overlap in overlaps.iter().take(5) {
            println!("  {overlap:?}");
        }
        let struck = rooms.ledger.recoveries(broken.at, &broken.pods);
        rooms.ledger.close(&broken.killed);
        let recovered: Vec<u64> = struck.iter().copied().flatten().collect();
        ensure!(recovered.len() == struck.len(), "{} servers never came back", struck.len() - recovered.len());
        each_is_served_once(rooms, servers).await?;
        let Traffic { requests, failed, slow } = figures::traffic(&seen.answers);
        Ok(Row {
            fault: self.name.into(),
            servers,
            struck: struck.len(),
            double_served: figures::double_served(&seen.answers) + overlaps.len(),
            acked_lost: figures::lost(&seen.answers).acked,
            recovery_ms: Spread::of(recovered),
            store_ops_peak: peak,
            requests,
            failed_requests: failed,
            slow_requests: slow,
        })
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^53")]
    fn limits(&self, row: &Row) -> Vec<Limit> {
        let name = |what: &str| format!("{}: {what}", self.name);
        let mut limits = vec![
            Limit::count(&name("answers of two owners at once"), row.double_served as f64, 0.0),
            Limit::count(&name("acknowledged writes lost"), row.acked_lost as f64, 0.0),
        ];
        let ceiling = f64::from(PODS) * f64::from(REQUESTS);
        limits.push(Limit::count(&name("most requests of a second to the store"), row.store_ops_peak, ceiling));
        limits.push(match self.limit {
            None => Limit::count(&name("servers that stopped"), row.struck as f64, 0.0),
            Some(limit) => {
                Limit::time(&name("longest recovery (ms)"), row.recovery_ms.max, limit.as_secs_f64() * 1_000.0)
            }
        });
        limits
    }
}

/// Notes the most requests of a second, for ever.
async fn watch_store(rooms: &Rooms, peak: &mut f64) -> Infallible {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<(Instant, StoreOps)> = None;
    loop {
        seconds.tick().await;
        // A store that is stopped answers nobody, and counts from zero when it is back.
        let now = StoreOps::count(rooms.cluster.store.metrics).await.ok().map(|count| (Instant::now(), count));
        if let (Some((at, earlier)), Some((now, later))) = (before, now) {
            let since = now - at;
            *peak = peak.max((later - earlier).total() / since.as_secs_f64());
        }
        before = now;
    }
}

fn table(rows: &[Row]) -> String {
    let head = format!(
        "{:<32}{:>8}{:>7}{:>7}{:>11}{:>22}{:>10}{:>8}",
        "fault", "servers", "struck", "twice", "acked lost", "recovery p50/max ms", "requests", "failed"
    );
    report::listed(head, rows.iter().map(line))
}

fn line(row: &Row) -> String {
    let time = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.0}"));
    let recovery = format!("{} / {}", time(row.recovery_ms.p50), time(row.recovery_ms.max));
    format!(
        "{:<32}{:>8}{:>7}{:>7}{:>11}{recovery:>22}{:>10}{:>8}",
        row.fault, row.servers, row.struck, row.double_served, row.acked_lost, row.requests, row.failed_requests
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_no_server_has_no_time() {
        let row = Row { fault: "store away".into(), servers: 4, ..Row::default() };
        assert!(line(&row).contains("- / -"));
        let stopped = Row { struck: 1, ..row };
        let fault = FAULTS.iter().find(|fault| fault.limit.is_none()).unwrap();
        assert!(fault.limits(&stopped).iter().any(Limit::broken));
    }
}
