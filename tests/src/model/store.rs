//! The store, and the one append that every writer goes through.

use std::time::Duration;

use handoff::{
    ids::Sequence,
    log::{self, Found, Retention, Seen},
    source, target,
};

use super::{
    rules::{Mutation, Rules},
    world::{Append, Host, Kind, Pod, Purpose, Record, Term, World},
};

const RETENTION: Retention = Retention { keep: 1, snapshots: Duration::from_secs(1), terms: Duration::from_secs(1) };

impl World {
    /// Begins an append after `tail`; `state` is what it bears, if it does.
    pub(super) fn begin(&mut self, pod: Pod, purpose: Purpose, after: Term, state: Option<u8>) {
        let sequence = after.tail + 1;
        let kind = match purpose {
            Purpose::Sync
            | Purpose::First { release: false, .. }
            | Purpose::ServeGrant { .. }
            | Purpose::Adopt { .. } => Kind::Snapshot,
            Purpose::Release | Purpose::First { release: true, .. } => Kind::Release,
            Purpose::Claim => Kind::Claim,
            Purpose::Grant { handoff } | Purpose::Insure { handoff } => {
                let stream = self.stream(handoff);
                Kind::Grant { to: stream.to, generation: stream.generation, handoff }
            }
        };
        let record = Record {
            sequence,
            epoch: after.epoch,
            kind,
            writer: pod,
            generation: self.agent(pod).lease.generation,
            nonce: 0,
            state_at: if state.is_some() { sequence } else { after.state_at },
            body: state.unwrap_or_default(),
        };
        let agent = self.agent_mut(pod);
        agent.append = Some(Append { purpose, record, granted: after.granted }.number(agent.lease.run));
    }

    fn land(&mut self, record: Record) {
        let index = usize::from(record.sequence) - 1;
        if self.log.len() <= index {
            self.log.resize(index + 1, None);
        }
        self.log[index] = Some(record);
        self.witness_term(record.epoch, record.writer);
    }

    /// The pending create reaches the store and its answer reaches the agent.
    pub(super) fn create(&mut self, rules: Rules, pod: Pod) -> bool {
        let Some(append) = self.agent(pod).append else { return false };
        let there = self.record(append.record.sequence).copied().filter(|_| !rules.mutated(Mutation::Overwrite));
        let Some(there) = there else {
            self.land(append.record);
            self.written(rules, pod, append);
            return true;
        };
        let mut authority = append.authority();
        if let (log::Authority::Adopted { epoch }, true) = (&authority, rules.mutated(Mutation::AdoptWithoutGrants)) {
            authority = log::Authority::Owner { epoch: *epoch, granted: None };
        }
        match log::found(&authority, append.record.nonce, &there.header()) {
            Found::Ours => self.written(rules, pod, append),
            Found::InTheWay => self.agent_mut(pod).append = Some(step_over(append, &there)),
            Found::Fenced => self.fenced(rules, pod, append, &there),
        }
        true
    }

    pub(super) fn create_unheard(&mut self, rules: Rules, pod: Pod) -> bool {
        let Some(append) = self.agent(pod).append else { return false };
        if self.record(append.record.sequence).is_some() && !rules.mutated(Mutation::Overwrite) {
            return false;
        }
        self.land(append.record);
        true
    }

    pub(super) fn create_doubled(&mut self, rules: Rules, pod: Pod) -> bool {
        let Some(append) = self.agent(pod).append else { return false };
        self.left.doubles -= 1;
        self.keep_late(append.record);
        self.create(rules, pod)
    }

    pub(super) fn keep_late(&mut self, record: Record) {
        self.late.push(record);
        self.late.sort_unstable();
        self.late.dedup();
    }

    pub(super) fn land_late(&mut self, rules: Rules, index: u8) -> bool {
        let record = self.late[usize::from(index)];
        if self.record(record.sequence).is_some() && !rules.mutated(Mutation::Overwrite) {
            return false;
        }
        self.late.remove(usize::from(index));
        self.land(record);
        true
    }

    pub(super) fn lapse(&mut self, index: u8) -> bool {
        self.late.remove(usize::from(index));
        true
    }

    /// Tells the handoff that waits for an append that it cannot be written now. The append itself stays pending:
    /// its create may have landed, or land yet.
    pub(super) fn store_down(&mut self, rules: Rules, pod: Pod) -> bool {
        match self.agent(pod).append.map(|append| append.purpose) {
            Some(Purpose::Insure { handoff }) => self.give(rules, pod, handoff, source::Event::InsureFailed),
            Some(Purpose::First { handoff, .. }) => self.take(pod, handoff, target::Event::AppendFailed),
            _ => false,
        }
    }

    fn written(&mut self, rules: Rules, pod: Pod, append: Append) {
        let Append { purpose, record, .. } = append;
        let sequence = Sequence(record.sequence.into());
        self.agent_mut(pod).append = None;
        match purpose {
            Purpose::Sync => {
                self.advance(pod, &record);
                self.seen.acknowledged |= record.body;
            }
            Purpose::Release => {
                self.seen.acknowledged |= record.body;
                self.discard(pod);
            }
            Purpose::Grant { handoff } => {
                self.advance(pod, &record);
                self.give(rules, pod, handoff, source::Event::Granted(sequence));
            }
            Purpose::Insure { handoff } => {
                self.advance(pod, &record);
                self.seen.acknowledged |= record.body;
                let known = self.give(rules, pod, handoff, source::Event::Insured(sequence));
                // What an agent that began anew had left is done with; one that was refused serves on.
                if !known && self.agent(pod).giving.is_none() && matches!(self.agent(pod).host, Host::Frozen(_)) {
                    self.discard(pod);
                }
            }
            Purpose::First { handoff, release } => {
                self.seen.acknowledged |= record.body;
                if !release {
                    self.agent_mut(pod).term = Some(term(&record));
                }
                self.take(pod, handoff, target::Event::Appended(sequence));
            }
            Purpose::Adopt { .. } => {
                self.seen.acknowledged |= record.body;
                self.agent_mut(pod).term = Some(term(&record));
            }
            Purpose::Claim => {
                let state = self.load(record.state_at);
                self.start(pod, &record, state);
            }
            Purpose::ServeGrant { .. } => self.start(pod, &record, record.body),
        }
        self.begin_wanted(rules, pod);
    }

    fn fenced(&mut self, rules: Rules, pod: Pod, append: Append, there: &Record) {
        self.agent_mut(pod).append = None;
        match append.purpose {
            Purpose::Sync | Purpose::Release => {
                let giving = self.agent(pod).giving.as_ref().map(|giving| giving.handoff);
                if let Some(handoff) = giving {
                    self.give(rules, pod, handoff, source::Event::Fenced(there.header()));
                }
                self.discard(pod);
            }
            Purpose::Grant { handoff } | Purpose::Insure { handoff } => {
                if !self.give(rules, pod, handoff, source::Event::Fenced(there.header())) {
                    self.discard(pod);
                }
            }
            Purpose::First { handoff, .. } => {
                self.take(pod, handoff, target::Event::Fenced(there.header()));
            }
            Purpose::ServeGrant { handoff } => self.load_repeat(pod, append, there, handoff),
            Purpose::Adopt { .. } => self.discard(pod),
            Purpose::Claim => {}
        }
        self.begin_wanted(rules, pod);
    }

    /// The source was not done: it repeated the same grant with the final state. That state is the one to serve.
    fn load_repeat(&mut self, pod: Pod, append: Append, there: &Record, handoff: u8) {
        let repeats = matches!(there.kind, Kind::Grant { handoff: other, .. } if other == handoff);
        if repeats && there.bears_state() {
            let after = Term { tail: there.sequence, ..term(&append.record) };
            self.begin(pod, append.purpose, after, Some(there.body));
        }
    }

    pub(super) fn load(&mut self, state_at: u8) -> u8 {
        if state_at == 0 {
            return 0;
        }
        let body = self.record(state_at).map(|record| record.body);
        self.seen.state_missing |= body.is_none();
        body.unwrap_or_default()
    }

    fn start(&mut self, pod: Pod, record: &Record, state: u8) {
        let agent = self.agent_mut(pod);
        (agent.host, agent.open) = (Host::Active(state), true);
        agent.term = Some(Term { synced: state, ..term(record) });
        self.witness_term(record.epoch, pod);
    }

    /// The owner's own record became the newest that it knows.
    fn advance(&mut self, pod: Pod, record: &Record) {
        let Some(term) = &mut self.agent_mut(pod).term else { return };
        (term.tail, term.state_at) = (record.sequence, record.state_at);
        if record.bears_state() {
            term.synced = record.body;
        }
        if let Kind::Grant { handoff, .. } = record.kind {
            term.granted = handoff;
        }
    }

    pub(super) fn discard(&mut self, pod: Pod) {
        let agent = self.agent_mut(pod);
        (agent.host, agent.open, agent.call, agent.term) = (Host::Absent, false, None, None);
    }

    /// What the owner may delete now.
    pub(super) fn deletable(&self, rules: Rules) -> Vec<u8> {
        let there = || self.log.iter().flatten();
        if rules.mutated(Mutation::CleanupPointedAt) {
            let newest = self.log.len();
            return there().map(|record| record.sequence).filter(|sequence| usize::from(*sequence) < newest).collect();
        }
        let seen: Vec<Seen> = there()
            .map(|record| Seen { header: record.header(), succeeded_for: self.succeeded_for(rules, record.sequence) })
            .collect();
        let goes = log::deletable(&seen, &RETENTION);
        there().map(|record| record.sequence).filter(|n| goes.contains(&Sequence((*n).into()))).collect()
    }

    /// Retention is far longer than any create can be late: old enough is what no create can meet any more.
    fn succeeded_for(&self, rules: Rules, sequence: u8) -> Option<Duration> {
        if usize::from(sequence) == self.log.len() {
            return None;
        }
        let appends = self.agents.iter().filter_map(|agent| agent.append.map(|append| append.record));
        let met = appends.chain(self.late.iter().copied()).any(|create| create.sequence == sequence);
        let is_claim = self.record(sequence).is_some_and(|record| record.kind == Kind::Claim);
        let too_soon = rules.mutated(Mutation::CleanupTooSoon);
        let young = met && !too_soon && !(is_claim && rules.mutated(Mutation::CleanupOfClaims));
        Some(if young { Duration::ZERO } else { RETENTION.terms })
    }

    pub(super) fn clean_up(&mut self, sequence: u8) -> bool {
        self.log[usize::from(sequence) - 1] = None;
        self.left.cleanups -= 1;
        true
    }
}

fn step_over(append: Append, there: &Record) -> Append {
    let mut next = append;
    next.record.sequence += 1;
    next.record.state_at = if append.record.bears_state() { next.record.sequence } else { there.state_at };
    next
}

fn term(record: &Record) -> Term {
    Term { epoch: record.epoch, tail: record.sequence, state_at: record.state_at, synced: record.body, granted: 0 }
}
