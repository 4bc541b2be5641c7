//! What a kubelet does for one pod of ours, as far as its containers can tell: it starts what the pod's containers name,
//! with their environment, token and hook; restarts what ends; asks whether it is ready; and ends it as kubelets do, which
//! restart nothing in a pod that is being deleted, and let the host go at once if the hook fails.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, Secret, ServiceAccount};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at};

use super::child::{Child, Spec};
use crate::http;
use crate::view::now;

/// From the end of a container to its first restart.
const RESTART: Duration = Duration::from_millis(700);
const PROBE_EVERY: Duration = Duration::from_millis(500);
const PROBE: Duration = Duration::from_secs(1);
/// A container has so long left to end by itself even when the grace period is over.
const LAST: Duration = Duration::from_secs(2);
/// A pod that answers no probe is not ready any more.
const PROBES_MISSED: u32 = 3;
const AGENT: &str = "durable-agent";
const HTTP: u16 = 7072;

/// What can be seen of a pod.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// It takes requests.
    pub ready: bool,
    /// Its object is gone.
    pub gone: bool,
    /// Its agent's process, if there is one now.
    pub agent: Option<Pid>,
    /// When its host was killed, if it ever was (nanoseconds since 1970).
    pub killed: Option<u64>,
}

/// What a pod's containers run.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The agent's container.
    pub agent: PathBuf,
    /// The other one.
    pub host: PathBuf,
}

/// A pod that runs.
#[derive(Debug)]
pub struct Kubelet {
    /// The pod's name.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
    seen: watch::Receiver<Seen>,
    end: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Kubelet {
    /// Runs this pod until it is gone. `more` is added to the environment of its agent.
    pub async fn run(
        client: &Client,
        pod: Pod,
        address: IpAddr,
        dir: PathBuf,
        programs: &Programs,
        more: &[(String, String)],
    ) -> Result<Self> {
        let name = pod.metadata.name.clone().context("a pod without a name")?;
        fs::create_dir_all(&dir)?;
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let (view, seen) = watch::channel(Seen::default());
        let mut running = Running {
            pods: Api::namespaced(client.clone(), &namespace),
            name: name.clone(),
            address,
            agent: Slot::new(AGENT),
            host: Slot::new(""),
            hook: String::new(),
            grace: Duration::ZERO,
            missed: 0,
            view,
        };
        running.prepare(client, &pod, &dir, programs, more).await?;
        let end = Arc::new(Notify::new());
        let ended = Arc::clone(&end);
        let task = tokio::spawn(async move {
            if let Err(error) = running.live(&ended).await {
                eprintln!("{namespace}/{}: {error:#}", running.name);
            }
        });
        Ok(Self { pod: name, address, seen, end, task })
    }

    /// How it is now.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Its object has a deletionTimestamp.
    pub fn end(&self) {
        self.end.notify_one();
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A container: what it runs, and the process that does, if it runs now.
struct Slot {
    container: String,
    spec: Option<Spec>,
    process: Option<Child>,
    again: Option<Instant>,
    restarts: u32,
}

impl Slot {
    fn new(container: &str) -> Self {
        Self { container: container.to_owned(), spec: None, process: None, again: None, restarts: 0 }
    }

    fn start(&mut self) -> Result<()> {
        let spec = self.spec.as_ref().context("nothing to start")?;
        self.again = None;
        self.process = Some(Child::start(spec)?);
        Ok(())
    }

    /// Waits until there is something to do: it ended (true), or is to be started again.
    async fn changes(&mut self) -> bool {
        match (&mut self.process, self.again) {
            (Some(process), _) => {
                process.ended().await;
                true
            }
            (None, Some(again)) => {
                sleep_until(again).await;
                false
            }
            (None, None) => std::future::pending().await,
        }
    }

    fn change(&mut self, ended: bool) -> Result<()> {
        if ended {
            self.process = None;
            self.restarts += 1;
            self.again = Some(Instant::now() + RESTART);
            return Ok(());
        }
        self.start()
    }

    /// Ends it: whether that needed force.
    async fn end(&mut self, until: Instant) -> bool {
        let Some(mut process) = self.process.take() else { return false };
        process.signal(Signal::TERM);
        if timeout_at(until, process.ended()).await.is_ok() {
            return false;
        }
        process.signal(Signal::KILL);
        process.ended().await;
        true
    }

    fn status(&self) -> Value {
        let state = if self.process.is_some() {
            json!({ "running": {} })
        } else if self.spec.is_none() {
            json!({ "waiting": { "reason": "ContainerCreating" } })
        } else {
            json!({ "terminated": { "exitCode": 137, "reason": "Error", "finishedAt": jiff::Timestamp::now().to_string() } })
        };
        json!({
            "name": self.container, "image": self.container, "imageID": "", "ready": self.process.is_some(),
            "restartCount": self.restarts, "state": state,
        })
    }
}

struct Running {
    pods: Api<Pod>,
    name: String,
    address: IpAddr,
    agent: Slot,
    host: Slot,
    hook: String,
    grace: Duration,
    missed: u32,
    view: watch::Sender<Seen>,
}

impl Running {
    /// All that the pod says of its containers, and its token.
    async fn prepare(
        &mut self,
        client: &Client,
        pod: &Pod,
        dir: &std::path::Path,
        programs: &Programs,
        more: &[(String, String)],
    ) -> Result<()> {
        let spec = pod.spec.as_ref().context("a pod without a spec")?;
        let agent = spec.init_containers.iter().flatten().find(|container| container.name == AGENT);
        let agent = agent.context("no agent was put into the pod")?;
        let host = spec.containers.first().context("a pod without a container")?;
        self.host.container.clone_from(&host.name);
        let hook = host.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()?.http_get.as_ref());
        self.hook = hook.and_then(|hook| hook.path.clone()).context("no hook was put into the pod")?;
        self.grace = Duration::from_secs(u64::try_from(spec.termination_grace_period_seconds.unwrap_or(30))?);
        // Before the first container starts, the pod has its address.
        self.write_status().await?;
        let token = dir.join("token");
        fs::write(&token, self::token(client, pod).await?)?;
        let mut env = self.env(client, pod, agent).await?;
        env.push(("DURABLE_DIR".into(), dir.display().to_string()));
        let of = |program: &PathBuf, env, name: &str| Spec {
            program: program.clone(),
            arguments: Vec::new(),
            env,
            log: dir.join(name).with_extension("log"),
        };
        let mut of_host = self.env(client, pod, host).await?;
        of_host.push(("DURABLE_DIR".into(), dir.display().to_string()));
        self.host.spec = Some(of(&programs.host, of_host, "host"));
        env.push(("DURABLE_TOKEN".into(), token.display().to_string()));
        // All pods share this machine's network.
        env.push(("DURABLE_BIND".into(), self.address.to_string()));
        env.extend(more.iter().cloned());
        self.agent.spec = Some(of(&programs.agent, env, "agent"));
        Ok(())
    }

    async fn env(&self, client: &Client, pod: &Pod, container: &Container) -> Result<Vec<(String, String)>> {
        let mut all = Vec::new();
        for variable in container.env.iter().flatten() {
            all.push((variable.name.clone(), self.value(client, pod, variable).await?));
        }
        Ok(all)
    }

    async fn value(&self, client: &Client, pod: &Pod, variable: &EnvVar) -> Result<String> {
        if let Some(value) = &variable.value {
            return Ok(value.clone());
        }
        let from = variable.value_from.as_ref().context("a variable without a value")?;
        let meta = &pod.metadata;
        if let Some(field) = &from.field_ref {
            let value = match field.field_path.as_str() {
                "metadata.name" => meta.name.clone(),
                "metadata.namespace" => meta.namespace.clone(),
                "metadata.uid" => meta.uid.clone(),
                "status.podIP" => Some(self.address.to_string()),
                _ => None,
            };
            return value.with_context(|| format!("field {}", field.field_path));
        }
        let key = from.secret_key_ref.as_ref().context("a variable from nowhere")?;
        let secrets: Api<Secret> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
        let data = secrets.get(&key.name).await?.data.unwrap_or_default();
        Ok(String::from_utf8(data.get(&key.key).with_context(|| key.key.clone())?.0.clone())?)
    }

    async fn live(&mut self, end: &Notify) -> Result<()> {
        self.agent.start()?;
        self.host.start()?;
        let mut probes = interval(PROBE_EVERY);
        probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.write_status().await?;
        loop {
            tokio::select! {
                () = end.notified() => break,
                ended = self.agent.changes() => self.agent.change(ended)?,
                ended = self.host.changes() => {
                    if ended {
                        self.view.send_modify(|seen| seen.killed = Some(now()));
                    }
                    self.host.change(ended)?;
                }
                _ = probes.tick() => {
                    if !self.probe().await {
                        continue;
                    }
                }
            }
            self.write_status().await?;
        }
        self.end().await
    }

    /// Whether it is ready now and was not before, or the other way round.
    async fn probe(&mut self) -> bool {
        let ready = http::get((self.address, HTTP).into(), "/readyz", PROBE).await.is_ok();
        self.missed = if ready { 0 } else { self.missed + 1 };
        let was = self.view.borrow().ready;
        let is = ready || (was && self.missed < PROBES_MISSED);
        self.view.send_modify(|seen| seen.ready = is);
        was != is
    }

    async fn end(&mut self) -> Result<()> {
        let until = Instant::now() + self.grace;
        self.view.send_modify(|seen| seen.ready = false);
        // Whatever it answers, or if it does not, the host goes.
        let address = SocketAddr::from((self.address, HTTP));
        let _ = timeout(self.grace, http::get(address, &self.hook, self.grace)).await;
        let soonest = Instant::now() + LAST;
        if self.host.end(until.max(soonest)).await {
            self.view.send_modify(|seen| seen.killed = Some(now()));
        }
        let soonest = Instant::now() + LAST;
        self.agent.end(until.max(soonest)).await;
        self.write_status().await?;
        self.pods.delete(&self.name, &DeleteParams::default().grace_period(0)).await?;
        self.view.send_modify(|seen| seen.gone = true);
        Ok(())
    }

    async fn write_status(&mut self) -> Result<()> {
        let agent = self.agent.process.as_ref().map(Child::pid);
        self.view.send_modify(|seen| seen.agent = agent);
        let ready = if self.view.borrow().ready && self.host.process.is_some() { "True" } else { "False" };
        let status = json!({ "status": {
            "phase": "Running", "podIP": self.address, "podIPs": [{ "ip": self.address }],
            "conditions": [{ "type": "Ready", "status": ready }],
            "containerStatuses": [self.host.status()],
            "initContainerStatuses": [self.agent.status()],
        } });
        self.pods.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(status)).await?;
        Ok(())
    }
}

/// The token that the pod asks for, which the API server binds to it.
async fn token(client: &Client, pod: &Pod) -> Result<String> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref().context("a pod without a spec")?);
    let sources = spec.volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
    let asked = sources.flatten().find_map(|source| source.service_account_token.as_ref());
    let asked = asked.context("the pod asks for no token")?;
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: asked.audience.clone().into_iter().collect(),
            expiration_seconds: asked.expiration_seconds,
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let account = spec.service_account_name.as_deref().unwrap_or("default");
    let made = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(made.status.context("no token")?.token)
}
