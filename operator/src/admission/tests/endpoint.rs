use std::{net::TcpListener, sync::Arc};

use async_trait::async_trait;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::certificates::{Certificates, Kept, Maker, Problem, Secrets, Written};

struct OnePool;

#[async_trait]
impl Pools for OnePool {
    async fn find(&self, namespace: &str, name: &str) -> Result<Pool, Refusal> {
        if (namespace, name) == ("chat", "rooms") {
            return Ok(pool());
        }
        Err(Refusal::NoPool { pool: name.into(), namespace: namespace.into() })
    }
}

/// A Secret that is never kept.
struct Nowhere;

#[async_trait]
impl Secrets for Nowhere {
    async fn read(&self) -> Result<Option<(String, Kept)>, Problem> {
        Ok(None)
    }

    async fn create(&self, _: &Kept) -> Result<Written, Problem> {
        Ok(Written::Done)
    }

    async fn replace(&self, _: &str, _: &Kept) -> Result<Written, Problem> {
        Ok(Written::Done)
    }
}

/// A webhook, and a client that trusts it.
struct Webhook {
    connector: TlsConnector,
    address: std::net::SocketAddr,
    _ends: tokio_util::sync::DropGuard,
}

impl Webhook {
    async fn start() -> Self {
        let maker = Maker::Operator(vec!["webhook.system.svc".into()]);
        let certificates = Certificates::start(Arc::new(Nowhere), maker, None).await.ok().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(certificates.bundle().borrow().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (routes, stopping) = (routes(Arc::new(OnePool), agent()), stop.clone());
        tokio::spawn(async move { serve(routes, listener, &certificates, stopping).await.unwrap() });
        Self { connector, address, _ends: stop.drop_guard() }
    }

    async fn post(&self, body: &[u8]) -> (u16, Vec<u8>) {
        let name = ServerName::try_from("webhook.system.svc").unwrap();
        let mut stream = self.connector.connect(name, TcpStream::connect(self.address).await.unwrap()).await.unwrap();
        let head =
            format!("POST /inject HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        // A body that is too long is not read to its end.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let split = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
        (status, answer.split_off(split + 4))
    }

    async fn review(&self, namespace: &str, pod: &Value) -> Value {
        let (status, body) = self.post(review(namespace, pod).to_string().as_bytes()).await;
        assert_eq!(status, 200);
        let review: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&review["apiVersion"], &review["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        assert_eq!(review["response"]["uid"], "u-1");
        review["response"].clone()
    }
}

fn review(namespace: &str, pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": namespace, "dryRun": false,
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": pod, "oldObject": null,
        },
    })
}

fn patched(pod: &Value, response: &Value) -> Value {
    assert_eq!(response["patchType"], "JSONPatch");
    let bytes: Vec<u8> = serde_json::from_value(response["patch"].clone()).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&bytes).unwrap()).unwrap();
    pod
}

#[tokio::test]
async fn a_pod_of_a_pool_gets_its_agent_once() {
    let webhook = Webhook::start().await;
    let response = webhook.review("chat", &pod()).await;
    assert_eq!(response["allowed"], true, "{response}");
    let once = patched(&pod(), &response);
    let path = env(&once["spec"]["initContainers"][0], "DURABLE_HOOK_PATH")["value"].as_str().unwrap().to_owned();
    assert!(path.len() == "/prestop/".len() + 32, "{path}");
    let again = webhook.review("chat", &once).await;
    assert_eq!((&again["allowed"], &again["patch"]), (&json!(true), &Value::Null));
    let other = webhook.review("chat", &pod()).await;
    assert!(!patched(&pod(), &other).to_string().contains(&path), "each pod has a path of its own");
}

#[tokio::test]
async fn a_pod_without_its_pool_is_refused_and_one_without_the_label_is_left_alone() {
    let webhook = Webhook::start().await;
    let refused = webhook.review("elsewhere", &pod()).await;
    assert_eq!((&refused["allowed"], &refused["status"]["code"]), (&json!(false), &json!(403)));
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(message.contains("no DurableServerPool rooms in namespace elsewhere"), "{message}");
    let plain = webhook.review("chat", &with("/metadata/labels", json!({}))).await;
    assert_eq!((&plain["allowed"], &plain["patch"]), (&json!(true), &Value::Null));
}

#[tokio::test]
async fn what_is_no_review_is_an_error_and_the_next_is_answered() {
    let webhook = Webhook::start().await;
    for bad in ["", "{", "[]", r#"{"apiVersion":"v1","kind":"Pod"}"#] {
        assert_eq!(webhook.post(bad.as_bytes()).await.0, 400, "{bad}");
    }
    assert_eq!(webhook.post(&vec![b' '; 5 << 20]).await.0, 400);
    assert_eq!(webhook.review("chat", &pod()).await["allowed"], true);
}
