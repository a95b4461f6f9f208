//! How long vms have been as they are.
//!
//! Records on a host are dated by its wall clock, which people and time servers set, back and forth. A wait that is worked out
//! from two of its readings may then be over at once, or never: a guest would be ended before its time to shut down is up. So an
//! agent notes when it first saw what it sees, by a clock that only goes forward. The dates count only for what happened before
//! its process began.

use std::collections::BTreeMap;

use super::{LocalView, LocalVm, LocalVmState};
use crate::{UnixMs, VmId};

/// What an agent remembers for this from one look to the next; lost with its process.
#[derive(Debug, Default)]
pub struct Ages {
    vms: BTreeMap<VmId, Age>,
    /// When it looked last, by the steady clock.
    looked_ms: Option<u64>,
}

#[derive(Debug)]
struct Age {
    was: LocalVm,
    /// When this was first seen, by the steady clock.
    first_seen_ms: u64,
}

impl Ages {
    /// Fills in how long each vm has been as it is, as of a look at the time `now`, which was `steady_ms` by a clock that only
    /// goes forward.
    pub fn fill_in(&mut self, local: &mut LocalView, now: UnixMs, steady_ms: u64) {
        self.vms.retain(|id, _| local.vms.contains_key(id));
        for (id, vm) in &mut local.vms {
            // At first sight; what was not there at the last look began after that.
            let since_last_look = self.looked_ms.map_or(u64::MAX, |looked_ms| steady_ms.saturating_sub(looked_ms));
            vm.for_ms = match dated(&vm.state) {
                Some(date) if date <= now => now.since_ms(date).min(since_last_look),
                // Nobody can say how long ago a date that lies ahead was, and no vm should wait for it.
                Some(_) => since_last_look,
                None => 0,
            };
            if matches!(vm.state, LocalVmState::Busy { .. }) {
                // What is being done may fail, and the vm then is as it was all the time.
                continue;
            }
            let age = self.vms.entry(*id).or_insert_with(|| Age { was: vm.clone(), first_seen_ms: steady_ms });
            let at_first = LocalVm { for_ms: age.was.for_ms, ..vm.clone() };
            if at_first == age.was {
                vm.for_ms = age.was.for_ms.saturating_add(steady_ms.saturating_sub(age.first_seen_ms));
            } else {
                *age = Age { was: vm.clone(), first_seen_ms: steady_ms };
            }
        }
        self.looked_ms = Some(steady_ms);
    }
}

/// Since when the host's records say that it is like this.
fn dated(state: &LocalVmState) -> Option<UnixMs> {
    match state {
        LocalVmState::Running { since, .. } => Some(*since),
        LocalVmState::Exited { at, .. } | LocalVmState::LaunchFailed { at, .. } => Some(*at),
        LocalVmState::Busy { .. } | LocalVmState::Damaged { .. } => None,
    }
}
