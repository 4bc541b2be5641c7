//! Deleting old records, slowly, off every hot path.

use std::{sync::Arc, time::Duration};

use handoff::log::Retention;
use tokio::time;

use crate::{agent::Agent, servers::Phase};

/// A look at every server of this pod takes about this long.
const ROUND: Duration = Duration::from_mins(10);

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
        }
        if servers.is_empty() {
            time::sleep(ROUND).await;
        }
    }
}
