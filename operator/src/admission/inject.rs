//! A pod as it was sent, and the same with an agent. Pure; what it meets is JSON, not a typed pod, so that fields which
//! this version of the operator does not know stay as they are.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod as K8sPod;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Agent, CONTAINER, GRACE, GRACE_PERIOD, HOOK_PORT, INJECTED, PRESTOP_URL, Pool, Refusal,
    container::{container, sockets_mount, volumes},
    rules,
};

/// What Kubernetes gives a pod that says nothing, seconds.
const DEFAULT_GRACE: i64 = 30;
/// For the kubelet's own delays; the agent keeps as much back.
const MARGIN: Duration = Duration::from_secs(3);
/// Sidecars of service meshes: what the agent says in a drain goes through them, so they start before it and end after it.
const MESHES: [&str; 3] = ["istio-proxy", "linkerd-proxy", "kuma-sidecar"];

/// The pod with its agent. `hook_path` is used unless the pod has one: of a pod that is injected already nothing changes,
/// except what others have added since.
pub fn inject(pod: &Value, pool: &Pool, agent: &Agent, hook_path: &str) -> Result<Value, Refusal> {
    let typed = K8sPod::deserialize(pod).map_err(|error| Refusal::Unreadable(error.to_string()))?;
    let asked = rules::check(&typed)?;
    let hook_path = asked.hook_path.as_deref().unwrap_or(hook_path);
    let mut pod = pod.clone();
    let grace = raise_grace(&mut pod, pool)?;
    annotations(&mut pod)?.entry(INJECTED).or_insert_with(|| json!(env!("CARGO_PKG_VERSION")));
    let spec = spec(&mut pod)?;
    let resources = asked.resources.as_ref().unwrap_or(&agent.resources);
    place(list(spec, "initContainers")?, || container(agent, pool, hook_path, grace, resources));
    tell_grace(list(spec, "initContainers")?, grace);
    add_missing(list(spec, "volumes")?, volumes(agent, grace));
    for main in list(spec, "containers")? {
        let main = main.as_object_mut().ok_or_else(|| Refusal::without("containers"))?;
        add_missing(list(main, "volumeMounts")?, [sockets_mount()]);
        hook(main, hook_path)?;
    }
    Ok(pod)
}

/// Makes room for the whole drain, and says so. Returns the grace period in seconds.
fn raise_grace(pod: &mut Value, pool: &Pool) -> Result<i64, Refusal> {
    let spec = spec(pod)?;
    let given = spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_GRACE);
    let needed = pool.drain + pool.host_stop + MARGIN;
    let needed = i64::try_from(needed.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
    if given >= needed {
        return Ok(given);
    }
    spec.insert("terminationGracePeriodSeconds".into(), json!(needed));
    let (drain, stop) = (crds::Duration::from(pool.drain), crds::Duration::from(pool.host_stop));
    let why = format!("handoffOnShutdown.timeout {drain}, hostStopTime {stop} and a margin of 3s");
    let raised = format!("raised from {given}s to {needed}s: {why}");
    annotations(pod)?.insert(GRACE_PERIOD.into(), Value::String(raised));
    Ok(needed)
}

fn annotations(pod: &mut Value) -> Result<&mut Map<String, Value>, Refusal> {
    let pod = pod.as_object_mut().ok_or_else(|| Refusal::without("fields"))?;
    object(object(pod, "metadata")?, "annotations")
}

/// Before all others, but behind a mesh's sidecar. A mesh's webhook may come after ours, which is then called again.
fn place(containers: &mut Vec<Value>, new: impl FnOnce() -> Value) {
    let is_mesh = |container: &Value| {
        container["restartPolicy"] == "Always" && MESHES.iter().any(|mesh| container["name"] == *mesh)
    };
    let mesh = containers.iter().rposition(is_mesh);
    match containers.iter().position(|container| container["name"] == CONTAINER) {
        None => containers.insert(mesh.map_or(0, |mesh| mesh + 1), new()),
        Some(at) => {
            if let Some(mesh) = mesh.filter(|mesh| *mesh > at) {
                containers[at..=mesh].rotate_left(1);
            }
        }
    }
}

/// Someone may have changed the grace period since the agent was told.
fn tell_grace(containers: &mut [Value], grace: i64) {
    let agent = containers.iter_mut().find(|container| container["name"] == CONTAINER);
    let env = agent.and_then(|agent| agent.get_mut("env")).and_then(Value::as_array_mut);
    let told = env.into_iter().flatten().find(|variable| variable["name"] == GRACE);
    if let Some(told) = told.and_then(Value::as_object_mut) {
        told.insert("value".into(), json!(grace.to_string()));
    }
}

/// Its SIGTERM waits until its servers are elsewhere: hooks of all containers start together, and a container without
/// one is told to stop at once. A port by number may belong to any container of the pod.
fn hook(main: &mut Map<String, Value>, path: &str) -> Result<(), Refusal> {
    let lifecycle = object(main, "lifecycle")?;
    let present = lifecycle.get("preStop").filter(|hook| !hook.is_null());
    match present {
        None => {
            let hook = json!({ "httpGet": { "path": path, "port": HOOK_PORT } });
            lifecycle.insert("preStop".into(), hook);
        }
        Some(hook) if hook["httpGet"]["path"] == path => {}
        // Kept at the pod's own wish; the rules let no other through.
        Some(_) => {
            let url = json!({ "name": PRESTOP_URL, "value": format!("http://127.0.0.1:{HOOK_PORT}{path}") });
            add_missing(list(main, "env")?, [url]);
        }
    }
    Ok(())
}

fn add_missing(list: &mut Vec<Value>, items: impl IntoIterator<Item = Value>) {
    for item in items {
        if !list.iter().any(|present| present["name"] == item["name"]) {
            list.push(item);
        }
    }
}

fn spec(pod: &mut Value) -> Result<&mut Map<String, Value>, Refusal> {
    pod.get_mut("spec").and_then(Value::as_object_mut).ok_or_else(|| Refusal::without("spec"))
}

fn object<'a>(parent: &'a mut Map<String, Value>, field: &str) -> Result<&'a mut Map<String, Value>, Refusal> {
    let value = parent.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| Refusal::Unreadable(format!("{field} is not an object")))
}

fn list<'a>(parent: &'a mut Map<String, Value>, field: &str) -> Result<&'a mut Vec<Value>, Refusal> {
    let value = parent.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| Refusal::Unreadable(format!("{field} is not a list")))
}
