//! What a state of the model consists of. Small numbers and few allocations: millions of these are made and hashed.

use handoff::{
    ids::{Epoch, Generation, HandoffId, PodUid, Sequence},
    log::{self, Authority, Grantee, Header, Writer},
    source::{Final, Mark, Source, State},
    target::Target,
};

use super::{
    lease::{Lease, Signs},
    operator::Order,
    rules::Bounds,
};

/// A server's state: the set of the client writes in it.
pub type Writes = u8;

/// The agents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pod {
    /// Owns the server at the start.
    A,
    /// The first handoff's target.
    B,
    /// A third.
    C,
}

impl Pod {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::C];

    pub(super) fn uid(self) -> PodUid {
        PodUid(format!("{self:?}"))
    }

    pub(super) fn writer(self, generation: u8) -> Writer {
        Writer { pod: self.uid(), generation: Generation(generation.into()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Claim,
    Snapshot,
    Grant { to: Pod, generation: u8, handoff: u8 },
    Release,
}

/// A record of the log, or one on its way there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Record {
    pub sequence: u8,
    pub epoch: u8,
    pub kind: Kind,
    pub writer: Pod,
    pub generation: u8,
    pub nonce: u64,
    pub state_at: u8,
    pub body: Writes,
}

impl Record {
    pub fn bears_state(&self) -> bool {
        self.state_at == self.sequence
    }

    pub fn header(&self) -> Header {
        let kind = match self.kind {
            Kind::Claim => log::Kind::Claim,
            Kind::Snapshot => log::Kind::Snapshot,
            Kind::Grant { to, generation, handoff } => {
                log::Kind::Grant(Grantee { to: to.writer(generation), handoff: HandoffId(handoff.into()) })
            }
            Kind::Release => log::Kind::Release,
        };
        Header {
            sequence: Sequence(self.sequence.into()),
            epoch: Epoch(self.epoch.into()),
            kind,
            writer: self.writer.writer(self.generation),
            nonce: self.nonce,
            state_at: Sequence(self.state_at.into()),
            state_version: 0,
        }
    }
}

/// What an append is for: decides on whose behalf it is made, and what follows from its success. Adopt is the first of a
/// restarted agent, with the handoff that brought the server if its epoch has no record yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Purpose {
    Sync,
    Release,
    Grant { handoff: u8 },
    Insure { handoff: u8 },
    First { handoff: u8, release: bool },
    Claim,
    ServeGrant { handoff: u8 },
    Adopt { handoff: u8 },
}

/// An append whose outcome its agent does not know yet. At most one per agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Append {
    pub purpose: Purpose,
    pub record: Record,
    /// The newest handoff that the agent granted in this epoch.
    pub granted: u8,
}

impl Append {
    pub fn authority(&self) -> Authority {
        let epoch = Epoch(self.record.epoch.into());
        let id = |handoff: u8| HandoffId(handoff.into());
        match self.purpose {
            Purpose::Sync | Purpose::Release => {
                Authority::Owner { epoch, granted: (self.granted > 0).then(|| id(self.granted)) }
            }
            Purpose::Grant { handoff } | Purpose::Insure { handoff } => {
                Authority::Owner { epoch, granted: Some(id(handoff)) }
            }
            Purpose::Adopt { handoff: 0 } => Authority::Adopted { epoch },
            Purpose::First { handoff, .. } | Purpose::Adopt { handoff } => {
                Authority::Handed { from: Epoch(epoch.0.saturating_sub(1)), handoff: id(handoff) }
            }
            Purpose::Claim | Purpose::ServeGrant { .. } => Authority::Reader,
        }
    }

    /// Where it was begun and what for tells it from every other append of any agent.
    pub fn number(mut self, run: u8) -> Self {
        let Record { sequence, epoch, writer, generation, .. } = self.record;
        let (purpose, handoff) = match self.purpose {
            Purpose::Sync => (0, 0),
            Purpose::Release => (1, 0),
            Purpose::Grant { handoff } => (2, handoff),
            Purpose::Insure { handoff } => (3, handoff),
            Purpose::First { handoff, release } => (4 + u64::from(release), handoff),
            Purpose::Claim => (6, 0),
            Purpose::ServeGrant { handoff } => (7, handoff),
            Purpose::Adopt { handoff } => (8, handoff),
        };
        let begun = [sequence, epoch, generation, run].map(u64::from);
        let parts = [purpose, handoff.into(), writer as u64].into_iter().chain(begun);
        self.record.nonce = parts.fold(1, |number, part| number << 8 | part);
        self
    }
}

/// The server in one pod's host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Host {
    Absent,
    Standby(Writes),
    Active(Writes),
    Frozen(Writes),
}

/// A host verb that was called and has not taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Call {
    Freeze { since: Option<Writes> },
    Activate(Last),
    Stop,
}

/// What Final carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Last {
    State(Writes),
    Unchanged(Writes),
}

/// An ownership that the log confirms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Term {
    pub epoch: u8,
    /// The newest record known.
    pub tail: u8,
    pub state_at: u8,
    /// What the record at `state_at` bears: anything else is dirty.
    pub synced: Writes,
    /// The newest handoff granted in this term; 0 for none.
    pub granted: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Giving {
    pub handoff: u8,
    pub machine: Source,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Taking {
    pub handoff: u8,
    pub machine: Target<Writes>,
}

/// One pod: its agent and its host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Agent {
    pub up: bool,
    /// Gone, and nobody knows.
    pub lost: bool,
    pub lease: Lease,
    pub host: Host,
    pub call: Option<Call>,
    /// Requests are passed to the host.
    pub open: bool,
    pub term: Option<Term>,
    pub giving: Option<Box<Giving>>,
    pub taking: Option<Box<Taking>>,
    pub append: Option<Append>,
    /// What the handoff wants to append once the append under way is known.
    pub wants: Option<Purpose>,
}

impl Agent {
    pub const IDLE: Self = Self {
        up: true,
        lost: false,
        lease: Lease::FIRST,
        host: Host::Absent,
        call: None,
        open: false,
        term: None,
        giving: None,
        taking: None,
        append: None,
        wants: None,
    };
    pub const DOWN: Self = Self { up: false, ..Self::IDLE };

    /// Runs the server as far as its host is concerned, which is how double service would come about.
    pub fn serves(&self) -> Option<Writes> {
        match self.host {
            Host::Active(writes) => Some(writes),
            _ => None,
        }
    }

    /// The handoff that it receives, unless that is over.
    pub fn taking(&self) -> Option<&Target<Writes>> {
        self.taking.as_ref().map(|taking| &taking.machine).filter(|machine| !machine.is_ended())
    }

    /// What it owns once the log has its first record after a restart.
    pub fn adopted(&self) -> Option<Term> {
        let record = self.append.filter(|append| matches!(append.purpose, Purpose::Adopt { .. }))?.record;
        Some(Term { epoch: record.epoch, tail: record.sequence, state_at: record.state_at, synced: 0, granted: 0 })
    }

    /// Has the server, or something under way that may bring it here.
    pub fn is_busy(&self) -> bool {
        self.up
            && (self.host != Host::Absent || self.term.is_some() || self.append.is_some() || self.taking().is_some())
    }

    /// Neither owns the server nor has anything under way that may make it the owner, but for a handoff's standby.
    pub fn is_free(&self) -> bool {
        self.up
            && matches!(self.host, Host::Absent | Host::Standby(_))
            && self.call.is_none()
            && self.term.is_none()
            && self.giving.is_none()
            && self.append.is_none()
            && self.taking().is_none_or(|machine| !machine.is_past_final())
    }
}

/// A message of a handoff; its content is in the [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Message {
    /// To the target.
    Offer,
    /// To the target.
    Warm,
    /// To the target.
    Final,
    /// To the target.
    Cancel,
    /// To the source.
    Accept,
    /// To the source.
    Reject,
    /// To the source.
    Ready,
    /// To the source.
    Activated,
    /// To the source.
    Durable,
    /// To the source.
    Refused,
}

impl Message {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Offer,
        Self::Warm,
        Self::Final,
        Self::Cancel,
        Self::Accept,
        Self::Reject,
        Self::Ready,
        Self::Activated,
        Self::Durable,
        Self::Refused,
    ];

    pub(super) fn to_target(self) -> bool {
        matches!(self, Self::Offer | Self::Warm | Self::Final | Self::Cancel)
    }
}

/// The messages of one handoff that may still arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Stream {
    pub from: Pod,
    pub to: Pod,
    pub epoch: u8,
    sent: u16,
    /// Under which the target took it.
    pub generation: u8,
    pub warm: Writes,
    pub grant: u8,
    pub last: Last,
}

impl Stream {
    pub fn new(from: Pod, to: Pod, epoch: u8) -> Self {
        Self { from, to, epoch, sent: 0, generation: 0, warm: 0, grant: 0, last: Last::State(0) }
    }

    pub fn send(&mut self, message: Message) {
        self.sent |= 1 << message as u8;
    }

    pub fn has(&self, message: Message) -> bool {
        self.sent & 1 << message as u8 != 0
    }

    pub fn drop_all(&mut self, to_target: bool) {
        for message in Message::ALL {
            if message.to_target() == to_target {
                self.sent &= !(1 << message as u8);
            }
        }
        if to_target {
            (self.warm, self.grant, self.last) = (0, 0, Last::State(0));
        }
    }

    pub fn drop(&mut self, message: Message) {
        self.sent &= !(1 << message as u8);
    }

    /// A state as the source's host names it.
    pub fn state(&self, body: Writes) -> State<Writes> {
        State { mark: self.mark(body), version: 0, body }
    }

    pub fn mark(&self, body: Writes) -> Mark {
        Mark { instance: self.from as u64, revision: body.into(), checksum: body.into() }
    }

    pub fn last(&self) -> Final<Writes> {
        match self.last {
            Last::State(body) => Final::State(self.state(body)),
            Last::Unchanged(body) => Final::Unchanged(self.mark(body)),
        }
    }
}

/// What an onlooker who sees everything remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Witness {
    /// Writes that a sync acknowledged.
    pub acknowledged: Writes,
    /// Writes that each pod answered.
    pub answered: [Writes; 3],
    /// Epochs whose owner said that it will never serve them (again), as a set.
    pub disclaimed: u32,
    /// Who first wrote or served in each epoch.
    pub owners: Vec<(u8, Pod)>,
    /// Some epoch was written or served in by two pods.
    pub shared_epoch: bool,
    /// A state that a record points at was not there.
    pub state_missing: bool,
}

/// A state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub(super) log: Vec<Option<Record>>,
    /// Creates that nobody waits for and that may still land.
    pub(super) late: Vec<Record>,
    pub(super) agents: [Agent; 3],
    pub(super) streams: Vec<Stream>,
    pub(super) signs: Signs,
    /// Assignments that may arrive.
    pub(super) orders: Vec<Order>,
    pub(super) seen: Witness,
    pub(super) left: Bounds,
}

impl World {
    pub(super) fn new(bounds: Bounds) -> Self {
        let claim = Record {
            sequence: 1,
            epoch: 1,
            kind: Kind::Claim,
            writer: Pod::A,
            generation: 1,
            nonce: 1,
            state_at: 0,
            body: 0,
        };
        let term = Term { epoch: 1, tail: 1, state_at: 0, synced: 0, granted: 0 };
        let owner = Agent { host: Host::Active(0), open: true, term: Some(term), ..Agent::IDLE };
        Self {
            log: vec![Some(claim)],
            late: Vec::new(),
            agents: [owner, Agent::IDLE, Agent::IDLE],
            streams: Vec::new(),
            signs: Signs::default(),
            orders: Vec::new(),
            seen: Witness { owners: vec![(1, Pod::A)], ..Witness::default() },
            left: bounds,
        }
    }

    pub(super) fn agent(&self, pod: Pod) -> &Agent {
        &self.agents[pod as usize]
    }

    pub(super) fn agent_mut(&mut self, pod: Pod) -> &mut Agent {
        &mut self.agents[pod as usize]
    }

    pub(super) fn stream(&self, handoff: u8) -> &Stream {
        &self.streams[usize::from(handoff) - 1]
    }

    pub(super) fn stream_mut(&mut self, handoff: u8) -> &mut Stream {
        &mut self.streams[usize::from(handoff) - 1]
    }

    pub(super) fn newest(&self) -> Option<&Record> {
        self.log.last().and_then(Option::as_ref)
    }

    pub(super) fn record(&self, sequence: u8) -> Option<&Record> {
        self.log.get(usize::from(sequence).checked_sub(1)?)?.as_ref()
    }

    /// The epoch is this pod's, and nobody else's ever.
    pub(super) fn witness_term(&mut self, epoch: u8, pod: Pod) {
        match self.seen.owners.iter().find(|(known, _)| *known == epoch) {
            Some((_, owner)) if *owner == pod => {}
            Some(_) => self.seen.shared_epoch = true,
            None => {
                self.seen.owners.push((epoch, pod));
                self.seen.owners.sort_unstable();
            }
        }
    }
}
