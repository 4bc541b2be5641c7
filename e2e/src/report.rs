//! Tables for people, JSON for programs, and what passes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cluster::repository;
use crate::figures::Spread;
use crate::metrics::Histograms;
use crate::rollout::Figures;

/// Times vary with the machine: only one this many times over its limit ends the run as failed.
const FAIL_AT: f64 = 5.0;

/// What a figure may be at most.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    what: String,
    measured: Option<f64>,
    most: f64,
    fails_above: f64,
}

impl Limit {
    /// A time, or a share of one, and the most it should be. None if there were too few samples to tell.
    #[must_use]
    pub fn time(what: &str, measured: Option<f64>, most: f64) -> Self {
        Self { what: what.into(), measured, most, fails_above: most * FAIL_AT }
    }

    /// A count, and the most it may be.
    #[must_use]
    pub fn count(what: &str, measured: f64, most: f64) -> Self {
        Self { what: what.into(), measured: Some(measured), most, fails_above: most }
    }

    fn line(&self) -> String {
        let measured = self.measured.map_or_else(|| "too few samples".into(), |m| m.to_string());
        let verdict = match self.measured {
            Some(m) if m <= self.most => "pass",
            Some(_) => "FAIL",
            None => "-",
        };
        format!("  {verdict:<5} {:<58} {measured:>15}  (limit {})", self.what, self.most)
    }

    /// Whether the run as a whole fails by this.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.measured.is_some_and(|m| m > self.fails_above)
    }
}

/// Prints the limits; fails if one is broken.
pub fn check(limits: &[Limit]) -> Result<()> {
    for limit in limits {
        println!("{}", limit.line());
    }
    let broken: Vec<&str> = limits.iter().filter(|limit| limit.broken()).map(|limit| limit.what.as_str()).collect();
    anyhow::ensure!(broken.is_empty(), "beyond what can pass: {}", broken.join("; "));
    Ok(())
}

/// What must hold in any rollout with handoff: nobody loses anything, and no client notices.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "counts of a test run are far below 2^53")]
pub fn nothing_lost(mode: &str, figures: &Figures) -> Vec<Limit> {
    let none = |what: &str, count: u64| Limit::count(&format!("{mode}: {what}"), count as f64, 0.0);
    vec![
        none("servers lost", figures.lost as u64),
        none("servers stopped instead of moved", figures.stopped as u64),
        none("answered writes lost", figures.answered_lost),
        none("acknowledged writes lost", figures.acked_lost),
        none("answers of two owners at once", figures.double_served as u64),
        none("failed requests", figures.failed_requests as u64),
    ]
}

/// What a row shows of one mode.
type Cell<'a> = &'a dyn Fn(&Figures) -> String;

/// Prints why requests failed, and how often.
pub fn failures(failures: &BTreeMap<String, usize>) {
    for (why, times) in failures {
        println!("  {times} requests failed: {why}");
    }
}

/// The figures of some modes, side by side.
#[must_use]
pub fn table(modes: &[(&str, &Figures)]) -> String {
    let ms = |value: Option<f64>| value.map_or_else(|| "-".into(), |ms| format!("{ms:.1} ms"));
    let p99 = |gaps: &Spread| gaps.p99.map_or_else(|| format!("- (n {})", gaps.n), |p99| format!("{p99:.1} ms"));
    let rows: [(&str, Cell<'_>); 16] = [
        ("servers", &|f| f.servers.to_string()),
        ("moved live", &|f| f.moved.to_string()),
        ("stopped and started elsewhere", &|f| f.stopped.to_string()),
        ("lost", &|f| f.lost.to_string()),
        ("answered writes lost", &|f| f.answered_lost.to_string()),
        ("acknowledged writes lost", &|f| f.acked_lost.to_string()),
        ("answers of two owners at once", &|f| f.double_served.to_string()),
        ("requests", &|f| f.requests.to_string()),
        ("  failed", &|f| f.failed_requests.to_string()),
        ("  slower than 250 ms", &|f| f.slow_requests.to_string()),
        ("gap, median", &|f| format!("{} (n {})", ms(f.gap_ms.p50), f.gap_ms.n)),
        ("gap, p99", &|f| p99(&f.gap_ms)),
        ("gap, longest", &|f| ms(f.gap_ms.max)),
        ("store: PUT, GET, LIST, DELETE a server", &|f| {
            let ops = &f.store_ops_per_handoff;
            format!("{:.2} {:.2} {:.2} {:.2}", ops.put, ops.get, ops.list, ops.delete)
        }),
        ("hops a server", &|f| format!("{:.2}", f.hops_per_server)),
        ("slowest drain, whole rollout", &|f| format!("{:.1} s, {:.1} s", f.drain_s, f.rollout_s)),
    ];
    let mut table = format!("{:<40}", "");
    for (mode, _) in modes {
        let _ = write!(table, "{mode:>22}");
    }
    for (what, cell) in rows {
        let _ = write!(table, "\n{what:<40}");
        for (_, figures) in modes {
            let _ = write!(table, "{:>22}", cell(figures));
        }
    }
    table
}

/// A table: its head, and a line below for each row.
#[must_use]
pub fn listed(head: String, lines: impl Iterator<Item = String>) -> String {
    lines.fold(head, |table, line| table + "\n" + &line)
}

/// Where the milliseconds of handoffs go, by the agents' own histograms: bounds of buckets, not single values.
#[must_use]
pub fn stages(stages: &Histograms) -> String {
    let mut table = format!("{:<22}{:>10}{:>18}{:>18}", "stage", "n", "half within", "99 of 100 within");
    for (stage, (n, p50, p99)) in stages.bounds() {
        let _ = write!(table, "\n{stage:<22}{n:>10}{:>18}{:>18}", format!("{p50} ms"), format!("{p99} ms"));
    }
    table
}

/// Writes figures to `target/figures/<name>.json` of this checkout.
pub fn write(name: &str, figures: &impl Serialize) -> Result<()> {
    let directory = repository().join("target/figures");
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(name).with_extension("json");
    let text = serde_json::to_string_pretty(figures)? + "\n";
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_breaks_at_five_times_its_limit_and_a_count_at_once() {
        assert!(!Limit::time("t", Some(49.0), 10.0).broken());
        assert!(Limit::time("t", Some(51.0), 10.0).broken());
        assert!(!Limit::time("t", None, 10.0).broken());
        assert!(Limit::count("c", 1.0, 0.0).broken());
        assert!(check(&[Limit::count("c", 0.0, 0.0)]).is_ok());
    }

    #[test]
    fn the_table_has_a_column_a_mode() {
        let gap_ms = Spread { p50: Some(3.25), p99: None, max: Some(7.0), n: 6 };
        let figures = Figures { servers: 300, gap_ms, ..Figures::default() };
        let text = table(&[("direct", &figures), ("off", &Figures::default())]);
        assert!(text.lines().next().unwrap().ends_with("direct                   off"), "{text}");
        assert!(text.contains("3.2 ms (n 6)") && text.contains("- (n 6)"), "{text}");
    }
}
