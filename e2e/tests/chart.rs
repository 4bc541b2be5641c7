//! The chart on a real API server: what it renders is taken, and servers outlive its upgrade, its uninstallation and its
//! next installation.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, OPERATOR, RELEASE, SYSTEM, Store, repository};
use e2e::fault::{self, Killed};
use e2e::report::{self, Limit};
use e2e::rooms::{Rooms, room};
use e2e::wait::until;
use kube::api::ListParams;
use serde_json::{Value, json};
use tempfile::TempDir;

const ROOMS: usize = 24;
const WRITES: u32 = 40;
const SOON: Duration = Duration::from_mins(1);
const FINALIZER: &str = "durableserver.io/owned";

fn chart() -> String {
    repository().join("charts/durable-server").to_string_lossy().into_owned()
}

async fn helm(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let (well, said) = cluster.helm(arguments).await?;
    ensure!(well, "helm {arguments:?}: {said}");
    Ok(said)
}

async fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let (well, said) = cluster.kubectl(arguments).await?;
    ensure!(well, "kubectl {arguments:?}: {said}");
    Ok(said)
}

async fn install(cluster: &Cluster, chart: &str, values: &[&str]) -> Result<()> {
    // Given no values, Helm would take those of the release that is there.
    let fixed = ["upgrade", "--install", "--reset-values", RELEASE, chart, "-n", SYSTEM, "--wait", "--timeout", "90s"];
    let mut arguments = fixed.to_vec();
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    helm(cluster, &arguments).await?;
    // Until the last earlier operator is gone: it would still answer the webhook.
    cluster.scale(SYSTEM, OPERATOR, 2).await
}

/// The version before this one, in place of this one.
async fn install_previous(cluster: &Cluster) -> Result<()> {
    let chart = cluster.previous().await?;
    install(cluster, &chart.to_string_lossy(), &["image.tag=previous", "agent.image.tag=previous"]).await
}

async fn uninstall(cluster: &Cluster) -> Result<()> {
    helm(cluster, &["uninstall", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "90s"]).await.map(drop)
}

#[tokio::test]
async fn everything_that_the_chart_renders_is_taken_by_the_api_server() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let namespace = cluster.fresh_namespace("chart-renders").await?;
    // Its pods must meet pod security "restricted"; of templates it only warns.
    let warn = "pod-security.kubernetes.io/warn=restricted";
    kubectl(&cluster, &["label", "namespace", &namespace, warn]).await?;
    let directory = TempDir::new()?;
    for values in Path::new(&chart()).join("ci").read_dir()? {
        let values = values?.path();
        let name = values.to_string_lossy();
        let namespaces = format!("watchNamespaces={{{namespace}}}");
        // This cluster does not know the kinds of the Prometheus operator and of cert-manager; `charts/check` does.
        let known = "metrics.serviceMonitor.enabled=false,metrics.podMonitor.enabled=false,metrics.rules.enabled=false,webhook.certManager.enabled=false";
        let chart = chart();
        let template = [
            "template",
            "trial",
            &chart,
            "--kube-version",
            "1.34",
            "-n",
            &namespace,
            "-f",
            &name,
            "--set",
            &namespaces,
            "--set",
            known,
        ];
        let rendered = helm(&cluster, &template).await?;
        let file = directory.path().join("rendered.yaml");
        std::fs::write(&file, rendered)?;
        let file = file.to_string_lossy();
        let apply = ["apply", "--dry-run=server", "--server-side", "--force-conflicts", "-f", &file];
        let said = kubectl(&cluster, &apply).await.with_context(|| name.to_string())?;
        ensure!(!said.contains("Warning"), "{name}: {said}");
        ensure!(said.matches("serverside-applied").count() > 10, "{name}: {said}");
    }
    cluster.remove_namespace(&namespace).await
}

#[tokio::test]
async fn the_first_server_answers_within_a_minute_of_the_installation() -> Result<()> {
    uninstall(&Cluster::up(Store::any()).await?).await?;
    let begun = Instant::now();
    let cluster = Cluster::up(Store::Embedded).await?;
    let rooms = Rooms::start(&cluster, "first", 1, json!({})).await?;
    rooms.create(1, 0).await?;
    let path = format!("/{}/count", room(0));
    until("the first server answers", SOON, async || Ok(rooms.get(&path).await?.status().is_success().then_some(())))
        .await?;
    let seconds = begun.elapsed().as_secs_f64();
    report::write("install", &json!({ "first_request_s": seconds }))?;
    report::check(&[Limit::time("helm install to the first served request (s)", Some(seconds), 60.0)])?;
    rooms.close().await
}

#[tokio::test]
async fn helm_test_fails_while_the_operator_does_not_answer() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let test = ["test", RELEASE, "-n", SYSTEM, "--timeout", "60s"];
    helm(&cluster, &test).await?;
    cluster.scale(SYSTEM, OPERATOR, 0).await?;
    let (well, said) = cluster.helm(&test).await?;
    let why = cluster.kubectl(&["logs", "-n", SYSTEM, &format!("{RELEASE}-test")]).await?.1;
    cluster.scale(SYSTEM, OPERATOR, 2).await?;
    ensure!(!well, "the test passed without an operator: {said}");
    ensure!(why.contains("does not answer"), "{why}");
    helm(&cluster, &test).await.map(drop)
}

#[tokio::test]
async fn servers_outlive_upgrade_uninstallation_and_reinstallation() -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    let rooms = Rooms::start(&cluster, "chart", 2, json!({})).await?;
    // One more than clients ask, to be deleted.
    rooms.create(ROOMS + 1, 1024).await?;
    rooms.ready_pods(2).await?;
    let seen = fault::under_load(&rooms, ROOMS, WRITES, async |_| {
        let before = epochs(&rooms);
        upgrade(&rooms).await.context("upgrade")?;
        uninstall(&rooms.cluster).await?;
        what_stays(&rooms).await.context("after uninstall")?;
        install(&rooms.cluster, &chart(), &[&format!("watchNamespaces={{{}}}", rooms.namespace)]).await?;
        only_its_namespaces(&rooms).await.context("watchNamespaces")?;
        uninstall(&rooms.cluster).await?;
        no_finalizers(&rooms).await.context("after uninstall with watchNamespaces")?;
        Cluster::up(Store::Outside).await?;
        finalizers(&rooms, ROOMS).await?;
        let after = epochs(&rooms);
        let moved: Vec<_> = after.iter().filter(|(name, epoch)| before.get(*name) != Some(epoch)).collect();
        ensure!(moved.is_empty(), "started anew: {moved:?}");
        Ok(Killed::new())
    })
    .await?;
    ensure!(seen.failures.is_empty(), "requests failed: {:?}", seen.failures);
    // The new operator and the old agents work together.
    rooms.restart().await?;
    rooms.all_running(ROOMS, Duration::from_mins(1)).await?;
    let stopped: Vec<_> = rooms.view.handoffs().into_iter().filter(|drain| drain.status.stopped > 0).collect();
    ensure!(stopped.is_empty(), "{stopped:?}");
    rooms.close().await
}

#[tokio::test]
async fn neighbouring_versions_hand_servers_to_each_other() -> Result<()> {
    let cluster = Cluster::up(Store::Outside).await?;
    install_previous(&cluster).await?;
    let rooms = Rooms::start(&cluster, "versions", 2, json!({})).await?;
    rooms.create(ROOMS, 1024).await?;
    rooms.ready_pods(2).await?;
    ensure!(agents(&rooms).await?.iter().all(|image| image.ends_with(":previous")), "not the previous agents");
    let seen = fault::under_load(&rooms, ROOMS, WRITES, async |_| {
        install(&cluster, &chart(), &[]).await.context("this operator over the previous agents")?;
        rooms.restart().await?;
        rooms.all_running(ROOMS, SOON).await.context("from the previous agents to these")?;
        ensure!(agents(&rooms).await?.iter().all(|image| !image.ends_with(":previous")), "still the previous agents");
        install_previous(&cluster).await.context("the previous operator over these agents")?;
        rooms.restart().await?;
        rooms.all_running(ROOMS, SOON).await.context("from these agents to the previous ones")?;
        Ok(Killed::new())
    })
    .await?;
    Cluster::up(Store::Outside).await?;
    ensure!(seen.failures.is_empty(), "requests failed: {:?}", seen.failures);
    let drains = rooms.view.handoffs();
    let moved: usize = drains.iter().map(|drain| drain.status.moved).sum();
    ensure!(moved >= 2 * ROOMS && drains.iter().all(|drain| drain.status.stopped == 0), "{drains:?}");
    rooms.close().await
}

/// The images of the agents of all pods.
async fn agents(rooms: &Rooms) -> Result<Vec<String>> {
    let path = "jsonpath={.items[*].spec.initContainers[*].image}";
    let said = kubectl(&rooms.cluster, &["get", "pods", "-n", &rooms.namespace, "-o", path]).await?;
    let images: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
    ensure!(!images.is_empty(), "no agents");
    Ok(images)
}

fn epochs(rooms: &Rooms) -> BTreeMap<String, u64> {
    rooms.view.servers().into_iter().map(|server| (server.name, server.epoch)).collect()
}

/// From a chart whose definition of servers has no columns yet.
async fn upgrade(rooms: &Rooms) -> Result<()> {
    let cluster = &rooms.cluster;
    let columns = async || {
        let path = "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}";
        kubectl(cluster, &["get", "crd", "durableservers.durableserver.io", "-o", path]).await
    };
    let directory = TempDir::new()?;
    let earlier = earlier(directory.path())?;
    install(cluster, &earlier.to_string_lossy(), &[]).await?;
    ensure!(!columns().await?.contains("Pool"), "the earlier definition was not installed");
    install(cluster, &chart(), &["operator.podAnnotations.upgraded=yes"]).await?;
    ensure!(columns().await?.contains("Pool"), "the definition was not upgraded");
    helm(cluster, &["test", RELEASE, "-n", SYSTEM, "--timeout", "60s"]).await?;
    finalizers(rooms, ROOMS + 1).await
}

fn earlier(directory: &Path) -> Result<PathBuf> {
    let copied = Command::new("cp").arg("-r").arg(chart()).arg(directory).status()?;
    ensure!(copied.success(), "the chart cannot be copied");
    let chart = directory.join("durable-server");
    let description = chart.join("Chart.yaml");
    let text = std::fs::read_to_string(&description)?;
    std::fs::write(&description, text.replacen("\nversion: ", "\nversion: 0.0.1-", 1))?;
    let file = chart.join("files/crds/durableservers.yaml");
    let mut definition: Value = serde_yaml::from_str(&std::fs::read_to_string(&file)?)?;
    let version = definition["spec"]["versions"][0].as_object_mut().context("no versions")?;
    version.remove("additionalPrinterColumns").context("no columns")?;
    std::fs::write(&file, serde_yaml::to_string(&definition)?)?;
    Ok(chart)
}

/// How many servers the operator's finalizer is on.
async fn owned(rooms: &Rooms) -> Result<usize> {
    let servers = rooms.cluster.objects(&rooms.namespace, "DurableServer");
    let servers = servers.list_metadata(&ListParams::default()).await?;
    let has = |finalizers: &Vec<String>| finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    Ok(servers.items.iter().filter(|server| server.metadata.finalizers.as_ref().is_some_and(has)).count())
}

async fn finalizers(rooms: &Rooms, servers: usize) -> Result<()> {
    until(&format!("{servers} servers have their finalizer"), SOON, async || {
        Ok((owned(rooms).await? == servers).then_some(()))
    })
    .await
}

async fn no_finalizers(rooms: &Rooms) -> Result<()> {
    let owned = owned(rooms).await?;
    ensure!(owned == 0, "{owned} servers still have a finalizer that nobody removes");
    Ok(())
}

/// Nothing of the release but what is to be retained; servers serve on, and can be deleted.
async fn what_stays(rooms: &Rooms) -> Result<()> {
    let cluster = &rooms.cluster;
    let ours = format!("app.kubernetes.io/instance={RELEASE}");
    for kinds in [
        "deployments,pods,jobs,services,configmaps,serviceaccounts,roles,rolebindings,poddisruptionbudgets",
        "clusterroles,clusterrolebindings,mutatingwebhookconfigurations",
    ] {
        // Pods end after their Deployment is gone.
        until(&format!("none of {kinds} is left"), SOON, async || {
            let left = kubectl(cluster, &["get", kinds, "-n", SYSTEM, "-l", &ours, "-o", "name"]).await?;
            Ok((!left.contains('/')).then_some(()))
        })
        .await?;
    }
    no_finalizers(rooms).await?;
    ensure!(rooms.view.servers().len() == ROOMS + 1, "servers went with the release");

    let extra = room(ROOMS);
    let deleted = kubectl(cluster, &["delete", "dsrv", &extra, "-n", &rooms.namespace, "--timeout=10s"]).await;
    deleted.context("a server cannot be deleted without the operator")?;
    let answer = rooms.get(&format!("/{}/count", room(0))).await?;
    ensure!(answer.status() == 200, "{} without the operator", answer.status());
    Ok(())
}

/// The server that was deleted meanwhile is stopped; what is elsewhere is not touched, and must not be.
async fn only_its_namespaces(rooms: &Rooms) -> Result<()> {
    let cluster = &rooms.cluster;
    let account = format!("--as=system:serviceaccount:{SYSTEM}:{OPERATOR}");
    for (namespace, may) in [(rooms.namespace.as_str(), "yes"), ("default", "no")] {
        let said = cluster.kubectl(&["auth", "can-i", "list", "pods", "-n", namespace, &account]).await?.1;
        ensure!(said.lines().any(|line| line == may), "pods in {namespace}: {said}");
    }
    let elsewhere = json!({
        "apiVersion": "durableserver.io/v1alpha1", "kind": "DurableServer",
        "metadata": { "name": "elsewhere" }, "spec": { "pool": "rooms", "type": "room" },
    });
    cluster.apply(SYSTEM, elsewhere.clone()).await?;
    let mut here = elsewhere;
    here["metadata"]["name"] = json!("here");
    cluster.apply(&rooms.namespace, here).await?;
    rooms.all_running(ROOMS + 1, SOON).await?;
    finalizers(rooms, ROOMS + 1).await?;
    let elsewhere = cluster.objects(SYSTEM, "DurableServer").get("elsewhere").await?;
    ensure!(elsewhere.metadata.finalizers.is_none(), "a server of another namespace was taken");
    ensure!(elsewhere.data.get("status").is_none(), "{:?}", elsewhere.data);
    kubectl(cluster, &["delete", "dsrv", "elsewhere", "-n", SYSTEM, "--timeout=10s"]).await?;
    kubectl(cluster, &["delete", "dsrv", "here", "-n", &rooms.namespace, "--timeout=20s"]).await?;
    let gone = room(ROOMS);
    until(&format!("nobody serves {gone}, which was deleted"), SOON, async || {
        Ok(rooms.serving(&gone).await?.is_empty().then_some(()))
    })
    .await
}
