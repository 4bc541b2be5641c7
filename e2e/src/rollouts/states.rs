//! What servers keep while no pod can have them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{LIMIT, WRITES};
use crate::cluster::Cluster;
use crate::figures::{self, Answer, Lost};
use crate::rooms::Rooms;
use crate::wait::until;

const PODS: i32 = 3;
const SERVERS: usize = 30;
const STATE: usize = 4096;
/// So long servers are written to.
const WRITING: Duration = Duration::from_secs(2);

/// Something that leaves servers without a pod for a time.
pub struct Absence {
    /// What it is.
    pub name: &'static str,
    /// Lets it happen; what servers answered in the middle of it.
    run: for<'a> fn(&'a Rooms) -> LocalBoxFuture<'a, Result<Vec<Answer>>>,
}

/// All of them.
pub const ALL: [Absence; 2] = [
    Absence { name: "scaled to nothing, and to 3", run: |rooms| to_nothing(rooms).boxed_local() },
    Absence { name: "rolled back to what cannot load the states", run: |rooms| back(rooms).boxed_local() },
];

impl Absence {
    /// Servers are written to before and after. Fails if anything that was answered is gone, or a request failed.
    pub async fn go(&self, cluster: &Cluster) -> Result<()> {
        let rooms = Rooms::start(cluster, "absence", PODS, json!({})).await?;
        rooms.create(SERVERS, STATE).await?;
        let mut answers = written(&rooms).await?;
        answers.extend((self.run)(&rooms).await?);
        rooms.all_running(SERVERS, LIMIT).await?;
        answers.extend(written(&rooms).await?);
        let Lost { answered, acked } = figures::lost(&answers);
        let failed = figures::traffic(&answers).failed;
        ensure!((answered, acked, failed) == (0, 0, 0), "{answered} answered lost, {acked} acked, {failed} failed");
        rooms.close().await
    }
}

/// What all servers answer when they are read, written to, and read again.
async fn written(rooms: &Rooms) -> Result<Vec<Answer>> {
    let load = rooms.load(SERVERS, WRITES).await?;
    sleep(WRITING).await;
    Ok(load.stop().await?.answers)
}

async fn to_nothing(rooms: &Rooms) -> Result<Vec<Answer>> {
    rooms.scale(0).await?;
    waiting(rooms, "no pod of pool rooms can host now").await?;
    rooms.scale(PODS).await?;
    Ok(Vec::new())
}

/// Newer pods load what older ones wrote, and write what those cannot load. Rolled back to those, servers wait, and say
/// for what; rolled forward, they go on. One that was not written to in between could go back: its state is an old one.
async fn back(rooms: &Rooms) -> Result<Vec<Answer>> {
    let format = |version: Value| {
        json!({ "template": { "spec": { "containers": [{
            "name": "rooms", "env": [{ "name": "ROOMS_STATE_VERSION", "value": version }],
        }] } } })
    };
    rolled(rooms, format(json!("2"))).await?;
    rooms.all_running(SERVERS, LIMIT).await?;
    let answers = written(rooms).await?;
    rolled(rooms, format(json!("1"))).await?;
    waiting(rooms, "no pod of pool rooms can load type room with state version 2").await?;
    rolled(rooms, format(json!("2"))).await?;
    Ok(answers)
}

async fn rolled(rooms: &Rooms, spec: Value) -> Result<()> {
    rooms.change(spec).await?;
    // Waits for the last pod of another template to be gone.
    rooms.scale(PODS).await
}

/// Waits until no server has a pod, and each says this of why.
async fn waiting(rooms: &Rooms, why: &str) -> Result<()> {
    let api = rooms.cluster.objects(&rooms.namespace, "DurableServer");
    let mut last = String::new();
    let waits = until("all servers wait, and say for what", LIMIT, async || {
        let servers = api.list(&kube::api::ListParams::default()).await?.items;
        let says = |status: &Value| {
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let placed = conditions.iter().find(|condition| condition["type"] == "Placed").cloned().unwrap_or_default();
            status["phase"] == "Pending" && placed["message"].as_str().is_some_and(|said| said.contains(why))
        };
        let other = servers.iter().map(|server| &server.data["status"]).find(|status| !says(status));
        last = other.map(Value::to_string).unwrap_or_default();
        Ok((servers.len() == SERVERS && other.is_none()).then_some(()))
    });
    waits.await.with_context(|| format!("one has {last}"))
}
