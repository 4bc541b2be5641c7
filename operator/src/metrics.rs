//! What the operator counts, in a registry of its own.

use std::sync::LazyLock;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder, core::Collector,
};

/// All of it.
pub static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// Bounds of the gap's buckets, seconds.
const GAP_SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002, 0.003, 0.005, 0.007_5, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Counters and gauges.
pub struct Metrics {
    registry: Registry,
    /// Open sessions.
    pub sessions: IntGauge,
    /// Servers known.
    pub servers: IntGauge,
    /// Assignments, by `outcome`: sent, or why they failed.
    pub assignments: IntCounterVec,
    /// Handoffs of single servers, by `result`.
    pub handoffs: IntCounterVec,
    /// Gaps of moved servers as their sources saw them.
    pub gap: Histogram,
    /// Drains, by `result`.
    pub drains: IntCounterVec,
    /// Writes to the API server, by `result`.
    pub writes: IntCounterVec,
    /// Objects with a write waiting.
    pub writes_waiting: IntGauge,
}

impl Metrics {
    fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, label: &str| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let gap = HistogramOpts::new("durable_operator_handoff_gap_seconds", "Gaps of moved servers.");
        Self {
            sessions: gauge("durable_operator_sessions", "Open agent sessions."),
            servers: gauge("durable_operator_servers", "Servers known."),
            assignments: counters("durable_operator_assignments_total", "Assignments of servers to pods.", "outcome"),
            handoffs: counters("durable_operator_handoffs_total", "Handoffs of single servers.", "result"),
            gap: register(&registry, Histogram::with_opts(gap.buckets(GAP_SECONDS.into()))),
            drains: counters("durable_operator_drains_total", "Drains of pods.", "result"),
            writes: counters("durable_operator_writes_total", "Writes to the API server.", "result"),
            writes_waiting: gauge("durable_operator_writes_waiting", "Objects with a write waiting."),
            registry,
        }
    }

    /// One server's handoff ended.
    pub fn moved(&self, moved: bool, gap_us: u64) {
        self.handoffs.with_label_values(&[if moved { "moved" } else { "kept" }]).inc();
        if moved {
            self.gap.observe(std::time::Duration::from_micros(gap_us).as_secs_f64());
        }
    }

    /// Everything in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics cannot be encoded");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let metric = made.expect("names and labels are constants");
    registry.register(Box::new(metric.clone())).expect("names differ");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_are_valid() {
        METRICS.moved(true, 4_000);
        assert!(METRICS.text().contains("durable_operator_handoff_gap_seconds_count"));
    }
}
