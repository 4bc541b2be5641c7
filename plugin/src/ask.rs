//! Asks the operator that leads, through the API server.

use anyhow::{Context, Result, bail};
use crds::{DurableServer, plan::Foretold};
use http::Request;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    args::{Operator, Plan},
    look::Namespace,
};

/// The question, as the operator reads it.
pub fn query(namespace: &str, pool: &str, what: &Plan, servers: &[DurableServer]) -> String {
    let word = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let asked = match what {
        Plan::Drain { pod } => format!("drain={}", word(pod)),
        Plan::Node { node } => format!("node={}", word(node)),
        Plan::Rollout => "rollout".into(),
        Plan::Move { to, .. } => {
            let names: Vec<String> = servers.iter().map(|server| word(&server.name_any())).collect();
            format!("move={}&to={}", names.join(","), word(to))
        }
    };
    format!("pool={}/{}&{asked}", word(namespace), word(pool))
}

/// The replica that a Lease names: its holder is the pod's name and a number.
fn holder(lease: &Lease) -> Option<&str> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref()?;
    let (pod, _) = holder.rsplit_once('_')?;
    Some(pod).filter(|pod| !pod.is_empty())
}

/// The operator's answer.
pub async fn plan(here: &Namespace, operator: &Operator, query: &str) -> Result<Foretold> {
    let Operator { namespace, lease: name, port } = operator;
    let leases: Api<Lease> = Api::namespaced(here.client.clone(), namespace);
    let lease = leases.get_opt(name).await.context("the operator's Lease cannot be read")?;
    let lease = lease.with_context(|| {
        format!("there is no Lease {namespace}/{name}: say where the operator is by --operator-namespace and --operator-lease")
    })?;
    let Some(pod) = holder(&lease) else {
        bail!("no replica of the operator leads now (Lease {namespace}/{name}): try again in a few seconds");
    };
    let uri = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/plan?{query}");
    let request = Request::get(uri).body(Vec::new())?;
    let text = here.client.request_text(request).await.map_err(|error| said(error, pod, namespace))?;
    serde_json::from_str(&text)
        .with_context(|| format!("operator {pod} is of another version than this plugin: {text}"))
}

/// What the operator said, or what keeps it from being asked.
fn said(error: kube::Error, pod: &str, namespace: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 403 => anyhow::anyhow!(
            "you may not ask the operator: that takes the right to get pods/proxy in namespace {namespace} ({})",
            status.message
        ),
        kube::Error::Api(status) if status.code == 404 => anyhow::anyhow!(
            "operator pod {namespace}/{pod} is not there, or does not know the question: it may be older than this plugin"
        ),
        kube::Error::Api(status) => {
            anyhow::anyhow!("the operator does not answer the question: {}", status.message.trim())
        }
        other => anyhow::Error::new(other).context(format!("operator pod {namespace}/{pod} cannot be asked")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_question_survives_the_way() {
        let drain = Plan::Drain { pod: "rooms-1".into() };
        assert_eq!(query("ns", "rooms", &drain, &[]), "pool=ns/rooms&drain=rooms%2D1");
        let server = |name| DurableServer::new(name, crds::DurableServerSpec::default());
        let what = Plan::Move { servers: Vec::new(), selector: None, to: "best".into() };
        assert_eq!(query("ns", "rooms", &what, &[server("a"), server("b&c")]), "pool=ns/rooms&move=a,b%26c&to=best");
        assert_eq!(query("n", "p", &Plan::Rollout, &[]), "pool=n/p&rollout");
    }

    #[test]
    fn the_leader_is_the_pod_of_the_lease() {
        let lease =
            |holder| -> Lease { serde_json::from_value(json!({ "spec": { "holderIdentity": holder } })).unwrap() };
        assert_eq!(holder(&lease("operator-7d_0a1b")), Some("operator-7d"));
        assert_eq!(holder(&lease("")), None);
        assert_eq!(holder(&Lease::default()), None);
    }
}
