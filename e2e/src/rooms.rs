//! Rooms in a namespace of their own: the example's own manifests, with the addresses of this cluster.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Request, Response};
use http_body_util::Full;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod as PodObject, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::index;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cluster::{Cluster, cluster_ip, repository};
use crate::http::Pool;
use crate::ledger::Ledger;
use crate::load::{Load, Plan};
use crate::metrics::{self, Histograms};
use crate::process::{self, Process};
use crate::view::{Pod, Server, View};
use crate::wait::until;

/// The annotation by which a `ReplicaSet` chooses which of its pods end first.
pub(crate) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const DEPLOYMENT: &str = "rooms";
const SECRET: &str = "store";
const SERVERS_AT_ONCE: usize = 16;
const SEED: u64 = 6;
const PROBED: usize = 6;
const AGENT: &str = "/durable-agent";
const AGENT_HTTP: u16 = 7072;
const GATEWAY: u16 = 7070;
const PATIENCE: Duration = Duration::from_secs(5);

/// Rooms that run.
pub struct Rooms {
    /// Where.
    pub cluster: Cluster,
    /// Their namespace.
    pub namespace: String,
    /// Whom their hosts report to.
    pub ledger: Ledger,
    /// What Kubernetes says about them.
    pub view: View,
    address: SocketAddr,
}

impl Rooms {
    /// Makes a namespace with pods of the example and a pool; `pool` is merged into the pool's spec.
    pub async fn start(cluster: &Cluster, name: &str, pods: i32, pool: Value) -> Result<Self> {
        let namespace = cluster.fresh_namespace(name).await?;
        let ledger = Ledger::open(cluster.here).await?;
        let (id, key) = &cluster.store.keys;
        let keys = json!({ "AWS_ACCESS_KEY_ID": id, "AWS_SECRET_ACCESS_KEY": key });
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": SECRET }, "stringData": keys });
        cluster.apply(&namespace, secret).await?;
        let mut objects = manifests()?;
        // Pods of a pool that is not there yet are refused.
        objects.sort_by_key(|object| object["kind"] != "DurableServerPool");
        for mut object in objects {
            match object["kind"].as_str() {
                Some("DurableServer") => continue,
                Some("DurableServerPool") => set_pool(&mut object, cluster, &namespace, &pool),
                Some("Deployment") => set_deployment(&mut object, &ledger, pods)?,
                _ => {}
            }
            cluster.apply(&namespace, object).await?;
        }
        cluster.scale(&namespace, DEPLOYMENT, pods).await?;
        let service = Api::<Service>::namespaced(cluster.client.clone(), &namespace).get(DEPLOYMENT).await?;
        let address = (cluster_ip(&service)?, 80).into();
        let view = View::open(cluster, &namespace);
        Ok(Self { cluster: cluster.clone(), namespace, ledger, view, address })
    }

    /// Makes so many rooms whose state has at least so many bytes, and waits until all of them run.
    pub async fn create(&self, rooms: usize, bytes: usize) -> Result<()> {
        let api = self.cluster.objects(&self.namespace, "DurableServer");
        let made = stream::iter(0..rooms).map(|number| {
            let object = json!({
                "apiVersion": "durableserver.io/v1alpha1", "kind": "DurableServer",
                "metadata": { "name": room(number) },
                "spec": { "pool": "rooms", "type": "room", "config": { "pad": bytes } },
            });
            let api = api.clone();
            async move { anyhow::Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?) }
        });
        made.buffer_unordered(SERVERS_AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
        self.all_running(rooms, Duration::from_mins(5)).await
    }

    /// Waits until there are so many servers, each `Running` in a pod that is there.
    pub async fn all_running(&self, servers: usize, limit: Duration) -> Result<()> {
        let what = format!("{servers} servers running");
        let waited = until(&what, limit, async || {
            let pods = self.view.pods();
            let present = |name: &str| pods.iter().any(|pod| pod.name == name && !pod.terminating);
            let running = self.view.servers().iter().filter(|s| s.phase == "Running" && present(&s.pod)).count();
            Ok((running == servers).then_some(()))
        });
        waited.await.with_context(|| format!("phases: {:?}", self.phases()))
    }

    fn phases(&self) -> BTreeMap<String, usize> {
        self.view.servers().into_iter().fold(BTreeMap::new(), |mut phases, server| {
            *phases.entry(format!("{} in {}", server.phase, server.pod)).or_default() += 1;
            phases
        })
    }

    /// Merges this into the spec of the pods' Deployment, and waits for nothing.
    pub async fn change(&self, spec: Value) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        let patch = Patch::Strategic(json!({ "spec": spec }));
        api.patch(DEPLOYMENT, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// `kubectl rollout restart`, until the last old pod is gone.
    pub async fn restart(&self) -> Result<()> {
        self.cluster.restart(&self.namespace, DEPLOYMENT).await
    }

    /// Sets the number of pods.
    pub async fn scale(&self, pods: i32) -> Result<()> {
        self.cluster.scale(&self.namespace, DEPLOYMENT, pods).await
    }

    /// Its pods, once there are so many and all of them are ready; by name.
    pub async fn ready_pods(&self, pods: usize) -> Result<Vec<Pod>> {
        until(&format!("{pods} ready pods"), Duration::from_mins(1), async || {
            let all = self.view.pods();
            let ready = all.len() == pods && all.iter().all(|pod| pod.ready && !pod.terminating);
            Ok(ready.then_some(all))
        })
        .await
    }

    /// How long a pod served on after it had been told to end (nanoseconds).
    #[must_use]
    pub fn drain_nanos(&self, pod: &str) -> Option<u64> {
        Some(self.ledger.last_end(pod)?.saturating_sub(self.view.told_to_end(pod)?))
    }

    /// Changes the pool's spec.
    pub async fn set_pool(&self, spec: Value) -> Result<()> {
        self.cluster.merge(&self.namespace, "DurableServerPool", "rooms", json!({ "spec": spec })).await
    }

    /// `kubectl delete pod`, without waiting for it.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        let pods: Api<PodObject> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        pods.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The Service's address, once it leads to a pod.
    pub async fn service(&self) -> Result<SocketAddr> {
        let connected = async || Ok(TcpStream::connect(self.address).await.ok().map(drop));
        until("the Service leads to a pod", PATIENCE, connected).await?;
        Ok(self.address)
    }

    /// Starts the outside client, once the Service leads to a pod: writes to all rooms that it is not told to probe.
    pub async fn load(&self, rooms: usize, writes_per_second: u32) -> Result<Load> {
        let address = self.service().await?;
        let servers = (0..rooms).map(room).collect();
        Load::start(Plan { address, servers, writes_per_second, first: true }).await
    }

    /// Six rooms of this pod, as places in the load's plan: the same ones in every run in which the pod has the same.
    #[must_use]
    pub fn six_of(&self, pod: &str) -> Vec<u32> {
        let here: Vec<Server> = self.view.servers().into_iter().filter(|server| server.pod == pod).collect();
        let mut seeded = StdRng::seed_from_u64(SEED);
        let chosen = index::sample(&mut seeded, here.len(), PROBED.min(here.len()));
        chosen.into_iter().filter_map(|place| place_of(&here[place].name)).collect()
    }

    /// Makes the next rolling restart end these pods in this order.
    pub async fn order(&self, pods: &[Pod]) -> Result<()> {
        for (pod, cost) in pods.iter().zip(-1_000..) {
            self.annotate(pod, json!({ DELETION_COST: cost.to_string() })).await?;
        }
        Ok(())
    }

    /// Merges this into a pod's annotations.
    pub async fn annotate(&self, pod: &Pod, annotations: Value) -> Result<()> {
        let api: Api<PodObject> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        let patch = Patch::Merge(json!({ "metadata": { "annotations": annotations } }));
        api.patch(&pod.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// One request to the Service, such as `GET /room-0001/count`.
    pub async fn get(&self, path: &str) -> Result<Response<Bytes>> {
        ask(self.address, path, false).await
    }

    /// The pods that answer for this room themselves, each asked on its own: more than one is double service.
    pub async fn serving(&self, room: &str) -> Result<Vec<String>> {
        let mut serving = Vec::new();
        for pod in self.view.pods() {
            let Ok(address) = pod.address.parse::<IpAddr>() else { continue };
            // A pod that cannot be reached serves nobody.
            let Ok(answer) = ask((address, GATEWAY).into(), &format!("/{room}/count"), true).await else { continue };
            if answer.status().is_success() {
                serving.push(pod.name);
            }
        }
        Ok(serving)
    }

    /// The processes of a pod on this machine: its agent's, and its host's.
    pub fn processes(&self, pod: &Pod) -> Result<(Process, Vec<Process>)> {
        let (agents, hosts): (Vec<_>, _) = process::of_pod(&pod.uid)?.into_iter().partition(|p| p.program == AGENT);
        let agent = agents.into_iter().next().with_context(|| format!("no agent of {} on this machine", pod.name))?;
        Ok((agent, hosts))
    }

    /// The most memory (MiB) that the agents of these pods have had.
    pub fn agents_peak(&self, pods: &[Pod]) -> Result<f64> {
        let peak = |pod| process::peak_memory(self.processes(pod)?.0.pid);
        let peaks = pods.iter().map(peak).collect::<Result<Vec<u64>>>()?;
        let most = peaks.into_iter().max().context("no pods")?;
        Ok(f64::from(u32::try_from(most)?) / 1024.0)
    }

    /// The stages of handoffs that a pod's agent has timed so far.
    pub async fn stages(&self, pod: &Pod) -> Result<Histograms> {
        let address: IpAddr = pod.address.parse().with_context(|| format!("{} has no address", pod.name))?;
        let samples = metrics::read((address, AGENT_HTTP).into()).await?;
        let mut stages = Histograms::default();
        stages.add(&samples, "durable_agent_handoff_stage_seconds", "stage");
        Ok(stages)
    }

    /// Removes the namespace; what is not closed is left to be looked at, until the next test.
    pub async fn close(self) -> Result<()> {
        self.cluster.remove_namespace(&self.namespace).await
    }
}

/// The name of a room.
#[must_use]
pub fn room(number: usize) -> String {
    format!("room-{number:04}")
}

fn place_of(room: &str) -> Option<u32> {
    room.strip_prefix("room-")?.parse().ok()
}

async fn ask(address: SocketAddr, path: &str, here_only: bool) -> Result<Response<Bytes>> {
    let mut request = Request::get(path).header("Host", address.to_string());
    if here_only {
        request = request.header("Durable-No-Forward", "1");
    }
    let pool = Pool::new(address);
    let answer = pool.send(request.body(Full::default())?);
    timeout(PATIENCE, answer).await.with_context(|| format!("{address}{path}"))?
}

fn manifests() -> Result<Vec<Value>> {
    let directory = repository().join("examples/rooms/manifests");
    let mut objects = Vec::new();
    for entry in directory.read_dir().with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).with_context(|| path.display().to_string())?;
            objects.push(object);
        }
    }
    Ok(objects)
}

/// One bucket for all, a prefix for each: a `SeaweedFS` has room for few buckets.
fn set_pool(object: &mut Value, cluster: &Cluster, namespace: &str, pool: &Value) {
    let store = &cluster.store;
    object["spec"]["store"]["s3"] = json!({
        "bucket": store.bucket, "prefix": namespace, "endpoint": store.endpoint, "credentialsSecretRef": { "name": SECRET },
    });
    merge(&mut object["spec"], pool);
}

fn set_deployment(object: &mut Value, ledger: &Ledger, pods: i32) -> Result<()> {
    object["spec"]["replicas"] = json!(pods);
    let env = object.pointer_mut("/spec/template/spec/containers/0/env").and_then(Value::as_array_mut);
    env.context("no environment to set")?.push(json!({ "name": "LEDGER", "value": ledger.url() }));
    Ok(())
}

/// JSON merge patch (RFC 7386).
fn merge(value: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        value.clone_from(patch);
        return;
    };
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    for (key, field) in fields {
        if field.is_null() {
            value.as_object_mut().map(|object| object.remove(key));
        } else {
            merge(&mut value[key], field);
        }
    }
}
