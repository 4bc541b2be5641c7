//! What is put into a pod: the agent's container, and its volumes. `docs/injection.md` shows the same, to write by hand.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    CONTAINER, GRACE, HOOK_PATH, HOOK_PORT, NO_API_TOKEN_VOLUME, PORTS, Pool, Resources, SOCKETS, SOCKETS_VOLUME,
    TOKEN_VOLUME,
};

/// Where the kubelet, or else the API server, puts the app's own token.
const API_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TOKEN: &str = "/var/run/durable/token";
/// A token is renewed when a fifth of its life is left, and not while the pod terminates: what is left at least must
/// outlast the grace period.
const TOKEN_LIFE: i64 = 3600;
const TOKEN_RENEWAL: i64 = 5;

/// What holds for the agents of all pods.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Image of the agent.
    pub image: String,
    /// When the kubelet pulls it.
    pub pull_policy: String,
    /// Unless the pod says otherwise.
    pub resources: Resources,
    /// URL at which agents reach the operator.
    pub operator: String,
    /// The authority of its certificate, PEM.
    pub authority: watch::Receiver<Arc<str>>,
    /// Audience of the agents' tokens.
    pub audience: String,
}

/// The agent's container, for a pod of this grace period in seconds.
pub(super) fn container(agent: &Agent, pool: &Pool, hook_path: &str, grace: i64, resources: &Resources) -> Value {
    json!({
        "name": CONTAINER,
        "image": agent.image,
        "imagePullPolicy": agent.pull_policy,
        // A native sidecar: it starts before the main containers and is told to stop after they have ended.
        "restartPolicy": "Always",
        "env": env(agent, pool, hook_path, grace),
        "ports": PORTS.map(|(name, port)| json!({ "name": name, "containerPort": port })),
        // No livenessProbe: a restart in a drain would end the drain.
        "readinessProbe": { "httpGet": { "path": "/readyz", "port": HOOK_PORT }, "periodSeconds": 1 },
        "resources": resources,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "volumeMounts": [
            sockets_mount(),
            { "name": TOKEN_VOLUME, "mountPath": TOKEN, "readOnly": true },
            // Where something is mounted already, the API server mounts no token.
            { "name": NO_API_TOKEN_VOLUME, "mountPath": API_TOKEN, "readOnly": true },
        ],
    })
}

fn env(agent: &Agent, pool: &Pool, hook_path: &str, grace: i64) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("POD_UID", "metadata.uid"),
        field("POD_IP", "status.podIP"),
        json!({ "name": "DURABLE_POOL", "value": pool.name }),
        json!({ "name": "DURABLE_OPERATOR", "value": agent.operator }),
        json!({ "name": "DURABLE_OPERATOR_CA", "value": &**agent.authority.borrow() }),
        json!({ "name": HOOK_PATH, "value": hook_path }),
        json!({ "name": GRACE, "value": grace.to_string() }),
        // Otherwise its allocator takes memory in pieces that the kernel backs with pages of 2 MiB: 10 MiB for nothing.
        json!({ "name": "MIMALLOC_ARENA_EAGER_COMMIT", "value": "0" }),
    ];
    if let Some(secret) = &pool.credentials {
        env.extend(
            ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
                .map(|key| json!({ "name": key, "valueFrom": { "secretKeyRef": { "name": secret, "key": key } } })),
        );
    }
    env
}

/// The directory of the sockets.
pub(super) fn sockets_mount() -> Value {
    json!({ "name": SOCKETS_VOLUME, "mountPath": SOCKETS })
}

/// The volumes of the above.
pub(super) fn volumes(agent: &Agent, grace: i64) -> [Value; 3] {
    let token = json!({
        "audience": agent.audience,
        "expirationSeconds": grace.saturating_mul(TOKEN_RENEWAL).max(TOKEN_LIFE),
        "path": "token",
    });
    [
        json!({ "name": SOCKETS_VOLUME, "emptyDir": { "medium": "Memory", "sizeLimit": "16Mi" } }),
        json!({ "name": TOKEN_VOLUME, "projected": { "sources": [{ "serviceAccountToken": token }] } }),
        json!({ "name": NO_API_TOKEN_VOLUME, "emptyDir": {} }),
    ]
}
