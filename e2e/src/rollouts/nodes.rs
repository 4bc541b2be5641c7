//! Nodes and pods that servers are to leave.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Pod as PodObject};
use kube::api::{Api, EvictParams, Patch, PatchParams};
use serde_json::json;

use super::{BLUE, LIMIT, PODS, emptied};
use crate::rooms::Rooms;
use crate::view::Pod;
use crate::wait::until;

/// No more than one pod is missing at any time.
async fn budget(rooms: &Rooms) -> Result<()> {
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": BLUE },
        "spec": { "minAvailable": PODS - 1, "selector": { "matchLabels": { "app": BLUE } } },
    });
    rooms.cluster.apply(&rooms.namespace, budget).await?;
    Ok(())
}

pub async fn evicted(rooms: &Rooms) -> Result<()> {
    budget(rooms).await?;
    let pods = rooms.ready_pods(PODS).await?;
    drain(rooms, &pods.first().context("no pod")?.node).await
}

pub async fn both_evicted(rooms: &Rooms) -> Result<()> {
    budget(rooms).await?;
    let pods = rooms.ready_pods(PODS).await?;
    let mut nodes: Vec<String> = pods.into_iter().map(|pod| pod.node).collect();
    nodes.sort();
    nodes.dedup();
    for node in nodes {
        drain(rooms, &node).await?;
        rooms.ready_pods(PODS).await?;
    }
    Ok(())
}

/// As `kubectl drain` does it: no pod is evicted that a budget protects, and refused ones are tried again.
async fn drain(rooms: &Rooms, node: &str) -> Result<()> {
    cordon(rooms, node, true).await?;
    let api: Api<PodObject> = Api::namespaced(rooms.cluster.client.clone(), &rooms.namespace);
    let drained = until("all pods of the node are evicted", LIMIT, async || {
        let left: Vec<Pod> = rooms.view.pods().into_iter().filter(|pod| pod.node == node).collect();
        for pod in left.iter().filter(|pod| !pod.terminating) {
            match api.evict(&pod.name, &EvictParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 429 => {}
                other => drop(other?),
            }
        }
        Ok(left.is_empty().then_some(()))
    })
    .await;
    cordon(rooms, node, false).await?;
    drained
}

pub async fn annotated(rooms: &Rooms) -> Result<()> {
    let pods = rooms.ready_pods(PODS).await?;
    let pod = pods.first().context("no pod")?;
    rooms.annotate(pod, json!({ "durableserver.io/drain": "true" })).await?;
    emptied(rooms, |held| held == pod.name).await?;
    rooms.annotate(pod, json!({ "durableserver.io/drain": null })).await
}

pub async fn cordoned(rooms: &Rooms) -> Result<()> {
    let pods = rooms.ready_pods(PODS).await?;
    let node = pods.first().context("no pod")?.node.clone();
    cordon(rooms, &node, true).await?;
    let there: Vec<String> = pods.into_iter().filter(|pod| pod.node == node).map(|pod| pod.name).collect();
    let left = emptied(rooms, |held| there.iter().any(|pod| pod == held)).await;
    cordon(rooms, &node, false).await?;
    left
}

pub async fn cordon(rooms: &Rooms, node: &str, cordoned: bool) -> Result<()> {
    let api: Api<Node> = Api::all(rooms.cluster.client.clone());
    let patch = json!({ "spec": { "unschedulable": cordoned } });
    api.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}
