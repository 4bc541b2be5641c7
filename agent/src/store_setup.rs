//! The pool's settings as the operator sends them: opens the store, and checks it before anything is written there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crds::{DurableServerPoolSpec, Reason};
use store::{
    Lanes, Objects, S3,
    count::Counted,
    pace::{Rates, pace},
    probe::{OwnerError, Probe, claim_prefix, probe},
};
use tokio::{task::AbortHandle, time};
use wire::session;

use crate::{
    agent::{Agent, Pool},
    problem::Problem,
    session::tell_status,
};

/// Between two looks at a store that could not be reached.
const RETRY: Duration = Duration::from_secs(1);

/// Between two looks at a store that a person must mend.
const RETRY_MENDED: Duration = Duration::from_secs(10);

/// What is known before the store is open.
#[derive(Default)]
pub struct Setup(Mutex<Opening>);

#[derive(Default)]
struct Opening {
    cluster: String,
    task: Option<AbortHandle>,
}

/// Takes new settings, of the cluster with this id if the operator named it. A changed bucket takes effect with the pod's
/// next start: servers here have their logs in the old one.
pub fn settings(agent: &Arc<Agent>, settings: &session::Settings, cluster: Option<String>) {
    let spec: DurableServerPoolSpec = match serde_json::from_str(&settings.spec_json) {
        Ok(spec) => spec,
        Err(error) => {
            return refuse(
                agent,
                Problem::new(Reason::PoolInvalid, format!("the pool's spec cannot be read: {error}")),
            );
        }
    };
    let resolved = match crds::settings::pool(&spec) {
        Ok(resolved) => resolved,
        Err(invalid) => {
            return refuse(agent, Problem::new(Reason::PoolInvalid, format!("the pool cannot be used: {invalid}")));
        }
    };
    agent.lease.set_duration(resolved.lease_duration);
    let present = agent.pool.borrow().clone();
    match present {
        Some(present) => change(agent, present, spec, resolved),
        None => begin(agent, spec, resolved, cluster),
    }
}

fn change(agent: &Arc<Agent>, present: Pool, spec: DurableServerPoolSpec, resolved: crds::settings::Pool) {
    if present.settings.store != resolved.store {
        tracing::warn!("the pool's store changed: it takes effect when this pod is replaced");
    }
    let settings = crds::settings::Pool { store: present.settings.store.clone(), ..resolved };
    agent.host.set_max_state(settings.max_state_bytes);
    for server in agent.servers.all() {
        server.log.set_max_state(settings.max_state_bytes);
    }
    agent.pool.send_replace(Some(Pool { spec: Arc::new(spec), settings: Arc::new(settings), store: present.store }));
}

/// Newer settings end the look for a store by older ones.
fn begin(agent: &Arc<Agent>, spec: DurableServerPoolSpec, resolved: crds::settings::Pool, cluster: Option<String>) {
    let mut opening = agent.setup.0.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = cluster {
        opening.cluster = cluster;
    }
    agent.problem.send_replace(Problem::new(Reason::StoreUnreachable, "the store has not answered yet"));
    let (task, cluster) = (agent.clone(), opening.cluster.clone());
    let task = tokio::spawn(async move { open(&task, spec, resolved, &cluster).await });
    if let Some(older) = opening.task.replace(task.abort_handle()) {
        older.abort();
    }
}

fn refuse(agent: &Arc<Agent>, problem: Problem) {
    if agent.pool.borrow().is_none() && *agent.problem.borrow() != problem {
        tracing::warn!(reason = problem.word(), problem = problem.message, "cannot host yet");
        agent.problem.send_replace(problem);
        tell_status(agent);
    }
}

/// Ends once the store is good. What a person must mend is looked at again too: a bucket is made, a right is granted.
async fn open(agent: &Arc<Agent>, spec: DurableServerPoolSpec, settings: crds::settings::Pool, cluster: &str) {
    let objects = loop {
        let (problem, wait) = match check(agent, &settings, cluster).await {
            Ok(objects) => break objects,
            Err(problem) if problem.reason == Some(Reason::StoreUnreachable) => (problem, RETRY),
            Err(problem) => (problem, RETRY_MENDED),
        };
        refuse(agent, problem);
        time::sleep(wait).await;
    };
    agent.host.set_max_state(settings.max_state_bytes);
    let lanes: Lanes = pace(objects, Rates::up_to(settings.store.max_requests_per_second));
    agent.pool.send_replace(Some(Pool { spec: Arc::new(spec), settings: Arc::new(settings), store: lanes }));
    agent.problem.send_replace(Problem::default());
    tell_status(agent);
    tracing::info!("store is good");
}

/// The store, if it honours conditions and is this cluster's.
async fn check(
    agent: &Arc<Agent>,
    settings: &crds::settings::Pool,
    cluster: &str,
) -> Result<Arc<dyn Objects>, Problem> {
    let s3 = S3::from_env(&s3_config(settings)).map_err(|error| Problem::from(&error))?;
    let objects: Arc<dyn Objects> = Arc::new(Counted::new(Arc::new(s3), agent.store_counts.clone()));
    usable(objects.as_ref(), &settings.store.prefix, cluster).await?;
    Ok(objects)
}

async fn usable(objects: &dyn Objects, prefix: &str, cluster: &str) -> Result<(), Problem> {
    match probe(objects, prefix).await {
        Probe::Ok => {}
        Probe::IgnoresConditions => {
            return Err(Problem::new(
                Reason::StoreIgnoresConditions,
                "the store ignores `If-None-Match: *` on PUT, so no ownership can be fenced on it: use another",
            ));
        }
        Probe::Denied(error) => return Err(Problem::from(&error)),
        Probe::Unreachable(message) => return Err(Problem::new(Reason::StoreUnreachable, message)),
    }
    match claim_prefix(objects, prefix, cluster).await {
        Ok(()) => Ok(()),
        Err(OwnerError::Store(error)) => Err(Problem::from(&error)),
        Err(taken @ OwnerError::Other { .. }) => Err(Problem::new(Reason::PrefixTaken, taken.to_string())),
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

#[cfg(test)]
mod tests {
    use store::{
        Memory, StoreError,
        memory::{Fault, Operation},
    };

    use super::*;

    async fn reason(objects: &dyn Objects, cluster: &str) -> &'static str {
        usable(objects, "p", cluster).await.err().map_or("", |problem| problem.word())
    }

    #[tokio::test(start_paused = true)]
    async fn each_way_in_which_a_store_is_unusable_has_a_word_of_its_own() {
        let store = Memory::default();
        assert_eq!(reason(&store, "one").await, "");
        assert_eq!(reason(&store, "one").await, "", "the same cluster again");
        assert_eq!(reason(&store, "two").await, "PrefixTaken");
        assert_eq!(reason(&Memory::ignoring_conditions(), "one").await, "StoreIgnoresConditions");
        for (error, word) in [
            (StoreError::Denied(String::new()), "StoreDenied"),
            (StoreError::Config(String::new()), "StoreMisconfigured"),
            (StoreError::Unknown(String::new()), "StoreUnreachable"),
        ] {
            let store = Memory::default();
            store.inject(Operation::Create, vec![Fault::Fail(error); 5]);
            assert_eq!(reason(&store, "one").await, word);
        }
    }
}
