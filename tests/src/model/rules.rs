//! The model: what may happen in a state, and what must hold in every one.

use stateright::{Model, Property};

use super::{
    lease::Signs,
    operator::Order,
    world::{Agent, Append, Call, Host, Kind, Message, Pod, Purpose, World, Writes},
};

/// How often each kind of thing may happen. What is not bounded here is bounded by these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Client writes, 8 at most.
    pub writes: u8,
    /// Syncs of a dirty server.
    pub syncs: u8,
    /// Handoffs begun.
    pub handoffs: u8,
    /// Graceful stops.
    pub stops: u8,
    /// Pods that end without a word.
    pub crashes: u8,
    /// Records deleted by cleanup.
    pub cleanups: u8,
    /// Creates that land a second time after their agent has its answer; needs `cleanups` to matter.
    pub doubles: u8,
    /// Heartbeats besides the first of each generation.
    pub beats: u8,
    /// Leases of living agents' heartbeats that end.
    pub expiries: u8,
    /// Changes of the leader.
    pub leaders: u8,
    /// Agents that are restarted beside a living host.
    pub restarts: u8,
    /// Pods that end without a word and are not reported terminated either.
    pub losses: u8,
}

/// A mistake put in on purpose, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The source takes the Grant for durable as soon as it is on its way.
    FinalBeforeGrant,
    /// The source serves again when the stream breaks after Final.
    ThawAfterFinal,
    /// A create replaces what is there.
    Overwrite,
    /// Cleanup does not wait until no create of a deleted key can be on its way.
    CleanupTooSoon,
    /// Cleanup takes old claims for worthless: they bear no state.
    CleanupOfClaims,
    /// Cleanup deletes what the newest record points at.
    CleanupPointedAt,
    /// The source keeps to itself that it will never serve again.
    NoDisclaim,
    /// An agent syncs while a handoff's Grant is written or about to be.
    SyncWhileGranting,
    /// A standby whose source is gone serves on assignment without giving its handoff up.
    NoWithdraw,
    /// The source's insurance is a Grant without the final state.
    InsureWithoutState,
    /// A claim takes the epoch that the one before may have granted.
    ClaimNextEpoch,
    /// An assignment does not say which epoch it supersedes.
    AnyEpoch,
    /// An assignment counts over a Grant whose pod it does not name.
    AnyGrantee,
    /// A claim from a silent owner does not look for heartbeats in the store.
    NoHeartbeatRead,
    /// An agent does not look at the clock before it takes up an answer.
    LateSuccess,
    /// An operator that leads no more goes on answering heartbeats.
    OldLeaderAnswers,
    /// A restarted agent has a frozen server serve on.
    AdoptFrozen,
    /// A restarted agent has its servers go on under a generation of its own.
    AdoptAnew,
    /// A restarted agent takes a Grant that the run before had on its way for another's.
    AdoptWithoutGrants,
    /// The operator puts together grounds that did not hold at once: a granted pod was silent once, and has begun anew.
    OldSilence,
}

/// One step of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    /// A client's write is answered.
    Write(Pod),
    /// A dirty server begins a sync.
    Sync(Pod),
    /// A graceful stop begins: frozen, its Release on the way.
    StopServer(Pod),
    /// The pod is gone, and the operator knows.
    Crash(Pod),
    /// A handoff begins.
    HandOff {
        /// The source.
        from: Pod,
        /// The target.
        to: Pod,
    },
    /// The source's drain gives it up.
    Abort(Pod),
    /// A message arrives, for the first time or again.
    Deliver {
        /// By number, from 1.
        handoff: u8,
        /// Which one.
        message: Message,
    },
    /// The warm copy arrives and does not start.
    StandbyFails {
        /// By number, from 1.
        handoff: u8,
    },
    /// One side sees the stream break.
    Break {
        /// Who sees it.
        pod: Pod,
        /// As the source, or else as the target.
        giving: bool,
    },
    /// A timer of a handoff fires.
    Timer {
        /// Whose.
        pod: Pod,
        /// As the source, or else as the target.
        giving: bool,
    },
    /// The host froze and the agent heard.
    Frozen(Pod),
    /// The host froze and the agent did not hear.
    FrozenUnheard(Pod),
    /// The host activated and the agent heard.
    Activated(Pod),
    /// The host activated and the agent did not hear.
    ActivatedUnheard(Pod),
    /// The host did not activate, or nothing was heard for too long.
    ActivateFailed(Pod),
    /// The host forgot the server.
    Stopped(Pod),
    /// It did not, or nothing was heard for too long.
    StopFailed(Pod),
    /// The pending append's create is answered.
    Create(Pod),
    /// It lands and the answer is lost.
    CreateUnheard(Pod),
    /// It is answered, and a double of it is still on its way.
    CreateDoubled(Pod),
    /// The agent is told that the store cannot be written now.
    StoreDown(Pod),
    /// A create that nobody waits for lands.
    Late(u8),
    /// A create that nobody waits for is lost for good.
    Lapse(u8),
    /// An assignment arrives.
    Assign {
        /// Who gets it.
        to: Pod,
        /// What it says.
        order: Order,
    },
    /// A heartbeat reaches the leader.
    Beat(Pod),
    /// A heartbeat reaches a leader that is none any more, and is answered by mistake.
    BeatToOldLeader(Pod),
    /// A heartbeat is in the store.
    BeatInStore {
        /// Whose.
        pod: Pod,
        /// It knows.
        heard: bool,
    },
    /// The leader's answer reaches the agent.
    Answered(Pod),
    /// The lease of one more heartbeat is over.
    Expire(Pod),
    /// Another replica leads.
    Follow,
    /// An agent whose lease is over looks at the clock.
    Fence(Pod),
    /// The agent is restarted, its host is not.
    Restart {
        /// Whose.
        pod: Pod,
        /// Other servers of this pod go on, and its generation with them.
        others: bool,
    },
    /// The pod is gone, and nobody knows.
    Lose(Pod),
    /// The owner deletes a record.
    Cleanup {
        /// The owner.
        by: Pod,
        /// The record.
        sequence: u8,
    },
}

impl Act {
    /// What happens by itself once faults, new work and the network have stopped.
    #[must_use]
    pub fn is_fair(&self) -> bool {
        matches!(
            self,
            Self::Timer { .. }
                | Self::Frozen(_)
                | Self::Activated(_)
                | Self::ActivateFailed(_)
                | Self::Stopped(_)
                | Self::Create(_)
                | Self::Assign { .. }
                | Self::Expire(_)
                | Self::Fence(_)
        )
    }
}

/// A model to check.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// How far to look.
    pub bounds: Bounds,
    /// A mistake to find.
    pub mutation: Option<Mutation>,
}

impl Rules {
    pub(super) fn mutated(self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// Some pod answers requests and the log says that it may write: faults or not, all is well.
    #[must_use]
    pub fn is_served(world: &World) -> bool {
        world.agents.iter().any(|agent| {
            let newest = world.newest().map(|record| record.epoch);
            agent.open && agent.serves().is_some() && agent.term.is_some_and(|term| Some(term.epoch) == newest)
        })
    }

    /// What one pod may do or meet, roughly: [`Self::apply`] decides.
    fn pod_actions(self, world: &World, pod: Pod, actions: &mut Vec<Act>) {
        let agent = world.agent(pod);
        let left = &world.left;
        actions.extend((left.crashes > 0).then_some(Act::Crash(pod)));
        actions.extend((left.losses > 0).then_some(Act::Lose(pod)));
        if agent.lease.is_over() {
            actions.push(Act::Fence(pod));
            actions.extend(agent.append.map(|_| Act::CreateUnheard(pod)));
            actions.extend(self.mutated(Mutation::LateSuccess).then_some(Act::Answered(pod)));
            return;
        }
        actions.extend(agent.lease.has_news().then_some(Act::Answered(pod)));
        if left.restarts > 0 {
            actions.push(Act::Restart { pod, others: false });
            // Of one that has nothing to end, the generation alone is no matter.
            let ends = matches!(agent.host, Host::Frozen(_)) || (agent.serves().is_none() && agent.append.is_some());
            actions.extend(ends.then_some(Act::Restart { pod, others: true }));
        }
        if left.beats > 0 && agent.is_busy() && world.leases_end() {
            actions.extend([true, false].map(|heard| Act::BeatInStore { pod, heard }));
            actions.push(Act::Beat(pod));
            actions.extend(self.mutated(Mutation::OldLeaderAnswers).then_some(Act::BeatToOldLeader(pod)));
        }
        if world.left.writes > 0 && agent.open && agent.serves().is_some() {
            actions.push(Act::Write(pod));
        }
        match agent.call {
            Some(Call::Freeze { .. }) => actions.extend([Act::Frozen(pod), Act::FrozenUnheard(pod)]),
            Some(Call::Activate(_)) => actions.extend([Act::Activated(pod), Act::ActivatedUnheard(pod)]),
            Some(Call::Stop) => actions.extend([Act::Stopped(pod), Act::StopFailed(pod)]),
            None => {}
        }
        if agent.append.is_some() {
            actions.extend([Act::Create(pod), Act::CreateUnheard(pod), Act::StoreDown(pod)]);
            if world.left.doubles > 0 {
                actions.push(Act::CreateDoubled(pod));
            }
        }
        if agent.giving.is_some() {
            actions.extend([Act::Timer { pod, giving: true }, Act::Break { pod, giving: true }, Act::Abort(pod)]);
        }
        if agent.taking().is_some() {
            actions.extend([Act::Timer { pod, giving: false }, Act::Break { pod, giving: false }]);
            actions.push(Act::ActivateFailed(pod));
        }
        if agent.is_free() {
            actions.extend(world.orders.iter().map(|order| Act::Assign { to: pod, order: *order }));
        }
        if agent.open && agent.term.is_some() {
            self.owner_actions(world, pod, actions);
        }
    }

    fn owner_actions(self, world: &World, pod: Pod, actions: &mut Vec<Act>) {
        actions.extend((world.left.syncs > 0).then_some(Act::Sync(pod)));
        actions.extend((world.left.stops > 0).then_some(Act::StopServer(pod)));
        if world.left.handoffs > 0 {
            // B and C are alike until one of them is chosen.
            let others = if world.streams.is_empty() && pod == Pod::A { &Pod::ALL[1..2] } else { &Pod::ALL[..] };
            actions.extend(others.iter().filter(|to| **to != pod).map(|to| Act::HandOff { from: pod, to: *to }));
        }
        if world.left.cleanups > 0 {
            let deletable = world.deletable(self);
            actions.extend(deletable.into_iter().map(|sequence| Act::Cleanup { by: pod, sequence }));
        }
    }

    fn apply(self, world: &mut World, act: Act) -> bool {
        match act {
            Act::Write(pod) => world.write(self, pod),
            Act::Sync(pod) => world.sync(self, pod),
            Act::StopServer(pod) => world.stop_server(pod),
            Act::Crash(pod) => world.crash(pod),
            Act::HandOff { from, to } => world.hand_off(self, from, to),
            Act::Abort(pod) => world.abort(self, pod),
            Act::Deliver { handoff, message } => world.deliver(self, handoff, message, true),
            Act::StandbyFails { handoff } => world.deliver(self, handoff, Message::Warm, false),
            Act::Break { pod, giving } => world.break_stream(self, pod, giving),
            Act::Timer { pod, giving } => world.timer(self, pod, giving),
            Act::Frozen(pod) => world.frozen(self, pod, true),
            Act::FrozenUnheard(pod) => world.frozen(self, pod, false),
            Act::Activated(pod) => world.activated(pod, true),
            Act::ActivatedUnheard(pod) => world.activated(pod, false),
            Act::ActivateFailed(pod) => world.activate_failed(pod),
            Act::Stopped(pod) => world.stopped(pod, true),
            Act::StopFailed(pod) => world.stopped(pod, false),
            Act::Create(pod) => world.create(self, pod),
            Act::CreateUnheard(pod) => world.create_unheard(self, pod),
            Act::CreateDoubled(pod) => world.create_doubled(self, pod),
            Act::StoreDown(pod) => world.store_down(self, pod),
            Act::Late(index) => world.land_late(self, index),
            Act::Lapse(index) => world.lapse(index),
            Act::Assign { to, order } => world.assign(self, to, order),
            Act::Beat(pod) => world.beat(pod),
            Act::BeatToOldLeader(pod) => world.beat_to_old_leader(pod),
            Act::BeatInStore { pod, heard } => world.beat_in_store(pod, heard),
            Act::Answered(pod) => world.answered(self, pod),
            Act::Expire(pod) => world.expire(pod),
            Act::Follow => world.follow(),
            Act::Fence(pod) => world.fence(pod),
            Act::Restart { pod, others } => world.restart(self, pod, others),
            Act::Lose(pod) => world.lose(pod),
            Act::Cleanup { sequence, .. } => world.clean_up(sequence),
        }
    }
}

impl Model for Rules {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.bounds)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Act>) {
        for pod in world.different_pods().iter().copied() {
            let agent = world.agent(pod);
            if agent.up {
                self.pod_actions(world, pod, actions);
            }
            // The lease of one that does nothing changes nothing.
            if agent.lost || (agent.is_busy() && world.left.expiries > 0) {
                actions.push(Act::Expire(pod));
            }
        }
        let ended = |agent: &Agent| agent.lost || agent.lease.has_ended_one();
        if world.left.leaders > 0 && (world.leases_end() || world.agents.iter().any(ended)) {
            actions.push(Act::Follow);
        }
        for (handoff, stream) in (1..).zip(&world.streams) {
            let sent = Message::ALL.into_iter().filter(|message| stream.has(*message));
            actions.extend(sent.map(|message| Act::Deliver { handoff, message }));
            if stream.has(Message::Warm) {
                actions.push(Act::StandbyFails { handoff });
            }
        }
        for (index, _) in (0..).zip(&world.late) {
            actions.push(Act::Late(index));
            if world.left.cleanups > 0 {
                actions.push(Act::Lapse(index));
            }
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        self.apply(&mut next, act).then(|| {
            next.take_inventories(*self);
            next.give_orders(*self);
            next.forget_the_dead(*self);
            next
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one pod serves", |_, world: &World| world.serving().count() <= 1),
            Property::always("what was acknowledged is kept", |_, world: &World| {
                world.serving().all(|state| has(state, world.seen.acknowledged))
            }),
            Property::always("what a living pod answered is kept", |_, world: &World| {
                world.serving().all(|state| has(state, world.answered_by_the_living()))
            }),
            Property::always("an epoch is one pod's", |_, world: &World| !world.seen.shared_epoch),
            Property::always("the state is there", |_, world: &World| {
                !world.seen.state_missing && world.points_at_a_state()
            }),
            Property::sometimes("a handoff ends well", |_, world: &World| {
                let newest = world.newest().map(|record| (record.kind, record.epoch));
                newest == Some((Kind::Snapshot, 2)) && world.agent(Pod::B).open && world.agent(Pod::A).is_free()
            }),
            Property::sometimes("a granted pod starts from the log", |_, world: &World| {
                world.appends().any(|append| matches!(append.purpose, Purpose::ServeGrant { .. }))
            }),
            Property::sometimes("a refused source serves on", |_, world: &World| {
                let granted = world.newest().is_some_and(|record| record.kind != Kind::Claim && record.bears_state());
                granted && world.log.len() == 3 && world.agent(Pod::A).open
            }),
            Property::sometimes("a target steps over the insurance", |_, world: &World| {
                world
                    .appends()
                    .any(|append| matches!(append.purpose, Purpose::First { .. } if append.record.sequence > 3))
            }),
            Property::sometimes("a target passes the server on", |_, world: &World| {
                let newest = world.newest().map(|record| (record.kind, record.epoch));
                newest == Some((Kind::Release, 2))
            }),
        ]
    }
}

fn has(state: Writes, writes: Writes) -> bool {
    state & writes == writes
}

impl World {
    /// Without handoffs, B and C are alike until something happens to one of them: what C does then, B does as well.
    fn different_pods(&self) -> &'static [Pod] {
        let Signs { heard, before, stored, .. } = &self.signs;
        let signs = |pod: usize| (heard[pod], before[pod], stored[pod]);
        let of_a = self.seen.owners.iter().all(|(_, owner)| *owner == Pod::A)
            && self.late.iter().all(|record| record.writer == Pod::A);
        let alike = of_a && self.agents[1] == self.agents[2] && signs(1) == signs(2);
        let without_handoffs = self.left.handoffs == 0 && self.streams.is_empty();
        &Pod::ALL[..if alike && without_handoffs { 2 } else { 3 }]
    }

    fn serving(&self) -> impl Iterator<Item = Writes> + '_ {
        self.agents.iter().filter_map(Agent::serves)
    }

    fn appends(&self) -> impl Iterator<Item = Append> + '_ {
        self.agents.iter().filter_map(|agent| agent.append)
    }

    /// A write may be lost only with the pod that answered it.
    fn answered_by_the_living(&self) -> Writes {
        let living = self.agents.iter().zip(self.seen.answered).filter(|(agent, _)| agent.up);
        living.fold(0, |all, (_, writes)| all | writes)
    }

    fn points_at_a_state(&self) -> bool {
        self.newest().is_some_and(|newest| newest.state_at == 0 || self.record(newest.state_at).is_some())
    }
}
