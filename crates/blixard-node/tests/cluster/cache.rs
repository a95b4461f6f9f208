//! Images within their share of the disk: what goes, what stays, and what is damaged.

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use blixard_core::{ImageName, NodeId};
use blixard_node::api::{CachedView, Client, FaultKind, NodeCacheView, VerificationView, VerifiedState};

use crate::bench::{Bench, fault, import, kernel, metric, until, until_phase, vm};

const MIB: usize = 1 << 20;

async fn cache(client: &Client, node: u64) -> NodeCacheView {
    client.caches().await.unwrap().into_iter().find(|view| view.node == NodeId(node)).unwrap()
}

async fn cached(client: &Client, node: u64, image: &ImageName) -> Option<CachedView> {
    cache(client, node).await.images.into_iter().find(|cached| cached.image == *image)
}

async fn holders(client: &Client, image: &ImageName) -> Vec<NodeId> {
    client.image(image).await.unwrap().holders
}

async fn until_held(client: &Client, image: &ImageName, expected: &[u64]) {
    let expected: Vec<NodeId> = expected.iter().copied().map(NodeId).collect();
    until(&format!("{image} to be held by {expected:?}"), async || holders(client, image).await == expected).await;
}

/// The largest file of a node's blobs.
fn blob_of(bench: &Bench, node: u64) -> PathBuf {
    let files = std::fs::read_dir(bench.path(&format!("data{node}")).join("images/data")).unwrap();
    files.flatten().max_by_key(|file| file.metadata().unwrap().len()).unwrap().path()
}

/// Changes one byte of a file that nobody should write to.
fn flip(path: &PathBuf) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, MIB as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], MIB as u64).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
}

async fn verified(client: &Client, image: &ImageName, node: u64) -> VerificationView {
    let mut view = client.verify(image, Some(NodeId(node))).await.unwrap();
    until("the copy to be read", async || {
        view = client.verification(image, Some(NodeId(node))).await.unwrap();
        view.state != VerifiedState::Running
    })
    .await;
    view
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gives_up_what_others_have_and_nothing_needs() {
    let bench = Bench::new();
    let mut configs = bench.configs(2, &[("cluster.copies", "1")]);
    // Two of the images fit, and a third does not.
    configs[1].cache.max = "20MiB".parse().unwrap();
    let (nodes, client) = bench.start_all(&configs, 1).await;
    let mut names = Vec::new();
    for mark in 1..=4 {
        names.push(import(&client, &format!("image-{mark}"), kernel(mark, 8 * MIB)).await.name);
    }
    let second = Some(NodeId(2));
    assert_eq!(client.pin(&names[0], second, true).await.unwrap(), NodeId(2));
    until_held(&client, &names[0], &[1, 2]).await;
    let mut request = vm("web", "image-2");
    request.node = second;
    client.create_vm(&request).await.unwrap();
    until_phase(&client, "web", "running").await;
    until_held(&client, &names[1], &[1, 2]).await;

    // Neither the pinned one nor the vm's may go, so the third does not come, and it is said why.
    client.order_transfer(&names[2], second, blixard_node::api::TransferOrder::Fetch).await.unwrap();
    let mut why = String::new();
    until("the third to be refused", async || {
        let views = client.transfers().await.unwrap();
        why = views.iter().flat_map(|view| &view.transfers).find_map(|it| it.failure.clone()).unwrap_or_default();
        !why.is_empty()
    })
    .await;
    assert!(why.contains("cache.max") && why.contains("image cache"), "{why}");
    let stays = |cached: Option<CachedView>| cached.unwrap().stays.unwrap_or_default();
    assert_eq!(stays(cached(&client, 2, &names[0]).await), "pinned");
    assert_eq!(stays(cached(&client, 2, &names[1]).await), "used by web");
    let first_says = stays(cached(&client, 1, &names[3]).await);
    assert!(first_says.contains("0 other nodes hold it"), "{first_says}");

    client.pin(&names[0], second, false).await.unwrap();
    until_held(&client, &names[2], &[1, 2]).await;
    until_held(&client, &names[0], &[1]).await;
    until("the room to be taken once", async || cache(&client, 2).await.used_bytes <= 20 * MIB as u64).await;
    assert_eq!(holders(&client, &names[1]).await, [NodeId(1), NodeId(2)], "a vm runs from it");
    assert_eq!(metric(&configs[1], "blixard_cache_evictions_total").await, 1);
    assert!(metric(&configs[1], "blixard_cache_evicted_bytes_total").await >= 8 * MIB as u64);
    assert_eq!(metric(&configs[1], "blixard_image_uses_total{image=\"fetched\"}").await, 1);

    // An import needs room as well.
    let at_second = bench.client(&nodes[1]).await;
    let fifth = import(&at_second, "image-5", kernel(5, 8 * MIB)).await.name;
    until_held(&client, &fifth, &[2]).await;
    assert_eq!(holders(&client, &names[2]).await, [NodeId(1)], "it went for the import");
    let piece = futures::stream::iter(vec![Ok(bytes::Bytes::from(kernel(6, 8 * MIB)))]);
    let (kind, said) = fault(at_second.upload(piece).await);
    assert!(kind == FaultKind::Conflict && said.contains("cache.max"), "{said}");

    // So does what is to be shared, which is uploaded in the same way.
    client.delete_image(&fifth).await.unwrap();
    client.fetch_image(&names[2], second, None).await.unwrap();
    until_held(&client, &names[2], &[1, 2]).await;
    let piece = futures::stream::iter(vec![Ok(bytes::Bytes::from(kernel(6, 6 * MIB)))]);
    at_second.upload(piece).await.unwrap();
    until_held(&client, &names[2], &[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_found_withdrawn_and_replaced_unless_it_is_the_only_one() {
    let bench = Bench::new();
    let (_, _nodes, client) = bench.cluster(2, &[("cluster.copies", "2")], 1).await;
    let content = kernel(7, 4 * MIB);
    let image = import(&client, "big", content.clone()).await.name;
    until_held(&client, &image, &[1, 2]).await;
    let sound = verified(&client, &image, 2).await;
    assert_eq!((sound.state, sound.bytes_done), (VerifiedState::Sound, 4 * MIB as u64));

    let path = blob_of(&bench, 2);
    flip(&path);
    let damaged = verified(&client, &image, 2).await;
    assert_eq!((damaged.state, damaged.refetched, damaged.damaged.len()), (VerifiedState::Damaged, true, 1));
    until("the copy to be replaced", async || std::fs::read(&path).is_ok_and(|found| found == content)).await;
    until_held(&client, &image, &[1, 2]).await;
    let told = client.events(&Default::default(), 1000).await.unwrap();
    assert!(told.iter().any(|event| event.kind == "image dropped" && event.node == Some(NodeId(2))), "{told:?}");
    assert_eq!(verified(&client, &image, 2).await.state, VerifiedState::Sound);

    let (bench, image) = (Bench::new(), image);
    let (_, _node, client) = bench.one(&[]).await;
    import(&client, "big", content.clone()).await;
    let path = blob_of(&bench, 1);
    flip(&path);
    let only = verified(&client, &image, 1).await;
    assert_eq!((only.state, only.refetched), (VerifiedState::Damaged, false));
    until_held(&client, &image, &[]).await;
    assert!(path.exists(), "it is better than nothing");
    import(&client, "big", content.clone()).await;
    until_held(&client, &image, &[1]).await;
    assert_eq!(verified(&client, &image, 1).await.state, VerifiedState::Sound);
    assert!(std::fs::read(&path).unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_keeps_is_collected_at_once() {
    let bench = Bench::new();
    let (_, _node, client) = bench.one(&[]).await;
    let image = import(&client, "big", kernel(8, 6 * MIB)).await.name;
    let kept = client.collect(None).await.unwrap();
    assert_eq!((kept.node, kept.freed_bytes), (NodeId(1), 0));
    assert!(kept.used_bytes >= 6 * MIB as u64, "{kept:?}");
    client.delete_image(&image).await.unwrap();
    until("the space to be free", async || client.collect(None).await.unwrap().used_bytes < MIB as u64).await;
    let (kind, _) = fault(client.verification(&"nothing".parse().unwrap(), None).await);
    assert_eq!(kind, FaultKind::NotFound);
}
