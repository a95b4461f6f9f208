//! What is on this host, in the words of the plan.

use anyhow::Context;
use blixard_core::{LocalImage, LocalView, LocalVm, LocalVmState, UnixMs, VmId};
use blixard_hypervisor::{ExitReason, ObservedVm, VmState};

use super::{Agent, Desk};
use crate::clock;
use crate::transfers::{Priority, TransferState, TransferStatus};

/// A guest that reboots sooner than this after its start, in milliseconds, likely panicked, and the restart policy slows it
/// down; one that reboots later did so on purpose and is started again at once.
const REBOOT_LOOP_MS: u64 = 30_000;

/// A launch that failed in this process. The driver keeps no record of what never ran.
#[derive(Debug, Clone)]
pub(super) struct LaunchFailure {
    pub(super) epoch: u64,
    pub(super) run: u64,
    pub(super) restarts: u32,
    pub(super) reason: String,
    pub(super) at: UnixMs,
}

/// What a driver sees, in the words of the plan. `stopping_since` is when this process first saw the guest asked to stop.
fn local_state(state: VmState, stopping_since: UnixMs) -> LocalVmState {
    match state {
        VmState::Starting => LocalVmState::Busy { what: blixard_core::Order::Launch },
        VmState::Running(running) if running.stopping => {
            LocalVmState::Running { stopping: true, since: stopping_since }
        }
        VmState::Running(running) => LocalVmState::Running { stopping: false, since: UnixMs(running.since_ms) },
        VmState::Exited { reason: ExitReason::LaunchFailed { detail }, at_ms, .. } => {
            LocalVmState::LaunchFailed { reason: detail, at: UnixMs(at_ms) }
        }
        VmState::Exited { reason, at_ms, ran_ms } => {
            let rebooted = reason == ExitReason::GuestRebooted && ran_ms >= REBOOT_LOOP_MS;
            let ordered = matches!(reason, ExitReason::Stopped | ExitReason::Forced { .. } | ExitReason::Killed);
            LocalVmState::Exited {
                clean: reason.is_intended(),
                requested: rebooted || ordered,
                reason: reason.to_string(),
                at: UnixMs(at_ms),
                ran_ms,
            }
        }
        VmState::Damaged { detail } => LocalVmState::Damaged { reason: detail },
    }
}

/// What a vm is told that waits for an image which does not come.
fn why_it_waits(status: &TransferStatus) -> Option<String> {
    if status.state == TransferState::Paused {
        return Some("it is paused on this node; `blixard transfer resume` lets it go on".to_owned());
    }
    status.failure.as_ref().map(|failure| failure.reason.clone())
}

impl Agent {
    /// Everything on this host that a plan is about.
    pub(super) async fn observe(&self) -> anyhow::Result<LocalView> {
        let mut view = LocalView::default();
        for ObservedVm { vm, epoch, run, restarts, state, .. } in
            self.blocking(|driver| driver.list()).await.context("list the vms on this host")?
        {
            match vm.parse::<VmId>() {
                Ok(id) => {
                    // The guard carries out the stop; the plan forces it at the same deadline, for a guard that does not.
                    let stopping_since = {
                        let mut desk = self.desk();
                        if matches!(&state, VmState::Running(running) if running.stopping) {
                            *desk.stopping.entry(id).or_insert_with(clock::now)
                        } else {
                            desk.stopping.remove(&id);
                            clock::now()
                        }
                    };
                    if matches!(&state, VmState::Running(running) if running.lazy) {
                        view.lazy.insert(id);
                    }
                    let state = local_state(state, stopping_since);
                    view.vms.insert(id, LocalVm { epoch, run, restarts, state, for_ms: 0 });
                }
                Err(_) => tracing::debug!(vm, "a folder among the vms is not one of a vm"),
            }
        }
        self.observe_images(&mut view).await.context("look at the images on this host")?;
        view.boots = self.boots_seen();
        let mut desk = self.desk();
        // A launch that failed counts until something newer is there for the vm.
        desk.launch_failures.retain(|id, failure| {
            let newer = view.vms.get(id).is_some_and(|vm| {
                let found = (vm.epoch, vm.run, vm.restarts);
                found > (failure.epoch, failure.run, failure.restarts)
                    || (found == (failure.epoch, failure.run, failure.restarts)
                        && matches!(vm.state, LocalVmState::Running { .. }))
            });
            if !newer {
                let state = LocalVmState::LaunchFailed { reason: failure.reason.clone(), at: failure.at };
                let LaunchFailure { epoch, run, restarts, .. } = *failure;
                view.vms.insert(*id, LocalVm { epoch, run, restarts, state, for_ms: 0 });
            }
            !newer
        });
        for (id, order) in &desk.orders {
            let known = view.vms.get(id);
            let (epoch, run, restarts) =
                order.launching.unwrap_or_else(|| known.map_or((0, 0, 0), |vm| (vm.epoch, vm.run, vm.restarts)));
            let state = LocalVmState::Busy { what: order.order };
            view.vms.insert(*id, LocalVm { epoch, run, restarts, state, for_ms: 0 });
        }
        let steady_ms = u64::try_from(self.inner.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        desk.ages.fill_in(&mut view, clock::now(), steady_ms);
        Ok(view)
    }

    async fn observe_images(&self, view: &mut LocalView) -> anyhow::Result<()> {
        let kept = self.inner.images.kept().await?;
        let importing = {
            let mut desk = self.desk();
            desk.complete.retain(|image| kept.contains(image));
            desk.booting.retain(|image, _| kept.contains(image));
            let Desk { ahead, complete, .. } = &mut *desk;
            ahead.retain(|image, _| kept.contains(image) && !complete.contains(image));
            desk.importing.clone()
        };
        for image in kept {
            if self.desk().complete.contains(&image) {
                view.images.insert(image, LocalImage::Complete);
                continue;
            }
            let found = match self.inner.transfers.status(image) {
                // One whose time was up is not on its way any more.
                Some(status) if !status.is_expired => {
                    self.refresh_sources(image, status.priority);
                    let urgent = status.priority == Priority::VmWaiting;
                    self.look_ahead(image);
                    if self.look_at_beginning(image).await {
                        view.bootable.insert(image);
                    }
                    Some(LocalImage::Fetching { urgent, failure: why_it_waits(&status) })
                }
                _ => {
                    let manifest = self.inner.raft.read(|state| state.images.get(&image).map(|i| i.manifest.clone()));
                    match manifest {
                        Some(manifest) if self.inner.images.is_complete(&manifest).await? => {
                            self.desk().complete.insert(image);
                            Some(LocalImage::Complete)
                        }
                        // Begun before this process, or failed for good: the plan orders it anew if it is still needed.
                        Some(_) => None,
                        // Not in the catalog: what is left of a deleted image, unless it is just being added.
                        None => Some(LocalImage::Complete),
                    }
                }
            };
            if let Some(found) = found {
                view.images.insert(image, found);
            }
        }
        for image in importing {
            view.images.insert(image, LocalImage::Importing);
        }
        for image in &self.desk().leaving {
            view.images.insert(*image, LocalImage::Leaving);
        }
        Ok(())
    }
}
