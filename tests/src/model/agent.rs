//! One pod: what its agent does around the machines, and what its host does.

use std::time::Duration;

use handoff::{
    ids::{Instant, Sequence},
    source::{self, Final, Limits, Source},
    target::{self, Target},
};

use super::{
    rules::{Mutation, Rules},
    world::{Agent, Call, Giving, Host, Last, Message, Pod, Purpose, Stream, Taking, Term, World, Writes},
};

const NOW: Instant = Instant(Duration::ZERO);
const LIMITS: Limits =
    Limits { per_server: Duration::ZERO, freeze: Duration::ZERO, durable: Duration::ZERO, retry: Duration::ZERO };

impl World {
    pub(super) fn write(&mut self, rules: Rules, pod: Pod) -> bool {
        let write: Writes = 1 << (rules.bounds.writes - self.left.writes);
        let Host::Active(state) = self.agent(pod).host else { return false };
        self.agent_mut(pod).host = Host::Active(state | write);
        self.seen.answered[pod as usize] |= write;
        self.left.writes -= 1;
        true
    }

    pub(super) fn sync(&mut self, rules: Rules, pod: Pod) -> bool {
        let agent = self.agent(pod);
        let (Host::Active(state), Some(term)) = (agent.host, agent.term) else { return false };
        // Any record after the Grant voids it, so none may be on its way once the target may count on it.
        let granting = agent.giving.as_ref().is_some_and(|giving| giving.machine.target().is_some())
            && !rules.mutated(Mutation::SyncWhileGranting);
        if self.left.syncs == 0 || granting || agent.append.is_some() || state == term.synced {
            return false;
        }
        self.left.syncs -= 1;
        self.begin(pod, Purpose::Sync, term, Some(state));
        true
    }

    pub(super) fn stop_server(&mut self, pod: Pod) -> bool {
        let agent = self.agent(pod);
        let (Host::Active(state), Some(term)) = (agent.host, agent.term) else { return false };
        if agent.giving.is_some() || agent.append.is_some() || self.left.stops == 0 {
            return false;
        }
        let agent = self.agent_mut(pod);
        (agent.host, agent.open) = (Host::Frozen(state), false);
        self.left.stops -= 1;
        self.begin(pod, Purpose::Release, term, Some(state));
        true
    }

    pub(super) fn crash(&mut self, pod: Pod) -> bool {
        if let Some(append) = self.agent(pod).append {
            self.keep_late(append.record);
        }
        *self.agent_mut(pod) = Agent::DOWN;
        self.left.crashes -= 1;
        true
    }

    /// As a crash, but nobody knows.
    pub(super) fn lose(&mut self, pod: Pod) -> bool {
        let lease = self.agent(pod).lease;
        if let Some(append) = self.agent(pod).append {
            self.keep_late(append.record);
        }
        *self.agent_mut(pod) = Agent { lost: true, lease, ..Agent::DOWN };
        self.left.losses -= 1;
        true
    }

    pub(super) fn hand_off(&mut self, rules: Rules, from: Pod, to: Pod) -> bool {
        let agent = self.agent(from);
        let (Host::Active(_), Some(term)) = (agent.host, agent.term) else { return false };
        if self.left.handoffs == 0 || agent.giving.is_some() || !self.agent(to).up {
            return false;
        }
        self.left.handoffs -= 1;
        self.streams.push(Stream::new(from, to, term.epoch));
        let handoff = (1..).zip(&self.streams).map(|(number, _)| number).last().unwrap_or(1);
        let (machine, actions) = Source::start(LIMITS, NOW);
        self.agent_mut(from).giving = Some(Box::new(Giving { handoff, machine }));
        for action in actions {
            self.source_does(rules, from, handoff, action);
        }
        true
    }

    /// A message arrives; `starts` is what the host makes of a warm copy.
    pub(super) fn deliver(&mut self, rules: Rules, handoff: u8, message: Message, starts: bool) -> bool {
        let stream = *self.stream(handoff);
        let Stream { from, to, warm, .. } = stream;
        let grant = Sequence(stream.grant.into());
        let take = |world: &mut Self, event| world.take(to, handoff, event);
        let give = |world: &mut Self, event| world.give(rules, from, handoff, event);
        if self.agent(if message.to_target() { to } else { from }).lease.is_over() {
            return false;
        }
        match message {
            Message::Offer => self.offered(to, handoff),
            Message::Warm => self.warm(to, handoff, warm, starts),
            Message::Final => take(self, target::Event::Final { grant, last: stream.last() }),
            Message::Cancel => take(self, target::Event::PeerLost),
            Message::Accept => give(self, source::Event::Accepted(to.writer(stream.generation))),
            Message::Reject => give(self, source::Event::Rejected(String::new())),
            Message::Ready => give(self, source::Event::Ready),
            Message::Activated => give(self, source::Event::Activated),
            Message::Durable => give(self, source::Event::Durable(Sequence::NONE)),
            Message::Refused => give(self, source::Event::Refused(String::new())),
        }
    }

    /// An offer is taken once; a handoff of the same server that is not over here keeps it waiting.
    fn offered(&mut self, to: Pod, handoff: u8) -> bool {
        let agent = self.agent_mut(to);
        if !agent.is_free() || agent.host != Host::Absent || agent.taking().is_some() {
            return false;
        }
        let (machine, actions) = Target::accept(NOW, Duration::ZERO, Duration::ZERO);
        agent.taking = Some(Box::new(Taking { handoff, machine }));
        let generation = agent.lease.generation;
        self.stream_mut(handoff).generation = generation;
        self.stream_mut(handoff).drop(Message::Offer);
        for action in actions {
            self.target_does(to, handoff, action);
        }
        true
    }

    fn warm(&mut self, to: Pod, handoff: u8, body: Writes, starts: bool) -> bool {
        let state = self.stream(handoff).state(body);
        if !self.take(to, handoff, target::Event::Warm(state)) {
            return false;
        }
        let event = if starts { target::Event::StandbyStarted } else { target::Event::StandbyFailed(String::new()) };
        self.take(to, handoff, event)
    }

    pub(super) fn break_stream(&mut self, rules: Rules, pod: Pod, giving: bool) -> bool {
        match self.handoff(pod, giving) {
            Some(handoff) if giving => self.give(rules, pod, handoff, source::Event::PeerLost),
            Some(handoff) => self.take(pod, handoff, target::Event::PeerLost),
            None => false,
        }
    }

    pub(super) fn timer(&mut self, rules: Rules, pod: Pod, giving: bool) -> bool {
        match self.handoff(pod, giving) {
            Some(handoff) if giving => self.give(rules, pod, handoff, source::Event::Tick),
            Some(handoff) => self.take(pod, handoff, target::Event::Tick),
            None => false,
        }
    }

    pub(super) fn abort(&mut self, rules: Rules, pod: Pod) -> bool {
        let handoff = self.handoff(pod, true);
        handoff.is_some_and(|handoff| self.give(rules, pod, handoff, source::Event::Abort(String::new())))
    }

    fn handoff(&self, pod: Pod, giving: bool) -> Option<u8> {
        let agent = self.agent(pod);
        if giving {
            agent.giving.as_ref().map(|giving| giving.handoff)
        } else {
            agent.taking.as_ref().map(|taking| taking.handoff)
        }
    }

    pub(super) fn frozen(&mut self, rules: Rules, pod: Pod, heard: bool) -> bool {
        let agent = self.agent_mut(pod);
        let (Some(Call::Freeze { since }), Host::Active(state)) = (agent.call, agent.host) else { return false };
        (agent.host, agent.open, agent.call) = (Host::Frozen(state), false, None);
        let Some(handoff) = self.handoff(pod, true).filter(|_| heard) else { return true };
        let stream = self.stream(handoff);
        let last =
            if since == Some(state) { Final::Unchanged(stream.mark(state)) } else { Final::State(stream.state(state)) };
        self.give(rules, pod, handoff, source::Event::Frozen(last))
    }

    pub(super) fn activated(&mut self, pod: Pod, heard: bool) -> bool {
        let agent = self.agent_mut(pod);
        let Some(Call::Activate(last)) = agent.call else { return false };
        let state = match (last, agent.host) {
            (Last::State(state), _) | (Last::Unchanged(_), Host::Standby(state)) => state,
            (Last::Unchanged(_), _) => return false,
        };
        (agent.host, agent.call) = (Host::Active(state), None);
        let Some(handoff) = self.handoff(pod, false) else { return true };
        if heard {
            self.take(pod, handoff, target::Event::Activated);
        }
        true
    }

    pub(super) fn activate_failed(&mut self, pod: Pod) -> bool {
        let agent = self.agent_mut(pod);
        let past_final = agent.taking().is_some_and(Target::is_past_final);
        if agent.open || !past_final || agent.call == Some(Call::Stop) {
            return false;
        }
        agent.call = None;
        let handoff = self.handoff(pod, false);
        handoff.is_some_and(|handoff| self.take(pod, handoff, target::Event::ActivateFailed(String::new())))
    }

    pub(super) fn stopped(&mut self, pod: Pod, done: bool) -> bool {
        let agent = self.agent_mut(pod);
        if agent.call != Some(Call::Stop) {
            return false;
        }
        agent.call = None;
        if done {
            agent.host = Host::Absent;
        }
        let event = if done { target::Event::Stopped } else { target::Event::StopFailed };
        self.handoff(pod, false).is_some_and(|handoff| self.take(pod, handoff, event))
    }

    /// An event for the source's machine of this handoff; false if there is none.
    pub(super) fn give(&mut self, rules: Rules, pod: Pod, handoff: u8, event: source::Event<Writes>) -> bool {
        let agent = self.agent_mut(pod);
        let Some(giving) = agent.giving.as_mut().filter(|giving| giving.handoff == handoff) else { return false };
        if event == source::Event::PeerLost && giving.machine.is_past_final() && rules.mutated(Mutation::ThawAfterFinal)
        {
            agent.giving = None;
            return self.thaw(pod);
        }
        for action in giving.machine.on(event, NOW) {
            self.source_does(rules, pod, handoff, action);
        }
        true
    }

    /// An event for the target's machine of this handoff; false if there is none.
    pub(super) fn take(&mut self, pod: Pod, handoff: u8, event: target::Event<Writes>) -> bool {
        let taking = self.agent_mut(pod).taking.as_mut().filter(|taking| taking.handoff == handoff);
        let Some(taking) = taking else { return false };
        for action in taking.machine.on(event, NOW) {
            self.target_does(pod, handoff, action);
        }
        true
    }

    fn source_does(&mut self, rules: Rules, pod: Pod, handoff: u8, action: source::Action<Writes>) {
        use source::Action;
        match action {
            Action::SendOffer => self.stream_mut(handoff).send(Message::Offer),
            Action::Copy => {
                let Host::Active(state) = self.agent(pod).host else { return };
                let copy = self.stream(handoff).state(state);
                self.give(rules, pod, handoff, source::Event::Copied(copy));
            }
            Action::SendWarm(state) => {
                let stream = self.stream_mut(handoff);
                stream.warm = state.body;
                stream.send(Message::Warm);
            }
            Action::Grant(_) => {
                self.want(rules, pod, Purpose::Grant { handoff });
                if rules.mutated(Mutation::FinalBeforeGrant) {
                    let sequence = self.agent(pod).term.map_or(0, |term| u64::from(term.tail) + 1);
                    self.give(rules, pod, handoff, source::Event::Granted(Sequence(sequence)));
                }
            }
            Action::WantFreeze => {
                self.give(rules, pod, handoff, source::Event::FreezeTurn);
            }
            Action::Freeze { since } => {
                let since = since.and_then(|mark| Writes::try_from(mark.revision).ok());
                self.agent_mut(pod).call = Some(Call::Freeze { since });
            }
            Action::SendFinal { grant, last } => {
                let stream = self.stream_mut(handoff);
                stream.grant = u8::try_from(grant.0).unwrap_or(u8::MAX);
                stream.last = content(&last);
                stream.send(Message::Final);
            }
            Action::Thaw => {
                self.thaw(pod);
            }
            Action::Insure => self.want(rules, pod, Purpose::Insure { handoff }),
            Action::Disclaim => self.disclaim(rules, handoff),
            Action::Discard => self.discard(pod),
            Action::Cancel => self.stream_mut(handoff).send(Message::Cancel),
            Action::End(_) => (self.agent_mut(pod).giving, self.agent_mut(pod).wants) = (None, None),
            Action::Forward | Action::Wake(_) => {}
        }
    }

    fn target_does(&mut self, pod: Pod, handoff: u8, action: target::Action<Writes>) {
        use target::Action;
        match action {
            Action::SendAccept => self.stream_mut(handoff).send(Message::Accept),
            Action::StartStandby(state) => self.agent_mut(pod).host = Host::Standby(state.body),
            Action::SendReady => self.stream_mut(handoff).send(Message::Ready),
            Action::SendReject(_) => self.stream_mut(handoff).send(Message::Reject),
            Action::Activate(last) => self.agent_mut(pod).call = Some(Call::Activate(content(&last))),
            Action::Serve => {
                self.agent_mut(pod).open = true;
                // From here on nothing that happens to the source can take the state from this pod.
                self.seen.answered[pod as usize] |= self.agent(pod).serves().unwrap_or_default();
                self.witness_term(self.stream(handoff).epoch + 1, pod);
                self.stream_mut(handoff).send(Message::Activated);
            }
            Action::Append { after, state, release } => {
                let purpose = Purpose::First { handoff, release };
                if self.agent(pod).append.is_some_and(|append| append.purpose == purpose) {
                    return;
                }
                let tail = u8::try_from(after.0).unwrap_or(u8::MAX);
                let epoch = self.stream(handoff).epoch + 1;
                let after = Term { epoch, tail, state_at: 0, synced: 0, granted: 0 };
                self.begin(pod, purpose, after, Some(state.body));
            }
            Action::SendDurable(_) => self.stream_mut(handoff).send(Message::Durable),
            Action::SendRefused(_) => self.stream_mut(handoff).send(Message::Refused),
            Action::Stop if self.agent(pod).taking().is_some() => self.agent_mut(pod).call = Some(Call::Stop),
            Action::Stop => self.discard(pod),
            Action::Wake(_) | Action::End(_) => {}
        }
    }

    fn thaw(&mut self, pod: Pod) -> bool {
        let agent = self.agent_mut(pod);
        agent.call = None;
        if let Host::Frozen(state) = agent.host {
            (agent.host, agent.open) = (Host::Active(state), true);
        }
        true
    }

    fn disclaim(&mut self, rules: Rules, handoff: u8) {
        if !rules.mutated(Mutation::NoDisclaim) {
            self.seen.disclaimed |= 1 << self.stream(handoff).epoch;
        }
    }

    /// One append at a time: the handoff's own follows the one under way.
    fn want(&mut self, rules: Rules, pod: Pod, purpose: Purpose) {
        if self.agent(pod).append.is_some_and(|append| append.purpose == purpose) {
            return;
        }
        self.agent_mut(pod).wants = Some(purpose);
        self.begin_wanted(rules, pod);
    }

    pub(super) fn begin_wanted(&mut self, rules: Rules, pod: Pod) {
        let agent = self.agent_mut(pod);
        let (Some(term), None) = (agent.term, agent.append) else { return };
        let Some(purpose) = agent.wants.take() else { return };
        let state = match (purpose, agent.host) {
            (Purpose::Insure { .. }, Host::Frozen(state)) if !rules.mutated(Mutation::InsureWithoutState) => {
                Some(state)
            }
            _ => None,
        };
        self.begin(pod, purpose, term, state);
    }

    /// Drops what nobody can act on any more, so that worlds which differ in nothing else are one.
    pub(super) fn forget_the_dead(&mut self, rules: Rules) {
        for handoff in (1..).take(self.streams.len()) {
            self.forget_messages(handoff);
        }
        self.forget_beats();
        // Without deletions a taken key stays taken.
        if self.left.cleanups == 0 && !rules.mutated(Mutation::Overwrite) {
            let log = &self.log;
            self.late.retain(|record| log.get(usize::from(record.sequence) - 1).is_none_or(Option::is_none));
        }
    }

    fn forget_messages(&mut self, handoff: u8) {
        let Stream { from, to, .. } = *self.stream(handoff);
        let giving = self.handoff(from, true) == Some(handoff);
        // Ended, the target only still refuses a Final, which matters to nobody but its source.
        let agent = self.agent_mut(to);
        if !giving && agent.taking().is_none() {
            agent.taking = agent.taking.take().filter(|taking| taking.handoff != handoff);
        }
        let up = agent.up;
        let taking = self.handoff(to, false) == Some(handoff);
        let stream = self.stream_mut(handoff);
        if !giving {
            stream.drop_all(false);
        }
        let offered = up && stream.has(Message::Offer);
        if !taking && !offered {
            stream.drop_all(true);
        }
    }
}

fn content(last: &Final<Writes>) -> Last {
    match last {
        Final::State(state) => Last::State(state.body),
        Final::Unchanged(mark) => Last::Unchanged(Writes::try_from(mark.revision).unwrap_or(Writes::MAX)),
    }
}
