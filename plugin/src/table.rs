//! Objects as text. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use crds::{
    CORDON_ANNOTATION, DRAIN_ANNOTATION, DurableServer, Phase,
    plan::{Arrival, Foretold},
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::look::Seen;

/// Columns are so far apart.
const GAP: usize = 3;

/// What a pod has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Servers in it.
    pub servers: usize,
    /// Those of them that are being handed to another pod.
    pub moving: usize,
}

/// What each pod has, by its name.
pub fn loads<'a>(servers: impl IntoIterator<Item = &'a DurableServer>) -> BTreeMap<String, Load> {
    let mut loads = BTreeMap::<String, Load>::new();
    for status in servers.into_iter().filter_map(|server| server.status.as_ref()) {
        let Some(pod) = &status.pod else { continue };
        let load = loads.entry(pod.clone()).or_default();
        load.servers += 1;
        load.moving += usize::from(status.phase == Some(Phase::HandingOff));
    }
    loads
}

/// What a pod is up to, in a word.
pub fn state(pod: &Pod) -> &'static str {
    let says = |name: &str| pod.annotations().get(name).is_some_and(|said| said == "true");
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True");
    match () {
        () if pod.metadata.deletion_timestamp.is_some() => "Terminating",
        () if says(DRAIN_ANNOTATION) => "Draining",
        () if !ready => "NotReady",
        () if says(CORDON_ANNOTATION) => "Cordoned",
        () => "Ready",
    }
}

/// The pods of a pool.
pub fn pods(seen: &Seen) -> String {
    let loads = loads(&seen.servers);
    let mut rows = vec![["POD", "NODE", "STATE", "SERVERS", "MOVING"].map(str::to_owned)];
    for pod in &seen.pods {
        let load = loads.get(&pod.name_any()).copied().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_else(|| "-".into());
        rows.push([pod.name_any(), node, state(pod).into(), load.servers.to_string(), load.moving.to_string()]);
    }
    format!("{}\n\n{}", head(seen), columns(&rows))
}

/// A pool in one line.
pub fn head(seen: &Seen) -> String {
    let status = seen.pool.status.clone().unwrap_or_default();
    let placed: usize = loads(&seen.servers).values().map(|load| load.servers).sum();
    // From the servers themselves: the pool's own count is written some time later.
    let phase = |server: &DurableServer| server.status.as_ref().and_then(|status| status.phase);
    let running =
        seen.servers.iter().filter(|one| matches!(phase(one), Some(Phase::Running | Phase::HandingOff))).count();
    let mut text = format!("pool {}: {} servers, {running} running", seen.pool.name_any(), seen.servers.len());
    let nowhere = seen.servers.len() - placed;
    if nowhere > 0 {
        let _ = write!(text, ", {nowhere} without a pod");
    }
    if status.leaving > 0 {
        let _ = write!(text, ", {} to leave their pods", status.leaving);
    }
    if seen.pool.spec.paused == Some(true) {
        text.push_str(", paused");
    }
    text
}

/// What would happen.
pub fn plan(told: &Foretold) -> String {
    let all: usize = told.moves.iter().map(|departure| departure.servers).sum();
    let stay: usize = told.stays.iter().map(|stay| stay.servers).sum();
    let mut text = format!("if {}:\n{all} servers would move {}\n", told.question, told.when);
    let mut rows = vec![["FROM", "REVISION", "SERVERS", "TO", "REVISION"].map(str::to_owned)];
    for departure in &told.moves {
        for Arrival { pod, revision, servers } in &departure.to {
            let to = pod.clone().unwrap_or_else(|| "(pods to come)".into());
            let of = |revision: &String| if revision.is_empty() { "-".into() } else { revision.clone() };
            let from = (departure.from.clone(), of(&departure.revision));
            rows.push([from.0, from.1, servers.to_string(), to, of(revision)]);
        }
    }
    if all > 0 {
        let _ = write!(text, "\n{}", columns(&rows));
    }
    if stay > 0 {
        let _ = write!(text, "\n{stay} servers would not: they {}\n", told.otherwise);
    }
    for why in &told.stays {
        let more = if why.servers > why.names.len() { ", ..." } else { "" };
        let _ = writeln!(text, "  {} ({}{more}): {}", why.servers, why.names.join(", "), why.reason);
    }
    text
}

/// Rows with their cells below each other.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or_default() + GAP;
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
pub mod tests {
    use crds::{
        DurableServerPool, DurableServerSpec,
        plan::{Departure, Stay},
    };
    use serde_json::{Value, json};

    use super::*;

    pub fn server(name: &str, status: Value) -> DurableServer {
        let mut server = DurableServer::new(name, DurableServerSpec::default());
        server.status = serde_json::from_value(status).unwrap();
        server
    }

    pub fn pod(name: &str, metadata: &Value, ready: &str) -> Pod {
        let mut object = json!({
            "metadata": { "name": name }, "spec": { "nodeName": "node-a", "containers": [] },
            "status": { "conditions": [{ "type": "Ready", "status": ready }] },
        });
        for (field, value) in metadata.as_object().into_iter().flatten() {
            object["metadata"][field] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    pub fn seen() -> Seen {
        let spec = json!({ "store": { "s3": { "bucket": "b" } }, "paused": true });
        let mut pool = DurableServerPool::new("rooms", serde_json::from_value(spec).unwrap());
        pool.status = serde_json::from_value(json!({ "running": 2, "leaving": 2 })).unwrap();
        let pods = vec![
            pod("rooms-1", &json!({ "annotations": { DRAIN_ANNOTATION: "true" } }), "True"),
            pod("rooms-2", &json!({}), "True"),
        ];
        let servers = vec![
            server("a", json!({ "phase": "Running", "pod": "rooms-1" })),
            server("b", json!({ "phase": "HandingOff", "pod": "rooms-1" })),
            server("c", json!({ "phase": "Running", "pod": "rooms-2" })),
            server("d", json!({ "phase": "Pending" })),
            server("e", Value::Null),
        ];
        Seen { pool, pods, servers }
    }

    #[test]
    fn a_pool_is_a_line_and_a_row_for_each_pod() {
        let expected = "pool rooms: 5 servers, 3 running, 2 without a pod, 2 to leave their pods, paused\n\n\
                        POD       NODE     STATE      SERVERS   MOVING\n\
                        rooms-1   node-a   Draining   2         1\n\
                        rooms-2   node-a   Ready      1         0\n";
        assert_eq!(pods(&seen()), expected);
    }

    #[test]
    fn the_state_is_what_matters_most() {
        let annotated = |name: &str| json!({ "annotations": { name: "true" } });
        let ends = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": { DRAIN_ANNOTATION: "true" } });
        for (metadata, ready, expected) in [
            (ends, "True", "Terminating"),
            (annotated(DRAIN_ANNOTATION), "True", "Draining"),
            (annotated(CORDON_ANNOTATION), "True", "Cordoned"),
            (annotated(CORDON_ANNOTATION), "False", "NotReady"),
            (json!({ "annotations": { DRAIN_ANNOTATION: "false" } }), "True", "Ready"),
        ] {
            assert_eq!(state(&pod("p", &metadata, ready)), expected, "{metadata}");
        }
    }

    #[test]
    fn a_plan_says_what_goes_where_and_why_the_rest_does_not() {
        let arrival =
            |pod: Option<&str>, servers| Arrival { pod: pod.map(Into::into), revision: "next".into(), servers };
        let told = Foretold {
            question: "pod rooms-1 of pool ns/rooms is drained".into(),
            when: "at once".into(),
            moves: vec![Departure {
                from: "rooms-1".into(),
                revision: String::new(),
                servers: 10,
                to: vec![arrival(Some("rooms-2"), 7), arrival(None, 3)],
            }],
            otherwise: "stay where they are".into(),
            stays: vec![Stay { reason: "every pod is full".into(), servers: 3, names: vec!["a".into(), "b".into()] }],
            servers: Vec::new(),
        };
        let expected = "if pod rooms-1 of pool ns/rooms is drained:\n10 servers would move at once\n\n\
                        FROM      REVISION   SERVERS   TO               REVISION\n\
                        rooms-1   -          7         rooms-2          next\n\
                        rooms-1   -          3         (pods to come)   next\n\n\
                        3 servers would not: they stay where they are\n  3 (a, b, ...): every pod is full\n";
        assert_eq!(plan(&told), expected);
        let nothing = Foretold { question: "q".into(), when: "at once".into(), ..Foretold::default() };
        assert_eq!(plan(&nothing), "if q:\n0 servers would move at once\n");
    }
}
