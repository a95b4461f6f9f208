//! Whether an order to launch is current: the same judgement for every driver.

use crate::driver::LaunchError;
use crate::observed::{ObservedVm, VmState};
use crate::spec::LaunchSpec;

/// How an order to launch stands to what is seen of its vm.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing is in its way.
    MayStart,
    /// It has been carried out.
    RunsAlready,
    /// It is being carried out.
    Starting,
}

/// Judges an order. Epoch and run only rise, so an order for an earlier one comes from somebody who missed something.
pub(crate) fn standing(seen: &ObservedVm, spec: &LaunchSpec) -> Result<Standing, LaunchError> {
    let (epoch, run) = (seen.epoch, seen.run);
    let is_same = (epoch, run) == (spec.epoch, spec.run);
    match &seen.state {
        VmState::Damaged { detail } => Err(LaunchError::Unsuitable {
            detail: format!("a record of the vm is damaged ({detail}); delete the vm and create it anew"),
        }),
        _ if (epoch, run) > (spec.epoch, spec.run) => Err(LaunchError::Stale { epoch, run }),
        VmState::Running(_) if is_same => Ok(Standing::RunsAlready),
        VmState::Starting if is_same => Ok(Standing::Starting),
        VmState::Running(_) | VmState::Starting => Err(LaunchError::AnotherRun { epoch, run }),
        // A run that has ended may be begun again: that is what a restart policy does.
        VmState::Exited { .. } => Ok(Standing::MayStart),
    }
}
