//! What the operator issues is what agents take, from the request to the handshake.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use agent::credentials::{Credentials, NotReached};
use handoff::PodUid;
use operator::certificates::{
    AUTHORITY_LIFE, Kept,
    peers::{PEER_LIFE, issue},
    renew,
};
use tokio::{net::TcpListener, time::Instant};
use tokio_rustls::TlsAcceptor;
use wire::identity::PodIdentity;

fn pod(uid: &str) -> PodIdentity {
    PodIdentity { namespace: "ns".into(), pool: "rooms".into(), pod_uid: PodUid(uid.into()) }
}

fn authority(kept: Option<&Kept>, now: SystemTime) -> Kept {
    renew(kept, &[], now).ok().flatten().expect("there is nothing new")
}

/// An agent that was given a certificate at this time.
fn agent(kept: &Kept, uid: &str, now: SystemTime) -> Arc<Credentials> {
    let credentials = Credentials::new(pod(uid)).unwrap();
    let request = credentials.to_ask(Instant::now()).unwrap();
    credentials.install(&issue(kept, &pod(uid), &request.public_key, now).ok().unwrap()).unwrap();
    credentials
}

/// Whether `a` reaches `b`, and `b` lets it in.
async fn reaches(a: &Credentials, b: &Credentials) -> Result<(), NotReached> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(b.server_config());
    let accepted = async { Ok(acceptor.accept(listener.accept().await?.0).await?) };
    let uid = PodUid("b".into());
    tokio::try_join!(a.connect(address, &uid), accepted).map(drop)
}

#[tokio::test]
async fn two_agents_of_one_operator_reach_each_other() {
    let now = SystemTime::now();
    let kept = authority(None, now);
    reaches(&agent(&kept, "a", now), &agent(&kept, "b", now)).await.unwrap();
    let stranger = authority(None, now);
    assert!(reaches(&agent(&stranger, "a", now), &agent(&kept, "b", now)).await.is_err());
}

#[tokio::test]
async fn a_certificate_past_its_time_is_shown_to_nobody_and_taken_by_nobody() {
    let now = SystemTime::now();
    let long_ago = now - PEER_LIFE - Duration::from_secs(1);
    let kept = authority(None, long_ago);
    let refused = reaches(&agent(&kept, "a", long_ago), &agent(&kept, "b", now)).await;
    assert!(matches!(refused, Err(NotReached::NoCertificate)), "{refused:?}");
    let refused = reaches(&agent(&kept, "a", now), &agent(&kept, "b", long_ago)).await.unwrap_err().to_string();
    assert!(refused.contains("xpired"), "{refused}");
}

/// While one agent has its certificate of before the change and another of after it.
#[tokio::test]
async fn a_new_authority_parts_nobody() {
    let begin = SystemTime::now() - AUTHORITY_LIFE + PEER_LIFE / 2;
    let old = authority(None, begin);
    // Announced years ago; the old one ends before what it would sign now.
    let both = authority(Some(&old), begin + AUTHORITY_LIFE * 3 / 4);
    let now = SystemTime::now();
    let (before, after) = (agent(&both, "a", now - PEER_LIFE / 2 - Duration::from_mins(1)), agent(&both, "b", now));
    reaches(&before, &after).await.unwrap();
}
