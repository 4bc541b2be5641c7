//! What keeps a pod from being injected, and what it asks for. Pure.

use k8s_openapi::api::core::v1::{Container, Pod as K8sPod, PodSpec};

use super::{
    AGENT_RESOURCES, CONTAINER, HOOK_PATH, INJECTED, NO_API_TOKEN_VOLUME, PORTS, PRESTOP, Refusal, Resources, SOCKETS,
    SOCKETS_VOLUME, TOKEN_VOLUME,
};

/// What a pod that may be injected says.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// The hook's path, if the agent is there already.
    pub hook_path: Option<String>,
    /// The agent's resources, if not the usual ones.
    pub resources: Option<Resources>,
}

/// Checks everything that can be wrong with a pod itself.
pub(super) fn check(pod: &K8sPod) -> Result<Asked, Refusal> {
    let spec = pod.spec.as_ref().ok_or_else(|| Refusal::without("spec"))?;
    let annotation = |name: &str| pod.metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
    let keep = keeps_hooks(annotation(PRESTOP))?;
    let hook_path = agent_of(spec, annotation(INJECTED).is_some())?.map(str::to_owned);
    if hook_path.is_none() {
        volumes_are_free(spec)?;
    }
    for container in running(spec) {
        port_is_free(container)?;
    }
    for container in &spec.containers {
        path_is_free(container)?;
        if !keep && has_own_hook(container, hook_path.as_deref()) {
            return Err(Refusal::OwnHook(container.name.clone()));
        }
    }
    let resources = annotation(AGENT_RESOURCES)
        .map(str::parse)
        .transpose()
        .map_err(|problem: String| Refusal::resources(&problem))?;
    Ok(Asked { hook_path, resources })
}

fn keeps_hooks(annotation: Option<&str>) -> Result<bool, Refusal> {
    match annotation {
        None => Ok(false),
        Some("keep") => Ok(true),
        Some(_) => Err(Refusal::BadAnnotation {
            annotation: PRESTOP,
            problem: "its only value is keep, for containers whose own preStop hook calls $DURABLE_PRESTOP_URL".into(),
        }),
    }
}

/// The hook's path of the agent that was injected before.
fn agent_of(spec: &PodSpec, injected: bool) -> Result<Option<&str>, Refusal> {
    let ours = |container: &&Container| container.name == CONTAINER;
    if spec.containers.iter().any(|container| ours(&container)) {
        return Err(Refusal::container());
    }
    let Some(agent) = spec.init_containers.iter().flatten().find(ours) else { return Ok(None) };
    let path = agent.env.iter().flatten().find(|variable| variable.name == HOOK_PATH);
    match path.and_then(|variable| variable.value.as_deref()) {
        Some(path) if injected => Ok(Some(path)),
        _ => Err(Refusal::container()),
    }
}

fn volumes_are_free(spec: &PodSpec) -> Result<(), Refusal> {
    let ours = [SOCKETS_VOLUME, TOKEN_VOLUME, NO_API_TOKEN_VOLUME];
    let taken = spec.volumes.iter().flatten().find(|volume| ours.contains(&volume.name.as_str()));
    taken.map_or(Ok(()), |volume| Err(Refusal::NameTaken { what: "volume", name: volume.name.clone() }))
}

/// Those that run beside the agent.
fn running(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    spec.containers.iter().chain(sidecars.filter(|container| container.name != CONTAINER))
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Containers of a pod share its addresses. A Service that leads to the port called `durable` must find the agent's.
fn port_is_free(container: &Container) -> Result<(), Refusal> {
    let ours = container.ports.iter().flatten().find_map(|port| {
        PORTS.iter().find_map(|(name, number)| {
            let same_number = port.container_port == i32::from(*number) || port.host_port == Some(i32::from(*number));
            let same_name = port.name.as_deref() == Some(*name);
            (same_number && port.protocol.as_deref().unwrap_or("TCP") == "TCP")
                .then(|| number.to_string())
                .or_else(|| same_name.then(|| (*name).to_owned()))
        })
    });
    ours.map_or(Ok(()), |port| Err(Refusal::PortTaken { container: container.name.clone(), port }))
}

fn path_is_free(container: &Container) -> Result<(), Refusal> {
    let mut mounts = container.volume_mounts.iter().flatten();
    let taken = mounts.any(|mount| mount.mount_path.trim_end_matches('/') == SOCKETS && mount.name != SOCKETS_VOLUME);
    if taken { Err(Refusal::PathTaken(container.name.clone())) } else { Ok(()) }
}

fn has_own_hook(container: &Container, ours: Option<&str>) -> bool {
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    hook.is_some_and(|hook| {
        let path = hook.http_get.as_ref().and_then(|get| get.path.as_deref());
        ours.is_none() || path != ours
    })
}
