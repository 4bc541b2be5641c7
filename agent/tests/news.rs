//! A pod that is emptied tells other gateways where its servers went, over real connections on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use agent::{
    agent::{Agent, StandingPlan, Target},
    config::Config,
    gateway::{Gateway, Identity, Limits},
    host::HostClient,
    metrics::Metrics,
    news, peer,
    routes::{DirectoryEntry, DirectoryUpdate, Found, Route, Routes, Way},
};
use clap::Parser;
use handoff::{Epoch, PodUid, ServerId, ServerUid, drain::Plan};
use tokio::net::TcpListener;

fn agent(pod: &str) -> Arc<Agent> {
    let needed = ["--pod", pod, "--namespace", "n", "--pod-uid", pod, "--pod-ip", "127.0.0.1", "--pool", "p"];
    let config =
        Config::parse_from(["durable-agent"].iter().chain(&needed).chain(&["--operator", "https://127.0.0.1:1"]));
    let (routes, metrics) = (Routes::new(PodUid(pod.into())), Metrics::new().unwrap());
    let host = HostClient::new("/nonexistent".as_ref(), 1 << 20);
    let address = "127.0.0.1:7070".parse().unwrap();
    let identity = Identity { pod: pod.into(), pod_uid: PodUid(pod.into()), address };
    let gateway = Gateway::new(identity, Limits::default(), routes.clone(), host.clone(), metrics.clone());
    Agent::new(config, routes, gateway, host, metrics)
}

fn room(name: &str) -> ServerId {
    ServerId { namespace: "n".into(), name: name.into(), uid: ServerUid(format!("uid-{name}")) }
}

/// The operator's last word: the emptied pod has them all.
fn directory(agent: &Agent, names: &[String]) {
    let entry = |name: &String| DirectoryEntry {
        name: name.clone(),
        uid: room(name).uid,
        epoch: Epoch(1),
        pod_uid: PodUid("emptied".into()),
        gateway: Some("10.0.0.1:7070".parse().unwrap()),
    };
    let entries = names.iter().map(entry).collect();
    agent.routes.apply(DirectoryUpdate { version: 1, complete: true, entries, removed: Vec::new() });
}

fn way(agent: &Agent, name: &str) -> Option<Way> {
    match agent.routes.find(name) {
        Found::Known(route) => Some(Route::clone(&route).way),
        Found::Unknown | Found::NotYet => None,
    }
}

async fn listening(agent: &Arc<Agent>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(peer::serve(agent.clone(), listener));
    address
}

fn target(pod: &str, peer: SocketAddr) -> Target {
    Target { pod: PodUid(pod.into()), name: pod.into(), peer, gateway: "10.0.0.2:7070".parse().unwrap() }
}

fn plan(agent: &Agent, targets: &[Target]) {
    let targets: HashMap<_, _> = targets.iter().map(|target| (target.pod.clone(), target.clone())).collect();
    agent.plan.send_replace(Some(StandingPlan { plan: Plan::default(), targets, at: tokio::time::Instant::now() }));
}

#[tokio::test]
async fn other_gateways_learn_where_servers_went() {
    let (emptied, other) = (agent("emptied"), agent("other"));
    let names: Vec<String> = (0..2_500).map(|number| format!("room-{number}")).collect();
    directory(&other, &names);
    let gone: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let took_them = target("took", gone);
    plan(&emptied, &[took_them.clone(), target("other", listening(&other).await)]);
    for name in &names {
        emptied.news.moved(&room(name), Epoch(2), &took_them);
    }
    news::spread(&emptied).await;
    let there = Way::There { pod: took_them.pod, gateway: took_them.gateway };
    for name in &names {
        assert_eq!(way(&other, name), Some(there.clone()), "{name}");
    }
}

#[tokio::test]
async fn news_for_another_pod_or_of_unknown_servers_change_nothing() {
    let (emptied, other) = (agent("emptied"), agent("other"));
    directory(&other, &["known".into()]);
    let before = way(&other, "known");
    let address = listening(&other).await;
    plan(&emptied, &[target("had this address before", address)]);
    emptied.news.moved(&room("known"), Epoch(2), &target("took", address));
    news::spread(&emptied).await;
    assert_eq!(way(&other, "known"), before);

    plan(&emptied, &[target("other", address)]);
    emptied.news.moved(&room("unknown"), Epoch(2), &target("took", address));
    news::spread(&emptied).await;
    assert_eq!(way(&other, "unknown"), None);
}
