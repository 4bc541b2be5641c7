//! Who is taken for a peer, and what is taken from one.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::{
    io,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use agent::credentials::{Credentials, NotReached};
use handoff::{Epoch, PodUid, ServerId, ServerUid};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{Code, Status};
use wire::{
    identity::PodIdentity,
    peer::{Offer, from_target},
};

use support::{
    Authority, LIFE, Logs, OPERATOR, Stranger, pod,
    served::{SOON, Served, listen},
};

fn offer(source: &str) -> Offer {
    Offer {
        protocol: wire::PROTOCOL,
        namespace: "ns".into(),
        name: "lobby".into(),
        uid: "u1".into(),
        epoch: 3,
        source_pod_uid: source.into(),
        target_pod_uid: "b".into(),
        ..Offer::default()
    }
}

fn rejection(answer: Result<from_target::Body, Status>) -> String {
    match answer.unwrap() {
        from_target::Body::Reject(reason) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn only_a_pod_of_the_pool_with_a_certificate_that_holds_is_a_peer() {
    let b = Served::start().await;
    let logs = Logs::gather();
    let holds = SystemTime::now() + LIFE;
    let stranger = Authority::new();
    let refused = [
        (Stranger::nameless(), "certificate"),
        (Stranger::shows(&OPERATOR, &PodIdentity { pool: "games".into(), ..pod("x") }, holds), "another pool"),
        (Stranger::shows(&OPERATOR, &PodIdentity { namespace: "other".into(), ..pod("x") }, holds), "another pool"),
        (Stranger::shows(&stranger, &pod("x"), holds), "invalid peer certificate: BadSignature"),
        (Stranger::shows(&OPERATOR, &pod("x"), SystemTime::now() - Duration::from_mins(1)), "expired"),
    ];
    for (stranger, why) in refused {
        let before = logs.lines().len();
        assert!(stranger.hears(b.peers).await.is_err(), "{why}");
        let lines = logs.lines_after(before).await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(why), "{why}: {lines:?}");
    }
    assert!(plain(b.peers).await.is_err(), "plain HTTP/2");
    assert!(Stranger::shows(&OPERATOR, &pod("x"), holds).hears(b.peers).await.is_ok());
}

/// Whether HTTP/2 without TLS is answered.
async fn plain(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await??;
    // A TLS alert is none.
    if answer.first().is_none_or(|first| *first == 21) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
}

#[tokio::test]
async fn a_source_speaks_only_with_the_pod_that_it_means() {
    let b = Served::start().await;
    let a = OPERATOR.credentials(&pod("a"));
    a.connect(b.peers, &PodUid("b".into())).await.unwrap();
    let other = a.connect(b.peers, &PodUid("c".into())).await;
    assert!(matches!(&other, Err(NotReached::Another(uid)) if uid == "b"), "{other:?}");

    let elsewhere = OPERATOR.credentials(&PodIdentity { pool: "games".into(), ..pod("a") });
    let refused = elsewhere.connect(b.peers, &PodUid("b".into())).await.unwrap_err();
    assert!(refused.to_string().contains("another pool"), "{refused}");

    let nothing_yet = Credentials::new(pod("a")).unwrap();
    let none = nothing_yet.connect(b.peers, &PodUid("b".into())).await;
    assert!(matches!(none, Err(NotReached::NoCertificate)), "{none:?}");
}

#[tokio::test]
async fn an_offer_counts_for_the_pod_that_makes_it_alone() {
    let b = Served::start().await;
    let logs = Logs::gather();
    let refused = b.offer(OPERATOR.credentials(&pod("c")), offer("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert_eq!(logs.lines().len(), 1, "{:?}", logs.lines());
    // Its own is judged by what is in it.
    let reason = rejection(b.offer(OPERATOR.credentials(&pod("a")), offer("a")).await);
    assert!(reason.contains("no session with the operator"), "{reason}");
}

#[tokio::test]
async fn an_offer_that_is_said_again_later_is_refused() {
    let b = Served::start().await;
    let id = ServerId { namespace: "ns".into(), name: "lobby".into(), uid: ServerUid("u1".into()) };
    // It came here with this very offer, and has gone on since.
    b.agent.routes.set_here(&id, Epoch(4));
    b.agent.routes.release_local(&id);
    let reason = rejection(b.offer(OPERATOR.credentials(&pod("a")), offer("a")).await);
    assert!(reason.contains("epoch that is over"), "{reason}");
    let next = rejection(b.offer(OPERATOR.credentials(&pod("a")), Offer { epoch: 4, ..offer("a") }).await);
    assert!(!next.contains("epoch that is over"), "{next}");
}

#[tokio::test]
async fn a_new_certificate_ends_no_connection_and_is_shown_by_the_next() {
    let (a, b) = (OPERATOR.credentials(&pod("a")), OPERATOR.credentials(&pod("b")));
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(b.server_config());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut tls = acceptor.accept(tcp).await.unwrap();
            tokio::spawn(async move {
                let mut said = [0; 1];
                while tls.read_exact(&mut said).await.is_ok() {
                    tls.write_all(&said).await.unwrap();
                }
            });
        }
    });
    let uid = PodUid("b".into());
    let mut before = a.connect(address, &uid).await.unwrap();
    for credentials in [&a, &b] {
        assert!(credentials.to_ask(tokio::time::Instant::now()).is_none(), "it has just been given one");
    }
    let shown =
        |tls: &tokio_rustls::client::TlsStream<TcpStream>| tls.get_ref().1.peer_certificates().unwrap().to_vec();
    let old = shown(&before);
    OPERATOR.renew(&a, &pod("a"));
    OPERATOR.renew(&b, &pod("b"));
    let after = a.connect(address, &uid).await.unwrap();
    assert_ne!(shown(&after), old);
    before.write_all(b"x").await.unwrap();
    assert_eq!(timeout(SOON, before.read_u8()).await.unwrap().unwrap(), b'x');
}

#[tokio::test]
async fn a_certificate_for_another_pod_or_key_changes_nothing() {
    let a = OPERATOR.credentials(&pod("a"));
    let other = Credentials::new(pod("a")).unwrap();
    let request = other.to_ask(tokio::time::Instant::now()).unwrap();
    let holds = SystemTime::now() + LIFE;
    for (issued, why) in [
        (OPERATOR.issue(&pod("a"), &request, holds), "another key"),
        (OPERATOR.issue(&pod("c"), &request, holds), "another pod"),
        (wire::session::Certificate::default(), "nothing"),
    ] {
        assert!(a.install(&issued).is_err(), "{why}");
    }
    let b = Served::start().await;
    a.connect(b.peers, &PodUid("b".into())).await.unwrap();
}

#[tokio::test]
async fn a_forged_hook_call_begins_no_drain() {
    let b = Served::start().await;
    for path in ["/prestop", "/prestop/", "/prestop/0123456789abcdee", "/prestop/0123456789abcdef/", "/prestop/%30"] {
        let answer = b.ask(&format!("GET {path} HTTP/1.1\r\nhost: b\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    assert!(!b.agent.draining.is_draining());
    let answer = b.ask("GET /prestop/0123456789abcdef HTTP/1.1\r\nhost: b\r\n\r\n").await;
    assert!(answer.contains("drained") && b.agent.draining.is_draining(), "{answer}");
}

#[tokio::test]
async fn the_hooks_port_reads_no_body() {
    let b = Served::start().await;
    let answer = b.ask(&format!("GET /livez HTTP/1.1\r\nhost: b\r\ncontent-length: {}\r\n\r\nxxx", 1u64 << 30)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
