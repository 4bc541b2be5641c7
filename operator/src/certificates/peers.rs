//! Certificates for agents, by which they know each other: each names a pod and its pool, and ends within a day. An agent
//! asks for the next one long before, so that handoffs and requests go on when the operator is away.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use tokio::sync::mpsc;
use tonic::Status;
use wire::{
    identity::PodIdentity,
    session::{self, ToAgent, to_agent},
};

use super::{
    Certificates, Problem,
    make::{self, Kept},
};

/// A certificate's life. What is left of it after [`RENEW_AFTER`] is how long an operator may be away at least.
pub const PEER_LIFE: Duration = Duration::from_hours(24);
/// Agents ask for the next certificate then.
pub const RENEW_AFTER: Duration = Duration::from_hours(8);
/// Longest public key: one of P-256 is of 91 bytes.
const MAX_KEY: usize = 256;
/// Agents that wait for theirs. Those who come in vain ask again.
const WAITING: usize = 4_096;

/// One certificate that is asked for.
#[derive(Debug)]
pub struct Request {
    /// Whom it is to name: the token's pod, and the pool that the API server says it is of.
    pub pod: PodIdentity,
    /// The agent's public key.
    pub public_key: Bytes,
    /// The agent.
    pub answer: mpsc::Sender<Result<ToAgent, Status>>,
}

/// The way to [`issue_all`], and its end of it.
#[must_use]
pub fn requests() -> (mpsc::Sender<Request>, mpsc::Receiver<Request>) {
    mpsc::channel(WAITING)
}

/// Answers requests, one after the other, until nobody can ask any more.
pub async fn issue_all(certificates: Arc<Certificates>, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { pod, public_key, answer }) = requests.recv().await {
        match issue(&certificates.kept(), &pod, &public_key, SystemTime::now()) {
            // A full or closed way is a session that ends; the next one asks again.
            Ok(issued) => drop(answer.try_send(Ok(ToAgent { body: Some(to_agent::Body::Certificate(issued)) }))),
            Err(problem) => tracing::warn!(%pod, %problem, "an agent gets no certificate"),
        }
    }
}

/// A certificate for this pod's key.
pub fn issue(
    kept: &Kept,
    pod: &PodIdentity,
    public_key: &[u8],
    now: SystemTime,
) -> Result<session::Certificate, Problem> {
    let refused = |why: &str| Problem::Crypto(why.to_owned());
    if pod.to_string().parse().as_ref() != Ok(pod) {
        return Err(refused("this pod's names cannot be written as a URI"));
    }
    if public_key.len() > MAX_KEY {
        return Err(refused("the public key is too long"));
    }
    let key = SubjectPublicKeyInfo::from_der(public_key)?;
    if *key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(refused("the public key is not one of ECDSA P-256"));
    }
    let authority = make::authority_for(kept, now, PEER_LIFE)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let mut params = make::lasting(CertificateParams::default(), "durable-server agent", now, PEER_LIFE)?;
    params.subject_alt_names = vec![SanType::URI(pod.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(session::Certificate {
        certificate: params.signed_by(&key, &issuer)?.der().to_vec().into(),
        authorities: kept.bundle.clone(),
        renew_after_s: u32::try_from(RENEW_AFTER.as_secs()).unwrap_or(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use handoff::PodUid;
    use x509_parser::parse_x509_certificate;

    use super::*;

    fn pod() -> PodIdentity {
        PodIdentity { namespace: "ns".into(), pool: "rooms".into(), pod_uid: PodUid("u1".into()) }
    }

    fn kept(now: SystemTime) -> Kept {
        make::renew(None, &[], now).ok().flatten().expect("there was none")
    }

    #[test]
    fn a_certificate_names_its_pod_alone_and_ends_within_a_day() {
        let (now, key) = (SystemTime::now(), KeyPair::generate().unwrap());
        let issued = issue(&kept(now), &pod(), &key.subject_public_key_info(), now).unwrap();
        assert_eq!(PodIdentity::of_certificate(&issued.certificate), Ok(pod()));
        let (_, parsed) = parse_x509_certificate(&issued.certificate).unwrap();
        let left = parsed.validity().time_to_expiration().unwrap();
        assert!(left <= PEER_LIFE && left > RENEW_AFTER * 2, "{left}");
        assert!(!parsed.is_ca());
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    }

    #[test]
    fn no_other_kind_of_key_and_no_doubtful_name_is_signed() {
        let now = SystemTime::now();
        let kept = kept(now);
        let key = KeyPair::generate().unwrap().subject_public_key_info();
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap().subject_public_key_info();
        for bad in [&other[..], &[], &vec![0; MAX_KEY + 1], &key[..key.len() - 1]] {
            assert!(issue(&kept, &pod(), bad, now).is_err(), "{} bytes", bad.len());
        }
        let doubtful = PodIdentity { pool: "rooms/pod/u2".into(), ..pod() };
        assert!(issue(&kept, &doubtful, &key, now).is_err());
    }
}
