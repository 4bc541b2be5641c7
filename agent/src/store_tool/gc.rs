//! `durable-agent store gc`.

use std::{
    collections::{BTreeMap, HashSet},
    io::Read,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, ensure};
use clap::Args;
use futures::{StreamExt, stream};
use handoff::{
    ServerId,
    afterlife::{End, Left, may_go},
};
use store::logs::{self, Kept};

use super::{Place, Store, log_name, name_of, time_of};

/// Newest records read at once.
const AT_ONCE: usize = 16;
/// The longest list of uids that is read, bytes: a million of them.
const MAX_UIDS: u64 = 64 << 20;

/// Which logs may go.
#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) place: Place,
    /// Only these logs, as NAMESPACE/NAME/UID. No `DurableServer` with such a uid may exist any more, in any cluster.
    #[arg(value_parser = log_name)]
    pub(super) logs: Vec<ServerId>,
    /// File with the uids of all `DurableServers` that exist, one a line; `-` for stdin. Logs of other uids may go too,
    /// though they do not end in a Tombstone.
    #[arg(long, value_name = "FILE", conflicts_with = "logs")]
    pub(super) known_uids: Option<PathBuf>,
    /// States that were kept when their server was deleted (reclaimPolicy Retain) may go too.
    #[arg(long)]
    pub(super) retained: bool,
    /// Delete. Without it, only what would be deleted is shown.
    #[arg(long)]
    pub(super) delete: bool,
}

pub(super) async fn run(
    options: &Options,
    store: &Store,
    now: SystemTime,
    tell: impl FnMut(String),
) -> anyhow::Result<()> {
    let known = options.known_uids.as_deref().map(read_uids).transpose()?;
    let found = find(options, store).await?;
    let looked = stream::iter(found).map(|log| async move { (end(store, &log).await, log) });
    let mut looked = looked.buffered(AT_ONCE);
    let mut gc = Gc { options, store, known, now, tell, count: Count::default() };
    while let Some((end, log)) = looked.next().await {
        gc.judge(&log, end).await?;
    }
    gc.end();
    Ok(())
}

async fn find(options: &Options, store: &Store) -> anyhow::Result<Vec<Kept>> {
    if options.logs.is_empty() {
        return Ok(logs::all(&store.lanes, &store.prefix).await?);
    }
    let mut found = BTreeMap::new();
    for server in &options.logs {
        let of_name = logs::of_name(&store.lanes, &store.prefix, &server.namespace, &server.name).await?;
        let log = of_name.into_iter().find(|log| log.server == *server);
        let log = log.with_context(|| format!("there is no log {} under this prefix", name_of(server)))?;
        found.insert(server.clone(), log);
    }
    Ok(found.into_values().collect())
}

/// How a log ends; or why that cannot be told.
async fn end(store: &Store, log: &Kept) -> anyhow::Result<End> {
    let newest = store.log(&log.server)?.read_header(log.newest).await?;
    let newest = newest.context("its newest record went meanwhile")?;
    Ok(End::of(&newest.kind))
}

#[derive(Default)]
struct Count {
    logs: usize,
    records: usize,
    in_use: usize,
}

struct Gc<'a, F> {
    options: &'a Options,
    store: &'a Store,
    known: Option<HashSet<String>>,
    now: SystemTime,
    tell: F,
    count: Count,
}

impl<F: FnMut(String)> Gc<'_, F> {
    async fn judge(&mut self, log: &Kept, end: anyhow::Result<End>) -> anyhow::Result<()> {
        let is_named = !self.options.logs.is_empty();
        let unknown = is_named || self.known.as_ref().is_some_and(|known| !known.contains(&log.server.uid.0));
        let (goes, why) = match (end, log.age(self.now)) {
            (Err(error), _) => (false, format!("its newest record cannot be read: {error:#}")),
            (_, None) => (false, "the store does not say when it was written".into()),
            (Ok(End::Open | End::Released), _) if !unknown => {
                self.count.in_use += 1;
                return Ok(());
            }
            (Ok(end), Some(age)) => {
                let (goes, why) = may_go(Left { end, age, unknown }, self.options.retained);
                (goes, why.to_owned())
            }
        };
        if !goes {
            self.line("keep", log, &why);
        } else if self.options.delete {
            self.delete(log, &why).await?;
        } else {
            self.counted(log.records);
            self.line("would delete", log, &why);
        }
        Ok(())
    }

    async fn delete(&mut self, log: &Kept, why: &str) -> anyhow::Result<()> {
        let deleted = self.store.log(&log.server)?.destroy(log.newest).await;
        match deleted.with_context(|| format!("{} is deleted in part: run this again", name_of(&log.server)))? {
            Some(records) => {
                self.counted(records);
                self.line("deleted", log, why);
            }
            None => self.line("keep", log, "it went on meanwhile"),
        }
        Ok(())
    }

    fn counted(&mut self, records: usize) {
        self.count.logs += 1;
        self.count.records += records;
    }

    fn line(&mut self, what: &str, log: &Kept, why: &str) {
        let (name, time) = (name_of(&log.server), time_of(log.modified));
        (self.tell)(format!("{what}  {name}  {} records, the newest of {time}: {why}", log.records));
    }

    fn end(&mut self) {
        let Count { logs, records, in_use } = self.count;
        let used = format!("{in_use} logs are of servers that are not deleted, as far as is known");
        (self.tell)(if self.options.delete {
            format!("{logs} logs with {records} records deleted; {used}")
        } else {
            format!("{logs} logs with {records} records would be deleted by --delete; {used}")
        });
    }
}

/// An empty list would make every log one of a server that does not exist.
fn read_uids(path: &Path) -> anyhow::Result<HashSet<String>> {
    let what = || format!("--known-uids: {} cannot be read", path.display());
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().take(MAX_UIDS + 1).read_to_string(&mut text).with_context(what)?;
    } else {
        std::fs::File::open(path)
            .with_context(what)?
            .take(MAX_UIDS + 1)
            .read_to_string(&mut text)
            .with_context(what)?;
    }
    ensure!(text.len() as u64 <= MAX_UIDS, "--known-uids: more than {MAX_UIDS} bytes are no list of uids");
    let uids: HashSet<String> = text.split_whitespace().map(str::to_owned).collect();
    ensure!(!uids.is_empty(), "--known-uids: the list is empty. If there really is no server any more, name the logs");
    Ok(uids)
}
