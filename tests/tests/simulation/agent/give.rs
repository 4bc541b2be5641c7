//! The source's side of a handoff: the machine of `handoff::source` decides.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use handoff::{
    HandoffId, Instant, PodUid, Sequence, ServerId,
    drain::Ended,
    log::{Authority, Grantee, Kind, Writer},
    source::{Action, Cause, Event, Final, Limits, Mark, Outcome, Source},
};
use store::{AppendError, Body, Draft};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time,
};
use wire::session::{Moved, from_agent, gone::How};

use super::{
    APPEND, Agent, Moving, Phase, Server,
    release::{disclaim, stopped},
    server_ref,
};
use crate::{
    faults::Mutation,
    host::CALL,
    net::{Receiver, Sender},
    steps::Step,
    watch,
};

const THAW_TRIES: u32 = 3;

/// What a source says.
pub enum FromSource {
    Offer { server: ServerId, epoch: handoff::Epoch, patience: Duration, target: PodUid },
    Warm(Moving),
    Final { grant: Sequence, last: Final<Bytes> },
    Cancel,
}

/// What a target says.
pub enum FromTarget {
    Accept(Writer),
    Reject(String),
    Ready,
    Activated,
    Durable(Sequence),
    Refused(String),
}

enum Input {
    Event(Event<Bytes>),
    Turn(OwnedSemaphorePermit),
}

struct Giving {
    agent: Arc<Agent>,
    server: Arc<Server>,
    target: PodUid,
    id: HandoffId,
    limits: Limits,
    inputs: mpsc::UnboundedSender<Input>,
    opening: Option<mpsc::UnboundedSender<FromSource>>,
    grantee: Option<Grantee>,
    turn: Option<OwnedSemaphorePermit>,
    warm: Option<Moving>,
    last: Option<Moving>,
    wake: Option<Instant>,
    held_at: Option<time::Instant>,
    gap: Option<Duration>,
    discarding: Option<oneshot::Receiver<bool>>,
}

/// Hands a server to a target. Returns when the server is there, durably, or certainly here, or out of our hands.
pub(super) async fn give(
    agent: &Arc<Agent>,
    server: &Arc<Server>,
    target: PodUid,
    limits: Limits,
    mut abort: watch::Receiver<bool>,
) -> (Ended, Option<Duration>) {
    let _turn = tokio::select! {
        biased;
        turn = server.turn.lock() => turn,
        () = raised(&mut abort) => return (Ended::Kept(Cause::Failed), None),
    };
    if server.held().phase != Phase::Active || agent.get(&server.id.uid).is_none() {
        return (Ended::Gone, None);
    }
    let (inputs, mut events) = mpsc::unbounded_channel();
    let mut giving = Giving {
        agent: agent.clone(),
        server: server.clone(),
        target,
        id: HandoffId(agent.sim.chance.number()),
        limits,
        inputs,
        opening: None,
        grantee: None,
        turn: None,
        warm: None,
        last: None,
        wake: None,
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
            biased;
            () = raised(&mut abort), if !aborted => {
                aborted = true;
                Event::Abort("the time for handoffs is over".into())
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
            () = agent.lease.ended(server.writer.generation), if !agent.sim.skips_the_fence() => Event::Tick,
        };
        // Whatever woke this: under a lease that is over, nothing is sent, thawed or written any more.
        if !agent.lease.holds(server.writer.generation) && !agent.sim.skips_the_fence() {
            agent.step(&server.id.uid, Step::Idle);
            return (Ended::Gone, None);
        }
        giving.observe(&event);
        if event == Event::PeerLost && machine.is_past_final() && agent.sim.mutated(Mutation::ThawAfterFinal) {
            giving.thaw().await;
            return (Ended::Kept(Cause::Failed), None);
        }
        outcome = giving.perform(machine.on(event, agent.clock.now())).await;
    }
    let outcome = outcome.unwrap_or(Outcome::Fenced);
    if outcome == Outcome::Fenced && !giving.discarded().await {
        agent.step(&server.id.uid, Step::Idle);
        return (Ended::Gone, None);
    }
    giving.finish(&outcome)
}

async fn raised(flag: &mut watch::Receiver<bool>) {
    flag.wait_for(|raised| *raised).await;
}

impl Giving {
    async fn perform(&mut self, actions: Vec<Action<Bytes>>) -> Option<Outcome> {
        let mut outcome = None;
        for action in actions {
            match action {
                Action::SendOffer => self.open_stream(),
                Action::Copy => self.copy(),
                Action::SendWarm(state) => {
                    self.step(Step::Warm);
                    self.send(FromSource::Warm(state.clone()));
                    self.warm = Some(state);
                }
                Action::Grant(writer) => self.grant(writer),
                Action::WantFreeze => self.want_freeze(),
                Action::Freeze { since } => self.freeze(since),
                Action::SendFinal { grant, last } => self.send_final(grant, last),
                Action::Thaw => self.thaw().await,
                Action::Forward => self.forward(),
                Action::Insure => self.insure(),
                Action::Discard => self.discard(),
                Action::Cancel => {
                    self.send(FromSource::Cancel);
                    self.opening = None;
                }
                Action::Wake(at) => self.wake = Some(at),
                Action::Disclaim => {}
                Action::End(ended) => outcome = Some(ended),
            }
        }
        outcome
    }

    fn step(&self, step: Step) {
        self.agent.step(&self.server.id.uid, step);
    }

    fn send(&self, message: FromSource) {
        if let Some(opening) = &self.opening {
            let _ = opening.send(message);
        }
    }

    /// Opens the stream with the offer, and turns what comes back into events.
    fn open_stream(&mut self) {
        self.step(Step::Offer);
        let (sender, rest) = mpsc::unbounded_channel();
        let offer = FromSource::Offer {
            server: self.server.id.clone(),
            epoch: self.server.epoch(),
            patience: self.limits.per_server,
            target: self.target.clone(),
        };
        let _ = sender.send(offer);
        self.opening = Some(sender);
        let (agent, target, id, inputs) = (self.agent.clone(), self.target.clone(), self.id, self.inputs.clone());
        self.agent.process.spawn(async move {
            read_stream(&agent, &target, id, rest, &inputs).await;
            let _ = inputs.send(Input::Event(Event::PeerLost));
        });
    }

    fn copy(&self) {
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        self.agent.process.spawn(async move {
            let copied = time::timeout(CALL, agent.host.snapshot(&server.id.uid, server.epoch(), None)).await;
            let event = match copied {
                Ok(Ok(Some(state))) => Event::Copied(state),
                other => Event::CopyFailed(format!("{:?}", other.is_ok())),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn grant(&mut self, to: Writer) {
        self.step(Step::Grant);
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        let grantee = Grantee { to, handoff: self.id };
        self.grantee = Some(grantee.clone());
        server.update(|held| held.granted = Some(grantee.handoff));
        if self.agent.sim.mutated(Mutation::FinalBeforeGrant) {
            let _ = inputs.send(Input::Event(Event::Granted(server.held().sequence.next())));
        }
        self.agent.process.spawn(async move {
            let event = match append_grant(&agent, &server, grantee, None).await {
                Ok(sequence) => Event::Granted(sequence),
                Err(AppendError::Fenced(header)) => Event::Fenced(*header),
                Err(error) => Event::GrantFailed(error.to_string()),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn want_freeze(&self) {
        self.step(Step::Ready);
        let (freezes, inputs) = (self.agent.freezes.clone(), self.inputs.clone());
        self.agent.process.spawn(async move {
            if let Ok(turn) = freezes.acquire_owned().await {
                let _ = inputs.send(Input::Turn(turn));
            }
        });
    }

    fn freeze(&mut self, since: Option<Mark>) {
        self.step(Step::Freeze);
        self.held_at = Some(time::Instant::now());
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        let (call, within) = ((server.epoch(), agent.next_attempt()), self.limits.freeze);
        self.agent.process.spawn(async move {
            let frozen = time::timeout(within, agent.host.freeze(&server.id.uid, call, since)).await;
            let event = match frozen {
                Ok(Ok(last)) => Event::Frozen(last),
                other => Event::FreezeFailed(format!("{other:?}")),
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn send_final(&mut self, grant: Sequence, last: Final<Bytes>) {
        self.step(Step::Final);
        self.server.update(|held| held.phase = Phase::HandingOff);
        self.send(FromSource::Final { grant, last: last.clone() });
        self.last = match last {
            Final::State(state) => Some(state),
            Final::Unchanged(_) => self.warm.take(),
        };
    }

    async fn thaw(&mut self) {
        self.turn = None;
        for _ in 0..THAW_TRIES {
            let call = (self.server.epoch(), self.agent.next_attempt());
            let thaw = self.agent.host.thaw(&self.server.id.uid, call);
            if self.agent.lease.is_open() && matches!(time::timeout(CALL, thaw).await, Ok(Ok(()))) {
                self.server.update(|held| held.phase = Phase::Active);
                return;
            }
        }
        disclaim(&self.agent, &self.server);
    }

    fn forward(&mut self) {
        self.step(Step::Activated);
        self.turn = None;
        if self.gap.is_none() {
            self.gap = self.held_at.map(|at| at.elapsed());
        }
    }

    fn insure(&self) {
        self.step(Step::Insure);
        let (Some(state), Some(grantee)) = (self.last.clone(), self.grantee.clone()) else { return };
        let (agent, server, inputs) = (self.agent.clone(), self.server.clone(), self.inputs.clone());
        self.agent.process.spawn(async move {
            let event = match append_grant(&agent, &server, grantee, Some(state)).await {
                Ok(sequence) => Event::Insured(sequence),
                Err(AppendError::Fenced(header)) => Event::Fenced(*header),
                Err(_) => Event::InsureFailed,
            };
            let _ = inputs.send(Input::Event(event));
        });
    }

    fn discard(&mut self) {
        let (agent, server) = (self.agent.clone(), self.server.clone());
        let (done, discarding) = oneshot::channel();
        self.agent.process.spawn(async move {
            let _ = done.send(stopped(&agent, &server).await);
        });
        self.discarding = Some(discarding);
    }

    /// Before anybody is told that a server is gone that ran until now: on that word it is started elsewhere.
    /// `false`: the lease was over first.
    async fn discarded(&mut self) -> bool {
        match self.discarding.take() {
            Some(discarding) => discarding.await.unwrap_or(false),
            None => true,
        }
    }

    fn observe(&self, event: &Event<Bytes>) {
        if matches!(event, Event::Durable(_)) {
            self.step(Step::Durable);
        }
    }

    fn finish(self, outcome: &Outcome) -> (Ended, Option<Duration>) {
        self.step(Step::Idle);
        self.agent.sim.trace(|| format!("{} {} to {}: {outcome:?}", self.agent.pod, self.server.id.uid, self.target));
        let (result, ended) = match outcome {
            Outcome::Moved => {
                self.server.update(|held| held.handed_off = true);
                self.agent.sim.check.ended_well(&self.server.id.uid, self.server.epoch());
                self.agent.gone(&self.server, How::HandedOff, Some(&self.target));
                ("Moved", Ended::Moved)
            }
            Outcome::Kept { cause, .. } => ("Kept", Ended::Kept(*cause)),
            Outcome::Fenced => {
                self.agent.gone(&self.server, How::Fenced, None);
                ("Gone", Ended::Gone)
            }
            Outcome::Disclaimed => {
                self.server.update(|held| held.handed_off = true);
                self.agent.gone(&self.server, How::Disclaimed, Some(&self.target));
                ("Gone", Ended::Gone)
            }
        };
        self.agent.tell(from_agent::Body::Moved(Moved {
            server: Some(server_ref(&self.server.id)),
            to_pod_uid: self.target.0.clone(),
            epoch: self.server.epoch().handed_off().0,
            result: result.to_owned(),
            ..Moved::default()
        }));
        (ended, self.gap)
    }
}

/// Appends a Grant, with the final state or without one.
async fn append_grant(
    agent: &Arc<Agent>,
    server: &Arc<Server>,
    grantee: Grantee,
    state: Option<Moving>,
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
    });
    Ok(header.sequence)
}

async fn read_stream(
    agent: &Arc<Agent>,
    target: &PodUid,
    id: HandoffId,
    mut rest: mpsc::UnboundedReceiver<FromSource>,
    inputs: &mpsc::UnboundedSender<Input>,
) {
    let Some((sender, mut answers)) = agent.sim.offer_stream(agent, target, id).await else { return };
    loop {
        let answer = tokio::select! {
            biased;
            message = rest.recv() => match message {
                Some(message) => {
                    sender.send(message);
                    continue;
                }
                None => return drain(sender, answers, inputs).await,
            },
            answer = answers.recv() => answer,
        };
        let Some(answer) = answer else { return };
        if inputs.send(Input::Event(event_of(answer, target))).is_err() {
            return;
        }
    }
}

/// The source says nothing more.
async fn drain(sender: Sender<FromSource>, mut answers: Receiver<FromTarget>, inputs: &mpsc::UnboundedSender<Input>) {
    drop(sender);
    while answers.recv().await.is_some() {
        if inputs.is_closed() {
            return;
        }
    }
}

fn event_of(answer: FromTarget, target: &PodUid) -> Event<Bytes> {
    match answer {
        FromTarget::Accept(writer) if writer.pod == *target => Event::Accepted(writer),
        FromTarget::Accept(_) => Event::Rejected("another pod has the target's address".into()),
        FromTarget::Reject(reason) => Event::Rejected(reason),
        FromTarget::Ready => Event::Ready,
        FromTarget::Activated => Event::Activated,
        FromTarget::Durable(sequence) => Event::Durable(sequence),
        FromTarget::Refused(reason) => Event::Refused(reason),
    }
}
