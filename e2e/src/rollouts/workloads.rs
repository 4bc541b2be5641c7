//! Deployments and `StatefulSet`s that are rolled and scaled.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{BLUE, LIMIT, PODS, emptied, fullest};
use crate::rooms::{DELETION_COST, Rooms};
use crate::view::Pod;
use crate::wait::until;

/// Between a pod that is ready and the end of the one that it replaces: the time in which servers move ahead.
const WINDOW_SECONDS: i32 = 8;
const SET: &str = "rooms-set";
/// What would move at once has moved by then.
const A_WHILE: Duration = Duration::from_secs(5);
const OUR_COST: &str = "durableserver.io/deletion-cost";

pub async fn restarted(rooms: &Rooms) -> Result<()> {
    rooms.restart().await?;
    evened(rooms).await
}

/// What moves, moves before any pod is told to end.
pub async fn ahead(rooms: &Rooms) -> Result<()> {
    rooms.change(json!({ "minReadySeconds": WINDOW_SECONDS })).await?;
    let before = rooms.view.handoffs().len();
    rooms.restart().await?;
    let drains = rooms.view.handoffs();
    let late: usize = drains.iter().skip(before).map(|drain| drain.status.total).sum();
    let servers = rooms.view.servers().len();
    ensure!(late * 10 <= servers, "{late} of {servers} servers moved only when their pods were told to end");
    evened(rooms).await
}

/// As a Deployment does it that says nothing of it.
pub async fn in_quarters(rooms: &Rooms) -> Result<()> {
    let quarters = json!({ "maxSurge": "25%", "maxUnavailable": "25%" });
    rooms.change(json!({ "strategy": { "rollingUpdate": quarters } })).await?;
    rooms.restart().await?;
    evened(rooms).await
}

/// Waits until no pod has much more than its part.
async fn evened(rooms: &Rooms) -> Result<()> {
    until("no pod has much more than its part", LIMIT, async || Ok((fullest(rooms, true) <= 1.15).then_some(()))).await
}

/// Begins a rollout to another template, or back to the first, and waits until a third of the servers are in its pods.
async fn begun(rooms: &Rooms, template: Option<&str>) -> Result<()> {
    let old: BTreeSet<String> = rooms.view.pods().into_iter().map(|pod| pod.revision).collect();
    retemplate(rooms, template).await?;
    until("a third of the servers are in new pods", LIMIT, async || {
        let pods = rooms.view.pods();
        let is_new = |name: &str| pods.iter().any(|pod| pod.name == name && !old.contains(&pod.revision));
        let servers = rooms.view.servers();
        let moved = servers.iter().filter(|server| is_new(&server.pod)).count();
        Ok((moved * 3 >= servers.len()).then_some(()))
    })
    .await
}

async fn retemplate(rooms: &Rooms, template: Option<&str>) -> Result<()> {
    rooms.change(json!({ "template": { "metadata": { "annotations": { "template": template } } } })).await
}

/// Waits until a Deployment has no other pods than those of its present template, all of them ready.
async fn rolled(rooms: &Rooms) -> Result<()> {
    rooms.scale(i32::try_from(PODS)?).await
}

pub async fn overlapping(rooms: &Rooms) -> Result<()> {
    begun(rooms, Some("second")).await?;
    rooms.restart().await
}

pub async fn undone(rooms: &Rooms) -> Result<()> {
    begun(rooms, Some("second")).await?;
    retemplate(rooms, None).await?;
    rolled(rooms).await
}

/// Nothing moves to pods that are not ready, nor back when they are given up.
pub async fn unready(rooms: &Rooms) -> Result<()> {
    let gates = |gates: Value| json!({ "template": { "spec": { "readinessGates": gates } } });
    rooms.change(gates(json!([{ "conditionType": "example.com/never" }]))).await?;
    until("the first new pod is there", LIMIT, async || Ok((rooms.view.pods().len() > PODS).then_some(()))).await?;
    sleep(A_WHILE).await;
    rooms.change(gates(Value::Null)).await?;
    rolled(rooms).await
}

/// What the pods' Deployment is.
pub async fn spec(rooms: &Rooms) -> Result<Value> {
    let api: Api<Deployment> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    Ok(serde_json::to_value(api.get(BLUE).await?.spec.context("a Deployment without a spec")?)?)
}

/// The same pods, of a `StatefulSet`.
pub async fn make_set(rooms: &Rooms) -> Result<()> {
    let spec = spec(rooms).await?;
    let object = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": SET },
        "spec": {
            "replicas": PODS, "serviceName": BLUE, "podManagementPolicy": "Parallel",
            "selector": spec["selector"], "template": spec["template"],
        },
    });
    rooms.cluster.apply(&rooms.namespace, object).await?;
    rooms.ready_pods(PODS).await?;
    Ok(())
}

pub async fn updated(rooms: &Rooms) -> Result<()> {
    let api: Api<StatefulSet> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    let again = json!({ "spec": { "template": { "metadata": { "annotations": { "again": "yes" } } } } });
    let generation = api.patch(SET, &PatchParams::default(), &Patch::Merge(again)).await?.metadata.generation;
    until("every pod of the set is new", LIMIT, async || {
        let status = api.get(SET).await?.status.context("a set without a status")?;
        let all = i32::try_from(PODS)?;
        let seen = status.observed_generation >= generation && status.current_revision == status.update_revision;
        Ok((seen && status.ready_replicas == Some(all)).then_some(()))
    })
    .await
}

/// Two pods that are empty are among the four that end. What the other two had goes to the rest, and then all is evened out.
pub async fn scaled(rooms: &Rooms) -> Result<()> {
    let pods = rooms.view.pods();
    let empty: Vec<&Pod> = pods.iter().take(2).collect();
    // Neither gets what the other had.
    for annotation in ["durableserver.io/cordon", "durableserver.io/drain"] {
        for pod in &empty {
            rooms.annotate(pod, json!({ annotation: "true" })).await?;
        }
    }
    emptied(rooms, |held| empty.iter().any(|pod| pod.name == held)).await?;
    leave_costs_to_the_operator(rooms, &pods).await?;
    rooms.scale(2).await?;
    let left = rooms.ready_pods(2).await?;
    ensure!(left.iter().all(|pod| empty.iter().all(|empty| empty.name != pod.name)), "an empty pod outlived another");
    rooms.scale(6).await?;
    evened(rooms).await
}

/// Takes away the deletion costs that order a rolling restart for the probes, and waits for the operator's.
async fn leave_costs_to_the_operator(rooms: &Rooms, pods: &[Pod]) -> Result<()> {
    let api: Api<PodObject> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    for pod in pods {
        rooms.annotate(pod, json!({ DELETION_COST: null })).await?;
    }
    until("full pods cost more than empty ones", LIMIT, async || {
        for pod in pods {
            let held = rooms.view.servers().iter().filter(|server| server.pod == pod.name).count();
            let annotations = api.get(&pod.name).await?.metadata.annotations.unwrap_or_default();
            let (cost, ours) = (annotations.get(DELETION_COST), annotations.get(OUR_COST));
            if held > 0 && (ours.is_none() || cost != ours) || held == 0 && cost.is_some_and(|cost| cost != "0") {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}
