//! What the operator does for agents, for tests: an authority, and certificates for pods.

#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(dead_code, reason = "not every test needs all of it")]

pub mod gated;
pub mod notes;
pub mod served;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, SystemTime},
};

use agent::{
    agent::Agent,
    config::Config,
    credentials::Credentials,
    gateway::{Gateway, Identity, Limits},
    host::HostClient,
    metrics::Metrics,
    routes::Routes,
};
use handoff::PodUid;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, SignatureScheme,
    client::{
        WantsClientCert,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tracing::subscriber::DefaultGuard;
use wire::{
    identity::PodIdentity,
    session::{Certificate, CertificateRequest},
};

/// The operator of all pods of a test.
pub static OPERATOR: LazyLock<Authority> = LazyLock::new(Authority::new);

/// What is left of a certificate's life: usual, and none.
pub const LIFE: Duration = Duration::from_hours(1);

pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate that began an hour ago and holds until then.
    pub fn issue(&self, pod: &PodIdentity, request: &CertificateRequest, until: SystemTime) -> Certificate {
        let key = SubjectPublicKeyInfo::from_der(&request.public_key).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = (until - LIFE * 2).into();
        params.not_after = until.into();
        params.subject_alt_names = vec![SanType::URI(pod.to_string().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().to_vec().into();
        Certificate { certificate, authorities: self.pem.clone(), renew_after_s: 60 }
    }

    /// Those of an agent that was given a certificate.
    pub fn credentials(&self, pod: &PodIdentity) -> Arc<Credentials> {
        let credentials = Credentials::new(pod.clone()).unwrap();
        let request = credentials.to_ask(Instant::now()).unwrap();
        credentials.install(&self.issue(pod, &request, SystemTime::now() + LIFE)).unwrap();
        credentials
    }
}

/// An agent of this pod, to which the operator gave a certificate.
pub fn agent(config: Config) -> Arc<Agent> {
    let uid = PodUid(config.pod_uid.clone());
    let (routes, metrics) = (Routes::new(uid.clone()), Metrics::new().unwrap());
    let host = HostClient::new(&config.host_socket(), 1 << 20);
    let address = SocketAddr::from(([127, 0, 0, 1], 7070));
    let identity = Identity { pod: config.pod.clone(), pod_uid: uid, address };
    let credentials = OPERATOR.credentials(&pod(&config.pod_uid));
    let (limits, shown) = (Limits::default(), credentials.clone());
    let gateway = Gateway::new(identity, limits, shown, routes.clone(), host.clone(), metrics.clone());
    Agent::new(config, credentials, routes, gateway, host, metrics)
}

/// A pod of pool `rooms` in namespace `ns`.
pub fn pod(uid: &str) -> PodIdentity {
    PodIdentity { namespace: "ns".into(), pool: "rooms".into(), pod_uid: PodUid(uid.into()) }
}

impl Authority {
    /// Gives them another certificate.
    pub fn renew(&self, credentials: &Credentials, pod: &PodIdentity) {
        // What the agent asks for is in the certificate that it has.
        let request = CertificateRequest { public_key: credentials.public_key().into() };
        credentials.install(&self.issue(pod, &request, SystemTime::now() + LIFE)).unwrap();
    }
}

/// Someone who opens TLS connections and believes whoever answers.
pub struct Stranger(Arc<ClientConfig>);

impl Stranger {
    /// Shows no certificate.
    pub fn nameless() -> Self {
        Self(Arc::new(Self::lax().with_no_client_auth()))
    }

    /// Shows one of this authority, for this pod, until then.
    pub fn shows(authority: &Authority, pod: &PodIdentity, until: SystemTime) -> Self {
        let key = KeyPair::generate().unwrap();
        let issued =
            authority.issue(pod, &CertificateRequest { public_key: key.subject_public_key_info().into() }, until);
        let chain = vec![CertificateDer::from(issued.certificate.to_vec())];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Self(Arc::new(Self::lax().with_client_auth_cert(chain, key).unwrap()))
    }

    fn lax() -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        builder.unwrap().dangerous().with_custom_certificate_verifier(Arc::new(Believes(provider)))
    }

    /// The first byte that is said to it after the handshake: a server that refuses it says none.
    pub async fn hears(&self, address: SocketAddr) -> io::Result<u8> {
        let tcp = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(self.0.clone());
        let mut tls = connector.connect(ServerName::from(address.ip()), tcp).await?;
        timeout(Duration::from_secs(5), tls.read_u8()).await?
    }
}

#[derive(Debug)]
struct Believes(Arc<CryptoProvider>);

impl ServerCertVerifier for Believes {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What is logged on this thread, from `info` on, while this lives.
pub struct Logs(Arc<Mutex<Vec<u8>>>, DefaultGuard);

impl Logs {
    pub fn gather() -> Self {
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let into = written.clone();
        let logs = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::INFO);
        let logs = logs.with_writer(move || Shared(into.clone())).finish();
        Self(written, tracing::subscriber::set_default(logs))
    }

    pub fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    /// The lines after the first `before`, once there are any.
    pub async fn lines_after(&self, before: usize) -> Vec<String> {
        for _ in 0..500 {
            let lines = self.lines();
            if lines.len() > before {
                return lines[before..].to_vec();
            }
            sleep(Duration::from_millis(10)).await;
        }
        Vec::new()
    }
}

struct Shared(Arc<Mutex<Vec<u8>>>);

impl io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
