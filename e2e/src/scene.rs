//! A few rooms in a namespace of their own in which something goes wrong, and what can be seen of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};
use http::{Method, Request};
use http_body_util::Full;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::figures;
use crate::http::Pool;
use crate::load::Seen;
use crate::rooms::{Rooms, room};
use crate::view::{Handoff, Pod};
use crate::wait::until;

/// What misfortune may take to be seen, and good fortune to come back.
pub const SOON: Duration = Duration::from_mins(1);
/// `SeaweedFS`'s own door to the files behind its S3, where nobody asks for keys.
const FILER: u16 = 8888;
const FILER_PATIENCE: Duration = Duration::from_secs(5);

/// One case, as it is written to `target/figures/faults.json`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Case {
    /// What went wrong.
    pub case: String,
    /// Servers that it happened to.
    pub servers: usize,
    /// Handed to another pod, live.
    pub moved: usize,
    /// Stopped with their state in the store, and started again from there.
    pub stopped: usize,
    /// Writes acknowledged as stored that are gone.
    pub acked_lost: u64,
    /// What people are shown.
    pub seen: String,
    /// From the moment at which a pod could serve them (or what was wrong was mended) until all of them were served;
    /// none if they are not to be.
    pub serving_after_ms: Option<u64>,
}

/// How the hosts of a revision behave: the modes of `bad_host`.
pub const GOOD: &str = "good";

/// Rooms in which something goes wrong.
pub struct Scene {
    /// The rooms.
    pub rooms: Rooms,
    revision: AtomicU32,
}

impl Scene {
    /// Makes the namespace, the pool and a Deployment without pods.
    pub async fn open(cluster: &Cluster, name: &str, pool: Value) -> Result<Self> {
        Ok(Self { rooms: Rooms::start(cluster, name, 0, pool).await?, revision: AtomicU32::new(0) })
    }

    /// The same with so many good pods, ready.
    pub async fn with_pods(cluster: &Cluster, name: &str, pods: usize, pool: Value) -> Result<Self> {
        let scene = Self::open(cluster, name, pool).await?;
        scene.revise(GOOD, json!({})).await?;
        scene.scale(pods).await?;
        scene.rooms.ready_pods(pods).await?;
        Ok(scene)
    }

    /// Changes the pods' template: from now on their hosts behave so. `spec` is merged into the Deployment's spec. Small
    /// requests, so that many cases fit beside each other.
    pub async fn revise(&self, host: &str, spec: Value) -> Result<()> {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed);
        let template = json!({
            "metadata": { "annotations": {
                "durableserver.io/agent-resources": r#"{"requests": {"cpu": "10m", "memory": "32Mi"}}"#,
                "durableserver.io/e2e-revision": revision.to_string(),
            } },
            "spec": { "containers": [{
                "name": "rooms",
                "image": format!("durable-server/bad-host:{}", env!("CARGO_PKG_VERSION")),
                "env": [{ "name": "BAD_HOST", "value": host }],
                "resources": { "requests": { "cpu": "10m", "memory": "32Mi" } },
            }] },
        });
        self.rooms.change(json!({ "template": template })).await?;
        if spec != json!({}) {
            self.rooms.change(spec).await?;
        }
        Ok(())
    }

    /// Sets the number of pods, and waits for nothing.
    pub async fn scale(&self, pods: usize) -> Result<()> {
        self.rooms.change(json!({ "replicas": pods })).await
    }

    /// Declares so many rooms; `spec` is merged into each one's.
    pub async fn declare(&self, servers: usize, spec: impl Fn(usize) -> Value) -> Result<()> {
        let api = self.objects("DurableServer");
        try_join_all((0..servers).map(|number| {
            let mut object = json!({
                "apiVersion": "durableserver.io/v1alpha1", "kind": "DurableServer",
                "metadata": { "name": room(number) },
                "spec": { "pool": "rooms", "type": "room" },
            });
            if let (Some(own), Value::Object(more)) = (object["spec"].as_object_mut(), spec(number)) {
                own.extend(more);
            }
            let api = &api;
            async move { anyhow::Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?) }
        }))
        .await?;
        Ok(())
    }

    /// Objects of one of our kinds.
    #[must_use]
    pub fn objects(&self, kind: &str) -> Api<DynamicObject> {
        self.rooms.cluster.objects(&self.rooms.namespace, kind)
    }

    /// Waits until an object's condition has this reason; its status and message.
    pub async fn condition(&self, kind: &str, name: &str, condition: &str, reason: &str) -> Result<(String, String)> {
        let api = self.objects(kind);
        let mut last = String::new();
        let what = format!("{kind} {name}: condition {condition} with reason {reason}");
        let found = until(&what, SOON, async || {
            let object = api.get(name).await?;
            let all = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let Some(found) = all.iter().find(|found| found["type"] == condition) else { return Ok(None) };
            last = found.to_string();
            let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
            Ok((found["reason"] == reason).then(|| (text("status"), text("message"))))
        })
        .await;
        found.with_context(|| format!("it is {last}"))
    }

    /// Waits until there is an Event with this reason about this object, and makes sure that there is only one; its note.
    pub async fn event(&self, kind: &str, name: &str, reason: &str) -> Result<String> {
        let notes = until(&format!("an Event {reason} about {kind} {name}"), SOON, async || {
            let notes = self.events(kind, name, reason).await?;
            Ok((!notes.is_empty()).then_some(notes))
        })
        .await?;
        ensure!(notes.len() == 1, "{} Events {reason} about {kind} {name}: {notes:?}", notes.len());
        notes.into_iter().next().context("no note")
    }

    /// The notes of the Events with this reason about objects of this kind; of all of them if `name` is empty.
    pub async fn events(&self, kind: &str, name: &str, reason: &str) -> Result<Vec<String>> {
        let api: Api<Event> = Api::namespaced(self.rooms.cluster.client.clone(), &self.rooms.namespace);
        let about = |event: &Event| {
            let object = event.regarding.clone().unwrap_or_default();
            let is_it = name.is_empty() || object.name.as_deref() == Some(name);
            object.kind.as_deref() == Some(kind) && is_it && event.reason.as_deref() == Some(reason)
        };
        let events = api.list(&ListParams::default()).await?.items;
        Ok(events.into_iter().filter(about).map(|event| event.note.unwrap_or_default()).collect())
    }

    /// Waits until the drain of this pod is over.
    pub async fn drained(&self, pod: &Pod) -> Result<Handoff> {
        until(&format!("the drain of {} is over", pod.name), SOON, async || {
            let all = self.rooms.view.handoffs();
            let over = |drain: &Handoff| matches!(drain.status.phase.as_str(), "Complete" | "Failed");
            Ok(all.into_iter().find(|drain| drain.source == pod.name).filter(over))
        })
        .await
    }

    /// Waits for a ready pod that is none of these.
    pub async fn successor(&self, before: &[Pod]) -> Result<Pod> {
        until("another pod is ready", SOON, async || {
            let is_new = |pod: &Pod| pod.ready && !pod.terminating && !before.iter().any(|old| old.uid == pod.uid);
            Ok(self.rooms.view.pods().into_iter().find(is_new))
        })
        .await
    }

    /// Milliseconds from `since` until each of the first so many rooms is served by a pod. Pods are asked themselves: what
    /// Services take to notice a pod is not counted.
    pub async fn served(&self, servers: usize, since: Instant) -> Result<u64> {
        until(&format!("{servers} rooms are served"), SOON, async || {
            let served = join_all((0..servers).map(async |number| self.rooms.serving(&room(number)).await)).await;
            let all = served.into_iter().collect::<Result<Vec<_>>>()?;
            Ok(all.iter().all(|pods| !pods.is_empty()).then_some(()))
        })
        .await?;
        Ok(u64::try_from(since.elapsed().as_millis())?)
    }

    /// What the load saw must hold in any case: nobody was served twice. Acknowledged writes that are gone.
    pub async fn judge(&self, seen: &Seen) -> Result<u64> {
        let double = figures::double_served(&seen.answers);
        ensure!(double == 0, "{double} answers of a pod that no longer owned the server");
        let overlaps = self.rooms.ledger.overlaps(&std::collections::BTreeMap::new()).await;
        ensure!(overlaps.is_empty(), "served by two at once: {overlaps:?}");
        Ok(figures::lost(&seen.answers).acked)
    }

    /// Writes or removes an object in the store behind the product's back; `path` is below the rooms' prefix.
    pub async fn tamper(&self, method: Method, path: &str, body: &'static str) -> Result<()> {
        let cluster = &self.rooms.cluster;
        ensure!(cluster.is_ours(), "only the store of a cluster of our own can be tampered with");
        let address = SocketAddr::new(cluster.here, FILER);
        let path = format!("/buckets/{}/{}/{path}", cluster.store.bucket, self.rooms.namespace);
        let request = Request::builder().method(method).uri(&path).header("Host", address.to_string());
        let answer = timeout(FILER_PATIENCE, Pool::new(address).send(request.body(Full::from(body))?)).await??;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        Ok(())
    }

    /// Removes the namespace.
    pub async fn close(self) -> Result<()> {
        self.rooms.close().await
    }
}
