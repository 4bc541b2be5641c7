//! Who this agent is to its peers: a key made at its start, which never leaves this process, and a certificate of the
//! operator for it, renewed long before it ends.
//!
//! Both sides of a connection look at what holds at each handshake, so a new certificate needs no new listener and ends no
//! connection. There are no peers without a certificate, and none without TLS: an agent that has none yet, since its
//! operator is older, hands nothing off and passes nothing on, and is not ready.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use handoff::PodUid;
use rcgen::{KeyPair, PublicKeyData};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wire::{identity::PodIdentity, session};

/// When a certificate did not come, it is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// What peers speak within TLS.
const PROTOCOL: &[u8] = b"h2";

/// Why there is no identity, or a certificate is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// No key could be made, or TLS cannot be set up.
    #[error("no key for peers can be made: {0}")]
    Key(String),
    /// The certificate is not for this pod and its key, or cannot be read.
    #[error("the operator's certificate for this pod is not taken: {0}; the one before it stays")]
    Certificate(String),
}

/// Why a peer is not reached.
#[derive(Debug, thiserror::Error)]
pub enum NotReached {
    /// This agent has nothing to show.
    #[error("this agent has no valid certificate for peers: it gets one from the operator")]
    NoCertificate,
    /// There is no such connection.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Somebody else is there.
    #[error("another pod ({0}) has the address")]
    Another(String),
}

/// This agent's key, and what the operator gave it.
pub struct Credentials {
    shared: Arc<Shared>,
    key: KeyPair,
    renewal: Mutex<Renewal>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// When to ask, and when that was done last.
struct Renewal {
    due: Instant,
    asked: Option<Instant>,
}

struct Shared {
    me: PodIdentity,
    provider: Arc<CryptoProvider>,
    held: RwLock<Option<Arc<Held>>>,
}

struct Held {
    certificate: Arc<CertifiedKey>,
    until: SystemTime,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Credentials {
    /// A new key, and no certificate yet.
    pub fn new(me: PodIdentity) -> Result<Arc<Self>, Unusable> {
        let unusable = |error: &dyn fmt::Display| Unusable::Key(error.to_string());
        let key = KeyPair::generate().map_err(|error| unusable(&error))?;
        let provider = Arc::new(ring::default_provider());
        let shared = Arc::new(Shared { me, provider: provider.clone(), held: RwLock::default() });
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(&error))?
            .dangerous()
            .with_custom_certificate_verifier(shared.clone())
            .with_client_cert_resolver(shared.clone());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(&error))?
            .with_client_cert_verifier(shared.clone())
            .with_cert_resolver(shared.clone());
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Connections are made ahead and kept; a resumed one would outlive the certificates that it was made with.
        client.resumption = Resumption::disabled();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let renewal = Mutex::new(Renewal { due: Instant::now(), asked: None });
        Ok(Arc::new(Self { shared, key, renewal, client: Arc::new(client), server: Arc::new(server) }))
    }

    /// This agent's public key: `SubjectPublicKeyInfo`, DER.
    #[must_use]
    pub fn public_key(&self) -> Vec<u8> {
        self.key.subject_public_key_info()
    }

    /// What to ask the operator for, if it is time to, in a session that was opened then.
    #[must_use]
    pub fn to_ask(&self, opened: Instant) -> Option<session::CertificateRequest> {
        let now = Instant::now();
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |asked: Instant| asked >= opened && now < asked + ASK_AGAIN;
        if now < renewal.due || renewal.asked.is_some_and(waits) {
            return None;
        }
        renewal.asked = Some(now);
        Some(session::CertificateRequest { public_key: self.public_key().into() })
    }

    /// Takes a certificate from the operator. From now on it is shown at each handshake.
    pub fn install(&self, issued: &session::Certificate) -> Result<(), Unusable> {
        let refused = |why: &dyn fmt::Display| Unusable::Certificate(why.to_string());
        let named = PodIdentity::of_certificate(&issued.certificate).map_err(|error| refused(&error))?;
        if named != self.shared.me {
            return Err(refused(&format_args!("it names {named}, and this is {}", self.shared.me)));
        }
        let until = wire::identity::ends(&issued.certificate).map_err(|error| refused(&error))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let chain = vec![CertificateDer::from(issued.certificate.to_vec())];
        let certificate = CertifiedKey::from_der(chain, key, &self.shared.provider).map_err(|error| refused(&error))?;
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(issued.authorities.as_bytes()) {
            let authority = authority.map_err(|error| refused(&error))?;
            roots.add(authority).map_err(|error| refused(&error))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), self.shared.provider.clone()).build();
        let clients = clients.map_err(|error| refused(&error))?;
        let held = Held { certificate: Arc::new(certificate), until, roots, clients };
        *self.shared.held.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(held));
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        renewal.due = Instant::now() + Duration::from_secs(issued.renew_after_s.into()).max(ASK_AGAIN);
        renewal.asked = None;
        Ok(())
    }

    /// Whether there was ever a certificate. One that has ended while the operator was away does not make a pod unready:
    /// what is served here goes on.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.shared.held().is_some()
    }

    /// For listeners that peers connect to.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// Connects to a peer, which proves that it is this pod of this pool.
    pub async fn connect(&self, address: SocketAddr, pod: &PodUid) -> Result<TlsStream<TcpStream>, NotReached> {
        let valid = |held: Arc<Held>| SystemTime::now() < held.until;
        if !self.shared.held().is_some_and(valid) {
            return Err(NotReached::NoCertificate);
        }
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let connector = TlsConnector::from(self.client.clone());
        let tls = connector.connect(ServerName::from(address.ip()), tcp).await?;
        let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
        match shown.map(|shown| PodIdentity::of_certificate(shown)) {
            Some(Ok(peer)) if peer.pod_uid == *pod => Ok(tls),
            Some(Ok(peer)) => Err(NotReached::Another(peer.pod_uid.0)),
            Some(Err(_)) | None => Err(NotReached::Another("without a name".into())),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "credentials of {}", self.me)
    }
}

impl Shared {
    fn held(&self) -> Option<Arc<Held>> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn valid(&self) -> Result<Arc<Held>, rustls::Error> {
        self.held().ok_or_else(|| rustls::Error::General("this agent has no certificate for peers yet".into()))
    }

    /// Whether a certificate that an authority of ours signed is one of our pool.
    fn of_our_pool(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let refused = |why: String| Err(rustls::Error::General(why));
        match PodIdentity::of_certificate(certificate) {
            Ok(peer) if peer.is_of_the_pool_of(&self.me) => Ok(()),
            Ok(peer) => refused(format!("a peer of another pool: {peer}")),
            Err(unnamed) => refused(unnamed.to_string()),
        }
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

/// Only TLS 1.3 is spoken between peers.
fn too_old() -> rustls::Error {
    rustls::Error::General("peers speak TLS 1.3".into())
}

impl ResolvesServerCert for Shared {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.held().map(|held| held.certificate.clone())
    }
}

impl rustls::client::ResolvesClientCert for Shared {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.held().map(|held| held.certificate.clone())
    }

    fn has_certs(&self) -> bool {
        self.held().is_some()
    }
}

impl ServerCertVerifier for Shared {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(certificate)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.valid()?.roots,
            between,
            now,
            algorithms,
        )?;
        self.of_our_pool(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Shared {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.valid()?.clients.verify_client_cert(certificate, between, now)?;
        self.of_our_pool(certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
