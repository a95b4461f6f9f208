//! Images that a cluster publishes, and another one that pulls them.

use blixard_core::{DocumentName, ImageName, NodeId};
use blixard_node::api::{Client, CreateDocumentShare, FaultKind, PublishImage, PullImage, PullView, TransferOrder};

use crate::bench::{Bench, fault, import, kernel, until, until_phase, vm};

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn upstream() -> DocumentName {
    "upstream".parse().unwrap()
}

async fn ticket(client: &Client) -> (blixard_core::ShareId, String) {
    let request = CreateDocumentShare { write: false, ttl_ms: None };
    let created = client.share_document(&DocumentName::catalog(), request).await.unwrap();
    (created.share.id, created.ticket)
}

/// What a followed catalog has, by names.
async fn seen(client: &Client) -> Vec<String> {
    let catalogs = client.catalogs().await.unwrap();
    let images = catalogs.into_iter().filter(|catalog| catalog.name == upstream()).flat_map(|catalog| catalog.images);
    images.map(|image| image.name.to_string()).collect()
}

async fn pull(client: &Client, image: &str, asked: &PullImage) -> PullView {
    client.pull_image(&upstream(), &name(image), asked).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_image_is_pulled_from_whoever_has_it_and_is_the_clusters_own_then() {
    let (theirs, ours) = (Bench::new(), Bench::new());
    let (_, mut nodes, first) = theirs.three().await;
    let (_, _node, client) = ours.one(&[]).await;
    let (tiny, hidden) =
        (import(&first, "tiny", kernel(1, 3 << 20)).await, import(&first, "hidden", kernel(2, 4096)).await);
    let note = PublishImage { note: Some("of May".to_owned()) };
    assert_eq!(fault(first.publish_image(&name("none"), &note).await).0, FaultKind::NotFound);
    first.publish_image(&tiny.name, &note).await.unwrap();
    let (_, ticket) = ticket(&first).await;
    let write = CreateDocumentShare { write: true, ttl_ms: None };
    let (kind, said) = fault(first.share_document(&DocumentName::catalog(), write).await);
    assert!(kind == FaultKind::Conflict && said.contains("for writing"), "{said}");

    client.join_document(&upstream(), &ticket).await.unwrap();
    until("the image to be listed", async || seen(&client).await == ["tiny"]).await;
    let listed = client.catalogs().await.unwrap().remove(0).images.remove(0);
    assert_eq!((listed.id, listed.bytes, listed.note.as_deref()), (tiny.id, 3 << 20, Some("of May")));
    let unpublished = client.pull_image(&upstream(), &hidden.name, &PullImage { name: None, again: false }).await;
    assert_eq!(fault(unpublished).0, FaultKind::NotFound);
    let unknown =
        client.pull_image(&"config".parse().unwrap(), &tiny.name, &PullImage { name: None, again: false }).await;
    assert_eq!(fault(unknown).0, FaultKind::NotFound);

    // The node that published it, and made the ticket, goes; another one has a copy, and says in the catalog where it is.
    let second = theirs.client(&nodes[1]).await;
    until("another node to have a copy", async || first.image(&tiny.name).await.unwrap().holders.len() > 1).await;
    until("all nodes to be in the catalog", async || {
        let nodes = client.entries(&upstream(), "nodes/", false).await.unwrap();
        nodes.iter().filter(|entry| entry.here).count() == 3
    })
    .await;
    nodes.remove(0).shutdown().await;
    let mut asked = PullImage { name: Some(name("small")), again: false };
    until("the image to be here", async || {
        let pulled = pull(&client, "tiny", &asked).await;
        asked.again = true;
        pulled.here
    })
    .await;
    let small = client.image(&name("small")).await.unwrap();
    assert_eq!((small.id, small.manifest, small.holders), (tiny.id, tiny.manifest, vec![NodeId(1)]));
    client.create_vm(&vm("web", "small")).await.unwrap();
    until_phase(&client, "web", "running").await;
    let (kind, said) = fault(client.pull_image(&upstream(), &tiny.name, &PullImage { name: None, again: false }).await);
    assert!(kind == FaultKind::Conflict && said.contains("small"), "{said}");

    // Taken back, and no longer followed: what was pulled stays.
    second.withdraw_image(&tiny.name).await.unwrap();
    until("the image to be gone from the list", async || seen(&client).await.is_empty()).await;
    client.leave_document(&upstream()).await.unwrap();
    assert!(client.catalogs().await.unwrap().is_empty());
    assert_eq!(client.images().await.unwrap().len(), 1);
    assert!(second.images().await.unwrap().iter().all(|image| image.name.as_str() != "small"), "it is no member");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_waits_for_its_cluster_over_restarts_and_can_be_given_up() {
    let (theirs, ours) = (Bench::new(), Bench::new());
    let (their_config, their_node, first) = theirs.one(&[]).await;
    let (config, node, client) = ours.one(&[]).await;
    let tiny = import(&first, "tiny", kernel(1, 1 << 20)).await;
    first.publish_image(&tiny.name, &PublishImage { note: None }).await.unwrap();
    let (share, ticket) = ticket(&first).await;
    client.join_document(&upstream(), &ticket).await.unwrap();
    until("the catalog to be here", async || {
        let nodes = client.entries(&upstream(), "nodes/", false).await.unwrap_or_default();
        seen(&client).await == ["tiny"] && nodes.iter().any(|entry| entry.here)
    })
    .await;
    their_node.shutdown().await;
    pull(&client, "tiny", &PullImage { name: None, again: false }).await;
    let again = PullImage { name: None, again: true };
    until("the pull to say why it waits", async || {
        let pulled = pull(&client, "tiny", &again).await;
        pulled.failure.is_some_and(|failure| failure.contains("reached"))
    })
    .await;
    let queued = client.transfers().await.unwrap().remove(0).transfers;
    assert_eq!((queued[0].image.as_str(), queued[0].priority.as_str()), ("tiny", "operator"));

    // Given up, and asked for again.
    client.order_transfer(&tiny.name, None, TransferOrder::Cancel).await.unwrap();
    let (kind, said) = fault(client.pull_image(&upstream(), &tiny.name, &again).await);
    assert!(kind == FaultKind::Conflict && said.contains("cancelled"), "{said}");
    until("the queue to be empty", async || client.transfers().await.unwrap().remove(0).transfers.is_empty()).await;
    pull(&client, "tiny", &PullImage { name: None, again: false }).await;

    // Both begin again.
    node.shutdown().await;
    let node = ours.start(&config).await;
    let client = ours.client(&node).await;
    let their_node = theirs.start(&their_config).await;
    until("the image to be here", async || client.image(&tiny.name).await.is_ok()).await;
    assert!(pull(&client, "tiny", &again).await.here);

    // A ticket that was stopped opens no image either.
    let first = theirs.client(&their_node).await;
    let other = import(&first, "other", kernel(3, 1 << 20)).await;
    first.publish_image(&other.name, &PublishImage { note: None }).await.unwrap();
    until("the other image to be listed", async || seen(&client).await == ["other", "tiny"]).await;
    first.stop_document_share(&DocumentName::catalog(), share).await.unwrap();
    pull(&client, "other", &PullImage { name: None, again: false }).await;
    until("the pull to be refused", async || {
        let pulled = pull(&client, "other", &again).await;
        pulled.failure.is_some_and(|failure| failure.contains("opens nothing"))
    })
    .await;
    client.leave_document(&upstream()).await.unwrap();
    until("the pull to be over", async || {
        client.transfers().await.unwrap().remove(0).transfers.is_empty() && client.images().await.unwrap().len() == 1
    })
    .await;
}
