//! An agent's right to serve, in time. The agent counts it from *before* it sends a heartbeat, the operator from when it
//! heard one: the agent's time is over first, whatever was late, lost or asleep in between.
//!
//! ```text
//!  agent     beat ─────────────────────────────────────── ends ──── deadline      (counted from before `beat` was sent)
//!              └─ no answer by session: beat in the store   └ all servers are stopped in between
//!  operator         heard ───────────────────────────────────────────── silent    (and leadership held as long)
//! ```
//!
//! All times are of the boot-time clock of one machine, and are never compared with another's.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use crate::ids::{Generation, Instant};

/// One sign of life. The counter is one for both ways, the session and the store, and grows with every heartbeat of a
/// generation. The default says that none was ever heard: it is below every other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Whose it is: what was begun under another generation is not meant by it.
    pub generation: Generation,
    /// Its number, from 1.
    pub counter: u64,
}

/// How much slower an agent's clock may run than the operator's: one part in this many. Kernels discipline their clocks
/// to 500 parts in a million; this is twenty times that.
const DRIFT: u32 = 100;

/// The part of a lease at its end in which servers are stopped: one in this many.
const STOPPING: u32 = 5;

/// How much of a lease may pass without an answer by the session until a heartbeat goes to the store: two parts in this
/// many, so that it is there, or has failed and is tried again, well within two thirds.
const STORE: u32 = 5;

/// What a lease is good for at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No heartbeat of this generation was answered yet: nothing may be begun.
    Waiting,
    /// What was begun under this generation may go on.
    Alive,
    /// It is over for ever, with all that was begun under it.
    Over,
}

/// The agent's side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    duration: Duration,
    /// The duration that holds for the newest answered heartbeat.
    counts: Duration,
    last: Heartbeat,
    /// Sent and not answered, by counter; the oldest first.
    unanswered: VecDeque<(u64, Instant)>,
    /// When the newest answered heartbeat was sent.
    since: Option<Instant>,
    over: bool,
}

impl Lease {
    /// A generation that no heartbeat was answered for yet.
    #[must_use]
    pub fn new(generation: Generation, duration: Duration) -> Self {
        let last = Heartbeat { generation, counter: 0 };
        Self { duration, counts: duration, last, unanswered: VecDeque::new(), since: None, over: false }
    }

    /// The present generation.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.last.generation
    }

    /// How long an answered heartbeat counts.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// The pool's settings changed. A shorter duration counts at once, a longer one from the next answer on: what the
    /// operator heard of so far was sent with the other.
    pub fn set_duration(&mut self, duration: Duration) {
        self.duration = duration;
        self.counts = self.counts.min(duration);
    }

    /// A heartbeat to send now; the number is used up, whatever becomes of it. `None`: this generation is over.
    pub fn beat(&mut self, now: Instant) -> Option<Heartbeat> {
        if self.look(now) == Standing::Over {
            return None;
        }
        // An answer to one that is older than a lease would be of no use.
        while self.unanswered.front().is_some_and(|(_, sent)| now - *sent >= self.duration) {
            self.unanswered.pop_front();
        }
        self.last.counter += 1;
        self.unanswered.push_back((self.last.counter, now));
        Some(self.last)
    }

    /// The operator, or the store, has this heartbeat. Whether that makes the lease longer. An answer that is looked at
    /// too late changes nothing, however early it came.
    pub fn answered(&mut self, heartbeat: Heartbeat, now: Instant) -> bool {
        if self.look(now) == Standing::Over || heartbeat.generation != self.last.generation {
            return false;
        }
        let Some(sent) = self.unanswered.iter().find(|(counter, _)| *counter == heartbeat.counter).map(|(_, at)| *at)
        else {
            return false;
        };
        self.unanswered.retain(|(counter, _)| *counter > heartbeat.counter);
        if now >= sent + usable(self.duration) || self.since.is_some_and(|since| since >= sent) {
            return false;
        }
        (self.since, self.counts) = (Some(sent), self.duration);
        true
    }

    /// What holds now. To be asked before anything else is done about an event: past its end a generation stays over.
    pub fn look(&mut self, now: Instant) -> Standing {
        self.over |= self.ends().is_some_and(|ends| now >= ends);
        match self.since {
            _ if self.over => Standing::Over,
            None => Standing::Waiting,
            Some(_) => Standing::Alive,
        }
    }

    /// Goes on with the generation of an earlier run of this agent, which the host may serve until `deadline`: as if a
    /// heartbeat had been answered now that counts for no more than what is left. The next heartbeats follow `last`, which
    /// must be above all that were sent: the operator takes others for late ones.
    pub fn resume(&mut self, last: Heartbeat, deadline: Instant, now: Instant) {
        let fresh = Self::new(last.generation, self.duration);
        *self = Self { last, since: Some(now), counts: deadline - now, ..fresh };
    }

    /// How long what was answered counts; zero: nothing was.
    #[must_use]
    pub fn counts(&self) -> Duration {
        self.since.map(|_| self.counts).unwrap_or_default()
    }

    /// Ends this generation before its time, as when the host has ended it.
    pub fn end(&mut self) {
        self.over = true;
    }

    /// When this generation is over for the agent, which has until [`Self::deadline`] to have everything stopped.
    #[must_use]
    pub fn ends(&self) -> Option<Instant> {
        self.since.map(|since| since + usable(self.counts))
    }

    /// From when on nothing may be served any more: what the host is told.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + counted(self.counts))
    }

    /// From when on a heartbeat goes to the store, unless one is answered before.
    #[must_use]
    pub fn store_from(&self) -> Option<Instant> {
        self.since.map(|since| since + self.counts * 2 / STORE)
    }

    /// Begins the next generation, once nothing is left of the one before.
    pub fn begin(&mut self, generation: Generation) {
        *self = Self::new(generation.max(Generation(self.last.generation.0 + 1)), self.duration);
    }
}

fn counted(duration: Duration) -> Duration {
    duration.saturating_sub(duration / DRIFT)
}

fn usable(duration: Duration) -> Duration {
    counted(duration).saturating_sub(duration / STOPPING)
}

/// The operator's side: what it heard of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Heard {
    last: Heartbeat,
    at: Option<Instant>,
    duration: Duration,
}

impl Heard {
    /// A heartbeat of this pod is known now, by which the pod counts `duration`. An older one than is known changes
    /// nothing: it is late, and not to be answered, since its pod would count from it and this side does not.
    pub fn beat(&mut self, heartbeat: Heartbeat, duration: Duration, now: Instant) -> bool {
        let is_news = heartbeat > self.last;
        if is_news {
            *self = Self { last: heartbeat, at: Some(now), duration };
        }
        is_news
    }

    /// The newest heartbeat known.
    #[must_use]
    pub fn last(&self) -> Heartbeat {
        self.last
    }

    /// Whether the pod was silent for a whole lease, in all of which this operator led (`since` it leads) and would
    /// have heard it: `duration`, or what the pod itself said if that is longer. `now` must be read after all that
    /// came in was taken in. This alone is no proof: heartbeats may be in the store, and whoever claims must look.
    #[must_use]
    pub fn is_silent(&self, since: Instant, duration: Duration, now: Instant) -> bool {
        now >= self.at.map_or(since, |at| at.max(since)) + duration.max(self.duration)
    }
}
