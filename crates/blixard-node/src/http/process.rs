//! What the kernel says of this process, under the names that Prometheus gives to such figures everywhere.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// The figures of one moment. What the kernel does not say is left out.
#[derive(Debug)]
pub(super) struct Process {
    /// Time on processors, in user and kernel mode.
    pub(super) cpu_seconds: Option<f64>,
    /// Memory in use.
    pub(super) resident_bytes: Option<i64>,
    /// Open files, sockets included.
    pub(super) open_fds: Option<i64>,
    /// When the process started, in seconds since 1970.
    pub(super) start_seconds: Option<f64>,
}

impl Process {
    pub(super) fn look() -> Self {
        // After the command's name, which is in brackets and may hold anything.
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // proc(5) counts from 1 and has the state, the first one here, in place 3.
        let field = |place: usize| fields.get(place - 3)?.parse::<i64>().ok();
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
        Self {
            cpu_seconds: cpu_seconds(),
            resident_bytes: field(24).zip(page).map(|(pages, bytes)| pages.saturating_mul(bytes)),
            open_fds: std::fs::read_dir("/proc/self/fd").ok().and_then(|fds| i64::try_from(fds.count()).ok()),
            start_seconds: field(22).and_then(started),
        }
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The wall clock at so many ticks after the host's start.
fn started(ticks: i64) -> Option<f64> {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    Some(now - uptime + ticks as f64 / per_second as f64)
}
