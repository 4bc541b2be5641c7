//! The target's side of a handoff: the machine of `handoff::target` decides.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use handoff::{
    Epoch, HandoffId, Instant, PodUid, Sequence, ServerId,
    log::{Authority, Kind},
    source::Final,
    target::{Action, Event, Outcome, Target},
};
use store::{AppendError, Body, Draft};
use tokio::{sync::mpsc, time};
use wire::session::{from_agent, gone::How};

use super::{Agent, FromSource, FromTarget, Moving, Phase, Server, release::next_sync};
use crate::{
    host::CALL,
    lock,
    net::{End, Receiver, Sender},
    steps::Step,
};

const PATIENCE_MARGIN: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_millis(500);

struct Taking {
    agent: Arc<Agent>,
    server: Arc<Server>,
    from: Epoch,
    id: HandoffId,
    attempt: u64,
    events: mpsc::UnboundedSender<Event<Bytes>>,
    answers: Sender<FromTarget>,
    wake: Option<Instant>,
}

impl Agent {
    /// Another agent opened a stream.
    pub fn stream(self: &Arc<Self>, id: HandoffId, mut end: End<FromTarget, FromSource>) {
        let agent = self.clone();
        self.process.spawn(async move {
            if let Some(FromSource::Offer { server, epoch, patience, target }) = end.receiver.recv().await {
                receive(agent, id, (server, epoch, target), patience, end).await;
            }
        });
    }
}

/// Takes an offer, or says why not.
async fn receive(
    agent: Arc<Agent>,
    id: HandoffId,
    (offered, from, target): (ServerId, Epoch, PodUid),
    patience: Duration,
    end: End<FromTarget, FromSource>,
) {
    let (events, mut inbox) = mpsc::unbounded_channel();
    let server = match take(&agent, offered, from, &target, (id, &events)) {
        Ok(server) => server,
        Err(reason) => return end.sender.send(FromTarget::Reject(reason.to_owned())),
    };
    agent.process.spawn(read(end.receiver, events.clone()));
    let (mut machine, actions) = Target::accept(agent.clock.now(), patience + PATIENCE_MARGIN, RETRY);
    let mut taking = Taking {
        attempt: agent.next_attempt(),
        agent: agent.clone(),
        server: server.clone(),
        from,
        id,
        events,
        answers: end.sender,
        wake: None,
    };
    let generation = server.writer.generation;
    // Held until the first record is written: a sync asked for meanwhile waits for it.
    let turn = server.turn.lock().await;
    let mut outcome = taking.perform(actions);
    while outcome.is_none() {
        let wake = taking.wake.map_or_else(|| time::Instant::now() + RETRY, |at| agent.clock.at(at));
        let event = tokio::select! {
            biased;
            event = inbox.recv() => event.unwrap_or(Event::Tick),
            () = time::sleep_until(wake) => {
                // Else a time that is past would wake this again at once, over and over, until an answer comes.
                taking.wake = None;
                Event::Tick
            }
            () = agent.lease.ended(generation), if !agent.sim.skips_the_fence() => Event::Tick,
        };
        // Whatever woke this: under a lease that is over, nothing is activated or written any more.
        if !agent.lease.holds(generation) && !agent.sim.skips_the_fence() {
            taking.stop();
            taking.end();
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
    id: ServerId,
    from: Epoch,
    target: &PodUid,
    (handoff, events): (HandoffId, &mpsc::UnboundedSender<Event<Bytes>>),
) -> Result<Arc<Server>, &'static str> {
    if *target != agent.pod {
        return Err("this is another pod than the offer names");
    }
    if agent.is_draining() {
        return Err("this pod is draining");
    }
    if !agent.pool.get() || agent.described.get().is_none() {
        return Err("this pod cannot host");
    }
    if agent.get(&id.uid).is_some() || lock(&agent.starting).contains(&id.uid) {
        return Err("this pod has the server already");
    }
    let server = agent.new_server(id, from.handed_off());
    if !agent.lease.holds(server.writer.generation) {
        return Err("this pod has no lease now");
    }
    let mut receiving = lock(&agent.receiving);
    if receiving.contains_key(&server.id.uid) {
        return Err("an earlier handoff of this server to this pod is not over");
    }
    receiving.insert(server.id.uid.clone(), (handoff, events.clone()));
    drop(receiving);
    Ok(server)
}

async fn read(mut incoming: Receiver<FromSource>, events: mpsc::UnboundedSender<Event<Bytes>>) {
    while let Some(message) = incoming.recv().await {
        let event = match message {
            FromSource::Warm(state) => Event::Warm(state),
            FromSource::Final { grant, last } => Event::Final { grant, last },
            FromSource::Cancel | FromSource::Offer { .. } => break,
        };
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
                Action::SendAccept => self.answers.send(FromTarget::Accept(self.server.writer.clone())),
                Action::StartStandby(state) => self.start_standby(state),
                Action::SendReady => {
                    self.step(Step::Ready);
                    self.answers.send(FromTarget::Ready);
                }
                Action::SendReject(reason) => self.answers.send(FromTarget::Reject(reason)),
                Action::Activate(last) => self.activate(last),
                Action::Serve => self.serve(),
                Action::Append { after, state, release } => self.append(after, state, release),
                Action::SendDurable(sequence) => {
                    self.step(Step::Durable);
                    self.answers.send(FromTarget::Durable(sequence));
                }
                Action::SendRefused(reason) => self.answers.send(FromTarget::Refused(reason)),
                Action::Stop => self.stop(),
                Action::Wake(at) => self.wake = Some(at),
                Action::End(ended) => outcome = Some(ended),
            }
        }
        outcome
    }

    fn step(&self, step: Step) {
        self.agent.step(&self.server.id.uid, step);
    }

    fn start_standby(&self, state: Moving) {
        self.step(Step::Standby);
        let (agent, server, events) = (self.agent.clone(), self.server.clone(), self.events.clone());
        let call = (server.epoch(), self.attempt);
        self.agent.process.spawn(async move {
            let started = time::timeout(CALL, agent.host.start(&server.id.uid, call, false, Some(&state))).await;
            let event = match started {
                Ok(Ok(_)) => Event::StandbyStarted,
                other => Event::StandbyFailed(format!("{other:?}")),
            };
            let _ = events.send(event);
        });
    }

    fn activate(&self, last: Final<Bytes>) {
        self.step(Step::Activate);
        let (agent, server, events) = (self.agent.clone(), self.server.clone(), self.events.clone());
        let call = (server.epoch(), self.agent.next_attempt());
        self.agent.process.spawn(async move {
            let activate = agent.host.activate(&server.id.uid, call, &last);
            let activated = if agent.lease.is_open() { time::timeout(CALL, activate).await.ok() } else { None };
            let event = match activated {
                Some(Ok(mark)) => {
                    server.update(|held| held.synced = Some(mark));
                    Event::Activated
                }
                other => Event::ActivateFailed(format!("{other:?}")),
            };
            let _ = events.send(event);
        });
    }

    fn serve(&self) {
        self.step(Step::Activated);
        self.answers.send(FromTarget::Activated);
        self.server.update(|held| {
            held.phase = Phase::Active;
            held.sync_due = next_sync(&self.agent);
        });
        self.agent.insert(&self.server);
        self.agent.sim.check.lets_through(&self.agent.pod, &self.server.id.uid, self.server.held().epoch);
        self.agent.tell(from_agent::Body::Held(self.server.report()));
    }

    fn append(&self, after: Sequence, state: Moving, release: bool) {
        let (agent, server, events) = (self.agent.clone(), self.server.clone(), self.events.clone());
        let authority = Authority::Handed { from: self.from, handoff: self.id };
        self.agent.process.spawn(async move {
            let mark = server.held().synced;
            let draft = Draft {
                epoch: server.epoch(),
                kind: if release { Kind::Release } else { Kind::Snapshot },
                writer: server.writer.clone(),
                body: Body::State(store::State { version: state.version, body: state.body }),
            };
            let event = match server.log.append(&authority, draft, after, agent.lease.append_until()).await {
                Ok(header) => {
                    server.wrote(&header, mark);
                    Event::Appended(header.sequence)
                }
                Err(AppendError::Fenced(header)) => Event::Fenced(*header),
                Err(_) => Event::AppendFailed,
            };
            let _ = events.send(event);
        });
    }

    fn stop(&self) {
        let (agent, server, events) = (self.agent.clone(), self.server.clone(), self.events.clone());
        self.agent.process.spawn(async move {
            let event = if agent.stop_in_host(&server).await { Event::Stopped } else { Event::StopFailed };
            let _ = events.send(event);
        });
    }

    fn end(&self) {
        self.step(Step::Idle);
        let mut receiving = lock(&self.agent.receiving);
        if receiving.get(&self.server.id.uid).is_some_and(|(id, _)| *id == self.id) {
            receiving.remove(&self.server.id.uid);
        }
    }

    fn finish(&self, outcome: &Outcome) {
        self.agent.sim.trace(|| format!("{} {} taken: {outcome:?}", self.agent.pod, self.server.id.uid));
        match outcome {
            Outcome::Serving(_) => self.agent.tell(from_agent::Body::Held(self.server.report())),
            Outcome::Aborted(_) => {}
            Outcome::Released => self.agent.gone(&self.server, How::Released, None),
            Outcome::Fenced(_) => self.agent.gone(&self.server, How::Fenced, None),
        }
        self.end();
    }
}
