//! `durable-operator release-finalizers`: what is run when the operator is uninstalled. Without it, a deleted
//! `DurableServer` would wait for ever for an operator that is gone. State in the store is left as it is.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use crds::DurableServer;
use futures::{StreamExt, TryStreamExt, stream};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::PartialObjectMeta,
};
use serde_json::json;
use tokio::time::sleep;

use crate::{watch, world::FINALIZER};

/// Resources read at once.
const PAGE: u32 = 500;
/// Resources written at once.
const AT_ONCE: usize = 16;
/// An operator that has not stopped yet puts it back.
const LOOK_AGAIN: Duration = Duration::from_secs(3);
/// Looks at all resources. Two in a row that find nothing are the end.
const LOOKS: u32 = 20;

/// Where.
#[derive(Clone, Debug, Args)]
pub struct Release {
    /// Only in these namespaces.
    #[arg(long, env = "WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
}

/// Takes the operator's finalizer from all servers.
pub async fn release(release: &Release) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("no access to the API server")?;
    let apis: Vec<Api<DurableServer>> = watch::apis(&client, &release.watch_namespaces);
    let mut clean = 0;
    for _ in 0..LOOKS {
        let mut found = 0;
        for api in &apis {
            found += release_in(api).await?;
        }
        clean = if found == 0 { clean + 1 } else { 0 };
        if clean == 2 {
            return Ok(());
        }
        sleep(LOOK_AGAIN).await;
    }
    bail!("servers keep getting the finalizer {FINALIZER}: is another operator running?")
}

/// How many had it.
async fn release_in(api: &Api<DurableServer>) -> anyhow::Result<usize> {
    let mut found = 0;
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = match api.list_metadata(&params).await {
            Ok(page) => page,
            // Without the definition of the resource there are none.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(found),
            Err(error) => return Err(error).context("servers cannot be listed"),
        };
        let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        let held = page.items.into_iter().filter(|server| server.finalizers().iter().any(|f| f == FINALIZER));
        let released = stream::iter(held.map(|server| take(api, server))).buffer_unordered(AT_ONCE);
        let released: Vec<()> = released.try_collect().await?;
        found += released.len();
        match next {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    tracing::info!(servers = found, "finalizers released");
    Ok(found)
}

async fn take(api: &Api<DurableServer>, server: PartialObjectMeta<DurableServer>) -> anyhow::Result<()> {
    let others: Vec<&String> = server.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    // Whoever else changes the list meanwhile goes first; the next look comes back to it.
    let patch = json!({ "metadata": { "resourceVersion": server.resource_version(), "finalizers": others } });
    let (namespace, name) = (server.namespace().unwrap_or_default(), server.name_any());
    // An API of all namespaces lists, but finds no single object.
    let api = Api::<DurableServer>::namespaced(api.clone().into_client(), &namespace);
    match api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("the finalizer of {namespace}/{name} cannot be removed")),
    }
}
