//! A node as it runs in the simulator: the consensus room and the leader room of the product, and what joins them.
//!
//! Not the product's own are here: the joining (the door's own rules, in few lines), hearing of members from others, and the
//! agent's loop around the product's `reconcile`.

use std::sync::Arc;
use std::time::Duration;

use blixard_core::{
    Actor, BlobHash, Capacity, Change, Client, ClientRole, ClusterId, Command, DiskFormat, DiskPart, EndpointId, Image,
    Manifest, Node, Part, Resources, SecretHash, Settings, Token, TokenId, UnixMs,
};

use super::life::Life;
use super::planted::Planted;
use super::world::{Cable, Running, World, id};
use super::{agent, runtime};
use crate::clock;
use crate::config::RaftConfig;
use crate::leader;
use crate::metrics::Metrics;
use crate::raft::{Raft, Stage};

/// The user who may do everything.
pub(crate) const USER: EndpointId = EndpointId([0xAD; 32]);
/// Where clients are on the network; it is never cut.
pub(crate) const OUTSIDE: u64 = 1000;
const TOKEN: (TokenId, SecretHash) = (TokenId([1; 8]), SecretHash([1; 32]));
/// How often a node asks another who the members are, while it hears from no leader.
const HELLO_EVERY: Duration = Duration::from_millis(1500);
/// How long it waits for the answer.
const HELLO_WAIT: Duration = Duration::from_millis(1500);
/// How often a node is looked at though nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a joiner waits before it asks again.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// How a process begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// It founds the cluster, unless it has done so before.
    Found,
    /// It joins, unless it has joined before.
    Join,
}

/// The one image of the cluster.
pub(crate) fn image() -> Image {
    let part = Part { hash: BlobHash([7; 32]), bytes: 1000 };
    let manifest = Manifest::Disk(DiskPart { part, format: DiskFormat::Qcow2, virtual_bytes: 1 << 30, chunks: None });
    let name = "tiny".parse().expect("an image name");
    let holders = [id(1)].into();
    Image { id: manifest.id(), name, manifest, added_at: UnixMs(0), holders, wanted: [].into() }
}

fn record(number: u64, key: EndpointId) -> Node {
    let physical = Resources { vcpus: 4, memory_mib: 4096, disk_mib: 20_000 };
    let overcommit = 100;
    Node {
        id: id(number),
        endpoint: key,
        addresses: Vec::new(),
        relay_url: None,
        capacity: Capacity {
            physical,
            overcommit_vcpus_percent: 200,
            overcommit_memory_percent: overcommit,
            overcommit_disk_percent: overcommit,
        },
        labels: [].into(),
        shares_images: true,
        version: "0.1.0".into(),
        joined_at: UnixMs(0),
    }
}

/// Faster than the product's defaults in nothing but the size of what is kept, so that snapshots matter in a short run.
fn raft_config() -> RaftConfig {
    RaftConfig { snapshot_entries: 120, keep_entries: 20, ..RaftConfig::default() }
}

/// Starts the process of a host.
pub(crate) fn start(world: &Arc<World>, number: u64, beginning: Beginning) {
    let (life, key) = world.with_place(number, |place| {
        let life = Life::begin(place.host.clone());
        place.running = Some(Running { life: life.clone(), raft: None, told: [].into() });
        (life, place.key)
    });
    world.judge(|oracle| oracle.note(&format!("node {number} starts")));
    drop(life.clone().spawn(run(world.clone(), number, key, life, beginning)));
}

/// The process of a host dies, perhaps with the host's power.
pub(crate) fn crash(world: &Arc<World>, number: u64, power_lost: bool) {
    let Some(running) = world.with_place(number, |place| place.running.take()) else { return };
    let lost = world.with_place(number, |place| place.host.disk.crash(power_lost, &world.dice));
    running.life.end();
    world.network.is_silent(&running.life);
    gather_panics(world, number, &running.life);
    if power_lost {
        agent::power_lost(world, number);
    }
    world.judge(|oracle| {
        oracle.tally.crashes += 1;
        oracle.tally.torn += u64::from(lost);
        oracle.note(&format!("node {number} dies, power lost: {power_lost}, torn: {lost}"));
    });
}

/// No node may panic, whatever it is told.
pub(crate) fn gather_panics(world: &World, number: u64, life: &Life) {
    for panic in life.take_panics() {
        world.judge(|oracle| oracle.violation(format!("node {number} panicked: {panic}")));
    }
}

async fn run(world: Arc<World>, number: u64, key: EndpointId, life: Arc<Life>, beginning: Beginning) {
    let cable = Cable { world: Arc::downgrade(&world), life: Arc::downgrade(&life), key };
    let files = world.with_place(number, |place| [place.host.disk.open("log"), place.host.disk.open("state")]);
    let judging = Arc::downgrade(&world);
    let observer = Arc::new(move |index: u64, entry: [u8; 32], state: &blixard_core::State| {
        if let Some(world) = judging.upgrade() {
            world.judge(|oracle| oracle.applied(id(number), index, entry, state));
        }
    });
    let stage = Stage { planted: world.planted, observer };
    let raft = match Raft::on_stage(id(number), raft_config(), Arc::new(cable), files, stage).await {
        Ok(raft) => raft,
        Err(error) => {
            world.judge(|oracle| oracle.violation(format!("node {number} cannot start: {error:#}")));
            return;
        }
    };
    let is_known = raft.is_initialized().await.unwrap_or(false);
    world.with_place(number, |place| {
        if let Some(running) = &mut place.running {
            running.raft = Some(raft.clone());
        }
    });
    drop(life.spawn(watch_terms(world.clone(), raft.clone(), number, key)));
    drop(life.spawn(hear_of_members(world.clone(), raft.clone(), number)));
    match beginning {
        Beginning::Found if !is_known => found(&world, &raft, number, key).await,
        Beginning::Found => {}
        Beginning::Join => join(&world, &raft, number, key).await,
    }
    world.with_place(number, |place| place.is_member = true);
    drop(life.spawn(leader::run(raft.clone(), Arc::new(Metrics::default()))));
    drop(life.spawn(agent::run(world.clone(), raft, number)));
}

async fn propose(raft: &Raft, by: Actor, change: Change) {
    let command = Command { request: None, at: clock::now(), by, change };
    while raft.propose(&command).await.is_err() {}
}

async fn found(world: &Arc<World>, raft: &Raft, number: u64, key: EndpointId) {
    if let Err(error) = raft.found().await {
        world.judge(|oracle| oracle.note(&format!("node {number} founds nothing: {error:#}")));
        return;
    }
    let client = Client { key: USER, name: "0".into(), added_at: UnixMs(0), role: ClientRole::Admin };
    let settings = Settings { voters: if world.dice.percent(30) { 5 } else { 3 }, copies: 2 };
    let by = Actor::Node(id(number));
    let cluster = ClusterId(key.0);
    propose(raft, by, Change::InitCluster { cluster, node: record(number, key), client, settings }).await;
    let (token, secret_hash) = TOKEN;
    let created_at = clock::now();
    let token = Token { id: token, secret_hash, uses_left: None, expires_at: None, revoked: false, created_at };
    propose(raft, by, Change::CreateToken(token)).await;
    propose(raft, by, Change::AddImage(Image { holders: [id(number)].into(), ..image() })).await;
}

/// What the door of the product does when a node asks to be let in; its answer is the members.
async fn admit(raft: Raft, node: Node) -> Option<Vec<EndpointId>> {
    let members = |raft: &Raft| raft.read(|state| state.nodes.values().map(|node| node.endpoint).collect::<Vec<_>>());
    if raft.read(|state| state.nodes.get(&node.id).is_some_and(|known| known.endpoint == node.endpoint)) {
        return Some(members(&raft));
    }
    raft.barrier().await.ok()?;
    let is_new = raft.read(|state| !state.nodes.contains_key(&node.id));
    if is_new && raft.view().role(node.id).is_some() {
        return None;
    }
    let by = Actor::Node(raft.view().node);
    let change = Change::AdmitNode { node, token: Some(TOKEN) };
    let outcome = raft.propose(&Command { request: None, at: clock::now(), by, change }).await.ok()?;
    outcome.ok()?;
    raft.barrier().await.ok()?;
    Some(members(&raft))
}

/// Asks others until one lets this node in.
async fn join(world: &Arc<World>, raft: &Raft, number: u64, key: EndpointId) {
    loop {
        // A member that comes back is let in by its own replica's word, as a record on disk says in the product.
        if raft.read(|state| state.node_of(&key).is_some()) {
            return;
        }
        let others: Vec<u64> = world.numbers().into_iter().filter(|other| *other != number).collect();
        let members: Vec<u64> =
            others.into_iter().filter(|other| world.with_place(*other, |place| place.is_member)).collect();
        if let Some(peer) = world.dice.pick(&members).copied() {
            let node = record(number, key);
            let asking = world.ask(number, peer, |raft| admit(raft, node));
            match runtime::timeout(HELLO_WAIT * 3, asking).await {
                Ok(Ok(Some(members))) => {
                    meet(world, number, members);
                    world.judge(|oracle| {
                        oracle.tally.joins += 1;
                        oracle.note(&format!("node {number} is let in"));
                    });
                    return;
                }
                _ if world.is_planted(Planted::TwoBootstraps) && world.dice.percent(20) => {
                    return found(world, raft, number, key).await;
                }
                _ => {}
            }
        }
        runtime::sleep(ASK_AGAIN).await;
    }
}

fn meet(world: &World, number: u64, members: Vec<EndpointId>) {
    world.with_place(number, |place| {
        if let Some(running) = &mut place.running {
            running.told.extend(members);
        }
    });
}

/// While no leader is heard of, asks others who the members are: the leader may be one that joined meanwhile.
async fn hear_of_members(world: Arc<World>, raft: Raft, number: u64) {
    loop {
        runtime::sleep(HELLO_EVERY).await;
        if raft.view().leader.is_some() {
            continue;
        }
        let own = world.with_place(number, |place| place.key);
        let peers: Vec<u64> =
            raft.members().into_iter().filter(|key| *key != own).filter_map(|key| world.number_of(key)).collect();
        let Some(peer) = world.dice.pick(&peers).copied() else { continue };
        let asking = world.ask(number, peer, |raft| async move {
            // Strangers are told nothing.
            let is_known = raft.read(|state| state.node_of(&own).is_some());
            is_known.then(|| raft.read(|state| state.nodes.values().map(|node| node.endpoint).collect::<Vec<_>>()))
        });
        if let Ok(Ok(Some(members))) = runtime::timeout(HELLO_WAIT, asking).await {
            meet(&world, number, members);
        }
    }
}

/// Tells the judge whenever this node leads.
async fn watch_terms(world: Arc<World>, raft: Raft, number: u64, key: EndpointId) {
    let mut last = 0;
    loop {
        let view = raft.view();
        if view.is_leader() && view.term != last {
            last = view.term;
            world.judge(|oracle| {
                oracle.note(&format!("node {number} leads in term {last}"));
                oracle.leads(id(number), key, last);
            });
        }
        let _ = runtime::timeout(LOOK_EVERY, raft.group_changed()).await;
        if let Some(reason) = view.stopped {
            world.judge(|oracle| oracle.violation(format!("the consensus of node {number} has stopped: {reason}")));
            return;
        }
    }
}
