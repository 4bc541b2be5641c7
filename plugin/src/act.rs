//! What people decide, written where the operator reads it.

use anyhow::Result;
use crds::{DurableServer, DurableServerPool};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::look::Namespace;

/// Sets an annotation of a pod, or takes it away.
pub async fn annotate_pod(here: &Namespace, pod: &str, annotation: &str, on: bool) -> Result<()> {
    let pool = here.pool_of(pod).await?;
    let value = on.then_some("true");
    here.merge::<Pod>(pod, json!({ "metadata": { "annotations": { annotation: value } } })).await?;
    let follows = if on { format!("; kubectl durable get {pool} shows what follows") } else { " no more".to_owned() };
    println!("pod {pod} of pool {pool} has the annotation {annotation}{follows}");
    Ok(())
}

/// A server stays where it is, or may move again.
pub async fn cordon_server(here: &Namespace, server: &str, on: bool) -> Result<()> {
    here.merge::<DurableServer>(server, json!({ "spec": { "cordoned": on } })).await?;
    println!("server {server} {}", if on { "stays where it is" } else { "may move" });
    Ok(())
}

/// A pool moves nothing, or does again.
pub async fn pause(here: &Namespace, pool: Option<String>, on: bool) -> Result<()> {
    let (name, _) = here.pool(pool).await?;
    here.merge::<DurableServerPool>(&name, json!({ "spec": { "paused": on } })).await?;
    if on {
        println!("pool {name} is paused: nothing moves while its pod lives; kubectl durable resume {name} ends that");
    } else {
        println!("pool {name} is not paused");
    }
    Ok(())
}
