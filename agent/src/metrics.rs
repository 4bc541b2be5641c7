//! Everything that an agent counts. Labels take values of fixed sets only.

use std::{sync::Arc, time::Duration};

use handoff::source::{Cause, Outcome};
use hyper::StatusCode;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

/// Seconds, from a freeze of an idle server to a drain's whole budget.
const SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// A part of a handoff, seen from its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Offer to Accept.
    Offer,
    /// The host's copy, while serving.
    Warm,
    /// Append of the Grant.
    Grant,
    /// Warm copy sent to Ready.
    Standby,
    /// Wait for a turn to freeze.
    Queue,
    /// The host's freeze.
    Freeze,
    /// Final sent to Activated.
    FinalToActivated,
    /// Activated to Durable.
    Durable,
    /// Requests held to requests let go.
    Gap,
}

impl Stage {
    const fn label(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::Warm => "warm",
            Self::Grant => "grant",
            Self::Standby => "standby",
            Self::Queue => "queue",
            Self::Freeze => "freeze",
            Self::FinalToActivated => "final_to_activated",
            Self::Durable => "durable",
            Self::Gap => "gap",
        }
    }

    /// Where a handoff is when this is over.
    #[must_use]
    pub const fn place(self) -> &'static str {
        match self {
            Self::Offer => "source: accepted",
            Self::Warm => "source: copied",
            Self::Grant => "source: granted",
            Self::Standby => "source: ready",
            Self::Queue => "source: turn to freeze",
            Self::Freeze => "source: frozen",
            Self::FinalToActivated => "source: activated",
            Self::Durable => "source: durable",
            Self::Gap => "source: forwarded",
        }
    }
}

/// What became of a request at the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Answered by this pod's host.
    Here,
    /// Answered by another pod.
    Forwarded,
    /// Held first, then answered by either.
    Held,
    /// Answered by the gateway itself: no server had it.
    Refused,
}

const WAYS: [&str; 4] = ["here", "forwarded", "held", "refused"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The counters. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    stages: HistogramVec,
    handoffs: IntCounterVec,
    requests: Vec<IntCounter>,
    held: IntGauge,
    hold_time: Histogram,
    connections: IntGauge,
    sockets: IntGauge,
    syncs: IntCounterVec,
    unsynced: Gauge,
    store: IntCounterVec,
    servers: IntGaugeVec,
    drains: IntCounterVec,
}

impl Metrics {
    /// A registry of its own. Fails only if two metrics have one name.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("durable_agent".into()), None)?;
        let requests = counters(
            &registry,
            "requests_total",
            "Users' requests answered, by the way they took and by class of status code.",
            &["way", "class"],
        )?;
        // Looked up once: this is the one metric that every request touches.
        let requests = WAYS
            .iter()
            .flat_map(|way| CLASSES.iter().map(|class| requests.with_label_values(&[*way, *class])))
            .collect();
        let stages = HistogramOpts::new("handoff_stage_seconds", "Time of each stage of handoffs from this pod.");
        let hold = HistogramOpts::new("hold_seconds", "How long held requests waited in all.");
        Ok(Self(Arc::new(Inner {
            stages: add(&registry, HistogramVec::new(stages.buckets(SECONDS.into()), &["stage"])?)?,
            handoffs: counters(
                &registry,
                "handoffs_total",
                "Handoffs from this pod that ended, by result and by what kept the server here.",
                &["result", "reason"],
            )?,
            requests,
            held: add(&registry, IntGauge::new("held_requests", "Requests that wait for their server now.")?)?,
            hold_time: add(&registry, Histogram::with_opts(hold.buckets(SECONDS.into()))?)?,
            connections: add(&registry, IntGauge::new("gateway_connections", "Open connections to the gateway.")?)?,
            sockets: add(
                &registry,
                IntGauge::new("gateway_sockets", "WebSockets that are open through this gateway.")?,
            )?,
            syncs: counters(&registry, "syncs_total", "Snapshots written, by result.", &["result"])?,
            unsynced: add(
                &registry,
                Gauge::new(
                    "oldest_sync_seconds",
                    "Time since the state of some server was last known to be in the store.",
                )?,
            )?,
            store: counters(
                &registry,
                "store_operations_total",
                "Requests to the object store, by operation and result.",
                &["operation", "result"],
            )?,
            servers: add(
                &registry,
                IntGaugeVec::new(Opts::new("servers", "Servers that this pod holds, by phase."), &["phase"])?,
            )?,
            drains: counters(&registry, "drains_total", "Drains of this pod that began, by trigger.", &["trigger"])?,
            registry,
        })))
    }

    /// A stage of a handoff took this long.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.0.stages.with_label_values(&[stage.label()]).observe(took.as_secs_f64());
    }

    /// A handoff from here ended.
    pub fn handoff(&self, outcome: &Outcome) {
        let (result, reason) = match outcome {
            Outcome::Moved => ("moved", ""),
            Outcome::Kept { cause: Cause::Rejected, .. } => ("kept", "rejected"),
            Outcome::Kept { cause: Cause::Failed, .. } => ("kept", "failed"),
            Outcome::Kept { cause: Cause::Host, .. } => ("kept", "host"),
            Outcome::Kept { cause: Cause::StoreUnavailable, .. } => ("kept", "store_unavailable"),
            Outcome::Fenced => ("fenced", ""),
            Outcome::Disclaimed => ("disclaimed", ""),
        };
        self.0.handoffs.with_label_values(&[result, reason]).inc();
    }

    /// A user's request was answered.
    pub fn request(&self, way: Way, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1;
        self.0.requests[way as usize * CLASSES.len() + class].inc();
    }

    /// A request begins to wait.
    pub fn held(&self) {
        self.0.held.inc();
    }

    /// A request that waited goes on, or goes away.
    pub fn unheld(&self) {
        self.0.held.dec();
    }

    /// A request was held this long in all.
    pub fn hold_time(&self, took: Duration) {
        self.0.hold_time.observe(took.as_secs_f64());
    }

    /// A connection to the gateway was accepted.
    pub fn connected(&self) {
        self.0.connections.inc();
    }

    /// A connection to the gateway ended.
    pub fn disconnected(&self) {
        self.0.connections.dec();
    }

    /// A socket was opened.
    pub fn socket_opened(&self) {
        self.0.sockets.inc();
    }

    /// A socket ended.
    pub fn socket_closed(&self) {
        self.0.sockets.dec();
    }

    /// A snapshot was written, or was not.
    pub fn synced(&self, ok: bool) {
        self.0.syncs.with_label_values(&[if ok { "ok" } else { "failed" }]).inc();
    }

    /// How long ago the state of the server that was looked at longest ago was found to be in the store.
    pub fn oldest_sync(&self, age: Duration) {
        self.0.unsynced.set(age.as_secs_f64());
    }

    /// So many requests to the store ended so, since the start of the process.
    pub fn store_operations(&self, operation: &'static str, result: &'static str, total: u64) {
        let counter = self.0.store.with_label_values(&[operation, result]);
        counter.inc_by(total.saturating_sub(counter.get()));
    }

    /// How many servers are in a phase now.
    pub fn servers(&self, phase: &'static str, count: usize) {
        self.0.servers.with_label_values(&[phase]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A drain began.
    pub fn drain(&self, trigger: &'static str) {
        self.0.drains.with_label_values(&[trigger]).inc();
    }

    /// The Prometheus text format.
    #[must_use]
    pub fn encode(&self) -> String {
        // The encoder fails on a family without a metric only, and the registry gathers none.
        TextEncoder::new().encode_to_string(&self.0.registry.gather()).unwrap_or_default()
    }
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_under_one_prefix_with_help() {
        let metrics = Metrics::new().unwrap();
        metrics.request(Way::Refused, StatusCode::SERVICE_UNAVAILABLE);
        metrics.stage(Stage::Gap, Duration::from_millis(3));
        metrics.handoff(&Outcome::Moved);
        let text = metrics.encode();
        assert!(text.contains("durable_agent_requests_total{class=\"5xx\",way=\"refused\"} 1"), "{text}");
        assert!(text.contains("durable_agent_handoff_stage_seconds_count{stage=\"gap\"} 1"), "{text}");
        assert!(text.contains("durable_agent_handoffs_total{reason=\"\",result=\"moved\"} 1"), "{text}");
        assert!(text.lines().all(|line| {
            line.trim_start_matches("# HELP ").trim_start_matches("# TYPE ").starts_with("durable_agent_")
        }));
    }
}
