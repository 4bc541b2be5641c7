use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use super::*;

/// A Lease with versions, as the API server keeps it.
#[derive(Default)]
struct Fake {
    kept: Mutex<Option<(u64, Lease)>>,
    down: AtomicBool,
    /// Takes writes and does not answer.
    mute: AtomicBool,
}

impl Fake {
    fn holder(&self) -> String {
        let kept = self.kept.lock().unwrap();
        kept.as_ref().and_then(|(_, lease)| holder(lease)).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Leases for Arc<Fake> {
    async fn read(&self) -> kube::Result<Option<Lease>> {
        if self.down.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        Ok(self.kept.lock().unwrap().as_ref().map(|(_, lease)| lease.clone()))
    }

    async fn write(&self, lease: &Lease) -> kube::Result<Option<Lease>> {
        if self.down.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let written = {
            let mut kept = self.kept.lock().unwrap();
            let version = kept.as_ref().map(|(version, _)| *version);
            if version.map(|version| version.to_string()) != lease.metadata.resource_version {
                return Ok(None);
            }
            let mut lease = lease.clone();
            let next = version.unwrap_or(0) + 1;
            lease.metadata.resource_version = Some(next.to_string());
            *kept = Some((next, lease.clone()));
            lease
        };
        if self.mute.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        Ok(Some(written))
    }
}

fn candidate(leases: &Arc<Fake>, me: &str) -> Candidate {
    Candidate::new(Arc::new(leases.clone()), me.into(), "10.0.0.1:9443".parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_other_says_where() {
    let leases = Arc::new(Fake::default());
    let (mut a, mut b) = (candidate(&leases, "a"), candidate(&leases, "b"));
    a.acquire().await;
    let leadership = b.leadership();
    assert!(timeout(DURATION * 3, async { tokio::join!(a.hold(), b.acquire()) }).await.is_err());
    assert_eq!(*leadership.borrow(), Leadership::Other("10.0.0.1:9443".parse().ok()));
    assert_eq!(*a.leadership().borrow(), Leadership::Ours);
}

#[tokio::test(start_paused = true)]
async fn of_two_who_take_it_at_once_one_leads() {
    let leases = Arc::new(Fake::default());
    let (mut a, mut b) = (candidate(&leases, "a"), candidate(&leases, "b"));
    let won = tokio::select! {
        () = a.acquire() => "a",
        () = b.acquire() => "b",
    };
    assert_eq!(leases.holder(), won);
}

#[tokio::test(start_paused = true)]
async fn one_that_gives_it_up_is_followed_at_once() {
    let leases = Arc::new(Fake::default());
    let (mut a, mut b) = (candidate(&leases, "a"), candidate(&leases, "b"));
    a.acquire().await;
    a.release().await;
    timeout(Duration::from_millis(1), b.acquire()).await.unwrap();
}

/// However its calls end, it stops before another may begin.
#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_renew_gives_up_before_it_is_followed() {
    for answers_lost in [false, true] {
        let leases = Arc::new(Fake::default());
        let (mut a, mut b) = (candidate(&leases, "a"), candidate(&leases, "b"));
        a.acquire().await;
        let renewed = Instant::now();
        if answers_lost { &leases.mute } else { &leases.down }.store(true, Ordering::Relaxed);
        assert!(matches!(a.hold().await, Lost::Late));
        assert!(renewed.elapsed() <= GIVE_UP + CALL, "{:?}", renewed.elapsed());
        leases.down.store(false, Ordering::Relaxed);
        leases.mute.store(false, Ordering::Relaxed);
        let looked = Instant::now();
        b.acquire().await;
        assert!(looked.elapsed() >= DURATION, "{:?}", looked.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn one_whose_lease_was_taken_knows_it() {
    let leases = Arc::new(Fake::default());
    let mut a = candidate(&leases, "a");
    a.acquire().await;
    {
        let mut kept = leases.kept.lock().unwrap();
        let (version, lease) = kept.as_mut().unwrap();
        *version += 1;
        lease.metadata.resource_version = Some(version.to_string());
        lease.spec.as_mut().unwrap().holder_identity = Some("b".into());
    }
    assert!(matches!(a.hold().await, Lost::Taken));
}

#[tokio::test(start_paused = true)]
async fn it_leads_from_when_a_renewal_was_sent_and_not_after_it_gave_the_lease_up() {
    let leases = Arc::new(Fake::default());
    let mut a = candidate(&leases, "a");
    let until = a.leads_until();
    assert_eq!(*until.borrow(), None);
    a.acquire().await;
    let acquired = Instant::now();
    assert_eq!(*until.borrow(), Some(acquired + GIVE_UP));
    assert!(timeout(EVERY * 5 / 2, a.hold()).await.is_err());
    assert_eq!(*until.borrow(), Some(acquired + EVERY * 2 + GIVE_UP));
    a.release().await;
    assert_eq!(*until.borrow(), None);
}
