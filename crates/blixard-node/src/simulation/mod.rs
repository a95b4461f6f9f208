//! The simulator: whole clusters on one thread, from a seed.
//!
//! It runs the product's consensus room (log, state machine, server, forwarding, streams and their frames), its leader room,
//! all of `blixard_core` and openraft itself, on a virtual clock, disks that lose what was not flushed, and a network that
//! delays and cuts. Hosts crash, lose power, stand still, have clocks that run fast or slow and show the wrong time; nodes
//! join, leave and are removed; leaderships are handed over. Users write and read through any node meanwhile, and a judge
//! that shares no code with the product holds what they were told against what is there. At the end all faults are lifted,
//! and the cluster has to work again and be of one mind.
//!
//! It does not run iroh, the blob store, hypervisors, the door by which nodes join, the control API and the agent's own loop:
//! those stand on sockets, threads and files. Small stand-ins of the last two are in `node.rs` and `agent.rs`.
//!
//! The same seed gives the same run, to the last event: no thread, no clock of the machine, no order of a hash table and no
//! randomness but the seed's is within reach of what runs here.

mod agent;
mod chaos;
mod clients;
mod dice;
mod disk;
mod life;
mod network;
mod node;
mod oracle;
mod planted;
pub(crate) mod runtime;
pub(crate) mod watch;
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::SimRuntime;

use clients::{nonsense, operator, registers, vms};
use network::Weather;
use node::Beginning;
pub use oracle::Tally;
pub use planted::Planted;
use world::{World, within};

/// Hosts there are; not all of them have a node at a time.
const HOSTS: u64 = 6;
/// How long a cluster has to work again when all faults are lifted, in seconds of virtual time. A voter that was paused, a
/// snapshot over a slow network and a change of voters each take a few.
const RECOVERY_S: u64 = 120;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The hash of everything that happened, and when.
    pub history: u64,
    /// What happened, in numbers.
    pub tally: Tally,
    /// What broke a promise.
    pub violations: Vec<String>,
}

/// The time of day on the current host, in milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    life::current().map_or(0, |life| life.wall_ms())
}

/// Runs one cluster for so many seconds of virtual time with faults, and then without.
pub fn run(seed: u64, seconds: u64, planted: Option<Planted>) -> Report {
    let mut runtime = SimRuntime::with_seed(seed);
    let report = runtime.block_on(story(seed, seconds, planted));
    // What is left of the processes is dropped with it.
    drop(runtime);
    report
}

async fn story(seed: u64, seconds: u64, planted: Option<Planted>) -> Report {
    let world = World::new(seed, HOSTS, planted);
    world.with_place(1, |place| place.guests.hold(node::image().id));
    node::start(&world, 1, Beginning::Found);
    let first = *world.dice.pick(&[3, 3, 4, 5]).expect("the list has members");
    (2..=first).for_each(|number| node::start(&world, number, Beginning::Join));
    let members_min = usize::from(world.dice.percent(70)) + 2;
    // A cluster that is being founded has nothing to lose yet; trouble begins soon after.
    SimRuntime::sleep(Duration::from_secs(2)).await;
    let users = (1..=4).map(|client| SimRuntime::spawn(registers(world.clone(), client)));
    let mut tasks: Vec<_> = users.collect();
    tasks.push(SimRuntime::spawn(vms(world.clone())));
    tasks.push(SimRuntime::spawn(nonsense(world.clone())));
    tasks.push(SimRuntime::spawn(operator(world.clone(), members_min)));
    tasks.push(SimRuntime::spawn(chaos::run(world.clone())));
    SimRuntime::sleep(Duration::from_secs(seconds)).await;
    world.calm();
    for task in tasks {
        if let Err(error) = task.await {
            world.judge(|oracle| oracle.violation(format!("the simulator itself failed: {error}")));
        }
    }
    recover(&world).await;
    for number in world.numbers() {
        if let Some(running) = world.with_place(number, |place| place.running.take()) {
            node::gather_panics(&world, number, &running.life);
            running.life.end();
        }
    }
    world.judge(|oracle| Report {
        history: oracle.history(),
        tally: oracle.tally,
        violations: std::mem::take(&mut oracle.violations),
    })
}

/// All faults are lifted. The cluster has to be able to write again, and every member to be in the same state.
async fn recover(world: &Arc<World>) {
    world.network.heal();
    world.network.set_weather(Weather::FAIR);
    let mut last = String::from("nothing was tried");
    for second in 0..RECOVERY_S {
        for number in world.numbers() {
            chaos::restart(world, number);
            if let Some((_, life)) = world.raft_of(number) {
                life.resume();
            }
        }
        forget_the_removed(world);
        SimRuntime::sleep(Duration::from_secs(1)).await;
        match settle(world).await {
            Ok(()) => {
                world.judge(|oracle| oracle.note(&format!("settled after {second} s")));
                return;
            }
            Err(why) => last = why,
        }
    }
    world.judge(|oracle| oracle.violation(format!("after {RECOVERY_S} s without faults: {last}")));
}

/// A removal whose outcome the operator never learned took place after all: the node's process ends as it does in the product.
fn forget_the_removed(world: &Arc<World>) {
    let numbers = world.numbers();
    let running: Vec<_> = numbers.iter().filter_map(|number| Some(world.raft_of(*number)?.0)).collect();
    for number in numbers {
        let key = world.with_place(number, |place| place.key);
        if running.iter().any(|raft| raft.read(|state| state.removed.contains(&key))) {
            let is_counted = running.iter().any(|raft| raft.members().contains(&key));
            world.with_place(number, |place| place.is_member = false);
            if !is_counted {
                node::crash(world, number, false);
            }
        }
    }
}

/// Whether the cluster works and is of one mind; if not, why.
async fn settle(world: &Arc<World>) -> Result<(), String> {
    let numbers = world.numbers();
    let members: Vec<u64> =
        numbers.into_iter().filter(|number| world.with_place(*number, |place| place.is_member)).collect();
    let mut digests = BTreeSet::new();
    for number in &members {
        let current = world.ask(node::OUTSIDE, *number, |raft| async move { raft.barrier().await.is_ok() });
        if within(Duration::from_secs(5), current).await != Ok(true) {
            return Err(format!("node {number} cannot catch up"));
        }
    }
    for number in &members {
        let Some((raft, _)) = world.raft_of(*number) else { return Err(format!("node {number} does not run")) };
        digests.insert(raft.read_with_index(|state, index| (index, state.digest())));
        let view = raft.view();
        let voters = view.voters.len();
        let unknown: Vec<_> = raft.read(|state| {
            let counted = view.voters.union(&view.learners);
            counted.filter(|node| !state.nodes.contains_key(node)).copied().collect()
        });
        if !unknown.is_empty() || raft.is_joint() {
            return Err(format!("node {number} still counts {unknown:?} in its group of {voters} voters"));
        }
    }
    if digests.len() != 1 {
        return Err(format!("{} members are in {} states", members.len(), digests.len()));
    }
    if let Some((raft, _)) = members.first().and_then(|number| world.raft_of(*number)) {
        let few = raft.read(|state| {
            let due = usize::from(state.settings.copies).min(state.nodes.len());
            // What is lost with its last holder cannot be had again.
            let is_few = |image: &&blixard_core::Image| (1..due).contains(&image.holders.len());
            state.images.values().find(is_few).map(|image| image.holders.len())
        });
        if let Some(few) = few {
            return Err(format!("{few} nodes hold an image of which there should be more copies"));
        }
    }
    for number in members {
        if let Some((raft, _)) = world.raft_of(number) {
            raft.read(|state| world.judge(|oracle| oracle.settled(number, state)));
        }
    }
    Ok(())
}
