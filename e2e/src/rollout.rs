//! One rolling restart under load, measured from outside.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::join_all;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::figures::{self, Answer, Kind, Lost, Spread, Traffic};
use crate::ledger::Overlap;
use crate::live;
use crate::load::{Load, Seen};
use crate::metrics::{Histograms, StoreOps};
use crate::rooms::Rooms;
use crate::view::{Handoff, now};

/// Load runs so long before the restart begins and after it is over.
const MARGIN: Duration = Duration::from_secs(1);
/// How often agents are asked for their counters: an agent waits longer than this between its last handoff and its end.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const FOLLOW_EVERY: Duration = Duration::from_millis(200);
const SCRAPE_PATIENCE: Duration = Duration::from_millis(300);
const SETTLED: Duration = Duration::from_mins(1);

/// The figures of one rollout, as they are written to `target/figures`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// How many there are.
    pub servers: usize,
    /// Handed, live, to another pod; a server that moves twice counts twice.
    pub moved: usize,
    /// Stopped, and started elsewhere from the store.
    pub stopped: usize,
    /// Not running when all was over.
    pub lost: usize,
    /// Writes that were answered and are gone.
    pub answered_lost: u64,
    /// Writes that were acknowledged as stored and are gone.
    pub acked_lost: u64,
    /// The gaps of the probed servers.
    pub gap_ms: Spread,
    /// Status 400 or more, a broken connection, or no answer in five seconds.
    pub failed_requests: usize,
    /// Answered, but after more than 250 ms.
    pub slow_requests: usize,
    /// All requests.
    pub requests: usize,
    /// Requests to the store, less one PUT for each write that asked for one, per server moved or stopped.
    pub store_ops_per_handoff: StoreOps,
    /// Terms begun per server.
    pub hops_per_server: f64,
    /// Terms begun of the server that had most.
    pub most_hops: usize,
    /// Answers of an old epoch after one of a new one was there, and terms that overlap in the ledger.
    pub double_served: usize,
    /// From the moment a pod is told to end until it serves nobody; of the slowest pod.
    pub drain_s: f64,
    /// The whole restart, until the last old pod is gone.
    pub rollout_s: f64,
}

/// A rollout that is over.
#[derive(Debug, Default)]
pub struct Rollout {
    /// Its figures.
    pub figures: Figures,
    /// The gaps of the probed servers (nanoseconds).
    pub gaps: Vec<u64>,
    /// The stages of the handoffs, as timed by the agents.
    pub stages: Histograms,
    /// The drains that it was made of.
    pub handoffs: Vec<Handoff>,
    /// Terms that overlapped.
    pub overlaps: Vec<Overlap>,
    /// Why requests failed, and how often.
    pub failures: BTreeMap<String, usize>,
}

/// Restarts the rooms' pods while the outside client probes and writes. With `show`, says while it runs what moves
/// where.
pub async fn measure(rooms: &Rooms, servers: usize, writes_per_second: u32, show: bool) -> Result<Rollout> {
    observe(rooms, servers, writes_per_second, show, rooms.restart()).await
}

/// The same with anything else that sends servers to other pods.
pub async fn observe(
    rooms: &Rooms,
    servers: usize,
    writes_per_second: u32,
    show: bool,
    sends: impl Future<Output = Result<()>>,
) -> Result<Rollout> {
    rooms.all_running(servers, SETTLED).await?;
    let known: Vec<String> = rooms.view.handoffs().into_iter().map(|handoff| handoff.name).collect();
    let pods = rooms.view.pods();
    rooms.order(&pods).await?;
    let load = rooms.load(servers, writes_per_second).await?;
    let ops = StoreOps::count(rooms.cluster.store.metrics).await?;
    let begun = now();
    let mut watched = Watched::new(show, pods.into_iter().map(|pod| pod.name).collect());
    watched.during(rooms, &load, tokio::time::sleep(MARGIN)).await;
    let restart = Instant::now();
    let mut rollout_s = 0.0;
    let restarted = async {
        let sent = sends.await;
        rollout_s = restart.elapsed().as_secs_f64();
        sent
    };
    watched.during(rooms, &load, restarted).await?;
    watched.during(rooms, &load, rooms.all_running(servers, SETTLED)).await.ok();
    watched.during(rooms, &load, tokio::time::sleep(MARGIN)).await;
    let seen = load.stop().await?;
    let ops = StoreOps::count(rooms.cluster.store.metrics).await? - ops;
    let mut handoffs = rooms.view.handoffs();
    handoffs.retain(|handoff| !known.contains(&handoff.name));
    let mut rollout = Rollout { stages: watched.stages(), handoffs, ..Rollout::default() };
    rollout.overlaps = rooms.ledger.overlaps(&BTreeMap::new()).await;
    rollout.figures = figures(rooms, servers, &seen, &rollout, ops, begun);
    rollout.figures.rollout_s = hundredths(rollout_s);
    rollout.gaps = figures::gaps(&seen.answers);
    rollout.failures = seen.failures;
    Ok(rollout)
}

fn figures(rooms: &Rooms, servers: usize, seen: &Seen, rollout: &Rollout, ops: StoreOps, begun: u64) -> Figures {
    let sum = |of: fn(&Handoff) -> usize| rollout.handoffs.iter().map(of).sum::<usize>();
    let (moved, stopped) = (sum(|h| h.status.moved), sum(|h| h.status.stopped));
    let running = rooms.view.servers().iter().filter(|server| server.phase == "Running").count();
    let synced = seen.answers.iter().filter(|a| a.kind == Kind::SyncedWrite && a.said.is_some()).count();
    let Lost { answered, acked } = figures::lost(&seen.answers);
    let traffic = figures::traffic(&seen.answers);
    let drains = rollout.handoffs.iter().filter_map(|handoff| rooms.drain_nanos(&handoff.source));
    Figures {
        servers,
        moved,
        stopped,
        lost: servers - running.min(servers),
        answered_lost: answered,
        acked_lost: acked,
        gap_ms: Spread::of(figures::gaps(&seen.answers)),
        failed_requests: traffic.failed,
        slow_requests: traffic.slow,
        requests: traffic.requests,
        store_ops_per_handoff: ops.without_puts(synced).per(moved + stopped),
        most_hops: rooms.ledger.most_begun_since(begun),
        hops_per_server: hundredths(figures::ratio(rooms.ledger.begun_since(begun), servers)),
        double_served: figures::double_served(&seen.answers) + rollout.overlaps.len(),
        drain_s: hundredths(figures::millis(drains.max().unwrap_or(0)) / 1_000.0),
        rollout_s: 0.0,
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// What is looked at while something else goes on.
struct Watched {
    show: bool,
    /// Pods to come whose servers are to be probed, in the order in which they will be emptied.
    next: VecDeque<String>,
    probing: Option<String>,
    since: Instant,
    stages: BTreeMap<String, Histograms>,
    traffic: Traffic,
    probed: Vec<Answer>,
}

impl Watched {
    fn new(show: bool, next: VecDeque<String>) -> Self {
        Self {
            show,
            next,
            probing: None,
            since: Instant::now(),
            stages: BTreeMap::new(),
            traffic: Traffic::default(),
            probed: Vec::new(),
        }
    }

    async fn during<T>(&mut self, rooms: &Rooms, load: &Load, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut looks = interval(LOOK_EVERY);
        let mut follows = interval(FOLLOW_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        follows.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = follows.tick() => self.follow(rooms, load),
                _ = looks.tick() => self.look(rooms, load).await,
            }
        }
    }

    /// Six servers are probed at any time, of the pod that is emptied next: of each drain six gaps are seen. Whether it is empty, its
    /// host says: their statuses follow when the next drain is half over.
    fn follow(&mut self, rooms: &Rooms, load: &Load) {
        if self.probing.as_ref().is_none_or(|pod| !rooms.ledger.serves(pod))
            && let Some(pod) = self.next.pop_front()
        {
            load.probe(rooms.six_of(&pod));
            self.probing = Some(pod);
        }
    }

    async fn look(&mut self, rooms: &Rooms, load: &Load) {
        if self.show {
            self.count(load);
            let gaps = Spread::of(figures::gaps(&self.probed));
            println!("{}", live::line(self.since.elapsed(), &rooms.view, self.traffic, &gaps));
        }
        // One that is starting or has just ended does not answer; what it had said before counts.
        let scraped = rooms.view.pods().into_iter().map(async |pod| {
            let stages = timeout(SCRAPE_PATIENCE, rooms.stages(&pod)).await;
            stages.ok()?.ok().map(|stages| (pod.name, stages))
        });
        self.stages.extend(join_all(scraped).await.into_iter().flatten());
    }

    fn count(&mut self, load: &Load) {
        let new = load.answers_from(self.traffic.requests);
        let more = figures::traffic(&new);
        self.traffic.requests += more.requests;
        self.traffic.failed += more.failed;
        self.traffic.slow += more.slow;
        self.probed.extend(new.into_iter().filter(|answer| answer.kind == Kind::Probe));
    }

    fn stages(self) -> Histograms {
        self.stages.into_values().fold(Histograms::default(), Histograms::with)
    }
}
