//! Near what servers stay: the labels of the nodes where they are, or were last.

use std::time::Duration;

use crds::{NodeLabel, Reason, settings};
use handoff::{
    Instant, ServerUid,
    placement::{Need, held_near},
};

use super::{Server, World};
use crate::{model::Key, ownership::Trouble};

impl World {
    fn sticky(&self, pool: &Key) -> &[settings::Near] {
        let settings = self.pools.get(pool).and_then(|pool| pool.settings.as_ref());
        settings.map(|settings| settings.sticky.as_slice()).unwrap_or_default()
    }

    /// What the node of a server's pod has of the labels of its pool, or that of its last pod had: by its status, which outlasts
    /// that pod, its node and this operator.
    pub(super) fn near(&self, server: &Server) -> Vec<String> {
        let pod = server.ownership.owner.as_ref().and_then(|owner| self.cluster.pods.get(owner));
        let node = pod.and_then(|entry| self.cluster.nodes.get(&entry.pod.node));
        let value = |near: &settings::Near| match node {
            Some(node) => node.labels.get(&near.label),
            None => server.status.topology.iter().find(|had| had.topology_key == near.label).map(|had| &had.value),
        };
        self.sticky(&server.pool).iter().map(|near| value(near).cloned().unwrap_or_default()).collect()
    }

    /// The same for the server's status. Of a pool that is not there, or not accepted, nothing new is known.
    pub(super) fn topology(&self, server: &Server) -> Vec<NodeLabel> {
        if self.pools.get(&server.pool).is_none_or(|pool| pool.settings.is_none()) {
            return server.status.topology.clone();
        }
        let had = self.sticky(&server.pool).iter().zip(self.near(server)).filter(|(_, value)| !value.is_empty());
        had.map(|(near, value)| NodeLabel { topology_key: near.label.clone(), value }).collect()
    }

    /// By which label a server that can be started in any pod must stay near its last one for now.
    pub(super) fn held_near(&mut self, uid: &ServerUid, need: &Need, now: Instant) -> Option<usize> {
        if need.near.is_empty() {
            return None;
        }
        let server = self.servers.get_mut(uid)?;
        let epoch = server.ownership.epoch;
        let since = server.podless.filter(|(term, _)| *term == epoch).map_or(now, |(_, since)| since);
        server.podless = Some((epoch, since));
        let pool = server.pool.clone();
        let lasts: Vec<Duration> = self.sticky(&pool).iter().map(|near| near.lasts).collect();
        held_near(&need.near, &lasts, now - since)
    }

    /// What a server waits for that could be started elsewhere.
    pub(super) fn waits_near(&self, server: &Server, need: &Need, label: usize) -> Option<Trouble> {
        let near = self.sticky(&server.pool).get(label)?;
        let value = need.near.get(label)?;
        let (label, lasts) = (&near.label, crds::Duration::from(near.lasts));
        let message = format!(
            "no pod on a node with {label}={value}, like its last one, can take it now: it waits for one, {lasts} at most, \
             as placement.sticky of pool {} says",
            server.pool.name
        );
        Some(Trouble { reason: Reason::NoPodNearby, message, fatal: false })
    }
}
