//! The operator: honest about grounds, free in everything else. It may give the server to any pod, late and from
//! stale knowledge, and leaves it to the pod and the log to find that out.

use handoff::{
    claim::{self, Over, Start, Supersedes},
    ids::Epoch,
    log::Header,
    target,
};

use super::{
    lease::{Beat, heartbeat},
    rules::{Mutation, Rules},
    world::{Kind, Pod, Purpose, Term, World},
};

/// Why a pod may be named as over; what admits more is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grounds {
    /// It was silent since this heartbeat.
    Silent(Beat),
    /// It is certain.
    Certain,
}

impl Grounds {
    fn of(self, pod: Pod) -> Over {
        let silent = match self {
            Self::Silent(since) => Some(heartbeat(since)),
            Self::Certain => None,
        };
        Over { pod: pod.uid(), silent }
    }
}

/// An assignment: what it supersedes, and on what grounds. They held all at once, by one reading of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order {
    epoch: u8,
    owner: Grounds,
    /// The granted pod that is over too.
    grantee: Option<(Pod, Grounds)>,
}

impl Order {
    /// Whether whatever this one has refused the other has refused too.
    fn covers(self, other: Self) -> bool {
        let named = match (self.grantee, other.grantee) {
            (_, None) => true,
            (Some((pod, mine)), Some((named, other))) => pod == named && mine >= other,
            (None, Some(_)) => false,
        };
        self.epoch == other.epoch && self.owner >= other.owner && named
    }
}

impl World {
    /// A pod that is well and holds nothing will never serve what the log says is its own: its inventory says so.
    pub(super) fn take_inventories(&mut self, rules: Rules) {
        if rules.mutated(Mutation::NoDisclaim) {
            return;
        }
        let holds_nothing = |pod: Pod| self.agent(pod).is_free() && !self.agent(pod).lease.is_over();
        let over = self.seen.owners.iter().filter(|(_, owner)| holds_nothing(*owner));
        let over = over.fold(0, |all, (epoch, _)| all | 1 << epoch);
        self.seen.disclaimed |= over;
    }

    /// The operator decides as soon as it can; what it decided arrives at any time later, or never.
    pub(super) fn give_orders(&mut self, rules: Rules) {
        let Some(newest) = self.newest().copied() else { return };
        if !rules.mutated(Mutation::AnyEpoch) {
            // The log refuses those for ever.
            self.orders.retain(|order| order.epoch == newest.epoch);
        }
        let Some((epoch, owner)) = self.seen.owners.iter().find(|(epoch, _)| *epoch == newest.epoch).copied() else {
            return;
        };
        let gone = newest.kind == Kind::Release || self.seen.disclaimed & 1 << epoch != 0;
        let Some(owner) = self.grounds(owner, gone) else { return };
        let grantee = match newest.kind {
            Kind::Grant { to, .. } => self.grounds_of_grantee(rules, to).map(|grounds| (to, grounds)),
            _ => None,
        };
        let order = Order { epoch, owner, grantee };
        if !self.orders.iter().any(|known| known.covers(order)) {
            self.orders.retain(|known| !order.covers(*known));
            self.orders.push(order);
            self.orders.sort_unstable();
        }
    }

    /// Whether an assignment rests on this pod's silence.
    pub(super) fn is_named_silent(&self, pod: Pod) -> bool {
        self.orders.iter().any(|order| {
            let owns = || self.seen.owners.contains(&(order.epoch, pod));
            matches!(order.grantee, Some((to, Grounds::Silent(_))) if to == pod)
                || (matches!(order.owner, Grounds::Silent(_)) && owns())
        })
    }

    /// Why a pod may be named now, if it may.
    fn grounds(&self, pod: Pod, gone: bool) -> Option<Grounds> {
        let agent = self.agent(pod);
        if gone || (!agent.up && !agent.lost) { Some(Grounds::Certain) } else { self.silence(pod).map(Grounds::Silent) }
    }

    fn grounds_of_grantee(&self, rules: Rules, pod: Pod) -> Option<Grounds> {
        let before = self.agent(pod).lease.generation - 1;
        if before > 0 && rules.mutated(Mutation::OldSilence) {
            Some(Grounds::Silent((before, 1)))
        } else {
            self.grounds(pod, false)
        }
    }

    /// An assignment reaches an agent, which looks at the log and begins what it finds right.
    pub(super) fn assign(&mut self, rules: Rules, to: Pod, order: Order) -> bool {
        let newest = self.newest().map(super::world::Record::header);
        let epoch = match &newest {
            Some(newest) if rules.mutated(Mutation::AnyEpoch) => newest.epoch,
            _ => Epoch(order.epoch.into()),
        };
        let named = newest.as_ref().and_then(Header::grantee).map(|grantee| grantee.to.pod.clone().into());
        let owner = self.seen.owners.iter().find(|(known, _)| u64::from(*known) == epoch.0);
        let supersedes = Supersedes {
            epoch,
            owner: owner.map(|(_, pod)| order.owner.of(*pod)).unwrap_or_default(),
            grantee: if rules.mutated(Mutation::AnyGrantee) {
                named
            } else {
                order.grantee.map(|(pod, grounds)| grounds.of(pod))
            },
        };
        let start = claim::decide(newest.as_ref(), Some(&supersedes), &to.writer(self.agent(to).lease.generation));
        let (Start::Claim { doubts, .. } | Start::ServeGrant { doubts, .. }) = &start else { return false };
        if let Some(news) = self.found_alive(rules, doubts) {
            return news;
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
