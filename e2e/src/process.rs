//! The processes of pods, as this machine sees them: only for a cluster whose nodes are this machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const MOST_OF_A_POD: usize = 4;

/// A process of some pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id on this machine.
    pub pid: u32,
    /// What it runs, as in its own container.
    pub program: String,
}

/// All processes of the pod with this uid, but for the one that holds its network open.
pub fn of_pod(uid: &str) -> Result<Vec<Process>> {
    let our_mounts = fs::read_link("/proc/self/ns/mnt")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end at any moment; then it is none of the pod's.
        let Ok(mounts) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
        let Ok(table) = fs::read_to_string(entry.path().join("mountinfo")) else { continue };
        if mounts != our_mounts && is_container_of(&table, uid) {
            found.extend(program(&entry.path()).map(|program| Process { pid, program }));
        }
    }
    Ok(found)
}

/// A container's `/etc/hosts` is a file in the kubelet's directory of its pod. The machine itself sees mounts *below* that
/// directory (the pod's volumes), so the directory's name alone would take every process of the machine for the pod's.
fn is_container_of(mountinfo: &str, uid: &str) -> bool {
    mountinfo.lines().any(|line| {
        // proc_pid_mountinfo(5): id, parent, device, root within the file system, mount point, ...
        let mut fields = line.split(' ').skip(3);
        let (root, point) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        point == "/etc/hosts" && root.ends_with(&format!("/pods/{uid}/etc-hosts"))
    })
}

fn program(process: &Path) -> Option<String> {
    let line = fs::read(process.join("cmdline")).ok()?;
    let first = line.split(|byte| *byte == 0).next()?;
    (!first.is_empty()).then(|| String::from_utf8_lossy(first).into_owned())
}

/// The most memory the process has had since it started (KiB).
pub fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a process without VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Ends these at once, as a crash of their machine would.
pub fn kill(processes: &[Process]) -> Result<()> {
    signal(processes, "-KILL")
}

/// Processes that do nothing at all until this is dropped, as on a machine that sleeps.
#[derive(Debug)]
pub struct Paused(Vec<Process>);

/// Makes these pause.
pub fn pause(processes: Vec<Process>) -> Result<Paused> {
    signal(&processes, "-STOP")?;
    Ok(Paused(processes))
}

impl Drop for Paused {
    fn drop(&mut self) {
        if let Err(error) = signal(&self.0, "-CONT") {
            eprintln!("processes stay paused: {error:#}");
        }
    }
}

/// A pod of ours has few processes: many mean a mistake.
fn signal(processes: &[Process], name: &str) -> Result<()> {
    if processes.is_empty() || processes.len() > MOST_OF_A_POD {
        bail!("{} processes are not those of one pod: {processes:?}", processes.len());
    }
    let pids = processes.iter().map(|process| process.pid.to_string());
    let status = Command::new("kill").arg(name).args(pids).status()?;
    if !status.success() {
        bail!("kill: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_peak() {
        assert!(peak_memory(std::process::id()).unwrap() > 100);
    }

    #[test]
    fn only_a_container_has_its_pods_hosts_file() {
        let machine =
            "71 29 0:52 / /var/lib/kubelet/pods/u-1/volumes/kubernetes.io~empty-dir/durable rw - tmpfs tmpfs rw";
        let container = "80 70 254:0 /var/lib/kubelet/pods/u-1/etc-hosts /etc/hosts rw,relatime - ext4 /dev/vda rw";
        assert!(!is_container_of(machine, "u-1"));
        assert!(is_container_of(&format!("{machine}\n{container}"), "u-1"));
        assert!(!is_container_of(container, "u-2") && !is_container_of(container, "1"));
    }

    #[test]
    fn nothing_is_killed_that_is_not_one_pods() {
        assert_eq!(of_pod("00000000-none").unwrap(), []);
        let process = Process { pid: u32::MAX, program: "/none".into() };
        assert!(kill(&[]).is_err());
        assert!(kill(&vec![process; MOST_OF_A_POD + 1]).is_err());
    }
}
