//! Who may ask for what: every request with every role, here and relayed, and what happens when a role is taken away.

use blixard_core::ClientRole::{self, Admin, Operator, Viewer};
use blixard_core::EndpointId;
use blixard_node::Node;
use blixard_node::api::{ClientError, Fault, FaultKind, GrantClient, LogStart, rules};
use blixard_node::transport::{
    Connection, Protocol, Registry, SecretKey, Transport, http as wire, load_or_create_key, refusal,
};
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncReadExt;

use crate::bench::{Bench, PATIENCE, client, endpoint, fault, import, kernel, until, until_phase, vm};

/// What each request needs, written down apart from the code.
const EXPECTED: &[(&str, &str, ClientRole)] = &[
    ("GET", "/v1/cluster", Viewer),
    ("PUT", "/v1/cluster/settings", Admin),
    ("POST", "/v1/cluster/leave", Admin),
    ("POST", "/v1/nodes/{node}/remove", Admin),
    ("GET", "/v1/peers", Viewer),
    ("GET", "/v1/events", Viewer),
    ("GET", "/v1/events/watch", Viewer),
    ("GET", "/v1/tokens", Admin),
    ("POST", "/v1/tokens", Admin),
    ("DELETE", "/v1/tokens/{token}", Admin),
    ("GET", "/v1/clients", Admin),
    ("PUT", "/v1/clients/{client}", Admin),
    ("DELETE", "/v1/clients/{client}", Admin),
    ("GET", "/v1/audit", Viewer),
    ("GET", "/v1/audit/watch", Viewer),
    ("POST", "/v1/blobs", Operator),
    ("GET", "/v1/images", Viewer),
    ("POST", "/v1/images", Operator),
    ("GET", "/v1/images/{name}", Viewer),
    ("DELETE", "/v1/images/{name}", Operator),
    ("GET", "/v1/images/{name}/compare", Operator),
    ("GET", "/v1/images/{name}/parts/{part}", Operator),
    ("POST", "/v1/images/{name}/fetch", Operator),
    ("POST", "/v1/images/{name}/pin", Operator),
    ("POST", "/v1/images/{name}/unpin", Operator),
    ("POST", "/v1/images/{name}/verify", Operator),
    ("GET", "/v1/images/{name}/verify", Viewer),
    ("GET", "/v1/cache", Viewer),
    ("POST", "/v1/cache/gc", Operator),
    ("GET", "/v1/transfers", Viewer),
    ("POST", "/v1/transfers/{name}/pause", Operator),
    ("POST", "/v1/transfers/{name}/resume", Operator),
    ("POST", "/v1/transfers/{name}/cancel", Operator),
    ("GET", "/v1/transfers/limits", Viewer),
    ("PUT", "/v1/transfers/limits", Operator),
    ("GET", "/v1/shares", Viewer),
    ("POST", "/v1/shares", Operator),
    ("DELETE", "/v1/shares/{share}", Operator),
    ("GET", "/v1/catalogs", Viewer),
    ("PUT", "/v1/catalogs/catalog/images/{name}", Operator),
    ("DELETE", "/v1/catalogs/catalog/images/{name}", Operator),
    ("POST", "/v1/catalogs/{document}/images/{name}/pull", Operator),
    ("GET", "/v1/documents", Viewer),
    ("PUT", "/v1/documents/{document}", Operator),
    ("GET", "/v1/documents/{document}/shares", Viewer),
    ("POST", "/v1/documents/{document}/shares", Operator),
    ("DELETE", "/v1/documents/{document}/shares/{share}", Operator),
    ("PUT", "/v1/documents/{document}/origin", Operator),
    ("DELETE", "/v1/documents/{document}/origin", Operator),
    ("GET", "/v1/documents/{document}/entries", Viewer),
    ("GET", "/v1/documents/{document}/watch", Viewer),
    ("GET", "/v1/documents/{document}/value", Viewer),
    ("PUT", "/v1/documents/{document}/value", Operator),
    ("DELETE", "/v1/documents/{document}/value", Operator),
    ("GET", "/v1/vms", Viewer),
    ("POST", "/v1/vms", Operator),
    ("GET", "/v1/vms/{name}", Viewer),
    ("DELETE", "/v1/vms/{name}", Operator),
    ("POST", "/v1/vms/{name}/start", Operator),
    ("POST", "/v1/vms/{name}/stop", Operator),
    ("POST", "/v1/vms/{name}/restart", Operator),
    ("GET", "/v1/vms/{name}/explain", Viewer),
    ("GET", "/v1/vms/{name}/watch", Viewer),
    ("GET", "/v1/vms/{name}/logs", Viewer),
    ("GET", "/v1/vms/{name}/console", Operator),
];

/// Connects, however often it takes until the node has heard that it may.
async fn connect(transport: &Transport, node: &Node, protocol: Protocol) -> Connection {
    let peer = Registry::read(node.registry()).unwrap().endpoint_id;
    let mut connected = None;
    until("the node to know the key", async || {
        let Ok(connection) = transport.connect(peer, protocol).await else { return false };
        // A refusal comes a moment after the handshake, and shows at the first request.
        let answer = wire::send(&connection, request("GET", "/v1/nothing", &[])).await;
        connected = answer.is_ok().then_some(connection);
        connected.is_some()
    })
    .await;
    connected.unwrap()
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<axum::body::Body> {
    let request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path).header("host", "test");
    let request = headers.iter().fold(request.header("content-type", "application/json"), |request, (name, value)| {
        request.header(*name, *value)
    });
    let body = if method == "GET" { "" } else { "{}" };
    request.body(axum::body::Body::from(body)).unwrap()
}

/// The status of an answer and, where it is one, the fault.
async fn ask(connection: &Connection, request: Request<axum::body::Body>) -> (StatusCode, Option<Fault>) {
    let answered = async {
        let answer = wire::send(connection, request).await.unwrap();
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return (status, None);
        }
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, Some(serde_json::from_slice(&body).unwrap()))
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap()
}

fn grant(role: ClientRole, name: &str) -> GrantClient {
    GrantClient { role, name: Some(name.to_owned()) }
}

/// A path that names things which do not exist, so that what is allowed changes nothing.
fn filled(path: &str) -> String {
    path.replace("{node}", "9")
        .replace("{token}", &"0".repeat(16))
        .replace("{client}", &"0".repeat(64))
        .replace("{name}", "nothing")
        .replace("{part}", "disk")
        .replace("{document}", "nothing")
        .replace("{share}", &"0".repeat(16))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_for_those_whose_role_allows_it() {
    let table: Vec<_> = rules().into_iter().map(|rule| (rule.method.to_string(), rule.path, rule.least)).collect();
    let expected: Vec<_> = EXPECTED.iter().map(|(method, path, least)| ((*method).to_owned(), *path, *least)).collect();
    assert_eq!(table, expected);

    let bench = Bench::new();
    let (_, node, admin) = bench.one(&[]).await;
    for role in ClientRole::ALL {
        let key = SecretKey::generate();
        let id = key.id();
        admin.grant_client(id, &grant(role, role.word())).await.unwrap();
        let transport = endpoint(key, &node).await;
        let connection = connect(&transport, &node, Protocol::Api).await;
        for (method, path, least) in EXPECTED {
            let (status, fault) = ask(&connection, request(method, &filled(path), &[])).await;
            if role >= *least {
                assert_ne!(status, StatusCode::FORBIDDEN, "{role} {method} {path}: {fault:?}");
                continue;
            }
            assert_eq!(status, StatusCode::FORBIDDEN, "{role} {method} {path}: {fault:?}");
            let fault = fault.unwrap();
            assert_eq!(fault.kind, FaultKind::Forbidden);
            let says = format!("this needs the role {least}, and client {role} has the role {role}");
            let advises = format!("`blixard cluster grant {id} --role {least}`");
            assert!(fault.message.contains(&says) && fault.message.contains(&advises), "{}", fault.message);
        }
        transport.close().await;
    }
    let clients = admin.clients().await.unwrap();
    assert_eq!(clients.len(), 4, "nothing but the grants has changed them: {clients:?}");
}

/// A member that asks for a client is answered by the role that the client has, whatever the member let pass.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_in_the_middle_of_a_long_request_is_told_why() {
    let bench = Bench::new();
    let (_, node, admin) = bench.one(&[]).await;
    let key = SecretKey::generate();
    admin.grant_client(key.id(), &grant(Viewer, "vera")).await.unwrap();
    let transport = endpoint(key, &node).await;
    let connection = connect(&transport, &node, Protocol::Api).await;
    // The node has no reason to read this to its end; the answer comes while it is being sent.
    for _ in 0..20 {
        let chunks = (0..512).map(|_| Ok::<_, std::io::Error>(bytes::Bytes::from_static(&[7; 64 << 10])));
        let body = axum::body::Body::from_stream(futures::stream::iter(chunks));
        let upload = Request::post("/v1/blobs").header("host", "test").body(body).unwrap();
        let (status, fault) = ask(&connection, upload).await;
        assert_eq!((status, fault.unwrap().kind), (StatusCode::FORBIDDEN, FaultKind::Forbidden));
    }
    transport.close().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_holds_for_what_is_relayed() {
    let bench = Bench::new();
    let (configs, mut nodes, admin) = bench.cluster(2, &[], 1).await;
    import(&admin, "tiny", kernel(1, 4096)).await;
    let mut placed = vm("web", "tiny");
    placed.node = Some(configs[1].id);
    admin.create_vm(&placed).await.unwrap();
    let web = until_phase(&admin, "web", "running").await;

    // Asked at node 1, and held on node 2.
    let viewer = bench.user("viewer").client_key().unwrap().id();
    admin.grant_client(viewer, &grant(Viewer, "val")).await.unwrap();
    let asks = client(&bench.user("viewer"), nodes[0].registry()).await;
    until("the viewer to be known", async || asks.vm(&web.name).await.is_ok()).await;
    assert!(asks.vm_logs(&web.name, false, LogStart::Last(100)).await.is_ok());
    let (kind, said) = fault(asks.vm_console(&web.name).await.map(drop));
    assert!(kind == FaultKind::Forbidden && said.contains("role operator"), "{said}");

    // Node 2's own key, so that node 1 hears a member speak.
    nodes.pop().unwrap().shutdown().await;
    let member = endpoint(load_or_create_key(&configs[1].data_dir.join("node.key")).unwrap(), &nodes[0]).await;
    let connection = connect(&member, &nodes[0], Protocol::Peer).await;
    let id = viewer.to_string();
    let operator = SecretKey::generate().id();
    admin.grant_client(operator, &grant(Operator, "olga")).await.unwrap();
    let (operator, stranger) = (operator.to_string(), EndpointId([7; 32]).to_string());
    for (path, client, is_forbidden) in [
        (format!("/vms/{}/console", web.id), &id, true),
        (format!("/blobs/{}", "0".repeat(64)), &id, true),
        (format!("/vms/{}/logs", web.id), &id, false),
        (format!("/vms/{}/logs", web.id), &stranger, true),
        ("/transfers".to_owned(), &id, false),
        ("/transfers/limits".to_owned(), &id, false),
        ("/transfers/limits".to_owned(), &stranger, true),
        ("/shares".to_owned(), &id, false),
        ("/shares".to_owned(), &stranger, true),
        (format!("/vms/{}/console", web.id), &operator, false),
        (format!("/blobs/{}", "0".repeat(64)), &operator, false),
    ] {
        let (status, fault) = ask(&connection, request("GET", &path, &[("x-blixard-client", client)])).await;
        assert_eq!(status == StatusCode::FORBIDDEN, is_forbidden, "{path} for {client}: {status} {fault:?}");
    }
    let (status, _) = ask(&connection, request("GET", &format!("/vms/{}/console", web.id), &[])).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a member has no console of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_with_the_right_to_it() {
    let bench = Bench::new();
    let (_, node, admin) = bench.one(&[]).await;
    import(&admin, "tiny", kernel(1, 4096)).await;
    admin.create_vm(&vm("web", "tiny")).await.unwrap();
    let web = until_phase(&admin, "web", "running").await.name;
    let key = bench.user("friend").client_key().unwrap().id();
    admin.grant_client(key, &grant(Operator, "fred")).await.unwrap();
    let friend = client(&bench.user("friend"), node.registry()).await;
    until("the friend to be known", async || friend.vm(&web).await.is_ok()).await;

    let mut console = friend.vm_console(&web).await.unwrap();
    let kept = admin.grant_client(key, &GrantClient { role: Viewer, name: None }).await.unwrap();
    assert_eq!((kept.name.as_str(), kept.role), ("fred", Viewer));
    let ended = async {
        let mut rest = [0; 1024];
        while console.read(&mut rest).await.is_ok_and(|len| len > 0) {}
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("the console of one who may not have it any more");
    until("the friend to be let in as a viewer", async || friend.vm(&web).await.is_ok()).await;
    assert_eq!(fault(friend.vm_console(&web).await.map(drop)).0, FaultKind::Forbidden);

    let mut log = friend.vm_logs(&web, true, LogStart::Last(1000)).await.unwrap().content;
    admin.revoke_client(key).await.unwrap();
    let ended = async { while log.next().await.is_some_and(|piece| piece.is_ok()) {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the log of one who is revoked");
    until("the friend to be refused", async || matches!(friend.vm(&web).await, Err(ClientError::Refused(..)))).await;

    let me = bench.user("user").client_key().unwrap().id();
    let (kind, said) = fault(admin.revoke_client(me).await);
    assert!(kind == FaultKind::Conflict && said.contains("only admin"), "{said}");
    assert_eq!(fault(admin.grant_client(me, &grant(Viewer, "me")).await).0, FaultKind::Conflict);
}

/// Why the node closed a connection at the handshake.
async fn refused(transport: &Transport, node: &Node, protocol: Protocol) -> String {
    let peer = Registry::read(node.registry()).unwrap().endpoint_id;
    match transport.connect(peer, protocol).await {
        Ok(connection) => {
            tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap();
            refusal(&connection).unwrap_or_else(|| panic!("{protocol:?}: closed, and not by refusal"))
        }
        Err(error) => error.to_string(),
    }
}

/// A client's key is no member's, a member's no client's, and one that nobody granted is neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_its_own_protocols_and_no_others() {
    let bench = Bench::new();
    let (configs, mut nodes, admin) = bench.cluster(2, &[], 1).await;
    nodes.pop().unwrap().shutdown().await;
    let node = &nodes[0];
    let key = bench.user("user").client_key().unwrap();
    let client = endpoint(key, node).await;
    let member = endpoint(load_or_create_key(&configs[1].data_dir.join("node.key")).unwrap(), node).await;
    let unknown = endpoint(SecretKey::generate(), node).await;
    for protocol in [Protocol::Raft, Protocol::Peer, Protocol::Blobs, Protocol::Documents, Protocol::Values] {
        for transport in [&client, &unknown] {
            let why = refused(transport, node, protocol).await;
            assert!(why.contains("this key is not a member"), "{protocol:?}: {why}");
        }
    }
    for transport in [&member, &unknown] {
        let why = refused(transport, node, Protocol::Api).await;
        assert!(why.contains("this client key is not known"), "{why}");
    }
    assert_eq!(admin.clients().await.unwrap().len(), 1);
}
