//! What a healthy node never says: the program against a server that follows a script.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use blixard_core::{ClusterId, NodeId};
use blixard_node::api::{Fault, FaultKind};
use blixard_node::transport::{Protocol, Registry, SecretKey, Transport, TransportConfig, handler, http};
use blixard_node::user::UserState;
use serde_json::{Value, json};

use crate::bench::{Bench, Ran};
use crate::program::session::Session;

/// A server that answers as its router says.
struct Scripted {
    bench: Bench,
    registry: String,
    _runtime: tokio::runtime::Runtime,
    _transport: Transport,
}

impl Scripted {
    fn start(app: Router) -> Self {
        let bench = Bench::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _inside = runtime.enter();
        let bind = vec!["127.0.0.1:0".parse().unwrap()];
        let open = Transport::open(TransportConfig { key: SecretKey::generate(), bind, relays: vec![] });
        let transport = runtime.block_on(open).unwrap();
        transport.access().set_clients([(
            UserState::at(bench.path("state")).client_key().unwrap().id(),
            blixard_core::ClientRole::Admin,
        )]);
        let requests = http::Requests::new(8);
        transport.serve(vec![(
            Protocol::Api,
            handler(move |connection| http::serve(requests.clone(), connection, app.clone())),
        )]);
        let registry = Registry {
            cluster_node_id: NodeId(1),
            endpoint_id: transport.id(),
            direct_addresses: transport.address().addresses,
            relay_url: None,
            cluster_id: ClusterId([1; 32]),
        };
        registry.write(&bench.path("data")).unwrap();
        let registry = Registry::path(&bench.path("data"), NodeId(1)).to_str().unwrap().to_owned();
        Self { bench, registry, _runtime: runtime, _transport: transport }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.bench.run(&[&["--addr", &self.registry], arguments].concat())
    }
}

/// A vm that was asked to be on in its second run, with some of it otherwise.
fn vm(otherwise: &Value) -> Value {
    let mut view = json!({
        "id": "01".repeat(16), "name": "web", "image": "tiny", "image_id": "02".repeat(32),
        "vcpus": 1, "memory_mib": 256, "disk_mib": 0, "publish": [], "restart": "never", "node": 2, "epoch": 1,
        "desired": {"power": "on", "run": 2, "stop_timeout_ms": 30_000, "deleting": false},
        "phase": "running", "observed_run": 2, "reason": null, "retrying": false, "restarts": 0, "since": null,
        "created_at": 0, "live": null,
    });
    for (key, value) in otherwise.as_object().unwrap() {
        view[key] = value.clone();
    }
    view
}

/// What one request to watch gets.
enum Watch {
    /// These views, and then the end of the stream.
    Views(Vec<Value>),
    /// These views, and then nothing for as long as the test runs.
    Open(Vec<Value>),
    Fault(FaultKind),
}

/// A vm that takes requests, and is watched once for each entry of the script; the last one again and again.
fn watched(script: Vec<Watch>) -> Router {
    let asked = Arc::new(AtomicUsize::new(0));
    let script = Arc::new(script);
    let watch = move || {
        let entry = asked.fetch_add(1, Ordering::SeqCst).min(script.len() - 1);
        let script = script.clone();
        async move {
            let lines = |views: &[Value]| views.iter().map(|view| format!("{view}\n")).collect::<String>();
            match &script[entry] {
                Watch::Views(views) => Body::from(lines(views)).into_response(),
                Watch::Open(views) => {
                    use futures::StreamExt;
                    let first = futures::stream::iter([std::io::Result::Ok(lines(views))]);
                    Body::from_stream(first.chain(futures::stream::pending())).into_response()
                }
                Watch::Fault(kind) => fault(*kind),
            }
        }
    };
    let now = || async { Json(vm(&json!({ "phase": "pending" }))) };
    Router::new()
        .route("/v1/vms/{name}", get(now).delete(|| async { Json(()) }))
        .route("/v1/vms/{name}/start", post(now))
        .route("/v1/vms/{name}/watch", get(watch))
}

fn fault(kind: FaultKind) -> Response {
    Fault::new(kind, "as the script says").into_response()
}

fn before_the_request() -> Value {
    vm(&json!({ "desired": {"power": "on", "run": 1, "stop_timeout_ms": 0, "deleting": false}, "observed_run": 1 }))
}

#[test]
fn waiting_outlives_old_news_broken_streams_and_lost_leaders() {
    let server = Scripted::start(watched(vec![
        Watch::Views(vec![before_the_request(), vm(&json!({ "phase": "preparing" }))]),
        Watch::Fault(FaultKind::NoLeader),
        Watch::Open(vec![vm(&json!({ "phase": "preparing" })), vm(&json!({}))]),
    ]));
    let view = server.run(&["vm", "start", "web", "-o", "json"]).ends_with(0).json();
    assert_eq!((&view["phase"], &view["observed_run"]), (&"running".into(), &2.into()));
}

#[test]
fn a_failure_ends_the_wait_with_its_reason() {
    let failed = vm(&json!({ "phase": "failed", "reason": "no \u{1b}[31mbootable disk" }));
    let retrying = vm(&json!({ "phase": "failed", "retrying": true, "reason": "too early" }));
    let server = Scripted::start(watched(vec![Watch::Open(vec![before_the_request(), retrying, failed])]));
    let ran = server.run(&["vm", "start", "web"]).ends_with(8);
    assert!(ran.stderr.starts_with("error: vm web: no \\u{1b}[31mbootable disk\n"), "{ran:?}");
    assert!(ran.stderr.contains("blixard vm logs web"), "{ran:?}");
}

#[test]
fn a_vm_that_vanishes_is_a_failure_unless_it_was_to_go() {
    let gone = || vec![Watch::Views(vec![vm(&json!({ "phase": "preparing" }))]), Watch::Fault(FaultKind::NotFound)];
    let ran = Scripted::start(watched(gone())).run(&["vm", "start", "web"]).ends_with(8);
    assert!(ran.stderr.contains("deleted meanwhile"), "{ran:?}");
    let ran = Scripted::start(watched(gone())).run(&["vm", "delete", "web"]).ends_with(0);
    assert_eq!(ran.stdout, "vm web is deleted\n");
    let namesake = vm(&json!({ "id": "03".repeat(16) }));
    let server = Scripted::start(watched(vec![Watch::Open(vec![vm(&json!({ "phase": "deleting" })), namesake])]));
    assert_eq!(server.run(&["vm", "delete", "web"]).ends_with(0).stdout, "vm web is deleted\n");
}

#[test]
fn a_terminal_shows_how_far_the_image_is() {
    let transfer = |done: u64| {
        let transfer = json!({ "bytes_done": done << 20, "bytes_total": 1_u64 << 30, "sources": 2, "failure": null });
        vm(
            &json!({ "phase": "preparing", "live": { "transfer": transfer, "pid": null, "accelerator": null, "confinement": null } }),
        )
    };
    let server = Scripted::start(watched(vec![Watch::Open(vec![transfer(256), transfer(512)])]));
    let mut session = Session::start(&server.bench, &["vm", "start", "web", "--addr", &server.registry]);
    session.sees("image 50 % of 1 GiB from 2 nodes");
    session.ends_when_interrupted();
}

#[test]
fn each_fault_has_its_exit_code() {
    for (kind, code) in [
        (FaultKind::BadRequest, 6),
        (FaultKind::Forbidden, 4),
        (FaultKind::NotFound, 5),
        (FaultKind::Conflict, 6),
        (FaultKind::Unavailable, 3),
        (FaultKind::NoLeader, 7),
        (FaultKind::Unknown, 7),
        (FaultKind::Internal, 1),
    ] {
        let server = Scripted::start(Router::new().route("/v1/vms", get(move || async move { fault(kind) })));
        let ran = server.run(&["vm", "list"]).ends_with(code);
        assert!(ran.stderr.starts_with("error: as the script says\n") && ran.stdout.is_empty(), "{ran:?}");
    }
}

#[test]
fn hostile_text_cannot_move_the_cursor() {
    let hostile = "\u{1b}]52;c;eA==\u{7}\u{9b}2J\u{202e}";
    let list = Json(json!([vm(&json!({ "phase": hostile, "reason": hostile }))]));
    let explain = Json(json!({ "vm": "web", "node": 1, "verdicts": [{ "node": 1, "fits": true, "text": hostile }] }));
    let complain = move || async move { Fault::new(FaultKind::Conflict, hostile).into_response() };
    let app = Router::new()
        .route("/v1/vms", get(move || async move { list }))
        .route("/v1/vms/web/explain", get(move || async move { explain }))
        .route("/v1/vms/web", get(complain));
    let server = Scripted::start(app);
    for (verb, code) in [(&["vm", "list"][..], 0), (&["vm", "explain", "web"], 0), (&["vm", "status", "web"], 6)] {
        let ran = server.run(verb).ends_with(code);
        let harmless = |c: char| c == '\n' || !(c.is_control() || c == '\u{202e}');
        assert!(ran.stdout.chars().chain(ran.stderr.chars()).all(harmless), "{ran:?}");
    }
}
