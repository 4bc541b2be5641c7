//! What a field may hold. One constant serves both the rule in the schema and the check in [`crate::settings`].

use std::{ops::RangeInclusive, time::Duration};

use kube::core::Rule;

use crate::{duration, size};

/// A pool's name is the value of a label, so it is bounded as one.
pub(crate) const MAX_POOL_NAME: usize = 63;
/// Length of the name of a server type.
pub(crate) const MAX_TYPE_NAME: usize = 63;
/// Length of the name of a pod, node or Secret; Kubernetes' own bound.
pub(crate) const MAX_OBJECT_NAME: usize = 253;
/// Length of a uid; Kubernetes uses 36, static pods less.
pub(crate) const MAX_UID: usize = 64;
/// Length of a gap as text.
pub(crate) const MAX_GAP: usize = 32;
/// Labels that servers stay near by.
pub(crate) const MAX_STICKY: usize = 4;
/// Length of a label's name: a DNS name, a slash and 63 letters.
pub(crate) const MAX_LABEL: usize = 317;
/// Length of its value.
pub(crate) const MAX_LABEL_VALUE: usize = 63;
/// Types with settings of their own in one pool.
pub(crate) const MAX_TYPES: usize = 64;

/// How often dirty servers are synced.
pub(crate) const SYNC_INTERVAL: Times = Times::new(Duration::from_secs(1), Duration::from_hours(24));
/// What the host needs after the drain.
pub(crate) const HOST_STOP: Times = Times::new(Duration::ZERO, Duration::from_hours(1));
/// A whole drain.
pub(crate) const DRAIN: Times = Times::new(Duration::from_secs(1), Duration::from_hours(1));
/// How long an agent may serve on one sign of life. Of less, too little is left to reach the store in when the operator
/// cannot be reached.
pub(crate) const LEASE: Times = Times::new(Duration::from_secs(5), Duration::from_mins(10));
/// How long a server without a pod waits for a near one.
pub(crate) const STICKY: Times = Times::new(Duration::ZERO, Duration::from_hours(1));
/// One handoff, or one freeze.
pub(crate) const STEP: Times = Times::new(Duration::from_millis(10), Duration::from_mins(10));
/// Bytes of state: at least one small state must fit.
pub(crate) const STATE: Sizes = Sizes { min: ("1Ki", 1 << 10), max: ("1Gi", 1 << 30) };
/// Things done at once.
pub(crate) const CONCURRENCY: RangeInclusive<u32> = 1..=1_000;
/// Failures in a row.
pub(crate) const FAILURES: RangeInclusive<u32> = 1..=1_000;
/// State-bearing records kept.
pub(crate) const RECORDS: RangeInclusive<u32> = 1..=100;
/// Requests of one pod to the store in a second: a claim alone takes three.
pub(crate) const REQUESTS: RangeInclusive<u32> = 20..=100_000;
/// Servers in one pod.
pub(crate) const SERVERS: RangeInclusive<u32> = 1..=10_000;

/// The durations that a field may hold.
pub(crate) struct Times {
    min: Duration,
    max: Duration,
}

impl Times {
    const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max }
    }

    pub(crate) fn contains(&self, time: Duration) -> bool {
        (self.min..=self.max).contains(&time)
    }

    pub(crate) fn sentence(&self) -> String {
        format!(
            "write a duration from {} to {}",
            duration::Duration::from(self.min),
            duration::Duration::from(self.max)
        )
    }

    /// Holds its peace about malformed text, which the type's own rule refuses.
    pub(crate) fn rule(&self) -> Rule {
        let (pattern, min, max) = (duration::PATTERN, self.min.as_millis(), self.max.as_millis());
        let rule = format!(
            "!self.matches('{pattern}') || (duration(self) >= duration('{min}ms') && duration(self) <= duration('{max}ms'))"
        );
        Rule::new(rule).message(self.sentence().as_str())
    }
}

/// The sizes that a field may hold: text and bytes.
pub(crate) struct Sizes {
    min: (&'static str, u64),
    max: (&'static str, u64),
}

impl Sizes {
    pub(crate) fn contains(&self, bytes: u64) -> bool {
        (self.min.1..=self.max.1).contains(&bytes)
    }

    pub(crate) fn sentence(&self) -> String {
        format!("write a size from {} to {}", self.min.0, self.max.0)
    }

    pub(crate) fn rule(&self) -> Rule {
        let (pattern, min, max) = (size::PATTERN, self.min.0, self.max.0);
        let rule = format!(
            "!self.matches('{pattern}') || (!quantity(self).isLessThan(quantity('{min}')) && !quantity(self).isGreaterThan(quantity('{max}')))"
        );
        Rule::new(rule).message(self.sentence().as_str())
    }
}

/// A name of a pool, pod, node or Secret.
pub(crate) fn object_name() -> Rule {
    Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("write the object's name: lower-case letters, digits, - and .")
}

/// A name of a server type, which travels in an HTTP header.
pub(crate) fn type_name() -> Rule {
    Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')")
        .message("write the type's name as the host describes it: letters, digits, -, _ and .")
}

/// A uid, which becomes part of keys in the store.
pub(crate) fn uid() -> Rule {
    Rule::new("self.matches('^[A-Za-z0-9-]+$')").message("write the uid as kubectl prints it: letters, digits and -")
}

/// What both the schema and [`crate::settings`] say of a `restoreFrom` that does not say one thing.
pub(crate) const RESTORE_FROM: &str =
    "write either uid, that of an earlier server of this name, or fresh: true to start from nothing";

/// Exactly one of the two.
pub(crate) fn restore_from() -> Rule {
    Rule::new("has(self.uid) != (has(self.fresh) && self.fresh)").message(RESTORE_FROM)
}

/// Of two optional durations in one struct, the first must not exceed the second.
pub(crate) fn not_longer(first: &str, second: &str) -> Rule {
    let pattern = duration::PATTERN;
    let rule = format!(
        "!has(self.{first}) || !has(self.{second}) || !self.{first}.matches('{pattern}') || !self.{second}.matches('{pattern}') \
         || duration(self.{first}) <= duration(self.{second})"
    );
    Rule::new(rule).message(format!("write a {first} that is not longer than {second}").as_str())
}
