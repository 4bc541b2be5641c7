//! Which pod an agent is, and what it is given to prove it.

use wire::{identity::PodIdentity, session::CertificateRequest};

use super::*;

fn asks() -> from_agent::Body {
    from_agent::Body::Certificate(CertificateRequest { public_key: vec![7; 91].into() })
}

#[test]
fn an_agent_with_another_pods_token_is_refused_by_its_addresses() {
    let mut story = Story::unread();
    for n in [1, 2] {
        let addresses = vec![format!("10.0.0.{n}").parse().unwrap()];
        story.event(Event::Pod(Box::new(Pod { addresses, ..pod(n) })));
    }
    story.read();
    // It shows the token of pod 1 and says truly where it is.
    let identity = Identity { namespace: "ns".into(), pod: "rooms-1".into(), uid: uid(1) };
    for (session, peer, gateway) in [
        (1, "10.0.0.2:7071", "10.0.0.1:7070"),
        (2, "10.0.0.1:7071", "10.0.0.2:7070"),
        (3, "somewhere", "10.0.0.1:7070"),
    ] {
        let (peer_address, gateway_address) = (peer.to_owned(), gateway.to_owned());
        let hello = Hello { protocol: wire::PROTOCOL, peer_address, gateway_address, ..Hello::default() };
        let (id, identity) = (SessionId(session), identity.clone());
        story.event(Event::Open(Box::new(Opening { id, identity, hello, outbox: None })));
        assert!(matches!(&story.closed[..], [(_, Refusal::Address { .. })]), "{:?}", story.closed);
        story.closed.clear();
    }
    story.open(4, 1, vec![]);
    assert_eq!(story.closed, []);
}

#[test]
fn a_certificate_names_the_tokens_pod_and_its_pool_whatever_the_agent_says() {
    let mut story = Story::with_pods(&[1, 2]);
    story.says(2, asks());
    let named = PodIdentity { namespace: "ns".into(), pool: "rooms".into(), pod_uid: uid(2) };
    assert_eq!(story.certified, [(2, named)]);
}

#[test]
fn an_agent_that_asks_without_end_gets_one_now_and_then() {
    let mut story = Story::with_pods(&[1]);
    for _ in 0..1_000 {
        story.says(1, asks());
        story.pass(10);
    }
    assert_eq!(story.certified.len(), 2, "in ten seconds");
    story.says(9, asks());
    assert_eq!(story.certified.len(), 2, "no such session");
}
