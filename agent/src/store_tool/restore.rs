//! `durable-agent store restore`.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use handoff::{
    Generation, PodUid, Sequence, ServerUid,
    afterlife::End,
    log::{Authority, Header, Kind, Writer},
};
use store::{AppendError, Body, Draft, Log, State, logs::Kept};
use tokio::time::Instant;

use super::{Name, Place, Store, kind_of, name_of};

/// How often it is tried anew because whoever runs the server wrote a record in between.
const TRIES: usize = 5;
/// For one try.
const APPEND: Duration = Duration::from_mins(1);
/// Who the record says has written it. No pod has such a uid.
const WRITER: &str = "store-restore";

/// What to restore.
#[derive(Clone, Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) place: Place,
    /// The server, as NAMESPACE/NAME.
    pub(super) server: Name,
    /// The record whose state is wanted; `inspect` shows what there is.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) sequence: u64,
    /// The server's uid, if there are logs of several servers of this name.
    #[arg(long)]
    pub(super) uid: Option<String>,
}

pub(super) async fn run(options: &Options, store: &Store, mut tell: impl FnMut(String)) -> anyhow::Result<()> {
    let kept = choose(options, store.logs_of(&options.server).await?)?;
    let log = store.log(&kept.server)?;
    let state = read(&log, Sequence(options.sequence)).await?;
    let (bytes, version) = (state.body.len(), state.version);
    let (newest, written) = write(&log, &state).await?;
    let name = name_of(&kept.server);
    tell(format!(
        "{name}: record {} of epoch {} written, a Release with the state of record {} ({bytes} bytes, version {version})",
        written.sequence, written.epoch, options.sequence
    ));
    if End::of(&newest.kind) == End::Open {
        tell(format!(
            "the newest record before it was a {} of epoch {} by pod {}: if that pod still runs the server, it stops it at \
             its next sync of a change, or within some ten minutes; to have it at once, delete the pod. What the server \
             was told since record {} and was not synced is lost with it",
            kind_of(&newest),
            newest.epoch,
            newest.writer.pod,
            newest.sequence
        ));
    }
    Ok(())
}

fn choose(options: &Options, mut logs: Vec<Kept>) -> anyhow::Result<Kept> {
    let uids: Vec<String> = logs.iter().map(|log| log.server.uid.0.clone()).collect();
    if let Some(uid) = &options.uid {
        logs.retain(|log| log.server.uid == ServerUid(uid.clone()));
    }
    ensure!(
        logs.len() < 2,
        "there are logs of several servers of this name: choose one with --uid, of {}. kubectl get dsrv NAME -o \
         jsonpath={{.metadata.uid}} prints that of the present one",
        uids.join(", ")
    );
    logs.pop().with_context(|| format!("--uid: there is no such log, only of {}", uids.join(", ")))
}

/// The state that was the newest as of this record.
async fn read(log: &Log, sequence: Sequence) -> anyhow::Result<State> {
    let record = log.read_header(sequence).await?;
    let record = record.with_context(|| format!("there is no record {sequence}: inspect shows what there is"))?;
    ensure!(record.state_at != Sequence::NONE, "record {sequence} is from before the first state");
    Ok(log.read_state(record.state_at).await?)
}

/// A Release in an epoch that nobody has or was granted: whoever runs the server is fenced by it, and whoever is assigned
/// the server next starts from it. Returns what it follows, too.
async fn write(log: &Log, state: &State) -> anyhow::Result<(Header, Header)> {
    for _ in 0..TRIES {
        let newest = log.read_newest(Sequence::NONE).await?.context("the log went meanwhile")?.header;
        ensure!(
            !matches!(newest.kind, Kind::Tombstone { .. }),
            "the server is deleted, and its log closed: make a new one with spec.restoreFrom.uid set to this log's"
        );
        let draft = Draft {
            epoch: newest.epoch.claimed(),
            kind: Kind::Release,
            writer: Writer { pod: PodUid(WRITER.into()), generation: Generation::default() },
            body: Body::State(state.clone()),
        };
        match log.append(&Authority::Reader, draft, newest.sequence, Instant::now() + APPEND).await {
            Ok(written) => return Ok((newest, written)),
            Err(AppendError::Fenced(_)) => {}
            Err(AppendError::Unavailable(error)) => bail!(
                "{error}. The record may be there all the same: look with inspect. To run this command again does no harm"
            ),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("others wrote to the log {TRIES} times in between, and nothing was restored: try again")
}
