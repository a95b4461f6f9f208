//! What to do about each vm.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, LocalImage, LocalView, LocalVm, LocalVmState, Order, Plan};
use crate::limits::REASON_BYTES_MAX;
use crate::{Change, ImageId, NodeId, Observed, Phase, Placement, Power, RestartPolicy, State, UnixMs, Vm, VmId};

/// What is added to the reason why a vm's folder cannot be used: nobody but a person can know whether its disk is.
const DAMAGED_ADVICE: &str =
    ". Its disk is left as it is in the vm's folder: restore that file, or delete the vm to give the disk up";

/// The wait before the first restart, in milliseconds; it doubles with each further one.
pub(crate) const BACKOFF_FIRST_MS: u64 = 1_000;
/// The longest wait before a restart, in milliseconds.
pub(crate) const BACKOFF_MAX_MS: u64 = 60_000;
/// A guest that ran this long, in milliseconds, was well: its next failure is counted as the first.
pub(crate) const WELL_AFTER_MS: u64 = 10 * 60 * 1000;

/// The images that vms here need, and whether one waits for it.
pub(super) type Needs = BTreeMap<ImageId, bool>;

/// On a node that is no longer a member nothing may run. Files stay: they may be all that is left of a vm, and whether they
/// are worth anything is for the operator to judge.
pub(super) fn expelled(local: &LocalView, plan: &mut Plan) {
    for (id, vm) in &local.vms {
        if matches!(vm.state, LocalVmState::Running { .. }) {
            plan.push(Action::Kill { vm: *id });
        }
    }
}

/// Plans for every vm that is here or should be, and says which images they need.
pub(super) fn reconcile(me: NodeId, state: &State, local: &LocalView, now: UnixMs, plan: &mut Plan) -> Needs {
    let mut needs = Needs::new();
    let ids: BTreeSet<VmId> = local.vms.keys().copied().chain(state.vms_on(me).map(|vm| vm.id)).collect();
    for id in ids {
        let here = local.vms.get(&id);
        let placed =
            state.vms.get(&id).and_then(|vm| vm.placement.filter(|placed| placed.node == me).map(|at| (vm, at)));
        match (placed, here) {
            (Some((_, at)), Some(found)) if found.epoch > at.epoch => {
                // The host knows of a later placement than the replica does: the replica has yet to catch up.
            }
            (Some((vm, at)), found) if !vm.desired.deleting && found.is_none_or(|found| belongs(found, at)) => {
                let image = local.images.get(&vm.spec.image);
                let manifest = state.images.get(&vm.spec.image).map(|image| &image.manifest);
                let is_bootable = local.bootable.contains(&vm.spec.image)
                    && manifest.is_some_and(|manifest| vm.spec.is_lazy(manifest));
                let reads_lazily = local.lazy.contains(&id);
                let mut desk = Desk { me, vm, at, image, is_bootable, reads_lazily, now, plan, needs: &mut needs };
                match vm.desired.power {
                    Power::On => desk.on(found),
                    Power::Off => desk.off(found),
                }
            }
            (Some((vm, at)), None) => {
                plan.push(Action::Propose(Change::ForgetVm { id: vm.id, node: me, epoch: at.epoch }))
            }
            (_, Some(found)) => clear(id, found, plan),
            (None, None) => {}
        }
    }
    needs
}

/// Whether what is on this host is of the vm's placement. A damaged record does not say; its folder may hold the vm's only disk.
fn belongs(found: &LocalVm, at: Placement) -> bool {
    found.epoch == at.epoch || matches!(found.state, LocalVmState::Damaged { .. })
}

/// A vm that does not belong here, or no longer: its guest ends first, then its files go.
fn clear(id: VmId, found: &LocalVm, plan: &mut Plan) {
    match found.state {
        LocalVmState::Busy { .. } => {}
        LocalVmState::Running { .. } => plan.push(Action::Kill { vm: id }),
        LocalVmState::Exited { .. } | LocalVmState::LaunchFailed { .. } | LocalVmState::Damaged { .. } => {
            plan.push(Action::Remove { vm: id });
        }
    }
}

/// One vm that belongs here, and what is needed to decide about it.
struct Desk<'a> {
    me: NodeId,
    vm: &'a Vm,
    at: Placement,
    image: Option<&'a LocalImage>,
    /// Whether enough of the image is here for this vm, though not all.
    is_bootable: bool,
    /// Whether its guest reads the image as it comes.
    reads_lazily: bool,
    now: UnixMs,
    plan: &'a mut Plan,
    needs: &'a mut Needs,
}

/// What became of a guest that ended by itself or never started.
struct Ending<'a> {
    is_failure: bool,
    reason: &'a str,
    at: UnixMs,
    /// How long ago that was, whatever the date says.
    ago_ms: u64,
    ran_ms: u64,
}

impl Desk<'_> {
    fn on(&mut self, found: Option<&LocalVm>) {
        let desired = self.vm.desired.run;
        match found {
            None => self.launch(0),
            Some(found) if found.run > desired => {
                // The replica has yet to catch up with what was launched.
            }
            Some(found) => match &found.state {
                LocalVmState::Busy { what } => self.report_busy(found, *what),
                LocalVmState::Damaged { reason } => self.report_damaged(reason, found.restarts),
                LocalVmState::Running { stopping, since } if found.run < desired => self.stop(found, *stopping, *since),
                LocalVmState::Running { stopping, since } => self.report_running(found, *stopping, *since),
                _ if found.run < desired => self.launch(0),
                // It was stopped for a reason of the node's own, such as a shutdown of the host: it goes on.
                LocalVmState::Exited { requested: true, .. } => self.launch(found.restarts),
                LocalVmState::Exited { clean, reason, at, ran_ms, .. } => {
                    let (at, ago_ms, ran_ms) = (*at, found.for_ms, *ran_ms);
                    self.ended(found, &Ending { is_failure: !clean, reason, at, ago_ms, ran_ms });
                }
                LocalVmState::LaunchFailed { reason, at } => {
                    let (at, ago_ms) = (*at, found.for_ms);
                    self.ended(found, &Ending { is_failure: true, reason, at, ago_ms, ran_ms: 0 });
                }
            },
        }
    }

    fn off(&mut self, found: Option<&LocalVm>) {
        // The image comes before it is needed, so that a start is quick.
        self.needs.entry(self.vm.spec.image).or_insert(false);
        let desired = self.vm.desired.run;
        let Some(found) = found else {
            return self.report(desired, 0, Phase::Stopped { reason: None }, None);
        };
        if found.run > desired {
            return;
        }
        match &found.state {
            LocalVmState::Busy { what } => self.report_busy(found, *what),
            LocalVmState::Running { stopping, since } => self.stop(found, *stopping, *since),
            LocalVmState::Exited { reason, at, .. } | LocalVmState::LaunchFailed { reason, at } => {
                let phase = Phase::Stopped { reason: Some(cut(reason)) };
                self.report(desired, found.restarts, phase, Some(*at));
            }
            LocalVmState::Damaged { reason } => self.report_damaged(reason, found.restarts),
        }
    }

    /// Asks the guest to shut down and, when its time is over, ends it. The deadline is worked out from the state each
    /// time, so a second and more impatient stop moves it.
    fn stop(&mut self, found: &LocalVm, stopping: bool, since: UnixMs) {
        let timeout_ms = self.vm.desired.stop_timeout_ms;
        if !stopping {
            return self.plan.push(Action::Stop { vm: self.vm.id, timeout_ms });
        }
        match due(found.for_ms, timeout_ms, self.now) {
            None => self.plan.push(Action::Kill { vm: self.vm.id }),
            Some(deadline) => {
                self.plan.look_again(deadline);
                self.report_running(found, stopping, since);
            }
        }
    }

    /// Launches the desired run, or gets the image first.
    fn launch(&mut self, restarts: u32) {
        let run = self.vm.desired.run;
        self.needs.insert(self.vm.spec.image, true);
        match self.image {
            _ if self.is_ready() => {
                self.plan.push(Action::Launch { vm: self.vm.id, epoch: self.at.epoch, run, restarts });
            }
            Some(LocalImage::Fetching { failure: Some(reason), .. }) => {
                let reason = cut(&format!("image {} could not be fetched: {reason}", self.vm.spec.image_name));
                self.report(run, restarts, Phase::Failed { reason, retrying: true }, None);
            }
            _ => self.report(run, restarts, Phase::Preparing, None),
        }
    }

    /// Whether there is enough of the image to start from.
    fn is_ready(&self) -> bool {
        match self.image {
            Some(LocalImage::Complete) => true,
            Some(LocalImage::Fetching { .. }) => self.is_bootable,
            Some(LocalImage::Importing | LocalImage::Leaving) | None => false,
        }
    }

    /// A guest that reads its image as it comes needs the rest more than anybody, and nobody but the file once that is whole.
    fn look_after_lazy(&mut self) {
        if !self.reads_lazily {
            return;
        }
        self.needs.insert(self.vm.spec.image, true);
        if self.image == Some(&LocalImage::Complete) {
            self.plan.push(Action::Settle { vm: self.vm.id });
        }
    }

    /// The restart policy: whether a guest that ended by itself is launched again, and when.
    fn ended(&mut self, found: &LocalVm, ending: &Ending<'_>) {
        let in_a_row = if ending.ran_ms >= WELL_AFTER_MS { 0 } else { found.restarts };
        let again = match self.vm.spec.restart {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure { limit } => ending.is_failure && in_a_row < limit,
            RestartPolicy::Always => true,
        };
        if again {
            match due(ending.ago_ms, backoff_ms(in_a_row), self.now) {
                None => return self.launch(in_a_row.saturating_add(1)),
                Some(restart) => self.plan.look_again(restart),
            }
        }
        let reason = cut(ending.reason);
        let phase = if again || ending.is_failure {
            Phase::Failed { reason, retrying: again }
        } else {
            Phase::Stopped { reason: Some(reason) }
        };
        self.report(found.run, found.restarts, phase, Some(ending.at));
    }

    fn report_busy(&mut self, found: &LocalVm, what: Order) {
        let phase = match what {
            Order::Prepare | Order::Launch => Phase::Preparing,
            // The guest runs meanwhile as if nothing were done.
            Order::Settle => return,
            Order::Stop | Order::Kill | Order::Remove => Phase::Stopping,
        };
        self.report(found.run, found.restarts, phase, None);
    }

    fn report_running(&mut self, found: &LocalVm, stopping: bool, since: UnixMs) {
        self.look_after_lazy();
        let phase = if stopping { Phase::Stopping } else { Phase::Running };
        self.report(found.run, found.restarts, phase, Some(since));
    }

    fn report_damaged(&mut self, reason: &str, restarts: u32) {
        let room = REASON_BYTES_MAX - DAMAGED_ADVICE.len();
        let told = reason.get(..reason.floor_char_boundary(room)).unwrap_or_default();
        let phase = Phase::Failed { reason: format!("{told}{DAMAGED_ADVICE}"), retrying: false };
        self.report(self.vm.desired.run, restarts, phase, None);
    }

    /// Proposes a report when the state does not say the same already. Without a time of its own a report is dated now, and
    /// is no news for its date alone.
    fn report(&mut self, run: u64, restarts: u32, phase: Phase, since: Option<UnixMs>) {
        if let Some(known) = &self.vm.observed {
            let is_same = known.run == run && known.restarts == restarts && known.phase == phase;
            let is_as_old = since.is_none_or(|since| since == known.since);
            // A report on an earlier run than the last would be refused.
            if (is_same && is_as_old) || run < known.run {
                return;
            }
        }
        let observed = Observed { epoch: self.at.epoch, run, phase, since: since.unwrap_or(self.now), restarts };
        self.plan.push(Action::Propose(Change::ReportVm { id: self.vm.id, node: self.me, observed }));
    }
}

/// When a wait of `wait_ms` that began `ago_ms` ago will be over; nothing when it is.
fn due(ago_ms: u64, wait_ms: u64, now: UnixMs) -> Option<UnixMs> {
    (ago_ms < wait_ms).then(|| now.plus_ms(wait_ms - ago_ms))
}

fn backoff_ms(restarts: u32) -> u64 {
    BACKOFF_FIRST_MS.saturating_mul(1_u64.checked_shl(restarts).unwrap_or(u64::MAX)).min(BACKOFF_MAX_MS)
}

/// A reason cut to the length that the state takes, at a character's edge.
fn cut(reason: &str) -> String {
    reason.get(..reason.floor_char_boundary(REASON_BYTES_MAX)).unwrap_or_default().to_owned()
}
