//! What the page was shown so far. One task keeps it, so that the world is asked for changes only, however many look.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Bound,
};

use serde::Serialize;

use super::view::{DrainView, Look, PodView, PoolView, ServerView, Waiting};

/// Servers in one message, bounding its length: the rest of a whole picture comes with the messages that follow.
pub const PART: usize = 2_000;
/// Kinds of reasons for waiting that are shown of all pools together.
const MAX_WAITING: usize = 64;

/// One message of the feed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `snapshot`: forget all before it. `delta`: what changed.
    pub event: &'static str,
    /// JSON.
    pub data: String,
}

/// Everything that was shown.
#[derive(Debug, Default)]
pub struct Mirror {
    live: bool,
    at: i64,
    pools: Vec<PoolView>,
    pods: Vec<PodView>,
    drains: Vec<DrainView>,
    waiting: Vec<Waiting>,
    servers: BTreeMap<String, ServerView>,
}

#[derive(Serialize)]
struct Frame<'a> {
    at: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pools: Option<&'a [PoolView]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<&'a [PodView]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drains: Option<&'a [DrainView]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<&'a [Waiting]>,
    servers: BTreeMap<&'a str, Option<&'a ServerView>>,
}

impl Mirror {
    /// Takes in a look. `None`: it shows nothing new.
    pub fn apply(&mut self, look: Look) -> Option<Message> {
        if look.first {
            *self = Self::default();
        }
        self.live = true;
        self.at = look.at;
        let pools = replaced(&mut self.pools, look.pools);
        let pods = replaced(&mut self.pods, look.pods);
        let drains = replaced(&mut self.drains, look.drains);
        let mut changed = Vec::new();
        for (key, server) in look.servers {
            if let Some(key) = self.put(key.to_string(), server) {
                changed.push(key);
            }
        }
        let waiting = if changed.is_empty() { Vec::new() } else { self.count_waiting() };
        let waiting = !changed.is_empty() && replaced(&mut self.waiting, waiting);
        if look.first {
            return Some(self.part(None).0);
        }
        let nothing = !pools && !pods && !drains && !waiting && changed.is_empty();
        (!nothing).then(|| {
            let frame = Frame {
                at: self.at,
                pools: pools.then_some(&self.pools),
                pods: pods.then_some(&self.pods),
                drains: drains.then_some(&self.drains),
                waiting: waiting.then_some(&self.waiting),
                servers: changed.iter().map(|key| (key.as_str(), self.servers.get(key))).collect(),
            };
            message("delta", &frame)
        })
    }

    /// The name of a server that is not as it was.
    fn put(&mut self, key: String, server: Option<ServerView>) -> Option<String> {
        match (self.servers.entry(key), server) {
            (Entry::Occupied(entry), Some(server)) if *entry.get() == server => None,
            (Entry::Occupied(mut entry), Some(server)) => {
                entry.insert(server);
                Some(entry.key().clone())
            }
            (Entry::Occupied(entry), None) => Some(entry.remove_entry().0),
            (Entry::Vacant(entry), Some(server)) => Some(entry.insert_entry(server).key().clone()),
            (Entry::Vacant(_), None) => None,
        }
    }

    fn count_waiting(&self) -> Vec<Waiting> {
        let mut groups = BTreeMap::<(&str, &str), (usize, &str)>::new();
        for server in self.servers.values() {
            if let Some((reason, why)) = &server.waits {
                groups.entry((&server.pool, reason)).or_insert((0, why)).0 += 1;
            }
        }
        let group = |((pool, reason), (servers, why)): ((&str, &str), (usize, &str))| Waiting {
            pool: pool.to_owned(),
            reason: reason.to_owned(),
            why: why.to_owned(),
            servers,
        };
        groups.into_iter().take(MAX_WAITING).map(group).collect()
    }

    /// Forgets everything: nobody looks.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether there is anything to show.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// A part of the whole: the first, or the one after this server; and the last server in it, if more follow.
    #[must_use]
    pub fn part(&self, after: Option<&str>) -> (Message, Option<String>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let servers: BTreeMap<_, _> = self
            .servers
            .range::<str, _>((from, Bound::Unbounded))
            .take(PART)
            .map(|(k, s)| (k.as_str(), Some(s)))
            .collect();
        let last = servers.keys().next_back().filter(|_| servers.len() == PART).map(|last| (*last).to_owned());
        let begin = after.is_none();
        let frame = Frame {
            at: self.at,
            pools: begin.then_some(&self.pools),
            pods: begin.then_some(&self.pods),
            drains: begin.then_some(&self.drains),
            waiting: begin.then_some(&self.waiting),
            servers,
        };
        (message(if begin { "snapshot" } else { "delta" }, &frame), last)
    }
}

fn replaced<T: PartialEq>(old: &mut T, new: T) -> bool {
    let differs = *old != new;
    *old = new;
    differs
}

fn message(event: &'static str, frame: &Frame<'_>) -> Message {
    // Strings, numbers and maps with string keys are JSON always.
    Message { event, data: serde_json::to_string(frame).unwrap_or_default() }
}
