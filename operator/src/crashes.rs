//! Hosts that crash, again and again. A server that brings its host down must not wander through all pods, one after another;
//! and what brings all hosts down at once is no single server's fault. Pure.

use std::{collections::BTreeMap, time::Duration};

use handoff::{Instant, PodUid};

/// So many crashes of its host within [`WINDOW`] park a server.
const PARKS: usize = 5;
/// Crashes count for so long.
const WINDOW: Duration = Duration::from_hours(1);
/// Before the second start after crashes; doubles. The first is at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Hosts of one pool that crash within this time crash together.
const TOGETHER: Duration = Duration::from_mins(1);

/// Crashes under one server, in its host; the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crashes(Vec<Instant>);

/// What to do with a server whose host crashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again at this time.
    Again(Instant),
    /// Leave it alone until this time, or until a person changes something.
    Park(Instant),
}

impl Crashes {
    /// One more.
    pub fn add(&mut self, now: Instant) -> Verdict {
        self.0.retain(|at| now - *at < WINDOW);
        self.0.push(now);
        let earlier = u32::try_from(self.0.len() - 1).unwrap_or(u32::MAX);
        match self.0.first() {
            Some(first) if self.0.len() >= PARKS => Verdict::Park(*first + WINDOW),
            _ if earlier == 0 => Verdict::Again(now),
            _ => Verdict::Again(now + PAUSE.saturating_mul(1 << (earlier - 1).min(6))),
        }
    }
}

/// When hosts of one pool crashed last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masses(BTreeMap<PodUid, Instant>);

impl Masses {
    /// This pod's host crashed. Whether hosts crash in masses: most of the pool's `pods` within [`TOGETHER`], and not one
    /// alone. Then no server is counted a crash: parking them all would be worse than what they are parked for.
    pub fn add(&mut self, pod: &PodUid, pods: usize, now: Instant) -> bool {
        self.0.retain(|_, at| now - *at < TOGETHER);
        self.0.insert(pod.clone(), now);
        self.0.len() > 1 && self.0.len() * 2 > pods
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(Duration::from_secs(seconds))
    }

    #[test]
    fn each_crash_makes_the_next_start_later_and_the_fifth_parks() {
        let mut crashes = Crashes::default();
        assert_eq!(crashes.add(at(10)), Verdict::Again(at(10)));
        assert_eq!(crashes.add(at(20)), Verdict::Again(at(21)));
        assert_eq!(crashes.add(at(30)), Verdict::Again(at(32)));
        assert_eq!(crashes.add(at(40)), Verdict::Again(at(44)));
        assert_eq!(crashes.add(at(50)), Verdict::Park(at(3_610)));
    }

    #[test]
    fn crashes_of_another_hour_do_not_count() {
        let mut crashes = Crashes::default();
        for n in 0..4 {
            crashes.add(at(n));
        }
        assert_eq!(crashes.add(at(3_601)), Verdict::Again(at(3_603)), "two were forgotten");
    }

    #[test]
    fn most_pods_within_a_minute_are_masses_and_one_pod_is_not() {
        let pod = |name: &str| PodUid(name.into());
        let mut masses = Masses::default();
        assert!(!masses.add(&pod("a"), 3, at(0)));
        assert!(!masses.add(&pod("a"), 1, at(1)), "a pool of one");
        assert!(masses.add(&pod("b"), 3, at(59)));
        assert!(!masses.add(&pod("c"), 3, at(121)), "the others were long ago");
    }
}
