//! Bad input and misfortune: each is shown in one condition and one Event, and nothing else breaks.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use k8s_openapi::api::core::v1::{Pod as PodObject, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::figures;
use crate::gate::{Fault, Gate};
use crate::rooms::room;
use crate::scene::{Case, GOOD, SOON, Scene};
use crate::wait::until;

const SERVERS: usize = 4;
const WRITES: u32 = 20;
/// The port of the real store.
const S3: u16 = 8333;
/// Servers in one apply, and how many are created at once.
const MANY: usize = 10_000;
const AT_ONCE: usize = 32;
/// Status may lag so far behind so many.
const TOLD: Duration = Duration::from_secs(150);

/// Servers that name a pool that is not there.
pub async fn unknown_pool(cluster: &Cluster) -> Result<Case> {
    let scene = Scene::with_pods(cluster, "no-pool", 1, json!({})).await?;
    scene.declare(1, |_| json!({ "pool": "nowhere" })).await?;
    let (status, message) = scene.condition("DurableServer", &room(0), "Accepted", "NoPool").await?;
    ensure!(status == "False" && message.contains("nowhere"), "{message}");
    scene.event("DurableServer", &room(0), "NoPool").await?;
    let mut pool = scene.objects("DurableServerPool").get("rooms").await?;
    pool.metadata = kube::core::ObjectMeta { name: Some("nowhere".into()), ..Default::default() };
    scene.objects("DurableServerPool").create(&PostParams::default(), &pool).await?;
    scene.condition("DurableServer", &room(0), "Accepted", "Valid").await?;
    scene.close().await?;
    let seen = format!("Accepted=False NoPool: {message}");
    Ok(Case { case: "unknown pool".into(), servers: 1, seen, ..Case::default() })
}

/// A pool is deleted under its servers; then their pod goes, and at last the pool comes back.
pub async fn pool_deleted(cluster: &Cluster) -> Result<Case> {
    let scene = Scene::with_pods(cluster, "pool-deleted", 1, json!({})).await?;
    scene.declare(SERVERS, |_| json!({})).await?;
    scene.rooms.all_running(SERVERS, SOON).await?;
    let before = scene.rooms.ready_pods(1).await?;
    let source = before.first().context("no pod")?;
    let load = scene.rooms.load(SERVERS, WRITES).await?;
    let pools = scene.objects("DurableServerPool");
    let mut pool = pools.get("rooms").await?;
    pools.delete("rooms", &kube::api::DeleteParams::default()).await?;
    let (_, message) = scene.condition("DurableServer", &room(0), "Accepted", "NoPool").await?;
    scene.event("DurableServer", &room(0), "NoPool").await?;
    scene.served(SERVERS, Instant::now()).await.context("they serve on")?;

    scene.rooms.delete_pod(&source.name).await?;
    let drain = scene.drained(source).await?;
    pool.metadata = kube::core::ObjectMeta { name: Some("rooms".into()), ..Default::default() };
    pools.create(&PostParams::default(), &pool).await?;
    scene.successor(&before).await?;
    let after = scene.served(SERVERS, Instant::now()).await?;
    scene.condition("DurableServer", &room(0), "Accepted", "Valid").await?;
    let lost = scene.judge(&load.stop().await?).await?;
    ensure!(drain.status.stopped == SERVERS && drain.status.failed == 0, "{:?}", drain.status);
    scene.close().await?;
    Ok(Case {
        case: "pool deleted under its servers".into(),
        servers: SERVERS,
        stopped: drain.status.stopped,
        acked_lost: lost,
        seen: format!("Accepted=False NoPool: {message}"),
        serving_after_ms: Some(after),
        ..Case::default()
    })
}

/// The new revision's hosts answer nonsense.
pub async fn garbage(cluster: &Cluster) -> Result<Case> {
    bad_revision(cluster, "host that answers garbage", "garbage", "HostInvalid").await
}

/// The new revision's hosts never answer.
pub async fn silent(cluster: &Cluster) -> Result<Case> {
    bad_revision(cluster, "host that never answers", "silent", "HostSilent").await
}

/// The new revision's hosts end at once.
pub async fn exits(cluster: &Cluster) -> Result<Case> {
    bad_revision(cluster, "host that dies at start", "exit", "HostUnreachable").await
}

/// The rollout waits for a pod that can host, the old one serves on, and the pool says why.
async fn bad_revision(cluster: &Cluster, case: &str, host: &str, reason: &str) -> Result<Case> {
    let scene = Scene::with_pods(cluster, host, 1, json!({})).await?;
    scene.declare(SERVERS, |_| json!({})).await?;
    scene.rooms.all_running(SERVERS, SOON).await?;
    let before = scene.rooms.ready_pods(1).await?;
    let source = before.first().context("no pod")?;
    let load = scene.rooms.load(SERVERS, WRITES).await?;
    scene.revise(host, json!({})).await?;
    let (status, message) = scene.condition("DurableServerPool", "rooms", "Ready", "SomePodsCannotHost").await?;
    ensure!(status == "True", "the old pod can host");
    scene.event("DurableServerPool", "rooms", reason).await?;
    scene.revise(GOOD, json!({})).await?;
    let drain = scene.drained(source).await?;
    let after = scene.served(SERVERS, Instant::now()).await?;
    scene.condition("DurableServerPool", "rooms", "Ready", "PodsCanHost").await?;
    let seen = load.stop().await?;
    let lost = scene.judge(&seen).await?;
    ensure!(figures::traffic(&seen.answers).failed == 0, "requests failed: {:?}", seen.failures);
    ensure!(drain.status.moved == SERVERS, "{:?}", drain.status);
    scene.close().await?;
    Ok(Case {
        case: case.into(),
        servers: SERVERS,
        moved: drain.status.moved,
        stopped: drain.status.stopped,
        acked_lost: lost,
        seen: format!("Ready=True SomePodsCannotHost, Event {reason}: {message}"),
        serving_after_ms: Some(after),
    })
}

/// One server's state is larger than the pool allows: the others move, and it starts anew from what was stored of it.
pub async fn too_large(cluster: &Cluster) -> Result<Case> {
    let pool = json!({ "sync": { "interval": "1s", "maxStateBytes": "64Ki" } });
    let scene = Scene::with_pods(cluster, "too-large", 1, pool).await?;
    let large = room(0);
    scene.declare(SERVERS, |number| json!({ "config": { "pad": if number == 0 { 100_000 } else { 0 } } })).await?;
    scene.rooms.all_running(SERVERS, SOON).await?;
    let before = scene.rooms.ready_pods(1).await?;
    let source = before.first().context("no pod")?;
    let load = scene.rooms.load(SERVERS, WRITES).await?;
    let (status, message) = scene.condition("DurableServer", &large, "Durable", "SyncFailed").await?;
    ensure!(status == "False" && message.contains("maxStateBytes"), "{message}");
    scene.event("DurableServer", &large, "SyncFailed").await?;
    scene.revise(GOOD, json!({})).await?;
    let drain = scene.drained(source).await?;
    let after = scene.served(SERVERS, Instant::now()).await?;
    ensure!(drain.status.moved == SERVERS - 1, "the others move: {:?}", drain.status);
    ensure!(drain.status.reasons == [("HostFailed".to_owned(), 1)].into(), "{:?}", drain.status);
    scene.rooms.set_pool(json!({ "sync": { "maxStateBytes": "1Mi" } })).await?;
    scene.condition("DurableServer", &large, "Durable", "Synced").await?;
    let lost = scene.judge(&load.stop().await?).await?;
    scene.close().await?;
    Ok(Case {
        case: "state over the limit".into(),
        servers: SERVERS,
        moved: drain.status.moved,
        stopped: drain.status.stopped,
        acked_lost: lost,
        seen: format!("Durable=False SyncFailed: {message}"),
        serving_after_ms: Some(after),
    })
}

/// A bucket that is not there, until it is.
pub async fn wrong_bucket(cluster: &Cluster) -> Result<Case> {
    let gate = Gate::open(cluster.here, (cluster.here, S3).into(), Fault::NoBucket).await?;
    let scene = Scene::open(cluster, "bucket", at(&gate.endpoint())).await?;
    unusable(scene, "wrong bucket", "StoreMisconfigured", "there is no bucket", async |_| {
        gate.mend();
        Ok(())
    })
    .await
}

/// Keys that the store does not accept, until the Secret is corrected and the pods are replaced.
pub async fn wrong_credentials(cluster: &Cluster) -> Result<Case> {
    let scene = Scene::open(cluster, "credentials", json!({})).await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &scene.rooms.namespace);
    let set = async |key: &str| {
        let patch = json!({ "stringData": { "AWS_SECRET_ACCESS_KEY": key } });
        secrets.patch("store", &PatchParams::default(), &Patch::Merge(patch)).await
    };
    set("wrong").await?;
    unusable(scene, "wrong credentials", "StoreDenied", "correct the keys in the Secret", async |scene| {
        set(&cluster.store.keys.1).await?;
        // Agents have their keys from their environment.
        scene.revise(GOOD, json!({})).await
    })
    .await
}

/// A store that overwrites where it must refuse, until the pool names another.
pub async fn ignores_conditions(cluster: &Cluster) -> Result<Case> {
    let gate = Gate::open(cluster.here, (cluster.here, S3).into(), Fault::IgnoresConditions).await?;
    let scene = Scene::open(cluster, "conditions", at(&gate.endpoint())).await?;
    let endpoint = cluster.store.endpoint.clone();
    unusable(scene, "store that ignores conditions", "StoreIgnoresConditions", "If-None-Match", async |scene| {
        scene.rooms.set_pool(at(&endpoint)).await
    })
    .await
}

/// Another cluster has the prefix, until that cluster is gone.
pub async fn second_cluster(cluster: &Cluster) -> Result<Case> {
    let scene = Scene::open(cluster, "second-cluster", json!({})).await?;
    scene.tamper(Method::PUT, "owner", "another-cluster").await?;
    unusable(
        scene,
        "second cluster on the same prefix",
        "PrefixTaken",
        "belongs to cluster another-cluster",
        async |scene| scene.tamper(Method::DELETE, "owner", "").await,
    )
    .await
}

fn at(endpoint: &str) -> Value {
    json!({ "store": { "s3": { "endpoint": endpoint } } })
}

/// A store that cannot be used: nothing is written there, servers wait, the pool says why; and once it is mended they run.
async fn unusable(
    scene: Scene,
    case: &str,
    reason: &str,
    says: &str,
    mend: impl AsyncFnOnce(&Scene) -> Result<()>,
) -> Result<Case> {
    scene.revise(GOOD, json!({})).await?;
    scene.scale(1).await?;
    scene.declare(SERVERS, |_| json!({})).await?;
    let (status, message) = scene.condition("DurableServerPool", "rooms", "Ready", reason).await?;
    ensure!(status == "False" && message.contains(says), "{message}");
    let note = scene.event("DurableServerPool", "rooms", reason).await?;
    ensure!(note.contains(says), "{note}");
    scene.condition("DurableServer", &room(0), "Placed", "NoEligiblePod").await?;
    mend(&scene).await?;
    scene.successor(&[]).await?;
    let after = scene.served(SERVERS, Instant::now()).await?;
    scene.condition("DurableServerPool", "rooms", "Ready", "PodsCanHost").await?;
    scene.close().await?;
    Ok(Case {
        case: case.into(),
        servers: SERVERS,
        seen: format!("Ready=False {reason}: {message}"),
        serving_after_ms: Some(after),
        ..Case::default()
    })
}

/// A pod made by hand, past the webhook, for a pool that is not there.
pub async fn pod_without_pool(cluster: &Cluster) -> Result<Case> {
    let scene = Scene::with_pods(cluster, "stray-pod", 1, json!({})).await?;
    let pods: Api<PodObject> = Api::namespaced(cluster.client.clone(), &scene.rooms.namespace);
    let of_pool = scene.rooms.ready_pods(1).await?;
    let mut stray = pods.get(&of_pool.first().context("no pod")?.name).await?;
    let labels = [("durableserver.io/pool", "missing"), ("durableserver.io/inject", "false")];
    stray.metadata = kube::core::ObjectMeta {
        name: Some("stray".into()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        ..Default::default()
    };
    if let Some(spec) = &mut stray.spec {
        spec.node_name = None;
    }
    stray.status = None;
    pods.create(&PostParams::default(), &stray).await?;
    let note = scene.event("Pod", "stray", "NoPool").await?;
    ensure!(note.contains("missing"), "{note}");
    let ready = scene.rooms.view.pods().iter().any(|pod| pod.name == "stray" && pod.ready);
    ensure!(!ready, "a pod without a pool is ready");
    scene.close().await?;
    Ok(Case {
        case: "pod labelled for a missing pool".into(),
        seen: format!("Pod: Event NoPool: {note}"),
        ..Case::default()
    })
}

/// Ten thousand servers in one apply, of a pool that is not there: a condition each, few Events, and others do not wait.
pub async fn many(cluster: &Cluster) -> Result<Case> {
    let scene = Scene::with_pods(cluster, "many", 1, json!({})).await?;
    let api = scene.objects("DurableServer");
    let made = stream::iter(0..MANY).map(|number| {
        let object = json!({
            "apiVersion": "durableserver.io/v1alpha1", "kind": "DurableServer",
            "metadata": { "name": format!("many-{number:05}") }, "spec": { "pool": "nowhere", "type": "room" },
        });
        let api = &api;
        async move { anyhow::Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?) }
    });
    made.buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    scene.declare(SERVERS, |_| json!({})).await?;
    let after = scene.served(SERVERS, Instant::now()).await.context("others do not wait")?;
    let told = |name: &str| name.starts_with("many-");
    until("all of them have their condition", TOLD, async || {
        let servers = scene.rooms.view.servers();
        Ok((servers.iter().filter(|server| told(&server.name) && !server.phase.is_empty()).count() == MANY)
            .then_some(()))
    })
    .await?;
    let (_, message) = scene.condition("DurableServer", "many-00000", "Accepted", "NoPool").await?;
    let events = scene.events("DurableServer", "", "NoPool").await?.len();
    // Five a minute.
    ensure!((1..=15).contains(&events), "{events} Events");
    scene.close().await?;
    Ok(Case {
        case: "10,000 servers in one apply".into(),
        servers: MANY,
        seen: format!("Accepted=False NoPool on each, {events} Events: {message}"),
        serving_after_ms: Some(after),
        ..Case::default()
    })
}
