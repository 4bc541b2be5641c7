use std::sync::Mutex;

use async_trait::async_trait;
use rustls::{
    ClientConfig, RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Barrier,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DAY: Duration = Duration::from_hours(24);
const NAME: &str = "webhook.system.svc";

fn names() -> Vec<String> {
    vec![NAME.into(), "operator.system.svc".into()]
}

/// A Secret in memory that refuses what Kubernetes refuses. The first readers wait for each other, and so all miss it.
#[derive(Default)]
struct Memory {
    kept: Mutex<Option<(u64, Kept)>>,
    race: Option<Barrier>,
    lost: Mutex<usize>,
}

impl Memory {
    fn racing(replicas: usize) -> Self {
        Self { race: Some(Barrier::new(replicas)), ..Self::default() }
    }

    fn write(&self, expected: Option<&str>, kept: &Kept) -> Written {
        let mut present = self.kept.lock().unwrap();
        let version = present.as_ref().map(|(version, _)| *version);
        if version.map(|version| version.to_string()).as_deref() != expected {
            *self.lost.lock().unwrap() += 1;
            return Written::Lost;
        }
        *present = Some((version.unwrap_or(0) + 1, kept.clone()));
        Written::Done
    }
}

#[async_trait]
impl Secrets for Memory {
    async fn read(&self) -> Result<Option<(String, Kept)>, Problem> {
        let found = self.kept.lock().unwrap().clone();
        if let (None, Some(race)) = (&found, &self.race) {
            race.wait().await;
        }
        Ok(found.map(|(version, kept)| (version.to_string(), kept)))
    }

    async fn create(&self, kept: &Kept) -> Result<Written, Problem> {
        Ok(self.write(None, kept))
    }

    async fn replace(&self, version: &str, kept: &Kept) -> Result<Written, Problem> {
        Ok(self.write(Some(version), kept))
    }
}

async fn start(secrets: &Arc<Memory>) -> Certificates {
    let maker = Maker::Operator(names());
    Certificates::start(secrets.clone(), maker, None).await.unwrap_or_else(|problem| panic!("{problem}"))
}

fn made(kept: Option<&Kept>, now: SystemTime) -> Option<Kept> {
    renew(kept, &names(), now).unwrap_or_else(|problem| panic!("{problem}"))
}

fn authorities(kept: &Kept) -> Vec<&str> {
    kept.bundle.split_inclusive("-----END CERTIFICATE-----\n").collect()
}

/// What a client that trusts this bundle makes of this server: the echo of what it said.
async fn speak(bundle: &str, name: &'static str, server: &Certificates) -> std::io::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = TlsAcceptor::from(Arc::new(server.server_config(&[]).unwrap()));
    let echo = tokio::spawn(async move {
        let mut stream = acceptor.accept(listener.accept().await?.0).await?;
        let mut said = [0; 4];
        stream.read_exact(&mut said).await?;
        stream.write_all(&said).await?;
        stream.shutdown().await
    });
    let mut stream = connector.connect(ServerName::try_from(name).unwrap(), TcpStream::connect(address).await?).await?;
    stream.write_all(b"ping").await?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await?;
    echo.await.unwrap()?;
    Ok(heard)
}

#[tokio::test]
async fn two_replicas_that_start_together_use_the_same_certificates() {
    let secrets = Arc::new(Memory::racing(2));
    let (first, second) = tokio::join!(start(&secrets), start(&secrets));
    assert_eq!(*secrets.lost.lock().unwrap(), 1, "one of them made it in vain");
    assert_eq!(*first.bundle().borrow(), *second.bundle().borrow());
    for server in [&first, &second] {
        assert_eq!(speak(&first.bundle().borrow().clone(), NAME, server).await.unwrap(), b"ping");
    }
}

#[tokio::test]
async fn a_client_accepts_both_services_and_no_other_name_or_authority() {
    let server = start(&Arc::default()).await;
    let bundle = server.bundle().borrow().clone();
    assert_eq!(speak(&bundle, "operator.system.svc", &server).await.unwrap(), b"ping");
    assert!(speak(&bundle, "other.system.svc", &server).await.is_err());
    let stranger = start(&Arc::default()).await;
    assert!(speak(&stranger.bundle().borrow().clone(), NAME, &server).await.is_err());
}

#[tokio::test]
async fn a_renewed_certificate_is_used_by_listeners_that_were_there_before() {
    let now = SystemTime::now();
    let soon = Duration::from_mins(10);
    let kept = made(None, now - SERVING_LIFE * 2 / 3 + soon * 3).expect("there was none");
    let secrets = Arc::new(Memory { kept: Mutex::new(Some((1, kept))), ..Memory::default() });
    let server = start(&secrets).await;
    let listener = server.server_config(&[]).unwrap();
    let before = server.serving.0.read().unwrap().cert.clone();
    server.refresh(now + soon * 2).await.unwrap();
    let after = server.serving.0.read().unwrap().cert.clone();
    assert_ne!(before, after);
    assert!(Arc::ptr_eq(&listener.cert_resolver, &server.server_config(&[]).unwrap().cert_resolver));
    assert_eq!(speak(&server.bundle().borrow().clone(), NAME, &server).await.unwrap(), b"ping");

    // The other replica takes it over at its next look.
    let other = start(&secrets).await;
    assert_eq!(other.serving.0.read().unwrap().cert, after);
}

#[test]
fn nothing_is_renewed_before_two_thirds_of_its_life() {
    let now = SystemTime::now();
    let kept = made(None, now).expect("there was none");
    assert!(made(Some(&kept), now).is_none());
    assert!(made(Some(&kept), now + SERVING_LIFE * 2 / 3 - DAY).is_none());
    let renewed = made(Some(&kept), now + SERVING_LIFE * 2 / 3).expect("due");
    assert!(renewed.certificate != kept.certificate && renewed.key != kept.key);
    assert_eq!(renewed.bundle, kept.bundle, "the authority stays");
}

#[test]
fn another_name_makes_another_certificate() {
    let now = SystemTime::now();
    let kept = made(None, now).expect("there was none");
    let wanted = [names(), vec!["more.system.svc".into()]].concat();
    let renewed = renew(Some(&kept), &wanted, now).ok().flatten().expect("a name is missing");
    assert_eq!(renewed.bundle, kept.bundle);
    assert!(renew(Some(&renewed), &wanted, now).ok().flatten().is_none());
}

#[test]
fn a_new_authority_is_announced_years_before_it_signs() {
    let begin = SystemTime::now();
    let mut kept = made(None, begin).expect("there was none");
    let old = kept.bundle.clone();
    let (mut announced, mut signs) = (None, None);
    let mut now = begin;
    while now < begin + AUTHORITY_LIFE + DAY {
        now += DAY * 30;
        kept = made(Some(&kept), now).unwrap_or(kept);
        if announced.is_none() && authorities(&kept).len() == 2 {
            assert!(kept.bundle.starts_with(&old), "the old one stays in the bundle");
            announced = Some(now);
        }
        if signs.is_none() && !accepted_by(&kept, &old, now) {
            signs = Some(now);
        }
        assert!(accepted_by(&kept, &kept.bundle, now), "what is served is always trusted");
    }
    let (announced, signs) = (announced.unwrap(), signs.unwrap());
    let overlap = signs.duration_since(announced).unwrap();
    assert!(overlap > DAY * 365 * 3, "{} days", overlap.as_secs() / DAY.as_secs());
    assert!(!kept.bundle.contains(&old), "an authority that ended is dropped");
}

/// As a client would judge at this time.
fn accepted_by(kept: &Kept, bundle: &str, now: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(authority.unwrap()).unwrap();
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    let leaf = CertificateDer::from_pem_slice(kept.certificate.as_bytes()).unwrap();
    let now = UnixTime::since_unix_epoch(now.duration_since(std::time::UNIX_EPOCH).unwrap());
    let name = ServerName::try_from(NAME).unwrap();
    verifier.build().unwrap().verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_not_overwritten() {
    let now = SystemTime::now();
    let mut kept = made(None, now).expect("there was none");
    kept.authority_keys.clear();
    assert!(matches!(renew(Some(&kept), &names(), now), Err(Problem::Unreadable(_))));
    let secrets = Arc::new(Memory { kept: Mutex::new(Some((1, kept))), ..Memory::default() });
    let started = Certificates::start(secrets.clone(), Maker::Operator(names()), None).await;
    let problem = started.err().expect("it has no key").to_string();
    assert!(problem.contains("delete it"), "{problem}");
    assert_eq!(secrets.kept.lock().unwrap().as_ref().unwrap().0, 1);
}

#[tokio::test(start_paused = true)]
async fn certificates_of_another_maker_are_waited_for_and_only_read() {
    let secrets = Arc::new(Memory::default());
    let made_elsewhere = made(None, SystemTime::now());
    let late = secrets.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(10)).await;
        let kept = made_elsewhere.map(|kept| Kept { authority_keys: String::new(), ..kept });
        *late.kept.lock().unwrap() = kept.map(|kept| (7, kept));
    });
    let started = Certificates::start(secrets.clone(), Maker::Other, None).await;
    let certificates = started.unwrap_or_else(|problem| panic!("{problem}"));
    certificates.refresh(SystemTime::now() + SERVING_LIFE * 2).await.unwrap();
    assert_eq!(secrets.kept.lock().unwrap().as_ref().unwrap().0, 7);
    let missing = Certificates::start(Arc::new(Memory::default()), Maker::Other, None).await;
    assert!(matches!(missing, Err(Problem::Missing)));
}
