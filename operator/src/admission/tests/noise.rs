//! What no API server sends: every answer is a sentence or a pod, and never the end of the webhook.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use proptest::{prelude::*, sample::Index};
use serde_json::Map;
use tokio::runtime::Runtime;
use tonic::codegen::Service;

use super::*;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

struct OnePool;

#[async_trait]
impl Pools for OnePool {
    async fn find(&self, _: &str, _: &str) -> Result<Pool, Refusal> {
        Ok(pool())
    }
}

fn posted(body: Vec<u8>) -> (StatusCode, Vec<u8>) {
    let mut routes: Router = routes(Arc::new(OnePool), agent());
    RUNTIME.block_on(async {
        let answer = routes.call(Request::post("/inject").body(Body::from(body)).unwrap()).await.unwrap();
        (answer.status(), to_bytes(answer.into_body(), usize::MAX).await.unwrap().to_vec())
    })
}

/// Any small JSON, with the names and words that mean something in a pod among the others.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        "[a-z/-]{0,9}",
        prop::sample::select(vec!["durable-agent", "durable", "istio-proxy", "Always", "keep", "/run/durable", "name"])
            .prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.prop_map(Value::from),
    ];
    let field =
        prop::sample::select(vec!["name", "env", "value", "containers", "lifecycle", "preStop", "httpGet", "path"]);
    leaf.prop_recursive(3, 12, 3, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((field.clone(), inner), 0..3).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
            }),
        ]
    })
}

/// The pointers to all parts of a value.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    places.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                places_of(field, at, &name.replace('~', "~0").replace('/', "~1"), places);
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                places_of(item, at, &n.to_string(), places);
            }
        }
        _ => {}
    }
}

fn places_of(value: &Value, at: &str, name: &str, all: &mut Vec<String>) {
    places(value, &format!("{at}/{name}"), all);
}

/// A pod, injected already or not, in which some parts are something else.
fn any_pod() -> impl Strategy<Value = Value> {
    let changes = prop::collection::vec((any::<Index>(), any_json()), 0..4);
    (any::<bool>(), changes).prop_map(|(is_injected, changes)| {
        let mut pod = if is_injected { injected(&pod()) } else { pod() };
        for (at, new) in changes {
            let mut all = Vec::new();
            places(&pod, "", &mut all);
            let place: &String = at.get(&all);
            if let Some(place) = pod.pointer_mut(place) {
                *place = new;
            }
        }
        pod
    })
}

proptest! {
    #[test]
    fn a_pod_of_any_shape_is_injected_for_good_or_refused_with_a_sentence(pod in any_pod()) {
        match inject(&pod, &pool(), &agent(), HOOK) {
            Ok(once) => prop_assert_eq!(inject(&once, &pool(), &agent(), OTHER), Ok(once)),
            Err(refusal) => prop_assert!(!refusal.to_string().is_empty()),
        }
    }

    #[test]
    fn a_review_of_any_pod_is_answered(pod in any_pod()) {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "operation": "CREATE", "namespace": "chat", "dryRun": false,
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "resource": { "group": "", "version": "v1", "resource": "pods" },
                "userInfo": {}, "object": pod, "oldObject": null,
            },
        });
        let (status, body) = posted(review.to_string().into_bytes());
        if status == StatusCode::OK {
            let answer: Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(&answer["response"]["uid"], "u-1");
            prop_assert!(answer["response"]["allowed"].is_boolean());
        } else {
            prop_assert_eq!(status, StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn noise_is_no_review(body in prop::collection::vec(any::<u8>(), 0..2000), json in any_json()) {
        prop_assert_eq!(posted(body).0, StatusCode::BAD_REQUEST);
        prop_assert_eq!(posted(json.to_string().into_bytes()).0, StatusCode::BAD_REQUEST);
    }
}

#[test]
fn what_is_nested_without_end_is_no_review() {
    let deep = [b"[".repeat(1 << 20), b"]".repeat(1 << 20)].concat();
    assert_eq!(posted(deep).0, StatusCode::BAD_REQUEST);
}
