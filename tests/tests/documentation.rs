//! The reference says what the code has: no more and no less.

#![allow(clippy::unwrap_used, reason = "what cannot be read is a failed test")]

mod sources;

use std::collections::BTreeSet;

use crds::Reason;
use handoff::drain::StopReason;
use serde_json::Value;

use sources::{HISTOGRAM, exporter, read, repository, sources};

/// A row of a table: its cells, and the head of its table's first column.
struct Row {
    table: String,
    cells: Vec<String>,
}

impl Row {
    /// The words in code style in one cell.
    fn words(&self, cell: usize) -> impl Iterator<Item = &str> {
        self.cells[cell].split('`').skip(1).step_by(2)
    }
}

/// The part of a page below a heading, without what is above it, to the next heading of this level or a higher one.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let level = heading.chars().take_while(|c| *c == '#').count();
    let start = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let body = &page[start + heading.len() + 2..];
    let is_next = |line: &str| {
        let hashes = line.chars().take_while(|c| *c == '#').count();
        (1..=level).contains(&hashes)
    };
    let mut at = 0;
    for line in body.split_inclusive('\n') {
        if is_next(line) {
            return &body[..at];
        }
        at += line.len();
    }
    body
}

fn rows(section: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut table = None;
    for line in section.lines() {
        let Some(line) = line.strip_prefix("| ").and_then(|line| line.strip_suffix('|')) else {
            table = None;
            continue;
        };
        let cells: Vec<String> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        match &table {
            None => table = Some(cells[0].clone()),
            Some(_) if cells.iter().all(|cell| cell == "---") => {}
            Some(table) => rows.push(Row { table: table.clone(), cells }),
        }
    }
    assert!(!rows.is_empty(), "no table in {section}");
    rows
}

fn words(rows: &[Row], cell: usize) -> BTreeSet<String> {
    rows.iter().flat_map(|row| row.words(cell)).map(str::to_owned).collect()
}

fn reference(heading: &str) -> Vec<Row> {
    rows(section(&read("docs/reference.md"), heading))
}

/// Both must be the same; what is in one alone is shown.
fn same(documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    let undocumented: Vec<_> = real.difference(documented).collect();
    let invented: Vec<_> = documented.difference(real).collect();
    assert!(undocumented.is_empty() && invented.is_empty(), "not documented: {undocumented:?}; not real: {invented:?}");
}

fn definition(plural: &str) -> Value {
    let definition: Value =
        serde_yaml::from_str(&read(&format!("charts/durable-server/files/crds/{plural}.yaml"))).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].clone()
}

/// Every field that holds a value, by its path, and the values that it may have if they are a list. What conditions are made of
/// is Kubernetes' own.
fn fields(path: &str, schema: &Value, into: &mut Vec<(String, Vec<String>)>) {
    if path.ends_with("conditions") {
        return into.push((path.to_owned(), Vec::new()));
    }
    if let Some(items) = schema.get("items") {
        return fields(&format!("{path}[]"), items, into);
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        let values = schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
        return into.push((path.to_owned(), values.map(str::to_owned).collect()));
    };
    for (name, schema) in properties {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        fields(&path, schema, into);
    }
}

#[test]
fn every_field_of_the_resources_is_documented() {
    let page = read("docs/resources.md");
    for (heading, plural) in [
        ("## DurableServerPool (`dsp`)", "durableserverpools"),
        ("## DurableServer (`dsrv`)", "durableservers"),
        ("## Handoff (`ho`)", "handoffs"),
    ] {
        let section = section(&page, heading);
        let rows = rows(section);
        for part in ["spec", "status"] {
            let mut real = Vec::new();
            fields("", &definition(plural)[part], &mut real);
            let of_part = rows.iter().filter(|row| row.table == format!("field of `{part}`"));
            let documented = of_part.flat_map(|row| row.words(0)).map(str::to_owned).collect();
            same(&documented, &real.iter().map(|(path, _)| path.clone()).collect());
            for (path, value) in real.iter().flat_map(|(path, values)| values.iter().map(move |value| (path, value))) {
                assert!(section.contains(&format!("`{value}`")), "{plural}: {part}.{path} may be {value}");
            }
        }
    }
}

#[test]
fn every_condition_and_its_reasons_are_documented() {
    let rows = reference("## Conditions");
    same(&words(&rows, 0), &crds::condition::ALL.iter().map(|kind| (*kind).to_owned()).collect());
    // A drain's condition has the phase as its reason.
    let mut phases = Vec::new();
    fields("phase", &definition("handoffs")["status"]["properties"]["phase"], &mut phases);
    let of_events_alone = [Reason::Drained, Reason::DrainFailed, Reason::LogStays];
    let real = Reason::ALL.iter().filter(|reason| !of_events_alone.contains(reason));
    let real = real.map(|reason| reason.name().to_owned()).chain(phases.remove(0).1);
    same(&words(&rows, 2), &real.collect());
    for row in &rows {
        assert!(
            ["True", "False", "Unknown"].contains(&row.cells[1].as_str()) && !row.cells[3].is_empty(),
            "{:?}",
            row.cells
        );
    }
}

#[test]
fn every_event_is_documented() {
    let real = Reason::ALL.iter().filter(|reason| reason.has_event());
    same(&words(&reference("## Events"), 0), &real.map(|reason| reason.name().to_owned()).collect());
}

#[test]
fn every_reason_of_a_stop_is_documented() {
    let real = StopReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    same(&words(&reference("## Why servers were stopped"), 0), &real);
}

#[test]
fn every_metric_is_documented() {
    for (heading, exporter) in [
        ("### The operator's", exporter("operator", "", &[])),
        ("### The agents'", exporter("agent", "durable_agent_", &[])),
    ] {
        let rows = reference(heading);
        same(&words(&rows, 0), &exporter.metrics.keys().cloned().collect());
        for row in rows {
            let name = row.words(0).next().unwrap();
            let kind = row.cells[1].as_str();
            assert_eq!(kind == "histogram", exporter.metrics[name] == HISTOGRAM, "{name}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            for label in row.words(2) {
                assert!(exporter.says.contains(&format!("\"{label}\"")), "{name} has no label {label}");
            }
        }
    }
}

#[test]
fn every_label_and_annotation_is_documented() {
    let mut text = String::new();
    for crate_name in ["operator", "agent", "crds"] {
        sources(&repository().join(crate_name).join("src"), &mut text);
    }
    sources(&repository().join("charts/durable-server/templates"), &mut text);
    let group = format!("{}/", crds::GROUP);
    let names = text.split(group.as_str()).skip(1).map(|after| {
        let end = after.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(after.len());
        format!("{group}{}", &after[..end])
    });
    // The group with its version, and the group in a format string.
    let real = names.filter(|name| *name != format!("{group}v") && *name != group).collect();
    let rows = reference("## Labels and annotations");
    same(&words(&rows, 0), &real);
}

/// Between two dots in a quotation stands what a sentence is filled with.
fn is_said(quotation: &str, sources: &str) -> bool {
    quotation.split("...").all(|part| sources.contains(part.trim()))
}

#[test]
fn every_sentence_that_is_quoted_is_one_that_the_code_says() {
    let mut text = String::new();
    for crate_name in ["operator", "agent", "crds", "store", "handoff"] {
        sources(&repository().join(crate_name).join("src"), &mut text);
    }
    // A literal that goes on in the next line, and quotation marks in one.
    let mut lines = text.split("\\\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let said = lines.fold(first, |said, line| said + line.trim_start()).replace("\\\"", "\"");
    let page = read("docs/troubleshooting.md");
    let quotations: Vec<&str> = page.lines().flat_map(|line| line.split('"').skip(1).step_by(2)).collect();
    assert!(quotations.len() > 50, "only {} quotations found", quotations.len());
    let invented: Vec<_> = quotations.iter().filter(|quotation| !is_said(quotation, &said)).collect();
    assert!(invented.is_empty(), "{invented:#?}");
    assert!(!is_said("there is no DurableServerPool ... in this cluster", &said));
}

#[test]
fn what_one_side_has_alone_is_found() {
    let set = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    same(&set(&["a"]), &set(&["a"]));
    for (documented, real) in [(set(&["a"]), set(&["a", "b"])), (set(&["a", "b"]), set(&["a"]))] {
        assert!(std::panic::catch_unwind(|| same(&documented, &real)).is_err());
    }
    let page = "\n# Page\n\n## One\n\n| x | y |\n| --- | --- |\n| `a`, `b` | c |\n\n### Two\n\n| z |\n| --- |\n| `d` |\n\n## Three\n";
    let rows = rows(section(page, "## One"));
    assert_eq!(words(&rows, 0), set(&["a", "b", "d"]));
    assert_eq!((rows[0].table.as_str(), rows[1].table.as_str()), ("x", "z"));
}
