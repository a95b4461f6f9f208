//! Inputs that the decoders accept: what the corpora are made of, and where property tests begin to bend.
//!
//! Types that the crates keep to themselves are written as tuples of the same fields, which postcard encodes alike; that the
//! decoders accept them is tested, so a field that is added there is missed here.
//!
//! Long because it is a list with one entry for each decoder and request, of which none needs another.

use blixard_core::{Audit, Change, ClusterId, Command, EndpointId, History, Node, NodeId, State, TokenId};
use blixard_node::transport::{PeerAddress, Ticket, TicketSecret};
use serde::Serialize;
use serde_json::json;

type Examples = Vec<(String, Vec<u8>)>;

/// Events, or entries of the audit trail, of one example: a corpus has small files.
const LISTED: usize = 6;
const KEY: &str = "0707070707070707070707070707070707070707070707070707070707070707";
const CLUSTER: &str = "0303030303030303030303030303030303030303030303030303030303030303";

fn named<N: Into<String>, B: Into<Vec<u8>>>(examples: impl IntoIterator<Item = (N, B)>) -> Examples {
    examples.into_iter().map(|(name, bytes)| (name.into(), bytes.into())).collect()
}

fn postcard(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes into memory")
}

/// A file of the golden encodings, which are hexadecimal text.
fn golden(path: &std::path::Path) -> Vec<u8> {
    let text = std::fs::read_to_string(path).expect("the golden files are readable");
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).expect("two digits are a byte")).collect()
}

pub(crate) fn commands() -> Examples {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/blixard-core/tests/golden");
    let files = std::fs::read_dir(folder).expect("the golden files are there");
    let mut commands: Examples = files
        .filter_map(|file| {
            let path = file.expect("the golden files are listed").path();
            let name = path.file_stem()?.to_str()?.strip_prefix("command_")?.to_owned();
            Some((name, golden(&path)))
        })
        .collect();
    commands.sort();
    commands
}

pub(crate) fn chunk_indexes() -> Examples {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/blixard-core/tests/chunks");
    let cut = ["blocks", "content"].map(|name| (name, golden(format!("{folder}/{name}.hex").as_ref())));
    // 8 KiB of zeros behind a chunk of one byte, and nothing at all.
    let head = [&[1][..], &[7; 32]].concat();
    let small = [&head[..], &[0x81, 0x40, 2], &[9; 8], &[0x81, 0x80, 0x01]].concat();
    let empty = [&head[..], &[0]].concat();
    named(cut.into_iter().chain([("small", small), ("empty", empty)]))
}

/// A node as the golden commands have it.
fn node() -> Node {
    let nodes = commands().into_iter().find_map(|(_, bytes)| match Command::decode(&bytes).ok()?.change {
        Change::AdmitNode { node, .. } => Some(node),
        _ => None,
    });
    nodes.expect("a golden command admits a node")
}

fn peer() -> PeerAddress {
    PeerAddress {
        endpoint: EndpointId([7; 32]),
        addresses: vec!["127.0.0.1:7001".parse().expect("an address"), "[::1]:7001".parse().expect("an address")],
        relay_url: Some("https://relay.example".to_owned()),
    }
}

pub(crate) fn states() -> Examples {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/blixard-core/tests/golden/state.hex");
    let whole = State::decode(&golden(folder.as_ref())).expect("the golden state is read by the version that wrote it");
    let (audit, history) = (&whole.audit, &whole.history);
    let listed: Vec<_> = history.events.iter().cloned().collect();
    let kept: Vec<_> = audit.entries.iter().cloned().collect();
    let empty = State::default;
    let parts = [
        ("empty", empty()),
        ("nodes", State { nodes: whole.nodes.clone(), removed: whole.removed.clone(), ..empty() }),
        (
            "keys",
            State { cluster: whole.cluster, tokens: whole.tokens.clone(), clients: whole.clients.clone(), ..empty() },
        ),
        ("images", State { images: whole.images.clone(), settings: whole.settings, ..empty() }),
        ("vms", State { vms: whole.vms.clone(), ..empty() }),
        ("answered", State { answered: whole.answered.clone(), ..empty() }),
    ];
    let mut parts: Vec<(String, State)> = parts.into_iter().map(|(name, state)| (name.to_owned(), state)).collect();
    for (number, events) in (1..).zip(listed.chunks(LISTED)) {
        let history = History { events: events.to_vec().into(), ..history.clone() };
        parts.push((format!("history_{number}"), State { history, ..empty() }));
    }
    for (number, entries) in (1..).zip(kept.chunks(LISTED)) {
        let audit = Audit { entries: entries.to_vec().into(), ..audit.clone() };
        parts.push((format!("audit_{number}"), State { audit, ..empty() }));
    }
    named(parts.into_iter().map(|(name, state)| (name, state.encode())))
}

fn whole_and_bare_ticket() -> [(&'static str, Ticket); 2] {
    let secret = TicketSecret { token: TokenId([1; 8]), secret: [9; 32] };
    let whole = Ticket { cluster: ClusterId([3; 32]), peers: vec![peer(), peer()], secret: Some(secret) };
    let bare = Ticket { peers: vec![], secret: None, ..whole.clone() };
    [("whole", whole), ("bare", bare)]
}

pub(crate) fn tickets() -> Examples {
    named(whole_and_bare_ticket().map(|(name, ticket)| (name, ticket.to_string())))
}

pub(crate) fn ticket_contents() -> Examples {
    let [whole, bare] = whole_and_bare_ticket().map(|(name, ticket)| (name, postcard(&ticket)));
    // As many nodes as there may be, and behind them as much as one more would take.
    let known_by_key = PeerAddress { addresses: vec![], relay_url: None, ..peer() };
    let full = Ticket { cluster: ClusterId([3; 32]), peers: vec![known_by_key; 16], secret: None };
    named([whole, bare, ("full", [postcard(&full), vec![0; 40]].concat())])
}

pub(crate) fn catalog_records() -> Examples {
    let blob = |bytes: u64| json!({ "hash": KEY, "bytes": bytes });
    let disk = json!({ "part": blob(70), "format": "raw", "virtual_bytes": 70, "chunks": blob(40) });
    let kernel = json!({ "kernel": blob(7), "initrd": blob(8), "root": null, "cmdline": "console=ttyS0" });
    named([
        ("disk", json!({ "manifest": { "disk": disk }, "note": null }).to_string()),
        ("kernel", json!({ "manifest": { "kernel": kernel }, "note": "with the updates of May" }).to_string()),
    ])
}

pub(crate) fn document_tickets() -> Examples {
    // Nodes, a secret, a name, and a key to read or to write it by.
    let ticket = |nodes: usize, right: u8| postcard(&(vec![peer(); nodes], [9_u8; 32], "config", right, [8_u8; 32]));
    named([("read", ticket(1, 0)), ("write", ticket(8, 1))])
}

/// An entry of a document: two signatures, its name (document, author, key), and length, hash and time of its value.
fn signed_entry(key: &str) -> Vec<u8> {
    let name = [&[5; 32], &[6; 32], key.as_bytes(), b"\0"].concat();
    [vec![7; 128], postcard(&(name, 5_u64, [4_u8; 32], 1_700_000_000_000_000_u64))].concat()
}

pub(crate) fn document_requests() -> Examples {
    let request = |number: u8, rest: Vec<u8>| [vec![9; 32], vec![number], rest].concat();
    let sums = vec![2_u8; 1024];
    named([
        ("compare", request(0, postcard(&(&sums, 0_u32, None::<[u8; 32]>)))),
        ("wait", request(0, postcard(&(&sums, 3_u32, Some([1_u8; 32]))))),
        ("value", request(1, postcard(&("web/app.conf", [4_u8; 32])))),
        ("give", request(2, signed_entry("app.conf"))),
    ])
}

pub(crate) fn document_answers() -> Examples {
    let entries = [vec![2], signed_entry("a"), signed_entry("web/b")].concat();
    let told = [vec![0], postcard(&vec![2_u8; 1024]), entries, vec![1]].concat();
    named([
        ("entries", told),
        ("value", [vec![1], postcard(&Some(b"value".to_vec()))].concat()),
        ("no_value", vec![1, 0]),
        ("given", vec![2, 0]),
        ("refused", vec![2, 1, 3]),
    ])
}

/// A part of a share, which names a blob.
fn part(bytes: u64) -> ([u8; 32], u64) {
    ([3; 32], bytes)
}

pub(crate) fn share_tickets() -> Examples {
    let direct = PeerAddress { relay_url: None, ..peer() };
    named([
        ("direct", postcard(&(direct, [9_u8; 32], part(70)))),
        ("relayed", postcard(&(peer(), [9_u8; 32], part(7_000)))),
    ])
}

pub(crate) fn share_requests() -> Examples {
    let request = |part: u8, from_bytes: u64| postcard(&([9_u8; 32], part, from_bytes));
    named([("listing", request(0, 0)), ("content", request(1, 16 << 20))])
}

pub(crate) fn share_listings() -> Examples {
    // A folder, a file of so many bytes, and a link to somewhere.
    let folder = |path: &str| postcard(&(path.as_bytes(), 0o755_u32, 0_u8));
    let file = |path: &str, bytes: u64| postcard(&(path.as_bytes(), 0o644_u32, 1_u8, bytes));
    let link = |path: &str, target: &str| postcard(&(path.as_bytes(), 0_u32, 2_u8, target.as_bytes()));
    let listing = |entries: &[Vec<u8>], content: Option<u64>| {
        let head = [vec![1], postcard(&(b"stuff".as_slice(), entries.len()))].concat();
        [head, entries.concat(), postcard(&content.map(part))].concat()
    };
    let deep = [
        folder(""),
        folder("a"),
        folder("a/b"),
        link("a/b/up", "../../c"),
        file("a/x", 3),
        file("a-", 0),
        link("c", "a"),
    ];
    named([
        ("file", listing(&[file("", 5)], Some(5))),
        ("empty", listing(&[folder("")], None)),
        ("deep", listing(&deep, Some(3))),
    ])
}

pub(crate) fn traces() -> Examples {
    named([("sampled", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")])
}

pub(crate) fn registries() -> Examples {
    let registry = |relay: Option<&str>| {
        json!({
            "cluster_node_id": 1, "endpoint_id": KEY, "direct_addresses": ["127.0.0.1:7001", "[::1]:7001"],
            "relay_url": relay, "cluster_id": CLUSTER,
        })
        .to_string()
    };
    named([("direct", registry(None)), ("relayed", registry(Some("https://relay.example")))])
}

pub(crate) fn bootstraps() -> Examples {
    let bootstrap = |relay: Option<&str>| {
        json!({
            "node_id": 1, "p2p_node_id": KEY, "p2p_addresses": ["127.0.0.1:7001", "[::1]:7001"],
            "p2p_relay_url": relay, "cluster_id": CLUSTER,
        })
        .to_string()
    };
    named([("direct", bootstrap(None)), ("relayed", bootstrap(Some("https://relay.example")))])
}

pub(crate) fn configs() -> Examples {
    let whole = "id = 3\nbind = '127.0.0.1:7001'\ndata_dir = '/srv/b'\npeers = ['a:1', 'b:2']\np2p_enabled = false\n\
                 relays = []\nhypervisor = 'fake'\n[labels]\nzone = 'a'\n[capacity]\nvcpus = 4\nmemory_mib = 512\n\
                 overcommit_vcpus_percent = 200\n[raft]\nheartbeat_ms = 50\nelection_min_ms = 150\n[cluster]\nvoters = 5\n";
    named([("least", "id = 1\n"), ("whole", whole), ("highest_port", "id = 1\nbind = '127.0.0.1:64535'\n")])
}

pub(crate) fn join_requests() -> Examples {
    let secret = TicketSecret { token: TokenId([1; 8]), secret: [9; 32] };
    let request = |secret: Option<TicketSecret>| postcard(&(ClusterId([3; 32]), node(), u64::MAX, secret, true));
    named([("member", request(None)), ("stranger", request(Some(secret)))])
}

pub(crate) fn join_answers() -> Examples {
    let members = vec![(NodeId(1), peer()), (NodeId(300), peer())];
    let cluster = ClusterId([3; 32]);
    named([
        ("admitted", postcard(&(0_u8, cluster, members))),
        // Refusals of the state begin with 0, of which the first has no fields.
        ("rejected", postcard(&(1_u8, 0_u8, 0_u8))),
        ("other_cluster", postcard(&(1_u8, 1_u8, cluster, ClusterId([4; 32])))),
        ("try_later", postcard(&(2_u8, "no leader"))),
    ])
}

fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("examples are short");
    [&length.to_le_bytes()[..], body].concat()
}

pub(crate) fn raft_streams() -> Examples {
    let vote = ((3_u64, Some(1_u64)), true);
    let log_id = (3_u64, 9_u64);
    let command =
        commands().into_iter().find(|(name, _)| name == "create_vm").expect("there is one golden file a change").1;
    let trace = Some(([4_u8; 16], [5_u8; 8]));
    let entries = (vec![(log_id, 0_u8)], vec![(log_id, 1_u8, command.clone(), trace)]);
    let append = |kind: u8, entries: &[u8]| {
        // An entry count stands before the entries, and behind them what is committed.
        let head = postcard(&(kind, vote, Some(log_id)));
        frame(&[&head[..], entries, &postcard(&Some(log_id))].concat())
    };
    let vote_request = |kind: u8| frame(&postcard(&(kind, vote, Some(log_id), false)));
    let no_membership = (None::<(u64, u64)>, (Vec::<Vec<u64>>::new(), Vec::<(u64, (String,))>::new()));
    let snapshot = (3_u8, vote, (Some(log_id), no_membership, "1"), 5_u64);
    let untraced = None::<([u8; 16], [u8; 8])>;
    let (propose, again) = (frame(&postcard(&(5_u8, &command, trace))), frame(&postcard(&(5_u8, &command, untraced))));
    named([
        ("append_blank", append(0, &postcard(&entries.0))),
        ("append_command", append(0, &postcard(&entries.1))),
        ("vote", vote_request(1)),
        ("pre_vote", vote_request(2)),
        ("snapshot", [frame(&postcard(&snapshot)), b"state".to_vec()].concat()),
        ("transfer", frame(&postcard(&(4_u8, vote, 2_u64, Some(log_id))))),
        ("propose_twice", [propose, again].concat()),
        ("read_index", frame(&[6])),
    ])
}

pub(crate) fn requests() -> Examples {
    let head = |line: &str, more: &str| format!("{line} HTTP/1.1\r\nhost: blixard\r\n{more}\r\n");
    let with_body = |line: &str, body: serde_json::Value| {
        let body = body.to_string();
        let more = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        head(line, &more) + &body
    };
    let hash = "0a".repeat(32);
    let vm = "0b".repeat(16);
    let for_client = format!("x-blixard-client: {hash}\r\n");
    let seed = json!({ "user_data": "#cloud-config\n", "ssh_keys": ["ssh-ed25519 AAAA ada"] });
    let chunked = "content-type: application/json\r\ntransfer-encoding: chunked\r\n";
    named([
        ("cluster", head("GET /v1/cluster?stale=true", "")),
        ("settings", with_body("PUT /v1/cluster/settings", json!({ "voters": 5, "copies": 2 }))),
        ("remove", with_body("POST /v1/nodes/3/remove", json!({ "force": true }))),
        ("token", with_body("POST /v1/tokens", json!({ "uses": 2, "ttl_ms": 60_000 }))),
        (
            "token_revoke",
            head("DELETE /v1/tokens/0101010101010101", "x-blixard-request: 00000000000000000000000000000001\r\n"),
        ),
        ("grant", with_body(&format!("PUT /v1/clients/{KEY}"), json!({ "role": "viewer" }))),
        (
            "image_disk",
            with_body("POST /v1/images", json!({ "name": "debian", "source": { "kind": "disk", "disk": hash } })),
        ),
        (
            "image_kernel",
            with_body(
                "POST /v1/images",
                json!({ "name": "tiny", "source": { "kind": "kernel", "kernel": hash, "initrd": hash, "root": null, "cmdline": "quiet" } }),
            ),
        ),
        ("image_part", head("GET /v1/images/debian/parts/disk", "")),
        (
            "vm",
            with_body(
                "POST /v1/vms",
                json!({ "name": "web", "image": "tiny", "vcpus": 2, "memory_mib": 512, "seed": seed,
                    "config_files": [{ "path": "/etc/app.conf", "document": "config", "key": "web/app.conf" }] }),
            ),
        ),
        (
            "vm_chunked",
            head("POST /v1/vms", chunked)
                + "38\r\n{\"name\":\"web\",\"image\":\"tiny\",\"vcpus\":1,\"memory_mib\":128}\r\n0\r\n\r\n",
        ),
        ("vm_stop", with_body("POST /v1/vms/web/stop", json!({ "timeout_ms": 10 }))),
        ("vm_logs", head("GET /v1/vms/web/logs?follow=true&tail_bytes=100", "")),
        ("leave", with_body("POST /v1/cluster/leave", json!({ "force": false }))),
        ("events_watch", head("GET /v1/events/watch?vm=web", "")),
        ("audit_watch", head("GET /v1/audit/watch?last=5", "")),
        ("images", head("GET /v1/images?stale=true", "")),
        ("image", head("GET /v1/images/debian?stale=true", "")),
        ("shares", head("GET /v1/shares", "")),
        ("share_create", with_body("POST /v1/shares", json!({ "listing": KEY, "ttl_ms": 60_000 }))),
        ("share_stop", head("DELETE /v1/shares/0102030405060708?node=2", "")),
        ("catalogs", head("GET /v1/catalogs", "")),
        ("publish", with_body("PUT /v1/catalogs/catalog/images/tiny", json!({ "note": "of May" }))),
        ("withdraw", head("DELETE /v1/catalogs/catalog/images/tiny", "")),
        ("pull", with_body("POST /v1/catalogs/upstream/images/tiny/pull", json!({ "name": "small", "again": true }))),
        ("documents", head("GET /v1/documents", "")),
        ("document_create", head("PUT /v1/documents/web", "")),
        ("document_shares", head("GET /v1/documents/web/shares", "")),
        ("document_share", with_body("POST /v1/documents/web/shares", json!({ "write": true, "ttl_ms": 60_000 }))),
        ("document_share_stop", head("DELETE /v1/documents/web/shares/0102030405060708", "")),
        ("document_join", with_body("PUT /v1/documents/web/origin", json!({ "ticket": "blixarddocaf3" }))),
        ("document_leave", head("DELETE /v1/documents/web/origin", "")),
        ("entries", head("GET /v1/documents/config/entries?prefix=web%2F&all=true", "")),
        ("document_watch", head("GET /v1/documents/config/watch?prefix=a", "")),
        ("value", head("GET /v1/documents/config/value?key=web/app.conf", "")),
        ("value_set", head("PUT /v1/documents/config/value?key=motd", "content-length: 5\r\n") + "hello"),
        ("value_delete", head("DELETE /v1/documents/config/value?key=motd", "")),
        ("vms", head("GET /v1/vms?stale=true", "")),
        ("vm_show", head("GET /v1/vms/web?stale=true", "")),
        ("vm_restart", with_body("POST /v1/vms/web/restart", json!({ "timeout_ms": null }))),
        ("events", head("GET /v1/events?after=18446744073709551615&last=3&vm=web&node=1&stale=true", "")),
        ("audit", head("GET /v1/audit?last=10&stale=true", "")),
        ("image_compare", head("GET /v1/images/debian/compare?base=older", "")),
        ("image_fetch", head("POST /v1/images/debian/fetch?node=2&deadline_ms=60000", "")),
        ("transfer_pause", head("POST /v1/transfers/debian/pause?node=2", "")),
        ("transfer_resume", head("POST /v1/transfers/debian/resume?node=2", "")),
        ("transfer_cancel", head("POST /v1/transfers/debian/cancel?node=2", "")),
        ("image_pin", head("POST /v1/images/debian/pin?node=2", "")),
        ("peers", head("GET /v1/peers?node=2", "")),
        ("image_unpin", head("POST /v1/images/debian/unpin?node=2", "")),
        ("verification", head("GET /v1/images/debian/verify?node=2", "")),
        ("cache", head("GET /v1/cache", "")),
        ("peer_verify", head(&format!("POST /cache/{hash}/verify"), "")),
        ("image_verify", head("POST /v1/images/debian/verify?node=2", "")),
        ("cache_gc", head("POST /v1/cache/gc?node=2", "")),
        ("peer_pin", head(&format!("POST /cache/{hash}/unpin"), &for_client)),
        ("peer_order", head(&format!("POST /transfers/{hash}/pause"), &for_client)),
        ("limits_shown", head("GET /v1/transfers/limits?node=2", "")),
        (
            "limits",
            with_body(
                "PUT /v1/transfers/limits?node=2",
                json!({ "peer": 3, "up_bytes_per_s": 20 << 20, "down_bytes_per_s": null }),
            ),
        ),
        ("peer_live", head(&format!("GET /vms/{vm}/live?image={hash}"), "")),
        ("peer_blob", head(&format!("GET /blobs/{hash}"), "")),
    ])
}

pub(crate) fn answers() -> Examples {
    let group = json!({
        "node": 1, "leader": 1, "term": 3, "voters": [1, 2, 3], "changing": false, "learners": [4],
        "silent_ms": { "2": 5, "3": null },
        "matched": { "2": 9 }, "last_log": 9, "committed": 9, "applied": 9, "snapshot": 0, "stopped": null,
    });
    let live = json!({
        "transfer": { "bytes_done": 1, "bytes_total": 2, "sources": 1, "failure": null }, "last_exit": "killed on request",
        "pid": 7, "accelerator": "tcg", "confinement": {
            "privileges": { "user": 1, "group": 1, "groups": [2], "capabilities": ["chown"], "no_new_privileges": true,
                "system_call_filter": true },
            "shared_user": null, "memory_mib": 512, "processors": 2, "unlimited": null,
        },
    });
    let fault = json!({ "kind": "not_found", "message": "there is no vm web" });
    let vm = json!({
        "id": "0b".repeat(16), "name": "web", "image": "tiny", "image_id": KEY, "vcpus": 2, "memory_mib": 512, "disk_mib": 0,
        "publish": [{ "host_address": "127.0.0.1", "host_port": 8080, "guest_port": 80, "protocol": "tcp" }], "restart": { "on-failure": { "limit": 5 } }, "node": 1, "epoch": 1,
        "desired": { "power": "on", "run": 1, "stop_timeout_ms": 30_000, "deleting": false }, "phase": "running",
        "config_files": [{ "source": { "path": "/etc/a", "document": "config", "key": "a" }, "changed": true }],
        "observed_run": 1, "reason": null, "retrying": false, "restarts": 0, "since": 5, "created_at": 4, "live": live,
    });
    let amounts = json!({ "vcpus": 4, "memory_mib": 512, "disk_mib": 1024 });
    let cluster = json!({
        "cluster_id": CLUSTER, "seen_by": 1, "leader": 1, "term": 3, "voters": 1, "voters_changing": false,
        "voters_reachable": 1, "margin": "none",
        "settings": { "voters": 3, "copies": 2 }, "nodes": [{
            "id": 1, "endpoint_id": KEY, "addresses": ["[::1]:7001"], "relay_url": null, "role": "leader", "state": "ready",
            "last_contact_ms": null, "capacity": amounts, "used": amounts, "vms": 1, "labels": { "zone": "a" },
            "version": "0.1.0",
        }],
        "vms": 1, "images": 1, "state_digest": KEY, "applied": 9,
    });
    let part = json!({ "hash": KEY, "bytes": 5 });
    let manifest = json!({ "kernel": { "kernel": part, "initrd": part, "root": null, "cmdline": "quiet" } });
    let image = json!({
        "id": KEY, "name": "tiny", "kind": "kernel", "bytes": 10, "manifest": manifest, "holders": [1, 2], "wanted": [3],
        "used_by": ["web"], "added_at": 3, "boot": { "bytes": 7, "places": 2, "is_whole": true },
    });
    let token =
        json!({ "id": "01".repeat(8), "state": "valid", "uses_left": 1, "expires_at": 2_000, "created_at": 1_000 });
    let event = json!({
        "number": 7, "at": 5, "kind": "vm started", "vm": "web", "image": null, "node": 1, "by": "ada", "text": "it started",
    });
    let verdict = json!({ "node": 1, "fits": false, "rank": null, "sort": "memory", "text": "it has too little" });
    let explained = json!({ "vm": "web", "node": null, "verdicts": [verdict] });
    let origin = json!({ "write": true, "met_at": 5, "failure": null });
    let document = json!({ "name": "config", "keys": 2, "bytes": 10, "origin": origin });
    let entry = json!({
        "key": "web/app.conf", "bytes": 5, "hash": KEY, "written_at": 3, "written_by": KEY, "node": 1, "deleted": false,
        "latest": true, "here": true,
    });
    let all = [
        ("c", "cluster", cluster),
        ("d", "document", document),
        ("k", "entry", entry),
        ("e", "event", event),
        ("f", "fault", fault),
        ("g", "group", group),
        ("i", "image", image),
        ("l", "live", live),
        ("t", "token", token),
        ("v", "vm", vm),
        ("x", "explained", explained),
    ];
    named(all.map(|(kind, name, value)| (name, format!("{kind}{value}"))))
}

pub(crate) fn document_keys() -> Examples {
    let longest = "k".repeat(255) + "\0";
    named([
        ("plain", "app.conf\0".to_owned()),
        ("deep", "web/sites/_default-1.conf\0".to_owned()),
        ("longest", longest),
    ])
}

pub(crate) fn orders() -> Examples {
    let settle = r#"{"order":"settle"}"#;
    named([("stop", r#"{"order":"stop","timeout_ms":30000}"#), ("kill", r#"{"order":"kill"}"#), ("settle", settle)])
}

/// What a hypervisor says to the server of its disk: the flags of the handshake, options, and requests.
pub(crate) fn disk_clients() -> Examples {
    const FLAGS: [u8; 4] = [0, 0, 0, 3];
    let option = |number: u32, data: &[u8]| {
        let length = u32::try_from(data.len()).expect("a short option");
        [b"IHAVEOPT", &number.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
    };
    let request = |command: u16, offset: u64, length: u32| {
        let head = [0x25, 0x60, 0x95, 0x13, 0, 0];
        [&head[..], &command.to_be_bytes(), &7_u64.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    // No name, and one question: the sizes of blocks.
    let go = option(7, &[0, 0, 0, 0, 0, 1, 0, 3]);
    let (read, leave) = (request(0, 4096, 512), request(2, 0, 0));
    named([
        ("go", [&FLAGS[..], &go, &read, &leave].concat()),
        ("structured_first", [&FLAGS[..], &option(8, &[]), &go, &read, &leave].concat()),
        ("name", [&FLAGS[..], &option(1, b"any"), &request(3, 0, 0), &leave].concat()),
        ("abort", [&FLAGS[..], &option(6, &[0, 0, 0, 0, 0, 0]), &option(2, &[])].concat()),
    ])
}

pub(crate) fn monitors() -> Examples {
    let greeting = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n{\"return\": {}, \"id\": \"ready\"}\r\n";
    let shutdown = "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-shutdown\"}}\r\n";
    named([("greeting", greeting.to_owned()), ("shutdown", format!("{greeting}{shutdown}"))])
}

pub(crate) fn kernels() -> Examples {
    let mut image = vec![0; 0x240];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    image[0x236] = 1;
    let mut elf = vec![0; 140];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62; // x86-64
    elf[32] = 64; // where the program headers begin
    elf[54] = 56; // the length of one
    elf[56] = 1; // and how many there are
    elf[64] = 4; // a note
    elf[64 + 8] = 120;
    elf[64 + 32] = 20;
    elf[120..136].copy_from_slice(b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
    named([("bzimage", image), ("elf", elf)])
}

/// A qcow2 image of clusters of 512 bytes: the header, a table that stands for both at the top, and a level-two table.
fn qcow2(version: u32, top: &[u64], level_two: &[u64]) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &version.to_be_bytes());
    put(20, &9_u32.to_be_bytes()); // clusters of 2^9 bytes
    put(24, &32_768_u64.to_be_bytes()); // what one level-two table maps
    put(36, &1_u32.to_be_bytes());
    put(40, &512_u64.to_be_bytes()); // level-one table
    put(48, &512_u64.to_be_bytes()); // reference count table
    put(56, &1_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    for (begin, table) in [(512, top), (1024, level_two)] {
        for (place, entry) in table.iter().enumerate() {
            put(begin + place * 8, &entry.to_be_bytes());
        }
    }
    image
}

pub(crate) fn disks() -> Examples {
    let mut raw = vec![0; 512];
    raw[510..].copy_from_slice(&[0x55, 0xaa]);
    let mapped = |at: u64| (1 << 63) | at;
    let used = qcow2(3, &[mapped(1024)], &[mapped(512), mapped(1024), (1 << 62) | 512]);
    named([("empty_2", qcow2(2, &[], &[])), ("empty_3", qcow2(3, &[], &[])), ("used_3", used), ("raw", raw)])
}
