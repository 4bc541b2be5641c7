//! Each verb of `kubectl durable`, typed as a person would, against what it is for.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{Cluster, Store};
use crate::rollouts::emptied;
use crate::rooms::{Rooms, room};
use crate::view::Server;
use crate::wait::until;

const PODS: usize = 3;
const SERVERS: usize = 30;
const STATE: usize = 1024;
const LIMIT: Duration = Duration::from_mins(1);
/// Long enough for moves to be seen that should not be: they begin within a second.
const NOTHING: Duration = Duration::from_secs(4);

/// All verbs.
pub async fn run() -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    let rooms = Rooms::start(&cluster, "plugin", i32::try_from(PODS)?, json!({})).await?;
    rooms.ready_pods(PODS).await?;
    rooms.create(SERVERS, STATE).await?;
    looked_at(&rooms).await.context("get and watch")?;
    sent(&rooms).await.context("move")?;
    kept(&rooms).await.context("cordon and pause")?;
    drained(&rooms).await.context("plan, drain and undrain")?;
    refused(&rooms).await.context("what cannot be")?;
    rooms.close().await
}

async fn looked_at(rooms: &Rooms) -> Result<()> {
    let said = says(rooms, &["get"]).await?;
    ensure!(said.starts_with(&format!("pool rooms: {SERVERS} servers, {SERVERS} running\n")), "{said}");
    for pod in rooms.view.pods() {
        let row = format!("{} {} Ready {} 0", pod.name, pod.node, of(rooms, &pod.name).len());
        ensure!(rows(&said).contains(&row), "no {row} in\n{said}");
    }
    // Where there is no terminal, it draws once.
    let said = says(rooms, &["watch", "rooms"]).await?;
    ensure!(rooms.view.pods().iter().all(|pod| said.contains(&pod.name)) && said.contains('█'), "{said}");
    Ok(())
}

async fn sent(rooms: &Rooms) -> Result<()> {
    let pods = rooms.ready_pods(PODS).await?;
    let (from, to) = (&pods[0].name, &pods[1].name);
    let name = of(rooms, from).first().map(|server| server.name.clone()).context("an empty pod")?;
    let said = says(rooms, &["move", &name, "--to", to, "--wait"]).await?;
    ensure!(said.contains("1 servers are where they were sent"), "{said}");
    let server = rooms.cluster.objects(&rooms.namespace, "DurableServer").get(&name).await?;
    ensure!(server.data["status"]["pod"] == json!(to), "{name} is not in {to}: {:?}", server.data["status"]);
    ensure!(server.metadata.annotations.unwrap_or_default().is_empty(), "the annotation is left");
    // From the fuller pods to the best one.
    let said = says(rooms, &["move", &name, "--to", "best", "--wait"]).await?;
    ensure!(said.contains("servers are where they were sent"), "{said}");
    rooms.all_running(SERVERS, LIMIT).await
}

async fn kept(rooms: &Rooms) -> Result<()> {
    let pod = rooms.ready_pods(PODS).await?.remove(0).name;
    let stays = of(rooms, &pod).first().map(|server| server.name.clone()).context("an empty pod")?;
    says(rooms, &["cordon", "--server", &stays]).await?;
    let said = says(rooms, &["plan", "drain", &pod]).await?;
    ensure!(said.contains("1 servers would not") && said.contains(&stays), "{said}");
    says(rooms, &["uncordon", "--server", &stays]).await?;
    says(rooms, &["pause"]).await?;
    ensure!(says(rooms, &["get"]).await?.contains(", paused"), "a paused pool does not say so");
    let before = of(rooms, &pod).len();
    says(rooms, &["drain", &pod]).await?;
    sleep(NOTHING).await;
    ensure!(of(rooms, &pod).len() == before, "servers of a paused pool move");
    says(rooms, &["undrain", &pod]).await?;
    says(rooms, &["resume"]).await.map(drop)
}

async fn drained(rooms: &Rooms) -> Result<()> {
    let pod = rooms.ready_pods(PODS).await?.remove(0).name;
    let leave = of(rooms, &pod).len();
    let said = says(rooms, &["plan", "drain", &pod]).await?;
    ensure!(said.contains(&format!("{leave} servers would move at once")), "{leave} servers are in {pod}:\n{said}");
    says(rooms, &["drain", &pod]).await?;
    emptied(rooms, |held| held == pod).await?;
    rooms.all_running(SERVERS, LIMIT).await?;
    is_empty(rooms, &pod, "Draining").await?;
    says(rooms, &["undrain", &pod]).await?;
    says(rooms, &["cordon", "--pod", &pod]).await?;
    is_empty(rooms, &pod, "Cordoned").await?;
    says(rooms, &["uncordon", "--pod", &pod]).await?;
    let said = says(rooms, &["plan", "rollout"]).await?;
    ensure!(said.contains(&format!("{SERVERS} servers would move")) && said.contains("(pods to come)"), "{said}");
    Ok(())
}

/// `get` says that this pod is in this state, and has nothing.
async fn is_empty(rooms: &Rooms, pod: &str, state: &str) -> Result<()> {
    let (said, end) = (says(rooms, &["get"]).await?, format!(" {state} 0 0"));
    ensure!(rows(&said).iter().any(|row| row.starts_with(pod) && row.ends_with(&end)), "no {pod}{end} in\n{said}");
    Ok(())
}

/// Each refusal names what is wrong, and changes nothing.
async fn refused(rooms: &Rooms) -> Result<()> {
    let nowhere = "nowhere";
    for (arguments, sentence) in [
        (&["drain", nowhere][..], "there is no pod nowhere"),
        (&["get", nowhere], "there is no pool nowhere"),
        (&["plan", "move", nowhere, "--to", "best"], "there is no server nowhere"),
        (&["move", "-l", "a=b", "--to", "best"], "no server in namespace"),
        (&["plan", "node", nowhere], nowhere),
    ] {
        let (fine, said) = rooms.cluster.durable(&rooms.namespace, arguments).await?;
        ensure!(!fine && said.contains(sentence), "{arguments:?}: {said}");
    }
    // A pod that there is not is a wish that waits, and says why.
    let (fine, said) = rooms
        .cluster
        .durable(&rooms.namespace, &["move", &room(0), "--to", nowhere, "--wait", "--timeout", "3"])
        .await?;
    ensure!(!fine && said.contains("1 of 1 servers are not there after 3s") && said.contains(nowhere), "{said}");
    until("its condition says why", LIMIT, async || {
        let server = rooms.cluster.objects(&rooms.namespace, "DurableServer").get(&room(0)).await?;
        let conditions = server.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(conditions.iter().any(|one| one["type"] == "Moved" && one["status"] == "False").then_some(()))
    })
    .await
}

/// What a verb says that goes well.
async fn says(rooms: &Rooms, arguments: &[&str]) -> Result<String> {
    let (fine, said) = rooms.cluster.durable(&rooms.namespace, arguments).await?;
    ensure!(fine, "kubectl durable {arguments:?}: {said}");
    Ok(said)
}

/// The servers of a pod.
fn of(rooms: &Rooms, pod: &str) -> Vec<Server> {
    rooms.view.servers().into_iter().filter(|server| server.pod == pod).collect()
}

/// Lines, with one space between words.
fn rows(said: &str) -> Vec<String> {
    said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}
