//! Connections between nodes: what is sent arrives in order and late; a cut breaks them, and each end learns of that in
//! its own time.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::{chance::Chance, lock, watch};

/// Who may be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Operator,
    Store,
    Pod(u32),
}

/// One message takes so long as a rule, milliseconds.
const LATENCY: std::ops::Range<u64> = 1..6;
/// One in a hundred takes so long.
const SLOW: std::ops::Range<u64> = 20..300;
/// A connection that is cut is noticed after so long.
const NOTICED: std::ops::Range<u64> = 5..5_000;
/// An attempt to connect to who cannot be reached takes so long.
const CONNECT: std::ops::Range<u64> = 5..1_500;

type Pair = (Node, Node);

/// The network.
pub struct Net {
    chance: Chance,
    cuts: Mutex<BTreeSet<Pair>>,
    open: Mutex<Vec<(Pair, watch::Sender<bool>)>>,
}

fn pair(a: Node, b: Node) -> Pair {
    (a.min(b), a.max(b))
}

impl Net {
    pub fn new(chance: Chance) -> Self {
        Self { chance, cuts: Mutex::default(), open: Mutex::default() }
    }

    pub fn is_cut(&self, a: Node, b: Node) -> bool {
        lock(&self.cuts).contains(&pair(a, b))
    }

    /// Cuts two nodes apart: nothing passes, and what was connected breaks.
    pub fn cut(&self, a: Node, b: Node) {
        let pair = pair(a, b);
        lock(&self.cuts).insert(pair);
        lock(&self.open).retain(|(of, broken)| {
            if *of == pair {
                broken.replace(true);
            }
            *of != pair && !broken.is_alone()
        });
    }

    pub fn heal(&self, a: Node, b: Node) {
        lock(&self.cuts).remove(&pair(a, b));
    }

    pub fn heal_all(&self) {
        lock(&self.cuts).clear();
    }

    /// Waits as for a way there and back; false if there is none.
    pub async fn reach(&self, a: Node, b: Node) -> bool {
        if self.is_cut(a, b) {
            sleep(self.chance.ms(CONNECT)).await;
            return false;
        }
        sleep(self.chance.ms(LATENCY)).await;
        !self.is_cut(a, b)
    }

    /// Both ends of a connection between two nodes that can reach each other.
    pub fn connect<A, B>(&self, a: Node, b: Node) -> (End<A, B>, End<B, A>) {
        let broken = watch::Sender::new(self.is_cut(a, b));
        let observed = broken.subscribe();
        let mut open = lock(&self.open);
        open.retain(|(_, broken)| !broken.is_alone());
        open.push((pair(a, b), broken));
        let (to_b, from_a) = pipe(self.chance.clone(), observed.clone());
        let (to_a, from_b) = pipe(self.chance.clone(), observed);
        (End { sender: to_b, receiver: from_b }, End { sender: to_a, receiver: from_a })
    }
}

/// One end of a connection.
pub struct End<Out, In> {
    pub sender: Sender<Out>,
    pub receiver: Receiver<In>,
}

struct Way<T> {
    to: mpsc::UnboundedSender<(Instant, T)>,
    last: Mutex<Instant>,
    chance: Chance,
    broken: watch::Receiver<bool>,
}

/// The sending half; who drops the last clone closes the connection.
pub struct Sender<T>(Arc<Way<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Sender<T> {
    /// Sends; nobody knows whether it arrives.
    pub fn send(&self, message: T) {
        if self.0.broken.get() {
            return;
        }
        let latency = self.0.chance.ms(if self.0.chance.percent(1) { SLOW } else { LATENCY });
        let mut last = lock(&self.0.last);
        *last = (*last).max(Instant::now() + latency);
        let _ = self.0.to.send((*last, message));
    }
}

/// The receiving half.
pub struct Receiver<T> {
    from: mpsc::UnboundedReceiver<(Instant, T)>,
    head: Option<(Instant, T)>,
    broken: watch::Receiver<bool>,
    lost_at: Option<Instant>,
    chance: Chance,
}

impl<T> Receiver<T> {
    /// The next message; `None` once the connection is known to be over. May be dropped at any time.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            if self.broken.get() {
                let lost_at = *self.lost_at.get_or_insert_with(|| Instant::now() + self.chance.ms(NOTICED));
                sleep_until(lost_at).await;
                return None;
            }
            let due = self.head.as_ref().map(|(at, _)| *at);
            tokio::select! {
                biased;
                _ = self.broken.wait_for(|broken| *broken) => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    return self.head.take().map(|(_, message)| message);
                }
                next = self.from.recv(), if due.is_none() => match next {
                    Some(next) => self.head = Some(next),
                    None => return None,
                },
            }
        }
    }
}

fn pipe<T>(chance: Chance, broken: watch::Receiver<bool>) -> (Sender<T>, Receiver<T>) {
    let (to, from) = mpsc::unbounded_channel();
    let way = Way { to, last: Mutex::new(Instant::now()), chance: chance.clone(), broken: broken.clone() };
    (Sender(Arc::new(way)), Receiver { from, head: None, broken, lost_at: None, chance })
}

/// A way inside of one machine, or to a watch: in order and late, but never broken.
pub fn line<T>(chance: Chance) -> (Sender<T>, Receiver<T>) {
    pipe(chance, watch::Sender::new(false).subscribe())
}
