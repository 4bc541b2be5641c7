//! One line that says what moves where.

use std::fmt::Write as _;
use std::time::Duration;

use crate::figures::{Spread, Traffic};
use crate::view::{Pod, View};

/// How many servers each pod has, how far its drain is, and how the outside client fares.
#[must_use]
pub fn line(since: Duration, view: &View, traffic: Traffic, gaps: &Spread) -> String {
    let mut line = format!("{:5.1}s ", since.as_secs_f64());
    let (servers, handoffs) = (view.servers(), view.handoffs());
    for pod in view.pods() {
        let here = servers.iter().filter(|server| server.pod == pod.name).count();
        let _ = write!(line, "| {} {here:>4}", short(&pod));
        if let Some(drain) = handoffs.iter().find(|handoff| handoff.source == pod.name) {
            let status = &drain.status;
            let _ = write!(line, " -> {}/{} moved", status.moved, status.total);
            if status.stopped > 0 {
                let _ = write!(line, ", {} stopped", status.stopped);
            }
        } else if !pod.ready {
            line.push_str(" starting");
        }
        line.push(' ');
    }
    let _ = write!(line, "| {} requests, {} failed", traffic.requests, traffic.failed);
    if let Some(p50) = gaps.p50 {
        let _ = write!(line, ", gap {p50} ms (median of {})", gaps.n);
    }
    line
}

/// The part of a pod's name that tells it from the others, and where it is.
fn short(pod: &Pod) -> String {
    let name = pod.name.rsplit('-').next().unwrap_or_default();
    format!("{name}@{}", if pod.node.is_empty() { "?" } else { &pod.node })
}
