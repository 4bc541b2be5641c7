//! One case's own world: a namespace, its operators, its pods, their rooms, and who watches them from outside.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use http::Request;
use http_body_util::Full;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use rustix::process::Pid;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::child::{Child, Spec};
use super::ground::{BUCKET, Ground, KEYS};
use super::kubelet::{Kubelet, Programs};
use super::service::Service;
use crate::gate::Gate;
use crate::http::Pool;
use crate::ledger::Ledger;
use crate::load::{Load, Plan};
use crate::process::built;
use crate::rooms::room;
use crate::wait::until;

/// The shortest that a pool may have.
pub const LEASE: Duration = Duration::from_secs(5);
/// What starts, starts within this, on a machine that does much else.
const STARTS: Duration = Duration::from_mins(1);
/// From the end of an operator to its restart.
const RESTART: Duration = Duration::from_millis(700);
/// Rooms of the pod that is drained. Every third one is not handed off, but stopped and started elsewhere.
const ROOMS: usize = 12;
/// Rooms of the other pods.
const MORE_ROOMS: usize = 4;
const WRITES: u32 = 40;
const PATIENCE: Duration = Duration::from_secs(1);
const GATEWAY: u16 = 7070;

/// Whose fail points are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The agent of the pod that is drained.
    Source,
    /// The agents of the other pods; the first that comes there.
    Target,
    /// The operators.
    Operator,
}

impl Role {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Operator => "operator",
        }
    }
}

/// Rooms in three pods, and all that they need.
pub struct Cell {
    /// The pod that is drained.
    pub source: Kubelet,
    /// The other pods.
    pub others: Vec<Kubelet>,
    /// Whom their hosts report to.
    pub ledger: Ledger,
    /// Their way to the store.
    pub gate: Gate,
    dir: PathBuf,
    namespace: String,
    pods: Api<Pod>,
    rooms: Service,
    _operator: (Service, Service, Vec<JoinHandle<()>>),
}

impl Cell {
    /// Starts all of it, and waits until every room is served. Its number tells it from others.
    pub async fn open(ground: &Ground, number: u8, name: &str) -> Result<Self> {
        let namespace = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-").to_lowercase();
        let dir = ground.dir.join(&namespace);
        fs::create_dir_all(&dir)?;
        let (ledger, gate) = (Ledger::open(Ipv4Addr::LOCALHOST.into()).await?, gate(ground).await?);
        namespace_with(ground, &namespace, &gate).await?;
        let operator = operators(ground, &namespace, number, &dir).await?;
        let pods = Api::namespaced(ground.client.clone(), &namespace);
        let make = Make { ground, pods: &pods, number, dir: &dir, ledger: &ledger };
        let source = make.pod(0, Role::Source).await?;
        ready(&[&source]).await?;
        declare(ground, &namespace, 0..ROOMS).await?;
        served(0..ROOMS, &[&source]).await.context("at the beginning")?;
        let others = try_join_all([1, 2].map(|n| make.pod(n, Role::Target))).await?;
        ready(&others.iter().collect::<Vec<_>>()).await?;
        declare(ground, &namespace, ROOMS..ROOMS + MORE_ROOMS).await?;
        let all: Vec<&Kubelet> = others.iter().chain([&source]).collect();
        served(0..ROOMS + MORE_ROOMS, &all).await.context("when all pods were there")?;
        let rooms = Service::open().await?;
        rooms.lead_to(all.iter().map(|pod| (pod.address, GATEWAY).into()).collect());
        Ok(Self { source, others, ledger, gate, dir, namespace, pods, rooms, _operator: operator })
    }

    /// Starts the client outside.
    pub async fn load(&self) -> Result<Load> {
        let servers = (0..ROOMS + MORE_ROOMS).map(room).collect();
        Load::start(Plan { address: self.rooms.address(), servers, writes_per_second: WRITES, first: false }).await
    }

    /// Begins to drain the source, as `kubectl delete pod` does.
    pub async fn drain(&self) -> Result<()> {
        self.pods.delete(&self.source.pod, &DeleteParams::default()).await?;
        self.source.end();
        self.rooms.lead_to(self.others.iter().map(|pod| (pod.address, GATEWAY).into()).collect());
        Ok(())
    }

    /// From now on whoever has this role and comes to this place for the n-th time gets this signal.
    pub fn arm(&self, role: Role, place: &str, signal: &str, times: u64) -> Result<()> {
        let (file, new) = (failpoint(&self.dir, role), self.dir.join("new"));
        // Whoever reads it reads all of it.
        fs::write(&new, format!("{signal} {times} {place}"))?;
        Ok(fs::rename(new, file)?)
    }

    /// Who came there, once somebody did.
    pub async fn hit(&self, role: Role, limit: Duration) -> Result<Pid> {
        let file = failpoint(&self.dir, role);
        let prefix = format!("{}.", file.file_name().unwrap_or_default().to_string_lossy());
        until("somebody comes to the fail point", limit, async || {
            for entry in fs::read_dir(&self.dir)? {
                let name = entry?.file_name();
                let pid = name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(|pid| pid.parse().ok());
                if let Some(pid) = pid.and_then(Pid::from_raw) {
                    return Ok(Some(pid));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Waits until the drained pod is gone and every room is served by another one.
    pub async fn recovered(&self, limit: Duration) -> Result<()> {
        until("the drained pod is gone", limit, async || Ok(self.source.seen().gone.then_some(()))).await?;
        served(0..ROOMS + MORE_ROOMS, &self.others.iter().collect::<Vec<_>>()).await
    }

    /// Every room is served by one of the pods, and by no other.
    pub async fn each_is_served_once(&self) -> Result<()> {
        for number in 0..ROOMS + MORE_ROOMS {
            let pods = serving(&room(number), &self.others.iter().collect::<Vec<_>>()).await;
            ensure!(pods.len() == 1, "{}: {} is served by {pods:?}", self.namespace, room(number));
        }
        Ok(())
    }

    /// Pods whose hosts were killed, and when.
    #[must_use]
    pub fn killed(&self) -> BTreeMap<String, u64> {
        let all = self.others.iter().chain([&self.source]);
        all.filter_map(|pod| Some((pod.pod.clone(), pod.seen().killed?))).collect()
    }
}

fn failpoint(dir: &Path, role: Role) -> PathBuf {
    dir.join(format!("failpoint-{}", role.name()))
}

async fn gate(ground: &Ground) -> Result<Gate> {
    Gate::open(Ipv4Addr::LOCALHOST.into(), ground.store, None).await
}

async fn namespace_with(ground: &Ground, namespace: &str, gate: &Gate) -> Result<()> {
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
    ground.apply("", object).await?;
    // There is no controller that makes it.
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    ground.apply(namespace, account).await?;
    let keys = json!({ "AWS_ACCESS_KEY_ID": KEYS.0, "AWS_SECRET_ACCESS_KEY": KEYS.1 });
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "store" }, "stringData": keys });
    ground.apply(namespace, secret).await?;
    let s3 = json!({
        "bucket": BUCKET, "prefix": namespace, "endpoint": gate.endpoint(), "credentialsSecretRef": { "name": "store" },
    });
    let pool = json!({
        "apiVersion": "durableserver.io/v1alpha1", "kind": "DurableServerPool", "metadata": { "name": "rooms" },
        "spec": {
            "store": { "s3": s3 }, "hostStopTime": "2s",
            "handoffOnShutdown": { "enabled": true, "timeout": "15s" },
            "recovery": { "leaseDuration": format!("{}s", LEASE.as_secs()) },
        },
    });
    ground.apply(namespace, pool).await
}

async fn declare(ground: &Ground, namespace: &str, numbers: std::ops::Range<usize>) -> Result<()> {
    try_join_all(numbers.map(|number| {
        let server = json!({
            "apiVersion": "durableserver.io/v1alpha1", "kind": "DurableServer", "metadata": { "name": room(number) },
            "spec": { "pool": "rooms", "type": "room", "handoffOnShutdown": { "enabled": number % 3 != 0 } },
        });
        ground.apply(namespace, server)
    }))
    .await?;
    Ok(())
}

/// Two replicas behind their Services.
async fn operators(
    ground: &Ground,
    namespace: &str,
    number: u8,
    dir: &Path,
) -> Result<(Service, Service, Vec<JoinHandle<()>>)> {
    let (sessions, webhook) = (Service::open().await?, Service::open().await?);
    ground.apply("", webhook_configuration(namespace, webhook.address())).await?;
    let addresses = [101, 102].map(|last| address(number, last));
    sessions.lead_to(addresses.map(|ip| (ip, 9443).into()).into());
    webhook.lead_to(addresses.map(|ip| (ip, 8443).into()).into());
    let mut tasks = Vec::new();
    for (replica, ip) in addresses.into_iter().enumerate() {
        let spec = operator(ground, namespace, replica, ip, sessions.address(), dir)?;
        tasks.push(tokio::spawn(async move {
            loop {
                match Child::start(&spec) {
                    Ok(mut process) => process.ended().await,
                    Err(error) => eprintln!("{error:#}"),
                }
                sleep(RESTART).await;
            }
        }));
    }
    Ok((sessions, webhook, tasks))
}

/// Our chart's, but for where it is.
fn webhook_configuration(namespace: &str, webhook: SocketAddr) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": namespace },
        "webhooks": [{
            "name": "pods.durableserver.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": { "url": format!("https://localhost:{}/inject", webhook.port()) },
            "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"] }],
            "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
        }],
    })
}

fn operator(
    ground: &Ground,
    namespace: &str,
    replica: usize,
    ip: IpAddr,
    sessions: SocketAddr,
    dir: &Path,
) -> Result<Spec> {
    let flag = |name: &str, value: String| [format!("--{name}"), value];
    let arguments = [
        flag("session-address", format!("{ip}:9443")),
        flag("http-address", format!("{ip}:8080")),
        flag("webhook-address", format!("{ip}:8443")),
        flag("watch-namespaces", namespace.into()),
        flag("tls-names", "localhost".into()),
        flag("webhook-configuration", namespace.into()),
        flag("agent-image", "agent".into()),
        flag("agent-operator", format!("https://localhost:{}", sessions.port())),
    ];
    let env = [
        ("KUBECONFIG", ground.kubeconfig(namespace)?.display().to_string()),
        ("POD_NAME", format!("operator-{replica}")),
        ("POD_IP", ip.to_string()),
        ("DURABLE_FAILPOINT", failpoint(dir, Role::Operator).display().to_string()),
    ];
    Ok(Spec {
        program: built("durable-operator")?,
        arguments: arguments.concat(),
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        log: dir.join(format!("operator-{replica}.log")),
    })
}

/// All of a case's processes have addresses of their own, which no other run of this test uses.
fn address(case: u8, process: u8) -> IpAddr {
    let run = u8::try_from(1 + std::process::id() % 250).unwrap_or(1);
    Ipv4Addr::new(127, run, case, process).into()
}

struct Make<'a> {
    ground: &'a Ground,
    pods: &'a Api<Pod>,
    number: u8,
    dir: &'a Path,
    ledger: &'a Ledger,
}

impl Make<'_> {
    /// A pod, and what runs it.
    async fn pod(&self, n: u8, role: Role) -> Result<Kubelet> {
        let name = format!("rooms-{n}");
        let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
        let object: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "durableserver.io/pool": "rooms" } },
            "spec": {
                "nodeName": format!("node-{n}"), "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 10,
                "containers": [{ "name": "rooms", "image": "rooms", "env": [
                    { "name": "POD_NAME", "valueFrom": field("metadata.name") },
                    { "name": "NODE_NAME", "value": format!("node-{n}") },
                    { "name": "LEDGER", "value": self.ledger.url() },
                ] }],
            },
        }))?;
        let mut last = None;
        let made = until("the webhook lets a pod in", STARTS, async || {
            match self.pods.create(&PostParams::default(), &object).await {
                Ok(pod) if pod.spec.as_ref().is_some_and(|spec| spec.init_containers.is_some()) => Ok(Some(pod)),
                // The API server had not noticed yet that there is a webhook.
                Ok(_) => {
                    self.pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
                    Ok(None)
                }
                Err(error) => {
                    last = Some(error);
                    Ok(None)
                }
            }
        });
        let made = made.await.with_context(|| format!("{last:?}"))?;
        let programs = Programs { agent: built("durable-agent")?, host: built("rooms")? };
        let more = [("DURABLE_FAILPOINT".to_owned(), failpoint(self.dir, role).display().to_string())];
        let (address, dir) = (address(self.number, n + 1), self.dir.join(&name));
        Kubelet::run(&self.ground.client, made, address, dir, &programs, &more).await
    }
}

async fn ready(pods: &[&Kubelet]) -> Result<()> {
    until("the pods are ready", STARTS, async || Ok(pods.iter().all(|pod| pod.seen().ready).then_some(()))).await
}

/// Waits until each of these rooms is served by one of these pods.
async fn served(rooms: std::ops::Range<usize>, pods: &[&Kubelet]) -> Result<()> {
    let mut missing = rooms.start;
    let waited = until("all rooms are served", STARTS, async || {
        for number in rooms.clone().cycle().skip(missing - rooms.start).take(rooms.len()) {
            if serving(&room(number), pods).await.is_empty() {
                missing = number;
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    waited.await.with_context(|| format!("{} is not", room(missing)))
}

/// The pods that answer for this room themselves. One that cannot be reached serves nobody.
async fn serving(room: &str, pods: &[&Kubelet]) -> Vec<String> {
    let mut serving = Vec::new();
    for pod in pods {
        let address = SocketAddr::from((pod.address, GATEWAY));
        let request = Request::get(format!("/{room}/count")).header("Host", address.to_string());
        let Ok(request) = request.header("Durable-No-Forward", "1").body(Full::default()) else { continue };
        let answer = timeout(PATIENCE, Pool::new(address).send(request)).await;
        if answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status().is_success())) {
            serving.push(pod.pod.clone());
        }
    }
    serving
}
