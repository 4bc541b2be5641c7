use super::*;

fn refusal(pod: &Value) -> String {
    match inject(pod, &pool(), &agent(), HOOK) {
        Err(refusal) => refusal.to_string(),
        Ok(pod) => panic!("let in: {pod}"),
    }
}

fn annotated(name: &str, value: &str) -> Value {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({ name: value });
    pod
}

#[test]
fn each_is_a_sentence_that_names_what_is_wrong() {
    let main = "/spec/containers/0";
    let hook = json!({ "preStop": { "sleep": { "seconds": 5 } } });
    for (pod, words) in [
        (
            with(&format!("{main}/lifecycle"), hook),
            vec!["container rooms", "preStop", "durableserver.io/prestop: keep"],
        ),
        (
            with(
                &format!("{main}/lifecycle"),
                json!({ "preStop": { "httpGet": { "path": "/prestop", "port": 7072 } } }),
            ),
            vec!["container rooms", "preStop"],
        ),
        (annotated(PRESTOP, "true"), vec![PRESTOP, "keep"]),
        (annotated(AGENT_RESOURCES, "cpu: 1"), vec![AGENT_RESOURCES, "write JSON"]),
        (annotated(AGENT_RESOURCES, r#"{"requests": {"cpu": "lots"}}"#), vec![AGENT_RESOURCES, "cpu"]),
        (annotated(AGENT_RESOURCES, r#"{"request": {"cpu": "1"}}"#), vec![AGENT_RESOURCES, "request"]),
        (with("/spec/initContainers", json!([{ "name": "durable-agent" }])), vec!["container durable-agent", "inject"]),
        (with(&format!("{main}/name"), json!("durable-agent")), vec!["container durable-agent"]),
        (with("/spec/volumes/0/name", json!("durable")), vec!["volume durable"]),
        (with("/spec/volumes/0/name", json!("durable-token")), vec!["volume durable-token"]),
        (with(&format!("{main}/ports"), json!([{ "containerPort": 7072 }])), vec!["container rooms", "port 7072"]),
        (
            with(&format!("{main}/ports"), json!([{ "containerPort": 80, "name": "durable" }])),
            vec!["container rooms", "port durable"],
        ),
        (
            with(
                "/spec/initContainers",
                json!([
                    { "name": "log", "restartPolicy": "Always", "ports": [{ "containerPort": 7070 }] }
                ]),
            ),
            vec!["container log", "port 7070"],
        ),
        (
            with("/spec/containers/1/volumeMounts/0/mountPath", json!("/run/durable/")),
            vec!["container side", "/run/durable"],
        ),
    ] {
        let sentence = refusal(&pod);
        for word in words {
            assert!(sentence.contains(word), "{word}: {sentence}");
        }
    }
}

#[test]
fn pods_of_the_nodes_own_network_are_let_in_unless_ports_collide() {
    let host = with("/spec/hostNetwork", json!(true));
    injected(&host);
    let taken = set(host, "/spec/containers/0/ports", json!([{ "containerPort": 80, "hostPort": 7070 }]));
    assert!(refusal(&taken).contains("port 7070"));
}

#[test]
fn ports_of_others_do_not_collide() {
    for ports in [json!([{ "containerPort": 8080 }]), json!([{ "containerPort": 7070, "protocol": "UDP" }])] {
        injected(&with("/spec/containers/0/ports", ports));
    }
    let earlier = json!([{ "name": "migrate", "ports": [{ "containerPort": 7070 }] }]);
    injected(&with("/spec/initContainers", earlier));
}

#[test]
fn a_copy_of_the_annotation_alone_makes_nothing_ours() {
    let mut pod = annotated(INJECTED, "0.1.0");
    pod["spec"]["initContainers"] = json!([{ "name": "durable-agent" }]);
    assert!(refusal(&pod).contains("container durable-agent"));
    let volume = set(annotated(INJECTED, "0.1.0"), "/spec/volumes/0/name", json!("durable"));
    assert!(refusal(&volume).contains("volume durable"));
}

#[test]
fn a_pool_that_cannot_be_acted_on_is_refused_by_its_field() {
    let spec = json!({ "store": { "s3": { "bucket": "b-1" } }, "hostStopTime": "soon" });
    let refusal = Pool::new("rooms", &serde_json::from_value(spec).unwrap()).unwrap_err().to_string();
    assert!(refusal.contains("rooms") && refusal.contains("spec.hostStopTime"), "{refusal}");
}

#[test]
fn what_is_no_pod_is_refused_and_nothing_panics() {
    let whole = [Value::Null, json!(7), json!([]), json!({}), json!({ "metadata": {} }), json!({ "spec": [] })];
    for bad in whole {
        assert!(inject(&bad, &pool(), &agent(), HOOK).is_err(), "{bad}");
    }
    let anything = [Value::Null, json!(7), json!("x"), json!([]), json!([7]), json!({}), json!({ "x": 7 })];
    for pointer in [
        "/metadata",
        "/metadata/annotations",
        "/spec",
        "/spec/containers",
        "/spec/containers/0",
        "/spec/containers/0/lifecycle",
        "/spec/containers/0/lifecycle/preStop",
        "/spec/containers/0/env",
        "/spec/containers/0/volumeMounts",
        "/spec/initContainers",
        "/spec/volumes",
        "/spec/terminationGracePeriodSeconds",
    ] {
        for value in &anything {
            // Some of these are pods, and those must be the same when they are sent again.
            if let Ok(once) = inject(&with(pointer, value.clone()), &pool(), &agent(), HOOK) {
                assert_eq!(inject(&once, &pool(), &agent(), OTHER).unwrap(), once, "{pointer} {value}");
            }
        }
    }
}
