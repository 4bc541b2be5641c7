//! The picture, kept up to date in a terminal.

use std::{
    fmt::Debug,
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, Result};
use crds::{DurableServer, DurableServerPool, Handoff, POOL_LABEL};
use futures::StreamExt;
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod};
use kube::{
    Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    signal,
    task::JoinSet,
    time::{interval, timeout},
};

use crate::{
    look::{Namespace, Seen},
    screen,
};

/// Between two pictures.
const EVERY: Duration = Duration::from_millis(250);
/// All objects are there by then.
const FIRST: Duration = Duration::from_secs(15);
/// Where there is no terminal.
const SIZE: (usize, usize) = (24, 80);
/// Another screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Shows the picture until it is interrupted.
pub async fn run(here: &Namespace, pool: Option<String>) -> Result<()> {
    let (name, _) = here.pool(pool).await?;
    let mut watches = JoinSet::new();
    let labelled = watcher::Config::default().labels(&format!("{POOL_LABEL}={name}"));
    let with = |field: &str| watcher::Config::default().fields(&format!("{field}={name}"));
    let pools = follow::<DurableServerPool>(here, with("metadata.name"), &mut watches);
    let servers = follow::<DurableServer>(here, with("spec.pool"), &mut watches);
    let pods = follow::<Pod>(here, labelled.clone(), &mut watches);
    let drains = follow::<Handoff>(here, labelled, &mut watches);
    let all = async {
        tokio::try_join!(
            pools.wait_until_ready(),
            servers.wait_until_ready(),
            pods.wait_until_ready(),
            drains.wait_until_ready()
        )
    };
    let read = timeout(FIRST, all).await;
    read.context("not all objects could be read: may you list and watch dsp, dsrv, ho and pods here?")??;
    let terminal = std::io::stdout().is_terminal();
    if terminal {
        show(ENTER)?;
    }
    let mut ticks = interval(EVERY);
    let shown = loop {
        tokio::select! {
            interrupted = signal::ctrl_c() => break interrupted.map_err(Into::into),
            _ = ticks.tick() => {}
        }
        let Some(pool) = pools.state().pop() else { break Err(anyhow::anyhow!("pool {name} is gone")) };
        let mut seen = Seen { pool: (*pool).clone(), pods: owned(&pods), servers: owned(&servers) };
        seen.pods.sort_by_key(ResourceExt::name_any);
        let lines = screen::lines(&seen, &owned(&drains), size());
        // Each line is cleared behind its end, and what is below the last: no flicker as with an empty screen.
        if let Err(error) = show(&format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))) {
            break Err(error);
        }
        if !terminal {
            break Ok(());
        }
    };
    if terminal {
        show(LEAVE)?;
    }
    shown
}

fn show(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("the terminal is gone")
}

fn size() -> (usize, usize) {
    let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) else { return SIZE };
    if size.ws_row == 0 { SIZE } else { (size.ws_row.into(), size.ws_col.into()) }
}

fn owned<K>(store: &Store<K>) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.state().iter().map(|object| (**object).clone()).collect()
}

fn follow<K>(here: &Namespace, which: watcher::Config, watches: &mut JoinSet<()>) -> Store<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(here.api::<K>(), which).default_backoff().reflect(writer);
    // An error is followed by another try.
    watches.spawn(events.for_each(|_| std::future::ready(())));
    store
}
