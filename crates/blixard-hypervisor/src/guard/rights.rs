//! Which user a hypervisor runs as, and what that user may do.
//!
//! A node that runs as root gives each hypervisor a user of its own: the number [`GUEST_USERS_FIRST`] and the process id
//! of its guard. While a guard lives nobody else has its process id, so no two guests on a host share a user, not even
//! those of two nodes, and nothing has to be handed out or given back. Such a user owns no file. The guard opens what
//! the guest needs and hands it over as descriptors (see `files.rs`), so neither the modes of the folders above matter
//! nor who was the user of an earlier run.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::geteuid;
use rustix::thread::CapabilitySet;

use crate::folder::Plan;
use crate::observed::Accelerator;
use crate::process::{Account, Rights};

/// The first of the users that guests run as. No distribution, directory service or container manager hands out numbers
/// from 1,879,048,192 to 2,147,352,575.
const GUEST_USERS_FIRST: u32 = 2_100_000_000;
const KVM: &str = "/dev/kvm";
/// Ports below this need a capability, unless the host says otherwise.
const PRIVILEGED_PORTS_END: u16 = 1024;

/// Chooses the rights of a run's hypervisor; beside them, why it has no user of its own when it has none.
pub(super) fn choose(plan: &Plan) -> (Rights, Option<String>) {
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let account = account(plan.accelerator, held);
    // What a user may publish does not depend on how well its guest is confined.
    let binds = plan.lowest_port.is_some_and(|port| port < privileged_ports_end());
    let keeps_bind = binds && held.contains(CapabilitySet::NET_BIND_SERVICE);
    match account {
        Ok(account) => (Rights { account: Some(account), keeps_bind }, None),
        Err(why) => (Rights { account: None, keeps_bind }, Some(why)),
    }
}

fn account(accelerator: Accelerator, held: CapabilitySet) -> Result<Account, String> {
    if !geteuid().is_root() {
        return Err("the node does not run as root, and only root can give a guest a user of its own".into());
    }
    if !held.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
        return Err("the node runs without the capabilities setuid and setgid".into());
    }
    let id = GUEST_USERS_FIRST + std::process::id();
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let text = fs::read_to_string(map).map_err(|error| format!("read {map}: {error}"))?;
        if !maps(&text, id) {
            return Err(format!("the node runs in a user namespace without the numbers from {GUEST_USERS_FIRST} on"));
        }
    }
    let mut groups = vec![];
    if accelerator == Accelerator::Kvm {
        let meta = fs::metadata(KVM).map_err(|error| format!("look at {KVM}: {error}"))?;
        groups.extend(kvm_group(meta.mode(), meta.gid())?);
    }
    Ok(Account { id, groups })
}

/// The group that a user must be in to use a device, if any; an error where no group can.
fn kvm_group(mode: u32, group: u32) -> Result<Option<u32>, String> {
    match (mode & 0o006 == 0o006, mode & 0o060 == 0o060) {
        (true, _) => Ok(None),
        // Root's group may do too much elsewhere.
        (false, true) if group != 0 => Ok(Some(group)),
        _ => {
            Err(format!("{KVM} is closed to all but root; give it to a group of its own, such as kvm, with mode 0660"))
        }
    }
}

/// Whether a user namespace has a number, by its map: first inside, first outside, and how many.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().filter_map(|number| number.parse::<u64>().ok());
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        first.zip(count).is_some_and(|(first, count)| (first..first + count).contains(&u64::from(id)))
    })
}

fn privileged_ports_end() -> u16 {
    let text = fs::read_to_string(Path::new("/proc/sys/net/ipv4/ip_unprivileged_port_start"));
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(PRIVILEGED_PORTS_END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_decides_the_group() {
        assert_eq!(kvm_group(0o020_666, 0), Ok(None));
        assert_eq!(kvm_group(0o020_660, 108), Ok(Some(108)));
        for (mode, group) in [(0o020_600, 0), (0o020_660, 0), (0o020_600, 108), (0o020_640, 108)] {
            assert!(kvm_group(mode, group).is_err_and(|why| why.contains("/dev/kvm")), "{mode:o} {group}");
        }
    }

    #[test]
    fn a_namespace_has_the_numbers_that_it_maps() {
        assert!(maps("         0          0 4294967295\n", GUEST_USERS_FIRST));
        assert!(!maps("         0     100000      65536\n", GUEST_USERS_FIRST));
        assert!(maps("0 100000 65536\n2100000000 5 10\n", GUEST_USERS_FIRST + 9));
        assert!(!maps("0 100000 65536\n2100000000 5 10\n", GUEST_USERS_FIRST + 10));
        assert!(!maps("", 0));
    }

    #[test]
    fn no_process_id_leads_out_of_the_range() {
        // The kernel's own limit on process ids, and the end of the numbers that nobody hands out.
        assert!(u64::from(GUEST_USERS_FIRST) + (1 << 22) <= 2_147_352_575);
    }
}
