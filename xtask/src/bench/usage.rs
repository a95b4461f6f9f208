//! What processes take of the machine, as the kernel counts it.

use anyhow::{Context, Result};
use std::fs;
use std::time::Instant;

/// What a process held, and had used, at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    at: Instant,
    cpu_seconds: f64,
    /// Resident memory, in MiB.
    pub(super) memory_mib: f64,
}

impl Usage {
    /// Of a process that runs.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).context("read what a process uses");
        let (stat, status) = (read("stat")?, read("status")?);
        let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Self {
            at: Instant::now(),
            cpu_seconds: cpu_ticks(&stat).context("read /proc/PID/stat")? as f64 / ticks_per_second as f64,
            memory_mib: resident_kib(&status).context("read /proc/PID/status")? as f64 / 1024.0,
        })
    }

    /// Hundredths of one processor used since an earlier moment.
    pub(super) fn cpu_percent_since(&self, earlier: &Self) -> f64 {
        (self.cpu_seconds - earlier.cpu_seconds) / (self.at - earlier.at).as_secs_f64() * 100.0
    }
}

/// User and system time, the 14th and 15th field; the second may hold spaces and ends with the last parenthesis.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn resident_kib(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let stat = "77 (a (b) c) S 1 77 77 0 -1 4194560 900 0 1 0 120 30 0 0 20 0 5 0 100";
        assert_eq!(cpu_ticks(stat), Some(150));
        assert_eq!(cpu_ticks("77 (cut"), None);
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t   2048 kB\n"), Some(2048));
        assert_eq!(resident_kib("Name:\tx\n"), None);
    }
}
