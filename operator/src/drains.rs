//! What a `Handoff` says of the drain of one pod. Pure.

use std::{collections::BTreeMap, time::Duration};

use crds::{HandoffPhase, HandoffStatus, Trigger, condition};
use handoff::{Instant, PodUid};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use wire::session::DrainReport;

use crate::model::{HandoffObject, Key, Pod, SessionId, clip};

/// `Handoff`s of a pool that are kept whatever their age.
const KEEP: usize = 20;
/// `Handoff`s that are younger are kept whatever their number, seconds.
const KEEP_SECONDS: i64 = 3_600;
/// Status is written at most so often while a drain runs.
const EVERY: Duration = Duration::from_secs(1);
/// The agent's word may come before the watch's that says why: so long the `Handoff` is not made, so that its trigger is right.
const TRIGGER_WAIT: Duration = Duration::from_millis(500);
/// A percentile needs so many values.
const P99_FROM: usize = 100;
/// Gaps remembered of one drain; a pod does not have more servers.
const MAX_GAPS: usize = 100_000;
/// Reasons that are taken from one report.
const MAX_REASONS: usize = 16;
/// Longest `blockedBy`, as the schema has it.
const MAX_SENTENCE: usize = 1_024;

/// How a drain ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The agent said so.
    Complete(Timestamp),
    /// The pod was gone before.
    Died(Timestamp, String),
}

/// One drain.
#[derive(Clone, Debug)]
pub struct Drain {
    /// Its `Handoff`.
    pub key: Key,
    /// The pool.
    pub pool: Key,
    /// The pod.
    pub pod: String,
    /// Its uid.
    pub pod_uid: PodUid,
    /// The newest report.
    pub report: DrainReport,
    /// Gaps of moved servers, microseconds, as each was told when it had moved.
    gaps: Vec<u64>,
    /// Handoffs that did not move their server, as they were told.
    kept: u32,
    /// When it was first heard of.
    pub since: Instant,
    /// The same, by the calendar.
    pub began: Timestamp,
    /// How it ended.
    pub end: Option<End>,
    /// The `Handoff` was handed to the writer.
    pub made: bool,
    /// When its status was last handed to the writer.
    written: Option<Instant>,
    /// There is news since.
    dirty: bool,
    /// When people were told of its end.
    pub told: Option<Instant>,
    /// The session that waits to hear that the end is recorded.
    pub waiting: Option<SessionId>,
}

impl Drain {
    /// A drain that was just heard of.
    #[must_use]
    pub fn new(pool: Key, pod: String, pod_uid: PodUid, now: Instant, began: Timestamp) -> Self {
        let key = Key::new(pool.namespace.clone(), name(&pod, &pod_uid));
        Self {
            key,
            pool,
            pod,
            pod_uid,
            report: DrainReport::default(),
            gaps: Vec::new(),
            kept: 0,
            since: now,
            began,
            end: None,
            made: false,
            written: None,
            dirty: true,
            told: None,
            waiting: None,
        }
    }

    /// The agent reports.
    pub fn reported(&mut self, mut report: DrainReport, from: SessionId, wall: Timestamp) {
        report.gaps_us.truncate(MAX_GAPS);
        self.dirty = true;
        if report.phase == "Complete" {
            self.waiting = Some(from);
            self.end = Some(End::Complete(time(report.ended_unix_ms).unwrap_or(wall)));
        }
        self.report = report;
    }

    /// One server's handoff ended.
    pub fn moved(&mut self, moved: bool, gap_us: u64) {
        self.dirty = true;
        if !moved {
            self.kept = self.kept.saturating_add(1);
        } else if self.gaps.len() < MAX_GAPS {
            self.gaps.push(gap_us);
        }
    }

    /// The pod is over and will report no more.
    pub fn died(&mut self, why: &str, wall: Timestamp) {
        if self.end.is_none() {
            self.dirty = true;
            self.end = Some(End::Died(wall, why.to_owned()));
        }
    }

    /// Whether the `Handoff` can be made: its trigger is known, or will not be known better.
    #[must_use]
    pub fn can_be_made(&self, known: bool, now: Instant) -> bool {
        known || self.end.is_some() || now - self.since >= TRIGGER_WAIT
    }

    /// When it will be made at the latest.
    #[must_use]
    pub fn made_by(&self) -> Instant {
        self.since + TRIGGER_WAIT
    }

    /// Whether to write its status now; marks it written.
    pub fn due(&mut self, now: Instant) -> bool {
        let paced = self.written.is_none_or(|written| now - written >= EVERY) || self.end.is_some();
        let due = self.dirty && paced;
        if due {
            self.dirty = false;
            self.written = Some(now);
        }
        due
    }

    /// What its status should be.
    #[must_use]
    pub fn status(&self) -> HandoffStatus {
        let report = &self.report;
        let mut gaps = if report.gaps_us.is_empty() { self.gaps.clone() } else { report.gaps_us.clone() };
        gaps.sort_unstable();
        let moved = report.moved.max(u32::try_from(self.gaps.len()).unwrap_or(u32::MAX));
        let settled = moved.saturating_add(report.stopped);
        let failed = match self.end {
            Some(End::Died(..)) => report.total.saturating_sub(settled),
            _ => report.failed,
        };
        let (phase, ended) = self.phase(failed);
        HandoffStatus {
            phase: Some(phase),
            total: report.total.max(settled),
            moved,
            stopped: report.stopped,
            failed,
            gap_p50: percentile(&gaps, 50).map(text),
            gap_p99: percentile(&gaps, 99).filter(|_| gaps.len() >= P99_FROM).map(text),
            gap_max: gaps.last().copied().map(text),
            start_time: Some(Time(time(report.started_unix_ms).unwrap_or(self.began))),
            completion_time: ended.map(Time),
            reasons: self.stopped_by(),
            blocked_by: Some(clip(&report.blocked_by, MAX_SENTENCE).to_owned()).filter(|why| !why.is_empty()),
            conditions: vec![self.condition(phase, ended)],
        }
    }

    fn phase(&self, failed: u32) -> (HandoffPhase, Option<Timestamp>) {
        match &self.end {
            Some(End::Complete(at) | End::Died(at, _)) if failed == 0 => (HandoffPhase::Complete, Some(*at)),
            Some(End::Complete(at) | End::Died(at, _)) => (HandoffPhase::Failed, Some(*at)),
            None if self.report.phase == "Blocked" => (HandoffPhase::Blocked, None),
            None => (HandoffPhase::Running, None),
        }
    }

    fn condition(&self, phase: HandoffPhase, ended: Option<Timestamp>) -> Condition {
        let message = match &self.end {
            Some(End::Died(_, why)) => why.clone(),
            _ => self.reasons(),
        };
        Condition {
            type_: condition::COMPLETE.into(),
            status: if ended.is_some() { "True" } else { "False" }.into(),
            reason: format!("{phase:?}"),
            message,
            last_transition_time: Time(ended.unwrap_or(self.began)),
            observed_generation: Some(1),
        }
    }

    /// Why servers were not moved, with numbers.
    fn reasons(&self) -> String {
        let words: Vec<String> = self.stopped_by().into_iter().map(|(why, n)| format!("{why} {n}")).collect();
        words.join(", ")
    }

    fn stopped_by(&self) -> BTreeMap<String, u32> {
        let reasons: BTreeMap<_, _> = self.report.reasons.iter().collect();
        reasons.into_iter().take(MAX_REASONS).map(|(why, n)| (clip(why, 64).to_owned(), *n)).collect()
    }

    /// One sentence for people, at the end.
    #[must_use]
    pub fn summary(&self) -> String {
        let status = self.status();
        let mut text = format!(
            "pod {} handed {} of {} servers to other pods, stopped {} and failed to move or stop {}",
            self.pod, status.moved, status.total, status.stopped, status.failed
        );
        if let (Some(p50), Some(max)) = (&status.gap_p50, &status.gap_max) {
            text = format!("{text}; gap p50 {p50}, max {max}");
        }
        let message = status.conditions.first().map(|condition| condition.message.as_str()).unwrap_or_default();
        if !message.is_empty() {
            text = format!("{text} ({message})");
        }
        match status.blocked_by {
            Some(why) => format!("{text}: {why}"),
            None => text,
        }
    }
}

/// The name of a pod's `Handoff`: the same whenever it is asked for, so that a restarted operator writes on in it.
#[must_use]
pub fn name(pod: &str, uid: &PodUid) -> String {
    // FNV-1a: all that is asked of it is that two pods of one name differ.
    let hash = uid
        .0
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let letters = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = hash;
    let suffix: String = (0..5)
        .map(|_| {
            let letter = letters[usize::try_from(rest % letters.len() as u64).unwrap_or_default()];
            rest /= letters.len() as u64;
            char::from(letter)
        })
        .collect();
    format!("{}-{suffix}", clip(pod, 247))
}

/// Why a pod is emptied.
#[must_use]
pub fn trigger(pod: Option<&Pod>, newest: bool, shrank: bool, cordoned: bool) -> Trigger {
    let Some(pod) = pod else { return Trigger::Shutdown };
    match () {
        () if pod.disrupted && cordoned => Trigger::NodeDrain,
        () if pod.disrupted => Trigger::Eviction,
        () if !pod.deleting => Trigger::Shutdown,
        () if !newest => Trigger::Rollout,
        () if shrank => Trigger::ScaleDown,
        () if cordoned => Trigger::NodeDrain,
        () => Trigger::Deletion,
    }
}

/// The `Handoff`s of one pool that need not be kept any longer.
#[must_use]
pub fn superfluous<'a>(handoffs: impl IntoIterator<Item = &'a HandoffObject>, now: Timestamp) -> Vec<Key> {
    let mut ended: Vec<_> = handoffs
        .into_iter()
        .filter(|handoff| matches!(handoff.phase, Some(HandoffPhase::Complete | HandoffPhase::Failed)))
        .collect();
    ended.sort_unstable_by_key(|handoff| std::cmp::Reverse(handoff.created));
    let old = |handoff: &&HandoffObject| {
        handoff.created.is_some_and(|created| now.as_second() - created.as_second() > KEEP_SECONDS)
    };
    ended.into_iter().skip(KEEP).filter(old).map(|handoff| handoff.key.clone()).collect()
}

/// The value that so many of a hundred do not exceed (nearest rank).
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// Microseconds as people read them, such as 4.2ms.
#[must_use]
pub fn text(us: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // three digits are shown
    let us = us as f64;
    if us >= 1e6 { format!("{:.2}s", us / 1e6) } else { format!("{:.1}ms", us / 1e3) }
}

fn time(unix_ms: u64) -> Option<Timestamp> {
    if unix_ms == 0 {
        return None;
    }
    Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()
}

#[cfg(test)]
#[path = "drains_tests.rs"]
mod tests;
