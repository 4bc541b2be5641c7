//! What happens where.

use std::time::Duration;

use super::cell::{LEASE, Role};
use crate::gate::Fault;

/// How many cases to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Those that tell most, in a minute or two: for every landing.
    Bounded,
    /// All of them.
    All,
}

/// What happens.
#[derive(Debug, Clone, Copy)]
pub enum Misfortune {
    /// SIGKILL.
    Killed(Role),
    /// SIGSTOP, and SIGCONT when its lease is over.
    Paused(Role),
    /// The store has this fault for so long, from the drain's beginning on.
    Store(Fault, Duration),
}

impl Misfortune {
    /// In words.
    pub fn name(self) -> String {
        match self {
            Self::Killed(role) => format!("{} killed", role.name()),
            Self::Paused(role) => format!("{} paused", role.name()),
            Self::Store(Fault::CutOff, _) => "cut off".into(),
            Self::Store(Fault::SlowDown, _) => "503".into(),
            Self::Store(Fault::Slow(by), _) => format!("acts after {} ms", by.as_millis()),
            Self::Store(Fault::AnswersLate(by), _) => format!("answers after {} ms", by.as_millis()),
            Self::Store(..) => "broken".into(),
        }
    }
}

/// What happens where.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The fail point's name.
    pub step: &'static str,
    /// It happens when a process comes there for the n-th time.
    pub times: u64,
    /// What.
    pub misfortune: Misfortune,
    part: Part,
}

impl Case {
    /// Both in words.
    pub fn name(&self) -> String {
        format!("{} {}", self.step, self.misfortune.name())
    }
}

/// The store's faults outlast a lease.
const OUTAGE: Duration = LEASE.saturating_add(Duration::from_secs(2));
/// An operator's Lease is nobody's after this; its replica follows then.
const LEADER: Duration = Duration::from_secs(8);

/// How long one is paused: longer than what it leads or serves by.
pub fn pause(role: Role) -> Duration {
    let lease = if role == Role::Operator { LEADER } else { LEASE };
    lease + Duration::from_millis(1500)
}

/// Steps, whose they are, and which time is meant: several servers are under way then.
const STEPS: [(&str, Role, u64, Part); 31] = {
    use Part::{All, Bounded};
    use Role::{Operator, Source, Target};
    [
        ("source: offered", Source, 3, All),
        ("source: accepted", Source, 3, All),
        ("source: copied", Source, 3, All),
        ("source: grant sent", Source, 3, All),
        ("source: granted", Source, 3, Bounded),
        ("source: ready", Source, 3, All),
        ("source: frozen", Source, 3, Bounded),
        ("source: final sent", Source, 3, Bounded),
        ("source: activated", Source, 3, Bounded),
        ("source: durable", Source, 3, All),
        ("source: discarded", Source, 3, All),
        ("target: accepted", Target, 2, All),
        ("target: standby", Target, 2, All),
        ("target: ready", Target, 2, All),
        ("target: final received", Target, 2, Bounded),
        ("target: activated", Target, 2, Bounded),
        ("target: first record sent", Target, 2, Bounded),
        ("target: first record written", Target, 2, All),
        ("release: frozen", Source, 2, All),
        ("release: sent", Source, 2, Bounded),
        ("release: released", Source, 2, All),
        ("claim: read", Target, 1, All),
        ("claim: sent", Target, 1, Bounded),
        ("claim: claimed", Target, 1, All),
        ("claim: started", Target, 1, All),
        ("session: heartbeat sent", Source, 1, All),
        ("session: heartbeat sent", Target, 1, All),
        ("session: heartbeat answered", Target, 1, All),
        ("operator: assignment sent", Operator, 1, All),
        ("operator: drain ordered", Operator, 1, All),
        ("operator: lease renewed", Operator, 1, Bounded),
    ]
};

/// What the store may do. An agent waits three seconds for an answer to a create.
const STORE: [(Fault, Part); 6] = [
    (Fault::CutOff, Part::Bounded),
    (Fault::SlowDown, Part::All),
    (Fault::Slow(Duration::from_millis(800)), Part::All),
    (Fault::Slow(Duration::from_secs(4)), Part::Bounded),
    (Fault::AnswersLate(Duration::from_millis(2500)), Part::All),
    (Fault::AnswersLate(Duration::from_secs(4)), Part::Bounded),
];

/// The cases of this part.
pub fn all(part: Part) -> Vec<Case> {
    let of_steps = STEPS.iter().flat_map(|&(step, role, times, part)| {
        [Misfortune::Killed(role), Misfortune::Paused(role)].map(|misfortune| Case { step, times, misfortune, part })
    });
    let of_store = STORE.iter().map(|&(fault, part)| Case {
        step: "store",
        times: 1,
        misfortune: Misfortune::Store(fault, OUTAGE),
        part,
    });
    of_steps.chain(of_store).filter(|case| part == Part::All || case.part == part).collect()
}
