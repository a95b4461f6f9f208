//! The encodings that logs and snapshots keep for years, byte for byte.
//!
//! `tests/golden/` has one command for each change and one whole state, as hexadecimal text. A difference means that a
//! node could no longer read what it wrote before: give the format a new number instead. A new kind of change gets its file
//! by running this test once with `BLIXARD_BLESS=1`, which writes every file anew; the difference belongs into the review.
#![allow(clippy::unwrap_used)]

mod plausible;

use std::collections::BTreeSet;
use std::path::PathBuf;

use blixard_core::{
    Actor, BlobHash, BootRecord, ByteRange, Change, Client, ClientRole, ClusterId, Command, ConfigFile, Deed,
    DocumentsSecret, NodeId, Note, Observed, Phase, RestartPolicy, SecretHash, Seed, Settings, State, Strategy, Token,
    TokenId, UnixMs, VmId, VmSpec,
};
use plausible::{USER, endpoint, image, manifest, node, prelude, request_key, spec, vm_id};

const LINE_DIGITS: usize = 120;

fn check(name: &str, bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let lines: Vec<&str> = hex.as_bytes().chunks(LINE_DIGITS).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let text = lines.join("\n") + "\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    if std::env::var_os("BLIXARD_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    assert_eq!(text, known, "the encoding of {name} has changed");
}

fn full_node() -> blixard_core::Node {
    let mut full = node(300, 3);
    full.addresses.push("[2001:db8::7]:7001".parse().unwrap());
    full.relay_url = Some("https://relay.example".into());
    full.labels.insert("zone".into(), "a".into());
    full.joined_at = UnixMs(1_700_000_000_000);
    full
}

fn token() -> Token {
    Token {
        id: TokenId([3; 8]),
        secret_hash: SecretHash([4; 32]),
        uses_left: Some(2),
        expires_at: Some(UnixMs(1_800_000_000_000)),
        revoked: false,
        created_at: UnixMs(1_700_000_000_000),
    }
}

fn full_spec() -> VmSpec {
    VmSpec {
        publish: vec!["127.0.0.1:8080:80".parse().unwrap(), "5353:53/udp".parse().unwrap()],
        seed: Seed { user_data: Some("#cloud-config\n".into()), ssh_keys: vec!["ssh-ed25519 AAAA ada".into()] },
        require: [("zone".to_owned(), "a".to_owned())].into(),
        anti_affinity: Some("db".into()),
        strategy: Strategy::Pack,
        node: Some(NodeId(1)),
        restart: RestartPolicy::OnFailure { limit: 7 },
        config_files: vec![ConfigFile {
            source: "/etc/app.conf=doc:config/web/app.conf".parse().unwrap(),
            hash: BlobHash([6; 32]),
            content: b"level = 3\n".to_vec(),
        }],
        lazy: Some(true),
        ..spec(2)
    }
}

fn boot() -> BootRecord {
    BootRecord { ranges: [(512, 1000), (0, 16)].map(|(start, end)| ByteRange { start, end }).into(), is_whole: true }
}

/// One of each change. The match below keeps the list whole.
fn changes() -> Vec<(&'static str, Change)> {
    let (id, image_id, member) = (vm_id(5), manifest(2).id(), NodeId(300));
    let client =
        || Client { key: USER, name: "ada".into(), added_at: UnixMs(1_700_000_000_000), role: ClientRole::Admin };
    let settings = Settings { voters: 5, copies: 3 };
    let observed = Observed {
        epoch: 3,
        run: 2,
        phase: Phase::Failed { reason: "signal 9".into(), retrying: true },
        since: UnixMs(1_700_000_000_001),
        restarts: 4,
    };
    let shown = Some((TokenId([3; 8]), SecretHash([4; 32])));
    let wanted = |holders: BTreeSet<NodeId>| blixard_core::Image { wanted: [NodeId(2)].into(), ..image(2, 1, holders) };
    let all = vec![
        Change::InitCluster { cluster: ClusterId([9; 32]), node: full_node(), client: client(), settings },
        Change::ChangeSettings(settings),
        Change::CreateToken(token()),
        Change::RevokeToken(TokenId([3; 8])),
        Change::AdmitNode { node: full_node(), token: shown },
        Change::UpdateNode(full_node()),
        Change::RemoveNode { node: member, force: true },
        Change::GrantClient(client()),
        Change::RevokeClient(USER),
        Change::AddImage(wanted([NodeId(1), member].into())),
        Change::DeleteImage(image_id),
        Change::WantCopy { image: image_id, node: member },
        Change::ReportCopy { image: image_id, node: member, present: true },
        Change::CreateVm { id, name: "web-1".parse().unwrap(), spec: full_spec(), start: true },
        Change::StartVm(id),
        Change::StopVm { id, timeout_ms: 30_000 },
        Change::RestartVm { id, timeout_ms: 0 },
        Change::DeleteVm(id),
        Change::PlaceVm { id, node: member, epoch: 3 },
        Change::ReportVm { id, node: member, observed },
        Change::ForgetVm { id, node: member, epoch: 3 },
        Change::Note(Note::Started { adopted: vec![id] }),
        Change::SetDocumentsSecret(DocumentsSecret([8; 32])),
        Change::ReleaseCopy { image: image_id, node: member },
        Change::RecordDeed { node: member, client: USER, deed: Deed::PauseTransfer, object: "big on node 300".into() },
        Change::RecordBoot { image: image_id, node: member, record: boot() },
    ];
    all.into_iter().map(|change| (file_of(&change), change)).collect()
}

/// The file of each change. A new kind of change does not compile until it has one, and then the test asks for it.
fn file_of(change: &Change) -> &'static str {
    match change {
        Change::InitCluster { .. } => "init_cluster",
        Change::ChangeSettings(_) => "change_settings",
        Change::CreateToken(_) => "create_token",
        Change::RevokeToken(_) => "revoke_token",
        Change::AdmitNode { .. } => "admit_node",
        Change::UpdateNode(_) => "update_node",
        Change::RemoveNode { .. } => "remove_node",
        Change::GrantClient(_) => "grant_client",
        Change::RevokeClient(_) => "revoke_client",
        Change::AddImage(_) => "add_image",
        Change::DeleteImage(_) => "delete_image",
        Change::WantCopy { .. } => "want_copy",
        Change::ReportCopy { .. } => "report_copy",
        Change::CreateVm { .. } => "create_vm",
        Change::StartVm(_) => "start_vm",
        Change::StopVm { .. } => "stop_vm",
        Change::RestartVm { .. } => "restart_vm",
        Change::DeleteVm(_) => "delete_vm",
        Change::PlaceVm { .. } => "place_vm",
        Change::ReportVm { .. } => "report_vm",
        Change::ForgetVm { .. } => "forget_vm",
        Change::Note(_) => "note",
        Change::SetDocumentsSecret(_) => "set_documents_secret",
        Change::ReleaseCopy { .. } => "release_copy",
        Change::RecordDeed { .. } => "record_deed",
        Change::RecordBoot { .. } => "record_boot",
    }
}

#[test]
fn each_kind_of_command_keeps_its_encoding() {
    let mut files = BTreeSet::new();
    for (index, (file, change)) in (0_u8..).zip(changes()) {
        let by = if index % 2 == 0 { Actor::Node(NodeId(300)) } else { Actor::Client(endpoint(7)) };
        let request = (index % 2 == 1).then_some(request_key(index, index + 100));
        let command = Command { request, at: UnixMs(1_700_000_000_000), by, change };
        check(&format!("command_{file}"), &command.encode());
        assert_eq!(Command::decode(&command.encode()), Ok(command));
        files.insert(format!("command_{file}.hex"));
    }
    files.insert("state.hex".into());
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let found = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found: BTreeSet<String> = found.filter(|name| name != "state.hex").chain(["state.hex".to_owned()]).collect();
    assert_eq!(found, files, "each kind of change has one file, and there are no others");
}

/// A state with something of everything in it, and in its answers both an answer and a rejection.
fn full_state() -> State {
    let mut state = State::default();
    for command in prelude(3) {
        state.apply(&command).unwrap();
    }
    let mut request = 0;
    let mut apply = |by: Actor, change: Change| {
        request += 1;
        let command =
            Command { request: Some(request_key(request, request + 100)), at: UnixMs(1_700_000_000_000), by, change };
        let _ = state.apply(&command);
    };
    let (user, first) = (Actor::Client(USER), Actor::Node(NodeId(1)));
    apply(user, Change::CreateToken(token()));
    let mut labelled = node(1, 1);
    labelled.labels.insert("zone".into(), "a".into());
    apply(first, Change::UpdateNode(labelled));
    apply(first, Change::WantCopy { image: manifest(0).id(), node: NodeId(2) });
    let create = |number: u8, spec: VmSpec| {
        let name = format!("web-{number}").parse().unwrap();
        Change::CreateVm { id: vm_id(number), name, spec, start: number == 1 }
    };
    apply(user, create(1, full_spec()));
    apply(user, create(2, VmSpec { restart: RestartPolicy::Always, ..spec(1) }));
    apply(user, create(2, spec(1)));
    apply(first, Change::PlaceVm { id: vm_id(1), node: NodeId(1), epoch: 1 });
    let observed = Observed { epoch: 1, run: 1, phase: Phase::Running, since: UnixMs(1_700_000_000_005), restarts: 0 };
    apply(first, Change::ReportVm { id: vm_id(1), node: NodeId(1), observed });
    apply(user, Change::RemoveNode { node: NodeId(3), force: false });
    apply(user, Change::StartVm(VmId([250; 16])));
    apply(first, Change::Note(Note::Leads { term: 4 }));
    apply(first, Change::Note(Note::Voters([NodeId(1), NodeId(2)].into())));
    apply(first, Change::Note(Note::Lost(NodeId(2))));
    apply(first, Change::SetDocumentsSecret(DocumentsSecret([8; 32])));
    apply(first, Change::RecordBoot { image: manifest(0).id(), node: NodeId(1), record: boot() });
    state
}

#[test]
fn the_whole_state_keeps_its_encoding() {
    let state = full_state();
    assert_eq!(state.check(), Ok(()));
    let parts = [state.nodes.len(), state.removed.len(), state.tokens.len(), state.images.len(), state.vms.len()];
    assert_eq!(parts, [2, 1, 2, 3, 2]);
    assert!(state.answered.iter().any(|(_, outcome)| outcome.is_err()));
    assert!(state.vms[&vm_id(1)].observed.is_some() && state.boots.len() == 1);
    assert!(state.audit.entries.iter().any(|entry| entry.rejection.is_some()) && state.audit.entries.len() > 5);
    assert!(state.history.events.len() > 10 && state.history.leader.is_some() && !state.history.lost.is_empty());
    check("state", &state.encode());
    assert_eq!(State::decode(&state.encode()), Ok(state));
}
