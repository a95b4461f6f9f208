//! Memory and processor limits by control groups (version 2), where this process may make groups.
//!
//! A group per vm, `blixard-vm-<id>`, holds the guard and its hypervisor. It is made below the group that the settings
//! name, or below the parent of this process's own group where systemd says that it was delegated to us (`Delegate=yes`
//! with `DelegateSubgroup=`). Anywhere else there are no limits, and the vm's state says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::observed::Limits;
use crate::spec::LaunchSpec;

/// What QEMU needs besides the guest's memory: translated code, devices, queues, and the guard. Measured at 90 MiB;
/// a guest must never die because its host's share was counted too tightly.
const OVERHEAD_MIB: u64 = 256;
/// Period of the processor limit in microseconds; the kernel's default.
const PERIOD_US: u64 = 100_000;

/// Makes the vm's group with its limits, or says why there is none.
pub(crate) fn create(parent: Option<&Path>, spec: &LaunchSpec) -> Result<PathBuf, String> {
    let parent = match parent {
        Some(parent) => parent.to_owned(),
        None => delegated_parent()?,
    };
    create_below(&parent, spec)
}

fn create_below(parent: &Path, spec: &LaunchSpec) -> Result<PathBuf, String> {
    let context = |doing: String| move |error: io::Error| format!("{doing}: {error}");
    let available = fs::read_to_string(parent.join("cgroup.controllers"))
        .map_err(|_| format!("{} is not a version 2 control group", parent.display()))?;
    for controller in ["cpu", "memory"] {
        if !available.split_ascii_whitespace().any(|name| name == controller) {
            return Err(format!("{} offers no {controller} controller", parent.display()));
        }
    }
    fs::write(parent.join("cgroup.subtree_control"), "+cpu +memory")
        .map_err(context(format!("enable limits below {}", parent.display())))?;
    let path = parent.join(group_name(&spec.vm));
    match fs::create_dir(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("make the group {}: {error}", path.display()));
        }
        _ => {}
    }
    let memory_mib = spec.memory_mib + OVERHEAD_MIB;
    fs::write(path.join("memory.max"), (memory_mib << 20).to_string()).map_err(context("limit memory".into()))?;
    // One processor more than the guest has, for its devices.
    let processors = u64::from(spec.vcpus) + 1;
    fs::write(path.join("cpu.max"), format!("{} {PERIOD_US}", processors * PERIOD_US))
        .map_err(context("limit processors".into()))?;
    Ok(path)
}

/// The limits of a process by its group, or why it has none.
pub(crate) fn limits_of(pid: u32, group: &Path) -> Result<Limits, String> {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|error| format!("read its group: {error}"))?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    if Path::new(own).file_name() != group.file_name() {
        return Err(format!("it is not in its control group {}", group.display()));
    }
    read_limits(group)
}

fn read_limits(group: &Path) -> Result<Limits, String> {
    let read = |file: &str| {
        fs::read_to_string(group.join(file)).map_err(|error| format!("read {}: {error}", group.join(file).display()))
    };
    // A group without a limit says `max` in place of the number.
    let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u64>().ok());
    let memory_bytes = number(Some(&read("memory.max")?)).ok_or("its control group does not limit memory")?;
    let processors = read("cpu.max")?;
    let mut processors = processors.split_ascii_whitespace();
    let (quota, period) = (number(processors.next()), number(processors.next()));
    let quota = quota.ok_or("its control group does not limit processors")?;
    Ok(Limits { memory_mib: memory_bytes >> 20, processors: quota.div_ceil(period.unwrap_or(PERIOD_US).max(1)) })
}

/// Removes the vm's group once nothing runs in it.
pub(crate) fn remove(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn group_name(vm: &str) -> String {
    format!("blixard-vm-{vm}")
}

fn delegated_parent() -> Result<PathBuf, String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("read /proc/self/cgroup: {error}"))?;
    let own =
        own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("this host has no version 2 control groups")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| format!("read mountinfo: {error}"))?;
    let mount = cgroup2_mount(&mounts).ok_or("no version 2 control groups are mounted")?;
    let own = Path::new(mount).join(own);
    let parent = own.parent().filter(|parent| parent.starts_with(mount));
    // A parent that was not given to us belongs to the service manager, even where root could write there.
    parent
        .filter(|parent| is_delegated(parent))
        .map(Path::to_owned)
        .ok_or_else(|| "no control group was delegated to this process".to_owned())
}

fn cgroup2_mount(mountinfo: &str) -> Option<&str> {
    let line = mountinfo.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4)
}

/// Whether systemd marked the group as delegated; it sets one attribute or the other by its version and privileges.
fn is_delegated(group: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0_u8; 8];
        rustix::fs::getxattr(group, *name, &mut value[..]).is_ok_and(|bytes| value[..bytes] == *b"1")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::spec::tests::sample;

    #[test]
    fn a_group_gets_its_limits() {
        let parent = tempfile::tempdir().unwrap();
        fs::write(parent.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let spec = sample();
        for _ in 0..2 {
            let group = create_below(parent.path(), &spec).unwrap();
            let read = |file: &str| fs::read_to_string(group.join(file)).unwrap();
            assert_eq!(read("memory.max"), (512_u64 << 20).to_string());
            assert_eq!(read("cpu.max"), "300000 100000");
            assert_eq!(read_limits(&group), Ok(Limits { memory_mib: 512, processors: 3 }));
        }
        let group = create_below(parent.path(), &spec).unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert!(read_limits(&group).unwrap_err().contains("does not limit memory"));
        assert!(limits_of(std::process::id(), &group).unwrap_err().contains("not in its control group"));
        assert_eq!(fs::read_to_string(parent.path().join("cgroup.subtree_control")).unwrap(), "+cpu +memory");
    }

    #[test]
    fn what_cannot_be_limited_is_said() {
        let parent = tempfile::tempdir().unwrap();
        let refused = |parent: &Path| create_below(parent, &sample()).err().unwrap();
        assert!(refused(parent.path()).contains("not a version 2 control group"));
        fs::write(parent.path().join("cgroup.controllers"), "cpu hugetlb\n").unwrap();
        assert!(refused(parent.path()).contains("no memory controller"));
    }

    #[test]
    fn the_mount_is_found() {
        let mounts = "1 2 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      3 2 0:2 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mounts), Some("/sys/fs/cgroup/unified"));
    }
}
