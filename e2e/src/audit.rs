//! What the operator has written to the API server, by the API server's own audit log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A place in the log, from which on writes are counted.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    from: u64,
}

#[derive(Debug, Deserialize)]
struct Entry {
    verb: String,
    #[serde(rename = "objectRef")]
    object: Option<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    resource: String,
    subresource: Option<String>,
}

impl Audit {
    /// From the log's end on.
    pub fn from_now(path: PathBuf) -> Result<Self> {
        let from = path.metadata().with_context(|| format!("{}: `cluster up` makes it", path.display()))?.len();
        Ok(Self { path, from })
    }

    /// Writes since then, by verb and resource.
    pub fn writes(&self) -> Result<BTreeMap<String, usize>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.from))?;
        let mut writes = BTreeMap::new();
        for line in BufReader::new(file).lines() {
            // The last line may not be whole yet.
            let Ok(entry) = serde_json::from_str::<Entry>(&line?) else { continue };
            if let Some(write) = name(&entry) {
                *writes.entry(write).or_default() += 1;
            }
        }
        Ok(writes)
    }
}

/// A review of a token is a question: nothing is written.
fn name(Entry { verb, object }: &Entry) -> Option<String> {
    let object = object.as_ref().filter(|object| object.resource != "tokenreviews")?;
    let of = object.subresource.as_ref().map(|part| format!("/{part}")).unwrap_or_default();
    Some(format!("{verb} {}{of}", object.resource))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_since_then_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let entry = |verb: &str, resource: &str| {
            format!(r#"{{"verb":"{verb}","objectRef":{{"resource":"{resource}","subresource":"status"}}}}"#) + "\n"
        };
        std::fs::write(&path, entry("patch", "durableservers")).unwrap();
        let audit = Audit::from_now(path.clone()).unwrap();
        assert!(audit.writes().unwrap().is_empty());
        let more = [entry("patch", "durableservers"), entry("create", "tokenreviews"), entry("patch", "handoffs")];
        let text = std::fs::read_to_string(&path).unwrap() + &more.concat() + r#"{"verb":"pat"#;
        std::fs::write(&path, text).unwrap();
        let expected = [("patch durableservers/status".to_owned(), 1), ("patch handoffs/status".to_owned(), 1)];
        assert_eq!(audit.writes().unwrap(), BTreeMap::from(expected));
    }
}
