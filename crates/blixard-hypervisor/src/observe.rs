//! From the records in a vm's folder, and the processes that they name, to what the vm is doing.

use crate::confinement;
use crate::folder::{ExitRecord, Folder, GuardRecord, now_ms};
use crate::identity::boot_id;
use crate::observed::{ExitReason, ObservedVm, Running, VmState};

/// What was seen, and what a driver needs to act on it.
pub(crate) struct Observation {
    pub(crate) vm: ObservedVm,
    /// The guard's record, while its guard lives.
    pub(crate) guard: Option<GuardRecord>,
}

/// Looks at a vm. With `is_held` the caller holds the vm, so that nobody else acts on it: then an end that nobody was
/// there to write down is written down now, and a launch without a guard is not under way but was interrupted. None
/// where there is no vm.
pub(crate) fn observe(folder: &Folder, id: &str, is_held: bool) -> Option<Observation> {
    if !folder.exists() {
        return None;
    }
    let (name, epoch, run, restarts, result) = match folder.spec() {
        Ok(Some(spec)) => {
            let result = state(folder, spec.epoch, spec.run, is_held);
            (spec.name, spec.epoch, spec.run, spec.restarts, result)
        }
        // The folder is made before its first record.
        Ok(None) => (String::new(), 0, 0, 0, Ok((without_guard(is_held), None))),
        Err(error) => (String::new(), 0, 0, 0, Err(error.to_string())),
    };
    let (state, guard) = result.unwrap_or_else(|detail| (VmState::Damaged { detail }, None));
    let last_exit = folder.last_exit();
    Some(Observation { vm: ObservedVm { vm: id.to_owned(), name, epoch, run, restarts, last_exit, state }, guard })
}

fn state(folder: &Folder, epoch: u64, run: u64, is_held: bool) -> Result<(VmState, Option<GuardRecord>), String> {
    if let Some(state) = ended(folder, epoch, run)? {
        return Ok((state, None));
    }
    let record = folder.guard().map_err(|error| error.to_string())?;
    let Some(record) = record.filter(|record| (record.epoch, record.run) == (epoch, run)) else {
        return Ok((without_guard(is_held), None));
    };
    if record.guard.is_alive() {
        let state = if record.ready { VmState::Running(running(&record)) } else { VmState::Starting };
        return Ok((state, Some(record)));
    }
    // The guard may have written its last record after we looked for it and before we looked for the guard.
    if let Some(state) = ended(folder, epoch, run)? {
        return Ok((state, None));
    }
    let has_restarted = boot_id().is_ok_and(|boot_id| boot_id != record.guard.boot_id);
    let reason = if has_restarted { ExitReason::HostRestarted } else { ExitReason::GuardDied };
    let at_ms = now_ms();
    let ran_ms = at_ms.saturating_sub(record.since_ms);
    let exit = ExitRecord { epoch, run, reason: reason.clone(), at_ms, ran_ms };
    if is_held {
        // When it cannot be written (a full disk) the next look finds the same, with a later time.
        let _ = folder.write_exit(&exit);
    }
    Ok((VmState::Exited { reason, at_ms, ran_ms }, None))
}

fn ended(folder: &Folder, epoch: u64, run: u64) -> Result<Option<VmState>, String> {
    let exit = folder.exit().map_err(|error| error.to_string())?;
    let exit = exit.filter(|exit| (exit.epoch, exit.run) == (epoch, run));
    Ok(exit.map(|exit| VmState::Exited { reason: exit.reason, at_ms: exit.at_ms, ran_ms: exit.ran_ms }))
}

fn running(record: &GuardRecord) -> Running {
    Running {
        pid: record.hypervisor.pid,
        since_ms: record.since_ms,
        stopping: record.stopping,
        lazy: record.lazy,
        accelerator: record.accelerator,
        confinement: confinement::observe(record),
    }
}

fn without_guard(is_held: bool) -> VmState {
    if !is_held {
        return VmState::Starting;
    }
    let detail = "it was interrupted before a guard had taken over".to_owned();
    VmState::Exited { reason: ExitReason::LaunchFailed { detail }, at_ms: 0, ran_ms: 0 }
}
