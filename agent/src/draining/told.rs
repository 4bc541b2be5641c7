//! What handoffs tell beside how they ended, and the sentence that people get of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use handoff::{
    drain::{Blocked, Ended, StopReason, foremost},
    source::Cause,
};

use crate::give::{Given, micros};

/// What handoffs told beside how they ended.
#[derive(Default)]
pub(super) struct Told {
    /// Microseconds in which a server was served nowhere.
    pub gaps: Vec<u64>,
    /// The last reason, in words, of each kind of failure.
    pub reasons: HashMap<Cause, String>,
}

/// Takes in what became of one handoff.
pub(super) fn note(told: &Mutex<Told>, given: &Given) {
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    told.gaps.extend(given.gap.map(micros));
    if let Ended::Kept(cause) = given.ended {
        told.reasons.insert(cause, given.reason.clone());
    }
}

/// What keeps servers from moving now, or else why some were stopped instead, in a sentence; empty if neither.
pub(super) fn blocked_by(
    blocked: Option<Blocked>,
    stopped: &BTreeMap<StopReason, usize>,
    reasons: &HashMap<Cause, String>,
) -> String {
    let (sentence, cause) = match (blocked, foremost(stopped)) {
        (Some(blocked), _) => (blocked.sentence(), blocked.cause()),
        (None, Some(reason)) => (reason.sentence(), reason.cause()),
        (None, None) => return String::new(),
    };
    match cause.and_then(|cause| reasons.get(&cause)).filter(|said| !said.is_empty()) {
        Some(said) => format!("{sentence}; the last time because: {said}"),
        None => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_blocks_is_a_sentence_with_the_last_reason() {
        let said = HashMap::from([(Cause::Rejected, "this pod is full (3 servers)".to_owned())]);
        let stopped = BTreeMap::from([(StopReason::HandoffOff, 5), (StopReason::AllRejected, 1)]);
        let of = |blocked, stopped: &BTreeMap<_, _>| blocked_by(blocked, stopped, &said);
        assert_eq!(of(None, &BTreeMap::new()), "");
        assert_eq!(
            of(None, &stopped),
            "every pod that could take them refused; the last time because: this pod is full (3 servers)"
        );
        assert_eq!(of(Some(Blocked::StoreUnavailable), &stopped), Blocked::StoreUnavailable.sentence());
        let off = BTreeMap::from([(StopReason::HandoffOff, 5)]);
        assert!(of(None, &off).starts_with("handoff is off: set handoffOnShutdown.enabled"));
    }
}
