//! What is in a namespace.

use anyhow::{Context, bail, ensure};
use crds::{DurableServer, DurableServerPool, POOL_LABEL};
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One namespace of one cluster.
#[derive(Clone)]
pub struct Namespace {
    /// The cluster.
    pub client: Client,
    /// Its name.
    pub name: String,
}

/// A pool, its pods, and its servers.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The pool.
    pub pool: DurableServerPool,
    /// By name.
    pub pods: Vec<Pod>,
    /// All of them.
    pub servers: Vec<DurableServer>,
}

impl Namespace {
    /// Objects of a kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Merges this into an object.
    pub async fn merge<K>(&self, name: &str, patch: Value) -> anyhow::Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let patched = self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.with_context(|| format!("{} {name} in namespace {} was not changed", K::kind(&()), self.name))
    }

    /// The pool of this name, or the only one there is.
    pub async fn pool(&self, name: Option<String>) -> anyhow::Result<(String, DurableServerPool)> {
        let api = self.api::<DurableServerPool>();
        if let Some(name) = name {
            let pool = api.get_opt(&name).await.context("pools cannot be read")?;
            let pool = pool.with_context(|| {
                format!("there is no pool {name} in namespace {}: kubectl get dsp -A lists all pools", self.name)
            })?;
            return Ok((name, pool));
        }
        let mut pools = api.list(&ListParams::default()).await.context("pools cannot be read")?.items;
        let names: Vec<String> = pools.iter().map(ResourceExt::name_any).collect();
        match pools.pop() {
            Some(pool) if pools.is_empty() => Ok((pool.name_any(), pool)),
            Some(_) => bail!("namespace {} has several pools: name one of {}", self.name, names.join(", ")),
            None => bail!("there is no pool in namespace {}: name another one with -n", self.name),
        }
    }

    /// The pool that a pod is in.
    pub async fn pool_of(&self, pod: &str) -> anyhow::Result<String> {
        let found = self.api::<Pod>().get_opt(pod).await.context("pods cannot be read")?;
        let found = found.with_context(|| format!("there is no pod {pod} in namespace {}", self.name))?;
        found.labels().get(POOL_LABEL).cloned().with_context(|| {
            format!(
                "pod {pod} is in no pool: it has not the label {POOL_LABEL}. kubectl durable get lists those that are"
            )
        })
    }

    /// A pool, and all that is in it.
    pub async fn seen(&self, pool: Option<String>) -> anyhow::Result<Seen> {
        let (name, pool) = self.pool(pool).await?;
        let of_pool = ListParams::default().labels(&format!("{POOL_LABEL}={name}"));
        let mut pods = self.api::<Pod>().list(&of_pool).await.context("pods cannot be read")?.items;
        pods.sort_by_key(ResourceExt::name_any);
        let of_pool = ListParams::default().fields(&format!("spec.pool={name}"));
        let servers = self.api::<DurableServer>().list(&of_pool).await.context("servers cannot be read")?.items;
        Ok(Seen { pool, pods, servers })
    }

    /// These servers, or those with these labels.
    pub async fn servers_named(&self, names: &[String], selector: Option<&str>) -> anyhow::Result<Vec<DurableServer>> {
        let api = self.api::<DurableServer>();
        let Some(selector) = selector else {
            let mut servers = Vec::new();
            for name in names {
                let server = api.get_opt(name).await.context("servers cannot be read")?;
                servers.push(server.with_context(|| {
                    format!("there is no server {name} in namespace {}: kubectl get dsrv lists them", self.name)
                })?);
            }
            return Ok(servers);
        };
        let found = api.list(&ListParams::default().labels(selector)).await.context("servers cannot be read")?.items;
        ensure!(!found.is_empty(), "no server in namespace {} has the labels {selector}", self.name);
        Ok(found)
    }
}
