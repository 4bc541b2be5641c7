//! What the sources say, for tests that compare it with what is written elsewhere.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Everything that a directory's files say, without their tests.
pub fn sources(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "tests" || name.ends_with("tests.rs") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            sources(&entry.path(), into);
        } else {
            let text = fs::read_to_string(entry.path()).unwrap();
            into.push_str(text.split("#[cfg(test)]").next().unwrap_or_default());
        }
    }
}

/// The metrics that a source registers, each with the endings of its series, and all that its crate says.
pub struct Exporter {
    pub metrics: BTreeMap<String, &'static [&'static str]>,
    pub says: String,
}

impl Exporter {
    /// The names of all series.
    pub fn series(&self) -> BTreeSet<String> {
        let series = |(name, endings): (&String, &&'static [&'static str])| {
            endings.iter().map(|ending| format!("{name}{ending}")).collect::<Vec<_>>()
        };
        self.metrics.iter().flat_map(series).collect()
    }
}

/// What a histogram's series end in.
pub const HISTOGRAM: &[&str] = &["_bucket", "_sum", "_count"];

pub fn exporter(crate_name: &str, prefix: &str, also: &[&str]) -> Exporter {
    let source = read(&format!("{crate_name}/src/metrics.rs"));
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut metrics = BTreeMap::new();
    for (marker, endings) in [
        ("HistogramOpts::new(", HISTOGRAM),
        (" Opts::new(", &[""][..]),
        ("(Opts::new(", &[""]),
        ("Gauge::new(", &[""]),
        ("gauge(", &[""]),
        ("counters(", &[""]),
    ] {
        for after in source.split(marker).skip(1) {
            let after = after.trim_start();
            let after = after.strip_prefix("&registry,").unwrap_or(after).trim_start();
            if let Some((name, _)) = after.strip_prefix('"').and_then(|literal| literal.split_once('"')) {
                metrics.insert(format!("{prefix}{name}"), endings);
            }
        }
    }
    let mut says = String::new();
    for directory in [crate_name].iter().chain(also) {
        sources(&repository().join(directory).join("src"), &mut says);
    }
    Exporter { metrics, says }
}
