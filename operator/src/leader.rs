//! Which of the replicas decides: the one that holds the Lease.
//!
//! The Lease is written only over the version that was read, so of two who would take it one fails. Nobody compares
//! clocks: a holder is over when its Lease has not changed for [`DURATION`] by the looker's own clock, and a holder
//! itself gives up [`GIVE_UP`] after the last renewal *was sent*, which is earlier whatever was late in between.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use failpoint::reach;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// A Lease that did not change for this long is nobody's.
/// Well shorter than a pool's default `recovery.leaseDuration` of 15 s: agents find the next leader while their own leases last.
pub const DURATION: Duration = Duration::from_secs(8);
/// A holder that could not renew for this long is none any more.
pub const GIVE_UP: Duration = Duration::from_secs(5);
/// Between two renewals, and between two looks of those who wait.
const EVERY: Duration = Duration::from_secs(1);
/// One call. Several fit into the time to give up, and one more after it into [`DURATION`].
const CALL: Duration = Duration::from_secs(2);
/// Where agents open their sessions with the holder.
const ADDRESS: &str = "durableserver.io/session-address";

/// Who leads, as far as this replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Leadership {
    /// Not known yet.
    #[default]
    Unknown,
    /// This one.
    Ours,
    /// Another one; agents reach it here.
    Other(Option<SocketAddr>),
}

/// Where the Lease is.
#[async_trait]
pub trait Leases: Send + Sync + 'static {
    /// It, if there is one.
    async fn read(&self) -> kube::Result<Option<Lease>>;
    /// Makes it, or replaces the version that it names. `None`: somebody else was faster.
    async fn write(&self, lease: &Lease) -> kube::Result<Option<Lease>>;
}

/// The API server's.
pub struct KubeLeases {
    api: Api<Lease>,
    name: String,
}

impl KubeLeases {
    /// The Lease of this name.
    #[must_use]
    pub fn new(api: Api<Lease>, name: String) -> Self {
        Self { api, name }
    }
}

#[async_trait]
impl Leases for KubeLeases {
    async fn read(&self) -> kube::Result<Option<Lease>> {
        self.api.get_opt(&self.name).await
    }

    async fn write(&self, lease: &Lease) -> kube::Result<Option<Lease>> {
        let mut lease = lease.clone();
        lease.metadata.name = Some(self.name.clone());
        let written = if lease.metadata.resource_version.is_some() {
            self.api.replace(&self.name, &PostParams::default(), &lease).await
        } else {
            self.api.create(&PostParams::default(), &lease).await
        };
        match written {
            Ok(lease) => Ok(Some(lease)),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What follows from a look at the Lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Write it: it is nobody's, or ours.
    Write,
    /// Somebody else holds it.
    Wait,
}

/// The version that was seen last, and since when.
#[derive(Debug, Default)]
struct Seen(Option<(String, Instant)>);

impl Seen {
    fn look(&mut self, me: &str, lease: Option<&Lease>, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Write };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == me {
            return Step::Write;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        match &self.0 {
            Some((seen, since)) if *seen == version => {
                if now - *since >= DURATION {
                    return Step::Write;
                }
            }
            _ => self.0 = Some((version, now)),
        }
        Step::Wait
    }
}

/// One replica, which would lead.
pub struct Candidate {
    leases: Arc<dyn Leases>,
    me: String,
    address: SocketAddr,
    leadership: watch::Sender<Leadership>,
    leads_until: watch::Sender<Option<Instant>>,
    held: Option<Lease>,
    renewed: Instant,
}

/// Why a leader leads no more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The Lease could not be renewed in time.
    #[error("the Lease could not be renewed for {GIVE_UP:?}; another replica takes over")]
    Late,
    /// It is another's.
    #[error("another replica took the Lease")]
    Taken,
}

impl Candidate {
    /// `me` is this process's own name, unlike that of an earlier one in the same pod.
    #[must_use]
    pub fn new(leases: Arc<dyn Leases>, me: String, address: SocketAddr) -> Self {
        let (leadership, leads_until) = (watch::Sender::default(), watch::Sender::default());
        Self { leases, me, address, leadership, leads_until, held: None, renewed: Instant::now() }
    }

    /// Until when this replica certainly leads; nothing is decided, or answered to an agent, at or after it. `None`: it does
    /// not lead. To be looked at for every act: this process may have slept through the end.
    #[must_use]
    pub fn leads_until(&self) -> watch::Receiver<Option<Instant>> {
        self.leads_until.subscribe()
    }

    /// Who leads, now and later.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Returns once this replica leads.
    pub async fn acquire(&mut self) {
        let mut seen = Seen::default();
        loop {
            let found = timeout(CALL, self.leases.read()).await;
            match found {
                Ok(Ok(lease)) => {
                    if seen.look(&self.me, lease.as_ref(), Instant::now()) == Step::Write {
                        match self.write(lease.as_ref()).await {
                            Ok(true) => {
                                tracing::info!(me = self.me, "leads");
                                self.leadership.send_replace(Leadership::Ours);
                                return;
                            }
                            Ok(false) => {}
                            Err(problem) => tracing::warn!(problem, "the lease cannot be written"),
                        }
                    } else {
                        let other = Leadership::Other(lease.as_ref().and_then(session_address));
                        self.leadership.send_if_modified(|known| std::mem::replace(known, other.clone()) != other);
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "the lease cannot be read"),
                Err(_) => tracing::warn!("the lease could not be read in {} s", CALL.as_secs()),
            }
            sleep(EVERY).await;
        }
    }

    /// Renews; returns when this replica leads no more. Whoever acted for it must then end.
    pub async fn hold(&mut self) -> Lost {
        loop {
            let left = GIVE_UP.saturating_sub(self.renewed.elapsed());
            if left.is_zero() {
                return Lost::Late;
            }
            sleep(EVERY.min(left)).await;
            let lease = self.held.clone();
            match self.write(lease.as_ref()).await {
                Ok(true) => {}
                // Our own write may have been late, and its answer lost: what is there now tells.
                Ok(false) => match timeout(CALL, self.leases.read()).await {
                    Ok(Ok(Some(lease))) if holder(&lease) == Some(&self.me) => self.held = Some(lease),
                    Ok(Ok(_)) => return Lost::Taken,
                    Ok(Err(_)) | Err(_) => {}
                },
                Err(problem) => tracing::warn!(problem, "the lease cannot be renewed"),
            }
        }
    }

    /// Leaves the Lease to whoever looks next.
    pub async fn release(mut self) {
        // Whoever follows must not meet an act of ours.
        self.leads_until.send_replace(None);
        let Some(mut lease) = self.held.take() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
        }
        if let Ok(Ok(_)) = timeout(CALL, self.leases.write(&lease)).await {
            tracing::info!("leads no more");
        } else {
            tracing::warn!("the lease could not be given up; it ends by itself");
        }
    }

    /// Whether it is ours now.
    async fn write(&mut self, found: Option<&Lease>) -> Result<bool, String> {
        let sent = Instant::now();
        let lease = self.lease(found);
        match timeout(CALL, self.leases.write(&lease)).await {
            Ok(Ok(Some(lease))) => {
                reach("operator: lease renewed");
                self.held = Some(lease);
                self.renewed = sent;
                self.leads_until.send_replace(Some(sent + GIVE_UP));
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", CALL.as_secs())),
        }
    }

    fn lease(&self, found: Option<&Lease>) -> Lease {
        let mut lease = found.cloned().unwrap_or_default();
        let before = lease.spec.take().unwrap_or_default();
        let renewed = before.holder_identity.as_ref() == Some(&self.me);
        let now = Some(MicroTime(Timestamp::now()));
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if renewed { before.acquire_time } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!renewed)),
            ..LeaseSpec::default()
        });
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(ADDRESS.to_owned(), self.address.to_string());
        lease
    }
}

fn holder(lease: &Lease) -> Option<&String> {
    lease.spec.as_ref()?.holder_identity.as_ref()
}

fn session_address(lease: &Lease) -> Option<SocketAddr> {
    lease.metadata.annotations.as_ref()?.get(ADDRESS)?.parse().ok()
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
