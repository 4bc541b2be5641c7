//! `durable-agent store inspect`.

use std::time::SystemTime;

use clap::Args;
use handoff::{Sequence, ServerUid};
use store::{Shown, logs::Kept};

use super::{Name, Place, Store, kind_of, name_of, time_of};

/// What to look at.
#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) place: Place,
    /// The server, as NAMESPACE/NAME.
    pub(super) server: Name,
    /// Only the log of this uid.
    #[arg(long)]
    pub(super) uid: Option<String>,
}

const COLUMNS: [&str; 7] = ["SEQUENCE", "EPOCH", "KIND", "STATE", "VERSION", "WRITER", "TIME"];

pub(super) async fn run(
    options: &Options,
    store: &Store,
    now: SystemTime,
    mut tell: impl FnMut(String),
) -> anyhow::Result<()> {
    let mut logs = store.logs_of(&options.server).await?;
    logs.sort_by_key(|log| log.modified);
    if let Some(uid) = &options.uid {
        let uids: Vec<String> = logs.iter().map(|log| log.server.uid.0.clone()).collect();
        logs.retain(|log| log.server.uid == ServerUid(uid.clone()));
        anyhow::ensure!(!logs.is_empty(), "--uid: there is no log of {uid}, only of {}", uids.join(", "));
    }
    for log in logs {
        tell(title(&log, now));
        table(store.log(&log.server)?.look().await?.iter().map(row)).into_iter().for_each(&mut tell);
    }
    Ok(())
}

fn title(log: &Kept, now: SystemTime) -> String {
    let age = log.age(now).map_or_else(String::new, |age| format!(", the newest {} s old", age.as_secs()));
    format!("{}: {} records{age}", name_of(&log.server), log.records)
}

fn row(record: &Shown) -> [String; 7] {
    let (sequence, time) = (record.sequence.to_string(), time_of(record.modified));
    match &record.content {
        Ok((header, length)) => {
            let state = match (length, header.state_at) {
                (Some(bytes), _) => format!("{bytes} bytes"),
                (None, Sequence::NONE) => "none yet".into(),
                (None, at) => format!("that of {at}"),
            };
            let (epoch, version) = (header.epoch.to_string(), header.state_version.to_string());
            [sequence, epoch, kind_of(header), state, version, header.writer.pod.0.clone(), time]
        }
        Err(error) => {
            let unknown = || "-".to_owned();
            [sequence, unknown(), format!("unreadable: {error}"), unknown(), unknown(), unknown(), time]
        }
    }
}

/// Numbers to the right, words to the left.
fn table(rows: impl Iterator<Item = [String; 7]>) -> Vec<String> {
    let rows: Vec<[String; 7]> = std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; 7] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; 7]| {
        let cell = |(column, text): (usize, &String)| {
            let width = widths[column];
            if matches!(column, 0 | 1 | 4) { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(|row| format!("  {}", line(row))).collect()
}
