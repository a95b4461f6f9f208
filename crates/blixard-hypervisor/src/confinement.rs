//! What holds a hypervisor back, read from the kernel while it runs and not from what was meant to be.

use std::fs;

use rustix::thread::CapabilitySet;

use crate::folder::GuardRecord;
use crate::host::cgroup;
use crate::observed::{Confinement, Privileges};

/// Filter mode in the `Seccomp` line of proc(5).
const SECCOMP_FILTER: &str = "2";

/// Looks at the hypervisor of a run.
pub(crate) fn observe(record: &GuardRecord) -> Confinement {
    let pid = record.hypervisor.pid;
    // A process that has just ended leaves nothing to read; the next look finds its end.
    let privileges = fs::read_to_string(format!("/proc/{pid}/status")).ok().and_then(|status| parse_status(&status));
    let limits = match &record.group {
        Some(group) => cgroup::limits_of(pid, group),
        None => Err(record.unlimited.clone().unwrap_or_else(|| "they were not written down".into())),
    };
    let (limits, unlimited) = match limits {
        Ok(limits) => (Some(limits), None),
        Err(why) => (None, Some(why)),
    };
    Confinement { privileges, shared_user: record.shared_user.clone(), limits, unlimited }
}

fn parse_status(status: &str) -> Option<Privileges> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim())
    };
    // Real, effective, saved and file system id; the second is what counts for access.
    let effective = |name: &str| field(name)?.split_ascii_whitespace().nth(1)?.parse().ok();
    let groups = field("Groups")?.split_ascii_whitespace();
    let capabilities = CapabilitySet::from_bits_retain(u64::from_str_radix(field("CapEff")?, 16).ok()?);
    Some(Privileges {
        user: effective("Uid")?,
        group: effective("Gid")?,
        groups: groups.filter_map(|group| group.parse().ok()).collect(),
        capabilities: names(capabilities),
        no_new_privileges: field("NoNewPrivs")? == "1",
        system_call_filter: field("Seccomp")? == SECCOMP_FILTER,
    })
}

fn names(capabilities: CapabilitySet) -> Vec<String> {
    let mut named = capabilities.iter_names();
    let mut names: Vec<String> = named.by_ref().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let unknown = named.remaining().bits();
    names.extend((0..u64::BITS).filter(|bit| unknown >> bit & 1 == 1).map(|bit| format!("capability {bit}")));
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let status = "Name:\tqemu\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t108 109 \nCapInh:\t0000000000000000\n\
                      CapEff:\t8000000000000401\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let seen = parse_status(status).unwrap();
        let expected = Privileges {
            user: 2,
            group: 6,
            groups: vec![108, 109],
            capabilities: vec!["chown".into(), "net_bind_service".into(), "capability 63".into()],
            no_new_privileges: true,
            system_call_filter: true,
        };
        assert_eq!(seen, expected);
        let open = status.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0").replace("Seccomp:\t2", "Seccomp:\t0");
        let open = parse_status(&open).unwrap();
        assert!(!open.no_new_privileges && !open.system_call_filter);
        assert_eq!(parse_status("Name:\tqemu\n"), None);
    }

    #[test]
    fn a_real_process_is_read() {
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let seen = parse_status(&own).unwrap();
        assert_eq!(seen.user, nix::unistd::geteuid().as_raw());
        assert_eq!(seen.group, nix::unistd::getegid().as_raw());
    }
}
