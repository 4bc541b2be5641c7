//! Blue-green: a Service that is pointed at the pods of the other colour.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::{ACTIVE, LIMIT, PODS, emptied, workloads};
use crate::cluster::{OPERATOR, SYSTEM};
use crate::rooms::Rooms;
use crate::wait::until;

const GREEN: &str = "rooms-green";
/// What would go to preview pods has gone by then.
const A_WHILE: Duration = Duration::from_secs(1);

pub async fn flipped(rooms: &Rooms) -> Result<()> {
    green(rooms).await?;
    point(rooms, "green").await?;
    emptied(rooms, |pod| !pod.starts_with(GREEN)).await
}

/// While the selector changes, no operator leads, and then another one.
pub async fn flipped_without_operator(rooms: &Rooms) -> Result<()> {
    green(rooms).await?;
    let pointed = async {
        point(rooms, "green").await?;
        emptied(rooms, |pod| !pod.starts_with(GREEN)).await
    };
    tokio::try_join!(rooms.cluster.restart(SYSTEM, OPERATOR), pointed)?;
    Ok(())
}

pub async fn flipped_back(rooms: &Rooms) -> Result<()> {
    green(rooms).await?;
    point(rooms, "green").await?;
    until("half of them are green", LIMIT, async || {
        let servers = rooms.view.servers();
        let green = servers.iter().filter(|server| server.pod.starts_with(GREEN)).count();
        Ok((green * 2 >= servers.len()).then_some(()))
    })
    .await?;
    point(rooms, "blue").await?;
    emptied(rooms, |pod| pod.starts_with(GREEN)).await
}

/// The same pods once more, of another colour. Ready, and without a server while the Service leads elsewhere.
async fn green(rooms: &Rooms) -> Result<()> {
    let spec = workloads::spec(rooms).await?;
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": GREEN }, "spec": spec,
    });
    object["spec"]["selector"]["matchLabels"]["colour"] = json!("green");
    object["spec"]["template"]["metadata"]["labels"]["colour"] = json!("green");
    rooms.cluster.apply(&rooms.namespace, object).await?;
    rooms.ready_pods(2 * PODS).await?;
    sleep(A_WHILE).await;
    let early = rooms.view.servers().iter().filter(|server| server.pod.starts_with(GREEN)).count();
    ensure!(early == 0, "{early} servers are in preview pods");
    Ok(())
}

/// Points the Service that the pool follows at pods of this colour.
pub async fn point(rooms: &Rooms, colour: &str) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": ACTIVE },
        "spec": { "selector": { "colour": colour }, "ports": [{ "port": 80 }] },
    });
    rooms.cluster.apply(&rooms.namespace, service).await?;
    Ok(())
}
