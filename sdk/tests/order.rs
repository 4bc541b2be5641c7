//! The host contract's control calls as a table: what is called, in which order, and what is answered.
//!
//! A line is `call epoch.attempt words -> status`; `get`, `post` and `snapshot` have no attempt. Words of `start`:
//! `standby`, `v1` or `v9` (another state version), `unknown` (another type), `bad` (a config it cannot load),
//! `broken` (not the checksum's bytes), `none` (no state); of `activate`: `full`, `unchanged`, `wrong` (another
//! mark); of `freeze` and `snapshot`: `since` (the mark that was answered last).

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use http::Method;
use support::{Answer, Harness};

const TABLE: &[(&str, &str)] = &[
    (
        "a server is started, serves its epoch only, and is forgotten",
        "post 1 -> 421; start 1.1 -> 200; post 1 -> 200; get 1 -> 200; get 2 -> 421; get 0 -> 421;
         stop 1.2 -> 200; get 1 -> 421; stop 1.3 -> 200",
    ),
    ("a first start has no state", "start 1.1 none -> 200; snapshot 1 -> 200; snapshot 1 since -> 304"),
    (
        "what cannot be loaded is refused, and may be tried again",
        "start 1.1 unknown -> 422; start 1.2 v9 -> 422; start 1.3 bad -> 422; start 1.4 broken -> 422;
         get 1 -> 421; start 1.5 v1 -> 200; get 1 -> 200",
    ),
    (
        "a server is started once",
        "start 1.1 -> 200; start 1.2 -> 409; start 2.3 standby -> 409; get 1 -> 200; stop 2.4 -> 200; start 2.5 -> 200",
    ),
    (
        "a frozen server serves nothing until thawed, or for ever",
        "start 1.1 -> 200; freeze 1.2 -> 200; post 1 -> 421; get 1 -> 421; freeze 1.2 -> 200; thaw 1.3 -> 200;
         post 1 -> 200; freeze 1.4 -> 200; stop 1.5 -> 200; thaw 1.6 -> 404",
    ),
    (
        "a late freeze does not freeze what was thawed",
        "start 1.1 -> 200; freeze 1.2 -> 200; thaw 1.3 -> 200; freeze 1.2 -> 412; post 1 -> 200",
    ),
    ("a thaw overtakes its freeze", "start 1.1 -> 200; thaw 1.3 -> 200; freeze 1.2 -> 412; post 1 -> 200"),
    ("a stop is remembered", "start 1.1 -> 200; stop 1.5 -> 200; start 1.4 -> 412; get 1 -> 421; start 1.5 -> 200"),
    (
        "a stop is remembered even of a server that was never here",
        "stop 2.1 -> 200; start 1.9 -> 412; start 2.0 standby -> 412; start 2.1 standby -> 200",
    ),
    (
        "a lower epoch is late, whatever its attempt",
        "start 3.1 -> 200; freeze 2.9 -> 412; stop 2.9 -> 412; snapshot 2 -> 412; get 3 -> 200",
    ),
    (
        "a higher epoch is not the one that is here",
        "start 1.1 -> 200; snapshot 2 -> 409; freeze 2.1 -> 409; get 1 -> 200",
    ),
    (
        "a standby serves nothing until it is activated",
        "start 2.1 standby -> 200; get 2 -> 421; freeze 2.1 -> 409; thaw 2.1 -> 409; snapshot 2 -> 409;
         activate 2.2 unchanged -> 200; get 2 -> 200; activate 2.2 unchanged -> 409",
    ),
    (
        "a standby of another state is not activated without the state",
        "start 2.1 standby -> 200; activate 2.2 wrong -> 409; get 2 -> 421; activate 2.3 full -> 200; get 2 -> 200",
    ),
    (
        "a standby that is not there is not activated",
        "activate 2.1 unchanged -> 404; start 2.2 -> 200; activate 2.3 full -> 409; stop 2.4 -> 200;
         start 2.5 standby -> 200; stop 2.6 -> 200; activate 2.5 full -> 412; activate 2.7 full -> 404",
    ),
    (
        "a state that the caller has is not sent again",
        "start 1.1 -> 200; snapshot 1 since -> 304; post 1 -> 200; snapshot 1 since -> 200; get 1 -> 200;
         snapshot 1 since -> 304; freeze 1.2 since -> 204; thaw 1.3 -> 200; post 1 -> 200; freeze 1.4 since -> 200;
         snapshot 1 since -> 304; freeze 1.4 since -> 204",
    ),
];

struct Case<'a> {
    harness: &'a Harness,
    uid: String,
    mark: Option<[String; 3]>,
}

impl Case<'_> {
    async fn step(&mut self, call: &str) -> Answer {
        let mut words = call.split_whitespace();
        let verb = words.next().unwrap();
        let (epoch, attempt) = words.next().map(|order| order.split_once('.').unwrap_or((order, "0"))).unwrap();
        let words: Vec<_> = words.collect();
        let number = epoch.parse().unwrap();
        match verb {
            "get" => return self.harness.user(Method::GET, "/", &self.uid, number, "").await,
            "post" => return self.harness.user(Method::POST, "/", &self.uid, number, "more ").await,
            _ => {}
        }
        let has = |word| words.contains(&word);
        let body = "a state";
        let checksum = crc32fast::hash(body.as_bytes()).to_string();
        let mut headers = vec![("durable-epoch", epoch), ("durable-attempt", attempt), ("durable-server", "default/a")];
        match verb {
            "start" | "activate" => {
                let kind = if has("unchanged") || has("wrong") { "unchanged" } else { "full" };
                headers.extend([
                    ("durable-type", if has("unknown") { "chess" } else { "notes" }),
                    ("durable-mode", if has("standby") { "standby" } else { "active" }),
                    ("durable-state", if has("none") { "none" } else { kind }),
                    (
                        "durable-state-version",
                        if has("v1") {
                            "1"
                        } else if has("v9") {
                            "9"
                        } else {
                            "2"
                        },
                    ),
                    ("durable-instance", "77"),
                    ("durable-revision", if has("wrong") { "6" } else { "5" }),
                    ("durable-checksum", if has("broken") { "1" } else { &checksum }),
                ]);
                if has("bad") {
                    headers.push(("durable-config", "eyJiYWQiOnRydWV9"));
                }
            }
            _ => {
                if let Some([instance, revision, _]) = &self.mark
                    && has("since")
                {
                    headers.extend([("durable-instance", instance.as_str()), ("durable-revision", revision.as_str())]);
                }
            }
        }
        let with_body = matches!(verb, "start" | "activate") && !has("none") && !has("unchanged") && !has("wrong");
        let method = if verb == "snapshot" { Method::GET } else { Method::POST };
        let path = format!("servers/{}/{verb}", self.uid);
        let answer = self.harness.control(method, &path, &headers, if with_body { body } else { "" }).await;
        if let Some(mark) = answer.mark() {
            self.mark = Some(mark);
        }
        answer
    }
}

#[tokio::test]
async fn the_table_holds() {
    let harness = Harness::start();
    for (number, (rule, steps)) in TABLE.iter().enumerate() {
        let mut case = Case { harness: &harness, uid: format!("uid-{number}"), mark: None };
        for step in steps.split(';') {
            let (call, expected) = step.trim().split_once(" -> ").unwrap();
            let answer = case.step(call).await;
            assert_eq!(answer.status.as_str(), expected, "{rule}: {call}: {}", answer.body);
            let not_here = answer.headers.contains_key("durable-not-here");
            assert_eq!(not_here, expected == "421", "{rule}: {call}: durable-not-here");
            let refused = answer.status.is_client_error();
            assert!(!refused || !answer.body.is_empty(), "{rule}: {call}: a refusal has a sentence");
        }
    }
}
