//! A host of the simulation: a replica of the state, and a toy hypervisor that insists on being used rightly.

use std::collections::BTreeMap;

use blixard_core::{
    Action, Change, Command, ImageId, LocalImage, LocalView, LocalVm, LocalVmState, NodeId, Order, State, UnixMs, VmId,
    reconcile,
};

use super::dice::Dice;

/// A vm on the host: what it is, what is being done to it, and what it was before that.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) local: LocalVm,
    /// The order that is being carried out, and when it will be.
    order: Option<(Order, u64)>,
    /// When a guest that was asked to shut down does so; some never do.
    obeys_at: Option<u64>,
    started_at: u64,
    before: Option<Box<Guest>>,
}

impl Guest {
    /// Whether its hypervisor runs, or may.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.local.state, LocalVmState::Running { .. })
            || self.order.is_some_and(|(what, _)| what == Order::Launch)
    }

    fn since(&self) -> u64 {
        match &self.local.state {
            LocalVmState::Running { since, .. } => since.0,
            LocalVmState::Exited { at, .. } | LocalVmState::LaunchFailed { at, .. } => at.0,
            LocalVmState::Busy { .. } | LocalVmState::Damaged { .. } => unreachable!("the toy shows these otherwise"),
        }
    }

    fn exit(&mut self, clean: bool, requested: bool, now: u64) {
        let ran_ms = now - self.started_at;
        let reason = if clean { "shut down" } else { "crashed" }.to_owned();
        self.local.state = LocalVmState::Exited { clean, requested, reason, at: UnixMs(now), ran_ms };
        self.obeys_at = None;
    }
}

pub(crate) struct Host {
    pub(crate) id: NodeId,
    /// Whether the node's process runs. Guests live on without it.
    pub(crate) is_up: bool,
    /// A host that is gone for good.
    pub(crate) is_dead: bool,
    pub(crate) replica: State,
    pub(crate) applied: usize,
    pub(crate) guests: BTreeMap<VmId, Guest>,
    pub(crate) images: BTreeMap<ImageId, LocalImage>,
    /// The images that a user is importing, and how much of the log must be applied before they count as imported.
    imports: BTreeMap<ImageId, usize>,
    /// Whether anything has changed here since the agent last looked.
    pub(crate) is_stirred: bool,
    /// When the fetches that are under way will end.
    fetches: BTreeMap<ImageId, u64>,
    /// Proposals that have not been answered: the agent does not repeat them.
    pub(crate) in_flight: Vec<Change>,
    pub(crate) look_again_at: Option<u64>,
}

impl Host {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            is_up: true,
            is_dead: false,
            replica: State::default(),
            applied: 0,
            guests: BTreeMap::new(),
            images: BTreeMap::new(),
            imports: BTreeMap::new(),
            is_stirred: true,
            fetches: BTreeMap::new(),
            in_flight: Vec::new(),
            look_again_at: None,
        }
    }

    pub(crate) fn follow(&mut self, log: &[Command], to: usize) {
        for command in log.iter().take(to).skip(self.applied) {
            let _ = self.replica.apply(command);
        }
        self.is_stirred |= to > self.applied;
        self.applied = self.applied.max(to);
        let applied = self.applied;
        let done: Vec<ImageId> = self.imports.iter().filter(|(_, at)| **at <= applied).map(|(id, _)| *id).collect();
        for image in done {
            self.imports.remove(&image);
            self.images.insert(image, LocalImage::Complete);
        }
    }

    /// Imports an image that is not here; its command is the last of the log by then.
    pub(crate) fn import(&mut self, image: ImageId, log_len: usize) {
        self.images.insert(image, LocalImage::Importing);
        self.imports.insert(image, log_len);
        self.is_stirred = true;
    }

    /// The earliest thing that will happen here by itself.
    pub(crate) fn next_event(&self) -> Option<u64> {
        let orders = self.guests.values().flat_map(|guest| [guest.order.map(|(_, at)| at), guest.obeys_at]).flatten();
        let mut events: Vec<u64> = orders.chain(self.fetches.values().copied()).collect();
        if self.is_up {
            events.extend(self.look_again_at);
        }
        events.into_iter().min()
    }

    /// Lets happen what is due. With faults, launches and fetches may fail and guests may end by themselves.
    pub(crate) fn pass(&mut self, now: u64, faults: bool, dice: &mut Dice) {
        let ids: Vec<VmId> = self.guests.keys().copied().collect();
        for id in ids {
            let Some(guest) = self.guests.get_mut(&id) else { continue };
            let is_due = |at: Option<u64>| at.is_some_and(|at| at <= now);
            self.is_stirred |= faults || is_due(guest.obeys_at) || is_due(guest.order.map(|(_, at)| at));
            if is_due(guest.obeys_at) {
                guest.exit(true, true, now);
            }
            match guest.order {
                Some((what, at)) if at <= now => self.finish(id, what, now, faults && dice.one_in(6)),
                Some(_) => {}
                None if faults && guest.is_alive() && dice.one_in(25) => guest.exit(dice.one_in(2), false, now),
                None => {}
            }
        }
        let due: Vec<ImageId> = self.fetches.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in due {
            self.is_stirred = true;
            if faults && dice.one_in(4) {
                self.fetches.insert(id, now + 90_000);
                let Some(LocalImage::Fetching { failure, .. }) = self.images.get_mut(&id) else { continue };
                *failure = Some("a fault".to_owned());
                continue;
            }
            self.fetches.remove(&id);
            self.images.insert(id, LocalImage::Complete);
        }
    }

    fn finish(&mut self, id: VmId, what: Order, now: u64, fails: bool) {
        let Some(guest) = self.guests.get_mut(&id) else { return };
        guest.order = None;
        guest.before = None;
        match what {
            Order::Settle => unreachable!("no vm here is lazy"),
            Order::Launch if fails => {
                guest.local.state = LocalVmState::LaunchFailed { reason: "no luck".into(), at: UnixMs(now) };
            }
            Order::Launch => {
                guest.started_at = now;
                guest.local.state = LocalVmState::Running { stopping: false, since: UnixMs(now) };
            }
            Order::Kill => guest.exit(false, true, now),
            Order::Remove => {
                self.guests.remove(&id);
            }
            Order::Prepare | Order::Stop => unreachable!("the toy does these at once"),
        }
    }

    /// The node's process dies; orders under way were carried out just before, or never. Without `power` all guests die too.
    pub(crate) fn crash(&mut self, power: bool, now: u64, dice: &mut Dice) {
        self.is_up = false;
        self.in_flight.clear();
        let ids: Vec<VmId> = self.guests.keys().copied().collect();
        for id in ids {
            let Some(guest) = self.guests.get_mut(&id) else { continue };
            match guest.order {
                Some((what, _)) if dice.one_in(2) => self.finish(id, what, now, false),
                Some(_) => match guest.before.take() {
                    Some(before) => *guest = *before,
                    None => drop(self.guests.remove(&id)),
                },
                None => {}
            }
            if let Some(guest) = self.guests.get_mut(&id).filter(|guest| !power && guest.is_alive()) {
                guest.exit(false, false, now);
            }
        }
        for (image, _) in std::mem::take(&mut self.fetches) {
            self.images.remove(&image);
        }
    }

    fn view(&self, now: u64) -> LocalView {
        let seen = |guest: &Guest| match guest.order {
            Some((what, _)) => LocalVm { state: LocalVmState::Busy { what }, ..guest.local.clone() },
            None => LocalVm { for_ms: now - guest.since(), ..guest.local.clone() },
        };
        let vms = self.guests.iter().map(|(id, guest)| (*id, seen(guest))).collect();
        LocalView { vms, images: self.images.clone(), ..LocalView::default() }
    }

    /// Reconciles, carries the orders out, and returns the proposals.
    pub(crate) fn act(&mut self, truth: &State, now: u64, dice: &mut Dice) -> Vec<Change> {
        self.is_stirred = false;
        let plan = reconcile(self.id, &self.replica, &self.view(now), UnixMs(now));
        self.look_again_at = plan.look_again_at.map(|at| at.0);
        let due = self.look_again_at;
        assert!(due.is_none_or(|at| at > now), "{:?}: a look at {due:?} was planned at {now}", self.id);
        let mut proposals = Vec::new();
        for action in plan.actions {
            match action {
                Action::Propose(change) => {
                    if !self.in_flight.contains(&change) {
                        self.in_flight.push(change.clone());
                        proposals.push(change);
                    }
                }
                action => {
                    self.is_stirred = true;
                    self.obey(action, truth, now, dice);
                }
            }
        }
        proposals
    }

    fn obey(&mut self, action: Action, truth: &State, now: u64, dice: &mut Dice) {
        let done_at = now + dice.up_to(400) + 1;
        match action {
            Action::FetchImage { image, urgent } => {
                let known = self.images.get(&image);
                let is_better = matches!(known, Some(LocalImage::Fetching { urgent: false, .. })) && urgent;
                assert!(is_better || known.is_none(), "a fetch of {known:?}");
                self.images.insert(image, LocalImage::Fetching { urgent, failure: None });
                // It is tried again at once when it becomes urgent.
                let due = self.fetches.entry(image).or_insert(done_at);
                *due = done_at.min(*due);
            }
            Action::DropImage { image } => {
                assert!(!self.replica.images.contains_key(&image));
                self.images.remove(&image);
                self.fetches.remove(&image);
            }
            Action::Launch { vm, epoch, run, restarts } => self.launch(
                vm,
                LocalVm {
                    epoch,
                    run,
                    restarts,
                    state: LocalVmState::LaunchFailed { reason: "not yet".into(), at: UnixMs(now) },
                    for_ms: 0,
                },
                done_at,
            ),
            Action::Stop { vm, .. } => {
                let guest = self.idle(vm);
                let stopping = LocalVmState::Running { stopping: true, since: UnixMs(now) };
                let before = std::mem::replace(&mut guest.local.state, stopping);
                assert!(matches!(before, LocalVmState::Running { stopping: false, .. }), "a stop of {before:?}");
                guest.obeys_at = (!dice.one_in(3)).then_some(now + dice.up_to(40_000) + 1);
            }
            Action::Kill { vm } => {
                let guest = self.idle(vm);
                assert!(guest.is_alive(), "a kill of {:?}", guest.local);
                guest.before = Some(Box::new(guest.clone()));
                guest.obeys_at = None;
                guest.order = Some((Order::Kill, done_at));
            }
            Action::Remove { vm } => {
                // The last word on whether a disk may go is not the replica's that the plan was made from.
                let belongs = truth.vms.get(&vm).is_some_and(|known| {
                    !known.desired.deleting && known.placement.is_some_and(|placed| placed.node == self.id)
                });
                let guest = self.idle(vm);
                assert!(!guest.is_alive(), "the files of {:?} were removed under it", guest.local);
                assert!(!belongs, "the disk of a vm that is wanted here was removed");
                guest.before = Some(Box::new(guest.clone()));
                guest.order = Some((Order::Remove, done_at));
            }
            Action::Settle { .. } => unreachable!("no vm here is lazy"),
            Action::Propose(_) => unreachable!("handled before"),
        }
    }

    fn launch(&mut self, vm: VmId, local: LocalVm, done_at: u64) {
        let image = self.replica.vms[&vm].spec.image;
        assert_eq!(self.images.get(&image), Some(&LocalImage::Complete), "a launch without the image");
        let before = self.guests.get(&vm).cloned().map(Box::new);
        if let Some(before) = &before {
            assert!(!before.is_alive() && before.order.is_none(), "a launch of {:?}", before.local);
            let is_new = local.run > before.local.run;
            assert!(is_new || local.run == before.local.run && local.restarts >= before.local.restarts.min(1));
        }
        self.guests
            .insert(vm, Guest { local, order: Some((Order::Launch, done_at)), obeys_at: None, started_at: 0, before });
    }

    fn idle(&mut self, vm: VmId) -> &mut Guest {
        let guest = self.guests.get_mut(&vm).expect("an order is about a vm that is here");
        assert!(guest.order.is_none(), "an order while {:?} is under way", guest.order);
        guest
    }
}
