//! The outside client: open-loop load on one address, every request sent once, every answer kept.
//!
//! It runs on a thread and a runtime of its own, so that what else a test does is not mistaken for a slow answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::figures::{Answer, Kind, Said};
use crate::http::Pool;
use crate::wait::until;

/// A client waits no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Each probed server is asked this often, which is part of every gap. Twice as often, 3,000 probes a second alone kept
/// two cores two thirds busy, and what was measured was their queue.
const PROBE_EVERY: Duration = Duration::from_millis(4);
/// One write in so many asks to be answered only when it is in the store.
const SYNC_ONE_IN: u64 = 10;
/// Connections opened before the load begins.
const CONNECTIONS: usize = 24;
/// Answers that one probed server may owe. One that owes half a second's is not asked again until it answers: more
/// would need so many connections that the client measures those.
const MAX_OWED: usize = 125;
/// First and last every server is read once, this many at a time.
const SWEEP: usize = 32;

/// What load to make.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where: the Service.
    pub address: SocketAddr,
    /// Names of all the servers.
    pub servers: Vec<String>,
    /// Writes a second, shared by those that are not being probed.
    pub writes_per_second: u32,
    /// Times are measured: the client comes before all else on this machine.
    pub first: bool,
}

/// Load that is being made.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<()>>,
    client: Arc<Client>,
}

/// What came of it.
#[derive(Debug)]
pub struct Seen {
    /// Every answer, in the order in which they came.
    pub answers: Vec<Answer>,
    /// Why requests failed, and how often.
    pub failures: BTreeMap<String, usize>,
}

impl Load {
    /// Reads every server once and then makes the load until `stop`.
    pub async fn start(plan: Plan) -> Result<Self> {
        let client = Arc::new(Client::new(plan)?);
        let (stop, stopped) = watch::channel(false);
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let shared = Arc::clone(&client);
        let thread = std::thread::Builder::new().name("load".into()).spawn(move || {
            if shared.plan.first {
                come_first();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                // The Service may lead for a moment more to a pod that has just gone.
                until("connections are open", PATIENCE, async || Ok(shared.pool.warm(CONNECTIONS).await.ok())).await?;
                shared.sweep().await;
                let _ = begun.send(());
                shared.run(stopped).await;
                shared.sweep().await;
                Ok(())
            })
        })?;
        let load = Self { stop, thread, client };
        if has_begun.await.is_err() {
            load.thread.join().map_err(|_| anyhow!("the load's thread panicked"))??;
            bail!("the load ended before it began");
        }
        Ok(load)
    }

    /// The answers from this one on. The load waits while they are copied: take few at a time.
    #[must_use]
    pub fn answers_from(&self, first: usize) -> Vec<Answer> {
        self.client.seen().answers.get(first..).map(<[Answer]>::to_vec).unwrap_or_default()
    }

    /// From now on, these servers (places in the plan) are probed, and no others.
    pub fn probe(&self, servers: Vec<u32>) {
        *self.client.probed() = servers;
    }

    /// Ends the load, waits for the answers still owed, reads every server once more.
    pub async fn stop(self) -> Result<Seen> {
        self.stop.send_replace(true);
        tokio::task::spawn_blocking(|| self.thread.join())
            .await?
            .map_err(|_| anyhow!("the load's thread panicked"))??;
        let mut seen = self.client.seen();
        Ok(Seen { answers: std::mem::take(&mut seen.answers), failures: std::mem::take(&mut seen.failures) })
    }
}

/// The client stands for other machines: what it waits for the processors that it shares with the cluster is nobody's gap.
/// A real-time priority ends that wait, which nice does not (130 ms at nice -10 on a busy machine, none like this).
pub(crate) fn come_first() {
    let set = || -> Result<()> {
        let link = std::fs::read_link("/proc/thread-self")?;
        let thread = link.file_name().context("a thread without a number")?;
        let done = Command::new("chrt").args(["--fifo", "--pid", "1"]).arg(thread).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr).trim_end());
        Ok(())
    };
    if let Err(error) = set() {
        eprintln!("the client shares the processors with the cluster, which makes gaps look longer: {error:#}");
    }
}

#[derive(Debug)]
struct Client {
    plan: Plan,
    pool: Pool,
    host: String,
    reads: Vec<Uri>,
    writes: Vec<Uri>,
    synced_writes: Vec<Uri>,
    probed: Mutex<Vec<u32>>,
    written: AtomicU64,
    owed: Vec<AtomicUsize>,
    origin: (u64, Instant),
    seen: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    answers: Vec<Answer>,
    failures: BTreeMap<String, usize>,
}

impl Client {
    fn new(plan: Plan) -> Result<Self> {
        let paths = |what: &str| -> Result<Vec<Uri>> {
            plan.servers.iter().map(|name| Ok(format!("/{name}/{what}").parse()?)).collect()
        };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH)?;
        Ok(Self {
            reads: paths("count")?,
            writes: paths("messages")?,
            synced_writes: paths("messages?sync=1")?,
            pool: Pool::new(plan.address),
            host: plan.address.to_string(),
            probed: Mutex::default(),
            written: AtomicU64::new(0),
            owed: plan.servers.iter().map(|_| AtomicUsize::new(0)).collect(),
            origin: (u64::try_from(wall.as_nanos())?, Instant::now()),
            seen: Mutex::default(),
            plan,
        })
    }

    fn probed(&self) -> MutexGuard<'_, Vec<u32>> {
        self.probed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Kept> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since 1970 by a clock that does not jump: what the ledger's reports are compared with.
    fn now(&self) -> u64 {
        self.origin.0 + u64::try_from(self.origin.1.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn sweep(self: &Arc<Self>) {
        let all: Vec<u32> = (0..).take(self.plan.servers.len()).collect();
        for some in all.chunks(SWEEP) {
            futures::future::join_all(some.iter().map(|place| self.ask(*place, Kind::Read))).await;
        }
    }

    async fn run(self: &Arc<Self>, mut stopped: watch::Receiver<bool>) {
        tokio::select! {
            () = self.probe() => {}
            () = self.write() => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
        // What is under way ends by itself within `PATIENCE`.
        let mut looks = interval(PROBE_EVERY);
        while self.owed.iter().any(|owed| owed.load(Ordering::Relaxed) > 0) {
            looks.tick().await;
        }
    }

    /// Half of the probes on every other millisecond, so that they do not arrive as one burst.
    async fn probe(self: &Arc<Self>) {
        let mut ticks = interval(PROBE_EVERY / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for half in [0, 1].into_iter().cycle() {
            ticks.tick().await;
            for place in self.probed().iter().skip(half).step_by(2) {
                if self.owed[*place as usize].load(Ordering::Relaxed) < MAX_OWED {
                    self.spawn(*place, Kind::Probe);
                }
            }
        }
    }

    async fn write(self: &Arc<Self>) {
        if self.plan.writes_per_second == 0 {
            return std::future::pending().await;
        }
        let mut ticks = interval(Duration::from_secs(1) / self.plan.writes_per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut places = (0..).take(self.plan.servers.len()).cycle();
        for n in 0u64.. {
            ticks.tick().await;
            let mut once = places.by_ref().take(self.plan.servers.len());
            let Some(place) = once.find(|place| !self.probed().contains(place)) else { continue };
            // Shifted now and then, so that every server gets both kinds.
            let kind = if n % SYNC_ONE_IN == n / 997 % SYNC_ONE_IN { Kind::SyncedWrite } else { Kind::Write };
            self.spawn(place, kind);
        }
    }

    fn spawn(self: &Arc<Self>, place: u32, kind: Kind) {
        let client = Arc::clone(self);
        self.owed[place as usize].fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            client.ask(place, kind).await;
            client.owed[place as usize].fetch_sub(1, Ordering::Relaxed);
        });
    }

    async fn ask(&self, place: u32, kind: Kind) {
        let sent_at = self.now();
        let said = match timeout(PATIENCE, self.try_ask(place, kind)).await {
            Ok(said) => said,
            Err(_) => Err(anyhow!("no answer in {PATIENCE:?}")),
        };
        self.keep(place, kind, sent_at, said);
    }

    async fn try_ask(&self, place: u32, kind: Kind) -> Result<Said> {
        let uris = match kind {
            Kind::Read | Kind::Probe => &self.reads,
            Kind::Write => &self.writes,
            Kind::SyncedWrite => &self.synced_writes,
        };
        let uri = uris[place as usize].clone();
        let request = Request::builder().uri(uri).header(http::header::HOST, &self.host);
        let request = if matches!(kind, Kind::Read | Kind::Probe) {
            request.body(Full::default())?
        } else {
            let id = self.written.fetch_add(1, Ordering::Relaxed);
            let body = format!(r#"{{"id":"{}-{id}","from":"load","text":"{id}"}}"#, self.origin.0);
            request.method("POST").header("Content-Type", "application/json").body(Full::from(body))?
        };
        said(&self.pool.send(request).await?)
    }

    fn keep(&self, server: u32, kind: Kind, sent_at: u64, said: Result<Said>) {
        let received_at = self.now();
        let mut seen = self.seen();
        let said = said.map_err(|error| {
            // Failures of one kind are counted together, whichever server had them.
            let why = format!("{kind:?}: {error:#}").replace(&self.plan.servers[server as usize], "(server)");
            *seen.failures.entry(why).or_default() += 1;
        });
        seen.answers.push(Answer { server, sent_at, received_at, kind, said: said.ok() });
    }
}

fn said(answer: &Response<Bytes>) -> Result<Said> {
    #[derive(Deserialize)]
    struct Counted {
        count: u64,
    }
    let status = answer.status();
    if status.as_u16() >= 400 {
        let body = String::from_utf8_lossy(answer.body());
        bail!("{status}: {}", body.trim_end().chars().take(120).collect::<String>());
    }
    let epoch = answer.headers().get("Durable-Epoch").context("an answer without Durable-Epoch")?;
    let counted: Counted = serde_json::from_slice(answer.body()).context("an answer without a count")?;
    Ok(Said { epoch: epoch.to_str()?.parse()?, count: counted.count })
}
