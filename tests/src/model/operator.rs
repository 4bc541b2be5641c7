//! The operator: honest about grounds, free in everything else. It may give the server to any pod, late and from
//! stale knowledge, and leaves it to the pod and the log to find that out.

use handoff::{
    claim::{self, Start, Supersedes},
    ids::Epoch,
    log::Header,
    target,
};

use super::{
    rules::{Act, Mutation, Rules},
    world::{Kind, Pod, Purpose, Term, World},
};

/// The assignments that may reach an agent now.
pub(super) fn assignments(world: &World, to: Pod, actions: &mut Vec<Act>) {
    let newest = world.newest();
    let released = newest.is_some_and(|record| record.kind == Kind::Release);
    let granted = newest.is_some_and(|record| matches!(record.kind, Kind::Grant { .. }));
    for (epoch, owner) in &world.seen.owners {
        if !released && !world.is_over(*epoch, *owner) {
            continue;
        }
        actions.push(Act::Assign { to, epoch: *epoch, grantee: None });
        // Only an agent that finds a Grant looks at the grantee.
        for grantee in Pod::ALL.into_iter().filter(|pod| granted && !world.agent(*pod).up) {
            actions.push(Act::Assign { to, epoch: *epoch, grantee: Some(grantee) });
        }
    }
}

impl World {
    fn is_over(&self, epoch: u8, owner: Pod) -> bool {
        !self.agent(owner).up || self.seen.disclaimed & 1 << epoch != 0
    }

    /// An assignment reaches an agent, which looks at the log and begins what it finds right.
    pub(super) fn assign(&mut self, rules: Rules, to: Pod, epoch: u8, grantee: Option<Pod>) -> bool {
        let newest = self.newest().map(super::world::Record::header);
        let epoch = match &newest {
            Some(newest) if rules.mutated(Mutation::AnyEpoch) => newest.epoch,
            _ => Epoch(epoch.into()),
        };
        let named = newest.as_ref().and_then(Header::grantee).map(|grantee| grantee.to.pod.clone());
        let owner = self.seen.owners.iter().find(|(known, _)| u64::from(*known) == epoch.0);
        let supersedes = Supersedes {
            epoch,
            owner: owner.map(|(_, pod)| pod.uid().into()).unwrap_or_default(),
            grantee: if rules.mutated(Mutation::AnyGrantee) { named } else { grantee.map(Pod::uid) }.map(Into::into),
        };
        let start = claim::decide(newest.as_ref(), Some(&supersedes), &to.writer());
        if matches!(start, Start::Refuse(_)) {
            return false;
        }
        self.withdraw(rules, to);
        self.begin_start(rules, to, start);
        true
    }

    /// Whatever a handoff promised here is over. One that is past Final was not assigned to in the first place.
    fn withdraw(&mut self, rules: Rules, pod: Pod) {
        if rules.mutated(Mutation::NoWithdraw) {
            return;
        }
        if let Some(handoff) = self.agent(pod).taking.as_ref().map(|taking| taking.handoff) {
            self.take(pod, handoff, target::Event::Withdraw("assigned".into()));
        }
    }

    fn begin_start(&mut self, rules: Rules, to: Pod, start: Start) {
        let term = |epoch: Epoch, after: handoff::Sequence, state_at: handoff::Sequence| Term {
            epoch: small(epoch.0),
            tail: small(after.0),
            state_at: small(state_at.0),
            synced: 0,
            granted: 0,
        };
        match start {
            Start::Claim { epoch, after, state_at, .. } => {
                let back = u64::from(rules.mutated(Mutation::ClaimNextEpoch));
                self.begin(to, Purpose::Claim, term(Epoch(epoch.0 - back), after, state_at), None);
            }
            Start::ServeGrant { epoch, after, state_at, grant, .. } => {
                let state = self.load(small(state_at.0));
                let purpose = Purpose::ServeGrant { handoff: small(grant.handoff.0) };
                self.begin(to, purpose, term(epoch, after, state_at), Some(state));
            }
            Start::Refuse(_) => {}
        }
    }
}

/// Every number of the model is small: its bounds are.
fn small(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}
