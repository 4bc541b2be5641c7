//! Carries out the target's side of a handoff: the machine of [`handoff::target`] decides, this file only does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use failpoint::reach;
use handoff::{
    Epoch, HandoffId, Instant, Sequence, ServerId, ServerUid,
    log::{Authority, Kind},
    source::Final,
    target::{Action, Event, Outcome, Target},
};
use store::{AppendError, Body, Draft};
use tokio::{sync::mpsc, time};
use tonic::Streaming;
use wire::{
    peer::{self, from_source, from_target},
    session::from_agent,
};

use crate::{
    agent::{Agent, HOST_CALL, Pool, State},
    host::{Mode, StartCall},
    peer::{final_from_wire, state_from_wire},
    routes::Found,
    servers::{Phase, Server, next_sync},
};

/// Beyond the source's own limit: the target gives a slot back only when the source has certainly given up.
const PATIENCE_MARGIN: Duration = Duration::from_secs(3);

/// The longest patience that a source may ask for.
const MAX_PATIENCE: Duration = Duration::from_mins(1);

/// Between two tries of the first record, or of a stop, that failed.
const RETRY: Duration = Duration::from_millis(500);

/// One server on its way here.
struct Arrival {
    id: HandoffId,
    kind: String,
    events: mpsc::UnboundedSender<Event<Bytes>>,
}

type UnderWay = HashMap<ServerUid, Arrival>;

/// Servers on their way here.
#[derive(Default)]
pub struct Receiving(Mutex<UnderWay>);

impl Receiving {
    fn lock(&self) -> std::sync::MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this server is on its way here.
    #[must_use]
    pub fn has(&self, uid: &ServerUid) -> bool {
        self.lock().contains_key(uid)
    }

    /// How many are on their way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The operator's word that what was promised for this server is over. Nothing happens past Final.
    pub fn withdraw(&self, uid: &ServerUid, reason: &str) {
        if let Some(arrival) = self.lock().get(uid) {
            let _ = arrival.events.send(Event::Withdraw(reason.to_owned()));
        }
    }

    /// Reserves a place. Offers come side by side, so that there is room is looked up in the same moment.
    fn begin(
        &self,
        uid: &ServerUid,
        arrival: Arrival,
        has_room: impl FnOnce(&UnderWay) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut receiving = self.lock();
        if receiving.contains_key(uid) {
            return Err("an earlier handoff of this server to this pod is not over".to_owned());
        }
        has_room(&receiving)?;
        receiving.insert(uid.clone(), arrival);
        Ok(())
    }

    fn end(&self, uid: &ServerUid, id: HandoffId) {
        let mut receiving = self.lock();
        if receiving.get(uid).is_some_and(|current| current.id == id) {
            receiving.remove(uid);
        }
    }
}

/// One handoff to here, under way.
struct Taking {
    agent: Arc<Agent>,
    server: Arc<Server>,
    pool: Pool,
    from: Epoch,
    id: HandoffId,
    attempt: u64,
    events: mpsc::UnboundedSender<Event<Bytes>>,
    answers: mpsc::UnboundedSender<peer::FromTarget>,
    wake: Option<Instant>,
}

/// Takes an offer, or says why not.
pub async fn receive(
    agent: Arc<Agent>,
    handoff: u64,
    offer: peer::Offer,
    incoming: Streaming<peer::FromSource>,
    answers: mpsc::UnboundedSender<peer::FromTarget>,
) {
    let id = HandoffId(handoff);
    let (events, mut inbox) = mpsc::unbounded_channel();
    let (pool, server) = match take(&agent, &offer, id, &events) {
        Ok(taken) => taken,
        Err(reason) => {
            tracing::info!(server = %offer.name, from = %offer.source_pod_uid, %reason, "offer rejected");
            let _ = answers.send(peer::FromTarget { handoff, body: Some(from_target::Body::Reject(reason)) });
            return;
        }
    };
    tokio::spawn(read(incoming, id, events.clone()));
    let patience = Duration::from_millis(offer.patience_ms).min(MAX_PATIENCE) + PATIENCE_MARGIN;
    let (mut machine, actions) = Target::accept(agent.clock.now(), patience, RETRY);
    let mut taking = Taking {
        attempt: agent.next_attempt(),
        agent: agent.clone(),
        server,
        pool,
        from: Epoch(offer.epoch),
        id,
        events,
        answers,
        wake: None,
    };
    // Held until the first record is written: a sync asked for meanwhile waits for it.
    let server = taking.server.clone();
    let generation = server.writer.generation;
    let turn = server.turn.lock().await;
    let mut outcome = taking.perform(actions);
    while outcome.is_none() {
        let wake = taking.wake.map_or_else(|| time::Instant::now() + RETRY, |at| agent.clock.at(at));
        let event = tokio::select! {
            event = inbox.recv() => event.unwrap_or(Event::Tick),
            () = time::sleep_until(wake) => {
                // Else a time that is past would wake this again at once, over and over, until an answer comes.
                taking.wake = None;
                Event::Tick
            }
            () = agent.lease.ended(generation) => Event::Tick,
        };
        // Whatever woke this: under a lease that is over, nothing is activated or written any more.
        if !agent.lease.holds(generation) {
            taking.stop();
            agent.receiving.end(&server.id.uid, id);
            return;
        }
        outcome = taking.perform(machine.on(event, agent.clock.now()));
    }
    if let Some(outcome) = outcome {
        taking.finish(&outcome);
    }
    drop(turn);
    // A Final that crossed the news of the end on its way is still answered, while the source keeps the stream.
    while let Some(event) = inbox.recv().await {
        if event == Event::PeerLost {
            break;
        }
        taking.perform(machine.on(event, agent.clock.now()));
    }
}

/// Reserves a place for the server, or says why not.
fn take(
    agent: &Arc<Agent>,
    offer: &peer::Offer,
    id: HandoffId,
    events: &mpsc::UnboundedSender<Event<Bytes>>,
) -> Result<(Pool, Arc<Server>), String> {
    let (pool, server) = admit(agent, offer)?;
    let kind = server.spec.type_.clone();
    let max_of_type = server.settings(&pool)?.max_of_type_per_pod;
    let arrival = Arrival { id, kind: kind.clone(), events: events.clone() };
    agent.receiving.begin(&server.id.uid, arrival, |receiving| has_room(agent, receiving, &kind, max_of_type))?;
    Ok((pool, server))
}

/// Servers past their activation are held and still on their way: they count once.
fn has_room(agent: &Agent, receiving: &UnderWay, kind: &str, max_of_type: Option<u32>) -> Result<(), String> {
    let arriving = |uid: &&ServerUid| agent.servers.get(uid).is_none();
    let capacity = agent.capacity();
    if agent.servers.len() + receiving.keys().filter(arriving).count() >= capacity {
        return Err(format!("this pod is full ({capacity} servers)"));
    }
    let Some(max) = max_of_type.and_then(|max| usize::try_from(max).ok()) else { return Ok(()) };
    let here = agent.servers.all().iter().filter(|server| server.spec.type_ == kind).count();
    let coming = receiving.iter().filter(|(uid, arrival)| arrival.kind == kind && arriving(uid)).count();
    if here + coming >= max {
        return Err(format!("this pod has as many servers of type {kind} as it may ({max})"));
    }
    Ok(())
}

/// Whether this pod takes this server: not draining, the right pod, a state that its host can load.
fn admit(agent: &Arc<Agent>, offer: &peer::Offer) -> Result<(Pool, Arc<Server>), String> {
    if offer.protocol.abs_diff(wire::PROTOCOL) > 1 {
        return Err(format!(
            "protocol {} is not understood here; this agent speaks {}",
            offer.protocol,
            wire::PROTOCOL
        ));
    }
    if offer.target_pod_uid != agent.lease.pod().0 {
        return Err("this is another pod than the offer names".into());
    }
    if offer.namespace != agent.config.namespace || offer.name.is_empty() || offer.uid.is_empty() || offer.epoch == 0 {
        return Err("the offer does not name a server of this namespace and its epoch".into());
    }
    if is_over(agent, offer) {
        return Err("the offer is of an epoch that is over: its server has been handed on since".into());
    }
    if agent.draining.is_draining() {
        return Err("this pod is draining".into());
    }
    let pool = agent.pool()?;
    let id =
        ServerId { namespace: offer.namespace.clone(), name: offer.name.clone(), uid: ServerUid(offer.uid.clone()) };
    if agent.servers.get(&id.uid).is_some() || agent.starting.has(&id.uid) {
        return Err("this pod has the server already".into());
    }
    let server = Server::new(agent, &pool, id, offer.spec_json.clone(), Epoch(offer.epoch).handed_off())?;
    if !agent.lease.holds(server.writer.generation) {
        return Err("this pod has no lease now".into());
    }
    agent.can_load(&server.spec.type_, Some(offer.state_version))?;
    Ok((pool, server))
}

/// An owner of a later epoch is known, so nobody has this one to give: the offer is an old one, said again.
fn is_over(agent: &Agent, offer: &peer::Offer) -> bool {
    match agent.routes.find(&offer.name) {
        Found::Known(route) => route.uid.0 == offer.uid && route.epoch > Epoch(offer.epoch),
        Found::Unknown | Found::NotYet => false,
    }
}

async fn read(mut incoming: Streaming<peer::FromSource>, id: HandoffId, events: mpsc::UnboundedSender<Event<Bytes>>) {
    while let Ok(Some(message)) = incoming.message().await {
        if message.handoff != id.0 {
            continue;
        }
        let event = match message.body {
            Some(from_source::Body::Warm(state)) => state_from_wire(state).map(Event::Warm),
            Some(from_source::Body::Final(last)) => {
                reach("target: final received");
                let grant = Sequence(last.grant);
                last.last.and_then(final_from_wire).map(|last| Event::Final { grant, last })
            }
            Some(from_source::Body::Cancel(_)) => break,
            Some(from_source::Body::Offer(_)) | None => None,
        };
        // A state whose bytes do not match its mark ends the stream: before Final nothing is lost by that, and a
        // Final that came mangled is as good as one that never came.
        let Some(event) = event else { break };
        if events.send(event).is_err() {
            return;
        }
    }
    let _ = events.send(Event::PeerLost);
}

impl Taking {
    fn perform(&mut self, actions: Vec<Action<Bytes>>) -> Option<Outcome> {
        let mut outcome = None;
        for action in actions {
            match action {
                Action::SendAccept => {
                    self.answer(from_target::Body::Accept(peer::Accept {
                        pod_uid: self.server.writer.pod.0.clone(),
                        generation: self.server.writer.generation.0,
                    }));
                    reach("target: accepted");
                }
                Action::StartStandby(state) => self.start_standby(state),
                Action::SendReady => {
                    self.answer(from_target::Body::Ready(peer::Ready {}));
                    reach("target: ready");
                }
                Action::SendReject(reason) => self.answer(from_target::Body::Reject(reason)),
                Action::Activate(last) => self.activate(last),
                Action::Serve => self.serve(),
                Action::Append { after, state, release } => self.append(after, state, release),
                Action::SendDurable(sequence) => {
                    self.answer(from_target::Body::Durable(peer::Durable { sequence: sequence.0 }));
                }
                Action::SendRefused(reason) => self.answer(from_target::Body::Refused(reason)),
                Action::Stop => self.stop(),
                Action::Wake(at) => self.wake = Some(at),
                Action::End(ended) => outcome = Some(ended),
            }
        }
        outcome
    }

    fn answer(&self, body: from_target::Body) {
        let _ = self.answers.send(peer::FromTarget { handoff: self.id.0, body: Some(body) });
    }

    fn start_standby(&self, state: State) {
        let (agent, server, events, attempt) =
            (self.agent.clone(), self.server.clone(), self.events.clone(), self.attempt);
        tokio::spawn(async move {
            let config = server.config();
            let call = StartCall {
                id: &server.id,
                kind: &server.spec.type_,
                epoch: server.epoch(),
                attempt,
                mode: Mode::Standby,
                config: config.as_ref(),
                state: Some(&state),
            };
            let event = match agent.host.start(&call, HOST_CALL).await {
                Ok(_) => {
                    reach("target: standby");
                    Event::StandbyStarted
                }
                Err(error) => Event::StandbyFailed(format!("the host did not start a standby: {error}")),
            };
            let _ = events.send(event);
        });
    }

    fn activate(&self, last: Final<Bytes>) {
        let (agent, server, events, attempt) =
            (self.agent.clone(), self.server.clone(), self.events.clone(), self.agent.next_attempt());
        tokio::spawn(async move {
            let event = match agent.host.activate(&server.id.uid, server.epoch(), attempt, &last, HOST_CALL).await {
                Ok(mark) => {
                    reach("target: activated");
                    server.update(|held| held.synced = Some(mark));
                    Event::Activated
                }
                Err(error) => Event::ActivateFailed(format!("the host did not activate: {error}")),
            };
            let _ = events.send(event);
        });
    }

    /// Opens the gate first: every microsecond until then is gap.
    fn serve(&self) {
        self.agent.routes.set_here(&self.server.id, self.server.epoch());
        self.answer(from_target::Body::Activated(peer::Activated {}));
        let interval = self.pool.settings.sync_interval;
        self.server.update(|held| {
            held.phase = Phase::Active;
            held.sync_due = next_sync(interval);
        });
        let _ = self.agent.servers.insert(&self.server);
        self.agent.operator.tell(from_agent::Body::Held(self.server.report()));
    }

    fn append(&self, after: Sequence, state: State, release: bool) {
        let (agent, server, events) = (self.agent.clone(), self.server.clone(), self.events.clone());
        let authority = Authority::Handed { from: self.from, handoff: self.id };
        tokio::spawn(async move {
            let mark = server.held().synced;
            let bytes = state.body.len() as u64;
            let draft = Draft {
                epoch: server.epoch(),
                kind: if release { Kind::Release } else { Kind::Snapshot },
                writer: server.writer.clone(),
                body: Body::State(store::State { version: state.version, body: state.body }),
            };
            reach("target: first record sent");
            let event = match server.log.append(&authority, draft, after, agent.lease.append_until()).await {
                Ok(header) => {
                    reach("target: first record written");
                    server.update(|held| held.state_bytes = bytes);
                    server.wrote(&header, mark);
                    Event::Appended(header.sequence)
                }
                Err(AppendError::Fenced(header)) => Event::Fenced(*header),
                Err(error) => {
                    tracing::warn!(server = %server.id, %error, "the first record of a received server is not written yet");
                    Event::AppendFailed
                }
            };
            let _ = events.send(event);
        });
    }

    fn stop(&self) {
        let (agent, server, events, attempt) =
            (self.agent.clone(), self.server.clone(), self.events.clone(), self.agent.next_attempt());
        tokio::spawn(async move {
            let event = match agent.host.stop(&server.id.uid, server.epoch(), attempt, HOST_CALL).await {
                Ok(()) => Event::Stopped,
                Err(error) => {
                    tracing::warn!(server = %server.id, %error, "the host did not stop a server that is not to run here");
                    Event::StopFailed
                }
            };
            let _ = events.send(event);
        });
    }

    fn finish(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Serving(_) => {
                self.agent.operator.tell(from_agent::Body::Held(self.server.report()));
            }
            Outcome::Aborted(reason) => {
                tracing::info!(server = %self.server.id, %reason, "a handoff to this pod was given up");
            }
            Outcome::Released => {
                self.agent.gone(&self.server, wire::session::gone::How::Released, "it could not be started here", None);
            }
            Outcome::Fenced(header) => {
                let reason = format!("the log is at epoch {} of pod {}", header.epoch, header.writer.pod);
                self.agent.gone(&self.server, wire::session::gone::How::Fenced, &reason, None);
            }
        }
        self.agent.receiving.end(&self.server.id.uid, self.id);
    }
}
