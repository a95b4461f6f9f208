//! Requests that are sent again, and ids that are used again: one request has one effect and one answer.

use blixard_core::ClientRole;
use blixard_node::Node;
use blixard_node::api::{GrantClient, VmView};
use blixard_node::transport::{Connection, Protocol, Registry, SecretKey, Transport, http as wire};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;

use crate::bench::{Bench, endpoint, import, kernel, until, vm};

/// Sends a request of an id, and gives the status and the body of the answer.
async fn send(connection: &Connection, id: &str, line: &str, body: &str) -> (StatusCode, String) {
    let (method, path) = line.split_once(' ').unwrap();
    let request = Request::builder()
        .method(method.parse::<Method>().unwrap())
        .uri(path)
        .header(http::header::HOST, "blixard")
        .header(http::header::CONTENT_TYPE, "application/json")
        .header("x-blixard-request", id)
        .body(axum::body::Body::from(body.to_owned()))
        .unwrap();
    let answer = wire::send(connection, request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn done(connection: &Connection, id: &str, line: &str, body: &str) -> String {
    let (status, answer) = send(connection, id, line, body).await;
    assert_eq!(status, StatusCode::OK, "{line}: {answer}");
    answer
}

async fn refused(connection: &Connection, id: &str, line: &str, body: &str) {
    let (status, answer) = send(connection, id, line, body).await;
    assert!(status == StatusCode::CONFLICT && answer.contains("an id of its own"), "{line} {body}: {status} {answer}");
}

fn viewed(answer: &str) -> VmView {
    serde_json::from_str(answer).unwrap()
}

fn created(name: &str) -> String {
    serde_json::to_string(&vm(name, "base")).unwrap()
}

fn id(byte: u8) -> String {
    format!("{byte:032x}")
}

/// Connections of the bench's user to the nodes, for requests whose ids the test chooses. They end with the transport.
async fn connections(bench: &Bench, nodes: &[Node]) -> (Transport, Vec<Connection>) {
    let key = bench.user("user").client_key().unwrap();
    let transport = endpoint(key, &nodes[0]).await;
    let mut connections = Vec::new();
    for node in nodes {
        let address = Registry::read(node.registry()).unwrap().address();
        transport.learn(&address);
        connections.push(transport.connect(address.endpoint, Protocol::Api).await.unwrap());
    }
    (transport, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_twice_has_one_effect_and_one_answer() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(2, &[], 1).await;
    import(&client, "base", kernel(1, 4096)).await;
    let (_transport, connections) = connections(&bench, &nodes).await;
    let (here, there) = (&connections[0], &connections[1]);
    let (web, create) = (created("web"), "POST /v1/vms");
    let first = viewed(&done(here, &id(1), create, &web).await);
    // The second try arrives at another node, as when the first broke down.
    let again = viewed(&done(there, &id(1), create, &web).await);
    assert_eq!(first.id, again.id);
    let (status, answer) = send(there, &id(2), create, &web).await;
    assert!(status == StatusCode::CONFLICT && answer.contains("exists already"), "{status} {answer}");
    assert_eq!(send(there, "short", create, &web).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(client.vms(false).await.unwrap().len(), 1);

    // What the first try removed is not missing to the second, nor is what is there under the same name by then its vm.
    let removed = async || client.vms(false).await.is_ok_and(|vms| vms.is_empty());
    let delete = "DELETE /v1/vms/web";
    done(here, &id(3), delete, "").await;
    until("the vm to be gone", removed).await;
    done(there, &id(3), delete, "").await;
    assert_eq!(send(there, &id(4), delete, "").await.0, StatusCode::NOT_FOUND);
    let second = viewed(&done(here, &id(5), create, &web).await);
    done(there, &id(3), delete, "").await;
    assert!(!client.vm(&"web".parse().unwrap()).await.unwrap().desired.deleting);
    assert_ne!(second.id, first.id);
    done(here, &id(6), delete, "").await;
    until("the second vm to be gone", removed).await;
    done(here, &id(7), "DELETE /v1/images/base", "").await;
    done(there, &id(7), "DELETE /v1/images/base", "").await;
    assert_eq!(send(there, &id(8), "DELETE /v1/images/base", "").await.0, StatusCode::NOT_FOUND);
    // The image is gone, and the answer to what was made of it is not.
    let (status, answer) = send(there, &id(1), create, &web).await;
    assert!(status == StatusCode::NOT_FOUND && answer.contains("the vm is gone"), "{status} {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_another_request_is_refused_and_nothing_is_done() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(2, &[], 1).await;
    import(&client, "base", kernel(1, 4096)).await;
    let (_transport, connections) = connections(&bench, &nodes).await;
    let (here, there) = (&connections[0], &connections[1]);
    for (byte, name) in [(1, "web"), (2, "db")] {
        done(here, &id(byte), "POST /v1/vms", &created(name)).await;
    }
    let other = serde_json::to_string(&blixard_node::api::CreateVm { vcpus: 2, ..vm("web", "base") }).unwrap();
    refused(here, &id(1), "POST /v1/vms", &created("db")).await;
    refused(there, &id(1), "POST /v1/vms", &other).await;

    // Another vm, another verb about the same vm, and other words with the same verb.
    for (byte, verb) in [(3, "stop"), (4, "start"), (5, "restart")] {
        let first = viewed(&done(here, &id(byte), &format!("POST /v1/vms/web/{verb}"), "{}").await);
        refused(there, &id(byte), &format!("POST /v1/vms/db/{verb}"), "{}").await;
        let again = viewed(&done(there, &id(byte), &format!("POST /v1/vms/web/{verb}"), "{}").await);
        assert_eq!((first.name.as_str(), again.id), ("web", first.id), "{verb}");
        for line in ["POST /v1/vms/web/stop", "POST /v1/vms/web/start", "POST /v1/vms/web/restart"] {
            if !line.ends_with(&format!("/{verb}")) {
                refused(there, &id(byte), line, "{}").await;
            }
        }
    }
    refused(here, &id(3), "POST /v1/vms/web/stop", r#"{"timeout_ms":5}"#).await;
    let power = async |name: &str| client.vm(&name.parse().unwrap()).await.unwrap().desired;
    let before = (power("web").await, power("db").await);

    // What deletes, and what has no name.
    for byte in 1..=5 {
        refused(there, &id(byte), "DELETE /v1/vms/web", "").await;
        refused(there, &id(byte), "DELETE /v1/images/base", "").await;
        refused(there, &id(byte), "PUT /v1/cluster/settings", r#"{"voters":1,"copies":1}"#).await;
        refused(there, &id(byte), "POST /v1/cluster/leave", "{}").await;
        refused(there, &id(byte), "POST /v1/tokens", "{}").await;
    }
    assert_eq!((power("web").await, power("db").await), before);
    assert!(!before.0.deleting && !before.1.deleting);
    done(here, &id(6), "DELETE /v1/vms/db", "").await;
    refused(here, &id(6), "DELETE /v1/vms/web", "").await;
    refused(here, &id(6), "DELETE /v1/images/base", "").await;
    assert!(!power("web").await.deleting && client.images().await.unwrap().len() == 1);

    // An id belongs to whoever used it first.
    let key = SecretKey::generate();
    let grant = GrantClient { role: ClientRole::Admin, name: Some("grace".to_owned()) };
    client.grant_client(key.id(), &grant).await.unwrap();
    let transport = endpoint(key, &nodes[0]).await;
    let node = Registry::read(nodes[0].registry()).unwrap().endpoint_id;
    let mut hers = None;
    until("the node to know the key", async || {
        let Ok(connection) = transport.connect(node, Protocol::Api).await else { return false };
        let request = Request::get("/v1/vms").header("host", "test").body(axum::body::Body::empty()).unwrap();
        hers = wire::send(&connection, request).await.is_ok().then_some(connection);
        hers.is_some()
    })
    .await;
    refused(&hers.unwrap(), &id(6), "DELETE /v1/vms/db", "").await;
    transport.close().await;

    // To leave is another request at another node.
    let force = r#"{"force":true}"#;
    done(there, &id(7), "POST /v1/cluster/leave", force).await;
    refused(here, &id(7), "POST /v1/cluster/leave", force).await;
    assert_eq!(client.cluster(false).await.unwrap().nodes.len(), 1);
}
