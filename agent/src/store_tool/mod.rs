//! `durable-agent store`: looks at logs by hand, deletes those that are left over, and restores older states. Needs
//! nothing but the store (`docs/state.md`).

mod gc;
mod inspect;
mod restore;

use std::{path::PathBuf, str::FromStr, sync::Arc, time::SystemTime};

use anyhow::Context;
use clap::{Args, Subcommand};
use handoff::{
    ServerId, ServerUid,
    log::{Header, Kind},
};
use jiff::{Timestamp, Unit};
use store::{
    Lanes, Log, Objects, S3,
    pace::{Rates, pace},
};

/// The largest state that is read and written, bytes: the most that a pool can allow.
const MAX_STATE: u64 = 1 << 30;

/// A pool serves from the same store meanwhile.
const RATES: Rates = Rates { start: 100.0, min: 5.0, max: 300.0 };

/// What to do with a store.
#[derive(Clone, Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Shows the logs of a server, and of earlier ones of its name, record by record
    Inspect(inspect::Options),
    /// Finds logs that nobody needs any more, says why, and deletes them with --delete
    Gc(gc::Options),
    /// Makes the state of an older record the newest one, and ends whoever runs the server now
    Restore(restore::Options),
}

/// Where the store is: the fields of the pool's `spec.store.s3`. Credentials are read from `AWS_ACCESS_KEY_ID`,
/// `AWS_SECRET_ACCESS_KEY` and, if any, `AWS_SESSION_TOKEN`.
#[derive(Clone, Debug, Args)]
struct Place {
    /// Name of the bucket.
    #[arg(long)]
    bucket: String,
    /// What all keys begin with.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Its region.
    #[arg(long, default_value = "us-east-1")]
    region: String,
    /// URL of a server other than AWS.
    #[arg(long)]
    endpoint: Option<String>,
    /// Whether the bucket goes into the path rather than the host name; true with an endpoint unless given.
    #[arg(long)]
    force_path_style: Option<bool>,
    /// File of PEM certificates to trust instead of the system's.
    #[arg(long)]
    ca_bundle: Option<PathBuf>,
}

/// An open store, and the prefix in it.
struct Store {
    lanes: Lanes,
    prefix: String,
}

impl Place {
    fn open(&self) -> anyhow::Result<Store> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("--ca-bundle: {} cannot be read", path.display()))
        };
        let config = store::s3::Config {
            bucket: self.bucket.clone(),
            region: self.region.clone(),
            endpoint: self.endpoint.clone(),
            force_path_style: self.force_path_style.unwrap_or(self.endpoint.is_some()),
            ca_bundle: self.ca_bundle.as_ref().map(read).transpose()?,
        };
        let s3 = S3::from_env(&config).context(
            "the store cannot be opened: give the flags the values of the pool's spec.store.s3, and AWS_ACCESS_KEY_ID and \
             AWS_SECRET_ACCESS_KEY those of its Secret",
        )?;
        let objects: Arc<dyn Objects> = Arc::new(s3);
        Ok(Store { lanes: pace(objects, RATES), prefix: self.prefix.clone() })
    }
}

impl Store {
    fn log(&self, server: &ServerId) -> anyhow::Result<Log> {
        Ok(Log::new(self.lanes.clone(), &self.prefix, server, MAX_STATE)?)
    }

    /// The logs of a name; at least one.
    async fn logs_of(&self, name: &Name) -> anyhow::Result<Vec<store::logs::Kept>> {
        let logs = store::logs::of_name(&self.lanes, &self.prefix, &name.namespace, &name.name).await?;
        anyhow::ensure!(
            !logs.is_empty(),
            "there is no log of {}/{} under the prefix {:?}: compare the flags with the pool's spec.store.s3",
            name.namespace,
            name.name,
            self.prefix
        );
        Ok(logs)
    }
}

/// Does what the options say, and tells of it line by line. An error says what was not done.
pub async fn run(options: &Options, tell: impl FnMut(String)) -> anyhow::Result<()> {
    let now = SystemTime::now();
    match &options.command {
        Command::Inspect(options) => inspect::run(options, &options.place.open()?, now, tell).await,
        Command::Gc(options) => gc::run(options, &options.place.open()?, now, tell).await,
        Command::Restore(options) => restore::run(options, &options.place.open()?, tell).await,
    }
}

/// A server by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    namespace: String,
    name: String,
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err("write NAMESPACE/NAME of the server".into()),
        }
    }
}

/// One log, as `inspect` and `gc` name it.
fn log_name(text: &str) -> Result<ServerId, String> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [namespace, name, uid] if ![namespace, name, uid].contains(&"") => {
            Ok(ServerId { namespace: namespace.into(), name: name.into(), uid: ServerUid(uid.into()) })
        }
        _ => Err("write NAMESPACE/NAME/UID of the log, as inspect and gc print it".into()),
    }
}

/// A log's name, as [`log_name`] takes it.
fn name_of(server: &ServerId) -> String {
    format!("{}/{}/{}", server.namespace, server.name, server.uid)
}

fn kind_of(header: &Header) -> String {
    match &header.kind {
        Kind::Claim => "Claim".into(),
        Kind::Snapshot => "Snapshot".into(),
        Kind::Grant(grantee) => format!("Grant to {}", grantee.to.pod),
        Kind::Release => "Release".into(),
        Kind::Tombstone { delete: false } => "Tombstone, Retain".into(),
        Kind::Tombstone { delete: true } => "Tombstone, Delete".into(),
    }
}

/// To the second, in UTC; `-` where the store does not say.
fn time_of(time: Option<SystemTime>) -> String {
    let time = time.and_then(|time| Timestamp::try_from(time).ok());
    time.and_then(|time| time.round(Unit::Second).ok()).map_or_else(|| "-".into(), |time| time.to_string())
}

#[cfg(test)]
mod tests;
