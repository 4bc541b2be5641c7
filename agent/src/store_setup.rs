//! The pool's settings as the operator sends them: opens the store, and checks it before anything is written there.

use std::{sync::Arc, time::Duration};

use crds::DurableServerPoolSpec;
use store::{
    Lanes, Objects, S3,
    count::Counted,
    pace::{Rates, pace},
    probe::{OwnerError, Probe, claim_prefix, probe},
};
use tokio::time;
use wire::session;

use crate::agent::{Agent, Pool};

/// Between two looks at a store that could not be reached.
const RETRY: Duration = Duration::from_secs(1);

/// Takes new settings. A changed bucket takes effect with the pod's next start: servers here have their logs in the old one.
pub fn settings(agent: &Arc<Agent>, settings: &session::Settings, cluster: String) {
    let spec: DurableServerPoolSpec = match serde_json::from_str(&settings.spec_json) {
        Ok(spec) => spec,
        Err(error) => return refuse(agent, format!("the pool's spec cannot be read: {error}")),
    };
    let resolved = match crds::settings::pool(&spec) {
        Ok(resolved) => resolved,
        Err(invalid) => return refuse(agent, format!("the pool cannot be used: {invalid}")),
    };
    let present = agent.pool.borrow().clone();
    if let Some(present) = present {
        if present.settings.store != resolved.store {
            tracing::warn!("the pool's store changed: it takes effect when this pod is replaced");
        }
        let settings = crds::settings::Pool { store: present.settings.store.clone(), ..resolved };
        agent.pool.send_replace(Some(Pool {
            spec: Arc::new(spec),
            settings: Arc::new(settings),
            store: present.store,
        }));
        return;
    }
    let agent = agent.clone();
    tokio::spawn(async move { open(&agent, spec, resolved, &cluster).await });
}

fn refuse(agent: &Arc<Agent>, problem: String) {
    tracing::warn!(problem, "settings refused");
    if agent.pool.borrow().is_none() {
        agent.problem.send_replace(problem);
    }
}

async fn open(agent: &Arc<Agent>, spec: DurableServerPoolSpec, settings: crds::settings::Pool, cluster: &str) {
    let objects: Arc<dyn Objects> = match S3::from_env(&s3_config(&settings)) {
        Ok(s3) => Arc::new(Counted::new(Arc::new(s3), agent.store_counts.clone())),
        Err(error) => return refuse(agent, format!("the store cannot be opened: {error}")),
    };
    if let Err(problem) = check(agent, objects.as_ref(), &settings.store.prefix, cluster).await {
        return refuse(agent, problem);
    }
    let max_state = settings.max_state_bytes;
    let lanes: Lanes = pace(objects, Rates::default());
    agent.pool.send_if_modified(|pool| {
        let first = pool.is_none();
        if first {
            let (spec, settings) = (Arc::new(spec), Arc::new(settings));
            *pool = Some(Pool { spec, settings, store: lanes });
        }
        first
    });
    agent.host.set_max_state(max_state);
    agent.problem.send_replace(String::new());
    tracing::info!("store is good");
}

/// Returns when the store was found to honour conditions and to be this cluster's; an error needs a person.
async fn check(agent: &Arc<Agent>, objects: &dyn Objects, prefix: &str, cluster: &str) -> Result<(), String> {
    loop {
        let problem = match probe(objects, prefix).await {
            Probe::Ok => match claim_prefix(objects, prefix, cluster).await {
                Ok(()) => return Ok(()),
                Err(OwnerError::Store(error)) if !error.needs_a_person() => error.to_string(),
                Err(error) => return Err(error.to_string()),
            },
            Probe::IgnoresConditions => {
                return Err(
                    "the store ignores `If-None-Match: *`, so no ownership can be fenced on it: use another".into()
                );
            }
            Probe::Denied(problem) => return Err(problem),
            Probe::Unreachable(problem) => problem,
        };
        tracing::warn!(problem, "store not usable yet");
        agent.problem.send_replace(problem);
        time::sleep(RETRY).await;
    }
}

fn s3_config(settings: &crds::settings::Pool) -> store::s3::Config {
    let bucket = &settings.store;
    store::s3::Config {
        bucket: bucket.bucket.clone(),
        region: bucket.region.clone(),
        endpoint: bucket.endpoint.clone(),
        force_path_style: bucket.force_path_style,
        ca_bundle: bucket.ca_bundle.clone(),
    }
}
