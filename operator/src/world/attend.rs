//! Servers that nobody holds are assigned.

use std::{collections::HashMap, time::Duration};

use crds::{Reason, settings};
use handoff::{
    Instant, PodUid, ServerUid,
    claim::Supersedes,
    placement::{Board, Ineligible, Need, PodFacts},
};
use wire::session::to_agent;

use super::{Server, World, cluster::Cluster};
use crate::{
    metrics::METRICS,
    model::{Effect, Key},
    ownership::{Next, PodView, Standing, To, Trouble},
};

/// An unanswered assignment takes one of its pod's turns for so long.
const TURN: Duration = Duration::from_secs(5);

/// Where servers of one pool may go in this pass.
struct Places {
    board: Board,
    starting: HashMap<PodUid, u32>,
    max_starts: u32,
}

impl Places {
    fn has_turn(&self, pod: &PodUid) -> bool {
        self.starting.get(pod).copied().unwrap_or(0) < self.max_starts
    }

    fn take(&mut self, pod: &PodUid, kind: &str) {
        *self.starting.entry(pod.clone()).or_default() += 1;
        self.board.take(pod, kind);
    }
}

/// What became of one server.
enum Attended {
    Done,
    Wait,
    /// The best pod has no turn left; nor will it for the servers that follow.
    Full,
}

impl World {
    pub(super) fn attend(&mut self, key: &Key, now: Instant) {
        let Some(pool) = self.pools.get(key).filter(|pool| pool.settled && !pool.ready.is_empty()) else { return };
        let settings = pool.settings.clone();
        let candidates = self.cluster.candidates(&pool.pods, settings.as_ref());
        let mut pods: Vec<PodFacts> = candidates.into_iter().map(|candidate| candidate.facts).collect();
        self.count_types(key, &mut pods);
        let mut places = Places {
            starting: pods.iter().map(|pod| (pod.pod.clone(), starting(&self.cluster, &pod.pod, now))).collect(),
            board: Board::new(pods),
            max_starts: settings.map_or(0, |settings| settings.max_starts),
        };
        while let Some(uid) = self.pools.get_mut(key).and_then(|pool| pool.ready.pop_first()) {
            let attended = self.attend_server(&uid, &mut places, now);
            let Some(pool) = self.pools.get_mut(key) else { return };
            match attended {
                Attended::Done => {}
                Attended::Wait => {
                    pool.parked.insert(uid);
                }
                Attended::Full => {
                    pool.ready.insert(uid);
                    return;
                }
            }
        }
    }

    /// Counts what pods have of each type, if any type has a limit of its own.
    pub(super) fn count_types(&self, key: &Key, pods: &mut [PodFacts]) {
        let spec = self.pools.get(key).and_then(|pool| pool.object.as_ref()).map(|object| &object.spec);
        if !spec.is_some_and(|spec| spec.types.iter().any(|entry| entry.max_servers_per_pod.is_some())) {
            return;
        }
        for facts in pods {
            let Some(session) = self.cluster.sessions.get(&facts.pod) else { continue };
            for uid in session.held.keys().chain(session.assigned.keys().filter(|uid| !session.held.contains_key(*uid)))
            {
                if let Some(server) = self.servers.get(uid) {
                    *facts.of_type.entry(server.spec.type_.clone()).or_default() += 1;
                }
            }
        }
    }

    fn attend_server(&mut self, uid: &ServerUid, places: &mut Places, now: Instant) -> Attended {
        let Some(server) = self.servers.get(uid) else { return Attended::Done };
        if server.deleting {
            self.bury(uid, now);
            return Attended::Wait;
        }
        match server.ownership.next(now, |pod| self.view(pod, &server.pool, now)) {
            Next::Nothing => Attended::Done,
            Next::Wait => {
                self.unplaced(uid, None, now);
                Attended::Wait
            }
            Next::Assign(To::Only(pod), supersedes) => {
                let kind = server.spec.type_.clone();
                self.assign(uid, &pod, supersedes, now);
                places.take(&pod, &kind);
                Attended::Wait
            }
            Next::Assign(To::Any, supersedes) => self.place(uid, supersedes, places, now),
        }
    }

    fn place(
        &mut self,
        uid: &ServerUid,
        supersedes: Option<Supersedes>,
        places: &mut Places,
        now: Instant,
    ) -> Attended {
        if let Some(why) = self.not_to_be_placed(uid) {
            self.unplaced(uid, Some(why), now);
            return Attended::Wait;
        }
        let Some(server) = self.servers.get(uid) else { return Attended::Done };
        let spec = self.pools.get(&server.pool).and_then(|pool| pool.object.as_ref()).map(|object| &object.spec);
        let resolved = spec.and_then(|spec| settings::server(spec, &server.spec).ok());
        let need = server.need(resolved.and_then(|resolved| resolved.max_of_type_per_pod), self.near(server));
        let held = self.held_near(uid, &need, now);
        let Some(server) = self.servers.get(uid) else { return Attended::Done };
        let avoid = &server.ownership.avoid;
        let home = server.ownership.home();
        let board = &places.board;
        let wish = server.wish.as_ref().and_then(|wish| self.pod_named(&server.pool, wish));
        let chosen = board
            .best(&need, |pod| Some(&pod.pod) == wish && pod.leaving.is_none() && !avoid.contains(&pod.pod))
            .or_else(|| board.best(&need, |pod| Some(&pod.pod) == home && !avoid.contains(&pod.pod)))
            .or_else(|| best(board, &need, held, |pod| !avoid.contains(&pod.pod)))
            .or_else(|| best(board, &need, held, |_| true));
        match chosen.map(|facts| facts.pod.clone()) {
            None => {
                let elsewhere = held.filter(|_| board.best(&need, |_| true).is_some());
                let why = elsewhere.and_then(|label| self.waits_near(server, &need, label));
                let why = why.unwrap_or_else(|| no_pod(server, places.board.pods(), &need));
                self.unplaced(uid, Some(why), now);
                Attended::Wait
            }
            Some(pod) if places.has_turn(&pod) => {
                self.assign(uid, &pod, supersedes, now);
                places.take(&pod, &need.kind);
                Attended::Wait
            }
            Some(_) => Attended::Full,
        }
    }

    /// What is known of a pod at this reading of the clock, which comes after all that came in before it.
    pub(super) fn view(&self, pod: &PodUid, pool: &Key, now: Instant) -> PodView {
        let view = self.cluster.view(pod);
        let settings = self.pools.get(pool).and_then(|pool| pool.settings.as_ref());
        let (Some(since), Some(settings), false) = (self.read_since, settings, view.session) else { return view };
        let heard = self.cluster.heard.get(pod).copied().unwrap_or_default();
        let silent = heard.is_silent(since, settings.lease_duration, now).then(|| heard.last());
        PodView { silent, ..view }
    }

    /// What besides the pods keeps a server from getting one.
    fn not_to_be_placed(&mut self, uid: &ServerUid) -> Option<Trouble> {
        let server = self.servers.get_mut(uid)?;
        let trouble = |reason, message| Some(Trouble { reason, message, fatal: false });
        if let Some(refused) = &server.refused {
            return trouble(Reason::Invalid, refused.clone());
        }
        let pool = self.pools.get(&server.pool);
        if pool.is_none_or(|pool| pool.object.is_none()) {
            return trouble(
                Reason::NoPool,
                format!("there is no DurableServerPool {} in this namespace", server.pool.name),
            );
        }
        if pool.is_none_or(|pool| pool.settings.is_none()) {
            return trouble(
                Reason::InvalidPool,
                format!("pool {} is not accepted: see its condition Accepted", server.pool.name),
            );
        }
        if server.spec.cordoned == Some(true) {
            return trouble(Reason::Cordoned, "spec.cordoned is true".into());
        }
        server.stopped = server.stopped || ended_for_good(server, &self.cluster);
        if server.stopped {
            return trouble(Reason::Stopped, "its pod shut down, and permanent is false".into());
        }
        None
    }

    fn unplaced(&mut self, uid: &ServerUid, why: Option<Trouble>, now: Instant) {
        let Some(server) = self.servers.get_mut(uid).filter(|server| server.unplaced != why) else { return };
        server.unplaced = why;
        self.tell(uid, now);
    }

    fn assign(&mut self, uid: &ServerUid, pod: &PodUid, supersedes: Option<Supersedes>, now: Instant) {
        let Some(session) = self.cluster.sessions.get(pod).map(|session| session.id) else { return };
        let Some(assign) = self.make_assign(uid, pod, supersedes, now) else { return };
        let Some(server) = self.servers.get_mut(uid) else { return };
        server.unplaced = None;
        METRICS.assignments.with_label_values(&["sent"]).inc();
        let (assignment, over) = (assign.assignment, assign.superseded_epoch);
        tracing::debug!(server = %server.id, %pod, assignment, superseded = over, "assign");
        self.effects.push(Effect::Send(session, to_agent::Body::Assign(assign)));
    }
}

/// The best pod, of those that have the same value of a label if one is named.
fn best<'a>(
    board: &'a Board,
    need: &Need,
    label: Option<usize>,
    allowed: impl Fn(&PodFacts) -> bool,
) -> Option<&'a PodFacts> {
    match label {
        Some(label) => board.nearest(label, need, allowed),
        None => board.best(need, allowed),
    }
}

/// Starts under way in a pod that still take a turn.
fn starting(cluster: &Cluster, pod: &PodUid, now: Instant) -> u32 {
    let assigned = cluster.sessions.get(pod).map(|session| &session.assigned);
    let young = assigned.map_or(0, |assigned| assigned.values().filter(|since| now - **since < TURN).count());
    u32::try_from(young).unwrap_or(u32::MAX)
}

/// Its pod shut down, and it is not one that is started again.
fn ended_for_good(server: &Server, cluster: &Cluster) -> bool {
    let ownership = &server.ownership;
    let ended = matches!(ownership.standing, Standing::Released | Standing::Over | Standing::Unheard);
    let shut_down = ownership
        .owner
        .as_ref()
        .is_some_and(|owner| cluster.pods.get(owner).is_none_or(|entry| entry.pod.deleting || entry.pod.over));
    server.spec.permanent == Some(false) && ended && shut_down
}

/// Why no pod can take a server. The sentence does not change with every pod that comes or goes: it is written into the
/// status of every server that waits.
pub(super) fn no_pod(server: &Server, pods: &[PodFacts], need: &Need) -> Trouble {
    let cannot_load = pods.iter().any(|pod| pod.can_take(need) == Err(Ineligible::CannotLoad));
    let full = pods.iter().any(|pod| pod.can_take(need) == Err(Ineligible::Full));
    let pool = &server.pool.name;
    let (reason, message) = if full {
        (
            Reason::PodsFull,
            format!(
                "every pod of pool {pool} that can host is full: add replicas, or raise maxServersPerPod in the pool's \
                 placement or in its entry for type {}",
                need.kind
            ),
        )
    } else if cannot_load {
        let what = need.state_version.map_or(String::new(), |version| format!(" with state version {version}"));
        (Reason::TypeUnknown, format!("no pod of pool {pool} can load type {}{what}", need.kind))
    } else {
        (Reason::NoEligiblePod, format!("no pod of pool {pool} can host now: see the pool's condition Ready"))
    };
    Trouble { reason, message, fatal: false }
}
