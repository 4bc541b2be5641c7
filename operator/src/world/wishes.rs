//! People name the pod that a server is to be in. It is a standing wish: nothing is remembered of it but the annotation.

use std::collections::HashMap;

use crds::Reason;
use handoff::{Instant, PodUid, ServerUid, moves::Resident, placement::Board};

use super::{World, moves::Stays};
use crate::{model::Key, plan::Candidate, status::Problem};

impl World {
    /// Takes in what a person wants of a server.
    pub(super) fn wish_for(&mut self, uid: &ServerUid, wish: Option<String>, now: Instant) {
        let Some(server) = self.servers.get_mut(uid) else { return };
        let (key, wishes) = (server.pool.clone(), wish.is_some());
        server.wish = wish;
        server.unmet = None;
        let pool = self.pool_mut(&key);
        if wishes {
            pool.wishes.insert(uid.clone());
        } else {
            pool.wishes.remove(uid);
        }
        pool.moves.look();
        self.tell(uid, now);
    }

    /// The pod of this name in a pool.
    pub(super) fn pod_named(&self, key: &Key, name: &str) -> Option<&PodUid> {
        let pods = self.pools.get(key)?.pods.iter().filter_map(|uid| self.cluster.pods.get(uid));
        pods.map(|entry| &entry.pod).find(|pod| pod.key.name == name).map(|pod| &pod.uid)
    }

    /// Servers that are to go to the pod that a person named for them. Reports those that cannot.
    pub(super) fn wishes(
        &mut self,
        key: &Key,
        board: &Board,
        candidates: &[Candidate],
        now: Instant,
    ) -> Vec<(Resident, PodUid)> {
        let Some(pool) = self.pools.get(key).filter(|pool| !pool.wishes.is_empty()) else { return Vec::new() };
        let pods: HashMap<&str, &PodUid> = candidates.iter().map(|pod| (pod.name.as_str(), &pod.facts.pod)).collect();
        let mut going = Vec::new();
        let mut news = Vec::new();
        for uid in &pool.wishes {
            let Some(server) = self.servers.get(uid) else { continue };
            let Some(wish) = &server.wish else { continue };
            let to = pods.get(wish.as_str()).copied();
            let unmet = match self.wish_of(uid, to, board) {
                Ok(Some(resident)) if !pool.moves.is_resting(uid, now) => {
                    going.extend(to.map(|to| (resident, to.clone())));
                    None
                }
                Ok(_) => None,
                Err(problem) => Some(problem),
            };
            if unmet != server.unmet {
                news.push((uid.clone(), unmet));
            }
        }
        for (uid, unmet) in news {
            if let Some(server) = self.servers.get_mut(&uid) {
                server.unmet = unmet;
            }
            self.tell(&uid, now);
        }
        going
    }

    /// A server that is to go to this pod and may; `None`: it is there, or cannot go yet for a reason that passes.
    fn wish_of(&self, uid: &ServerUid, to: Option<&PodUid>, board: &Board) -> Result<Option<Resident>, Problem> {
        let Some(server) = self.servers.get(uid) else { return Ok(None) };
        let pool = &server.pool.name;
        let wish = server.wish.as_deref().unwrap_or_default();
        let cannot = |why: String| Problem {
            reason: Reason::CannotMove,
            message: format!(
                "it does not go to pod {wish} now: {why}; or remove the annotation {}",
                crds::MOVE_ANNOTATION
            ),
        };
        let Some(to) = to.and_then(|to| board.pod(to)) else {
            return Err(Problem {
                reason: Reason::NoSuchPod,
                message: format!(
                    "pool {pool} has no pod {wish}: name one of its pods, or remove the annotation {}",
                    crds::MOVE_ANNOTATION
                ),
            });
        };
        if server.ownership.owner.as_ref() == Some(&to.pod) {
            return Ok(None);
        }
        let paused = self.pools.get(&server.pool).and_then(|pool| pool.settings.as_ref()).is_some_and(|s| s.paused);
        let resident = match self.movable(uid) {
            Ok(resident) => resident,
            Err(Stays::Busy) => return Ok(None),
            Err(why) => return Err(cannot(why.to_string())),
        };
        if paused {
            return Err(cannot(format!("pool {pool} is paused: set its spec.paused to false")));
        }
        to.can_be_sent(&resident.need).map_err(|why| cannot(format!("that pod {why}: wait, or name another pod")))?;
        Ok(Some(resident))
    }
}
