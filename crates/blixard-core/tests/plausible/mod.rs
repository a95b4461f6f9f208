//! Commands as a cluster under stress might see them: mostly plausible, sometimes wild.
//!
//! Ids come from small pools, so that commands meet. A generated step names epochs, runs and reporters relative to the
//! state; [`Step::command`] turns it into a command, and a wild step keeps the raw numbers.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::{
    Actor, BlobHash, BootRecord, ByteRange, Capacity, Change, Client, ClientRole, ClusterId, Command, ContentHash,
    Deed, DiskFormat, DiskPart, DocumentsSecret, EndpointId, Image, ImageId, Manifest, Node, NodeId, Note, Observed,
    Part, Phase, Power, Protocol, PublishedPort, RequestId, RequestKey, Resources, RestartPolicy, SecretHash, Seed,
    Settings, State, Strategy as Placing, Token, TokenId, UnixMs, VmId, VmSpec,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;

pub(crate) const USER: EndpointId = EndpointId([200; 32]);

pub(crate) fn endpoint(id: u8) -> EndpointId {
    EndpointId([id; 32])
}

pub(crate) fn vm_id(id: u8) -> VmId {
    VmId([id; 16])
}

pub(crate) fn node(id: u64, key: u8) -> Node {
    let physical = Resources { vcpus: 4, memory_mib: 4096, disk_mib: 20_000 };
    Node {
        id: NodeId(id),
        endpoint: endpoint(key),
        addresses: vec!["192.0.2.1:7001".parse().expect("an address")],
        relay_url: None,
        capacity: Capacity {
            physical,
            overcommit_vcpus_percent: 200,
            overcommit_memory_percent: 100,
            overcommit_disk_percent: 100,
        },
        labels: BTreeMap::new(),
        shares_images: true,
        version: "0.1.0".into(),
        joined_at: UnixMs(0),
    }
}

/// The manifests of the pool: a disk of 1 GiB, a kernel without a disk, and a kernel with one.
pub(crate) fn manifest(index: u8) -> Manifest {
    let part = |byte: u8| Part { hash: BlobHash([byte; 32]), bytes: 1000 + u64::from(index) };
    let chunks = Some(part(101));
    let disk = DiskPart { part: part(index), format: DiskFormat::Qcow2, virtual_bytes: 1 << 30, chunks };
    match index % 3 {
        0 => Manifest::Disk(disk),
        1 => Manifest::Kernel { kernel: part(index), initrd: None, root: None, cmdline: "console=ttyS0".into() },
        _ => {
            Manifest::Kernel { kernel: part(index), initrd: Some(part(100)), root: Some(disk), cmdline: String::new() }
        }
    }
}

pub(crate) fn image(index: u8, name: u8, holders: BTreeSet<NodeId>) -> Image {
    let manifest = manifest(index);
    let name = format!("image-{name}").parse().expect("an image name");
    Image { id: manifest.id(), name, manifest, added_at: UnixMs(0), holders, wanted: BTreeSet::new() }
}

pub(crate) fn spec(image_index: u8) -> VmSpec {
    VmSpec {
        image: manifest(image_index).id(),
        image_name: "image".parse().expect("an image name"),
        vcpus: 1,
        memory_mib: 512,
        disk_mib: 1024,
        publish: Vec::new(),
        seed: Seed::default(),
        require: BTreeMap::new(),
        anti_affinity: None,
        strategy: Placing::Spread,
        node: None,
        restart: RestartPolicy::default(),
        config_files: Vec::new(),
        lazy: None,
    }
}

pub(crate) fn init() -> Command {
    let client = Client { key: USER, name: "ada".into(), added_at: UnixMs(0), role: ClientRole::Admin };
    let settings = Settings::default();
    let change = Change::InitCluster { cluster: ClusterId([9; 32]), node: node(1, 1), client, settings };
    Command { request: None, at: UnixMs(1_000), by: Actor::Node(NodeId(1)), change }
}

/// A command of the user of [`init`].
pub(crate) fn asked(at: u64, change: Change) -> Command {
    Command { request: None, at: UnixMs(at), by: Actor::Client(USER), change }
}

/// A request of small numbers.
pub(crate) fn request_key(id: u8, content: u8) -> RequestKey {
    RequestKey { id: RequestId([id; 16]), content: ContentHash([content; 16]) }
}

/// A command of a node.
pub(crate) fn told(node: u64, change: Change) -> Command {
    Command { request: None, at: UnixMs(2_000), by: Actor::Node(NodeId(node)), change }
}

/// The log that makes a cluster of `nodes` nodes with the images of the pool, all held by node 1.
pub(crate) fn prelude(nodes: u8) -> Vec<Command> {
    let (id, secret_hash) = (TokenId([1; 8]), SecretHash([1; 32]));
    let created_at = UnixMs(0);
    let token = Token { id, secret_hash, uses_left: None, expires_at: None, revoked: false, created_at };
    let mut log = vec![init(), asked(1_000, Change::CreateToken(token))];
    for number in 2..=nodes {
        let node = node(number.into(), number);
        log.push(told(1, Change::AdmitNode { node, token: Some((id, secret_hash)) }));
    }
    for index in 0..3 {
        log.push(told(1, Change::AddImage(image(index, index, [NodeId(1)].into()))));
    }
    log
}

/// The state after [`prelude`].
pub(crate) fn cluster(nodes: u8) -> State {
    let mut state = State::default();
    for command in prelude(nodes) {
        state.apply(&command).expect("the prelude is sound");
    }
    state
}

#[derive(Debug, Clone)]
pub(crate) struct Step {
    request: Option<RequestKey>,
    /// Time from the step before.
    later_ms: u64,
    by: Actor,
    change: Change,
    wild: bool,
}

impl Step {
    pub(crate) fn command(&self, state: &State, at: &mut u64) -> Command {
        *at += self.later_ms;
        let mut change = self.change.clone();
        let mut by = self.by;
        if !self.wild {
            by = Actor::Client(USER);
            ground(&mut change, &mut by, state);
        }
        Command { request: self.request, at: UnixMs(*at), by, change }
    }
}

/// Makes a change say what a well-behaved user or node would say in this state.
fn ground(change: &mut Change, by: &mut Actor, state: &State) {
    let member = |id: &mut NodeId| *id = nearest(&state.nodes, *id);
    let known_vm = |id: &mut VmId| *id = nearest(&state.vms, *id);
    let known_image = |id: &mut ImageId| *id = nearest(&state.images, *id);
    match change {
        Change::UpdateNode(node) => {
            member(&mut node.id);
            if let Some(known) = state.nodes.get(&node.id) {
                node.endpoint = known.endpoint;
            }
            *by = Actor::Node(node.id);
        }
        Change::AdmitNode { .. } => *by = Actor::Node(nearest(&state.nodes, NodeId(1))),
        // Most logs would end with the user's rights otherwise.
        Change::GrantClient(client) if client.key == USER && state.clients.len() > 1 => {
            client.role = ClientRole::Admin;
        }
        Change::RemoveNode { node, .. } => member(node),
        Change::AddImage(image) => {
            image.holders = image.holders.iter().map(|id| nearest(&state.nodes, *id)).collect();
        }
        Change::DeleteImage(image) => known_image(image),
        Change::WantCopy { image, node }
        | Change::ReportCopy { image, node, .. }
        | Change::ReleaseCopy { image, node }
        | Change::RecordBoot { image, node, .. } => {
            known_image(image);
            member(node);
            *by = Actor::Node(*node);
        }
        Change::CreateVm { spec, .. } => {
            known_image(&mut spec.image);
            spec.node.iter_mut().for_each(member);
        }
        Change::StartVm(id) | Change::StopVm { id, .. } | Change::RestartVm { id, .. } | Change::DeleteVm(id) => {
            known_vm(id)
        }
        Change::PlaceVm { id, epoch, node } => {
            known_vm(id);
            member(node);
            *epoch = state.vms.get(id).map_or(1, |vm| vm.epoch + 1);
            *by = Actor::Node(*node);
        }
        Change::ReportVm { id, node, observed } => {
            known_vm(id);
            // Some reports come late, from a node that had the vm or under an epoch that is over.
            let is_late = observed.restarts == 2;
            if let Some((vm, placed)) = state.vms.get(id).and_then(|vm| vm.placement.map(|placed| (vm, placed))) {
                if !is_late {
                    (*node, observed.epoch) = (placed.node, placed.epoch);
                }
                observed.run = vm.desired.run.saturating_sub(u64::from(observed.run == 0));
            }
            member(node);
            *by = Actor::Node(*node);
        }
        Change::ForgetVm { id, node, epoch } => {
            known_vm(id);
            if let Some(placed) = state.vms.get(id).and_then(|vm| vm.placement).filter(|_| *epoch != 3) {
                (*node, *epoch) = (placed.node, placed.epoch);
            }
            member(node);
            *by = Actor::Node(*node);
        }
        Change::SetDocumentsSecret(_) => *by = Actor::Node(nearest(&state.nodes, NodeId(1))),
        Change::RecordDeed { node, .. } => {
            member(node);
            *by = Actor::Node(*node);
        }
        Change::Note(note) => {
            let mut first = NodeId(1);
            member(&mut first);
            *by = Actor::Node(first);
            if let Note::Lost(node) | Note::Back(node) = note {
                member(node);
            }
        }
        _ => {}
    }
}

/// The id itself when it is in the map, otherwise the next one that is.
fn nearest<K: Ord + Copy, V>(map: &BTreeMap<K, V>, id: K) -> K {
    map.range(id..).chain(map).next().map_or(id, |(id, _)| *id)
}

pub(crate) fn steps(max: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 0..max)
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let later = prop_oneof![40 => 0_u64..10_000, 1 => Just(90_000_000_u64)];
    // Some come again as they were, and some ids for something else.
    let request =
        (0_u8..16, prop_oneof![3 => Just(0), 1 => Just(1)]).prop_map(|(id, content)| request_key(id, content));
    (option::weighted(0.2, request), later, actor(), change(), proptest::bool::weighted(0.15))
        .prop_map(|(request, later_ms, by, change, wild)| Step { request, later_ms, by, change, wild })
}

fn actor() -> impl Strategy<Value = Actor> {
    prop_oneof![node_id().prop_map(Actor::Node), (198_u8..202).prop_map(|key| Actor::Client(endpoint(key)))]
}

fn node_id() -> impl Strategy<Value = NodeId> {
    prop_oneof![20 => 1_u64..10, 1 => Just(0), 1 => any::<u64>()].prop_map(NodeId)
}

fn any_vm() -> impl Strategy<Value = VmId> {
    (1_u8..8).prop_map(vm_id)
}

fn any_image() -> impl Strategy<Value = ImageId> {
    (0_u8..4).prop_map(|index| manifest(index).id())
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let key = prop_oneof![Just("zone".to_owned()), Just("disk".to_owned())];
    let value = prop_oneof![Just("a".to_owned()), Just("b".to_owned())];
    btree_map(key, value, 0..2)
}

fn amount() -> impl Strategy<Value = u64> {
    prop_oneof![2 => Just(0_u64), 20 => 1_u64..5, 1 => Just(u64::MAX)]
}

pub(crate) fn any_node() -> impl Strategy<Value = Node> {
    let percent = prop_oneof![10 => Just(100_u32), 5 => Just(400), 1 => Just(0), 1 => any::<u32>()];
    let key = prop_oneof![6 => Just(None), 1 => (1_u8..6).prop_map(Some)];
    (
        node_id(),
        key,
        amount(),
        amount(),
        amount(),
        percent,
        labels(),
        proptest::bool::weighted(0.9),
        prop_oneof![15 => 0_usize..4, 1 => Just(17)],
    )
        .prop_map(|(id, key, vcpus, memory, disk, percent, labels, shares_images, addresses)| {
            let own = u8::try_from(id.0 % 251).expect("below 251");
            let mut made = node(id.0, key.unwrap_or(own));
            let physical = Resources {
                vcpus: vcpus.saturating_mul(2),
                memory_mib: memory.saturating_mul(1024),
                disk_mib: disk.saturating_mul(4096),
            };
            made.capacity.physical = physical;
            made.capacity.overcommit_vcpus_percent = percent;
            made.addresses = vec!["[2001:db8::1]:7001".parse().expect("an address"); addresses];
            made.labels = labels;
            made.shares_images = shares_images;
            made
        })
}

fn secret() -> impl Strategy<Value = u8> {
    prop_oneof![8 => Just(1_u8), 1 => Just(0)]
}

fn token() -> impl Strategy<Value = Token> {
    let expires = option::of((0_u64..800_000).prop_map(UnixMs));
    // Most are for one node, so that some come too late.
    let uses = prop_oneof![1 => Just(0_u32), 6 => Just(1), 2 => Just(2)];
    (1_u8..4, secret(), option::weighted(0.8, uses), expires, any::<bool>()).prop_map(
        |(id, secret, uses_left, expires_at, revoked)| Token {
            id: TokenId([id; 8]),
            secret_hash: SecretHash([secret; 32]),
            uses_left,
            expires_at,
            revoked,
            created_at: UnixMs(0),
        },
    )
}

fn client() -> impl Strategy<Value = Client> {
    let name = prop_oneof![5 => Just("grace".to_owned()), 1 => Just(String::new())];
    let role =
        prop_oneof![1 => Just(ClientRole::Viewer), 1 => Just(ClientRole::Operator), 2 => Just(ClientRole::Admin)];
    (198_u8..202, name, role).prop_map(|(key, name, role)| Client {
        key: endpoint(key),
        name,
        added_at: UnixMs(0),
        role,
    })
}

fn any_catalog_image() -> impl Strategy<Value = Image> {
    let ids = || btree_set(node_id(), 0..3);
    (0_u8..4, 0_u8..4, ids(), ids(), proptest::bool::weighted(0.1)).prop_map(
        |(index, name, holders, wanted, forged)| {
            let mut made = image(index, name, holders);
            made.wanted = wanted;
            if forged {
                made.id.0[0] ^= 1;
            }
            made
        },
    )
}

pub(crate) fn any_spec() -> impl Strategy<Value = VmSpec> {
    let port = (80_u16..83, prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)])
        .prop_map(|(host_port, protocol)| PublishedPort { host_address: None, host_port, guest_port: 80, protocol });
    let restart = prop_oneof![
        Just(RestartPolicy::Never),
        Just(RestartPolicy::Always),
        (0_u32..4).prop_map(|limit| RestartPolicy::OnFailure { limit })
    ];
    let group = option::weighted(0.3, prop_oneof![Just("db".to_owned()), Just("web".to_owned())]);
    let vcpus = prop_oneof![20 => 1_u32..5, 1 => Just(0), 1 => Just(u32::MAX)];
    let memory = prop_oneof![20 => (1_u64..6).prop_map(|n| n * 512), 1 => Just(1), 1 => Just(u64::MAX)];
    let disk = prop_oneof![20 => (0_u64..5).prop_map(|n| n * 1024), 1 => Just(u64::MAX)];
    let require = prop_oneof![3 => Just(BTreeMap::new()), 1 => labels()];
    let pin = option::weighted(0.2, node_id());
    let strategy = prop_oneof![Just(Placing::Spread), Just(Placing::Pack)];
    ((0_u8..4), vcpus, memory, disk, vec(port, 0..2), group, require, strategy, pin, restart).prop_map(
        |(index, vcpus, memory_mib, disk_mib, publish, anti_affinity, require, strategy, node, restart)| VmSpec {
            vcpus,
            memory_mib,
            disk_mib,
            publish,
            anti_affinity,
            require,
            strategy,
            node,
            restart,
            ..spec(index)
        },
    )
}

fn phase() -> impl Strategy<Value = Phase> {
    let reason = || prop_oneof![9 => Just("it ended".to_owned()), 1 => Just("x".repeat(2000))];
    prop_oneof![
        Just(Phase::Preparing),
        Just(Phase::Running),
        Just(Phase::Stopping),
        option::of(reason()).prop_map(|reason| Phase::Stopped { reason }),
        (reason(), any::<bool>()).prop_map(|(reason, retrying)| Phase::Failed { reason, retrying }),
    ]
}

fn observed() -> impl Strategy<Value = Observed> {
    (0_u64..4, 0_u64..4, phase(), 0_u64..1000, 0_u32..3).prop_map(|(epoch, run, phase, since, restarts)| Observed {
        epoch,
        run,
        phase,
        since: UnixMs(since),
        restarts,
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    (0_u8..9, 0_u8..18).prop_map(|(voters, copies)| Settings { voters, copies })
}

fn note() -> impl Strategy<Value = Note> {
    prop_oneof![
        (0_u64..9).prop_map(|term| Note::Leads { term }),
        btree_set(node_id(), 0..4).prop_map(Note::Voters),
        node_id().prop_map(Note::Lost),
        node_id().prop_map(Note::Back),
        vec(any_vm(), 0..3).prop_map(|adopted| Note::Started { adopted }),
        (any_image(), any::<bool>()).prop_map(|(image, retrying)| Note::ImageFailing {
            image,
            reason: "gone".into(),
            retrying
        }),
    ]
}

fn deed() -> impl Strategy<Value = Change> {
    let deed = prop_oneof![6 => Just(Deed::LimitTransfers), 2 => Just(Deed::PinImage), 1 => Just(Deed::DeleteVm)];
    let object =
        prop_oneof![8 => Just("big on node 2".to_owned()), 1 => Just(String::new()), 1 => Just("x".repeat(161))];
    (node_id(), 198_u8..202, deed, object).prop_map(|(node, key, deed, object)| Change::RecordDeed {
        node,
        client: endpoint(key),
        deed,
        object,
    })
}

/// Disks of the pool have a thousand bytes: some of these lie beyond, and some overlap.
fn boot() -> impl Strategy<Value = BootRecord> {
    let range = (0_u64..1100, 0_u64..200).prop_map(|(start, bytes)| ByteRange { start, end: start + bytes });
    (vec(range, 0..4), any::<bool>()).prop_map(|(ranges, is_whole)| BootRecord { ranges, is_whole })
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let shown = option::weighted(0.9, (1_u8..4, secret()));
    let shown = shown.prop_map(|shown| shown.map(|(id, secret)| (TokenId([id; 8]), SecretHash([secret; 32]))));
    let timeout = prop_oneof![9 => 0_u64..60_000, 1 => any::<u64>()];
    prop_oneof![
        1 => Just(init().change),
        2 => settings().prop_map(Change::ChangeSettings),
        4 => token().prop_map(Change::CreateToken),
        1 => (1_u8..4).prop_map(|id| Change::RevokeToken(TokenId([id; 8]))),
        5 => (any_node(), shown).prop_map(|(node, token)| Change::AdmitNode { node, token }),
        2 => any_node().prop_map(Change::UpdateNode),
        2 => (node_id(), any::<bool>()).prop_map(|(node, force)| Change::RemoveNode { node, force }),
        1 => client().prop_map(Change::GrantClient),
        1 => prop_oneof![20 => 201_u8..203, 1 => Just(200)].prop_map(|key| Change::RevokeClient(endpoint(key))),
        3 => any_catalog_image().prop_map(Change::AddImage),
        1 => any_image().prop_map(Change::DeleteImage),
        3 => (any_image(), node_id()).prop_map(|(image, node)| Change::WantCopy { image, node }),
        4 => (any_image(), node_id(), proptest::bool::weighted(0.8))
            .prop_map(|(image, node, present)| Change::ReportCopy { image, node, present }),
        3 => (any_image(), node_id()).prop_map(|(image, node)| Change::ReleaseCopy { image, node }),
        3 => (any_image(), node_id(), boot()).prop_map(|(image, node, record)| Change::RecordBoot { image, node, record }),
        10 => (any_vm(), 1_u8..8, any_spec(), any::<bool>()).prop_map(|(id, name, spec, start)| {
            Change::CreateVm { id, name: format!("vm-{name}").parse().expect("a vm name"), spec, start }
        }),
        4 => any_vm().prop_map(Change::StartVm),
        3 => (any_vm(), timeout.clone()).prop_map(|(id, timeout_ms)| Change::StopVm { id, timeout_ms }),
        2 => (any_vm(), timeout).prop_map(|(id, timeout_ms)| Change::RestartVm { id, timeout_ms }),
        3 => any_vm().prop_map(Change::DeleteVm),
        12 => (any_vm(), node_id(), 0_u64..4).prop_map(|(id, node, epoch)| Change::PlaceVm { id, node, epoch }),
        8 => (any_vm(), node_id(), observed())
            .prop_map(|(id, node, observed)| Change::ReportVm { id, node, observed }),
        4 => (any_vm(), node_id(), 0_u64..4).prop_map(|(id, node, epoch)| Change::ForgetVm { id, node, epoch }),
        3 => note().prop_map(Change::Note),
        2 => deed(),
        1 => any::<u8>().prop_map(|byte| Change::SetDocumentsSecret(DocumentsSecret([byte; 32]))),
    ]
}

/// Whether a vm is to run.
pub(crate) fn is_on(state: &State, id: VmId) -> bool {
    state.vms.get(&id).is_some_and(|vm| vm.desired.power == Power::On)
}
