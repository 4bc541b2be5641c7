//! The pools, for the webhook: as the API server last told them, and asked for when one is not known (yet).

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use crds::{DurableServerPool, DurableServerPoolSpec, settings};
use futures::StreamExt;
use kube::{
    Api, Client,
    core::DeserializeGuard,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, watcher},
    },
};
use tokio::{task::JoinSet, time::timeout};

use super::Refusal;
use crate::watch;

/// For the one question to the API server that an admission may cost.
const LOOKUP: Duration = Duration::from_secs(3);

/// What of a pool an injection needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Secret of the store's keys.
    pub credentials: Option<String>,
    /// How long a drain may take.
    pub drain: Duration,
    /// What the host needs after it.
    pub host_stop: Duration,
}

impl Pool {
    /// Of this pool's spec.
    pub fn new(name: &str, spec: &DurableServerPoolSpec) -> Result<Self, Refusal> {
        let settings = settings::pool(spec)
            .map_err(|invalid| Refusal::BadPool { pool: name.into(), problem: invalid.to_string() })?;
        Ok(Self {
            name: name.into(),
            credentials: spec.store.s3.credentials_secret_ref.as_ref().map(|secret| secret.name.clone()),
            drain: settings.drain.timeout,
            host_stop: settings.host_stop_time,
        })
    }
}

/// Whoever knows the pools.
#[async_trait]
pub trait Pools: Send + Sync + 'static {
    /// The pool of this name in this namespace.
    async fn find(&self, namespace: &str, name: &str) -> Result<Pool, Refusal>;
}

type Guarded = DeserializeGuard<DurableServerPool>;

/// The pools of the cluster.
pub struct KubePools {
    known: Vec<Store<Guarded>>,
    client: Client,
}

impl KubePools {
    /// Watches those of these namespaces; without any, those of all. The tasks end never.
    pub fn watch(client: Client, namespaces: &[String], tasks: &mut JoinSet<()>) -> Self {
        let apis = watch::apis::<Guarded>(&client, namespaces);
        Self { known: apis.into_iter().map(|api| follow(api, tasks)).collect(), client }
    }

    /// A pool may have been made just now.
    async fn ask(&self, namespace: &str, name: &str) -> Result<Option<Arc<Guarded>>, String> {
        let api = Api::<Guarded>::namespaced(self.client.clone(), namespace);
        let answered = timeout(LOOKUP, api.get_opt(name)).await;
        let found = answered.map_err(|_| format!("no answer from the API server within {LOOKUP:?}"))?;
        found.map(|found| found.map(Arc::new)).map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Pools for KubePools {
    async fn find(&self, namespace: &str, name: &str) -> Result<Pool, Refusal> {
        let none = || Refusal::NoPool { pool: name.into(), namespace: namespace.into() };
        if !is_object_name(name) {
            return Err(none());
        }
        let reference = ObjectRef::new(name).within(namespace);
        let known = self.known.iter().find_map(|known| known.get(&reference));
        let found = match known {
            Some(pool) => Some(pool),
            None => self
                .ask(namespace, name)
                .await
                .map_err(|problem| Refusal::UnknownPool { pool: name.into(), problem })?,
        };
        match &found.ok_or_else(none)?.0 {
            Ok(pool) => Pool::new(name, &pool.spec),
            Err(invalid) => Err(Refusal::BadPool { pool: name.into(), problem: invalid.error.clone() }),
        }
    }
}

fn follow(api: Api<Guarded>, tasks: &mut JoinSet<()>) -> Store<Guarded> {
    let (known, writer) = reflector::store::<Guarded>();
    let pools = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    tasks.spawn(pools.for_each(|seen| {
        if let Err(error) = seen {
            tracing::debug!(%error, "watch of the pools failed, beginning again");
        }
        std::future::ready(())
    }));
    known
}

/// Labels are checked only after admission; what is no name must not become part of a URL.
fn is_object_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    !name.is_empty() && name.len() <= 63 && name.bytes().all(plain) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        for good in ["rooms", "rooms-2", "a.b"] {
            assert!(is_object_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../secrets", "a/b", "Rooms", "a b", &"a".repeat(64)] {
            assert!(!is_object_name(bad), "{bad}");
        }
    }
}
