//! Apply by example: the answer to each command, and what it does to the state.
#![allow(clippy::unwrap_used)]

mod plausible;

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::{
    AUDIT_MAX, Actor, Answer, AuditEntry, Change, Client, ClientRole, ClusterId, Command, ContentHash, EndpointId,
    NodeId, Observed, Outcome, Phase, Power, Rejection, RequestId, RequestKey, SecretHash, Seed, Settings, State,
    Token, TokenId, UnixMs, VmId, VmSpec, limits,
};
use plausible::{USER, asked, cluster, endpoint, image, init, manifest, node, request_key, spec, told, vm_id};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn create(index: u8, spec: VmSpec, start: bool) -> Change {
    Change::CreateVm { id: vm_id(index), name: format!("vm-{index}").parse().unwrap(), spec, start }
}

/// A cluster of two with a vm that is on and placed on node 1.
fn with_vm() -> (State, VmId) {
    let mut state = cluster(2);
    state.apply(&asked(5_000, create(1, spec(0), true))).unwrap();
    state.apply(&told(1, Change::PlaceVm { id: vm_id(1), node: NodeId(1), epoch: 1 })).unwrap();
    (state, vm_id(1))
}

fn report(state: &mut State, run: u64, phase: Phase) -> Outcome {
    let observed = Observed { epoch: 1, run, phase, since: UnixMs(7_000), restarts: 0 };
    state.apply(&told(1, Change::ReportVm { id: vm_id(1), node: NodeId(1), observed }))
}

fn run(outcome: Outcome) -> u64 {
    match outcome {
        Ok(Answer::Vm { run, .. }) => run,
        other => panic!("expected a vm, got {other:?}"),
    }
}

fn says(outcome: Outcome) -> String {
    outcome.unwrap_err().to_string()
}

#[test]
fn the_first_command_makes_the_cluster_and_the_second_does_not() {
    let mut state = State::default();
    assert_eq!(state.apply(&asked(1, Change::StartVm(vm_id(1)))), Err(Rejection::NoCluster));
    assert_eq!(state.check(), Ok(()));
    state.apply(&init()).unwrap();
    assert_eq!(state.nodes[&NodeId(1)].joined_at, UnixMs(1_000));
    assert!(matches!(state.apply(&init()), Err(Rejection::ClusterExists(_))));
}

#[test]
fn strangers_have_no_say() {
    let mut state = cluster(2);
    let stranger = Command { by: Actor::Client(endpoint(9)), ..asked(1, Change::StartVm(vm_id(1))) };
    assert!(matches!(state.apply(&stranger), Err(Rejection::NotAllowed(_))));
    let update = || Change::UpdateNode(node(2, 2));
    assert!(matches!(state.apply(&told(9, update())), Err(Rejection::NotAllowed(_))));
    assert!(matches!(state.apply(&told(1, update())), Err(Rejection::NotAllowed(_))), "only node 2 speaks for node 2");
    assert_eq!(state.apply(&told(2, update())), Ok(Answer::Done));
    let place = Change::PlaceVm { id: vm_id(1), node: NodeId(1), epoch: 1 };
    assert!(matches!(state.apply(&asked(1, place)), Err(Rejection::NotAllowed(_))), "users do not place");
}

#[test]
fn answers_are_kept_for_the_last_requests_only() {
    let mut state = cluster(1);
    let ask = |number: u16, change: Change| {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&number.to_be_bytes());
        Command {
            request: Some(RequestKey { id: RequestId(id), content: ContentHash([1; 16]) }),
            ..asked(5_000, change)
        }
    };
    let first = ask(0, create(1, spec(1), true));
    assert_eq!(run(state.apply(&first)), 1);
    assert_eq!(run(state.apply(&first)), 1);
    for number in 1..=limits::ANSWERED_MAX {
        let _ = state.apply(&ask(u16::try_from(number).unwrap(), Change::StartVm(vm_id(9))));
    }
    assert_eq!(state.answered.len(), limits::ANSWERED_MAX);
    assert!(matches!(state.apply(&first), Err(Rejection::Invalid(_))), "forgotten, so it is carried out again");
}

fn token(id: u8, uses_left: Option<u32>, expires_at: Option<u64>) -> Token {
    let (id, secret_hash) = (TokenId([id; 8]), SecretHash([id; 32]));
    Token { id, secret_hash, uses_left, expires_at: expires_at.map(UnixMs), revoked: false, created_at: UnixMs(0) }
}

fn admit(id: u64, key: u8, token: Option<(u8, u8)>) -> Change {
    let token = token.map(|(id, secret)| (TokenId([id; 8]), SecretHash([secret; 32])));
    Change::AdmitNode { node: node(id, key), token }
}

#[test]
fn a_token_lets_in_whom_it_should_and_says_why_not() {
    let mut state = cluster(1);
    state.apply(&asked(10, Change::CreateToken(token(2, Some(1), Some(100))))).unwrap();
    let try_at = |state: &mut State, at, change| state.apply(&Command { at: UnixMs(at), ..told(1, change) });
    assert_eq!(try_at(&mut state, 20, admit(2, 2, None)), Err(Rejection::TokenMissing));
    assert_eq!(try_at(&mut state, 20, admit(2, 2, Some((7, 7)))), Err(Rejection::UnknownToken(TokenId([7; 8]))));
    assert_eq!(try_at(&mut state, 20, admit(2, 2, Some((2, 3)))), Err(Rejection::WrongSecret));
    assert_eq!(try_at(&mut state, 100, admit(2, 2, Some((2, 2)))), Err(Rejection::TokenExpired));
    assert_eq!(try_at(&mut state, 99, admit(2, 2, Some((2, 2)))), Ok(Answer::Done));
    assert_eq!(try_at(&mut state, 99, admit(3, 3, Some((2, 2)))), Err(Rejection::TokenUsedUp));
    assert_eq!(try_at(&mut state, 99, admit(2, 2, None)), Ok(Answer::Done), "a member needs no token");
    assert_eq!(state.nodes[&NodeId(2)].joined_at, UnixMs(99));
    assert_eq!(try_at(&mut state, 99, admit(2, 3, Some((1, 1)))), Err(Rejection::NodeIdTaken(NodeId(2))));
    assert_eq!(try_at(&mut state, 99, admit(3, 2, Some((1, 1)))), Err(Rejection::NodeKnownAs(NodeId(2))));
    state.apply(&asked(99, Change::RevokeToken(TokenId([1; 8])))).unwrap();
    assert_eq!(try_at(&mut state, 99, admit(3, 3, Some((1, 1)))), Err(Rejection::TokenRevoked));
    state.apply(&asked(99, Change::RemoveNode { node: NodeId(2), force: false })).unwrap();
    assert_eq!(try_at(&mut state, 99, admit(2, 2, None)), Err(Rejection::NodeRemoved));
}

#[test]
fn spent_tokens_make_room_after_a_day_and_not_before() {
    let mut state = cluster(1);
    let make = |state: &mut State, number: usize, at: u64| {
        let mut made = token(0, None, Some(at + 1_000));
        made.id = TokenId(u64::try_from(number).unwrap().to_be_bytes());
        state.apply(&asked(at, Change::CreateToken(made)))
    };
    // The cluster was made with a token that does not expire.
    for number in 1..limits::TOKENS_MAX {
        make(&mut state, number, 10_000).unwrap();
    }
    assert!(matches!(make(&mut state, 999, 20_000), Err(Rejection::LimitReached { limit: 256, .. })));
    assert!(make(&mut state, 999, 11_000 + DAY_MS).is_err());
    assert_eq!(state.tokens.len(), 256);
    make(&mut state, 999, 11_001 + DAY_MS).unwrap();
    assert_eq!(state.tokens.len(), 2);
    state.apply(&asked(20_000, Change::RevokeToken(TokenId([1; 8])))).unwrap();
    make(&mut state, 1_000, 1_001 + DAY_MS).unwrap();
    assert!(!state.tokens.contains_key(&TokenId([1; 8])), "revoked, and more than a day old");
}

#[test]
fn a_node_leaves_without_loss_or_by_force() {
    let (mut state, id) = with_vm();
    let remove = |state: &mut State, force| state.apply(&asked(8_000, Change::RemoveNode { node: NodeId(1), force }));
    assert_eq!(
        says(remove(&mut state, false)),
        "node 1 has vms placed on it (vm-1): delete them, or use --force to give up their disks"
    );
    state.apply(&asked(8_000, create(2, spec(1), true))).unwrap();
    state.apply(&told(1, Change::PlaceVm { id: vm_id(2), node: NodeId(1), epoch: 1 })).unwrap();
    state.apply(&asked(8_000, Change::DeleteVm(vm_id(2)))).unwrap();
    let copied = Change::ReportCopy { image: manifest(2).id(), node: NodeId(2), present: true };
    state.apply(&told(2, copied)).unwrap();
    remove(&mut state, true).unwrap();
    assert_eq!(state.check(), Ok(()));
    let vm = &state.vms[&id];
    assert_eq!((vm.placement, vm.desired.power, vm.epoch), (None, Power::Off, 1));
    assert!(!state.vms.contains_key(&vm_id(2)), "what was being deleted is gone with its node");
    assert!(state.images[&manifest(0).id()].holders.is_empty(), "a vm uses it, so its loss stays visible");
    assert!(!state.images.contains_key(&manifest(1).id()), "nobody uses it and nobody has it");
    assert_eq!(state.images[&manifest(2).id()].holders, [NodeId(2)].into());
    let last = Command { by: Actor::Client(USER), ..asked(9_000, Change::RemoveNode { node: NodeId(2), force: true }) };
    assert_eq!(state.apply(&last), Err(Rejection::LastNode(NodeId(2))));
}

#[test]
fn the_last_copy_keeps_its_node() {
    let mut state = cluster(2);
    let remove = Change::RemoveNode { node: NodeId(1), force: false };
    let said = says(state.apply(&asked(8_000, remove.clone())));
    assert!(said.starts_with("node 1 holds the last copy of image-"), "{said}");
    for index in 0..3 {
        let copied = Change::ReportCopy { image: manifest(index).id(), node: NodeId(2), present: true };
        state.apply(&told(2, copied)).unwrap();
    }
    assert_eq!(state.apply(&asked(8_000, remove)), Ok(Answer::Done));
}

#[test]
fn long_lists_of_names_are_cut_short() {
    let mut state = cluster(2);
    for index in 1..=8 {
        state.apply(&asked(5_000, create(index, VmSpec { memory_mib: 16, ..spec(1) }, true))).unwrap();
        state.apply(&told(1, Change::PlaceVm { id: vm_id(index), node: NodeId(1), epoch: 1 })).unwrap();
    }
    let said = says(state.apply(&asked(8_000, Change::DeleteImage(manifest(1).id()))));
    assert_eq!(said, "image image-1 is used by vm-1, vm-2, vm-3, vm-4, vm-5 and 3 more: delete them first");
}

#[test]
fn the_same_image_twice_is_one_image() {
    let mut state = cluster(2);
    let (two, id) = ([NodeId(2)].into(), manifest(0).id());
    assert_eq!(state.apply(&told(2, Change::AddImage(image(0, 0, two)))), Ok(Answer::Image(id)));
    assert_eq!(state.images[&id].holders, [NodeId(1), NodeId(2)].into());
    let known = Rejection::ImageKnownAs("image-0".parse().unwrap());
    assert_eq!(state.apply(&told(2, Change::AddImage(image(0, 5, [NodeId(2)].into())))), Err(known));
    let taken = Rejection::ImageNameTaken("image-0".parse().unwrap());
    assert_eq!(state.apply(&told(2, Change::AddImage(image(7, 0, [NodeId(2)].into())))), Err(taken));
    let mut forged = image(7, 7, [NodeId(2)].into());
    forged.id = manifest(8).id();
    assert!(says(state.apply(&told(2, Change::AddImage(forged)))).contains("is not the hash"));
}

#[test]
fn runs_begin_with_starts_and_restarts() {
    let (mut state, id) = with_vm();
    let start = asked(6_000, Change::StartVm(id));
    let stop = |timeout_ms| asked(6_000, Change::StopVm { id, timeout_ms });
    assert_eq!(run(state.apply(&start)), 1, "it is on its way");
    report(&mut state, 1, Phase::Failed { reason: "panic".into(), retrying: true }).unwrap();
    assert_eq!(run(state.apply(&start)), 1, "it is being tried again");
    report(&mut state, 1, Phase::Failed { reason: "panic".into(), retrying: false }).unwrap();
    assert_eq!(run(state.apply(&start)), 2, "nothing but this starts it again");
    assert_eq!(run(state.apply(&start)), 2, "what failed was the run before");
    assert_eq!(run(state.apply(&stop(30_000))), 2);
    assert_eq!(run(state.apply(&stop(60_000))), 2);
    assert_eq!(state.vms[&id].desired.stop_timeout_ms, 30_000, "a second stop makes it only shorter");
    assert_eq!(run(state.apply(&start)), 3);
    report(&mut state, 3, Phase::Stopped { reason: Some("shut down".into()) }).unwrap();
    assert_eq!(run(state.apply(&start)), 4);
    assert_eq!(run(state.apply(&asked(6_000, Change::RestartVm { id, timeout_ms: 5 }))), 5);
    assert_eq!(run(state.apply(&asked(6_000, create(2, spec(1), false)))), 0);
    assert!(says(state.apply(&stop(DAY_MS + 1))).contains("too long"));
}

#[test]
fn a_placement_is_the_next_one_or_none() {
    let (mut state, id) = with_vm();
    let place =
        |state: &mut State, id, node, epoch| state.apply(&told(1, Change::PlaceVm { id, node: NodeId(node), epoch }));
    assert_eq!(place(&mut state, id, 2, 2), Err(Rejection::AlreadyPlaced(NodeId(1))));
    state.apply(&asked(6_000, create(2, VmSpec { vcpus: 8, ..spec(1) }, true))).unwrap();
    for epoch in [0, 2, u64::MAX] {
        assert_eq!(place(&mut state, vm_id(2), 2, epoch), Err(Rejection::StaleEpoch { epoch: 0 }));
    }
    assert_eq!(place(&mut state, vm_id(2), 9, 1), Err(Rejection::UnknownNode(NodeId(9))));
    let full = "node 1 cannot carry the vm: needs 8 vcpus, 7 free of 8";
    assert_eq!(says(place(&mut state, vm_id(2), 1, 1)), full);
    assert_eq!(run(place(&mut state, vm_id(2), 2, 1)), 1);
    state.apply(&asked(6_000, Change::DeleteVm(vm_id(2)))).unwrap();
    assert!(matches!(place(&mut state, vm_id(2), 2, 2), Err(Rejection::VmDeleting(_))));
}

#[test]
fn stale_reports_are_refused() {
    let (mut state, id) = with_vm();
    state.apply(&asked(6_000, Change::RestartVm { id, timeout_ms: 0 })).unwrap();
    report(&mut state, 2, Phase::Running).unwrap();
    assert_eq!(report(&mut state, 1, Phase::Running), Err(Rejection::StaleEpoch { epoch: 1 }));
    assert!(matches!(report(&mut state, 3, Phase::Running), Err(Rejection::Invalid(_))));
    let observed = Observed { epoch: 2, ..state.vms[&id].observed.clone().unwrap() };
    let elsewhere = Change::ReportVm { id, node: NodeId(1), observed: observed.clone() };
    assert_eq!(state.apply(&told(1, elsewhere)), Err(Rejection::StaleEpoch { epoch: 1 }));
    let other = Change::ReportVm { id, node: NodeId(2), observed: Observed { epoch: 1, ..observed } };
    assert_eq!(state.apply(&told(2, other)), Err(Rejection::StaleEpoch { epoch: 1 }));
    let forget = |epoch| told(1, Change::ForgetVm { id, node: NodeId(1), epoch });
    assert!(matches!(state.apply(&forget(1)), Err(Rejection::Invalid(_))), "nobody deletes it");
    state.apply(&asked(6_000, Change::DeleteVm(id))).unwrap();
    assert_eq!(state.apply(&forget(0)), Err(Rejection::StaleEpoch { epoch: 1 }));
    assert_eq!(state.apply(&forget(1)), Ok(Answer::Done));
    assert_eq!(state.apply(&forget(1)), Err(Rejection::UnknownVm));
}

#[test]
fn specs_are_held_to_their_limits() {
    let mut state = cluster(1);
    let labels = |count: usize| (0..count).map(|n| (n.to_string(), "x".to_owned())).collect::<BTreeMap<_, _>>();
    let keys = |bytes| Seed { user_data: Some("x".repeat(bytes)), ssh_keys: vec!["k".into()] };
    let port = |text: &str| text.parse().unwrap();
    let bad = [
        (VmSpec { vcpus: 0, ..spec(0) }, "0 vcpus are not possible: choose 1 to 512"),
        (VmSpec { vcpus: 513, ..spec(0) }, "513 vcpus are not possible: choose 1 to 512"),
        (VmSpec { memory_mib: 15, ..spec(0) }, "15 MiB of memory are not possible: choose 16 to 67108864"),
        (VmSpec { disk_mib: 1023, ..spec(0) }, "a disk of 1023 MiB is not possible: choose 1024 to 1073741824 MiB"),
        (VmSpec { require: labels(33), ..spec(0) }, "33 labels are too many; at most 32 are allowed"),
        (VmSpec { seed: keys(65_536), ..spec(0) }, "user data and ssh keys are 65537 bytes; at most 65536 are allowed"),
        (
            VmSpec { publish: vec![port("80:80"), port("127.0.0.1:80:81")], ..spec(0) },
            "the published ports 80:80/tcp and 127.0.0.1:80:81/tcp cannot both listen on the host",
        ),
        (
            VmSpec { anti_affinity: Some("a\nb".into()), ..spec(0) },
            "the anti-affinity group contains a control character",
        ),
        (VmSpec { node: Some(NodeId(4)), ..spec(0) }, "there is no node 4 in the cluster"),
        (spec(3), "there is no such image"),
    ];
    for (spec, said) in bad {
        assert_eq!(says(state.apply(&asked(5_000, create(1, spec, true)))), said);
    }
    let publish = vec![port("80:80"), port("80:80/udp"), port("81:80")];
    let good = VmSpec { publish, seed: keys(65_535), require: labels(32), vcpus: 512, memory_mib: 16, ..spec(0) };
    assert_eq!(run(state.apply(&asked(5_000, create(1, good.clone(), true)))), 1);
    let twin = Change::CreateVm { id: vm_id(2), name: "vm-1".parse().unwrap(), spec: good, start: true };
    assert!(matches!(state.apply(&asked(5_000, twin)), Err(Rejection::VmNameTaken(_))));
}

#[test]
fn settings_and_nodes_are_held_to_their_limits() {
    let mut state = cluster(1);
    for (voters, copies, is_good) in
        [(3, 2, true), (2, 2, false), (9, 2, false), (7, 16, true), (1, 0, false), (1, 17, false)]
    {
        let change = Change::ChangeSettings(Settings { voters, copies });
        assert_eq!(state.apply(&asked(5_000, change)).is_ok(), is_good, "{voters} voters, {copies} copies");
    }
    let mut bad = node(1, 1);
    bad.addresses = vec!["0.0.0.0:7001".parse().unwrap()];
    let said = "0.0.0.0:7001 is not an address that another host could reach";
    assert_eq!(says(state.apply(&told(1, Change::UpdateNode(bad)))), said);
    assert!(matches!(state.apply(&told(1, admit(0, 9, Some((1, 1))))), Err(Rejection::Invalid(_))));
}

#[test]
fn a_cluster_keeps_an_admin() {
    let mut state = cluster(1);
    let grant = |key: EndpointId, name: &str, role: ClientRole| {
        asked(6_000, Change::GrantClient(Client { key, name: name.into(), added_at: UnixMs(0), role }))
    };
    let other = endpoint(50);
    assert_eq!(state.apply(&asked(5_000, Change::RevokeClient(USER))), Err(Rejection::LastAdmin));
    assert_eq!(state.apply(&grant(USER, "ada", ClientRole::Operator)), Err(Rejection::LastAdmin));
    state.apply(&grant(other, "grace", ClientRole::Operator)).unwrap();
    assert_eq!(state.apply(&asked(5_000, Change::RevokeClient(USER))), Err(Rejection::LastAdmin), "one is no admin");
    state.apply(&grant(other, "hopper", ClientRole::Admin)).unwrap();
    let known = &state.clients[&other];
    assert_eq!((known.name.as_str(), known.role, known.added_at), ("hopper", ClientRole::Admin, UnixMs(6_000)));
    state.apply(&grant(USER, "ada", ClientRole::Viewer)).unwrap();
    assert_eq!(
        state.apply(&grant(endpoint(51), "late", ClientRole::Admin)).unwrap_err(),
        Rejection::NotAllowed(format!(
            "this needs the role admin, and client ada has the role viewer: an admin can give it with `blixard cluster grant \
         {USER} --role admin`"
        ))
    );
    let revoke = Command { by: Actor::Client(other), ..asked(7_000, Change::RevokeClient(USER)) };
    state.apply(&revoke).unwrap();
    assert!(says(state.apply(&grant(endpoint(51), "late", ClientRole::Viewer))).contains("is not known"));
    let last = Command { by: Actor::Client(other), ..asked(7_000, Change::RevokeClient(other)) };
    assert_eq!(state.apply(&last), Err(Rejection::LastAdmin));
    let first = Change::InitCluster {
        cluster: ClusterId([1; 32]),
        node: node(1, 1),
        client: Client { key: USER, name: "ada".into(), added_at: UnixMs(0), role: ClientRole::Operator },
        settings: Settings::default(),
    };
    assert!(says(State::default().apply(&told(1, first))).contains("admin"));
}

fn trail(state: &State) -> Vec<String> {
    let line = |entry: &AuditEntry| {
        let by = match (entry.by, &entry.client_name) {
            (Actor::Node(node), _) => format!("node {node}"),
            (Actor::Client(_), name) => format!("client {}", name.as_deref().unwrap_or("unknown")),
        };
        let end = entry.rejection.as_ref().map_or_else(|| "done".to_owned(), ToString::to_string);
        format!("{} {by}: {} {}: {end}", entry.number, entry.deed, entry.object)
    };
    state.audit.entries.iter().map(line).collect()
}

#[test]
fn the_audit_trail_says_who_asked_for_what_and_how_it_ended() {
    let mut state = State::default();
    state.apply(&init()).unwrap();
    let key = endpoint(50);
    let grant = Client { key, name: "grace".into(), added_at: UnixMs(0), role: ClientRole::Operator };
    state.apply(&asked(6_000, Change::GrantClient(grant))).unwrap();
    let by_grace = |change: Change| Command { by: Actor::Client(key), ..asked(7_000, change) };
    state.apply(&by_grace(Change::AddImage(image(1, 1, [NodeId(1)].into())))).unwrap();
    state.apply(&by_grace(create(1, spec(1), true))).unwrap();
    let again = Command { request: Some(request_key(1, 1)), ..by_grace(create(2, spec(1), false)) };
    state.apply(&again).unwrap();
    state.apply(&again).unwrap();
    state.apply(&by_grace(create(1, spec(1), true))).unwrap_err();
    state.apply(&told(1, Change::PlaceVm { id: vm_id(1), node: NodeId(1), epoch: 1 })).unwrap();
    report(&mut state, 1, Phase::Running).unwrap();
    state.apply(&by_grace(Change::StopVm { id: vm_id(1), timeout_ms: 5 })).unwrap();
    state.apply(&by_grace(Change::DeleteVm(vm_id(2)))).unwrap();
    state.apply(&by_grace(Change::StartVm(vm_id(2)))).unwrap_err();
    state.apply(&by_grace(Change::RemoveNode { node: NodeId(1), force: true })).unwrap_err();
    state.apply(&asked(8_000, Change::CreateToken(token(2, Some(1), Some(3_608_000))))).unwrap();
    state.apply(&told(1, admit(2, 2, Some((2, 9))))).unwrap_err();
    state.apply(&told(1, admit(2, 2, Some((2, 2))))).unwrap();
    state.apply(&told(1, admit(2, 2, None))).unwrap();
    state.apply(&asked(8_000, Change::RevokeClient(key))).unwrap();
    state.apply(&by_grace(Change::StartVm(vm_id(1)))).unwrap_err();
    let key_two = endpoint(2);
    assert_eq!(
        trail(&state),
        [
            format!("1 node 1: found cluster {}: done", ClusterId([9; 32])),
            format!("2 client ada: grant client {key} role=operator name=grace: done"),
            format!("3 client grace: add image image-1 id={}: done", manifest(1).id()),
            "4 client grace: create vm vm-1 image=image-1: done".into(),
            "5 client grace: create vm vm-2 image=image-1: done".into(),
            format!("6 client grace: create vm vm-1 image=image-1: a vm with the id {} exists already", vm_id(1)),
            "7 client grace: stop vm vm-1 timeout=5ms: done".into(),
            "8 client grace: delete vm vm-2: done".into(),
            format!("9 client grace: start vm {}: there is no such vm", vm_id(2)),
            format!(
                "10 client grace: remove node 1 force: this needs the role admin, and client grace has the role operator: \
                 an admin can give it with `blixard cluster grant {key} --role admin`"
            ),
            "11 client ada: create token 0202020202020202 uses=1 ttl=3600s: done".into(),
            format!("12 node 1: admit node 2 key={key_two} token=0202020202020202: done"),
            format!("13 client ada: revoke client {key} name=grace: done"),
            format!("14 client unknown: start vm vm-1: the client key {key} is not known to the cluster"),
        ]
    );
    assert_eq!(state.audit.entries[1].at, UnixMs(6_000));
    let numbers = |after, max| state.audit.after(after, max).map(|entry| entry.number).collect::<Vec<_>>();
    assert_eq!(numbers(11, 10), [12, 13, 14]);
    assert_eq!((numbers(0, 2), numbers(14, 9), numbers(99, 9)), (vec![13, 14], vec![], vec![]));
}

#[test]
fn the_audit_trail_is_bounded_and_keeps_no_secret() {
    let mut state = cluster(1);
    let secret = "s3cret";
    let kept = Seed { user_data: Some(secret.into()), ssh_keys: vec![format!("ssh-ed25519 {secret}")] };
    state.apply(&asked(5_000, create(1, VmSpec { seed: kept, ..spec(1) }, false))).unwrap();
    let mut hidden = token(7, None, None);
    hidden.secret_hash = SecretHash(*b"s3cret..s3cret..s3cret..s3cret..");
    state.apply(&asked(5_000, Change::CreateToken(hidden))).unwrap();
    let mut loud = image(10, 9, [NodeId(1)].into());
    if let blixard_core::Manifest::Kernel { cmdline, .. } = &mut loud.manifest {
        *cmdline = format!("password={secret}");
    }
    loud.id = loud.manifest.id();
    let _ = state.apply(&asked(5_000, Change::AddImage(loud)));
    let client = |name: String| Client { key: endpoint(9), name, added_at: UnixMs(0), role: ClientRole::Viewer };
    state.apply(&asked(5_000, Change::GrantClient(client("x".repeat(1 << 20))))).unwrap_err();
    let entries = State { audit: state.audit.clone(), ..State::default() }.encode();
    assert!(!String::from_utf8_lossy(&entries).contains(secret));
    assert!(entries.len() < 10_000, "a name of a mebibyte is not kept");
    let before = state.audit.count;
    for _ in 0..AUDIT_MAX {
        let _ = state.apply(&asked(5_000, Change::StartVm(vm_id(9))));
    }
    assert_eq!((state.audit.entries.len(), state.audit.count), (AUDIT_MAX, before + AUDIT_MAX as u64));
    assert_eq!(state.audit.entries[0].number, before + 1);
    assert_eq!(state.check(), Ok(()));
}

/// What each role may change, written down apart from the code: every change that somebody with the least role may ask
/// for is refused to the role below, and decisions and reports to everybody.
#[test]
fn a_change_is_for_those_whose_role_allows_it() {
    let admin_only = ["ChangeSettings", "CreateToken", "RevokeToken", "RemoveNode", "GrantClient", "RevokeClient"];
    let operator = ["AddImage", "DeleteImage", "CreateVm", "StartVm", "StopVm", "RestartVm", "DeleteVm"];
    let told =
        ["AdmitNode", "UpdateNode", "WantCopy", "ReportCopy", "ReleaseCopy", "PlaceVm", "ReportVm", "ForgetVm", "Note"];
    let nodes_only = [&["InitCluster", "SetDocumentsSecret", "RecordDeed", "RecordBoot"][..], &told].concat();
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeSet::new();
    for _ in 0..2_000 {
        let change = plausible::change().new_tree(&mut runner).unwrap().current();
        let word = format!("{change:?}").split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned();
        for (role, may) in [
            (ClientRole::Viewer, false),
            (ClientRole::Operator, operator.contains(&word.as_str())),
            (ClientRole::Admin, !nodes_only.contains(&word.as_str())),
        ] {
            let mut state = cluster(2);
            let client = Client { key: endpoint(60), name: "bob".into(), added_at: UnixMs(0), role };
            state.apply(&asked(5_000, Change::GrantClient(client))).unwrap();
            let before = state.clone();
            let command = Command { by: Actor::Client(endpoint(60)), ..asked(6_000, change.clone()) };
            let outcome = state.apply(&command);
            let is_refused = matches!(outcome, Err(Rejection::NotAllowed(_) | Rejection::ClusterExists(_)));
            assert_eq!(!is_refused, may, "{role} and {word}: {outcome:?}");
            // All but the note that it was tried.
            state.audit = before.audit.clone();
            assert!(may || state == before, "a refused {word} changed the state");
        }
        seen.insert(word);
    }
    let all: BTreeSet<String> =
        [&admin_only[..], &operator, &nodes_only].concat().into_iter().map(str::to_owned).collect();
    assert_eq!(seen, all);
}

#[test]
fn a_node_that_shrinks_keeps_its_vms_and_gets_no_more() {
    let (mut state, _) = with_vm();
    let mut small = node(1, 1);
    small.capacity.physical.memory_mib = 100;
    state.apply(&told(1, Change::UpdateNode(small))).unwrap();
    assert_eq!(state.check(), Ok(()));
    state.apply(&asked(6_000, create(2, VmSpec { memory_mib: 16, ..spec(1) }, true))).unwrap();
    let placed = state.apply(&told(1, Change::PlaceVm { id: vm_id(2), node: NodeId(1), epoch: 1 }));
    assert_eq!(says(placed), "node 1 cannot carry the vm: needs 16 MiB memory, 0 free of 100");
}
