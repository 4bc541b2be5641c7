//! Of which bad news people get an Event, beside the condition that has it. Pure.

use std::{collections::HashMap, time::Duration};

use crds::{Reason, condition};
use handoff::Instant;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::model::{Key, Kind};

/// Objects of one pool that get an Event of their own for one reason in one [`WINDOW`]; the others have the condition.
const MOST: u32 = 5;
const WINDOW: Duration = Duration::from_mins(1);

/// A host that does not answer may be starting; what else is wrong with a pod is no part of its start.
const STARTING: Duration = Duration::from_secs(15);
const PASSING: Duration = Duration::from_secs(3);

/// For how long a pod's problem is nobody's business.
#[must_use]
pub fn patience(reason: Reason) -> Duration {
    if matches!(reason, Reason::HostUnreachable | Reason::HostSilent) { STARTING } else { PASSING }
}

/// Why a pod cannot host, in its agent's word; a word from the network that no agent has is [`Reason::CannotHost`].
#[must_use]
pub fn of_pod(reason: &str) -> Reason {
    Reason::named(reason).filter(|known| known.is_of_pods()).unwrap_or(Reason::CannotHost)
}

/// What became wrong with a server between two of its statuses: the first bad condition that was not there before.
#[must_use]
pub fn of_server<'a>(before: &[Condition], now: &'a [Condition]) -> Option<(Reason, &'a str)> {
    let told = |new: &Condition| {
        before.iter().any(|old| old.type_ == new.type_ && old.status == new.status && old.reason == new.reason)
    };
    [condition::ACCEPTED, condition::PLACED, condition::DURABLE].into_iter().find_map(|kind| {
        let new = now.iter().find(|new| new.type_ == kind && new.status == "False")?;
        let reason = Reason::named(&new.reason).filter(|reason| reason.has_event())?;
        (!told(new)).then_some((reason, new.message.as_str()))
    })
}

/// Whether an object gets an Event of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Yes.
    Own,
    /// No, and its pool gets one that says so for all that follow.
    Rest,
    /// No.
    None,
}

/// Bounds Events: ten thousand servers with one trouble are one trouble.
#[derive(Clone, Debug, Default)]
pub struct Budget(HashMap<(Kind, Key, Reason), (Instant, u32)>);

impl Budget {
    /// Takes a turn for an object of this kind in this pool.
    pub fn take(&mut self, kind: Kind, pool: &Key, reason: Reason, now: Instant) -> Turn {
        let (since, taken) = self.0.entry((kind, pool.clone(), reason)).or_insert((now, 0));
        if now - *since >= WINDOW {
            (*since, *taken) = (now, 0);
        }
        *taken = taken.saturating_add(1);
        match *taken {
            n if n <= MOST => Turn::Own,
            n if n == MOST + 1 => Turn::Rest,
            _ => Turn::None,
        }
    }

    /// Forgets what no longer counts.
    pub fn forget(&mut self, now: Instant) {
        self.0.retain(|_, (since, _)| now - *since < WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::status::stamped;

    fn conditions(words: &[(&str, &str, Reason)]) -> Vec<Condition> {
        let now = Timestamp::from_second(1).unwrap();
        words.iter().map(|(kind, status, reason)| stamped(&[], 1, now, (kind, status, *reason, "why"))).collect()
    }

    #[test]
    fn only_what_became_wrong_and_needs_somebody_is_told() {
        let fine = [("Accepted", "True", Reason::Valid), ("Placed", "True", Reason::Assigned)];
        let no_pool = [("Accepted", "False", Reason::NoPool), ("Placed", "False", Reason::NoPool)];
        let rolling = [("Accepted", "True", Reason::Valid), ("Placed", "False", Reason::NoEligiblePod)];
        let full = [("Accepted", "True", Reason::Valid), ("Placed", "False", Reason::PodsFull)];
        let large = [("Placed", "True", Reason::Assigned), ("Durable", "False", Reason::SyncFailed)];
        let cases: [(&[_], &[_], Option<Reason>); 8] = [
            (&[], &fine, None),
            (&[], &no_pool, Some(Reason::NoPool)),
            (&fine, &no_pool, Some(Reason::NoPool)),
            (&no_pool, &no_pool, None),
            (&fine, &rolling, None),
            (&rolling, &full, Some(Reason::PodsFull)),
            (&fine, &large, Some(Reason::SyncFailed)),
            (&no_pool, &fine, None),
        ];
        for (before, now, expected) in cases {
            let told = of_server(&conditions(before), &conditions(now)).map(|(reason, _)| reason);
            assert_eq!(told, expected, "{before:?} to {now:?}");
        }
    }

    #[test]
    fn ten_thousand_servers_with_one_trouble_are_six_events_a_minute() {
        let mut budget = Budget::default();
        let pool = Key::new("ns", "rooms");
        let mut take = |ms| budget.take(Kind::Server, &pool, Reason::NoPool, Instant(Duration::from_millis(ms)));
        let turns: Vec<Turn> = (0..10_000).map(|_| take(0)).collect();
        assert_eq!(turns.iter().filter(|turn| **turn == Turn::Own).count(), 5);
        assert_eq!(turns.iter().filter(|turn| **turn == Turn::Rest).count(), 1);
        assert_eq!(take(59_999), Turn::None);
        assert_eq!(take(60_000), Turn::Own);
        assert_eq!(
            budget.take(Kind::Server, &pool, Reason::Corrupt, Instant(Duration::ZERO)),
            Turn::Own,
            "another trouble"
        );
    }

    #[test]
    fn words_from_the_network_are_of_a_known_set() {
        assert_eq!(of_pod("StoreDenied"), Reason::StoreDenied);
        for unknown in ["x y\n", "Drained", ""] {
            assert_eq!(of_pod(unknown), Reason::CannotHost);
        }
    }
}
