//! Sends servers to pods.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};
use crds::{DurableServer, MOVE_ANNOTATION, condition};
use kube::ResourceExt;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{
    args::{Move, Operator, Plan},
    ask,
    look::Namespace,
    table,
};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(300);
/// Reasons that are told when the time is over.
const TOLD: usize = 5;

/// Sends them, and waits for them if asked to.
pub async fn run(here: &Namespace, operator: &Operator, what: &Move) -> Result<()> {
    let servers = here.servers_named(&what.servers, what.selector.as_deref()).await?;
    let targets = targets(here, operator, what, &servers).await?;
    for (server, pod) in &targets {
        annotate(here, server, Some(pod)).await?;
    }
    if what.wait {
        return wait(here, targets, what.timeout).await;
    }
    println!(
        "{} servers are told where to be. They go there in their turn, and stay while they have the annotation {MOVE_ANNOTATION}: \
         kubectl annotate dsrv <name> {MOVE_ANNOTATION}- takes it away",
        targets.len()
    );
    Ok(())
}

/// To which pod each goes.
async fn targets(
    here: &Namespace,
    operator: &Operator,
    what: &Move,
    servers: &[DurableServer],
) -> Result<BTreeMap<String, String>> {
    if what.to != "best" {
        return Ok(servers.iter().map(|server| (server.name_any(), what.to.clone())).collect());
    }
    let pool = servers.first().map(|server| server.spec.pool.clone()).context("no server")?;
    if let Some(other) = servers.iter().find(|server| server.spec.pool != pool) {
        bail!("{} is not in pool {pool} as the first server is: move those of one pool at a time", other.name_any());
    }
    let plan = Plan::Move { servers: Vec::new(), selector: None, to: what.to.clone() };
    let told = ask::plan(here, operator, &ask::query(&here.name, &pool, &plan, servers)).await?;
    print!("{}", table::plan(&told));
    Ok(told.servers.into_iter().map(|sent| (sent.name, sent.to)).collect())
}

async fn annotate(here: &Namespace, server: &str, pod: Option<&String>) -> Result<()> {
    let patch = json!({ "metadata": { "annotations": { MOVE_ANNOTATION: pod } } });
    here.merge::<DurableServer>(server, patch).await.map(drop)
}

/// Until all are there. Each that has come may move again like all others.
async fn wait(here: &Namespace, mut targets: BTreeMap<String, String>, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    let all = targets.len();
    loop {
        let mut waiting = Vec::new();
        for (name, pod) in targets.clone() {
            let server = here.api::<DurableServer>().get(&name).await.with_context(|| format!("server {name}"))?;
            if is_there(&server, &pod) {
                annotate(here, &name, None).await?;
                targets.remove(&name);
            } else {
                waiting.push(server);
            }
        }
        if targets.is_empty() {
            println!("{all} servers are where they were sent");
            return Ok(());
        }
        if Instant::now() >= until {
            let why: Vec<String> = waiting.iter().take(TOLD).map(reason).collect();
            bail!(
                "{} of {all} servers are not there after {limit:?}, and keep the annotation {MOVE_ANNOTATION}:\n{}",
                targets.len(),
                why.join("\n")
            );
        }
        sleep(EVERY).await;
    }
}

/// The operator says so: a status is written only once a server's new owner has spoken.
fn is_there(server: &DurableServer, pod: &str) -> bool {
    let status = server.status.as_ref();
    let running = status.is_some_and(|status| status.phase == Some(crds::Phase::Running));
    running && status.and_then(|status| status.pod.as_deref()) == Some(pod)
}

fn reason(server: &DurableServer) -> String {
    let conditions = server.status.iter().flat_map(|status| &status.conditions);
    let moved = conditions.into_iter().find(|one| one.type_ == condition::MOVED);
    let why = moved.map(|one| one.message.as_str()).filter(|why| !why.is_empty());
    format!("  {}: {}", server.name_any(), why.unwrap_or("the operator has not said why: is it running?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status: serde_json::Value) -> DurableServer {
        let mut server = DurableServer::new("a", crds::DurableServerSpec::default());
        server.status = serde_json::from_value(status).unwrap();
        server
    }

    #[test]
    fn a_server_is_there_when_it_runs_there() {
        assert!(is_there(&server(json!({ "phase": "Running", "pod": "p" })), "p"));
        assert!(!is_there(&server(json!({ "phase": "HandingOff", "pod": "p" })), "p"));
        assert!(!is_there(&server(json!({ "phase": "Running", "pod": "q" })), "p"));
        assert!(!is_there(&server(json!(null)), "p"));
    }

    #[test]
    fn why_it_is_not_is_what_the_operator_says() {
        let condition = json!({
            "type": "Moved", "status": "False", "reason": "NoSuchPod", "message": "no pod p", "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        assert_eq!(reason(&server(json!({ "conditions": [condition] }))), "  a: no pod p");
        assert!(reason(&server(json!({}))).contains("has not said why"));
    }
}
