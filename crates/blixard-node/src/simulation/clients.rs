//! Users: some write and read registers, one keeps vms, one sends nonsense, and an operator changes who is in the cluster.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::{
    Actor, Change, Client, ClientRole, Command, ContentHash, EndpointId, Outcome, RequestId, RequestKey, RestartPolicy,
    Seed, Settings, Strategy, UnixMs, VmId, VmSpec,
};
use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use super::node::{self, Beginning, OUTSIDE, USER, image};
use super::oracle::number_of;
use super::planted::Planted;
use super::world::{NoAnswer, World, id, within};
use super::{agent, chaos};
use crate::raft::{ConsensusError, Raft};

/// How long a user waits for an answer: every other one until the node gives up by itself, the others less.
const PATIENCE: [Duration; 2] = [Duration::from_secs(12), Duration::from_secs(4)];
/// Vms there are at a time.
const VMS_MAX: usize = 16;

/// What a user learns of a write.
enum Written {
    Done(Outcome),
    /// It was not written, and never will be.
    Not,
    Unknown,
}

/// Sends a command through a node.
async fn write(world: &Arc<World>, from: u64, through: u64, command: Command) -> Written {
    let (forgets, boasts) = (world.is_planted(Planted::DroppedForward), world.is_planted(Planted::FailureIsDone));
    let asking = world.ask(from, through, move |raft: Raft| async move {
        if forgets && !raft.view().is_leader() {
            return Ok(Ok(blixard_core::Answer::Done));
        }
        match raft.propose(&command).await {
            Err(_) if boasts => Ok(Ok(blixard_core::Answer::Done)),
            outcome => outcome,
        }
    });
    match within(PATIENCE[usize::from(from % 2 == 1)], asking).await {
        Ok(Ok(outcome)) => Written::Done(outcome),
        Ok(Err(ConsensusError::NoLeader { .. })) | Err(NoAnswer::NotSent) => Written::Not,
        Ok(Err(_)) | Err(NoAnswer::Lost) => Written::Unknown,
    }
}

/// A node to ask, whether it is up or not, a member or not any more.
fn any_node(world: &World) -> u64 {
    let set_up = |number: &u64| world.with_place(*number, |place| place.running.is_some() || place.is_member);
    let nodes: Vec<u64> = world.numbers().into_iter().filter(set_up).collect();
    world.dice.pick(&nodes).copied().unwrap_or(1)
}

fn request(world: &World) -> Option<RequestKey> {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&world.dice.between(0, u64::MAX - 1).to_le_bytes());
    bytes[8..].copy_from_slice(&world.dice.between(0, u64::MAX - 1).to_le_bytes());
    // The same command is the same request here.
    Some(RequestKey { id: RequestId(bytes), content: ContentHash([0; 16]) })
}

/// A command of the user. The time is read by a node in the product; what it is does not matter here.
fn asked(world: &World, change: Change) -> Command {
    Command { request: request(world), at: UnixMs(1_800_000_000_000), by: Actor::Client(USER), change }
}

/// Writes ever higher numbers to registers of its own, and reads anybody's.
pub(crate) async fn registers(world: Arc<World>, client: u8) {
    let from = OUTSIDE + u64::from(client);
    let mut used: u16 = 0;
    let mut register = EndpointId([client; 32]);
    let mut number = 0;
    let mut last: Option<Command> = None;
    while !world.is_calm() {
        SimRuntime::sleep(world.dice.millis(5, 80)).await;
        if world.dice.percent(45) {
            read(&world, from).await;
            continue;
        }
        let node = any_node(&world);
        let was_out = world.judge(|oracle| oracle.was_out(world.with_place(node, |place| place.key)));
        if let Some(again) = last.take_if(|_| world.dice.percent(10)) {
            // An old request arrives once more. It must change nothing, and what it is answered does not matter.
            drop(write(&world, from, node, again).await);
            continue;
        }
        number += 1;
        let name = number.to_string();
        let holder = Client { key: register, name, added_at: UnixMs(0), role: ClientRole::Viewer };
        let change = Change::GrantClient(holder);
        let command = asked(&world, change);
        world.judge(|oracle| oracle.write_begins(register, number));
        let written = write(&world, from, node, command.clone()).await;
        let mut is_lost = false;
        world.judge(|oracle| match written {
            Written::Done(Ok(_)) => {
                oracle.note(&format!("{} is {number} through {node}", register.short()));
                oracle.write_acknowledged(register, number);
                last = Some(command);
                if was_out {
                    oracle.violation(format!("node {node} was removed, and a write through it was done"));
                }
            }
            Written::Done(Err(rejection)) => oracle.violation(format!("a sound write was rejected: {rejection}")),
            Written::Not => oracle.write_failed(register, number),
            Written::Unknown => {
                oracle.tally.unknown += 1;
                is_lost = true;
            }
        });
        if world.dice.percent(1) && last.is_some() && !world.is_calm() && world.dice.percent(40) {
            // Nothing that was acknowledged may depend on what a disk still has to do.
            chaos::blackout(&world);
        }
        if is_lost {
            // It may still be written at any time: nobody may write this register again.
            used += 1;
            let [high, low] = used.to_be_bytes();
            let mut bytes = [client; 32];
            bytes[30..].copy_from_slice(&[high, low]);
            (register, number, last) = (EndpointId(bytes), 0, None);
        }
    }
}

async fn read(world: &Arc<World>, from: u64) {
    let Some(register) = world.dice.pick(&world.judge(|oracle| oracle.registers())).copied() else { return };
    let node = any_node(world);
    let was_out = world.judge(|oracle| oracle.was_out(world.with_place(node, |place| place.key)));
    let floor = world.judge(|oracle| oracle.floor(register));
    let is_stale = world.is_planted(Planted::StaleRead);
    let asking = world.ask(from, node, move |raft: Raft| async move {
        if !is_stale {
            raft.barrier().await?;
        }
        Ok::<_, ConsensusError>(raft.read(|state| number_of(state, register)))
    });
    if let Ok(Ok(seen)) = within(PATIENCE[usize::from(from % 2 == 1)], asking).await {
        world.judge(|oracle| {
            oracle.read(node, register, floor, seen);
            if was_out && !is_stale {
                oracle.violation(format!("node {node} was removed, and answered a current read"));
            }
        });
    }
}

fn vm_spec(world: &World) -> VmSpec {
    VmSpec {
        image: image().id,
        image_name: image().name,
        vcpus: 1,
        // Few fit on a node, so that some wait for room.
        memory_mib: world.dice.between(1, 3) * 1024,
        disk_mib: 1024,
        publish: Vec::new(),
        seed: Seed::default(),
        require: [].into(),
        anti_affinity: None,
        strategy: Strategy::Spread,
        node: None,
        restart: RestartPolicy::Always,
        config_files: Vec::new(),
        lazy: None,
    }
}

/// Creates, starts, stops and deletes vms.
pub(crate) async fn vms(world: Arc<World>) {
    let from = OUTSIDE + 100;
    let mut vms: Vec<VmId> = Vec::new();
    let mut count: u64 = 0;
    while !world.is_calm() {
        SimRuntime::sleep(world.dice.millis(100, 900)).await;
        let change = match world.dice.pick(&vms).copied() {
            Some(vm) if vms.len() >= VMS_MAX || world.dice.percent(60) => match world.dice.between(0, 3) {
                0 => Change::StopVm { id: vm, timeout_ms: 2_000 },
                1 => Change::StartVm(vm),
                2 => Change::RestartVm { id: vm, timeout_ms: 2_000 },
                _ => {
                    vms.retain(|other| *other != vm);
                    Change::DeleteVm(vm)
                }
            },
            _ => {
                count += 1;
                let mut bytes = [0xF0; 16];
                bytes[..8].copy_from_slice(&count.to_be_bytes());
                vms.push(VmId(bytes));
                let name = format!("vm-{count}").parse().expect("a vm name");
                Change::CreateVm { id: VmId(bytes), name, spec: vm_spec(&world), start: true }
            }
        };
        let command = asked(&world, change);
        // Rejections are in order: the vm may have been deleted, or its create may have been lost.
        drop(write(&world, from, any_node(&world), command).await);
    }
}

/// Proposes decisions that no scheduler would make. Apply has to refuse what is not sound.
pub(crate) async fn nonsense(world: Arc<World>) {
    let from = OUTSIDE + 101;
    while !world.is_calm() {
        SimRuntime::sleep(world.dice.millis(300, 1500)).await;
        let node = any_node(&world);
        let Some((raft, _)) = world.raft_of(node) else { continue };
        let mut vms: Vec<(VmId, u64)> = raft.read(|state| state.vms.values().map(|vm| (vm.id, vm.epoch)).collect());
        if world.dice.percent(60) {
            // What waits for room is what a bad decision could still place.
            vms = raft.read(|state| {
                let waiting = state.vms.values().filter(|vm| vm.placement.is_none());
                waiting.map(|vm| (vm.id, vm.epoch)).collect()
            });
        }
        let Some((vm, epoch)) = world.dice.pick(&vms).copied() else { continue };
        let epoch = epoch + *world.dice.pick(&[0, 1, 1, 1, 2]).expect("the list has members");
        let by = Actor::Node(id(any_node(&world)));
        let change = Change::PlaceVm { id: vm, node: id(any_node(&world)), epoch };
        drop(write(&world, from, node, Command { request: None, at: UnixMs(0), by, change }).await);
    }
}

/// Lets nodes in, removes them, and changes how many vote.
pub(crate) async fn operator(world: Arc<World>, members_min: usize) {
    let from = OUTSIDE + 102;
    while !world.is_calm() {
        SimRuntime::sleep(world.dice.millis(2_000, 8_000)).await;
        let (members, others): (Vec<u64>, Vec<u64>) =
            world.numbers().into_iter().partition(|number| world.with_place(*number, |place| place.is_member));
        match world.dice.between(0, 3) {
            0 | 1 => {
                let joining = |number: &u64| world.with_place(*number, |place| place.running.is_none());
                let free: Vec<u64> = others.into_iter().filter(joining).collect();
                if let Some(number) = world.dice.pick(&free).copied() {
                    set_up_anew(&world, number);
                    node::start(&world, number, Beginning::Join);
                }
            }
            2 if members.len() > members_min => {
                let Some(number) = world.dice.pick(&members).copied() else { continue };
                remove(&world, from, number).await;
            }
            _ => {
                let voters = *world.dice.pick(&[1, 3, 3, 5]).expect("the list has members");
                let settings = Settings { voters, copies: 2 };
                drop(write(&world, from, any_node(&world), asked(&world, Change::ChangeSettings(settings))).await);
            }
        }
    }
}

/// A host gets a new node, with an empty disk and a new key.
fn set_up_anew(world: &World, number: u64) {
    agent::wipe(world, number);
    world.with_place(number, |place| {
        place.setups = place.setups.wrapping_add(1);
        place.key.0[8] = place.setups;
        place.host.disk.wipe();
    });
}

async fn remove(world: &Arc<World>, from: u64, number: u64) {
    let force = world.dice.percent(50);
    if force {
        // The cluster gives its vms up, and its guests end when it hears of that: until there are leases, they may run twice.
        world.judge(|oracle| oracle.gives_up(number));
    }
    let command = asked(world, Change::RemoveNode { node: id(number), force });
    let Written::Done(Ok(_)) = write(world, from, any_node(world), command).await else { return };
    let key = world.with_place(number, |place| {
        place.is_member = false;
        place.key
    });
    world.judge(|oracle| {
        oracle.tally.removals += 1;
        oracle.note(&format!("node {number} is removed"));
    });
    let world = world.clone();
    drop(SimRuntime::spawn(async move {
        // Its process may not hear of it for long, and goes on talking; then its guests end with it.
        let is_told = world.dice.percent(50);
        let mut is_out = false;
        for _ in 0..200 {
            SimRuntime::sleep(Duration::from_millis(100)).await;
            let others = world.numbers().into_iter().filter(|other| *other != number);
            let running: Vec<Raft> = others.filter_map(|other| Some(world.raft_of(other)?.0)).collect();
            let lets_go =
                |raft: &Raft| raft.read(|state| state.removed.contains(&key)) && !raft.members().contains(&key);
            is_out = running.len() + 1 == world.numbers().len() && running.iter().all(lets_go);
            if is_out {
                break;
            }
        }
        if is_out {
            world.judge(|oracle| oracle.is_out(key));
        }
        SimRuntime::sleep(if is_told { Duration::from_millis(10) } else { world.dice.millis(2_000, 15_000) }).await;
        node::crash(&world, number, true);
        agent::wipe(&world, number);
    }));
}
