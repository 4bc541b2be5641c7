//! Moves of servers whose pods live on: which are next, and where to. Pure, and without a memory of what was wanted before:
//! each look compares where servers are with where they should be, so whoever changes their mind in the middle (flips back,
//! uncordons a node) has nothing to cancel.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    time::Duration,
};

use crate::{
    ids::{PodUid, ServerUid},
    placement::{Board, Need, PodFacts},
};

/// Why servers leave a pod that is not shutting down; in this order they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Leaving {
    /// A person asked for it.
    Asked,
    /// Its node is cordoned: the pod is likely to be evicted.
    NodeCordoned,
    /// The Service that the pool follows leads to other pods.
    Inactive,
    /// Pods of a newer revision are there: it is about to be replaced.
    Replaced,
}

/// A server in a pod that servers leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Which.
    pub server: ServerUid,
    /// Where it is.
    pub pod: PodUid,
    /// What it needs elsewhere.
    pub need: Need,
    /// Higher goes first.
    pub priority: i32,
    /// Pods that would not have it lately.
    pub tried: HashSet<PodUid>,
}

/// One server is to be handed to another pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub server: ServerUid,
    /// From where.
    pub from: PodUid,
    /// Where to.
    pub to: PodUid,
}

/// The moves that people asked for by naming a pod for a server, at most `room`. Counts them on the board.
#[must_use]
pub fn asked(board: &mut Board, wishes: Vec<(Resident, PodUid)>, room: usize) -> Vec<Move> {
    let mut moves = Vec::new();
    for (resident, to) in wishes {
        if moves.len() >= room {
            break;
        }
        if board.pod(&to).is_some_and(|pod| pod.can_be_sent(&resident.need).is_ok()) {
            board.take(&to, &resident.need.kind);
            moves.push(Move { server: resident.server, from: resident.pod, to });
        }
    }
    moves
}

/// The best other pod for each of these servers, as far as there is one. Counts them on the board.
#[must_use]
pub fn best(board: &mut Board, residents: Vec<Resident>) -> Vec<Move> {
    let mut moves = Vec::new();
    for resident in residents {
        let other = |pod: &PodFacts| pod.leaving.is_none() && pod.pod != resident.pod;
        let Some(to) = board.best(&resident.need, other).map(|pod| pod.pod.clone()) else { continue };
        board.take(&to, &resident.need.kind);
        moves.push(Move { server: resident.server, from: resident.pod, to });
    }
    moves
}

/// The next moves, at most `room`. Counts them on the board. Pods that are replaced are left only for pods of the newest revision,
/// and only while those have less than `share` servers each: the first new pod would else get everything, and the ones that
/// follow it nothing, or each server another move. They are emptied one after another, the one that ends next first.
#[must_use]
pub fn next(board: &mut Board, mut residents: Vec<Resident>, share: u32, room: usize) -> Vec<Move> {
    let turn = |pod: &PodFacts, why| match why {
        Leaving::Replaced => (why, pod.deletion_cost, pod.load, pod.pod.clone()),
        _ => (why, 0, 0, PodUid::default()),
    };
    let leaving: HashMap<PodUid, _> =
        board.pods().iter().filter_map(|pod| Some((pod.pod.clone(), turn(pod, pod.leaving?)))).collect();
    residents.retain(|resident| leaving.contains_key(&resident.pod));
    residents.sort_by_cached_key(|resident| {
        (leaving.get(&resident.pod), Reverse(resident.priority), resident.server.clone())
    });
    let mut moves = Vec::new();
    let mut nowhere = HashSet::new();
    for resident in residents {
        if moves.len() >= room {
            break;
        }
        let why = leaving.get(&resident.pod).map(|(why, ..)| *why);
        let kind = (why, resident.need.clone());
        // Thousands may wait for the same thing.
        if nowhere.contains(&kind) {
            continue;
        }
        let open = |pod: &PodFacts| {
            pod.leaving.is_none() && (why != Some(Leaving::Replaced) || (pod.newest && pod.load < share))
        };
        let untried = |pod: &PodFacts| open(pod) && !resident.tried.contains(&pod.pod);
        let chosen = board.best(&resident.need, untried).or_else(|| board.best(&resident.need, open));
        let Some(to) = chosen.map(|pod| pod.pod.clone()) else {
            nowhere.insert(kind);
            continue;
        };
        board.take(&to, &resident.need.kind);
        moves.push(Move { server: resident.server, from: resident.pod, to });
    }
    moves
}

/// Moves from the fullest pod, whose residents these are, to emptier ones, until it has no more than its `share`.
#[must_use]
pub fn even(board: &mut Board, residents: &[Resident], share: u32, room: usize) -> Vec<Move> {
    let mut moves = Vec::new();
    for resident in residents {
        let load = board.pods().iter().find(|pod| pod.pod == resident.pod).map_or(0, |pod| pod.load);
        let sent = u32::try_from(moves.len()).unwrap_or(u32::MAX);
        if moves.len() >= room || load.saturating_sub(sent) <= share {
            break;
        }
        let emptier = |pod: &PodFacts| pod.leaving.is_none() && pod.load < share && !resident.tried.contains(&pod.pod);
        let Some(to) = board.best(&resident.need, emptier).map(|pod| pod.pod.clone()) else { continue };
        board.take(&to, &resident.need.kind);
        moves.push(Move { server: resident.server.clone(), from: resident.pod.clone(), to });
    }
    moves
}

/// What one move takes, rather more than less.
const ONE_MOVE: Duration = Duration::from_secs(1);

/// What is kept back of the time until pods end. Who is there still then goes in the drain of its pod.
const MARGIN: Duration = Duration::from_secs(5);

/// How many must move at once for so many to be gone before their pods end.
#[must_use]
pub fn in_time(servers: usize, pods_end: Duration) -> usize {
    let moving = ONE_MOVE.as_millis().saturating_mul(servers as u128);
    let at_once = moving.checked_div(pods_end.saturating_sub(MARGIN).as_millis());
    at_once.map_or(usize::MAX, |at_once| usize::try_from(at_once).unwrap_or(usize::MAX).saturating_add(1))
}

/// Servers that one of `pods` should have at most, while so many are being spread: a tenth more than its part, since what is
/// even is never quite so while servers come and go.
#[must_use]
pub fn share(servers: usize, pods: usize) -> u32 {
    let part = servers.saturating_mul(11).div_ceil(pods.max(1).saturating_mul(10));
    u32::try_from(part).unwrap_or(u32::MAX).max(1)
}
