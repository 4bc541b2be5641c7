//! Carries out the source's side of a handoff: the machine of [`handoff::source`] decides, this file only does.

mod stream;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use failpoint::reach;
use handoff::{
    HandoffId, Instant, Sequence,
    drain::Ended,
    log::{Authority, Grantee, Kind, Writer},
    source::{Action, Cause, Event, Final, Limits, Outcome, Source},
};
use store::{AppendError, Body, Draft};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    task::JoinHandle,
    time,
};
use wire::{
    peer::{self, from_source},
    session::{self, from_agent, gone::How},
};

use crate::{
    agent::{APPEND, Agent, HOST_CALL, State, Target},
    host::Snapshot,
    metrics::Stage,
    peer::{final_to_wire, state_to_wire},
    release::{disclaim, stopped},
    servers::{Phase, Server, server_ref},
};

/// Tries of a thaw before the host is given up as broken. Each waits for the host's own bound.
const THAW_TRIES: u32 = 3;

/// Why a handoff was given up that had nothing wrong with it.
const OVER: &str = "the time for handoffs is over";

enum Input {
    Event(Event<Bytes>),
    Turn(OwnedSemaphorePermit),
}

/// One handoff from here, under way.
struct Giving {
    agent: Arc<Agent>,
    server: Arc<Server>,
    target: Target,
    id: HandoffId,
    limits: Limits,
    inputs: mpsc::UnboundedSender<Input>,
    to_target: Option<mpsc::Sender<peer::FromSource>>,
    grantee: Option<Grantee>,
    turn: Option<OwnedSemaphorePermit>,
    warm: Option<State>,
    last: Option<State>,
    wake: Option<Instant>,
    since: time::Instant,
    held_at: Option<time::Instant>,
    gap: Option<Duration>,
    discarding: Option<JoinHandle<bool>>,
}

/// What became of a handoff.
pub struct Given {
    /// How it ended.
    pub ended: Ended,
    /// How long nobody served the server, if it moved.
    pub gap: Option<Duration>,
    /// Why it did not move, in words; empty if it did.
    pub reason: String,
}

/// Hands a server to a target. Returns when the server is there, durably, or certainly here, or out of our hands. Once
/// `abort` is true it is given up, if that is still possible.
pub async fn give(
    agent: &Arc<Agent>,
    server: &Arc<Server>,
    target: Target,
    limits: Limits,
    mut abort: watch::Receiver<bool>,
) -> Given {
    let _turn = tokio::select! {
        turn = server.turn.lock() => turn,
        () = raised(&mut abort) => return not_begun(Ended::Kept(Cause::Failed)),
    };
    let held = server.held();
    if held.phase != Phase::Active || agent.servers.get(&server.id.uid).is_none() {
        return not_begun(Ended::Gone);
    }
    let (inputs, mut events) = mpsc::unbounded_channel();
    let mut giving = Giving {
        agent: agent.clone(),
        server: server.clone(),
        target,
        id: HandoffId(rand::random()),
        limits,
        inputs,
        to_target: None,
        grantee: None,
        turn: None,
        warm: None,
        last: None,
        wake: None,
        since: time::Instant::now(),
        held_at: None,
        gap: None,
        discarding: None,
    };
    let (mut machine, actions) = Source::start(limits, agent.clock.now());
    let mut outcome = giving.perform(actions).await;
    let mut aborted = false;
    while outcome.is_none() {
        let wake = giving.wake.map_or_else(|| time::Instant::now() + APPEND, |at| agent.clock.at(at));
        let event = tokio::select! {
            () = raised(&mut abort), if !aborted => {
                aborted = true;
                Event::Abort(OVER.into())
            }
            input = events.recv() => match input {
                Some(Input::Event(event)) => event,
                Some(Input::Turn(turn)) => {
                    giving.turn = Some(turn);
                    Event::FreezeTurn
                }
                None => Event::Tick,
            },
            () = time::sleep_until(wake) => {
                // Else a time that is past would wake this again at once, over and over, until an answer comes.
                giving.wake = None;
                Event::Tick
            }
            () = agent.lease.ended(server.writer.generation) => Event::Tick,
        };
        // Whatever woke this: under a lease that is over, nothing is sent, thawed or written any more.
        if !agent.lease.holds(server.writer.generation) {
            return not_begun(Ended::Gone);
        }
        giving.observe(&event);
        outcome = giving.perform(machine.on(event, agent.clock.now())).await;
    }
    let outcome = outcome.unwrap_or(Outcome::Fenced);
    if outcome == Outcome::Fenced && !giving.discarded().await {
        return not_begun(Ended::Gone);
    }
    giving.finish(outcome)
}

fn not_begun(ended: Ended) -> Given {
    Given { ended, gap: None, reason: OVER.into() }
}

/// Returns once the flag is true; never, if that cannot come any more.
async fn raised(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|raised| *raised).await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Giving {
    async fn perform(&mut self, actions: Vec<Action<Bytes>>) -> Option<Outcome> {
        let mut outcome = None;
        for action in actions {
            match action {
                Action::SendOffer => {
                    self.open_stream();
                    reach("source: offered");
                }
                Action::Copy => self.copy(),
                Action::SendWarm(state) => {
                    self.send(from_source::Body::Warm(state_to_wire(&state))).await;
                    self.warm = Some(state);
                }
                Action::Grant(writer) => self.grant(writer),
                Action::WantFreeze => self.want_freeze(),
                Action::Freeze { since } => self.freeze(since),
                Action::SendFinal { grant, last } => self.send_final(grant, last).await,
                Action::Thaw => self.thaw().await,
                Action::Forward => self.forward(),
                Action::Insure => self.insure(),
                Action::Discard => self.discard(),
                Action::Cancel => {
                    self.send(from_source::Body::Cancel(peer::Cancel {})).await;
                    self.to_target = None;
                }
                Action::Wake(at) => self.wake = Some(at),
                Action::Disclaim => {} // told to the operator with the outcome
                Action::End(ended) => outcome = Some(ended),
            }
        }
        outcome
    }

    async fn send(&self, body: from_source::Body) {
        if let Some(stream) = &self.to_target {
            // A closed stream is reported by its reader as PeerLost.
            let _ = stream.send(peer::FromSource { handoff: self.id.0, body: Some(body) }).await;
        }
    }

    /// Opens the stream with the offer, and turns what comes back into events.
    fn open_stream(&mut self) {
        let (sender, receiver) = mpsc::channel(8);
        self.to_target = Some(sender);
        let held = self.server.held();
        let offer = peer::Offer {
            protocol: wire::PROTOCOL,
            namespace: self.server.id.namespace.clone(),
            name: self.server.id.name.clone(),
            uid: self.server.id.uid.0.clone(),
            epoch: held.epoch.0,
            spec_json: self.server.spec_json.clone(),
            state_version: self.agent.state_version_of(&self.server.spec.type_),
            source_pod_uid: self.server.writer.pod.0.clone(),
            source_generation: self.server.writer.generation.0,
            target_pod_uid: self.target.pod.0.clone(),
            patience_ms: u64::try_from(self.limits.per_server.as_millis()).unwrap_or(u64::MAX),
            source_gateway: self.agent.gateway_address().to_string(),
        };
        let first = peer::FromSource { handoff: self.id.0, body: Some(from_source::Body::Offer(offer)) };
        let (agent, target, id, inputs) = (self.agent.clone(), self.target.clone(), self.id, self.inputs.clone());
        let (gateway, address, pod) = (agent.gateway.clone(), target.gateway, target.pod.clone());
        tokio::spawn(async move { gateway.make_ahead(address, &pod).await });
        tokio::spawn(async move {
            stream::follow(&agent, &target, id, first, receiver, &inputs).await;
            let _ = inputs.send(Input::Event(Event::PeerLost));
        });
    }

    fn copy(&self) {
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let event = match agent.host.snapshot(&server.id.uid, server.epoch(), None, HOST_CALL).await {
                Ok(Snapshot::State(state)) => {
                    server.update(|held| held.state_bytes = state.body.len() as u64);
                    Event::Copied(state)
                }
                Ok(Snapshot::Unchanged(_)) => Event::CopyFailed("the host gave no state".into()),
                Err(error) => Event::CopyFailed(error.to_string()),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn grant(&mut self, to: Writer) {
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        let grantee = Grantee { to, handoff: self.id };
        self.grantee = Some(grantee.clone());
        server.update(|held| held.granted = Some(grantee.handoff));
        tokio::spawn(async move {
            reach("source: grant sent");
            let event = match append_grant(&agent, &server, grantee, None).await {
                Ok(sequence) => Event::Granted(sequence),
                Err(AppendError::Fenced(header)) => Event::Fenced(*header),
                Err(error) => Event::GrantFailed(format!("the Grant could not be written: {error}")),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn want_freeze(&self) {
        let (freezes, inputs) = (self.agent.freezes.clone(), self.inputs.clone());
        tokio::spawn(async move {
            if let Ok(turn) = freezes.acquire_owned().await {
                let _ = inputs.send(Input::Turn(turn));
            }
        });
    }

    fn freeze(&mut self, since: Option<handoff::source::Mark>) {
        self.held_at = Some(time::Instant::now());
        self.agent.routes.hold(&self.server.id);
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        let (attempt, within) = (agent.next_attempt(), self.limits.freeze);
        tokio::spawn(async move {
            let event = match agent.host.freeze(&server.id.uid, server.epoch(), attempt, since, within).await {
                Ok(last) => Event::Frozen(last),
                Err(error) => Event::FreezeFailed(error.to_string()),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    async fn send_final(&mut self, grant: Sequence, last: Final<Bytes>) {
        self.server.update(|held| held.phase = Phase::HandingOff);
        let message = peer::Final { grant: grant.0, last: Some(final_to_wire(&last)) };
        self.send(from_source::Body::Final(message)).await;
        reach("source: final sent");
        self.last = match last {
            Final::State(state) => Some(state),
            Final::Unchanged(_) => self.warm.take(),
        };
    }

    async fn thaw(&mut self) {
        self.turn = None;
        for _ in 0..THAW_TRIES {
            let (uid, epoch) = (&self.server.id.uid, self.server.epoch());
            match self.agent.host.thaw(uid, epoch, self.agent.next_attempt(), HOST_CALL).await {
                Ok(()) => {
                    self.server.update(|held| held.phase = Phase::Active);
                    self.agent.routes.set_here(&self.server.id, epoch);
                    return;
                }
                Err(error) => tracing::warn!(server = %self.server.id, %error, "thaw failed"),
            }
        }
        disclaim(&self.agent, &self.server, "the host does not thaw it".into());
    }

    fn forward(&mut self) {
        self.turn = None;
        let next = self.server.epoch().handed_off();
        let id = &self.server.id;
        self.agent.routes.set_there(&id.name, &id.uid, next, self.target.pod.clone(), self.target.gateway);
        if self.gap.is_none() {
            self.agent.news.moved(id, next, &self.target);
            self.gap = self.held_at.map(|at| at.elapsed());
            if let Some(gap) = self.gap {
                self.agent.metrics.stage(Stage::Gap, gap);
            }
        }
    }

    fn insure(&self) {
        let (Some(state), Some(grantee)) = (self.last.clone(), self.grantee.clone()) else { return };
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let event = match append_grant(&agent, &server, grantee, Some(state)).await {
                Ok(sequence) => Event::Insured(sequence),
                Err(AppendError::Fenced(header)) => Event::Fenced(*header),
                Err(error) => {
                    tracing::warn!(server = %server.id, %error, "a final state that went out is not in the store yet");
                    Event::InsureFailed
                }
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn discard(&mut self) {
        let (agent, server) = (self.agent.clone(), self.server.clone());
        self.discarding = Some(tokio::spawn(async move {
            let stopped = stopped(&agent, &server).await;
            reach("source: discarded");
            stopped
        }));
    }

    /// Notes how long each step took.
    fn observe(&mut self, event: &Event<Bytes>) {
        let stage = match event {
            Event::Accepted(_) => Stage::Offer,
            Event::Copied(_) => Stage::Warm,
            Event::Granted(_) => Stage::Grant,
            Event::Ready => Stage::Standby,
            Event::FreezeTurn => Stage::Queue,
            Event::Frozen(_) => Stage::Freeze,
            Event::Activated => Stage::FinalToActivated,
            Event::Durable(_) => Stage::Durable,
            _ => return,
        };
        reach(stage.place());
        self.agent.metrics.stage(stage, self.since.elapsed());
        // The copy with the standby, and the Grant, run side by side from the acceptance on.
        if !matches!(stage, Stage::Warm | Stage::Grant | Stage::Standby) {
            self.since = time::Instant::now();
        }
    }

    /// Before anybody is told that a server is gone that ran until now: on that word it is started elsewhere.
    /// `false`: the lease was over first.
    async fn discarded(&mut self) -> bool {
        self.agent.routes.hold(&self.server.id);
        match self.discarding.take() {
            // It does not panic, and nobody aborts it.
            Some(discarding) => discarding.await.unwrap_or(false),
            None => true,
        }
    }

    fn finish(self, outcome: Outcome) -> Given {
        self.agent.metrics.handoff(&outcome);
        let (result, reason, ended) = match outcome {
            Outcome::Moved => {
                self.server.update(|held| held.handed_off = true);
                self.agent.gone(&self.server, How::HandedOff, "", Some(&self.target.pod));
                ("Moved", String::new(), Ended::Moved)
            }
            Outcome::Kept { cause, reason } => ("Kept", reason, Ended::Kept(cause)),
            Outcome::Fenced => {
                self.agent.gone(&self.server, How::Fenced, "the log says that another pod owns it", None);
                ("Gone", "fenced".to_owned(), Ended::Gone)
            }
            Outcome::Disclaimed => {
                self.server.update(|held| held.handed_off = true);
                let reason = "the target was not heard of after the final state was sent";
                self.agent.gone(&self.server, How::Disclaimed, reason, Some(&self.target.pod));
                ("Gone", reason.to_owned(), Ended::Gone)
            }
        };
        self.report(result, &reason);
        Given { ended, gap: self.gap, reason }
    }

    fn report(&self, result: &str, reason: &str) {
        let held = self.server.held();
        tracing::info!(server = %self.server.id, to = %self.target.name, result, reason, gap_us = self.gap.map(micros), "handoff");
        self.agent.operator.tell(from_agent::Body::Moved(session::Moved {
            server: Some(server_ref(&self.server.id)),
            handoff: format!("{:016x}", self.id.0),
            to_pod_uid: self.target.pod.0.clone(),
            epoch: held.epoch.handed_off().0,
            result: result.to_owned(),
            reason: reason.to_owned(),
            gap_us: self.gap.map_or(0, micros),
        }));
    }
}

/// Whole microseconds.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Appends a Grant, with the final state or without one.
async fn append_grant(
    agent: &Arc<Agent>,
    server: &Arc<Server>,
    grantee: Grantee,
    state: Option<State>,
) -> Result<Sequence, AppendError> {
    let held = server.held();
    let authority = Authority::Owner { epoch: held.epoch, granted: Some(grantee.handoff) };
    let draft = Draft {
        epoch: held.epoch,
        kind: Kind::Grant(grantee),
        writer: server.writer.clone(),
        body: state.map_or_else(
            || held.state_at(),
            |state| Body::State(store::State { version: state.version, body: state.body }),
        ),
    };
    let header = server.log.append(&authority, draft, held.sequence, agent.lease.append_until()).await?;
    server.update(|held| {
        held.sequence = header.sequence;
        held.state_at = header.state_at;
        if header.bears_state() {
            held.last_sync = Some(SystemTime::now());
        }
    });
    Ok(header.sequence)
}
