//! `durable-agent check-host`: speaks to a host as an agent would, and explains where it breaks the contract
//! (`docs/host-contract.md`).

mod adoption;
mod body;
mod exchange;
mod lease;
mod life;
mod order;
mod report;
pub mod rules;
mod subject;
mod whole;

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use hyper::Method;

pub use self::report::{Failure, Outcome, Verdict};
use self::subject::Subject;

/// Checks that a host keeps the contract, and explains where it does not.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The host's socket. Not one that is in use: large states are sent to it.
    #[arg(long)]
    pub socket: PathBuf,
    /// The type to check; the first of `describe` unless given.
    #[arg(long = "type")]
    pub kind: Option<String>,
    /// A request that changes a server's state: 'METHOD /path body'. `%n` in the body is another text each time.
    #[arg(long, default_value = "POST / %n")]
    pub change: Change,
    /// The config that servers are started with, JSON; none unless given.
    #[arg(long)]
    pub config: Option<serde_json::Value>,
    /// The largest state to send, bytes: the pool's sync.maxStateBytes.
    #[arg(long, default_value_t = 64 << 20)]
    pub max_state_bytes: u64,
    /// How long the host may take for one call.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    pub timeout_seconds: u64,
}

/// A request that changes a server's state.
#[derive(Clone, Debug)]
pub struct Change {
    method: Method,
    path: String,
    body: String,
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{what}; write for example 'POST /messages {{\"text\": \"%n\"}}'");
        let (method, rest) = text.trim().split_once(' ').ok_or_else(|| wrong("a method and a path are needed"))?;
        let (path, body) = rest.trim().split_once(' ').unwrap_or((rest.trim(), ""));
        if !path.starts_with('/') || path.starts_with("/.durable/") {
            return Err(wrong("the path begins with /, and not with /.durable/"));
        }
        let method = method.parse().map_err(|_| wrong("the first word is no HTTP method"))?;
        Ok(Self { method, path: path.into(), body: body.trim().into() })
    }
}

/// Makes all checks, and tells of each when it is over. Returns whether all passed.
pub async fn run(options: &Options, tell: impl FnMut(&Outcome)) -> bool {
    let mut checks = Checks { tell, all_passed: true };
    let subject = match Subject::open(options).await {
        Ok(subject) => subject,
        Err(failure) => {
            checks.told("describe", Some(Err(failure)));
            return false;
        }
    };
    let kind = &subject.kind;
    let described = format!("type {:?} writes version {} and loads {:?}", kind.name, kind.state_version, kind.loads);
    checks.told("describe", Some(Ok(described)));
    checks.told("socket", Some(whole::socket(&subject)));
    if !checks.make("first start", &subject, life::first_start(&subject)).await {
        checks.told("everything else", None);
        return false;
    }
    checks.make("snapshot", &subject, life::snapshot(&subject)).await;
    checks.make("start from a state", &subject, life::restart(&subject)).await;
    checks.make("standby", &subject, life::standby(&subject)).await;
    checks.make("activate with a newer state", &subject, life::activate(&subject)).await;
    checks.make("freeze", &subject, life::freeze(&subject)).await;
    checks.make("thaw", &subject, life::thaw(&subject)).await;
    checks.make("unchanged since", &subject, life::unchanged_since(&subject)).await;
    checks.make("stop", &subject, life::stop(&subject)).await;
    checks.make("what cannot be loaded", &subject, life::cannot_load(&subject)).await;
    checks.make("late calls", &subject, order::late(&subject)).await;
    checks.make("a higher epoch", &subject, order::higher(&subject)).await;
    checks.make("calls that come twice", &subject, order::twice(&subject)).await;
    checks.make("freeze under load", &subject, order::freeze_under_load(&subject)).await;
    checks.make("other paths", &subject, whole::other_paths(&subject)).await;
    checks.make("malformed headers", &subject, whole::malformed(&subject)).await;
    checks.make("connections", &subject, whole::connections(&subject)).await;
    checks.make("bodies", &subject, body::bodies(&subject)).await;
    checks.make("leases", &subject, lease::lease(&subject)).await;
    checks.make("adoption", &subject, adoption::adoption(&subject)).await;
    checks.make("a large state in", &subject, whole::large_state_in(&subject)).await;
    checks.make("a large state out", &subject, whole::large_state_out(&subject)).await;
    checks.make("nothing is left", &subject, order::nothing_left(&subject)).await;
    checks.all_passed
}

struct Checks<F> {
    tell: F,
    all_passed: bool,
}

impl<F: FnMut(&Outcome)> Checks<F> {
    async fn make(&mut self, name: &'static str, subject: &Subject, check: impl Future<Output = Verdict>) -> bool {
        let verdict = if subject.is_silent() { None } else { Some(check.await) };
        subject.clean_up().await;
        self.told(name, verdict)
    }

    fn told(&mut self, name: &'static str, verdict: Option<Verdict>) -> bool {
        let outcome = Outcome { name, verdict };
        let passed = outcome.passed();
        self.all_passed &= passed;
        (self.tell)(&outcome);
        passed
    }
}
