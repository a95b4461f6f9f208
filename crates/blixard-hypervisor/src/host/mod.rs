//! What this host is: sizes, processor, accelerator, control groups.

pub(crate) mod cgroup;
pub(crate) mod kvm;
mod tsc;

use std::ffi::OsString;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::folder::{read_record, write_record};
use crate::identity::boot_id;

/// What was found out about the host for as long as it stays up; finding out takes a second or two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Probed {
    boot_id: String,
    /// Whether /dev/kvm really runs guests, or why not.
    pub(crate) kvm: Result<(), String>,
    /// Frequency of the time stamp counter.
    pub(crate) tsc_khz: Option<u64>,
}

/// Sizes of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Processors that this process may use.
    pub cores: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Size of the file system that was asked about, in bytes.
    pub disk_bytes: u64,
    /// What is free there for this process's user, in bytes.
    pub disk_free_bytes: u64,
}

/// Reads the sizes of this host, and of the file system that holds `path`.
pub fn probe(path: &Path) -> io::Result<HostFacts> {
    let disk = nix::sys::statvfs::statvfs(path)?;
    let cores = std::thread::available_parallelism()?.get();
    Ok(HostFacts {
        cores: u32::try_from(cores).unwrap_or(u32::MAX),
        memory_mib: memory_mib(&std::fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?,
        disk_bytes: disk.blocks() * disk.fragment_size(),
        disk_free_bytes: disk.blocks_available() * disk.fragment_size(),
    })
}

fn memory_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Finds out about the accelerator and the clock, or reads what was found since the host started. `cache` is the file
/// to keep it in.
pub(crate) fn probe_accelerator(guard_command: &[OsString], cache: &Path) -> io::Result<Probed> {
    let boot_id = boot_id()?;
    // A cache that cannot be read is no cache.
    if let Ok(Some(probed)) = read_record::<Probed>(cache)
        && probed.boot_id == boot_id
    {
        return Ok(probed);
    }
    let probed = Probed { boot_id, kvm: kvm::probe(guard_command)?, tsc_khz: tsc::measure_khz() };
    write_record(cache, &probed)?;
    Ok(probed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(memory_mib("MemFree: 1 kB\nMemTotal:       24689152 kB\n"), Some(24110));
        assert_eq!(memory_mib("MemTotal: many kB\n"), None);
        let facts = probe(Path::new("/")).unwrap();
        assert!(facts.cores >= 1 && facts.memory_mib >= 64);
        assert!(facts.disk_bytes >= facts.disk_free_bytes && facts.disk_bytes > 0);
    }
}
