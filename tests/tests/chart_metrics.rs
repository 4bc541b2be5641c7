//! The chart's alerts and dashboard ask only for metrics, labels and values that operator and agents have.

#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

mod sources;

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;

use sources::{Exporter, exporter, read};

/// What Prometheus adds to every series of a pod, and what a histogram's buckets have.
const GIVEN: [&str; 3] = ["namespace", "pod", "le"];

fn exporters() -> [Exporter; 2] {
    [exporter("operator", "", &["wire", "crds"]), exporter("agent", "durable_agent_", &["store"])]
}

#[derive(Default)]
struct Asked {
    selectors: Vec<VectorSelector>,
    labels: BTreeSet<String>,
}

impl ExprVisitor for Asked {
    type Error = ();

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, ()> {
        match expr {
            Expr::VectorSelector(selector) => self.selectors.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.selectors.push(matrix.vs.clone()),
            Expr::Aggregate(aggregate) => {
                if let Some(modifier) = &aggregate.modifier {
                    self.labels.extend(modifier.labels().labels.iter().cloned());
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

/// What is wrong with a query.
fn problems(query: &str) -> Vec<String> {
    let expr = match parser::parse(&query.replace("$__rate_interval", "5m")) {
        Ok(expr) => expr,
        Err(error) => return vec![error],
    };
    let mut asked = Asked::default();
    walk_expr(&mut asked, &expr).unwrap();
    let exporters = exporters();
    let mut problems = Vec::new();
    if asked.selectors.is_empty() {
        problems.push("it asks for no metric".into());
    }
    let mut labels = asked.labels;
    let mut of_these = String::new();
    for selector in &asked.selectors {
        let name = selector.name.clone().unwrap_or_default();
        let Some(exporter) = exporters.iter().find(|exporter| exporter.series().contains(&name)) else {
            problems.push(format!("nobody exports {name}"));
            continue;
        };
        of_these.push_str(&exporter.says);
        for matcher in &selector.matchers.matchers {
            labels.insert(matcher.name.clone());
            let values = match &matcher.op {
                MatchOp::Equal | MatchOp::NotEqual => vec![matcher.value.as_str()],
                MatchOp::Re(_) | MatchOp::NotRe(_) => matcher.value.split('|').collect(),
            };
            for value in values.into_iter().filter(|value| !value.starts_with('$')) {
                if !exporter.says.contains(&format!("\"{value}\"")) {
                    problems.push(format!("{name} never has {}=\"{value}\"", matcher.name));
                }
            }
        }
    }
    let unknown = labels.iter().filter(|label| !GIVEN.contains(&label.as_str()));
    problems.extend(
        unknown.filter(|label| !of_these.contains(&format!("\"{label}\""))).map(|label| format!("no label {label}")),
    );
    problems
}

/// By where they are.
fn queries() -> BTreeMap<String, String> {
    let mut queries = BTreeMap::new();
    let alerts: Value = serde_yaml::from_str(&read("charts/durable-server/files/alerts.yaml")).unwrap();
    for rule in alerts["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        queries.insert(format!("alert {}", rule["alert"]), rule["expr"].as_str().unwrap().to_owned());
    }
    let dashboard: Value = serde_json::from_str(&read("charts/durable-server/files/dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap().to_owned();
            queries.insert(format!("panel {} {}", panel["title"], target["refId"]), expr);
        }
    }
    queries
}

#[test]
fn every_query_of_the_chart_is_answered_by_what_is_exported() {
    let queries = queries();
    assert!(queries.len() > 30, "only {} queries found", queries.len());
    let wrong: Vec<_> = queries
        .iter()
        .map(|(place, query)| (place, query, problems(query)))
        .filter(|(.., problems)| !problems.is_empty())
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_query_that_nothing_answers_is_found() {
    for (query, expected) in [
        ("sum(durable_operator_session)", "nobody exports durable_operator_session"),
        ("durable_agent_hold_seconds > 1", "nobody exports durable_agent_hold_seconds"),
        ("rate(durable_operator_drains_total{result=\"fail\"}[5m])", "never has result=\"fail\""),
        ("sum by (reasons) (rate(durable_agent_handoffs_total[5m]))", "no label reasons"),
        ("sum(durable_operator_sessions", ""),
        ("vector(1)", "it asks for no metric"),
    ] {
        let problems = problems(query);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{query}: {problems:?}");
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do() {
    let alerts: Value = serde_yaml::from_str(&read("charts/durable-server/files/alerts.yaml")).unwrap();
    for rule in alerts["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("critical" | "warning")), "{rule}");
        for annotation in ["summary", "description"] {
            assert!(rule["annotations"][annotation].as_str().is_some_and(|text| text.len() > 20), "{rule}");
        }
    }
}
