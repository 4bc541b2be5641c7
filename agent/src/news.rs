//! Where servers went from here, told to the other gateways: without an operator nobody else would tell them, and a gateway
//! that was not asked for a server while this pod still passes requests on would go on connecting to this pod.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use handoff::{Epoch, PodUid, ServerId, ServerUid};
use wire::peer;

use crate::{
    agent::{Agent, Target},
    routes::Found,
};

/// Places in one message: what 10,000 servers take is split, so that none is near the bound of a message.
const MAX_PLACES: usize = 1_000;

/// Gateways told at once.
const AT_ONCE: usize = 16;

/// For one gateway to hear. Who does not in this time learns it from the operator, or from an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// What was not told yet.
#[derive(Default)]
pub struct News(Mutex<Vec<peer::Place>>);

impl News {
    /// Notes that another pod serves this server now.
    pub fn moved(&self, id: &ServerId, epoch: Epoch, to: &Target) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(peer::Place {
            name: id.name.clone(),
            uid: id.uid.0.clone(),
            epoch: epoch.0,
            pod_uid: to.pod.0.clone(),
            gateway_address: to.gateway.to_string(),
        });
    }

    fn take(&self) -> Vec<peer::Place> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tells every gateway of the standing plan what it was not told yet.
pub async fn spread(agent: &Arc<Agent>) {
    let places = agent.news.take();
    let targets = agent.plan.borrow().as_ref().map(|plan| plan.targets.clone()).unwrap_or_default();
    let mut messages = Vec::new();
    for target in targets.into_values() {
        for places in places.chunks(MAX_PLACES) {
            let news = peer::News { target_pod_uid: target.pod.0.clone(), places: places.to_vec() };
            messages.push((agent.clone(), target.clone(), news));
        }
    }
    stream::iter(messages).for_each_concurrent(AT_ONCE, |(agent, target, news)| tell(agent, target, news)).await;
}

async fn tell(agent: Arc<Agent>, target: Target, news: peer::News) {
    let mut client = agent.peers.client(&target, agent.max_message());
    match tokio::time::timeout(PATIENCE, client.tell(news)).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => tracing::debug!(to = %target.name, %status, "a gateway was not told where servers went"),
        Err(_) => tracing::debug!(to = %target.name, "a gateway did not hear in time where servers went"),
    }
}

/// Takes another pod's news. What cannot be read, or is of a server that the operator never named, is passed over.
pub fn heard(agent: &Agent, news: peer::News) -> Result<(), &'static str> {
    if news.target_pod_uid != agent.lease.pod().0 {
        return Err("another pod had this address");
    }
    if news.places.len() > MAX_PLACES {
        return Err("too many places in one message");
    }
    for place in news.places {
        let (Found::Known(_), Ok(gateway)) = (agent.routes.find(&place.name), place.gateway_address.parse()) else {
            continue;
        };
        let uid = ServerUid(place.uid);
        agent.routes.set_there(&place.name, &uid, Epoch(place.epoch), PodUid(place.pod_uid), gateway);
    }
    Ok(())
}
