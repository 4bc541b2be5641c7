//! How much the gateway may do at once: in all, and for one server, so that a hot one leaves room for the others.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    gateway::{Limits, answer::Refusal},
    metrics::Metrics,
};

/// What is counted, in all or for one server.
#[derive(Default)]
struct Counts {
    in_flight: AtomicUsize,
    held: AtomicUsize,
    buffered: AtomicUsize,
}

/// The bounds of what is counted.
struct Most {
    in_flight: usize,
    held: usize,
    buffered: usize,
}

/// Requests under way, requests that wait and bodies that are buffered, counted against bounds.
pub struct Bounds {
    most: Most,
    most_of_one: Most,
    all: Counts,
    /// Of the servers that have a request under way.
    servers: Mutex<HashMap<Arc<str>, Arc<Counts>>>,
    metrics: Metrics,
}

impl Bounds {
    pub fn new(limits: &Limits, metrics: Metrics) -> Arc<Self> {
        let most = Most { in_flight: limits.connections, held: limits.held, buffered: limits.buffered };
        let part = |whole: usize| (whole / limits.parts.max(1)).max(1);
        let most_of_one =
            Most { in_flight: part(most.in_flight), held: part(most.held), buffered: part(most.buffered) };
        Arc::new(Self { most, most_of_one, all: Counts::default(), servers: Mutex::default(), metrics })
    }

    /// Lets a request for a server in.
    pub fn enter(self: &Arc<Self>, server: &str) -> Result<Arc<Visit>, Refusal> {
        let (name, one) = self.counts_of(server);
        // Leaves again when dropped.
        let mut visit = Visit { bounds: self.clone(), name, one, counted: false };
        if !add(&visit.one.in_flight, 1, self.most_of_one.in_flight) {
            let most = self.most_of_one.in_flight;
            return Err(Refusal::later(format!("server {server} has {most} requests under way here; try again")));
        }
        if !add(&self.all.in_flight, 1, self.most.in_flight) {
            visit.one.in_flight.fetch_sub(1, Ordering::Relaxed);
            let most = self.most.in_flight;
            return Err(Refusal::later(format!("this gateway has {most} requests under way; try again")));
        }
        visit.counted = true;
        Ok(Arc::new(visit))
    }

    fn servers(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Counts>>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts_of(&self, server: &str) -> (Arc<str>, Arc<Counts>) {
        let mut servers = self.servers();
        if let Some((name, one)) = servers.get_key_value(server) {
            return (name.clone(), one.clone());
        }
        let (name, one) = (Arc::<str>::from(server), Arc::<Counts>::default());
        servers.insert(name.clone(), one.clone());
        (name, one)
    }
}

/// Adds unless the sum would pass `max`.
fn add(counter: &AtomicUsize, more: usize, max: usize) -> bool {
    let sum = |now: usize| now.checked_add(more).filter(|sum| *sum <= max);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum).is_ok()
}

/// A request under way, from its head to the end of its answer or socket.
pub struct Visit {
    bounds: Arc<Bounds>,
    name: Arc<str>,
    one: Arc<Counts>,
    counted: bool,
}

impl Visit {
    /// A place to wait in.
    pub fn hold(&self) -> Result<Holding<'_>, Refusal> {
        let Bounds { most, most_of_one, all, metrics, .. } = &*self.bounds;
        if !add(&self.one.held, 1, most_of_one.held) {
            let (name, most) = (&self.name, most_of_one.held);
            return Err(Refusal::later(format!("{most} requests wait for server {name} already; try again")));
        }
        if !add(&all.held, 1, most.held) {
            self.one.held.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::later(format!("{} requests wait for their servers already; try again", most.held)));
        }
        metrics.held();
        Ok(Holding(self))
    }

    /// Room for one body, none taken yet. The visit lasts as long as that: a body may still come when the answer is out.
    pub fn buffer(self: &Arc<Self>) -> Buffer {
        Buffer { visit: self.clone(), bytes: 0 }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if self.counted {
            self.one.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.bounds.all.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
        let mut servers = self.bounds.servers();
        // Nobody can enter while the table is locked: besides this visit only the table knows them.
        if Arc::strong_count(&self.one) <= 2 {
            servers.remove(&self.name);
        }
    }
}

/// A place among the requests that wait.
pub struct Holding<'a>(&'a Visit);

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.one.held.fetch_sub(1, Ordering::Relaxed);
        self.0.bounds.all.held.fetch_sub(1, Ordering::Relaxed);
        self.0.bounds.metrics.unheld();
    }
}

/// Bytes of a buffered body, given back when dropped.
pub struct Buffer {
    visit: Arc<Visit>,
    bytes: usize,
}

impl Buffer {
    pub fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        let Visit { bounds, one, name, .. } = &*self.visit;
        if !add(&one.buffered, bytes, bounds.most_of_one.buffered) {
            return Err(Refusal::later(format!(
                "this gateway has no room for another body of a request to server {name} now; try again"
            )));
        }
        if !add(&bounds.all.buffered, bytes, bounds.most.buffered) {
            one.buffered.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Refusal::later("this gateway has no room for another request body now; try again"));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Nothing of it is kept any more.
    pub fn give_back(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.visit.one.buffered.fetch_sub(bytes, Ordering::Relaxed);
        self.visit.bounds.all.buffered.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_takes_its_part_and_all_together_take_the_whole() {
        let limits = Limits { connections: 6, held: 4, buffered: 40, parts: 2, ..Limits::default() };
        let bounds = Bounds::new(&limits, Metrics::new().unwrap());
        let hot: Vec<_> = (0..3).map(|_| bounds.enter("hot").unwrap()).collect();
        assert!(bounds.enter("hot").is_err());
        let others: Vec<_> = ["a", "b", "c"].iter().map(|name| bounds.enter(name).unwrap()).collect();
        assert!(bounds.enter("d").is_err(), "six are under way");

        let waiting = (hot[0].hold().unwrap(), hot[1].hold().unwrap());
        assert!(hot[2].hold().is_err());
        let more = (others[0].hold().unwrap(), others[1].hold().unwrap());
        assert!(others[2].hold().is_err(), "four wait");
        drop(waiting);
        assert!(hot[2].hold().is_ok() && others[2].hold().is_ok());

        let mut large = hot[0].buffer();
        large.take(20).unwrap();
        assert!(hot[1].buffer().take(1).is_err());
        assert!(others[0].buffer().take(20).is_ok());
        drop((large, more));
        assert!(hot[1].buffer().take(20).is_ok());

        drop((hot, others));
        assert!(bounds.servers().is_empty());
        assert_eq!(bounds.all.in_flight.load(Ordering::Relaxed), 0);
        assert!(bounds.enter("d").is_ok());
    }
}
