//! Signs of life: their leases, who heard of them, and how an agent begins anew.

use handoff::{Generation, claim::Doubt, lease::Heartbeat};

use super::{
    rules::{Mutation, Rules},
    world::{Agent, Host, Kind, Pod, Purpose, Term, World, Writes},
};

/// One agent's heartbeats in its present generation, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub generation: u8,
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
    pub const FIRST: Self = Self { generation: 1, sent: 1, answer: 1, answered: 1, expired: 0, revived: false };

    /// Whether the generation is over; its agent may not have looked at the clock yet.
    pub fn is_over(self) -> bool {
        self.answered <= self.expired && !self.revived
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
            self.agent_mut(pod).lease = Lease { generation: lease.generation, ..Lease::FIRST };
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
        self.begin_anew(pod);
        true
    }

    /// The agent is started again beside its host.
    pub(super) fn restart(&mut self, rules: Rules, pod: Pod) -> bool {
        self.left.restarts -= 1;
        let agent = self.agent_mut(pod);
        if let (Host::Frozen(state), Some(_), true) = (agent.host, agent.term, rules.mutated(Mutation::AdoptFrozen)) {
            (agent.host, agent.open) = (Host::Active(state), true);
            (agent.giving, agent.taking, agent.append, agent.wants) = (None, None, None, None);
            return true;
        }
        self.begin_anew(pod);
        true
    }

    /// Nothing that was begun goes on. What the host has is frozen, disclaimed, and its last state written if the log is
    /// still at its epoch.
    fn begin_anew(&mut self, pod: Pod) {
        let generation = self.agent(pod).lease.generation + 1;
        let fresh = Agent { lease: Lease { generation, ..Lease::FIRST }, ..Agent::IDLE };
        let before = std::mem::replace(self.agent_mut(pod), fresh);
        if let Some(append) = before.append {
            self.keep_late(append.record);
        }
        (self.signs.heard[pod as usize], self.signs.before[pod as usize]) = ((generation, 1), 0);
        self.seen.answered[pod as usize] = 0;
        let Some(term) = before.term else { return };
        self.seen.disclaimed |= 1 << term.epoch;
        match before.host {
            Host::Active(state) => self.leave(pod, term, state, false),
            Host::Frozen(state) => self.leave(pod, term, state, true),
            Host::Absent | Host::Standby(_) => {}
        }
    }

    fn leave(&mut self, pod: Pod, term: Term, state: Writes, frozen: bool) {
        let Some(newest) = self.newest().copied().filter(|newest| newest.epoch == term.epoch) else { return };
        let granted = match newest.kind {
            Kind::Grant { handoff, .. } => handoff,
            _ => 0,
        };
        let sent = frozen && granted > 0;
        let purpose = if sent { Purpose::Insure { handoff: granted } } else { Purpose::Release };
        let term = Term { tail: newest.sequence, state_at: newest.state_at, granted, ..term };
        let agent = self.agent_mut(pod);
        (agent.host, agent.term) = (Host::Frozen(state), Some(term));
        self.begin(pod, purpose, term, Some(state));
    }
}
