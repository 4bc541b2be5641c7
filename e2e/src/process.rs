//! The processes of pods, as this machine sees them: only for a cluster whose nodes are this machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const MOST_OF_A_POD: usize = 4;
/// More than any container of the tests may have (bytes).
const TOO_MUCH: usize = 512 << 20;

/// A process of some pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id on this machine.
    pub pid: u32,
    /// What it runs, as in its own container.
    pub program: String,
}

/// A program that cargo has built beside this one.
pub fn built(name: &str) -> Result<PathBuf> {
    let here = env::current_exe()?;
    let path = here.ancestors().map(|dir| dir.join(name)).find(|path| path.is_file());
    path.with_context(|| format!("there is no {name} beside {}: `make` builds it before it runs this", here.display()))
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

/// Leaves this process's container no memory, so that the kernel kills what it likes least in there. What takes the memory
/// is a file of a child that counts as the container's: the kernel prefers any process of a pod to one of ours.
pub fn exhaust_memory(pid: u32) -> Result<()> {
    let group = memory_group(&fs::read_to_string(format!("/proc/{pid}/cgroup"))?)?;
    let script = "echo $$ > \"$0/cgroup.procs\" && exec head -c \"$1\" /dev/zero > \"$2\"";
    let file = format!("/dev/shm/durable-e2e-{pid}");
    // It fails: it is killed, too, since its file goes on to fill the container when all else in there is gone.
    let ended = Command::new("sh").args(["-c", script, &group, &TOO_MUCH.to_string(), &file]).status();
    fs::remove_file(&file).with_context(|| format!("nothing was written: {ended:?}"))
}

/// The directory of the group whose memory limit counts for a process: of version 1 if the machine has it, else of version 2.
fn memory_group(of_process: &str) -> Result<String> {
    let path = |prefix: &str| of_process.lines().find_map(|line| line.split_once(prefix)).map(|(_, path)| path);
    let version_1 = path(":memory:").map(|path| format!("/sys/fs/cgroup/memory{path}"));
    version_1
        .or_else(|| path("0::").map(|path| format!("/sys/fs/cgroup{path}")))
        .context("a process without a memory group")
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
    fn a_process_has_a_memory_group_of_either_version() {
        let (old, new) = ("5:memory:/k8s/a\n0::/\n", "0::/k8s/a\n");
        assert_eq!(memory_group(old).unwrap(), "/sys/fs/cgroup/memory/k8s/a");
        assert_eq!(memory_group(new).unwrap(), "/sys/fs/cgroup/k8s/a");
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
