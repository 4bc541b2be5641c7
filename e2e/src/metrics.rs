//! Counters that others keep, read in Prometheus' text format.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Sub;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::http;

const PATIENCE: Duration = Duration::from_secs(5);

/// One line of an exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// Reads all samples at `/metrics` of this address.
pub async fn read(address: SocketAddr) -> Result<Vec<Sample>> {
    let body = http::get(address, "/metrics", PATIENCE).await.with_context(|| format!("metrics of {address}"))?;
    Ok(String::from_utf8_lossy(&body).lines().filter_map(sample).collect())
}

/// A line that is not a sample (a comment, or something newer than this) is none.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.trim().rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}')?)?),
        None => (series, BTreeMap::new()),
    };
    (!name.starts_with('#')).then_some(())?;
    Some(Sample { name: name.into(), labels, value: value.parse().ok()? })
}

/// Label values here are names and numbers; quotes inside them do not occur.
fn parse_labels(text: &str) -> Option<BTreeMap<String, String>> {
    text.split_terminator("\",")
        .map(|pair| {
            let (key, value) = pair.split_once("=\"")?;
            Some((key.trim().to_owned(), value.trim_end_matches('"').to_owned()))
        })
        .collect()
}

/// Requests that the S3 server has answered, whatever the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StoreOps {
    /// PUT.
    pub put: f64,
    /// GET and HEAD.
    pub get: f64,
    /// LIST.
    pub list: f64,
    /// DELETE.
    pub delete: f64,
}

impl StoreOps {
    /// What this `SeaweedFS` has counted since it started, over all buckets.
    pub async fn count(metrics: SocketAddr) -> Result<Self> {
        Ok(Self::of(&read(metrics).await?))
    }

    fn of(samples: &[Sample]) -> Self {
        let mut ops = Self::default();
        for sample in samples.iter().filter(|s| s.name == "SeaweedFS_s3_request_total") {
            match sample.labels.get("type").map(String::as_str) {
                Some("PUT" | "POST") => ops.put += sample.value,
                Some("GET" | "HEAD") => ops.get += sample.value,
                Some("LIST") => ops.list += sample.value,
                Some("DELETE") => ops.delete += sample.value,
                _ => {}
            }
        }
        ops
    }

    /// All of them.
    #[must_use]
    pub fn total(self) -> f64 {
        self.put + self.get + self.list + self.delete
    }

    /// Without so many PUTs, which had another cause.
    #[must_use]
    pub fn without_puts(self, many: usize) -> Self {
        Self { put: (self.put - f64::from(u32::try_from(many).unwrap_or(u32::MAX))).max(0.0), ..self }
    }

    /// The share of each of so many; nothing of none.
    #[must_use]
    pub fn per(self, many: usize) -> Self {
        let many = f64::from(u32::try_from(many.max(1)).unwrap_or(u32::MAX));
        let share = |ops: f64| (ops / many * 1_000.0).round() / 1_000.0;
        Self { put: share(self.put), get: share(self.get), list: share(self.list), delete: share(self.delete) }
    }
}

impl Sub for StoreOps {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            put: self.put - before.put,
            get: self.get - before.get,
            list: self.list - before.list,
            delete: self.delete - before.delete,
        }
    }
}

/// Histograms of one metric, one per value of one label, summed over many agents.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histograms(BTreeMap<String, BTreeMap<Bound, f64>>);

/// The upper bound of a bucket; orders as numbers do.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bound(f64);

impl Eq for Bound {}
impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Bound {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Histograms {
    /// Adds the buckets of this metric.
    pub fn add(&mut self, samples: &[Sample], metric: &str, label: &str) {
        let name = format!("{metric}_bucket");
        for sample in samples.iter().filter(|s| s.name == name) {
            let (Some(value), Some(bound)) = (sample.labels.get(label), sample.labels.get("le")) else { continue };
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap_or(f64::INFINITY) };
            *self.0.entry(value.clone()).or_default().entry(Bound(bound)).or_default() += sample.value;
        }
    }

    /// Both together.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        for (value, buckets) in other.0 {
            let sum = self.0.entry(value).or_default();
            for (bound, n) in buckets {
                *sum.entry(bound).or_default() += n;
            }
        }
        self
    }

    /// Per label value: how many samples, and the smallest bucket bounds (milliseconds) that hold half and 99 in 100
    /// of them.
    #[must_use]
    pub fn bounds(&self) -> BTreeMap<&str, (f64, f64, f64)> {
        let within = |buckets: &BTreeMap<Bound, f64>, all: f64, share: f64| {
            buckets.iter().find(|(_, n)| **n >= all * share).map_or(f64::INFINITY, |(bound, _)| bound.0 * 1_000.0)
        };
        let row = |buckets: &BTreeMap<Bound, f64>| {
            let all = buckets.values().copied().fold(0.0, f64::max);
            (all, within(buckets, all, 0.5), within(buckets, all, 0.99))
        };
        self.0.iter().map(|(value, buckets)| (value.as_str(), row(buckets))).filter(|(_, row)| row.0 > 0.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(text: &str) -> Vec<Sample> {
        text.lines().filter_map(sample).collect()
    }

    #[test]
    fn store_operations_are_summed_over_buckets_and_status_codes() {
        let text = r#"# TYPE SeaweedFS_s3_request_total counter
SeaweedFS_s3_request_total{bucket="",code="403",type="PUT"} 4
SeaweedFS_s3_request_total{bucket="a",code="200",type="PUT"} 10
SeaweedFS_s3_request_total{bucket="a",code="404",type="GET"} 3
SeaweedFS_s3_request_seconds_count{bucket="a",type="PUT"} 1
up 1"#;
        let ops = StoreOps::of(&samples(text));
        assert_eq!(ops, StoreOps { put: 14.0, get: 3.0, list: 0.0, delete: 0.0 });
        let share = StoreOps { put: 3.333, get: 1.0, ..StoreOps::default() };
        assert_eq!((ops - StoreOps { put: 4.0, ..StoreOps::default() }).per(3), share);
    }

    #[test]
    fn histograms_of_several_agents_are_added_up() {
        let text = r#"phase_bucket{phase="freeze",le="0.001"} 50
phase_bucket{phase="freeze",le="0.005"} 98
phase_bucket{phase="freeze",le="+Inf"} 100
phase_sum{phase="freeze"} 1"#;
        let mut histograms = Histograms::default();
        histograms.add(&samples(text), "phase", "phase");
        assert_eq!(histograms.bounds()["freeze"], (100.0, 1.0, f64::INFINITY));
        histograms.add(&samples(text), "phase", "phase");
        assert_eq!(histograms.bounds()["freeze"], (200.0, 1.0, f64::INFINITY));
    }
}
