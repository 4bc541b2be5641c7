//! Pods in, pods or sentences out, and the same over HTTPS.

mod endpoint;
mod noise;
mod refusals;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;

const HOOK: &str = "/prestop/0123";
const OTHER: &str = "/prestop/4567";

fn agent() -> Agent {
    Agent {
        image: "durable-server/agent:1".into(),
        pull_policy: "IfNotPresent".into(),
        resources: r#"{"requests": {"cpu": "250m", "memory": "64Mi"}}"#.parse().unwrap(),
        operator: "https://operator.system.svc:9443".into(),
        authority: watch::channel("PEM".into()).1,
        audience: "durable-operator".into(),
    }
}

/// With drains of 30 seconds, hosts that stop in 5, and a Secret.
fn pool() -> Pool {
    let spec = json!({ "store": { "s3": { "bucket": "b-1", "credentialsSecretRef": { "name": "keys" } } } });
    Pool::new("rooms", &serde_json::from_value(spec).unwrap()).unwrap()
}

/// As the API server sends one, with a field that no version knows.
fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "generateName": "rooms-", "labels": { "durableserver.io/pool": "rooms" } },
        "spec": {
            "containers": [
                { "name": "rooms", "image": "rooms", "fieldOfTomorrow": { "a": [1] } },
                { "name": "side", "image": "side", "volumeMounts": [{ "name": "data", "mountPath": "/data" }] },
            ],
            "volumes": [{ "name": "data", "emptyDir": {} }],
            "terminationGracePeriodSeconds": 60,
        },
    })
}

fn injected(pod: &Value) -> Value {
    inject(pod, &pool(), &agent(), HOOK).unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// The pod with this at the pointer's place, which is made.
fn with(pointer: &str, value: Value) -> Value {
    set(pod(), pointer, value)
}

fn set(mut object: Value, pointer: &str, value: Value) -> Value {
    let mut at = &mut object;
    for part in pointer.split('/').skip(1) {
        let part = part.replace("~1", "/");
        at = if at.is_array() { &mut at[part.parse::<usize>().unwrap()] } else { &mut at[part] };
    }
    *at = value;
    object
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    let list = pod["spec"][list].as_array().unwrap();
    list.iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

fn env<'a>(container: &'a Value, name: &str) -> &'a Value {
    let env = container["env"].as_array().unwrap();
    env.iter().find(|variable| variable["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn every_main_container_gets_the_hook_and_the_sockets() {
    let pod = injected(&pod());
    for main in pod["spec"]["containers"].as_array().unwrap() {
        let hook = json!({ "httpGet": { "path": HOOK, "port": 7072 } });
        assert_eq!(main["lifecycle"]["preStop"], hook);
        let mounts = main["volumeMounts"].as_array().unwrap();
        assert!(mounts.contains(&json!({ "name": "durable", "mountPath": "/run/durable" })), "{main}");
    }
    assert_eq!(pod["spec"]["containers"][0]["fieldOfTomorrow"], json!({ "a": [1] }));
    assert_eq!(pod["spec"]["containers"][1]["volumeMounts"][0]["name"], "data");
}

#[test]
fn the_agent_has_what_it_needs_and_the_app_has_not() {
    let pod = injected(&pod());
    let agent = &pod["spec"]["initContainers"][0];
    assert_eq!((&agent["name"], &agent["restartPolicy"]), (&json!("durable-agent"), &json!("Always")));
    for (name, value) in [
        ("DURABLE_POOL", "rooms"),
        ("DURABLE_OPERATOR", "https://operator.system.svc:9443"),
        ("DURABLE_HOOK_PATH", HOOK),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "60"),
    ] {
        assert_eq!(env(agent, name)["value"], value, "{name}");
    }
    for key in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        assert_eq!(env(agent, key)["valueFrom"]["secretKeyRef"], json!({ "name": "keys", "key": key }));
    }
    assert_eq!(agent["readinessProbe"]["httpGet"], json!({ "path": "/readyz", "port": 7072 }));
    let mounts: Vec<&Value> = agent["volumeMounts"].as_array().unwrap().iter().map(|m| &m["mountPath"]).collect();
    let api_token = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(mounts, ["/run/durable", "/var/run/durable/token", api_token]);
    let volumes = &pod["spec"]["volumes"];
    assert_eq!(names(&pod, "volumes"), ["data", "durable", "durable-token", "durable-no-api-token"]);
    assert_eq!(volumes[1]["emptyDir"], json!({ "medium": "Memory", "sizeLimit": "16Mi" }));
    let token = json!({ "audience": "durable-operator", "expirationSeconds": 3600, "path": "token" });
    assert_eq!(volumes[2]["projected"]["sources"], json!([{ "serviceAccountToken": token }]));
    assert_eq!(volumes[3]["emptyDir"], json!({}));
    let main = pod["spec"]["containers"].to_string();
    assert!(!main.contains("durable-token") && !main.contains("AWS_"), "{main}");
}

#[test]
fn without_a_secret_the_agent_has_the_pods_own_identity() {
    let pool = Pool { credentials: None, ..pool() };
    let pod = inject(&pod(), &pool, &agent(), HOOK).unwrap();
    assert!(!pod.to_string().contains("AWS_"));
}

#[test]
fn the_agent_passes_restricted_pod_security() {
    let pod = injected(&pod());
    let context = &pod["spec"]["initContainers"][0]["securityContext"];
    assert_eq!(context["runAsNonRoot"], true);
    assert!(context["runAsUser"].as_u64().is_some_and(|user| user > 0));
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    // A hook or probe with a host of its own, a host port, and volumes of other kinds are forbidden there.
    let text = pod["spec"].to_string();
    assert!(!text.contains("\"host\"") && !text.contains("hostPort") && !text.contains("hostPath"), "{text}");
}

#[test]
fn a_grace_period_is_raised_when_the_drain_does_not_fit_and_says_so() {
    let long = Pool { drain: std::time::Duration::from_mins(20), ..pool() };
    for (given, pool, grace, token) in [
        (json!(60), pool(), 60, 3600),
        (json!(38), pool(), 38, 3600),
        (json!(37), pool(), 38, 3600),
        (json!(0), pool(), 38, 3600),
        (Value::Null, pool(), 38, 3600),
        // A token is not renewed while its pod terminates; a fifth of its life may be all that is left.
        (json!(60), long, 1208, 6040),
    ] {
        let pod = inject(&with("/spec/terminationGracePeriodSeconds", given.clone()), &pool, &agent(), HOOK).unwrap();
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], grace, "{given}");
        let agent = &pod["spec"]["initContainers"][0];
        assert_eq!(env(agent, "TERMINATION_GRACE_PERIOD_SECONDS")["value"], grace.to_string(), "{given}");
        let token_source = &pod["spec"]["volumes"][2]["projected"]["sources"][0]["serviceAccountToken"];
        assert_eq!(token_source["expirationSeconds"], token, "{given}");
        let said = pod["metadata"]["annotations"]["durableserver.io/grace-period"].as_str();
        let raised = given.as_i64().unwrap_or(30) < grace;
        assert_eq!(said.is_some(), raised, "{given}: {said:?}");
        let numbers = format!("from {}s to {grace}s", given.as_i64().unwrap_or(30));
        assert!(said.is_none_or(|said| said.contains(&numbers)), "{said:?}");
    }
}

#[test]
fn resources_are_the_charts_or_the_pods_own() {
    let resources = |pod: &Value| injected(pod)["spec"]["initContainers"][0]["resources"].clone();
    assert_eq!(resources(&pod()), json!({ "requests": { "cpu": "250m", "memory": "64Mi" } }));
    let own = json!({ "requests": { "cpu": 1, "memory": "1Gi" }, "limits": { "memory": "1Gi" } });
    let annotated = with("/metadata/annotations/durableserver.io~1agent-resources", json!(own.to_string()));
    assert_eq!(resources(&annotated), own);
}

#[test]
fn the_agent_starts_before_all_but_a_meshs_sidecar() {
    let sidecar = |name: &str| json!({ "name": name, "restartPolicy": "Always" });
    let plain = |name: &str| json!({ "name": name });
    for (present, expected) in [
        (json!([]), vec!["durable-agent"]),
        (json!([plain("migrate"), sidecar("logs")]), vec!["durable-agent", "migrate", "logs"]),
        (
            json!([plain("istio-init"), sidecar("istio-proxy"), plain("migrate"), sidecar("logs")]),
            vec!["istio-init", "istio-proxy", "durable-agent", "migrate", "logs"],
        ),
        (json!([sidecar("linkerd-proxy")]), vec!["linkerd-proxy", "durable-agent"]),
        // One that is no sidecar ends before the main containers begin.
        (json!([plain("istio-proxy")]), vec!["durable-agent", "istio-proxy"]),
    ] {
        assert_eq!(names(&injected(&with("/spec/initContainers", present)), "initContainers"), expected);
    }
}

#[test]
fn a_mesh_that_comes_later_is_put_before_the_agent() {
    let mut pod = injected(&with("/spec/initContainers", json!([{ "name": "migrate" }])));
    let containers = pod["spec"]["initContainers"].as_array_mut().unwrap();
    containers.push(json!({ "name": "istio-proxy", "restartPolicy": "Always" }));
    let again = inject(&pod, &pool(), &agent(), OTHER).unwrap();
    assert_eq!(names(&again, "initContainers"), ["migrate", "istio-proxy", "durable-agent"]);
    assert_eq!(env(&again["spec"]["initContainers"][2], "DURABLE_HOOK_PATH")["value"], HOOK);
}

#[test]
fn of_an_injected_pod_nothing_changes() {
    let own_hook = set(
        with("/metadata/annotations/durableserver.io~1prestop", json!("keep")),
        "/spec/containers/0/lifecycle",
        json!({ "preStop": { "exec": { "command": ["drain"] } } }),
    );
    let short = with("/spec/terminationGracePeriodSeconds", json!(1));
    for pod in [pod(), own_hook, short, with("/spec/initContainers", Value::Null)] {
        let mut once = injected(&pod);
        // As the API server's defaults leave it.
        once["spec"]["containers"][1]["lifecycle"]["preStop"]["httpGet"]["scheme"] = json!("HTTP");
        once["spec"]["initContainers"][0]["terminationMessagePath"] = json!("/dev/termination-log");
        assert_eq!(inject(&once, &pool(), &agent(), OTHER).unwrap(), once);
    }
}

#[test]
fn what_others_added_to_an_injected_pod_is_completed() {
    let mut pod = injected(&pod());
    pod["spec"]["containers"].as_array_mut().unwrap().push(json!({ "name": "late" }));
    pod["spec"]["terminationGracePeriodSeconds"] = json!(90);
    let again = inject(&pod, &pool(), &agent(), OTHER).unwrap();
    assert_eq!(again["spec"]["containers"][2]["lifecycle"]["preStop"]["httpGet"]["path"], HOOK);
    let agent = &again["spec"]["initContainers"][0];
    assert_eq!(env(agent, "TERMINATION_GRACE_PERIOD_SECONDS")["value"], "90");
}

#[test]
fn a_hook_that_is_kept_learns_what_to_call() {
    let hook = json!({ "preStop": { "exec": { "command": ["sh", "-c", "wget -qO- $DURABLE_PRESTOP_URL"] } } });
    let pod = set(
        with("/metadata/annotations/durableserver.io~1prestop", json!("keep")),
        "/spec/containers/0/lifecycle",
        hook.clone(),
    );
    let pod = injected(&pod);
    let [main, side] = [0, 1].map(|n| &pod["spec"]["containers"][n]);
    assert_eq!(main["lifecycle"], hook);
    assert_eq!(env(main, "DURABLE_PRESTOP_URL")["value"], format!("http://127.0.0.1:7072{HOOK}"));
    assert_eq!(side["lifecycle"]["preStop"]["httpGet"]["path"], HOOK);
}

#[test]
fn the_patch_makes_the_injected_pod_of_the_one_that_was_sent() {
    let sent = with("/spec/initContainers", json!([{ "name": "migrate", "x": 1 }, { "name": "seed" }]));
    let wanted = injected(&sent);
    let mut patched = sent.clone();
    json_patch::patch(&mut patched, &json_patch::diff(&sent, &wanted)).unwrap();
    assert_eq!(patched, wanted);
}

#[test]
fn what_is_documented_to_write_by_hand_is_what_is_injected() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/injection.md")).unwrap();
    let block = docs.split("```yaml\n").find(|block| block.contains("initContainers")).unwrap();
    let by_hand: Value = serde_yaml::from_str(block.split("```").next().unwrap()).unwrap();
    let agent = Agent {
        image: "durable-server/agent:0.1.0".into(),
        operator: "https://durable-server-operator.durable-server-system.svc:9443".into(),
        ..agent()
    };
    let pool = Pool { credentials: Some("durable-server-store".into()), ..pool() };
    let main = json!({ "name": "rooms", "image": "durable-server/rooms:0.1.0" });
    let plain = json!({ "spec": { "terminationGracePeriodSeconds": 60, "containers": [main] } });
    let mut injected = inject(&plain, &pool, &agent, "/prestop").unwrap();
    // Written by hand, the authority comes from a copy.
    let env = injected["spec"]["initContainers"][0]["env"].as_array_mut().unwrap();
    let authority = env.iter_mut().find(|variable| variable["name"] == "DURABLE_OPERATOR_CA").unwrap();
    let copy = json!({ "configMapKeyRef": { "name": "durable-operator-ca", "key": "ca.crt" } });
    *authority = json!({ "name": "DURABLE_OPERATOR_CA", "valueFrom": copy });
    assert_eq!(by_hand["spec"], injected["spec"]);
}
