//! Which process is meant, for good: a process id alone may be given to another process later.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

/// A process, told apart from every other process that ever had its id on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: u32,
    /// Start time in clock ticks since boot, as the kernel keeps it.
    pub(crate) start_ticks: u64,
    pub(crate) boot_id: String,
}

/// A handle on a live process that stays right even after the process has ended.
pub(crate) struct ProcessHandle(OwnedFd);

impl ProcessIdentity {
    /// Identity of a process that exists now.
    pub(crate) fn of(pid: u32) -> io::Result<ProcessIdentity> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (start_ticks, _) = parse_stat(&stat).ok_or_else(|| io::Error::other("cannot read /proc/PID/stat"))?;
        Ok(ProcessIdentity { pid, start_ticks, boot_id: boot_id()? })
    }

    /// A handle on the process, or none when it has ended.
    pub(crate) fn open(&self) -> Option<ProcessHandle> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The handle is on whatever has the id now; only afterwards is it certain whom it belongs to.
        self.is_alive().then_some(ProcessHandle(handle))
    }

    /// Whether the process still runs. One that waits to be reaped does not.
    pub(crate) fn is_alive(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let Some((start_ticks, state)) = parse_stat(&stat) else { return false };
        start_ticks == self.start_ticks
            && !matches!(state, 'Z' | 'X')
            && boot_id().is_ok_and(|boot_id| boot_id == self.boot_id)
    }
}

impl ProcessHandle {
    /// Sends SIGKILL; a process that has ended is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the end; false when it has not come in time.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        matches!(nix::poll::poll(&mut fds, timeout), Ok(ready) if ready > 0)
    }
}

impl AsFd for ProcessHandle {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The kernel's name for the time between two boots.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Start time in ticks and state letter. The command name stands in brackets and may itself contain brackets and spaces.
fn parse_stat(stat: &str) -> Option<(u64, char)> {
    let rest = &stat[stat.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3 of proc(5), the start time field 22.
    Some((fields.nth(18)?.parse().ok()?, state))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_reused_pid_is_not_the_same_process() {
        let me = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(me.is_alive() && me.open().is_some());
        let earlier = ProcessIdentity { start_ticks: me.start_ticks - 1, ..me.clone() };
        assert!(!earlier.is_alive() && earlier.open().is_none());
        let other_boot = ProcessIdentity { boot_id: "another".into(), ..me };
        assert!(!other_boot.is_alive());
    }

    #[test]
    fn names_with_brackets_do_not_confuse() {
        let stat = format!("7 (a) S 1) (b) R {} 4242 0", (4..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" "));
        assert_eq!(parse_stat(&stat), Some((4242, 'R')));
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_stat("7 (a) R 1 2"), None);
    }
}
