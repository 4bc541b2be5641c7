//! Signs of life: their leases, who heard of them, and how an agent begins anew.

use std::time::Duration;

use handoff::{
    Epoch, Generation, Instant,
    adopt::{self, Hold, Phase, Told},
    claim::Doubt,
    lease::Heartbeat,
    log,
};

use super::{
    rules::{Mutation, Rules},
    world::{Agent, Host, Kind, Pod, Purpose, Term, World, Writes},
};

/// One agent's heartbeats in its present generation, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub generation: u8,
    /// How often its agent was restarted in this generation.
    pub run: u8,
    /// The newest sent.
    sent: u8,
    /// The newest heard by a leader: its answer is on the way.
    answer: u8,
    /// The newest whose answer came.
    answered: u8,
    /// The leases of heartbeats up to this one are over.
    expired: u8,
    /// By mistake taken up again.
    revived: bool,
}

impl Lease {
    /// One heartbeat was answered.
    pub const FIRST: Self = Self { generation: 1, run: 0, sent: 1, answer: 1, answered: 1, expired: 0, revived: false };

    /// Whether the generation is over; its agent may not have looked at the clock yet.
    pub fn is_over(self) -> bool {
        self.answered <= self.expired && !self.revived
    }

    /// What the host knows of it.
    fn told(self) -> Told {
        let left = if self.is_over() { Duration::ZERO } else { Duration::from_secs(1) };
        Told { generation: Generation(self.generation.into()), deadline: Instant(left) }
    }

    /// Whether an answer is on the way.
    pub fn has_news(self) -> bool {
        self.answer > self.answered
    }

    /// Whether any heartbeat's lease is over.
    pub fn has_ended_one(self) -> bool {
        self.expired > 0
    }
}

/// A heartbeat by its generation and number; zeros: none.
pub type Beat = (u8, u8);

/// What the operator heard, and what is in the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Signs {
    /// By the present leader.
    pub heard: [Beat; 3],
    /// In this generation, by leaders before.
    pub before: [u8; 3],
    /// The newest in the store.
    pub stored: [Beat; 3],
    /// Another leads than at the beginning.
    followed: bool,
}

impl Default for Signs {
    fn default() -> Self {
        let (heard, stored) = ([(1, 1); 3], [(0, 0); 3]);
        Self { heard, before: [0; 3], stored, followed: false }
    }
}

pub(super) fn heartbeat(beat: Beat) -> Heartbeat {
    Heartbeat { generation: Generation(beat.0.into()), counter: beat.1.into() }
}

impl World {
    /// A heartbeat reaches the leader, which answers.
    pub(super) fn beat(&mut self, pod: Pod) -> bool {
        let Some(beat) = self.send_beat(pod) else { return false };
        self.signs.heard[pod as usize] = beat;
        self.agent_mut(pod).lease.answer = beat.1;
        true
    }

    /// One that is none any more answers too.
    pub(super) fn beat_to_old_leader(&mut self, pod: Pod) -> bool {
        let Some(beat) = self.send_beat(pod).filter(|_| self.signs.followed) else { return false };
        self.agent_mut(pod).lease.answer = beat.1;
        true
    }

    /// A heartbeat is in the store, and its agent may know.
    pub(super) fn beat_in_store(&mut self, pod: Pod, heard: bool) -> bool {
        let Some(beat) = self.send_beat(pod) else { return false };
        self.signs.stored[pod as usize] = beat;
        if heard {
            self.agent_mut(pod).lease.answered = beat.1;
        }
        true
    }

    fn send_beat(&mut self, pod: Pod) -> Option<Beat> {
        self.left.beats = self.left.beats.checked_sub(1)?;
        let lease = &mut self.agent_mut(pod).lease;
        lease.sent += 1;
        Some((lease.generation, lease.sent))
    }

    pub(super) fn answered(&mut self, rules: Rules, pod: Pod) -> bool {
        let agent = self.agent_mut(pod);
        let lease = &mut agent.lease;
        if !lease.has_news() {
            return false;
        }
        let late = lease.is_over();
        lease.answered = lease.answer;
        if late && rules.mutated(Mutation::LateSuccess) {
            lease.revived = true;
            // What was left of an earlier generation is on its way to a Release, and is not taken up again.
            if let (Host::Frozen(state), None, None) = (agent.host, &agent.append, &agent.giving) {
                (agent.host, agent.open) = (Host::Active(state), true);
            }
        }
        true
    }

    /// The time of one more heartbeat is over. With the last of them the host ends by itself what it serves.
    pub(super) fn expire(&mut self, pod: Pod) -> bool {
        let agent = &mut self.agents[pod as usize];
        if agent.lease.expired >= agent.lease.sent || !(agent.up || agent.lost) {
            return false;
        }
        agent.lease.expired += 1;
        if !agent.up {
            return true;
        }
        if agent.lease.is_over() {
            if let Host::Active(state) = agent.host {
                (agent.host, agent.open) = (Host::Frozen(state), false);
            }
            // Nobody promised that writes since the last sync outlive a lease.
            self.seen.answered[pod as usize] = 0;
        }
        self.left.expiries -= 1;
        true
    }

    /// Since which heartbeat a pod is silent now, if it is: the lease of every one that this leader heard, or that one
    /// before it answered, is over. Of an earlier generation none is left.
    pub(super) fn silence(&self, pod: Pod) -> Option<Beat> {
        let (at, lease) = (pod as usize, self.agent(pod).lease);
        let heard = self.signs.heard[at];
        let counts = if heard.0 == lease.generation { heard.1 } else { 0 };
        (lease.expired >= counts.max(self.signs.before[at])).then_some(heard)
    }

    /// Whether any more leases can end than those of pods that are gone already.
    pub(super) fn leases_end(&self) -> bool {
        self.left.expiries > 0 || self.left.losses > 0
    }

    /// The heartbeats of a pod whose lease cannot end any more, and that was not silent, mean nothing to anybody.
    pub(super) fn forget_beats(&mut self) {
        if self.leases_end() {
            return;
        }
        for pod in Pod::ALL {
            let lease = self.agent(pod).lease;
            if lease.has_ended_one() || self.agent(pod).lost || self.is_named_silent(pod) {
                continue;
            }
            self.agent_mut(pod).lease = Lease { generation: lease.generation, run: lease.run, ..Lease::FIRST };
            let at = pod as usize;
            (self.signs.heard[at], self.signs.before[at], self.signs.stored[at]) = ((lease.generation, 1), 0, (0, 0));
        }
    }

    /// Another replica leads, and has heard of nobody.
    pub(super) fn follow(&mut self) -> bool {
        for (at, agent) in self.agents.iter().enumerate() {
            let heard = std::mem::take(&mut self.signs.heard[at]);
            if heard.0 == agent.lease.generation {
                self.signs.before[at] = self.signs.before[at].max(heard.1);
            }
        }
        self.signs.followed = true;
        self.left.leaders -= 1;
        true
    }

    /// Whoever claims looks for heartbeats in the store. What it finds, the operator hears.
    pub(super) fn found_alive(&mut self, rules: Rules, doubts: &[Doubt]) -> Option<bool> {
        let alive = doubts.iter().find_map(|doubt| {
            let pod = Pod::ALL.into_iter().find(|pod| pod.uid() == doubt.of.pod)?;
            let stored = heartbeat(self.signs.stored[pod as usize]);
            (stored.generation == doubt.of.generation && stored.counter > doubt.above).then_some(pod)
        })?;
        if rules.mutated(Mutation::NoHeartbeatRead) {
            return None;
        }
        let (heard, stored) = (&mut self.signs.heard[alive as usize], self.signs.stored[alive as usize]);
        let news = *heard < stored;
        *heard = stored.max(*heard);
        Some(news)
    }

    /// The agent looks at the clock.
    pub(super) fn fence(&mut self, pod: Pod) -> bool {
        self.begin_generation(pod);
        self.end_all(pod);
        true
    }

    /// The agent is started again beside its host. What that serves goes on; without it, the generation does if `others` of
    /// this pod do. It reads the log at once: until it has read it, it does no more than pass requests on.
    pub(super) fn restart(&mut self, rules: Rules, pod: Pod, others: bool) -> bool {
        self.left.restarts -= 1;
        match self.serves_on(rules, pod).zip(self.epoch_here(pod)) {
            Some((state, epoch)) => self.adopt(rules, pod, state, epoch),
            None if others => {
                self.agent_mut(pod).lease.run += 1;
                self.end_all(pod);
            }
            None => {
                self.begin_generation(pod);
                self.end_all(pod);
            }
        }
        true
    }

    fn serves_on(&self, rules: Rules, pod: Pod) -> Option<Writes> {
        let told = self.agent(pod).lease.told();
        let (phase, state) = match self.agent(pod).host {
            Host::Absent => return None,
            Host::Standby(state) => (Phase::Standby, state),
            Host::Active(state) => (Phase::Active, state),
            Host::Frozen(state) => (Phase::Frozen, state),
        };
        let mistaken = phase == Phase::Frozen && rules.mutated(Mutation::AdoptFrozen);
        let goes_on = adopt::goes_on(Some(told), phase, told.generation, Instant::default());
        (goes_on || mistaken).then_some(state)
    }

    /// At which epoch the host has it.
    fn epoch_here(&self, pod: Pod) -> Option<u8> {
        let agent = self.agent(pod);
        let taken = agent.taking.as_ref().map(|taking| self.stream(taking.handoff).epoch + 1);
        agent.term.or(agent.adopted()).map(|term| term.epoch).or(taken)
    }

    fn adopt(&mut self, rules: Rules, pod: Pod, state: Writes, epoch: u8) {
        let me = pod.writer(self.agent(pod).lease.generation);
        if rules.mutated(Mutation::AdoptAnew) {
            self.begin_generation(pod);
        }
        let mut lease = self.agent(pod).lease;
        lease.run += 1;
        let fresh = Agent { lease, host: Host::Active(state), open: true, ..Agent::IDLE };
        let before = std::mem::replace(self.agent_mut(pod), fresh);
        if let Some(append) = before.append {
            self.keep_late(append.record);
        }
        let Some(newest) = self.newest().copied() else { return };
        let handoff = match adopt::hold(Some(&newest.header()), Epoch(epoch.into()), &me) {
            Hold::Owned => 0,
            Hold::Handed { handoff, .. } => u8::try_from(handoff.0).unwrap_or(u8::MAX),
            Hold::Lost => return self.discard(pod),
        };
        let after = Term { epoch, tail: newest.sequence, state_at: newest.state_at, synced: 0, granted: 0 };
        self.begin(pod, Purpose::Adopt { handoff }, after, Some(state));
    }

    fn begin_generation(&mut self, pod: Pod) {
        let generation = self.agent(pod).lease.generation + 1;
        self.agent_mut(pod).lease = Lease { generation, ..Lease::FIRST };
        (self.signs.heard[pod as usize], self.signs.before[pod as usize]) = ((generation, 1), 0);
    }

    /// Nothing that was begun goes on. What the host has is frozen, disclaimed, and its last state written if the log is
    /// still at its epoch.
    fn end_all(&mut self, pod: Pod) {
        let fresh = Agent { lease: self.agent(pod).lease, ..Agent::IDLE };
        let before = std::mem::replace(self.agent_mut(pod), fresh);
        if let Some(append) = before.append {
            self.keep_late(append.record);
        }
        self.seen.answered[pod as usize] = 0;
        let Some(term) = before.term.or(before.adopted()) else { return };
        self.seen.disclaimed |= 1 << term.epoch;
        match before.host {
            Host::Active(state) => self.leave(pod, term, state, Phase::Active),
            Host::Frozen(state) => self.leave(pod, term, state, Phase::Frozen),
            Host::Absent | Host::Standby(_) => {}
        }
    }

    fn leave(&mut self, pod: Pod, term: Term, state: Writes, phase: Phase) {
        let Some(newest) = self.newest().copied().filter(|newest| newest.epoch == term.epoch) else { return };
        let granted = match newest.kind {
            Kind::Grant { handoff, .. } => handoff,
            _ => 0,
        };
        let purpose = match adopt::last(&newest.header(), phase) {
            log::Kind::Grant(_) => Purpose::Insure { handoff: granted },
            _ => Purpose::Release,
        };
        let term = Term { tail: newest.sequence, state_at: newest.state_at, granted, ..term };
        let agent = self.agent_mut(pod);
        (agent.host, agent.term) = (Host::Frozen(state), Some(term));
        self.begin(pod, purpose, term, Some(state));
    }
}
