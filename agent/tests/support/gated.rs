//! Pods that consist of a gateway, and a host's socket for a test to listen on.

use std::{net::SocketAddr, path::PathBuf};

use agent::{
    gateway::{Gateway, Identity, Limits},
    host::HostClient,
    metrics::Metrics,
    routes::Routes,
};
use handoff::{Epoch, PodUid, ServerId, ServerUid};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::OPERATOR;

/// A pod's gateway that serves.
pub struct Gated {
    pub name: &'static str,
    pub address: SocketAddr,
    pub routes: Routes,
    pub gateway: Gateway,
    pub served: JoinHandle<()>,
    pub host: HostClient,
    pub metrics: Metrics,
    pub dir: TempDir,
}

impl Gated {
    pub async fn start(name: &'static str, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Routes::new(PodUid(name.into()));
        let metrics = Metrics::new().unwrap();
        let identity = Identity { pod: name.into(), pod_uid: PodUid(name.into()), address };
        let credentials = OPERATOR.credentials(&super::pod(name));
        let host = HostClient::new(&dir.path().join("host.sock"), 1 << 20);
        let gateway = Gateway::new(identity, limits, credentials, routes.clone(), host.clone(), metrics.clone());
        let serving = gateway.clone();
        let served = tokio::spawn(async move { serving.serve(listener).await });
        Self { name, address, routes, gateway, served, host, metrics, dir }
    }

    /// Where its host listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("host.sock")
    }

    /// It knows that the other one has the server.
    pub fn points_at(&self, other: &Self, epoch: u64) {
        let id = room();
        self.routes.set_there(&id.name, &id.uid, Epoch(epoch), PodUid(other.name.into()), other.address);
    }
}

/// The server of these tests.
pub fn room() -> ServerId {
    server("lobby")
}

pub fn server(name: &str) -> ServerId {
    ServerId {
        namespace: "ns".into(),
        name: name.into(),
        uid: ServerUid(if name == "lobby" { "u1" } else { name }.into()),
    }
}
