//! A process of our own, which ends with us however we end.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child as Process, Command};

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The program's path.
    pub program: std::path::PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment, but for `PATH`.
    pub env: Vec<(String, String)>,
    /// What it says is added here.
    pub log: std::path::PathBuf,
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Child {
    process: Process,
    pid: Pid,
}

impl Child {
    /// Starts it.
    pub fn start(spec: &Spec) -> Result<Self> {
        let log = File::options().create(true).append(true).open(&spec.log);
        let log = log.with_context(|| spec.log.display().to_string())?;
        // The kernel kills it when we are killed: nothing of ours is to be left on the machine.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&spec.program).args(&spec.arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(spec.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        command.current_dir(spec.log.parent().unwrap_or(Path::new("/")));
        let process = command.spawn().with_context(|| spec.program.display().to_string())?;
        let pid =
            process.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).context("a process without id")?;
        Ok(Self { process, pid })
    }

    /// Its id, which nobody else gets as long as this is.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it a signal; one that has ended does not mind.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) {
        // It fails for what is no child of ours.
        let _ = self.process.wait().await;
    }
}

/// Lets a paused process of ours go on.
pub fn wake(pid: Pid) {
    // One that has been killed since does not mind.
    let _ = kill_process(pid, Signal::CONT);
}
