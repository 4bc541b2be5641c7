//! Servers move off pods that live on: ordered one by one, a few at a time, as [`handoff::moves`] says.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use crds::settings;
use handoff::{
    Instant, PodUid, ServerUid,
    moves::{self, Resident},
    placement::{Board, PodFacts},
    window::Window,
};
use jiff::Timestamp;
use wire::session::{self, MoveEnded, Phase, to_agent};

use super::{Pool, World, sessions::server_ref};
use crate::{
    model::{Effect, Key, Now},
    ownership::Standing,
    plan::Candidate,
};

/// An order that is not answered by then was lost with its agent, or with its session.
const LOST: Duration = Duration::from_secs(90);
/// A server that did not move is tried again after this, doubled each time up to the last.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Moves under way that only even out what pods have.
const SLOW: usize = 2;

/// One server that an agent was told to hand over.
#[derive(Clone, Debug)]
struct Flight {
    order: u64,
    from: PodUid,
    to: PodUid,
    until: Instant,
}

/// A server that did not move.
#[derive(Clone, Debug, Default)]
struct Rest {
    until: Instant,
    failures: u32,
    tried: HashSet<PodUid>,
}

/// Why a server may not be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    /// Itself.
    #[error("spec.cordoned of the server is true: set it to false")]
    Cordoned,
    /// In the pool, for its type, or in itself.
    #[error("handoff is off for the server: set handoffOnShutdown.enabled in the pool, for the type or in the server")]
    HandoffOff,
    /// Of its spec.
    #[error("the server's spec is not accepted: see its condition Accepted")]
    Refused,
    /// It passes.
    #[error("it is being started, moved or stopped, or its first record is not in the store yet: that passes")]
    Busy,
}

/// Moves of one pool.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    flights: BTreeMap<ServerUid, Flight>,
    rests: HashMap<ServerUid, Rest>,
    window: Window,
    /// Something changed since the last look.
    look: bool,
}

impl Moves {
    /// Asks for a look.
    pub fn look(&mut self) {
        self.look = true;
    }

    /// Takes out a flight, if this is its order and this the pod that was given it.
    fn land(&mut self, server: &ServerUid, order: u64, pod: &PodUid) -> Option<Flight> {
        let current = self.flights.get(server).is_some_and(|flight| flight.order == order && flight.from == *pod);
        if current { self.flights.remove(server) } else { None }
    }

    /// Whether it did not move a short while ago.
    pub(super) fn is_resting(&self, server: &ServerUid, now: Instant) -> bool {
        self.rests.get(server).is_some_and(|rest| now < rest.until)
    }

    /// Not again at once, and to another pod if there is one.
    fn rest(&mut self, server: &ServerUid, to: PodUid, now: Instant) {
        let rest = self.rests.entry(server.clone()).or_default();
        rest.until = now + (REST.0 * 2_u32.saturating_pow(rest.failures.min(16))).min(REST.1);
        rest.failures += 1;
        rest.tried.insert(to);
    }
}

impl World {
    /// Orders the next moves of a pool.
    pub(super) fn move_some(&mut self, key: &Key, Now { mono: now, wall }: Now) {
        let Some(pool) = self.pools.get_mut(key).filter(|pool| pool.settled) else { return };
        if !std::mem::take(&mut pool.moves.look) {
            return;
        }
        self.give_up_lost(key, now);
        let Some(pool) = self.pools.get(key) else { return };
        let Some(settings) = &pool.settings else { return };
        let stay = self.left(pool).next().is_none();
        if stay && pool.wishes.is_empty() && !settings.rebalance {
            return;
        }
        let settings = settings.clone();
        let candidates = self.cluster.candidates(&pool.pods, Some(&settings));
        let mut board = self.board(key, facts(&candidates));
        let wishes = self.wishes(key, &board, &candidates, now);
        if settings.paused {
            return;
        }
        if stay && wishes.is_empty() {
            if settings.rebalance && is_calm(&candidates) {
                self.even_out(key, &candidates, now);
            }
            return;
        }
        let Some(pool) = self.pools.get(key) else { return };
        let most = usize::try_from(settings.drain.max_concurrency).unwrap_or(usize::MAX);
        let at_once = self.pace(pool, wall).clamp(pool.moves.window.size(most), most.max(1));
        let room = at_once.saturating_sub(pool.moves.flights.len());
        if room == 0 {
            return;
        }
        let share = moves::share(pool.servers.len(), self.wanted(key));
        let left = board.pods().iter().filter(|pod| pod.leaving.is_some()).map(|pod| &pod.pod);
        let mut residents = self.residents(key, left, now);
        let asked: HashSet<&ServerUid> = wishes.iter().map(|(resident, _)| &resident.server).collect();
        residents.retain(|resident| !asked.contains(&resident.server));
        let mut orders = moves::asked(&mut board, wishes, room);
        let room = room - orders.len();
        orders.extend(moves::next(&mut board, residents, share, room));
        for next in orders {
            self.order_move(key, next, &candidates, now);
        }
    }

    /// How many must move at once, for the sake of pods that servers leave and that soon end.
    fn pace(&self, pool: &Pool, now: Timestamp) -> usize {
        let ends = |uid: &PodUid| {
            let set = self.cluster.pods.get(uid)?.pod.replica_set.as_ref()?;
            let servers = self.cluster.sessions.get(uid)?.held.len();
            Some((self.cluster.replica_sets.get(set)?.ends?, servers))
        };
        let ending: Vec<(Timestamp, usize)> = self.left(pool).filter_map(ends).collect();
        let Some(first) = ending.iter().map(|(at, _)| *at).min() else { return 0 };
        let within = Duration::try_from(first.duration_since(now)).unwrap_or_default();
        moves::in_time(ending.iter().map(|(_, servers)| servers).sum(), within)
    }

    /// The fullest pod gives some to emptier ones.
    fn even_out(&mut self, key: &Key, candidates: &[Candidate], now: Instant) {
        let Some(pool) = self.pools.get(key) else { return };
        let mut facts = facts(candidates);
        for pod in &mut facts {
            pod.load = pod.load.saturating_sub(self.going(pool, &pod.pod));
        }
        let hosts = facts.iter().filter(|pod| pod.can_host().is_ok());
        let share = moves::share(pool.servers.len(), hosts.clone().count());
        let room = SLOW.saturating_sub(pool.moves.flights.len());
        let Some(fullest) = hosts.max_by_key(|pod| pod.load).filter(|pod| pod.load > share && room > 0) else { return };
        let mut residents = self.residents(key, [&fullest.pod], now);
        // What a person sent somewhere stays there.
        residents.retain(|resident| !pool.wishes.contains(&resident.server));
        for next in moves::even(&mut self.board(key, facts), &residents, share, room) {
            self.order_move(key, next, candidates, now);
        }
    }

    /// A board of these pods, that knows what they have of each type.
    pub(super) fn board(&self, key: &Key, mut facts: Vec<PodFacts>) -> Board {
        self.count_types(key, &mut facts);
        Board::new(facts)
    }

    /// Servers of a pod that are on their way out. They count where they go.
    fn going(&self, pool: &Pool, pod: &PodUid) -> u32 {
        let Some(session) = self.cluster.sessions.get(pod) else { return 0 };
        let out =
            pool.moves.flights.iter().filter(|(uid, flight)| flight.from == *pod && session.held.contains_key(*uid));
        u32::try_from(out.count()).unwrap_or(u32::MAX)
    }

    /// Pods of a pool that servers leave though they live on.
    fn left<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = &'a PodUid> {
        let pods = pool.pods.iter().filter_map(|uid| self.cluster.pods.get(uid)).map(|entry| &entry.pod);
        let settings = pool.settings.as_ref();
        pods.filter(move |pod| self.cluster.leaving(pod, settings).is_some()).map(|pod| &pod.uid)
    }

    /// How many servers are in pods that they are to leave.
    pub(super) fn leaving(&self, pool: &Pool) -> usize {
        self.left(pool).filter_map(|pod| self.cluster.sessions.get(pod)).map(|session| session.held.len()).sum()
    }

    /// How many pods of the newest revisions there will be.
    pub(super) fn wanted(&self, key: &Key) -> usize {
        let Some(pool) = self.pools.get(key) else { return 0 };
        let pods = || pool.pods.iter().filter_map(|uid| self.cluster.pods.get(uid)).map(|entry| &entry.pod);
        let newest = pods().filter(|pod| self.cluster.newest(pod));
        let (sets, others): (Vec<_>, Vec<_>) = newest.partition(|pod| pod.replica_set.is_some());
        let sets: HashSet<&String> = sets.into_iter().filter_map(|pod| pod.replica_set.as_ref()).collect();
        let sets = sets.into_iter().filter_map(|uid| self.cluster.replica_sets.get(uid));
        let desired = sets.map(|set| usize::try_from(set.desired.max(set.replicas)).unwrap_or_default());
        desired.sum::<usize>() + others.len()
    }

    /// Servers in these pods, as far as they may move now.
    fn residents<'a>(&self, key: &Key, pods: impl IntoIterator<Item = &'a PodUid>, now: Instant) -> Vec<Resident> {
        let Some(pool) = self.pools.get(key) else { return Vec::new() };
        let held = |pod: &PodUid| self.cluster.sessions.get(pod).map(|session| session.held.keys());
        let servers = pods.into_iter().filter_map(held).flatten();
        let rested = servers.filter(|uid| !pool.moves.is_resting(uid, now));
        let mut residents: Vec<Resident> = rested.filter_map(|uid| self.movable(uid).ok()).collect();
        residents.sort_unstable_by(|a, b| a.server.cmp(&b.server));
        residents
    }

    /// A server where it is, if it may be moved from there.
    pub(super) fn movable(&self, uid: &ServerUid) -> Result<Resident, Stays> {
        let server = self.servers.get(uid).ok_or(Stays::Busy)?;
        let pool = self.pools.get(&server.pool).ok_or(Stays::Busy)?;
        let spec = &pool.object.as_ref().ok_or(Stays::Busy)?.spec;
        let resolved = settings::server(spec, &server.spec).map_err(|_| Stays::Refused)?;
        let pod = server.ownership.owner.as_ref().filter(|_| server.ownership.standing == Standing::Held);
        let pod = pod.ok_or(Stays::Busy)?;
        let session = self.cluster.sessions.get(pod).ok_or(Stays::Busy)?;
        let held = session.held.get(uid).ok_or(Stays::Busy)?;
        match () {
            () if resolved.cordoned => Err(Stays::Cordoned),
            () if !resolved.handoff => Err(Stays::HandoffOff),
            () if server.deleting || session.draining || pool.moves.flights.contains_key(uid) => Err(Stays::Busy),
            () if held.phase() != Phase::Active || !held.durable => Err(Stays::Busy),
            () => Ok(Resident {
                server: uid.clone(),
                pod: pod.clone(),
                need: server.need(resolved.max_of_type_per_pod, self.near(server)),
                priority: resolved.priority,
                tried: pool.moves.rests.get(uid).map(|rest| rest.tried.clone()).unwrap_or_default(),
            }),
        }
    }

    fn order_move(&mut self, key: &Key, next: moves::Move, candidates: &[Candidate], now: Instant) {
        let target = candidates.iter().find(|candidate| candidate.facts.pod == next.to).map(crate::plan::target);
        let from = self.cluster.sessions.get(&next.from).map(|session| session.id);
        let (Some(target), Some(from), Some(server)) = (target, from, self.servers.get(&next.server)) else { return };
        self.assignment += 1;
        let order = session::Move {
            order: self.assignment,
            server: Some(server_ref(&server.id)),
            epoch: server.ownership.epoch.0,
            target: Some(target),
        };
        tracing::debug!(server = %server.id, from = %next.from, to = %next.to, order = order.order, "move");
        let flight = Flight { order: order.order, from: next.from, to: next.to.clone(), until: now + LOST };
        self.effects.push(Effect::Send(from, to_agent::Body::Move(order)));
        if let Some(session) = self.cluster.sessions.get_mut(&next.to) {
            session.coming.insert(next.server.clone());
        }
        self.pool_mut(key).moves.flights.insert(next.server, flight);
    }

    /// An agent answers an order.
    pub(super) fn move_ended(&mut self, pod: &PodUid, ended: &MoveEnded, now: Instant) {
        let Some(uid) = self.of_its_pool(pod, ended.server.as_ref()) else { return };
        let Some(key) = self.servers.get(&uid).map(|server| server.pool.clone()) else { return };
        let pool = self.pool_mut(&key);
        let Some(flight) = pool.moves.land(&uid, ended.order, pod) else { return };
        pool.moves.look();
        if ended.moved {
            pool.moves.rests.remove(&uid);
        } else {
            tracing::info!(server = %uid, %pod, to = %flight.to, reason = ended.reason, "not moved");
            pool.moves.rest(&uid, flight.to.clone(), now);
        }
        self.not_coming(&uid, &flight.to);
    }

    /// Gaps decide how many move at once.
    pub(super) fn gap(&mut self, key: &Key, gap: Duration) {
        let pool = self.pool_mut(key);
        let most = pool.settings.as_ref().map_or(1, |settings| settings.drain.max_concurrency);
        pool.moves.window.gap(gap, usize::try_from(most).unwrap_or(usize::MAX));
    }

    fn give_up_lost(&mut self, key: &Key, now: Instant) {
        let Some(pool) = self.pools.get_mut(key) else { return };
        let (sessions, servers) = (&self.cluster.sessions, &pool.servers);
        let lost = |flight: &Flight| now >= flight.until || !sessions.contains_key(&flight.from);
        let over: Vec<ServerUid> =
            pool.moves.flights.iter().filter(|(_, flight)| lost(flight)).map(|(uid, _)| uid.clone()).collect();
        pool.moves.rests.retain(|uid, rest| servers.contains(uid) && now < rest.until + REST.1);
        let flights: Vec<_> =
            over.into_iter().filter_map(|uid| Some((uid.clone(), pool.moves.flights.remove(&uid)?))).collect();
        for (uid, flight) in flights {
            self.not_coming(&uid, &flight.to);
        }
    }

    fn not_coming(&mut self, uid: &ServerUid, to: &PodUid) {
        if let Some(session) = self.cluster.sessions.get_mut(to) {
            session.coming.remove(uid);
        }
    }
}

/// What placement knows of these pods.
pub(super) fn facts(candidates: &[Candidate]) -> Vec<PodFacts> {
    candidates.iter().map(|candidate| candidate.facts.clone()).collect()
}

/// Nothing comes or goes: every pod that lives can host, or will not, and all are of the newest revision.
fn is_calm(candidates: &[Candidate]) -> bool {
    let hosts = |candidate: &&Candidate| candidate.facts.can_host().is_ok() && candidate.facts.newest;
    let out =
        |candidate: &&Candidate| candidate.facts.cordoned || candidate.facts.inactive || !candidate.facts.schedulable;
    candidates.iter().all(|candidate| hosts(&candidate) || out(&candidate))
}
