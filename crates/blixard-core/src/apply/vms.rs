//! Vms: what users ask for, what the scheduler decides, what nodes report.

use crate::limits::{self, STOP_TIMEOUT_MS_DEFAULT, VMS_MAX, room_for_one};
use crate::{
    Answer, Desired, NodeId, Observed, Outcome, Phase, Placement, Power, Rejection, State, UnixMs, Vm, VmId, VmName,
    VmSpec,
};

impl Vm {
    fn answer(&self) -> Outcome {
        Ok(Answer::Vm { id: self.id, run: self.desired.run })
    }

    /// Whether the present run is over and nothing but a user will begin another.
    pub(super) fn is_run_over(&self) -> bool {
        self.observed.as_ref().is_some_and(|observed| {
            let over = matches!(observed.phase, Phase::Stopped { .. } | Phase::Failed { retrying: false, .. });
            over && observed.run == self.desired.run
        })
    }

    fn begin_run(&mut self) {
        self.desired.power = Power::On;
        self.desired.run = self.desired.run.saturating_add(1);
    }
}

impl State {
    /// The vm, when users may still give it orders.
    fn vm_at_work(&mut self, id: VmId) -> Result<&mut Vm, Rejection> {
        let vm = self.vms.get_mut(&id).ok_or(Rejection::UnknownVm)?;
        if vm.desired.deleting { Err(Rejection::VmDeleting(vm.name.clone())) } else { Ok(vm) }
    }

    /// The vm, when it is placed on `node` under `epoch`.
    fn vm_placed(&mut self, id: VmId, node: NodeId, epoch: u64) -> Result<&mut Vm, Rejection> {
        let vm = self.vms.get_mut(&id).ok_or(Rejection::UnknownVm)?;
        if vm.placement == Some(Placement { node, epoch }) {
            Ok(vm)
        } else {
            Err(Rejection::StaleEpoch { epoch: vm.epoch })
        }
    }

    pub(super) fn create_vm(&mut self, id: VmId, name: &VmName, spec: &VmSpec, start: bool, at: UnixMs) -> Outcome {
        let image = self.images.get(&spec.image).ok_or(Rejection::UnknownImage)?;
        limits::spec(spec, image)?;
        if let Some(node) = spec.node.filter(|node| !self.nodes.contains_key(node)) {
            return Err(Rejection::UnknownNode(node));
        }
        if self.vms.contains_key(&id) {
            return limits::invalid(format!("a vm with the id {id} exists already"));
        }
        if self.vm_named(name).is_some() {
            return Err(Rejection::VmNameTaken(name.clone()));
        }
        room_for_one(self.vms.len(), VMS_MAX, "vms")?;
        let spec = VmSpec { image_name: image.name.clone(), ..spec.clone() };
        let stop_timeout_ms = STOP_TIMEOUT_MS_DEFAULT;
        let desired = Desired { power: Power::Off, run: 0, stop_timeout_ms, deleting: false };
        let mut vm =
            Vm { id, name: name.clone(), spec, desired, placement: None, epoch: 0, observed: None, created_at: at };
        if start {
            vm.begin_run();
        }
        let answer = vm.answer();
        self.vms.insert(id, vm);
        answer
    }

    /// A vm that runs, or is on its way to, keeps its run.
    pub(super) fn start_vm(&mut self, id: VmId) -> Outcome {
        let vm = self.vm_at_work(id)?;
        if vm.desired.power == Power::Off || vm.is_run_over() {
            vm.begin_run();
        }
        vm.answer()
    }

    /// A second stop can only make the guest's time shorter: whoever asks again is impatient.
    pub(super) fn stop_vm(&mut self, id: VmId, timeout_ms: u64) -> Outcome {
        limits::stop_timeout(timeout_ms)?;
        let vm = self.vm_at_work(id)?;
        let patience = match vm.desired.power {
            Power::On => timeout_ms,
            Power::Off => timeout_ms.min(vm.desired.stop_timeout_ms),
        };
        vm.desired.power = Power::Off;
        vm.desired.stop_timeout_ms = patience;
        vm.answer()
    }

    pub(super) fn restart_vm(&mut self, id: VmId, timeout_ms: u64) -> Outcome {
        limits::stop_timeout(timeout_ms)?;
        let vm = self.vm_at_work(id)?;
        vm.desired.stop_timeout_ms = timeout_ms;
        vm.begin_run();
        vm.answer()
    }

    /// A placed vm stays until its node has removed every file.
    pub(super) fn delete_vm(&mut self, id: VmId) -> Outcome {
        let vm = self.vms.get_mut(&id).ok_or(Rejection::UnknownVm)?;
        let answer = vm.answer();
        if vm.placement.is_some() {
            vm.desired.deleting = true;
            vm.desired.power = Power::Off;
        } else {
            self.vms.remove(&id);
        }
        answer
    }

    /// Everything but reachability is checked again: between the decision and now other commands were applied.
    pub(super) fn place_vm(&mut self, id: VmId, node: NodeId, epoch: u64) -> Outcome {
        let vm = self.vms.get(&id).ok_or(Rejection::UnknownVm)?;
        if vm.desired.deleting {
            return Err(Rejection::VmDeleting(vm.name.clone()));
        }
        if let Some(placement) = vm.placement {
            return Err(Rejection::AlreadyPlaced(placement.node));
        }
        if vm.epoch.checked_add(1) != Some(epoch) {
            return Err(Rejection::StaleEpoch { epoch: vm.epoch });
        }
        let member = self.nodes.get(&node).ok_or(Rejection::UnknownNode(node))?;
        self.can_carry(member, vm).map_err(|reason| Rejection::DoesNotFit { node, reason: reason.to_string() })?;
        let vm = self.vm_at_work(id)?;
        vm.epoch = epoch;
        vm.placement = Some(Placement { node, epoch });
        vm.observed = None;
        let answer = vm.answer();
        debug_assert!(self.is_within_capacity(id, node), "node {node} was given more than it offers");
        answer
    }

    /// Invariant 7, computed apart from the decision: nothing that the vm takes is now promised beyond what there is. What
    /// it takes nothing of may have been promised too often before, by a node that has shrunk since.
    fn is_within_capacity(&self, id: VmId, node: NodeId) -> bool {
        let (Some(vm), Some(member)) = (self.vms.get(&id), self.nodes.get(&node)) else { return false };
        let (takes, used, offered) = (vm.spec.resources(), self.used_on(node), member.capacity.promised());
        used.vcpus <= offered.vcpus
            && used.memory_mib <= offered.memory_mib
            && (takes.disk_mib == 0 || used.disk_mib <= offered.disk_mib)
    }

    pub(super) fn report_vm(&mut self, id: VmId, node: NodeId, observed: &Observed) -> Outcome {
        match &observed.phase {
            Phase::Stopped { reason: Some(reason) } | Phase::Failed { reason, .. } => limits::reason(reason)?,
            Phase::Stopped { reason: None } | Phase::Preparing | Phase::Running | Phase::Stopping => {}
        }
        let vm = self.vm_placed(id, node, observed.epoch)?;
        if observed.run > vm.desired.run {
            let (reported, desired) = (observed.run, vm.desired.run);
            return limits::invalid(format!(
                "run {reported} of vm {} was reported, and run {desired} is the last",
                vm.name
            ));
        }
        if vm.observed.as_ref().is_some_and(|known| known.run > observed.run) {
            return Err(Rejection::StaleEpoch { epoch: vm.epoch });
        }
        vm.observed = Some(observed.clone());
        Ok(Answer::Done)
    }

    pub(super) fn forget_vm(&mut self, id: VmId, node: NodeId, epoch: u64) -> Outcome {
        let vm = self.vm_placed(id, node, epoch)?;
        if !vm.desired.deleting {
            return limits::invalid(format!("vm {} is not being deleted", vm.name));
        }
        self.vms.remove(&id);
        Ok(Answer::Done)
    }
}
