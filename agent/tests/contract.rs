//! `docs/host-contract.openapi.yaml` against what the agent says and understands: the same paths, methods, headers and
//! statuses, in both directions.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use agent::host::{HostClient, HostError, Mode, StartCall};
use bytes::Bytes;
use handoff::{
    Epoch, Generation, Instant, ServerId, ServerUid,
    adopt::Told,
    source::{Final, Mark, State},
};
use serde_yaml::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

const CONTRACT: &str = include_str!("../../docs/host-contract.openapi.yaml");
const PAGE: &str = include_str!("../../docs/host-contract.md");
const HOST: &str = include_str!("../src/host.rs");
const SOCKET: &str = include_str!("../src/socket.rs");

const WITHIN: Duration = Duration::from_secs(10);
const STATE: &[u8] = b"[]";

/// An operation of the file, references resolved.
#[derive(Debug)]
struct Operation {
    path: String,
    method: String,
    agent: bool,
    /// Request headers, in lower case; those that must be there.
    headers: BTreeMap<String, (bool, Value)>,
    /// By status: headers, and whether there is a body.
    answers: BTreeMap<String, (BTreeSet<String>, bool)>,
}

fn resolved(document: &Value, value: &Value) -> Value {
    let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return value.clone() };
    let mut found = document;
    for part in reference.strip_prefix("#/").unwrap().split('/') {
        found = found.get(part).unwrap_or_else(|| panic!("{reference} leads nowhere"));
    }
    resolved(document, found)
}

fn every_reference_leads_somewhere(document: &Value, value: &Value) {
    match value {
        Value::Mapping(mapping) => {
            resolved(document, value);
            mapping.iter().for_each(|(_, value)| every_reference_leads_somewhere(document, value));
        }
        Value::Sequence(all) => all.iter().for_each(|value| every_reference_leads_somewhere(document, value)),
        _ => {}
    }
}

fn operations() -> BTreeMap<String, Operation> {
    let document: Value = serde_yaml::from_str(CONTRACT).unwrap();
    every_reference_leads_somewhere(&document, &document);
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_mapping().unwrap() {
        for method in ["get", "post"] {
            let Some(operation) = item.get(method) else { continue };
            let path = path.as_str().unwrap();
            let id = operation.get("operationId").map_or(path, |id| id.as_str().unwrap());
            operations.insert(id.to_owned(), read(&document, path, method, operation));
        }
    }
    operations
}

fn read(document: &Value, path: &str, method: &str, operation: &Value) -> Operation {
    let text = |value: &Value| value.as_str().unwrap().to_lowercase();
    let parameters = operation.get("parameters").and_then(Value::as_sequence).cloned().unwrap_or_default();
    let headers = parameters
        .iter()
        .map(|parameter| resolved(document, parameter))
        .filter(|parameter| parameter["in"] == "header")
        .map(|parameter| {
            let required = parameter.get("required").is_some_and(|required| required == &Value::Bool(true));
            (text(&parameter["name"]), (required, resolved(document, &parameter["schema"])))
        })
        .collect();
    let answers = operation["responses"]
        .as_mapping()
        .unwrap()
        .iter()
        .map(|(status, answer)| {
            let answer = resolved(document, answer);
            let headers = answer.get("headers").and_then(Value::as_mapping).cloned().unwrap_or_default();
            let headers = headers.iter().map(|(name, _)| text(name)).collect();
            (status.as_str().unwrap().to_owned(), (headers, answer.get("content").is_some()))
        })
        .collect();
    Operation {
        path: path.to_owned(),
        method: method.to_uppercase(),
        agent: operation["tags"][0] == "agent",
        headers,
        answers,
    }
}

/// A call as it was sent.
struct Sent {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

/// Has the client make this call, and answers it.
async fn exchange(name: &str, variant: usize, answer: String) -> (Sent, Result<(), HostError>) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("host.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let host = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 8192];
        let length = stream.read(&mut head).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        head.truncate(length);
        String::from_utf8(head).unwrap()
    });
    let result = call(&HostClient::new(&socket, 1 << 20), name, variant).await;
    let asked = host.await.unwrap();
    let (head, _) = asked.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers = lines.map(|line| line.split_once(": ").unwrap()).map(|(name, value)| (name.into(), value.into()));
    (Sent { method, path, headers: headers.collect() }, result)
}

/// Variants differ in what they send along; all of them together send all there is.
async fn call(client: &HostClient, name: &str, variant: usize) -> Result<(), HostError> {
    let uid = ServerUid("u-1".into());
    let id = ServerId { namespace: "ns".into(), name: "lobby".into(), uid: uid.clone() };
    let mark = Mark { instance: 7, revision: 9, checksum: crc32fast::hash(STATE) };
    let state = State { mark, version: 2, body: Bytes::from_static(STATE) };
    let config = serde_json::json!({"a": 1});
    let more = variant > 0;
    let start = StartCall {
        id: &id,
        kind: "room",
        epoch: Epoch(4),
        attempt: 5,
        mode: if more { Mode::Standby } else { Mode::Active },
        config: more.then_some(&config),
        state: more.then_some(&state),
    };
    let last = if more { Final::State(state.clone()) } else { Final::Unchanged(mark) };
    match name {
        "describe" => client.describe(WITHIN).await.map(drop),
        "list" => client.list(WITHIN).await.map(drop),
        "lease" => {
            let lease = Told { generation: Generation(3), deadline: Instant(Duration::from_secs(9)) };
            client.lease(lease, 5, WITHIN).await
        }
        "told" => client.told(WITHIN).await.map(drop),
        "start" => client.start(&start, WITHIN).await.map(drop),
        "snapshot" => client.snapshot(&uid, Epoch(4), more.then_some(mark), WITHIN).await.map(drop),
        "freeze" => client.freeze(&uid, Epoch(4), 6, more.then_some(mark), WITHIN).await.map(drop),
        "thaw" => client.thaw(&uid, Epoch(4), 6, WITHIN).await,
        "activate" => client.activate(&uid, Epoch(4), 6, &last, WITHIN).await.map(drop),
        "stop" => client.stop(&uid, Epoch(4), 6, WITHIN).await,
        other => panic!("the client has no call {other}"),
    }
}

/// An answer as the file says, with something in it.
fn answer(name: &str, status: &str, headers: &BTreeSet<String>, has_body: bool) -> String {
    let body = match (name, status) {
        _ if !has_body => "",
        ("describe", "200") => r#"{"contract": 1, "instance": 7, "types": []}"#,
        ("told", "200") => r#"{"generation": 3, "deadline": 9000}"#,
        (_, "200") => std::str::from_utf8(STATE).unwrap(),
        _ => "a sentence",
    };
    let mut text = format!("HTTP/1.1 {status} -\r\n");
    for name in headers {
        let value = if name == "durable-checksum" { crc32fast::hash(STATE) } else { 7 };
        text.extend([name, ": ", &value.to_string(), "\r\n"]);
    }
    if !matches!(status, "204" | "304") {
        text.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
    }
    text + "\r\n" + body
}

#[tokio::test]
async fn the_agent_asks_as_the_file_says() {
    for (name, operation) in operations().iter().filter(|(name, operation)| !operation.agent && *name != "/{path}") {
        let mut sent_at_all = BTreeSet::new();
        for variant in [0, 1] {
            let (sent, _) = exchange(name, variant, answer(name, "500", &BTreeSet::new(), false)).await;
            assert_eq!((&sent.method, &sent.path), (&operation.method, &operation.path.replace("{uid}", "u-1")));
            let sent: BTreeMap<_, _> =
                sent.headers.into_iter().filter(|(header, _)| header.starts_with("durable-")).collect();
            for (header, value) in &sent {
                let (_, schema) =
                    operation.headers.get(header).unwrap_or_else(|| panic!("{name}: {header} is not in the file"));
                let words = schema.get("enum").and_then(Value::as_sequence);
                assert!(words.is_none_or(|words| words.iter().any(|word| word == value)), "{name}: {header}: {value}");
                let is_number = schema.get("type").is_some_and(|of| of == "integer");
                assert!(!is_number || value.parse::<u64>().is_ok(), "{name}: {header}: {value}");
            }
            for (header, _) in operation.headers.iter().filter(|(_, (required, _))| *required) {
                assert!(sent.contains_key(header), "{name}: {header} is required by the file and not sent");
            }
            sent_at_all.extend(sent.into_keys());
        }
        let documented: BTreeSet<_> = operation.headers.keys().cloned().collect();
        assert_eq!(sent_at_all, documented, "{name}");
    }
}

#[tokio::test]
async fn the_agent_understands_the_answers_of_the_file_and_no_others() {
    for (name, operation) in operations().iter().filter(|(name, operation)| !operation.agent && *name != "/{path}") {
        for (status, (headers, has_body)) in &operation.answers {
            let (_, result) = exchange(name, 0, answer(name, status, headers, *has_body)).await;
            let understood = match &result {
                Ok(()) => status.starts_with(['2', '3']),
                Err(HostError::Refused { status: refused, message }) => {
                    refused.as_str() == status && message == "a sentence"
                }
                Err(_) => false,
            };
            assert!(understood, "{name}: {status}: {result:?}");
            for missing in headers {
                let fewer = headers.iter().filter(|header| *header != missing).cloned().collect();
                let (_, result) = exchange(name, 0, answer(name, status, &fewer, *has_body)).await;
                assert!(matches!(result, Err(HostError::Invalid(_))), "{name}: {status} without {missing}: {result:?}");
            }
        }
        for status in ["200", "202", "204", "304"].iter().filter(|status| !operation.answers.contains_key(**status)) {
            let (_, result) = exchange(name, 0, answer(name, status, &BTreeSet::new(), false)).await;
            assert!(result.is_err(), "{name}: {status} is not in the file, and understood");
        }
    }
}

/// What stands between these two, each time.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> BTreeSet<&'a str> {
    text.split(begin).skip(1).map(|rest| rest.split_once(end).unwrap().0).collect()
}

#[test]
fn the_file_and_the_client_have_the_same_headers() {
    let operations = operations();
    let of_host = operations.values().filter(|operation| !operation.agent);
    let documented: BTreeSet<String> = of_host
        .flat_map(|operation| {
            let answers = operation.answers.values().flat_map(|(headers, _)| headers);
            operation.headers.keys().chain(answers).cloned().collect::<Vec<_>>()
        })
        .collect();
    let known = between(HOST, "HeaderName::from_static(\"", "\"");
    assert_eq!(documented.iter().map(String::as_str).collect::<BTreeSet<_>>(), known);
}

#[test]
fn the_file_and_the_agents_socket_have_the_same_calls() {
    let operations = operations();
    let documented: BTreeSet<(&str, String)> = operations
        .values()
        .filter(|operation| operation.agent)
        .map(|operation| (operation.path.as_str(), operation.method.to_lowercase()))
        .collect();
    let served: BTreeSet<(&str, String)> = between(SOCKET, ".route(\"", "(")
        .into_iter()
        .map(|route| route.split_once("\", ").unwrap())
        .map(|(path, method)| (path, method.to_owned()))
        .collect();
    assert_eq!(documented, served);
    let headers: BTreeSet<_> =
        operations["sync"].answers.values().flat_map(|(headers, _)| headers).map(String::as_str).collect();
    assert_eq!(headers, between(SOCKET, "[(\"", "\""));
    for (status, constant) in [("404", "StatusCode::NOT_FOUND"), ("503", "StatusCode::SERVICE_UNAVAILABLE")] {
        for name in ["sync", "lookup"] {
            assert!(operations[name].answers.contains_key(status), "{name}: {status}");
        }
        assert!(SOCKET.contains(constant));
    }
}

#[test]
fn the_page_names_every_call_and_header_of_the_file() {
    for operation in operations().values() {
        let call = format!("`{} {}`", operation.method, operation.path);
        assert!(operation.path == "/{path}" || PAGE.contains(&call), "{call}");
        for header in operation.headers.keys().chain(operation.answers.values().flat_map(|(headers, _)| headers)) {
            assert!(PAGE.to_lowercase().contains(&format!("`{header}")), "{header}");
        }
    }
}
