//! Real tokens at the real operator, and what its account and those of pods may do.

#![allow(clippy::large_futures, reason = "the API client's futures are large, and a test makes few")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::cluster::{Cluster, OPERATOR, SYSTEM, Store, repository};
use e2e::rooms::Rooms;
use e2e::view::Pod;
use e2e::wait::until;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use wire::session::{FromAgent, Hello, ToAgent, from_agent, operator_client::OperatorClient};

const SOON: Duration = Duration::from_secs(10);
const GONE: Duration = Duration::from_mins(1);
const AUDIENCE: &str = "durable-operator";

/// The way to the operator that leads.
async fn operator(cluster: &Cluster) -> Result<Channel> {
    let lease = Api::<Lease>::namespaced(cluster.client.clone(), SYSTEM).get(OPERATOR).await?;
    let address = lease.metadata.annotations.and_then(|mut all| all.remove("durableserver.io/session-address"));
    let address = address.context("the Lease says nothing of sessions")?;
    let secret = format!("{OPERATOR}-certificates");
    let secret = Api::<Secret>::namespaced(cluster.client.clone(), SYSTEM).get(&secret).await?;
    let authority = secret.data.and_then(|mut data| data.remove("ca.crt")).context("no authority")?;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(authority.0))
        .domain_name(format!("{OPERATOR}.{SYSTEM}.svc"));
    Ok(Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?.connect().await?)
}

/// The first that the operator says to an agent with this token, which says that it is at this address.
async fn session(cluster: &Cluster, token: &str, at: &str) -> Result<Result<ToAgent, Status>> {
    let (say, said) = mpsc::channel(1);
    let hello = Hello {
        protocol: wire::PROTOCOL,
        peer_address: format!("{at}:7071"),
        gateway_address: format!("{at}:7070"),
        ..Hello::default()
    };
    say.send(FromAgent { body: Some(from_agent::Body::Hello(hello)) }).await?;
    let mut request = Request::new(ReceiverStream::new(said));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut client = OperatorClient::new(operator(cluster).await?);
    let mut heard = match client.session(request).await {
        Ok(heard) => heard.into_inner(),
        Err(status) => return Ok(Err(status)),
    };
    let first = timeout(SOON, heard.message()).await.context("the operator says nothing")?;
    drop(say);
    Ok(first.and_then(|first| first.ok_or_else(|| Status::aborted("the session ended"))))
}

/// A new token of the pods' account: for this audience, and bound to this pod or to none.
async fn token(rooms: &Rooms, audience: &str, pod: Option<&Pod>) -> Result<String> {
    let mut arguments = vec!["create", "token", "default", "-n", &rooms.namespace, "--audience", audience];
    if let Some(pod) = pod {
        arguments.extend(["--bound-object-kind", "Pod", "--bound-object-name", &pod.name]);
        arguments.extend(["--bound-object-uid", &pod.uid]);
    }
    let (well, said) = rooms.cluster.kubectl(&arguments).await?;
    ensure!(well, "kubectl {arguments:?}: {said}");
    Ok(said.trim().to_owned())
}

fn refused(answer: Result<ToAgent, Status>, code: Code, why: &str) -> Result<()> {
    let status = answer.err().with_context(|| format!("{why}: let in"))?;
    ensure!(status.code() == code, "{why}: {status:?}");
    Ok(())
}

#[tokio::test]
async fn only_a_pods_own_token_opens_its_session() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let rooms = Rooms::start(&cluster, "security", 2, json!({})).await?;
    rooms.create(4, 64).await?;
    let pods = rooms.ready_pods(2).await?;
    let [first, second] = &pods[..] else { anyhow::bail!("{} pods", pods.len()) };
    let at = &second.address;

    let nonsense = session(&cluster, "nonsense", at).await?;
    refused(nonsense, Code::Unauthenticated, "no token")?;
    let for_another = token(&rooms, "another", Some(second)).await?;
    refused(session(&cluster, &for_another, at).await?, Code::Unauthenticated, "a token for another audience")?;
    let of_no_pod = token(&rooms, AUDIENCE, None).await?;
    refused(session(&cluster, &of_no_pod, at).await?, Code::Unauthenticated, "a token that is bound to no pod")?;
    let of_first = token(&rooms, AUDIENCE, Some(first)).await?;
    refused(session(&cluster, &of_first, at).await?, Code::PermissionDenied, "the token of another pod")?;
    // None of this disturbed those who are who they say.
    rooms.all_running(4, SOON).await?;

    // A token lives no longer than its pod.
    rooms.delete_pod(&first.name).await?;
    until("the API server knows the pod's token no more", GONE, async || {
        let answer = session(&cluster, &of_first, &first.address).await?;
        Ok(answer.is_err_and(|status| status.code() == Code::Unauthenticated).then_some(()))
    })
    .await?;
    rooms.close().await
}

/// What an account may do in a namespace, one line for each resource: `resource [names] verbs`.
async fn rights(cluster: &Cluster, namespace: &str, account: &str) -> Result<BTreeSet<String>> {
    let account = format!("system:serviceaccount:{namespace}:{account}");
    let (well, said) =
        cluster.kubectl(&["auth", "can-i", "--list", "--no-headers", "-n", namespace, "--as", &account]).await?;
    ensure!(well, "{said}");
    // Warnings have no lists.
    Ok(said.lines().filter(|line| line.contains('[')).map(right).collect())
}

/// Columns: resources, paths that are no resources, names, verbs. Without a resource, the path is the subject.
fn right(line: &str) -> String {
    let (subject, lists) = line.split_at(line.find('[').unwrap_or(line.len()));
    let mut lists = lists.split(']').map(|list| list.trim().trim_start_matches('['));
    let [paths, names, verbs] = std::array::from_fn(|_| lists.next().unwrap_or_default());
    let verbs: BTreeSet<&str> = verbs.split_whitespace().collect();
    let verbs = verbs.into_iter().collect::<Vec<_>>().join(" ");
    format!("{}{paths} [{names}] {verbs}", subject.trim())
}

#[tokio::test]
async fn the_operator_may_do_what_was_reviewed_and_pods_nothing_more_than_others() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let namespace = cluster.fresh_namespace("rights").await?;
    let (well, said) = cluster.kubectl(&["create", "serviceaccount", "fresh", "-n", &namespace]).await?;
    ensure!(well, "{said}");
    let fresh = rights(&cluster, &namespace, "fresh").await?;
    ensure!(!fresh.is_empty(), "nothing is listed at all");

    let reviewed = std::fs::read_to_string(repository().join("e2e/rights.txt"))?;
    let reviewed: BTreeSet<String> =
        reviewed.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let operator = rights(&cluster, SYSTEM, OPERATOR).await?;
    let own: BTreeSet<String> = operator.difference(&fresh).cloned().collect();
    let (more, less): (Vec<_>, Vec<_>) = (own.difference(&reviewed).collect(), reviewed.difference(&own).collect());
    ensure!(more.is_empty() && less.is_empty(), "not reviewed: {more:?}; reviewed, but not there: {less:?}");

    // The account that pods of the examples run under.
    let pods = rights(&cluster, &namespace, "default").await?;
    ensure!(pods == fresh, "pods may do more: {:?}", pods.difference(&fresh).collect::<Vec<_>>());
    cluster.remove_namespace(&namespace).await
}

#[tokio::test]
async fn the_operator_may_change_nothing_of_a_pod_but_its_deletion_cost() -> Result<()> {
    let cluster = Cluster::up(Store::any()).await?;
    let namespace = cluster.fresh_namespace("costs").await?;
    let container = json!({
        "name": "pod", "image": concat!("durable-server/rooms:", env!("CARGO_PKG_VERSION")),
        "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
    });
    let security = json!({ "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" } });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "pod" },
        "spec": { "containers": [container], "securityContext": security },
    });
    cluster.apply(&namespace, pod).await?;
    let operator = format!("system:serviceaccount:{SYSTEM}:{OPERATOR}");
    let patched = async |patch: &str| {
        cluster.kubectl(&["patch", "pod", "pod", "-n", &namespace, "--as", &operator, "-p", patch]).await
    };
    let cost = r#"{"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "3", "durableserver.io/deletion-cost": "3"}}}"#;
    let (well, said) = patched(cost).await?;
    ensure!(well, "{said}");
    for patch in [
        r#"{"metadata": {"labels": {"app": "other"}}}"#,
        r#"{"metadata": {"annotations": {"durableserver.io/drain": "true"}}}"#,
        r#"{"metadata": {"finalizers": ["example.com/other"]}}"#,
        r#"{"spec": {"containers": [{"name": "pod", "image": "other:1"}]}}"#,
    ] {
        let (well, said) = patched(patch).await?;
        ensure!(!well && said.contains("of a pod but its deletion cost"), "{patch}: {said}");
    }
    cluster.remove_namespace(&namespace).await
}
