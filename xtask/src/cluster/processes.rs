//! The processes of a cluster in a folder, found by what they are and ended by their pid.
//!
//! A guest's hypervisor and its guard outlive their node on purpose, so they are nobody's children. They are told by the
//! folder that they work for, which no other cluster has.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For processes that were killed to be gone.
const END_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A process of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// What it is: `node`, `guard` or `hypervisor`.
    pub(super) role: &'static str,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.pid)
    }
}

/// The nodes, guards and hypervisors that work for the cluster in `dir`. Shells, editors and the like that happen to be
/// there are left alone.
pub(super) fn of(dir: &Path) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list the processes in /proc")? {
        let name = entry.context("list the processes in /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end between any two looks, and those of other users do not show everything: neither is ours.
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let words: Vec<String> =
            line.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
        let working_dir = fs::read_link(format!("/proc/{pid}/cwd")).ok();
        if let Some(role) = role(dir, &words, working_dir) {
            found.push(Process { pid, role });
        }
    }
    Ok(found)
}

fn role(dir: &Path, words: &[String], working_dir: Option<PathBuf>) -> Option<&'static str> {
    let program = Path::new(words.first()?).file_name()?.to_str()?;
    let names_dir = || words.iter().any(|word| Path::new(word).starts_with(dir));
    match (program, words.get(1).map(String::as_str)) {
        ("blixard", Some("node")) if names_dir() => Some("node"),
        ("blixard", Some("guard")) if names_dir() => Some("guard"),
        _ if program.starts_with("qemu-system") && working_dir?.starts_with(dir) => Some("hypervisor"),
        _ => None,
    }
}

/// Whether there is a process with this id that has not ended.
pub(crate) fn is_alive(pid: i32) -> bool {
    // A zombie has ended; only its parent has not heard of it. Its state follows its name, which may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).is_some_and(|state| !"ZX".contains(state))
}

/// Asks a process to end, or ends it, as the signal says. One that has ended already is no error.
pub(super) fn send(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("send {signal} to process {pid}")),
    }
}

/// Kills all processes of the cluster in `dir`, and those that they were starting just then.
pub(super) fn kill_all(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        let left = of(dir)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("still there {END_TIMEOUT:?} after they were killed: {}", shown(&left));
        }
        for process in &left {
            send(process.pid, Signal::SIGKILL)?;
        }
        std::thread::sleep(POLL);
    }
}

/// Their roles and pids.
pub(super) fn shown(processes: &[Process]) -> String {
    processes.iter().map(Process::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn only_the_clusters_own_processes_are_told() {
        let dir = Path::new("/tmp/demo-1");
        let role = |line: &str, working_dir: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            role(dir, &words, Some(working_dir.into()))
        };
        assert_eq!(role("/b/blixard node --id 1 --data-dir /tmp/demo-1/node-1", "/home"), Some("node"));
        assert_eq!(role("/b/blixard guard /tmp/demo-1/node-1/vms/ab", "/"), Some("guard"));
        assert_eq!(role("/usr/bin/qemu-system-x86_64 -name web", "/tmp/demo-1/node-1/vms/ab"), Some("hypervisor"));
        assert_eq!(role("/usr/bin/qemu-system-x86_64 -name web", "/tmp/demo-12/node-1/vms/ab"), None);
        assert_eq!(role("/b/blixard node --id 1 --data-dir /tmp/demo-12/node-1", "/tmp/demo-1"), None);
        assert_eq!(role("/b/blixard vm console web", "/tmp/demo-1"), None);
        assert_eq!(role("tail -f /tmp/demo-1/node-1.log", "/tmp/demo-1"), None);
        assert_eq!(role("", "/tmp/demo-1"), None);
    }

    /// A process that does not outlive its test, which might have failed: whoever reads the test's output would wait for it.
    struct Ended(std::process::Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_is_found_by_its_folder_and_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "none", "-nodefaults", "-display", "none"]).current_dir(dir.path());
        let mut child = Ended(command.spawn().expect("QEMU is installed: see `cargo xtask setup`"));
        let pid = i32::try_from(child.0.id()).unwrap();
        // The kernel shows the arguments of a new program a moment after it has begun.
        let deadline = Instant::now() + END_TIMEOUT;
        while of(dir.path()).unwrap() != [Process { pid, role: "hypervisor" }] {
            assert!(Instant::now() < deadline, "{:?}", of(dir.path()).unwrap());
            std::thread::sleep(POLL);
        }
        assert!(is_alive(pid));
        kill_all(dir.path()).unwrap();
        assert!(!is_alive(pid), "a zombie is not alive");
        assert!(!child.0.wait().unwrap().success());
        assert!(!is_alive(pid));
        send(pid, Signal::SIGTERM).unwrap();
    }
}
