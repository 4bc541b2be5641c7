//! The operator's page in a real browser, while a rolling restart goes on.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::browser::Browser;
use e2e::cluster::{Cluster, SYSTEM, Store, repository};
use e2e::rooms::Rooms;
use e2e::wait::until;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

const ROOMS: usize = 300;
const SHOWN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(60);
const ROLLED: Duration = Duration::from_mins(3);
/// The page's port: that of health and metrics.
const PORT: u16 = 8080;
const SIZE: (u32, u32) = (1440, 700);

/// What a reader sees of one pool.
#[derive(Debug, Clone, Deserialize)]
struct Shown {
    columns: Vec<Column>,
    dots: Vec<Dot>,
    drains: Vec<Drain>,
}

#[derive(Debug, Clone, Deserialize)]
struct Column {
    pod: String,
    state: String,
    revision: String,
    servers: usize,
    left: f64,
    right: f64,
}

#[derive(Debug, Clone, Deserialize)]
struct Dot {
    server: String,
    x: f64,
    y: f64,
    flies: bool,
}

/// A row of the table of drains, as its data attributes have it: text.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Drain {
    handoff: String,
    phase: String,
    total: String,
    moved: String,
    stopped: String,
    failed: String,
    gap_p50: String,
    gap_max: String,
}

const READ: &str = r#"(() => {
  const root = document.querySelector('section[data-pool="POOL"]');
  if (!root) return null;
  const column = (node) => {
    const { left, right } = node.getBoundingClientRect(), { pod = "", state = "", revision = "", servers } = node.dataset;
    return { pod, state, revision, servers: Number(servers), left, right };
  };
  return {
    columns: [...root.querySelectorAll(".pod")].map(column),
    dots: durable.dots().filter((dot) => dot.server.startsWith("NAMESPACE/")),
    drains: [...root.querySelectorAll("tr[data-handoff]")].map((row) => ({ ...row.dataset })),
  };
})()"#;

struct Page {
    browser: Browser,
    read: String,
    /// Brings the pool to the top of the window.
    scroll: String,
}

impl Page {
    /// The page of the operator that leads, where this pool is shown.
    async fn open(rooms: &Rooms) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(rooms.cluster.client.clone(), SYSTEM);
        let operators = pods.list(&ListParams::default().labels("app.kubernetes.io/component=operator")).await?;
        let pool = format!("{}/rooms", rooms.namespace);
        let read = READ.replace("POOL", &pool).replace("NAMESPACE", &rooms.namespace);
        let scroll = format!("document.querySelector('section[data-pool=\"{pool}\"]').scrollIntoView()");
        let addresses = operators.into_iter().filter_map(|pod| pod.status.and_then(|status| status.pod_ip));
        for address in addresses {
            let browser = Browser::open(&format!("http://{address}:{PORT}/"), SIZE.0, SIZE.1).await?;
            let mut page = Self { browser, read: read.clone(), scroll: scroll.clone() };
            let shown = until("the pool is shown", SHOWN, async || Ok(page.look().await?.map(|_| ()))).await;
            if shown.is_ok() {
                return Ok(page);
            }
            page.browser.close().await?;
        }
        anyhow::bail!("no operator's page shows the pool")
    }

    async fn look(&mut self) -> Result<Option<Shown>> {
        Ok(serde_json::from_value(self.browser.value(&self.read).await?)?)
    }

    /// Waits until each pod has a column with as many dots as it has servers, each at rest and within it.
    async fn settled(&mut self, rooms: &Rooms) -> Result<Shown> {
        until("the page shows what Kubernetes says", SHOWN, async || {
            let mut wanted: BTreeMap<String, usize> = rooms.view.pods().into_iter().map(|pod| (pod.name, 0)).collect();
            for server in rooms.view.servers() {
                *wanted.entry(server.pod).or_default() += 1;
            }
            let Some(shown) = self.look().await? else { return Ok(None) };
            let got: BTreeMap<String, usize> = shown.columns.iter().map(|c| (c.pod.clone(), c.servers)).collect();
            let within = |column: &Column, dot: &Dot| column.left < dot.x && dot.x < column.right;
            let placed =
                shown.columns.iter().all(|c| shown.dots.iter().filter(|dot| within(c, dot)).count() == c.servers);
            let rests = shown.dots.iter().all(|dot| !dot.flies);
            Ok((got == wanted && placed && rests).then_some(shown))
        })
        .await
    }

    /// The page in light and in dark, with this pool at its top.
    async fn pictures(&mut self) -> Result<[Vec<u8>; 2]> {
        self.browser.value(&self.scroll).await?;
        let light = self.browser.picture().await?;
        self.browser.prefer_dark(true).await?;
        let dark = self.browser.picture().await?;
        self.browser.prefer_dark(false).await?;
        Ok([light, dark])
    }
}

/// What was seen in the course of a rollout.
#[derive(Default)]
struct Seen {
    draining: BTreeSet<String>,
    flown: BTreeSet<String>,
    /// Of each drain, when the page was in the middle of it.
    pictures: Vec<(String, [Vec<u8>; 2])>,
}

/// Looks at the page again and again, until dropped.
async fn follow(page: &mut Page, seen: &mut Seen) -> Result<()> {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shown) = page.look().await? else { continue };
        seen.draining.extend(shown.columns.iter().filter(|c| c.state == "Draining").map(|c| c.pod.clone()));
        let flying = || shown.dots.iter().filter(|dot| dot.flies);
        seen.flown.extend(flying().map(|dot| dot.server.clone()));
        let number = |text: &str| text.parse::<usize>().unwrap_or_default();
        let in_the_middle = shown.drains.iter().find(|drain| {
            let (moved, total) = (number(&drain.moved), number(&drain.total));
            drain.phase == "Running" && moved * 4 > total && moved * 8 < total * 7
        });
        if let Some(drain) = in_the_middle.filter(|_| flying().count() > 10)
            && seen.pictures.iter().all(|(of, _)| *of != drain.handoff)
        {
            let pictures = page.pictures().await?;
            seen.pictures.push((drain.handoff.clone(), pictures));
        }
    }
}

/// The drains as Kubernetes has them.
async fn handoffs(rooms: &Rooms) -> Result<Vec<Drain>> {
    let list = rooms.cluster.objects(&rooms.namespace, "Handoff").list(&ListParams::default()).await?;
    let mut drains: Vec<Drain> = list
        .into_iter()
        .map(|object| {
            let text = |field: &str| match &object.data["status"][field] {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Null => String::new(),
                other => other.to_string(),
            };
            Drain {
                handoff: object.metadata.name.clone().unwrap_or_default(),
                phase: text("phase"),
                total: text("total"),
                moved: text("moved"),
                stopped: text("stopped"),
                failed: text("failed"),
                gap_p50: text("gapP50"),
                gap_max: text("gapMax"),
            }
        })
        .collect();
    drains.sort();
    Ok(drains)
}

/// Writes the picture of the middle drain: then old and new pods both have servers.
fn keep(seen: &Seen) -> Result<()> {
    let (_, pictures) =
        seen.pictures.get(1).or(seen.pictures.first()).context("the page was never seen in the middle of a drain")?;
    let directory = repository().join("target/figures");
    std::fs::create_dir_all(&directory)?;
    for (name, picture) in ["page.png", "page-dark.png"].into_iter().zip(pictures) {
        std::fs::write(directory.join(name), picture)?;
    }
    Ok(())
}

/// Whoever points at a dot is told what it is. A dot that has moved since it was looked at is missed, so each look points
/// anew, and from elsewhere: to stay is no move. Pools of earlier tests, which are being removed, stand above this one: what is
/// below the window's end cannot be pointed at.
async fn told_what_a_dot_is(page: &mut Page, server: &str) -> Result<()> {
    let name = server.split('/').next_back().unwrap_or_default();
    let mut last = String::new();
    let told = until("the pointer tells what a dot is", SHOWN, async || {
        page.browser.value(&page.scroll).await?;
        let dots = page.look().await?.map(|shown| shown.dots).unwrap_or_default();
        let Some(dot) = dots.iter().find(|dot| dot.server == server) else { return Ok(None) };
        page.browser.point(1.0, 1.0).await?;
        page.browser.point(dot.x, dot.y).await?;
        let told = page.browser.value("document.getElementById('tip').innerText").await?;
        last = format!("{:?} at {:.0}, {:.0}", told.as_str().unwrap_or_default(), dot.x, dot.y);
        let told = told.as_str().unwrap_or_default();
        Ok((told.starts_with(name) && told.contains("serving")).then_some(()))
    });
    told.await.with_context(|| format!("told {last}"))?;
    page.browser.point(1.0, 1.0).await
}

/// The page, `kubectl get` and `kubectl describe` give the same sentence.
async fn told_why_a_server_waits(page: &mut Page, rooms: &Rooms) -> Result<()> {
    const WHY: &str = "no pod of pool rooms can load type nothing";
    let api = rooms.cluster.objects(&rooms.namespace, "DurableServer");
    let object = json!({
        "apiVersion": "durableserver.io/v1alpha1", "kind": "DurableServer", "metadata": { "name": "nobody" },
        "spec": { "pool": "rooms", "type": "nothing" },
    });
    api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    until("the page says why a server waits", SHOWN, async || {
        let notes =
            page.browser.value("[...document.querySelectorAll('.notes')].map((n) => n.innerText).join()").await?;
        Ok(notes.as_str().is_some_and(|notes| notes.contains(WHY)).then_some(()))
    })
    .await?;
    for verb in ["get", "describe"] {
        until(&format!("kubectl {verb} says why a server waits"), SHOWN, async || {
            let (_, said) = rooms.cluster.kubectl(&[verb, "dsrv", "nobody", "-n", &rooms.namespace]).await?;
            Ok(said.contains(WHY).then_some(()))
        })
        .await?;
    }
    api.delete("nobody", &DeleteParams::default()).await?;
    page.settled(rooms).await?;
    Ok(())
}

#[tokio::test]
async fn the_page_shows_servers_move_from_old_pods_to_new_ones() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let rooms = Rooms::start(&cluster, "page", 3, json!({})).await?;
    rooms.create(ROOMS, 4096).await?;
    let old: BTreeSet<String> = rooms.ready_pods(3).await?.into_iter().map(|pod| pod.name).collect();
    let mut page = Page::open(&rooms).await?;
    let before = page.settled(&rooms).await?;
    ensure!(before.dots.len() == ROOMS, "{} dots", before.dots.len());

    told_what_a_dot_is(&mut page, &before.dots.first().context("no dots")?.server).await?;
    told_why_a_server_waits(&mut page, &rooms).await?;

    let mut seen = Seen::default();
    let restarted = async {
        rooms.restart().await?;
        rooms.all_running(ROOMS, ROLLED).await
    };
    tokio::select! {
        restarted = restarted => restarted?,
        followed = follow(&mut page, &mut seen) => followed?,
    }
    keep(&seen)?;
    ensure!(seen.draining == old, "seen draining: {:?}, of {old:?}", seen.draining);
    ensure!(seen.flown.len() > ROOMS / 3, "only {} dots were seen on their way", seen.flown.len());

    let after = page.settled(&rooms).await?;
    ensure!(after.columns.len() == 3 && after.columns.iter().all(|c| c.revision == "new"), "{:?}", after.columns);
    ensure!(after.columns.iter().all(|column| !old.contains(&column.pod)), "{:?}", after.columns);
    let recorded = handoffs(&rooms).await?;
    ensure!(recorded.len() == 3 && recorded.iter().all(|drain| drain.phase == "Complete"), "{recorded:?}");
    until("the page's numbers are those of the Handoffs", SHOWN, async || {
        let mut drains = page.look().await?.map(|shown| shown.drains).unwrap_or_default();
        drains.sort();
        Ok((drains == recorded).then_some(()))
    })
    .await
    .with_context(|| format!("recorded: {recorded:?}"))?;

    let errors = page.browser.errors().await?;
    ensure!(errors.is_empty(), "the browser says: {errors:?}");
    page.browser.close().await?;
    rooms.close().await
}
