//! Documents of a cluster: without a quorum, after restarts, and for whoever joins later.

use blixard_core::{DocumentKey, DocumentName, NodeId};
use blixard_node::api::{Client, ClientError, CreateDocumentShare, EntryView, FaultKind};
use bytes::Bytes;
use futures::StreamExt;

use crate::bench::{Bench, PATIENCE, fault, import, kernel, until, until_phase, vm};

fn config() -> DocumentName {
    DocumentName::config()
}

fn name(key: &str) -> DocumentKey {
    key.parse().unwrap()
}

async fn set(client: &Client, key: &str, value: &'static str) -> EntryView {
    client.set_value(&config(), &name(key), Bytes::from_static(value.as_bytes())).await.unwrap()
}

/// Waits until a key has a value.
async fn has(client: &Client, key: &str, value: &str) {
    until(&format!("{key} to be {value}"), async || {
        client.value(&config(), &name(key)).await.is_ok_and(|found| found == value.as_bytes())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_need_no_quorum_and_reach_whoever_joins_later() {
    let bench = Bench::new();
    let (configs, mut nodes, first) = bench.three().await;
    let third = bench.client(&nodes[2]).await;
    let written = set(&first, "app.conf", "one").await;
    assert_eq!((written.node, written.bytes, written.latest), (Some(NodeId(1)), 3, true));
    for node in &nodes {
        has(&bench.client(node).await, "app.conf", "one").await;
    }
    nodes.remove(0).shutdown().await;
    nodes.remove(0).shutdown().await;
    until(
        "the third to know that nobody leads",
        async || matches!(third.images().await, Err(ClientError::Fault(fault)) if fault.kind == FaultKind::NoLeader),
    )
    .await;
    set(&third, "app.conf", "two").await;
    set(&third, "alone", "three").await;
    third.create_document(&"web".parse().unwrap()).await.unwrap();
    has(&third, "app.conf", "two").await;
    let keys = third.entries(&config(), "", false).await.unwrap();
    let keys: Vec<_> = keys.iter().map(|entry| (entry.key.as_str(), entry.node)).collect();
    assert_eq!(keys, [("alone", Some(NodeId(3))), ("app.conf", Some(NodeId(3)))]);

    // It begins again alone, with nobody to ask.
    nodes.remove(0).shutdown().await;
    let third = bench.start(&configs[2]).await;
    let client = bench.client(&third).await;
    has(&client, "alone", "three").await;
    set(&client, "more", "four").await;

    // The founder comes back, which makes a quorum, and then somebody new.
    let founder = bench.start(&configs[0]).await;
    let at_founder = bench.client(&founder).await;
    has(&at_founder, "app.conf", "two").await;
    has(&at_founder, "more", "four").await;
    let joining = bench.config(4, &[("peers", &configs[0].bind.to_string())]);
    let fourth = bench.start(&joining).await;
    let at_fourth = bench.client(&fourth).await;
    for (key, value) in [("alone", "three"), ("app.conf", "two"), ("more", "four")] {
        has(&at_fourth, key, value).await;
    }
    until("the document to be there", async || {
        at_fourth.documents().await.is_ok_and(|all| all.iter().any(|document| document.name.as_str() == "web"))
    })
    .await;
    set(&at_fourth, "app.conf", "five").await;
    has(&client, "app.conf", "five").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_followed_and_what_is_wrong_is_said() {
    let bench = Bench::new();
    let (_, _node, client) = bench.one(&[]).await;
    set(&client, "web/a", "1").await;
    set(&client, "other", "1").await;
    let told = client.watch_document(&config(), "web/").await.unwrap();
    let mut told = std::pin::pin!(told);
    let mut next = async || tokio::time::timeout(PATIENCE, told.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(next().await.key.as_str(), "web/a");
    set(&client, "web/b", "2").await;
    let entry = next().await;
    assert_eq!((entry.key.as_str(), entry.bytes, entry.deleted), ("web/b", 1, false));
    client.delete_value(&config(), &name("web/a")).await.unwrap();
    let entry = next().await;
    assert_eq!((entry.key.as_str(), entry.deleted), ("web/a", true));

    assert_eq!(fault(client.value(&config(), &name("web/a")).await).0, FaultKind::NotFound);
    assert_eq!(fault(client.value(&"none".parse().unwrap(), &name("a")).await).0, FaultKind::NotFound);
    let empty = client.set_value(&config(), &name("a"), Bytes::new()).await;
    assert_eq!(fault(empty).0, FaultKind::BadRequest);
    let large = client.set_value(&config(), &name("a"), Bytes::from(vec![1; (1 << 20) + 1])).await;
    let (kind, said) = fault(large);
    assert!(kind == FaultKind::BadRequest && said.contains("1048576"), "{said}");
    let all = client.entries(&config(), "web/", true).await.unwrap();
    assert_eq!(all.iter().filter(|entry| entry.deleted).count(), 1);
    // The audit trail is of the cluster's state, and the secret of the documents is in no view of it.
    let trail = client.audit(1000).await.unwrap();
    assert!(!format!("{trail:?}").to_lowercase().contains("secret"), "{trail:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_gets_values_as_they_are_and_tells_when_they_are_others() {
    let bench = Bench::new();
    let (_, _node, client) = bench.one(&[]).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let mut wanted = vm("web", "tiny");
    wanted.config_files = vec!["/etc/app.conf=doc:config/app.conf".parse().unwrap()];
    assert_eq!(fault(client.create_vm(&wanted).await).0, FaultKind::NotFound);
    set(&client, "app.conf", "level = 3").await;
    client.create_vm(&wanted).await.unwrap();
    let web = until_phase(&client, "web", "running").await;
    assert_eq!(web.config_files[0].changed, Some(false));
    // As the driver was told to put it into the seed, base64 by another program.
    let spec = bench.path("data1").join("vms").join(web.id.to_string()).join("spec.json");
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(spec).unwrap()).unwrap();
    let expected = serde_json::json!([{ "path": "/etc/app.conf", "content_base64": "bGV2ZWwgPSAz" }]);
    assert_eq!(spec["seed"]["files"], expected);

    let changed = async || client.vm(&web.name).await.unwrap().config_files[0].changed;
    set(&client, "app.conf", "level = 4").await;
    assert_eq!(changed().await, Some(true));
    set(&client, "app.conf", "level = 3").await;
    assert_eq!(changed().await, Some(false));
    client.delete_value(&config(), &name("app.conf")).await.unwrap();
    assert_eq!(changed().await, Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_of_another_cluster_is_followed_without_its_leader_and_over_restarts() {
    let (theirs, ours) = (Bench::new(), Bench::new());
    let (_, mut nodes, first) = theirs.three().await;
    let (config_of_ours, node, client) = ours.one(&[]).await;
    set(&first, "app.conf", "one").await;
    has(&theirs.client(&nodes[2]).await, "app.conf", "one").await;
    let ticket = CreateDocumentShare { write: true, ttl_ms: None };
    let created = first.share_document(&config(), ticket).await.unwrap();
    let joined: DocumentName = "theirs".parse().unwrap();
    let (kind, said) = fault(client.join_document(&joined, &created.ticket[..60]).await);
    assert!(kind == FaultKind::Conflict && said.contains("copy it again"), "{said}");
    let (kind, said) = fault(client.join_document(&config(), &created.ticket).await);
    assert!(kind == FaultKind::Conflict && said.contains("--as"), "{said}");
    client.join_document(&joined, &created.ticket).await.unwrap();
    let read = async |client: &Client, key: &str, value: &str| {
        until(&format!("{key} of theirs to be {value}"), async || {
            client.value(&joined, &name(key)).await.is_ok_and(|found| found == value.as_bytes())
        })
        .await;
    };
    read(&client, "app.conf", "one").await;

    // Two of three are down, the one that made the ticket among them, and the follower begins again.
    let third = theirs.client(&nodes[2]).await;
    has(&third, "app.conf", "one").await;
    until("the ticket to be known to the third", async || {
        third.document_shares(&config()).await.is_ok_and(|shares| shares.len() == 1)
    })
    .await;
    nodes.remove(0).shutdown().await;
    nodes.remove(0).shutdown().await;
    node.shutdown().await;
    set(&third, "app.conf", "two").await;
    let node = ours.start(&config_of_ours).await;
    let client = ours.client(&node).await;
    read(&client, "app.conf", "two").await;
    client.set_value(&joined, &name("back"), Bytes::from_static(b"three")).await.unwrap();
    has(&third, "back", "three").await;
    let listed = client.documents().await.unwrap();
    let of = |name: &DocumentName| listed.iter().find(|document| document.name == *name).unwrap().origin.clone();
    assert_eq!((of(&config()), of(&joined).map(|origin| origin.write)), (None, Some(true)));

    third.stop_document_share(&config(), created.share.id).await.unwrap();
    until("the other cluster to be told that it is over", async || {
        let listed = client.documents().await.unwrap();
        let origin = listed.into_iter().find(|document| document.name == joined).and_then(|document| document.origin);
        origin.and_then(|origin| origin.failure).is_some_and(|failure| failure.contains("opens nothing"))
    })
    .await;
    client.leave_document(&joined).await.unwrap();
    assert_eq!(fault(client.value(&joined, &name("back")).await).0, FaultKind::NotFound);
    has(&third, "back", "three").await;
}
