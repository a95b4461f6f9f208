//! A hypervisor in memory, and the agent's loop around the product's `reconcile`.
//!
//! The loop is written anew in few lines, because the product's own stands on a blob store and a driver that block; its
//! decisions are the product's. Guests live on when the node's process dies, and end with the host's power.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blixard_core::{
    Action, Actor, Ages, Change, Command, ImageId, LocalImage, LocalView, LocalVm, LocalVmState, Order, UnixMs, VmId,
    reconcile,
};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use super::life::lock;
use super::planted::Planted;
use super::runtime::{self, Instant};
use super::world::{World, id};
use crate::clock;
use crate::raft::Raft;

/// How often the agent looks though nothing tells it to.
const TICK: Duration = Duration::from_secs(1);
/// In how many of a hundred looks a node finds that it needs room.
const NEEDS_ROOM_PERCENT: u64 = 3;
/// Looks are at least this far apart.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is on a host, whether or not the node's process runs.
#[derive(Default)]
pub(crate) struct Guests {
    vms: BTreeMap<VmId, LocalVm>,
    images: BTreeSet<ImageId>,
}

impl Guests {
    /// The host has a copy of an image.
    pub(crate) fn hold(&mut self, image: ImageId) {
        self.images.insert(image);
    }

    /// The run of a vm whose guest runs here.
    pub(crate) fn running(&self, vm: VmId) -> Option<u64> {
        let found = self.vms.get(&vm)?;
        matches!(found.state, LocalVmState::Running { .. }).then_some(found.run)
    }
}

fn exited(reason: &str, requested: bool, at: UnixMs) -> LocalVmState {
    LocalVmState::Exited { clean: requested, requested, reason: reason.into(), at, ran_ms: 60_000 }
}

/// All guests of a host end.
pub(crate) fn power_lost(world: &World, number: u64) {
    let ended = world.with_place(number, |place| {
        let mut ended = Vec::new();
        for (vm, found) in &mut place.guests.vms {
            if matches!(found.state, LocalVmState::Running { .. }) {
                found.state = exited("the host lost its power", false, UnixMs(0));
                ended.push(*vm);
            }
        }
        ended
    });
    ended.into_iter().for_each(|vm| world.judge(|oracle| oracle.guest_ends(number, vm)));
}

/// The host is set up anew.
pub(crate) fn wipe(world: &World, number: u64) {
    power_lost(world, number);
    world.with_place(number, |place| place.guests = Guests::default());
    world.judge(|oracle| oracle.is_set_up(number));
}

/// What the process has in hand; lost with it.
#[derive(Default)]
struct Desk {
    orders: BTreeMap<VmId, Order>,
    fetches: BTreeSet<ImageId>,
    /// Copies that are being given up.
    leaving: BTreeSet<ImageId>,
    is_reporting: bool,
    ages: Ages,
}

/// Looks after the vms of a host for as long as the process lives.
pub(crate) async fn run(world: Arc<World>, raft: Raft, number: u64) {
    while raft.barrier().await.is_err() {}
    let desk = Arc::new(Mutex::new(Desk::default()));
    let mut applied = raft.watch();
    let begun = Instant::now();
    loop {
        let local = observe(&world, number, &desk, begun);
        let plan = raft.read(|state| reconcile(id(number), state, &local, clock::now()));
        let mut reports = Vec::new();
        for action in plan.actions {
            match action {
                Action::Propose(change) => reports.push(change),
                action => carry_out(&world, number, &desk, action),
            }
        }
        report(&raft, number, &desk, reports);
        if world.dice.percent(NEEDS_ROOM_PERCENT) && !world.is_calm() {
            make_room(&world, &raft, number, &desk);
        }
        let due = plan.look_again_at.map_or(TICK, |at| Duration::from_millis(at.since_ms(clock::now())).min(TICK));
        runtime::sleep(LOOK_EVERY).await;
        // Whichever comes first; orders that are done are seen at the next look.
        let _ = runtime::timeout(due, applied.changed()).await;
    }
}

fn observe(world: &World, number: u64, desk: &Mutex<Desk>, begun: Instant) -> LocalView {
    let mut view = LocalView::default();
    world.with_place(number, |place| {
        view.vms.clone_from(&place.guests.vms);
        view.images = place.guests.images.iter().map(|image| (*image, LocalImage::Complete)).collect();
    });
    let mut desk = lock(desk);
    for image in &desk.fetches {
        view.images.insert(*image, LocalImage::Fetching { urgent: true, failure: None });
    }
    for image in &desk.leaving {
        view.images.insert(*image, LocalImage::Leaving);
    }
    for (vm, order) in &desk.orders {
        let busy = LocalVmState::Busy { what: *order };
        let found =
            view.vms.entry(*vm).or_insert(LocalVm { epoch: 0, run: 0, restarts: 0, state: busy.clone(), for_ms: 0 });
        found.state = busy;
    }
    let steady_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    desk.ages.fill_in(&mut view, clock::now(), steady_ms);
    view
}

fn report(raft: &Raft, number: u64, desk: &Arc<Mutex<Desk>>, reports: Vec<Change>) {
    if reports.is_empty() || std::mem::replace(&mut lock(desk).is_reporting, true) {
        return;
    }
    let (raft, desk) = (raft.clone(), desk.clone());
    drop(runtime::spawn(async move {
        for change in reports {
            let by = Actor::Node(id(number));
            let command = Command { request: None, at: clock::now(), by, change };
            if raft.propose(&command).await.is_err() {
                break;
            }
        }
        lock(&desk).is_reporting = false;
    }));
}

/// Gives a copy up that nothing is being launched from, if the cluster lets it go.
fn make_room(world: &Arc<World>, raft: &Raft, number: u64, desk: &Arc<Mutex<Desk>>) {
    let held: Vec<ImageId> = world.with_place(number, |place| place.guests.images.iter().copied().collect());
    let Some(image) = world.dice.pick(&held).copied() else { return };
    {
        let mut desk = lock(desk);
        let is_launching = desk.orders.values().any(|order| *order == Order::Launch);
        if is_launching || !desk.leaving.insert(image) {
            return;
        }
    }
    let (world, raft, desk) = (world.clone(), raft.clone(), desk.clone());
    drop(runtime::spawn(async move {
        let change = Change::ReleaseCopy { image, node: id(number) };
        let command = Command { request: None, at: clock::now(), by: Actor::Node(id(number)), change };
        let may_go = world.is_planted(Planted::RemovesUnasked) || matches!(raft.propose(&command).await, Ok(Ok(_)));
        if may_go {
            world.judge(|oracle| oracle.copy_removed(id(number), image));
            world.with_place(number, |place| place.guests.images.remove(&image));
        }
        lock(&desk).leaving.remove(&image);
    }));
}

/// What an order comes to.
type Act = Box<dyn FnOnce(&Arc<World>) + Send>;

/// Does in a while what a plan asks for, unless the process dies before.
fn carry_out(world: &Arc<World>, number: u64, desk: &Arc<Mutex<Desk>>, action: Action) {
    let takes = world.dice.millis(2, 200);
    let order = |vm: VmId, order: Order, act: Act| {
        lock(desk).orders.insert(vm, order);
        let (world, desk) = (world.clone(), desk.clone());
        drop(runtime::spawn(async move {
            runtime::sleep(takes).await;
            act(&world);
            lock(&desk).orders.remove(&vm);
        }));
    };
    match action {
        Action::FetchImage { image, .. } => {
            lock(desk).fetches.insert(image);
            let (world, desk) = (world.clone(), desk.clone());
            drop(runtime::spawn(async move {
                runtime::sleep(takes * 5).await;
                world.with_place(number, |place| place.guests.hold(image));
                lock(&desk).fetches.remove(&image);
            }));
        }
        Action::DropImage { image } => drop(world.with_place(number, |place| place.guests.images.remove(&image))),
        // It is given up first, and the next look finds whether the vm can still be launched.
        Action::Launch { .. } if !lock(desk).leaving.is_empty() => {}
        Action::Launch { vm, epoch, run, restarts } => order(
            vm,
            Order::Launch,
            Box::new(move |world| {
                let state = LocalVmState::Running { stopping: false, since: clock::now() };
                world.with_place(number, |place| {
                    place.guests.vms.insert(vm, LocalVm { epoch, run, restarts, state, for_ms: 0 })
                });
                world.judge(|oracle| oracle.guest_starts(number, vm));
            }),
        ),
        Action::Stop { vm, .. } => stop(world, number, vm),
        Action::Kill { vm } => order(
            vm,
            Order::Kill,
            Box::new(move |world| {
                end_guest(world, number, vm, None, "killed", clock::now());
            }),
        ),
        Action::Remove { vm } => order(
            vm,
            Order::Remove,
            Box::new(move |world| {
                world.judge(|oracle| oracle.files_removed(id(number), vm));
                world.with_place(number, |place| place.guests.vms.remove(&vm));
            }),
        ),
        // No vm here is lazy.
        Action::Settle { .. } | Action::Propose(_) => {}
    }
}

/// Asks a guest to shut down, which it does in its own time, or never.
fn stop(world: &Arc<World>, number: u64, vm: VmId) {
    let since = clock::now();
    let run = world.with_place(number, |place| {
        let found = place.guests.vms.get_mut(&vm)?;
        found.state = LocalVmState::Running { stopping: true, since };
        Some(found.run)
    });
    if world.dice.percent(20) {
        return;
    }
    let (world, obeys_in) = (world.clone(), world.dice.millis(10, 3_000));
    // The guest's own doing: it does not need the node's process.
    drop(SimRuntime::spawn(async move {
        SimRuntime::sleep(obeys_in).await;
        end_guest(&world, number, vm, run, "shut down", since.plus_ms(3_000));
    }));
}

/// A guest ends, unless another run of it has begun.
fn end_guest(world: &World, number: u64, vm: VmId, of_run: Option<u64>, reason: &str, at: UnixMs) {
    let has_ended = world.with_place(number, |place| {
        let Some(found) = place.guests.vms.get_mut(&vm) else { return false };
        if of_run.is_some_and(|run| run != found.run) || !matches!(found.state, LocalVmState::Running { .. }) {
            return false;
        }
        found.state = exited(reason, true, at);
        true
    });
    if has_ended {
        world.judge(|oracle| oracle.guest_ends(number, vm));
    }
}
