//! Pods bear how many servers they have as their deletion cost, so that a scale-down ends the emptiest first.

use std::time::Duration;

use crds::DELETION_COST_ANNOTATION;
use handoff::{Instant, placement};
use serde_json::json;

use super::{World, cluster::load};
use crate::{
    model::{DELETION_COST, Effect, Key, Kind, Pod, What, Write},
    world::cluster::Session,
};

/// A pod's cost is written at most so often: every write is one more of the API server's, and news to all who watch pods.
const EVERY: Duration = Duration::from_secs(5);

impl World {
    /// The same, with deletion costs written or not.
    #[must_use]
    pub fn with_costs(self, writes: bool) -> Self {
        Self { writes_costs: writes, ..self }
    }

    /// Writes the deletion costs of a pool's pods that are not near what they have.
    pub(super) fn weigh(&mut self, key: &Key, now: Instant) {
        let Some(pool) = self.pools.get(key).filter(|pool| self.writes_costs && pool.settled) else { return };
        for uid in &pool.pods {
            let Some(session) = self.cluster.sessions.get(uid) else { continue };
            let Some(entry) = self.cluster.pods.get_mut(uid) else { continue };
            let rests = entry.weighed.is_some_and(|at| now - at < EVERY);
            let Some(cost) = cost(&entry.pod, session).filter(|_| !rests) else { continue };
            entry.weighed = Some(now);
            let text = cost.to_string();
            let annotations = json!({ DELETION_COST: text, DELETION_COST_ANNOTATION: text });
            let body = json!({ "metadata": { "uid": uid.0, "annotations": annotations } });
            let key = entry.pod.key.clone();
            self.effects.push(Effect::Write(Write { kind: Kind::Pod, key, what: What::Metadata(body.into()) }));
        }
    }
}

/// What a pod's cost should be, if not what it is. A cost that somebody else gave it stays.
fn cost(pod: &Pod, session: &Session) -> Option<i32> {
    let ours = pod.replica_set.is_some() && !pod.deleting && !pod.cost_is_given;
    placement::new_deletion_cost(load(session), pod.deletion_cost).filter(|_| ours)
}
