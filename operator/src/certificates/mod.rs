//! The operator's certificates: an authority and a serving certificate, made here or by cert-manager, kept in a Secret
//! of the operator's namespace, and renewed while connections stay. All replicas use the same.
//!
//! ```text
//!  Secret ──read, every minute──► make: renew? ──create or replace, if nobody else did──► Secret
//!                                      └──► the bundle to the API server, the key to every listener's next handshake
//! ```

mod make;
pub mod peers;
mod secret;
mod trust;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use kube::{Api, Client};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::args::{Args, TlsMaker};

pub use make::{AUTHORITY_LIFE, Kept, SERVING_LIFE, renew};
pub use secret::{KubeSecret, Secrets, Written};
pub use trust::WebhookTrust;

/// Between two looks at the Secret.
const CHECK: Duration = Duration::from_mins(1);
/// At the start: between two tries, and for how long, since cert-manager or the API server may be starting too.
const RETRY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_mins(1);
/// Lost races until something else must be wrong.
const TRIES: usize = 5;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The API server said no.
    #[error("the API server: {0}")]
    Api(#[source] Box<kube::Error>),
    /// The API server said nothing.
    #[error("the API server did not answer within {CALL:?}", CALL = secret::CALL)]
    Late,
    /// The Secret is none of ours.
    #[error("the Secret of the certificates cannot be used: {0}; delete it, and it will be made again")]
    Unreadable(String),
    /// cert-manager has not made it.
    #[error("the Secret of the certificates is not there: cert-manager has to make it; look at its Certificate")]
    Missing,
    /// Others kept writing it.
    #[error("the Secret of the certificates changed {TRIES} times while it was being written; it will be tried again")]
    Contended,
    /// A certificate could not be made.
    #[error("no certificate can be made: {0}")]
    Crypto(String),
}

impl From<kube::Error> for Problem {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl From<rcgen::Error> for Problem {
    fn from(error: rcgen::Error) -> Self {
        Self::Crypto(error.to_string())
    }
}

/// Who makes the certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maker {
    /// This operator, for these DNS names.
    Operator(Vec<String>),
    /// cert-manager, or whoever else: they are only read.
    Other,
}

/// Those of this operator.
pub async fn of(client: &Client, args: &Args) -> Result<Certificates, Problem> {
    let secret = secret_of(client, &args.tls_secret);
    let configuration = args.webhook.webhook_configuration.clone();
    let (maker, trust) = match args.tls_maker {
        TlsMaker::Operator => {
            (Maker::Operator(args.tls_names.clone()), configuration.map(|name| WebhookTrust::new(client.clone(), name)))
        }
        TlsMaker::Other => (Maker::Other, None),
    };
    Certificates::start(secret, maker, trust).await
}

/// Those whose authority signs the agents' certificates: this operator's own where it makes them itself, or else of a
/// Secret apart. `None`: the own ones.
pub async fn of_peers(client: &Client, args: &Args) -> Result<Option<Certificates>, Problem> {
    let Some(name) = &args.peer_secret else { return Ok(None) };
    let maker = Maker::Operator(args.tls_names.clone());
    Certificates::start(secret_of(client, name), maker, None).await.map(Some)
}

fn secret_of(client: &Client, name: &str) -> Arc<KubeSecret> {
    Arc::new(KubeSecret::new(Api::default_namespaced(client.clone()), name.to_owned()))
}

/// The certificates that hold now.
pub struct Certificates {
    secrets: Arc<dyn Secrets>,
    maker: Maker,
    trust: Option<WebhookTrust>,
    kept: RwLock<Arc<Kept>>,
    serving: Arc<Serving>,
    bundle: watch::Sender<Arc<str>>,
}

impl Certificates {
    /// Reads them, or makes them; waits up to a minute for what they need. `trust` is told of every new bundle.
    pub async fn start(secrets: Arc<dyn Secrets>, maker: Maker, trust: Option<WebhookTrust>) -> Result<Self, Problem> {
        let until = Instant::now() + PATIENCE;
        let (kept, key) = loop {
            let problem = match present(secrets.as_ref(), &maker, SystemTime::now()).await {
                Ok(kept) => match certified(&kept) {
                    Ok(key) => break (kept, key),
                    Err(problem) => problem,
                },
                Err(problem) => problem,
            };
            if Instant::now() >= until {
                return Err(problem);
            }
            tracing::warn!(%problem, "no certificates yet");
            sleep(RETRY).await;
        };
        let serving = Arc::new(Serving(RwLock::new(Arc::new(key))));
        let bundle = watch::Sender::new(kept.bundle.as_str().into());
        let certificates = Self { secrets, maker, trust, kept: RwLock::new(Arc::new(kept)), serving, bundle };
        certificates.publish().await;
        Ok(certificates)
    }

    /// The authorities that others are to trust, PEM. It changes once in years; a new one holds before it is needed.
    #[must_use]
    pub fn bundle(&self) -> watch::Receiver<Arc<str>> {
        self.bundle.subscribe()
    }

    /// All that holds now.
    #[must_use]
    pub fn kept(&self) -> Arc<Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For a listener of these ALPN protocols. Each handshake uses the certificate that holds then.
    pub fn server_config(&self, protocols: &[&str]) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.serving.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Ok(config)
    }

    /// Looks every minute whether they are to be renewed, or were by someone else. Never ends.
    pub async fn keep(self: Arc<Self>) {
        loop {
            sleep(CHECK).await;
            if let Err(problem) = self.refresh(SystemTime::now()).await {
                tracing::warn!(%problem, "certificates cannot be looked after; those in use stay");
            }
            self.publish().await;
        }
    }

    /// Takes what holds at this time, after renewing it if need be.
    pub async fn refresh(&self, now: SystemTime) -> Result<(), Problem> {
        let kept = present(self.secrets.as_ref(), &self.maker, now).await?;
        let key = certified(&kept)?;
        self.bundle.send_replace(kept.bundle.as_str().into());
        *self.kept.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(kept);
        let mut serving = self.serving.0.write().unwrap_or_else(PoisonError::into_inner);
        if serving.cert != key.cert {
            tracing::info!("a new certificate is in use");
        }
        *serving = Arc::new(key);
        Ok(())
    }

    async fn publish(&self) {
        let Some(trust) = &self.trust else { return };
        let bundle = self.bundle.borrow().clone();
        if let Err(problem) = trust.publish(&bundle).await {
            tracing::warn!(%problem, "the webhook's configuration cannot be given the authorities");
        }
    }
}

/// What holds at this time, made if need be. Whoever loses a write uses the winner's.
async fn present(secrets: &dyn Secrets, maker: &Maker, now: SystemTime) -> Result<Kept, Problem> {
    for _ in 0..TRIES {
        let found = secrets.read().await?;
        let Maker::Operator(names) = maker else {
            return found.map(|(_, kept)| kept).ok_or(Problem::Missing);
        };
        let Some(new) = renew(found.as_ref().map(|(_, kept)| kept), names, now)? else {
            return found.map(|(_, kept)| kept).ok_or(Problem::Missing);
        };
        let written = match &found {
            None => secrets.create(&new).await?,
            Some((version, _)) => secrets.replace(version, &new).await?,
        };
        if written == Written::Done {
            tracing::info!("certificates written");
            return Ok(new);
        }
    }
    Err(Problem::Contended)
}

fn certified(kept: &Kept) -> Result<CertifiedKey, Problem> {
    let unreadable = |what: &str, error: &dyn std::fmt::Display| Problem::Unreadable(format!("{what}: {error}"));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(kept.certificate.as_bytes()).collect();
    let chain = chain.map_err(|error| unreadable("tls.crt", &error))?;
    if chain.is_empty() {
        return Err(unreadable("tls.crt", &"no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(kept.key.as_bytes()).map_err(|error| unreadable("tls.key", &error))?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|error| unreadable("tls.key", &error))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[derive(Debug)]
struct Serving(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[cfg(test)]
mod tests;
