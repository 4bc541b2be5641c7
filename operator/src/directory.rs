//! What the agents of a pool know of where its servers are. Pure.
//!
//! A whole directory is sent as chunks of one version: all but the last are `partial`, the last is `complete`, and together
//! they replace what was known. A message that is neither is a change.

use std::collections::BTreeSet;

use handoff::Instant;
use wire::session::{self, DirectoryEntry};

/// Entries in one message.
pub const CHUNK: usize = 2_000;

/// Names whose entry changed since the last message.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    names: BTreeSet<String>,
    since: Option<Instant>,
}

impl Changes {
    /// The entry of this name may have changed.
    pub fn add(&mut self, name: &str, now: Instant) {
        if !self.names.contains(name) {
            self.names.insert(name.to_owned());
        }
        self.since.get_or_insert(now);
    }

    /// When the first of them changed.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// All of them; none are left.
    pub fn take(&mut self) -> BTreeSet<String> {
        self.since = None;
        std::mem::take(&mut self.names)
    }
}

/// The messages that replace everything.
#[must_use]
pub fn whole(version: u64, entries: &[DirectoryEntry]) -> Vec<session::Directory> {
    let mut chunks = additions(version, entries, &[]);
    for chunk in &mut chunks {
        chunk.partial = true;
    }
    let mut last = chunks.pop().unwrap_or_default();
    (last.version, last.partial, last.complete) = (version, false, true);
    chunks.push(last);
    chunks
}

/// The messages that add and remove.
#[must_use]
pub fn additions(version: u64, entries: &[DirectoryEntry], removed: &[String]) -> Vec<session::Directory> {
    let message = |entries: &[DirectoryEntry], removed: &[String]| session::Directory {
        version,
        entries: entries.to_vec(),
        removed: removed.to_vec(),
        ..session::Directory::default()
    };
    let removals = removed.chunks(CHUNK).map(|names| message(&[], names));
    removals.chain(entries.chunks(CHUNK).map(|entries| message(entries, &[]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(n: usize) -> Vec<DirectoryEntry> {
        (0..n).map(|i| DirectoryEntry { name: format!("s{i}"), ..DirectoryEntry::default() }).collect()
    }

    #[test]
    fn only_the_last_chunk_of_a_whole_is_complete() {
        for (n, sizes) in [(0, vec![0]), (1, vec![1]), (CHUNK, vec![CHUNK]), (CHUNK + 1, vec![CHUNK, 1])] {
            let chunks = whole(7, &entries(n));
            assert_eq!(chunks.iter().map(|c| c.entries.len()).collect::<Vec<_>>(), sizes);
            assert!(chunks.iter().rev().skip(1).all(|c| c.partial && !c.complete));
            assert!(chunks.last().is_some_and(|c| c.complete && !c.partial));
            assert!(chunks.iter().all(|c| c.version == 7));
        }
    }

    #[test]
    fn nothing_new_is_no_message() {
        assert_eq!(additions(1, &[], &[]), []);
        assert_eq!(additions(1, &entries(1), &["x".into()]).len(), 2);
    }

    #[test]
    fn changes_are_counted_from_the_first() {
        let mut changes = Changes::default();
        let at = |ms| Instant(std::time::Duration::from_millis(ms));
        changes.add("a", at(5));
        changes.add("a", at(9));
        assert_eq!((changes.since(), changes.take().len(), changes.since()), (Some(at(5)), 1, None));
    }
}
