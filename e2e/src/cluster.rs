//! The cluster that everything runs on: one brought up here, or the one that `E2E_KUBECONFIG` names.

use std::env;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, Service};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::process;
use crate::view;
use crate::wait::until;

/// Where the operator lives.
pub const SYSTEM: &str = "durable-server-system";
/// The operator's Deployment and Service.
pub const OPERATOR: &str = "durable-server-operator";
/// The chart's release.
pub const RELEASE: &str = "durable-server";
/// The embedded store's Service and Secret.
const STORE: &str = "durable-server-store";
/// The cluster's own bridge: nodes, pods and this machine reach each other here.
const BRIDGE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 31, 255, 1));
/// Where either store shows its counters.
const STORE_METRICS: u16 = 9327;
/// Marks the namespaces that tests made.
const LABEL: &str = "durableserver.io/e2e";
/// Who we are to the API server.
const MANAGER: &str = "e2e";
const IMAGES: [&str; 5] = ["operator", "agent", "rooms", "bad-host", "seaweedfs"];
const INSTALL: Duration = Duration::from_secs(90);
const ROLLOUT: Duration = Duration::from_mins(5);

/// Where servers' state goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// The cluster's own S3 server, outside Kubernetes, which tests can stop. Only on our own cluster.
    Outside,
    /// The one that the chart brings.
    Embedded,
}

impl Store {
    /// For what does not mind which.
    #[must_use]
    pub fn any() -> Self {
        if env::var_os("E2E_KUBECONFIG").is_some() { Self::Embedded } else { Self::Outside }
    }
}

/// How pods and this machine reach a store.
#[derive(Debug, Clone)]
pub struct StoreAccess {
    /// URL, as pods see it.
    pub endpoint: String,
    /// A bucket that is there.
    pub bucket: String,
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    pub keys: (String, String),
    /// Where it shows how many requests it has answered.
    pub metrics: SocketAddr,
}

/// A cluster with the product installed.
#[derive(Clone)]
pub struct Cluster {
    /// For everything else.
    pub client: Client,
    /// Where servers' state goes.
    pub store: StoreAccess,
    /// Where this machine listens for pods.
    pub here: IpAddr,
    kubeconfig: PathBuf,
    ours: bool,
}

impl Cluster {
    /// Brings the cluster up if need be, loads the images that changed, and installs the chart of this checkout.
    pub async fn up(store: Store) -> Result<Self> {
        let given = env::var_os("E2E_KUBECONFIG").map(PathBuf::from);
        let ours = given.is_none();
        if !ours && store == Store::Outside {
            bail!("this needs an S3 server that it can stop; unset E2E_KUBECONFIG to run it on a cluster of its own");
        }
        let mut changed = Vec::new();
        if ours {
            tokio::task::spawn_blocking(alone).await??;
            script("build", &[]).await?;
            script("up", &[]).await?;
            changed = load(&IMAGES.map(|image| cache().join("images").join(image).with_extension("tar"))).await?;
        }
        let kubeconfig = given.unwrap_or_else(|| cache().join("cluster/run/admin.conf"));
        let client = connect(&kubeconfig).await?;
        let here = match env::var("E2E_HERE") {
            Ok(address) => address.parse().context("E2E_HERE: this machine's address, as pods reach it")?,
            Err(_) => BRIDGE,
        };
        helm(&kubeconfig, store).await?;
        let access = match store {
            Store::Outside => StoreAccess {
                endpoint: format!("http://{BRIDGE}:8333"),
                bucket: "durable".into(),
                keys: ("test".into(), "testsecret".into()),
                metrics: (BRIDGE, STORE_METRICS).into(),
            },
            Store::Embedded => embedded(&client).await?,
        };
        let cluster = Self { client, store: access, here, kubeconfig, ours };
        if changed.iter().any(|image| image == "operator") {
            cluster.restart(SYSTEM, OPERATOR).await?;
        }
        cluster.scale(SYSTEM, OPERATOR, 2).await?;
        Ok(cluster)
    }

    /// Loads the images of the version before this one, tagged `previous`, and says where its chart is.
    pub async fn previous(&self) -> Result<PathBuf> {
        if !self.ours {
            bail!("images can only be loaded into a cluster of our own");
        }
        let previous = cache().join("previous");
        load(&["previous-operator", "previous-agent"].map(|image| previous.join(image).with_extension("tar"))).await?;
        Ok(previous.join("sources/charts/durable-server"))
    }

    /// Whether its nodes are this machine, so that processes can be looked at and killed.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.ours
    }

    /// The file for `kubectl --kubeconfig`.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where the API server notes what the operator writes.
    pub fn audit_log(&self) -> Result<PathBuf> {
        if !self.ours {
            bail!("only the API server of a cluster of our own keeps the audit log that this needs");
        }
        Ok(cache().join("cluster/run/audit.log"))
    }

    /// Objects of one kind of our own group in a namespace.
    #[must_use]
    pub fn objects(&self, namespace: &str, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &Self::kind(kind))
    }

    /// A kind of our own group.
    #[must_use]
    pub fn kind(kind: &str) -> ApiResource {
        ApiResource::from_gvk(&GroupVersionKind::gvk("durableserver.io", "v1alpha1", kind))
    }

    /// A namespace of its own for a test. What an earlier run left to be looked at goes.
    pub async fn fresh_namespace(&self, name: &str) -> Result<String> {
        static TIDIED: AtomicBool = AtomicBool::new(false);
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        if !TIDIED.swap(true, Ordering::Relaxed) {
            for old in namespaces.list_metadata(&ListParams::default().labels(LABEL)).await?.items {
                if old.metadata.deletion_timestamp.is_none() {
                    self.remove_namespace(&old.metadata.name.unwrap_or_default()).await?;
                }
            }
        }
        // Under "restricted" the API server checks what the example's manifests promise.
        let labels = json!({ LABEL: name, "pod-security.kubernetes.io/enforce": "restricted" });
        let object = json!({ "metadata": { "generateName": format!("{name}-"), "labels": labels } });
        let made = namespaces.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        made.metadata.name.context("a namespace without a name")
    }

    /// Begins to remove a namespace.
    pub async fn remove_namespace(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Applies an object as `kubectl apply --server-side` does, into this namespace.
    pub async fn apply(&self, namespace: &str, object: Value) -> kube::Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(object).map_err(kube::Error::SerdeError)?;
        let types =
            object.types.clone().unwrap_or_else(|| TypeMeta { api_version: String::new(), kind: String::new() });
        let kind = match GroupVersionKind::try_from(&types) {
            Ok(kind) => ApiResource::from_gvk(&kind),
            Err(error) => return Err(kube::Error::Service(Box::new(error))),
        };
        let name = object.metadata.name.clone().unwrap_or_default();
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &kind);
        api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await
    }

    /// Changes some fields of an object.
    pub async fn merge(&self, namespace: &str, kind: &str, name: &str, patch: Value) -> Result<()> {
        self.objects(namespace, kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// `kubectl rollout restart`: returns when all its pods are of the new revision and ready, and no old one is left.
    pub async fn restart(&self, namespace: &str, deployment: &str) -> Result<()> {
        let annotation = json!({ "kubectl.kubernetes.io/restartedAt": jiff::Timestamp::now().to_string() });
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": annotation } } } });
        self.roll(namespace, deployment, patch).await
    }

    /// Sets the number of replicas and waits for it. With none it returns when no pod is left.
    pub async fn scale(&self, namespace: &str, deployment: &str, replicas: i32) -> Result<()> {
        self.roll(namespace, deployment, json!({ "spec": { "replicas": replicas } })).await
    }

    async fn roll(&self, namespace: &str, name: &str, patch: Value) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let patched = deployments.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        let generation = patched.metadata.generation;
        let labels = patched.spec.unwrap_or_default().selector.match_labels.unwrap_or_default();
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let of_it = ListParams::default().labels(&labels.join(","));
        until(&format!("deployment {namespace}/{name} rolled out"), ROLLOUT, async || {
            let deployment = deployments.get(name).await?;
            let wanted = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
            let status = deployment.status.unwrap_or_default();
            let done = status.observed_generation >= generation
                && status.updated_replicas.unwrap_or(0) == wanted
                && status.available_replicas.unwrap_or(0) == wanted
                && status.replicas.unwrap_or(0) == wanted;
            if !done {
                return Ok(None);
            }
            let left = pods.list_metadata(&of_it).await?.items.len();
            Ok((left == usize::try_from(wanted)?).then_some(()))
        })
        .await
    }

    /// Runs `kubectl` on it: whether that went well, and all that it said.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<(bool, String)> {
        self.said("kubectl", arguments).await
    }

    /// Runs `kubectl durable` in a namespace, as a plugin that is in the `PATH`: whether that went well, and all that it said.
    pub async fn durable(&self, namespace: &str, arguments: &[&str]) -> Result<(bool, String)> {
        let plugin = process::built("kubectl-durable")?;
        let plugins = plugin.parent().context("the plugin is in no directory")?;
        let path = env::join_paths(
            [plugins.to_owned()].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
        )?;
        let mut command = Command::new(tool("kubectl"));
        command.env("PATH", path).env("KUBECONFIG", &self.kubeconfig).stdin(Stdio::null());
        output(command.args(["durable", "--namespace", namespace]).args(arguments)).await
    }

    /// Runs `helm` on it: whether that went well, and all that it said.
    pub async fn helm(&self, arguments: &[&str]) -> Result<(bool, String)> {
        self.said("helm", arguments).await
    }

    async fn said(&self, program: &str, arguments: &[&str]) -> Result<(bool, String)> {
        let mut command = Command::new(tool(program));
        output(command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments).stdin(Stdio::null())).await
    }

    /// The pods of a namespace on this node; on all of them if it is empty.
    pub async fn pods(&self, namespace: &str, node: &str) -> Result<Vec<view::Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let all = pods.list(&ListParams::default()).await?.items;
        Ok(all.iter().map(view::pod).filter(|pod| node.is_empty() || pod.node == node).collect())
    }

    /// The operator's replica that leads.
    pub async fn leader(&self) -> Result<view::Pod> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM);
        let holder = leases.get(OPERATOR).await?.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let pods = self.pods(SYSTEM, "").await?;
        pods.into_iter().find(|pod| holder.starts_with(&pod.name)).with_context(|| format!("no pod of {holder}"))
    }

    /// Waits until the API server answers.
    pub async fn answers(&self) -> Result<()> {
        until("the API server answers", INSTALL, async || Ok(self.client.apiserver_version().await.ok().map(drop)))
            .await
    }

    /// Stops a process of our own cluster (`s3`, `kubelet0`, ...) until the guard is dropped.
    pub async fn stop_process(&self, name: &'static str) -> Result<Stopped> {
        if !self.ours {
            bail!("only a process of a cluster of our own can be stopped");
        }
        script("stop", &[name, "KILL"]).await?;
        Ok(Stopped { name })
    }
}

/// A process of the cluster that is stopped; dropped, it runs again.
#[derive(Debug)]
pub struct Stopped {
    name: &'static str,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let started = std::process::Command::new(script_path()).args(["start", self.name]).status();
        if !started.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be started again; `e2e/cluster/cluster up` builds the cluster anew", self.name);
        }
    }
}

/// Makes this the only process that uses our own cluster, until it ends: figures are not to be shared.
fn alone() -> Result<()> {
    static HELD: Mutex<Option<File>> = Mutex::new(None);
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    if held.is_none() {
        std::fs::create_dir_all(cache())?;
        let file = File::create(cache().join("in-use"))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another run on the same cluster to end");
            file.lock()?;
        }
        *held = Some(file);
    }
    Ok(())
}

fn cache() -> PathBuf {
    env::var_os("DURABLE_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".cache/durable-server"),
        PathBuf::from,
    )
}

/// A program of our own cluster's, or the one in the `PATH`.
pub(crate) fn tool(name: &str) -> PathBuf {
    let own = cache().join("cluster/bin").join(name);
    if own.exists() { own } else { name.into() }
}

/// The checkout. As cargo says when it runs this, not when it built it: checkouts share one directory of builds.
///
/// # Panics
///
/// If not run by cargo.
#[must_use]
pub fn repository() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").expect("run by `cargo run` or `cargo test`, as the Makefile does");
    Path::new(&package).join("..")
}

fn script_path() -> PathBuf {
    repository().join("e2e/cluster/cluster")
}

async fn script(verb: &str, arguments: &[&str]) -> Result<String> {
    run(Command::new(script_path()).arg(verb).args(arguments)).await
}

/// Whether it went well, and all that it said.
async fn output(command: &mut Command) -> Result<(bool, String)> {
    let output = command.output().await.with_context(|| format!("{command:?}"))?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Runs a program whose errors are for us to read and whose output is for the caller.
async fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().await;
    let output = output.with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{:?}: {}\n{}", command.as_std(), output.status, String::from_utf8_lossy(&output.stdout));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Gives these images to the nodes; the names of those that they did not have yet in this version.
async fn load(tars: &[PathBuf]) -> Result<Vec<String>> {
    if let Some(missing) = tars.iter().find(|tar| !tar.exists()) {
        bail!("there is no {}; `make` builds it before it runs this", missing.display());
    }
    let paths: Vec<&str> = tars.iter().filter_map(|tar| tar.to_str()).collect();
    Ok(script("load", &paths).await?.lines().map(str::to_owned).collect())
}

async fn connect(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// All but the store is the chart's own default, so that the defaults are what is tested.
async fn helm(kubeconfig: &Path, store: Store) -> Result<()> {
    let embedded = format!("store.embedded.enabled={}", store == Store::Embedded);
    let mut helm = Command::new(tool("helm"));
    helm.args(["upgrade", "--install", RELEASE]).arg(repository().join("charts/durable-server"));
    helm.args(["--namespace", SYSTEM, "--create-namespace", "--set", &embedded]);
    // Our own cluster has no storage class, and what a test leaves is not worth keeping.
    helm.args(["--set", "store.embedded.persistence.enabled=false", "--wait", "--timeout"])
        .arg(format!("{}s", INSTALL.as_secs()));
    run(helm.arg("--kubeconfig").arg(kubeconfig)).await?;
    Ok(())
}

/// The store that the chart brought, as its notes describe it.
async fn embedded(client: &Client) -> Result<StoreAccess> {
    let secret = Api::<Secret>::namespaced(client.clone(), SYSTEM).get(STORE).await?;
    let data = secret.data.unwrap_or_default();
    let key = |key: &str| -> Result<String> {
        let value = data.get(key).with_context(|| format!("secret {STORE} has no {key}"))?;
        Ok(String::from_utf8(value.0.clone())?)
    };
    let pod = Api::<Pod>::namespaced(client.clone(), SYSTEM).get(&format!("{STORE}-0")).await?;
    let address = pod.status.and_then(|status| status.pod_ip).context("the store's pod has no address")?;
    Ok(StoreAccess {
        endpoint: format!("http://{STORE}.{SYSTEM}:8333"),
        bucket: "rooms".into(),
        keys: (key("AWS_ACCESS_KEY_ID")?, key("AWS_SECRET_ACCESS_KEY")?),
        metrics: (address.parse::<IpAddr>()?, STORE_METRICS).into(),
    })
}

/// The address of a Service.
pub fn cluster_ip(service: &Service) -> Result<IpAddr> {
    let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    Ok(address.context("a Service without an address")?.parse()?)
}
