//! The one task that owns the [`World`]: events in, effects out.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use failpoint::reach;
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use wire::session::{ToAgent, to_agent};

use crate::{
    certificates::peers,
    foretell::{self, Ask},
    metrics::METRICS,
    model::{Effect, Event, Note, Now, Outbox, Refusal, SessionId, Write},
    page::{self, Lens},
    world::{BEAT, World},
};

/// Events taken in before effects are worked out.
const BATCH: usize = 512;
/// Longest time to do nothing.
const IDLE: Duration = Duration::from_secs(1);

/// Where effects go.
pub struct Edges {
    /// Writes to the API server.
    pub writes: mpsc::UnboundedSender<Write>,
    /// Events for people; dropped when nobody keeps up.
    pub notes: mpsc::Sender<Note>,
    /// Certificates that agents ask for; not more than can be made.
    pub certificates: mpsc::Sender<peers::Request>,
    /// Set once all objects are known.
    pub ready: Arc<AtomicBool>,
    /// What the page is shown.
    pub lens: Lens,
    /// What people ask of what would happen.
    pub asks: mpsc::Receiver<Ask>,
    /// Until when this replica leads.
    pub leads_until: watch::Receiver<Option<Instant>>,
}

/// Runs the world until `stop`, or until no more events can come.
pub async fn run(mut world: World, mut events: mpsc::Receiver<Event>, mut edges: Edges, stop: CancellationToken) {
    let start = Instant::now();
    let mut outboxes: HashMap<SessionId, Outbox> = HashMap::new();
    let mut batch = Vec::with_capacity(BATCH);
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = start;
    let mut answered = start;
    loop {
        let wake = world.wake().map_or_else(|| Instant::now() + IDLE, |at| start + at.0);
        let wake = if edges.lens.is_used() { wake.min(looked + page::EVERY) } else { wake };
        let mut beats = false;
        let mut asked = None;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            taken = events.recv_many(&mut batch, BATCH) => if taken == 0 { return },
            _ = beat.tick() => beats = true,
            Some(ask) = edges.asks.recv(), if answered.elapsed() >= foretell::EVERY => asked = Some(ask),
            () = sleep_until(wake) => {}
        }
        // One reading of the clock, after what came in and before anything is decided or answered.
        let read = Instant::now();
        if edges.leads_until.borrow().is_none_or(|until| read >= until) {
            tracing::warn!("this replica does not lead any more, and decides nothing");
            return;
        }
        let now = Now { mono: handoff::Instant(read - start), wall: Timestamp::now() };
        for mut event in batch.drain(..) {
            match &mut event {
                Event::Open(opening) => {
                    if let Some(outbox) = opening.outbox.take() {
                        outboxes.insert(opening.id, outbox);
                    }
                }
                Event::Closed(id) => drop(outboxes.remove(id)),
                _ => {}
            }
            world.apply(event, now);
        }
        if beats {
            world.beat(now);
        }
        for effect in world.settle(now) {
            carry_out(effect, &mut outboxes, &edges);
        }
        if let Some(Ask { question, answer }) = asked {
            answered = Instant::now();
            // Who asked may be gone.
            let _ = answer.send(world.foretell(&question));
        }
        if looked.elapsed() >= page::EVERY {
            looked = Instant::now();
            edges.lens.look(&mut world, now);
        }
        edges.ready.store(world.initialised_all(), Ordering::Relaxed);
        METRICS.sessions.set(i64::try_from(outboxes.len()).unwrap_or(i64::MAX));
        METRICS.servers.set(i64::try_from(world.servers()).unwrap_or(i64::MAX));
    }
}

fn carry_out(effect: Effect, outboxes: &mut HashMap<SessionId, Outbox>, edges: &Edges) {
    match effect {
        Effect::Send(id, body) => {
            let Some(outbox) = outboxes.get(&id) else { return };
            let place = place(&body);
            if outbox.sender.try_send(Ok(ToAgent { body: Some(body) })).is_err() {
                tracing::warn!(session = id.0, "an agent does not read what it is sent; its session is ended");
                outboxes.remove(&id);
            }
            reach(place);
        }
        Effect::Certify { session, pod, public_key } => {
            let Some(outbox) = outboxes.get(&session) else { return };
            let request = peers::Request { pod, public_key, answer: outbox.sender.clone() };
            if edges.certificates.try_send(request).is_err() {
                tracing::warn!("an agent must ask again for its certificate: too many do");
            }
        }
        Effect::Close(id, refusal) => {
            if let Some(outbox) = outboxes.remove(&id) {
                // A full outbox loses the reason, not the end.
                let _ = outbox.sender.try_send(Err(status(&refusal)));
            }
        }
        Effect::Write(write) => {
            // A closed channel means that the operator stops.
            let _ = edges.writes.send(write);
        }
        Effect::Publish(note) => {
            if edges.notes.try_send(*note).is_err() {
                tracing::warn!("an event for people was dropped");
            }
        }
    }
}

/// For tests.
fn place(body: &to_agent::Body) -> &'static str {
    match body {
        to_agent::Body::Assign(_) => "operator: assignment sent",
        to_agent::Body::Drain(_) => "operator: drain ordered",
        _ => "operator: something sent",
    }
}

fn status(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Starting | Refusal::UnknownPod(_) => Status::unavailable(text),
        Refusal::NoPool(_) | Refusal::Protocol { .. } => Status::failed_precondition(text),
        Refusal::Replaced => Status::aborted(text),
        Refusal::PodOver | Refusal::Address { .. } => Status::permission_denied(text),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nothing_is_decided_or_answered_once_the_lease_may_be_anothers() {
        let (events, incoming) = mpsc::channel(4);
        let (leads, leads_until) = watch::channel(Some(Instant::now() + Duration::from_secs(5)));
        let (stop, (writes, _to_write), (notes, _to_publish)) =
            (CancellationToken::new(), mpsc::unbounded_channel(), mpsc::channel(1));
        let (lens, _page) = page::new(stop.clone());
        let (certificates, _to_issue) = mpsc::channel(1);
        let (_ask, asks) = mpsc::channel(1);
        let edges = Edges { writes, notes, certificates, ready: Arc::default(), lens, asks, leads_until };
        let driven = tokio::spawn(run(World::new("cluster".into(), 1), incoming, edges, stop));
        sleep(Duration::from_millis(4_900)).await;
        assert!(!driven.is_finished());
        leads.send_replace(Some(Instant::now() + Duration::from_secs(5)));
        sleep(Duration::from_millis(4_900)).await;
        assert!(!driven.is_finished(), "renewed");
        sleep(Duration::from_millis(400)).await;
        assert!(driven.is_finished() && events.is_closed());
    }
}
