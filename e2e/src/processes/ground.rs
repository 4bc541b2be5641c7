//! What all cases stand on: a real API server and a real S3 server, on loopback, with data that goes with them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, TypeMeta};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::child::{Child, Spec};
use crate::cluster::{repository, tool};
use crate::http::{self as plain, Pool};
use crate::wait::until;

/// Etcd, API server and S3 server may take so long to start on a busy machine.
const STARTS: Duration = Duration::from_mins(1);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The one bucket.
pub const BUCKET: &str = "durable";
/// What opens the store.
pub const KEYS: (&str, &str) = ("test", "testsecret");
/// Who we are to the API server.
const TOKEN: &str = "processes";

/// An API server and an S3 server.
pub struct Ground {
    /// Of an administrator.
    pub client: Client,
    /// The S3 server.
    pub store: SocketAddr,
    /// Where everything may write; kept if a case failed.
    pub dir: PathBuf,
    server: SocketAddr,
    _processes: [Child; 3],
}

impl Ground {
    /// Starts all of it, in a directory of its own.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("durable-processes-").tempdir()?.keep();
        let etcd = etcd(&dir)?;
        let (api_server, server) = api_server(&dir, etcd.1)?;
        let (weed, store, filer) = weed(&dir)?;
        bucket(&dir, store, filer).await?;
        let client = until("the API server answers", STARTS, async || {
            let Ok(client) = connect(&config(&dir, server, "default")).await else { return Ok(None) };
            Ok(client.apiserver_version().await.ok().map(|_| client))
        })
        .await?;
        let ground = Self { client, store, server, _processes: [etcd.0, api_server, weed], dir };
        ground.resources().await?;
        Ok(ground)
    }

    /// A file for clients whose own namespace is this one.
    pub fn kubeconfig(&self, namespace: &str) -> Result<PathBuf> {
        let path = self.dir.join(namespace).with_extension("conf");
        fs::write(&path, serde_json::to_vec(&config(&self.dir, self.server, namespace))?)?;
        Ok(path)
    }

    /// Applies an object, into this namespace unless it is in none.
    pub async fn apply(&self, namespace: &str, object: Value) -> Result<()> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let types =
            object.types.clone().unwrap_or_else(|| TypeMeta { api_version: String::new(), kind: String::new() });
        let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(&types)?);
        let api: Api<DynamicObject> = if namespace.is_empty() {
            Api::all_with(self.client.clone(), &kind)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &kind)
        };
        let name = object.metadata.name.clone().unwrap_or_default();
        api.patch(&name, &PatchParams::apply("processes").force(), &Patch::Apply(&object)).await?;
        Ok(())
    }

    /// Our own, from the chart.
    async fn resources(&self) -> Result<()> {
        for entry in fs::read_dir(repository().join("charts/durable-server/files/crds"))? {
            let object: Value = serde_yaml::from_str(&fs::read_to_string(entry?.path())?)?;
            self.apply("", object).await?;
        }
        until("our resources are served", STARTS, async || {
            let served = self.client.list_api_group_resources("durableserver.io/v1alpha1").await;
            Ok(served.ok().filter(|served| served.resources.len() >= 3).map(drop))
        })
        .await
    }
}

async fn connect(config: &Value) -> Result<Client> {
    let file: Kubeconfig = serde_json::from_value(config.clone())?;
    Ok(Client::try_from(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)?)
}

fn config(dir: &Path, server: SocketAddr, namespace: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{ "name": "it", "cluster": {
            "server": format!("https://{server}"), "certificate-authority": dir.join("pki/apiserver.crt"),
        } }],
        "users": [{ "name": "it", "user": { "token": TOKEN } }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it", "namespace": namespace } }],
    })
}

fn spec(dir: &Path, program: PathBuf, arguments: Vec<String>) -> Spec {
    let name = program.file_name().unwrap_or_default().to_owned();
    Spec { program, arguments, env: Vec::new(), log: dir.join(name).with_extension("log") }
}

fn etcd(dir: &Path) -> Result<(Child, SocketAddr)> {
    let [client, peer] = free_ports()?.map(|port| SocketAddr::from((LOOPBACK, port)));
    let arguments = [
        format!("--data-dir={}", dir.join("etcd").display()),
        format!("--listen-client-urls=http://{client}"),
        format!("--advertise-client-urls=http://{client}"),
        format!("--listen-peer-urls=http://{peer}"),
        "--unsafe-no-fsync".into(),
    ];
    Ok((Child::start(&spec(dir, tool("etcd"), arguments.into()))?, client))
}

fn api_server(dir: &Path, etcd: SocketAddr) -> Result<(Child, SocketAddr)> {
    let [port] = free_ports()?;
    let server = SocketAddr::from((LOOPBACK, port));
    let (key, tokens) = (dir.join("accounts.key"), dir.join("tokens.csv"));
    fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n"))?;
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").stderr(Stdio::null()).status()?;
    ensure!(made.success(), "openssl makes no key: {made}");
    let arguments = [
        format!("--etcd-servers=http://{etcd}"),
        format!("--bind-address={LOOPBACK}"),
        format!("--advertise-address={LOOPBACK}"),
        format!("--secure-port={port}"),
        // It makes its own certificate there.
        format!("--cert-dir={}", dir.join("pki").display()),
        format!("--token-auth-file={}", tokens.display()),
        format!("--service-account-key-file={}", key.display()),
        format!("--service-account-signing-key-file={}", key.display()),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        "--authorization-mode=RBAC".into(),
        // There is no controller that looks after them.
        "--endpoint-reconciler-type=none".into(),
    ];
    Ok((Child::start(&spec(dir, tool("kube-apiserver"), arguments.into()))?, server))
}

/// The S3 server, and the door to the files behind it, where nobody asks for keys.
fn weed(dir: &Path) -> Result<(Child, SocketAddr, SocketAddr)> {
    let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc] = free_ports()?;
    let (path, data) = (dir.display(), dir.join("s3"));
    fs::create_dir_all(&data)?;
    let identities = json!({ "identities": [{
        "name": "admin", "credentials": [{ "accessKey": KEYS.0, "secretKey": KEYS.1 }],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }] });
    fs::write(dir.join("s3.json"), identities.to_string())?;
    let arguments = [
        "server".into(),
        format!("-dir={}", data.display()),
        format!("-ip={LOOPBACK}"),
        format!("-ip.bind={LOOPBACK}"),
        "-volume.max=20".into(),
        "-master.volumeSizeLimitMB=64".into(),
        // It reports to its makers over the Internet unless told not to.
        "-master.telemetry=false".into(),
        "-s3".into(),
        "-s3.port.iceberg=0".into(),
        "-s3.port.lance=0".into(),
        format!("-s3.config={path}/s3.json"),
        format!("-s3.localSocket={path}/s3.sock"),
        format!("-filer.localSocket={path}/filer.sock"),
        format!("-s3.port={s3}"),
        format!("-s3.port.grpc={s3_grpc}"),
        format!("-master.port={master}"),
        format!("-master.port.grpc={master_grpc}"),
        format!("-volume.port={volume}"),
        format!("-volume.port.grpc={volume_grpc}"),
        format!("-filer.port={filer}"),
        format!("-filer.port.grpc={filer_grpc}"),
    ];
    let server = Child::start(&spec(dir, tool("weed"), arguments.into()))?;
    Ok((server, (LOOPBACK, s3).into(), (LOOPBACK, filer).into()))
}

/// A bucket gets its volumes with its first object, which takes long enough to be mistaken for the store being slow.
async fn bucket(dir: &Path, store: SocketAddr, filer: SocketAddr) -> Result<()> {
    let soon = Duration::from_secs(5);
    until("the S3 server answers", STARTS, async || Ok(plain::get(store, "/healthz", soon).await.ok())).await?;
    until("the bucket can be written", STARTS, async || {
        let path = format!("/buckets/{BUCKET}/warm");
        let request = Request::put(path).header("Host", filer.to_string()).body(Full::new(Bytes::from("warm")))?;
        let answer = tokio::time::timeout(soon, Pool::new(filer).send(request)).await;
        Ok(answer.ok().and_then(Result::ok).filter(|answer| answer.status().is_success()).map(drop))
    })
    .await
    .with_context(|| dir.join("weed.log").display().to_string())
}

/// Ports that nobody listens on. Somebody might, a moment later: then what listens there says so and ends.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(TcpListener::bind((LOOPBACK, 0))?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
