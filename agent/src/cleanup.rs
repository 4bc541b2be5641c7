//! Deleting old records, and logs of deleted servers, slowly, off every hot path.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use handoff::log::Retention;
use tokio::time;

use crate::{
    agent::Agent,
    servers::{Phase, Server},
    sync,
};

/// A look at every server of this pod takes about this long.
const ROUND: Duration = Duration::from_mins(10);

/// Between two looks for logs of deleted servers, less up to half of it, so that pods that began together drift apart.
const SWEEP: Duration = Duration::from_hours(1);

/// Looks at one server after the other, for ever.
pub async fn run(agent: Arc<Agent>) {
    loop {
        let servers = agent.servers.all();
        let pause = ROUND / u32::try_from(servers.len().max(1)).unwrap_or(u32::MAX);
        for server in &servers {
            time::sleep(pause).await;
            if server.phase() != Phase::Active || agent.draining.is_draining() {
                continue;
            }
            let keep = agent.pool().map_or(3, |pool| pool.settings.keep_records);
            let retention = Retention { keep: usize::try_from(keep).unwrap_or(usize::MAX), ..Retention::default() };
            match server.log.cleanup(&retention).await {
                Ok(cleaned) if cleaned.deleted > 0 => {
                    tracing::debug!(server = %server.id, deleted = cleaned.deleted, "old records deleted");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(server = %server.id, %error, "cleanup failed"),
            }
            notice_a_later_term(&agent, server).await;
        }
        if servers.is_empty() {
            time::sleep(ROUND).await;
        }
    }
}

/// A server whose state does not change writes nothing, and would never find out that it is fenced: that an older state
/// of it was restored, for example. The cleanup has just read its newest record.
async fn notice_a_later_term(agent: &Arc<Agent>, server: &Arc<Server>) {
    let _turn = server.turn.lock().await;
    let Some(newest) = server.log.newest_known() else { return };
    if newest.epoch > server.epoch() && server.phase() == Phase::Active && agent.servers.get(&server.id.uid).is_some() {
        sync::lost(agent, server, newest.epoch).await;
    }
}

/// Deletes logs a day after their Tombstone, and heartbeats that pods left behind, for ever: two listings an hour where there
/// are none. Every pod of the pool does so, since any may be the last.
pub async fn sweep(agent: Arc<Agent>) {
    loop {
        time::sleep(SWEEP.mul_f64(1.0 - rand::random::<f64>() / 2.0)).await;
        let Ok(pool) = agent.pool() else { continue };
        if agent.draining.is_draining() {
            continue;
        }
        match store::logs::sweep(&pool.store, &pool.settings.store.prefix, SystemTime::now()).await {
            Ok(swept) if swept.logs > 0 => {
                tracing::info!(logs = swept.logs, records = swept.records, "logs of deleted servers are gone");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "logs of deleted servers are not looked for"),
        }
        match pool.heartbeats().sweep(SystemTime::now()).await {
            Ok(swept) if swept > 0 => tracing::info!(swept, "heartbeats of pods that are gone are deleted"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "heartbeats of pods that are gone are not looked for"),
        }
    }
}
