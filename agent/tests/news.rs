//! A pod that is emptied tells other gateways where its servers went, over real connections on loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use agent::{
    agent::{Agent, StandingPlan, Target},
    config::Config,
    credentials::Credentials,
    news,
    peer::{self, Peers},
    routes::{DirectoryEntry, DirectoryUpdate, Found, Route, Way},
};
use clap::Parser;
use handoff::{Epoch, PodUid, ServerId, ServerUid, drain::Plan};
use tokio::net::TcpListener;
use tonic::{Code, Status, transport::Endpoint};
use wire::{
    identity::PodIdentity,
    peer::{News, Place, peer_client::PeerClient},
};

use support::{Authority, OPERATOR, pod};

fn agent(uid: &str) -> Arc<Agent> {
    let needed = ["--pod", uid, "--namespace", "ns", "--pod-uid", uid, "--pod-ip", "127.0.0.1", "--pool", "rooms"];
    let config =
        Config::parse_from(["durable-agent"].iter().chain(&needed).chain(&["--operator", "https://127.0.0.1:1"]));
    support::agent(config)
}

fn room(name: &str) -> ServerId {
    ServerId { namespace: "ns".into(), name: name.into(), uid: ServerUid(format!("uid-{name}")) }
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

/// The news that `known` went elsewhere.
fn news_for(uid: &str) -> News {
    let place = Place {
        name: "known".into(),
        uid: room("known").uid.0,
        epoch: 2,
        pod_uid: "took".into(),
        gateway_address: "10.0.0.2:7070".into(),
    };
    News { target_pod_uid: uid.into(), places: vec![place] }
}

/// What the pod `other` answers to it.
async fn tell(from: Arc<Credentials>, address: SocketAddr, news: News) -> Result<(), Status> {
    Peers::new(from).client(&target("other", address), 1 << 20).tell(news).await.map(drop)
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
    let for_another = tell(OPERATOR.credentials(&pod("emptied")), address, news_for("had this address before")).await;
    assert_eq!(for_another.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(way(&other, "known"), before);
    plan(&emptied, &[target("had this address before", address)]);
    emptied.news.moved(&room("known"), Epoch(2), &target("took", address));
    news::spread(&emptied).await;
    assert_eq!(way(&other, "known"), before);

    plan(&emptied, &[target("other", address)]);
    emptied.news.moved(&room("unknown"), Epoch(2), &target("took", address));
    news::spread(&emptied).await;
    assert_eq!(way(&other, "unknown"), None);
}

#[tokio::test]
async fn only_a_pod_of_the_pool_is_believed() {
    let other = agent("other");
    directory(&other, &["known".into()]);
    let before = way(&other, "known");
    let address = listening(&other).await;
    let elsewhere = OPERATOR.credentials(&PodIdentity { pool: "games".into(), ..pod("emptied") });
    let of_another_operator = Authority::new().credentials(&pod("emptied"));
    for (stranger, why) in [(elsewhere, "another pool"), (of_another_operator, "another operator")] {
        assert!(tell(stranger, address, news_for("other")).await.is_err(), "{why}");
    }
    let plain = Endpoint::from_shared(format!("http://{address}")).unwrap();
    assert!(PeerClient::connect(plain).await.unwrap().tell(news_for("other")).await.is_err(), "without TLS");
    assert_eq!(way(&other, "known"), before);

    tell(OPERATOR.credentials(&pod("emptied")), address, news_for("other")).await.unwrap();
    assert_ne!(way(&other, "known"), before);
}
