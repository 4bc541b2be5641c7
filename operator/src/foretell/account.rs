//! Moves and reasons, counted for people.

use std::collections::BTreeMap;

use crds::plan::{Arrival, Departure, Stay};

/// Servers that are named for each reason.
const NAMED: usize = 5;
/// Reasons that are told apart.
const MAX_REASONS: usize = 64;

/// A pod and its revision.
type Place = (String, String);

/// Who would go where, and who would not.
#[derive(Clone, Debug, Default)]
pub struct Account {
    moves: BTreeMap<Place, BTreeMap<(Option<String>, String), usize>>,
    stays: BTreeMap<String, (usize, Vec<String>)>,
}

impl Account {
    /// A server would go from a pod to another; to one that does not exist yet, if that has no name.
    pub fn goes(&mut self, from: Place, to: (Option<String>, String)) {
        *self.moves.entry(from).or_default().entry(to).or_default() += 1;
    }

    /// A server would not move.
    pub fn stays(&mut self, name: &str, reason: String) {
        let told_apart = self.stays.len() < MAX_REASONS || self.stays.contains_key(&reason);
        let reason = if told_apart { reason } else { "for other reasons".to_owned() };
        let (servers, names) = self.stays.entry(reason).or_default();
        *servers += 1;
        if names.len() < NAMED {
            names.push(name.to_owned());
        }
    }

    /// Servers that would move, by the pod that they are in.
    #[must_use]
    pub fn moves(&self) -> Vec<Departure> {
        let departure = |((from, revision), to): (&Place, &BTreeMap<_, usize>)| Departure {
            from: from.clone(),
            revision: revision.clone(),
            servers: to.values().sum(),
            to: to.iter().map(arrival).collect(),
        };
        self.moves.iter().map(departure).collect()
    }

    /// Servers that would not, by the reason that most have.
    #[must_use]
    pub fn reasons(self) -> Vec<Stay> {
        let stay = |(reason, (servers, names))| Stay { reason, servers, names };
        let mut stays: Vec<Stay> = self.stays.into_iter().map(stay).collect();
        stays.sort_by_key(|stay| std::cmp::Reverse(stay.servers));
        stays
    }
}

fn arrival(((pod, revision), servers): (&(Option<String>, String), &usize)) -> Arrival {
    Arrival { pod: pod.clone(), revision: revision.clone(), servers: *servers }
}
