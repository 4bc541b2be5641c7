//! From Kubernetes' objects to what decisions need of them. Pure.

use std::collections::BTreeMap;

use crds::{
    CORDON_ANNOTATION, DELETION_COST_ANNOTATION, DRAIN_ANNOTATION, DurableServer, DurableServerPool, Handoff,
    MOVE_ANNOTATION, POOL_LABEL, settings,
};
use handoff::{PodUid, ServerId, ServerUid};
use k8s_openapi::{
    api::{
        apps::v1::{ReplicaSet as K8sReplicaSet, StatefulSet},
        core::v1::{ContainerStatus, Node as K8sNode, Pod as K8sPod, Service},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    model::{
        DELETION_COST, HandoffObject, Key, Node, Pod, PoolObject, ReplicaSet, SCALE_DOWN_DEADLINE, ServerObject, clip,
    },
    world::POD_UID_LABEL,
};

const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";

/// Longest name of an object.
const MAX_NAME: usize = 253;

/// Name and namespace.
#[must_use]
pub fn key(meta: &ObjectMeta) -> Key {
    Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a String> {
    meta.annotations.as_ref()?.get(name)
}

/// The uid of the first owner of this kind.
fn owner(meta: &ObjectMeta, kind: &str) -> Option<String> {
    meta.owner_references.iter().flatten().find(|owner| owner.kind == kind).map(|owner| owner.uid.clone())
}

/// A pool.
#[must_use]
pub fn pool(object: DurableServerPool) -> PoolObject {
    PoolObject {
        key: key(&object.metadata),
        uid: object.metadata.uid.unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        settings: settings::pool(&object.spec),
        spec: object.spec,
        status: object.status.unwrap_or_default(),
    }
}

/// A server.
#[must_use]
pub fn server(object: DurableServer) -> ServerObject {
    let meta = object.metadata;
    let wish = annotation(&meta, MOVE_ANNOTATION).map(|pod| clip(pod, MAX_NAME).to_owned());
    ServerObject {
        id: ServerId {
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: ServerUid(meta.uid.unwrap_or_default()),
        },
        generation: meta.generation.unwrap_or_default(),
        resource_version: meta.resource_version.unwrap_or_default(),
        deleting: meta.deletion_timestamp.is_some(),
        finalizers: meta.finalizers.unwrap_or_default(),
        wish,
        spec: object.spec,
        status: object.status.unwrap_or_default(),
    }
}

/// A handoff.
#[must_use]
pub fn handoff(object: Handoff) -> HandoffObject {
    let labels = object.metadata.labels.as_ref();
    HandoffObject {
        key: key(&object.metadata),
        pool: object.spec.pool,
        pod: object.spec.source_pod,
        pod_uid: PodUid(labels.and_then(|labels| labels.get(POD_UID_LABEL)).cloned().unwrap_or_default()),
        trigger: object.spec.trigger,
        phase: object.status.as_ref().and_then(|status| status.phase),
        status: object.status.unwrap_or_default(),
        created: object.metadata.creation_timestamp.map(|time| time.0),
    }
}

/// A pod.
#[must_use]
pub fn pod(object: &K8sPod) -> Pod {
    let meta = &object.metadata;
    let status = object.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let condition = |kind: &str| {
        let conditions = status.and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == kind && c.status == "True"))
    };
    let says = |name: &str| annotation(meta, name).is_some_and(|said| said == "true");
    let emptied = says(DRAIN_ANNOTATION);
    let stateful_set = owner(meta, "StatefulSet");
    let cost = annotation(meta, DELETION_COST);
    let said = cost.and_then(|cost| cost.parse().ok());
    let deletion_cost = if stateful_set.is_some() { ordinal(meta).map(|ordinal| -ordinal) } else { said };
    let addresses = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    let deleting = meta.deletion_timestamp.is_some();
    Pod {
        uid: PodUid(meta.uid.clone().unwrap_or_default()),
        key: key(meta),
        pool: meta.labels.as_ref().and_then(|labels| labels.get(POOL_LABEL)).cloned().unwrap_or_default(),
        node: object.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        addresses: addresses.filter_map(|address| address.ip.parse().ok()).collect(),
        pending: phase == "Pending",
        running: phase == "Running",
        ready: condition("Ready"),
        deleting,
        disrupted: condition("DisruptionTarget"),
        cordoned: emptied || says(CORDON_ANNOTATION),
        emptied,
        deletion_cost: deletion_cost.unwrap_or_default(),
        cost_is_given: cost.is_some() && cost != annotation(meta, DELETION_COST_ANNOTATION),
        labels: meta.labels.clone().unwrap_or_default(),
        replica_set: owner(meta, "ReplicaSet"),
        stateful_set,
        over: all_terminated(object) && (deleting || matches!(phase, "Succeeded" | "Failed")),
    }
}

/// Every container, sidecars too, is reported terminated by the kubelet itself. Phase, `PodGC`, a missing object and
/// `ContainerStatusUnknown` prove nothing.
fn all_terminated(pod: &K8sPod) -> bool {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return false };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let terminated = |name: &str, statuses: &Option<Vec<ContainerStatus>>| {
        statuses.iter().flatten().any(|status| status.name == name && is_terminated(status))
    };
    spec.containers.iter().all(|container| terminated(&container.name, &status.container_statuses))
        && sidecars.into_iter().all(|container| terminated(&container.name, &status.init_container_statuses))
}

fn is_terminated(status: &ContainerStatus) -> bool {
    let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    terminated.is_some_and(|terminated| {
        terminated.finished_at.is_some() && terminated.reason.as_deref() != Some("ContainerStatusUnknown")
    })
}

/// A node, by its name.
#[must_use]
pub fn node(object: K8sNode) -> (String, Node) {
    let spec = object.spec.as_ref();
    let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
    let evicting = spec
        .and_then(|spec| spec.taints.as_ref())
        .is_some_and(|taints| taints.iter().any(|taint| taint.effect == "NoExecute"));
    let schedulable = !cordoned && !evicting;
    let labels = object.metadata.labels.unwrap_or_default();
    (object.metadata.name.unwrap_or_default(), Node { schedulable, labels })
}

/// The number of a `StatefulSet`'s pod: the end of its name.
fn ordinal(meta: &ObjectMeta) -> Option<i32> {
    meta.name.as_ref()?.rsplit('-').next()?.parse().ok()
}

/// A stateful set: its uid, and the revision that its pods are to have.
#[must_use]
pub fn stateful_set(object: StatefulSet) -> (String, String) {
    let revision = object.status.and_then(|status| status.update_revision);
    (object.metadata.uid.unwrap_or_default(), revision.unwrap_or_default())
}

/// A Service: its name, and what it selects.
#[must_use]
pub fn service(object: Service) -> (Key, BTreeMap<String, String>) {
    let selector = object.spec.and_then(|spec| spec.selector);
    (key(&object.metadata), selector.unwrap_or_default())
}

/// A replica set.
#[must_use]
pub fn replica_set(object: &K8sReplicaSet) -> ReplicaSet {
    let meta = &object.metadata;
    let number = |name: &str| annotation(meta, name).map(String::as_str).unwrap_or_default();
    ReplicaSet {
        uid: meta.uid.clone().unwrap_or_default(),
        deployment: owner(meta, "Deployment"),
        revision: number(REVISION).parse().unwrap_or_default(),
        desired: number(DESIRED).parse().unwrap_or_default(),
        replicas: object.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        ends: annotation(meta, SCALE_DOWN_DEADLINE).and_then(|time| time.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod_with(phase: &str, deleting: bool, host: &Value, agent: &Value) -> Pod {
        let mut object = json!({
            "metadata": { "name": "rooms-1", "namespace": "ns", "uid": "u1", "labels": { POOL_LABEL: "rooms" } },
            "spec": {
                "containers": [{ "name": "host" }],
                "initContainers": [{ "name": "setup" }, { "name": "agent", "restartPolicy": "Always" }],
            },
            "status": {
                "phase": phase,
                "containerStatuses": [{ "name": "host", "state": host, "image": "", "imageID": "", "ready": false, "restartCount": 0 }],
                "initContainerStatuses": [{ "name": "agent", "state": agent, "image": "", "imageID": "", "ready": false, "restartCount": 0 }],
            },
        });
        if deleting {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        pod(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_pod_is_over_only_when_every_container_is_reported_terminated() {
        let ended =
            json!({ "terminated": { "exitCode": 0, "reason": "Completed", "finishedAt": "2026-01-01T00:00:00Z" } });
        let unknown = json!({ "terminated": { "exitCode": 137, "reason": "ContainerStatusUnknown", "finishedAt": "2026-01-01T00:00:00Z" } });
        let timeless = json!({ "terminated": { "exitCode": 137, "reason": "Error" } });
        let running = json!({ "running": {} });
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        let cases = [
            ("Running", true, &ended, &ended, true),
            ("Failed", false, &ended, &ended, true),
            ("Succeeded", false, &ended, &ended, true),
            ("Running", false, &ended, &ended, false), // the kubelet may start them again
            ("Running", true, &ended, &running, false),
            ("Running", true, &running, &ended, false),
            ("Failed", true, &unknown, &ended, false),
            ("Failed", true, &timeless, &ended, false),
            ("Running", true, &waiting, &ended, false),
        ];
        for (phase, deleting, host, agent, over) in cases {
            assert_eq!(pod_with(phase, deleting, host, agent).over, over, "{phase} {deleting} {host} {agent}");
        }
    }

    #[test]
    fn a_deletion_cost_that_is_not_what_the_operator_wrote_is_given_by_somebody_else() {
        let cases = [(None, None, 0, false), (Some("5"), Some("5"), 5, false), (Some("5"), None, 5, true)];
        for (cost, ours, value, given) in cases.into_iter().chain([(Some("6"), Some("5"), 6, true)]) {
            let annotations = json!({ DELETION_COST: cost, DELETION_COST_ANNOTATION: ours });
            let set = annotations.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
            let set: serde_json::Map<_, _> = set.map(|(name, value)| (name.clone(), value.clone())).collect();
            let pod = pod(&serde_json::from_value(json!({ "metadata": { "annotations": set } })).unwrap());
            assert_eq!((pod.deletion_cost, pod.cost_is_given), (value, given), "{annotations}");
        }
    }

    #[test]
    fn a_cordoned_or_evicting_node_is_not_schedulable() {
        for (spec, schedulable) in [
            (json!({}), true),
            (json!({ "unschedulable": true }), false),
            (json!({ "taints": [{ "key": "k", "effect": "NoSchedule" }] }), true),
            (json!({ "taints": [{ "key": "k", "effect": "NoExecute" }] }), false),
        ] {
            let object = json!({ "metadata": { "name": "n" }, "spec": spec });
            let (name, node) = node(serde_json::from_value(object).unwrap());
            assert_eq!((name.as_str(), node.schedulable), ("n", schedulable));
        }
    }
}
