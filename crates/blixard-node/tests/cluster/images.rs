//! Images: added at one node, fetched by others, kept in copies, exported and deleted.

use std::path::{Path, PathBuf};

use blixard_core::NodeId;
use blixard_node::Node;
use blixard_node::api::{Client, FaultKind, ImageView, PeerPath};
use bytes::BytesMut;
use futures::TryStreamExt;

use crate::bench::{Bench, fault, import, kernel, until, until_phase, until_vm, vm};

/// Far more than anything else in a data directory's folder of images.
const CONTENT_BYTES: usize = 6 << 20;

async fn image(client: &Client, name: &str) -> ImageView {
    client.image(&name.parse().unwrap()).await.unwrap()
}

/// Waits until an image is held by that many nodes, and says by which.
async fn holders(client: &Client, name: &str, count: usize) -> Vec<NodeId> {
    until("enough nodes to hold the image", async || {
        let image = image(client, name).await;
        image.holders.len() >= count && image.wanted.is_empty()
    })
    .await;
    let holders = image(client, name).await.holders;
    assert_eq!(holders.len(), count, "{holders:?}");
    holders
}

async fn exported(client: &Client, name: &str, part: &str) -> Vec<u8> {
    let content = client.export_image(&name.parse().unwrap(), part).await.unwrap();
    let content: BytesMut = content
        .try_fold(BytesMut::new(), async |mut all, piece| {
            all.extend_from_slice(&piece);
            Ok(all)
        })
        .await
        .unwrap();
    content.to_vec()
}

/// The largest file in a folder, in bytes; 0 in an empty one.
fn largest(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => largest(&entry.path()),
        Ok(meta) => meta.len(),
        // Removed meanwhile.
        Err(_) => 0,
    });
    sizes.max().unwrap_or(0)
}

fn blobs(bench: &Bench, node: u64) -> PathBuf {
    bench.path(&format!("data{node}")).join("images")
}

async fn clients(bench: &Bench, nodes: &[Node]) -> Vec<Client> {
    futures::future::join_all(nodes.iter().map(|node| bench.client(node))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_spreads_is_fetched_where_it_is_needed_and_goes_everywhere() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.three().await;
    let clients = clients(&bench, &nodes).await;
    let content = kernel(1, CONTENT_BYTES);
    let added = import(&client, "tiny", content.clone()).await;
    assert_eq!((added.holders.as_slice(), added.bytes), (&[NodeId(1)][..], CONTENT_BYTES as u64));
    let two = holders(&client, "tiny", 2).await;
    assert!(two.contains(&NodeId(1)));
    let third = (1..=3).map(NodeId).find(|node| !two.contains(node)).unwrap();
    let at = usize::try_from(third.0).unwrap() - 1;
    assert!(largest(&blobs(&bench, third.0)) < CONTENT_BYTES as u64, "nobody asked node {third} to fetch it");
    // A node that does not hold it hands it out all the same, and does not come to hold it by that.
    assert_eq!(exported(&clients[at], "tiny", "kernel").await, content);
    assert_eq!(image(&client, "tiny").await.holders, two);
    let missing = client.export_image(&added.name, "disk").await.map(drop);
    assert_eq!(fault(missing).0, FaultKind::NotFound);

    let mut request = vm("web", "tiny");
    request.node = Some(third);
    client.create_vm(&request).await.unwrap();
    until_phase(&client, "web", "running").await;
    assert_eq!(holders(&client, "tiny", 3).await.len(), 3);
    assert_eq!(exported(&clients[at], "tiny", "kernel").await, content);

    let (kind, text) = fault(clients[1].delete_image(&added.name).await);
    assert!(kind == FaultKind::Conflict && text.contains("web"), "{text}");
    client.delete_vm(&request.name).await.unwrap();
    until("the vm to be gone", async || client.vms(false).await.unwrap().is_empty()).await;
    clients[1].delete_image(&added.name).await.unwrap();
    assert_eq!(fault(client.image(&added.name).await).0, FaultKind::NotFound);
    for node in 1..=3 {
        until("the bytes to be gone", async || largest(&blobs(&bench, node)) < CONTENT_BYTES as u64).await;
    }
    // The name is free, and so is the content.
    import(&clients[2], "tiny", content).await;
    holders(&client, "tiny", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_what_came_from_whom_and_how_it_finds_the_others() {
    let bench = Bench::new();
    let settings = [("cluster.copies", "3"), ("labels", "site=lab")];
    let (configs, nodes, client) = bench.cluster(3, &settings, 3).await;
    let clients = clients(&bench, &nodes).await;
    import(&client, "tiny", kernel(1, CONTENT_BYTES)).await;
    holders(&client, "tiny", 3).await;
    let mut came = 0;
    for (at, client) in clients.iter().enumerate() {
        let peers = client.peers(None).await.unwrap();
        // The second asks for itself what the first was asked about it.
        if at == 1 {
            let through = clients[0].peers(Some(NodeId(2))).await.unwrap();
            let nodes = |peers: &[blixard_node::api::PeerView]| peers.iter().map(|peer| peer.node).collect::<Vec<_>>();
            assert_eq!(nodes(&through), nodes(&peers));
        }
        let others: Vec<NodeId> = configs.iter().map(|config| config.id).filter(|id| *id != configs[at].id).collect();
        assert_eq!(peers.iter().map(|peer| peer.node).collect::<Vec<_>>(), others);
        for peer in &peers {
            assert_eq!((peer.site.as_deref(), peer.lies), (Some("lab"), 0), "{peer:?}");
            // All speak with the one that leads; others may have nothing to say to each other.
            if at == 0 || peer.node == NodeId(1) {
                assert_eq!(peer.path, PeerPath::Direct, "{peer:?}");
                assert!(peer.round_trip_us.is_some_and(|time| time > 0), "{peer:?}");
                assert!(peer.sent_bytes > 0 && peer.received_bytes > 0, "{peer:?}");
            }
        }
        came += peers.iter().map(|peer| peer.content_bytes).sum::<u64>();
    }
    assert!(came >= 2 * CONTENT_BYTES as u64, "two nodes fetched all of it, and {came} bytes came");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_content_has_one_name_and_one_name_one_content() {
    let bench = Bench::new();
    let (_, _nodes, client) = bench.one(&[]).await;
    let first = import(&client, "tiny", kernel(1, 4096)).await;
    assert_eq!(import(&client, "tiny", kernel(1, 4096)).await.id, first.id);
    let other = client.upload(futures::stream::iter([Ok(kernel(2, 4096).into())])).await.unwrap();
    let source = |kernel| blixard_node::api::ImageSource::Kernel {
        kernel,
        initrd: None,
        root: None,
        cmdline: "console=ttyS0".into(),
    };
    let add = async |name: &str, hash| {
        let request = blixard_node::api::AddImage { name: name.parse().unwrap(), source: source(hash) };
        client.add_image(&request).await
    };
    assert_eq!(fault(add("tiny", other.hash).await).0, FaultKind::Conflict);
    let same = client.upload(futures::stream::iter([Ok(kernel(1, 4096).into())])).await.unwrap();
    assert_eq!(fault(add("small", same.hash).await).0, FaultKind::Conflict);
    let text = client.upload(futures::stream::iter([Ok(b"#!/bin/sh".as_slice().into())])).await.unwrap();
    let (kind, why) = fault(add("script", text.hash).await);
    assert!(kind == FaultKind::Conflict && why.contains("not a Linux kernel"), "{why}");
    assert_eq!(fault(add("nothing", blixard_core::BlobHash([7; 32])).await).0, FaultKind::NotFound);
    // What was refused has harmed nothing that was there.
    assert_eq!(exported(&client, "tiny", "kernel").await, kernel(1, 4096));
    assert_eq!(client.images().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_share_no_images_are_a_cluster_all_the_same() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(3, &[("p2p_enabled", "false")], 3).await;
    let clients = clients(&bench, &nodes).await;
    import(&client, "tiny", kernel(1, 4096)).await;
    let mut request = vm("web", "tiny");
    request.node = Some(NodeId(2));
    clients[2].create_vm(&request).await.unwrap();
    let pending = until_vm(&clients[1], "web", "refused for the image", |vm| {
        vm.reason.as_ref().is_some_and(|reason| reason.contains("shares no images"))
    })
    .await;
    assert_eq!(pending.phase, "pending");
    let explained = client.explain_vm(&request.name).await.unwrap();
    let words = &explained.verdicts.iter().find(|verdict| verdict.node == NodeId(2)).unwrap().text;
    assert_eq!(words, "would have to fetch the image but shares no images");
    client.create_vm(&vm("free", "tiny")).await.unwrap();
    assert_eq!(until_phase(&client, "free", "running").await.node, Some(NodeId(1)), "the node that holds it");
    assert_eq!(image(&client, "tiny").await.holders, [NodeId(1)]);
    // The node that was asked for can be given its own copy by hand.
    import(&clients[1], "tiny", kernel(1, 4096)).await;
    assert_eq!(until_phase(&client, "web", "running").await.node, Some(NodeId(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_holders_are_down_is_fetched_when_one_comes_back() {
    let bench = Bench::new();
    let settings = [("cluster.copies", "1")];
    let (configs, mut nodes, client) = bench.cluster(3, &settings, 3).await;
    let third = bench.client(&nodes[2]).await;
    import(&third, "tiny", kernel(1, CONTENT_BYTES)).await;
    assert_eq!(exported(&client, "tiny", "kernel").await.len(), CONTENT_BYTES);
    nodes.pop().unwrap().shutdown().await;
    until("node 3 to be missed", async || {
        let view = client.cluster(false).await.unwrap();
        view.voters_reachable == Some(2)
    })
    .await;
    let mut request = vm("web", "tiny");
    request.node = Some(NodeId(1));
    client.create_vm(&request).await.unwrap();
    let gone = client.export_image(&"tiny".parse().unwrap(), "kernel").await.map(drop);
    assert_eq!(fault(gone).0, FaultKind::Unavailable);
    let waiting = client.vm(&request.name).await.unwrap();
    assert_eq!(waiting.phase, "pending", "{:?}", waiting.reason);
    nodes.push(bench.start(&configs[2]).await);
    until_phase(&client, "web", "running").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_import_the_same_at_once_make_one_image_of_it() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(3, &[("cluster.copies", "1")], 3).await;
    let clients = clients(&bench, &nodes).await;
    for round in 1..=4 {
        let name = format!("same-{round}");
        let content = kernel(round, CONTENT_BYTES);
        let imports = clients.iter().map(|client| import(client, &name, content.clone()));
        let views = futures::future::join_all(imports).await;
        assert!(views.iter().all(|view| view.id == views[0].id), "{views:?}");
        assert_eq!(holders(&client, &name, 3).await, [1, 2, 3].map(NodeId));
        for client in &clients {
            assert_eq!(exported(client, &name, "kernel").await, content);
        }
    }
    assert_eq!(client.images().await.unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_different_images_that_want_one_name_at_once_one_gets_it_and_the_others_can_take_another() {
    let bench = Bench::new();
    let (_, nodes, client) = bench.cluster(3, &[("cluster.copies", "1")], 3).await;
    let clients = clients(&bench, &nodes).await;
    let add = async |client: &Client, name: &str, kernel| {
        let source = blixard_node::api::ImageSource::Kernel {
            kernel,
            initrd: None,
            root: None,
            cmdline: "console=ttyS0".into(),
        };
        client.add_image(&blixard_node::api::AddImage { name: name.parse().unwrap(), source }).await
    };
    let uploads = clients.iter().zip(1..).map(async |(client, mark)| {
        let content = futures::stream::iter([Ok(kernel(mark, CONTENT_BYTES).into())]);
        (mark, client.upload(content).await.unwrap().hash)
    });
    let uploads = futures::future::join_all(uploads).await;
    let adds = clients.iter().zip(&uploads).map(async |(client, (_, kernel))| add(client, "tiny", *kernel).await);
    let added = futures::future::join_all(adds).await;
    let got: Vec<usize> = (0..3).filter(|at| added[*at].is_ok()).collect();
    let [winner] = got[..] else { panic!("one gets the name: {added:?}") };
    for (at, refused) in added.into_iter().enumerate().filter(|(at, _)| *at != winner) {
        assert_eq!(fault(refused).0, FaultKind::Conflict);
        // What was uploaded is there still.
        let name = format!("tiny-{at}");
        add(&clients[at], &name, uploads[at].1).await.unwrap();
        assert_eq!(exported(&client, &name, "kernel").await, kernel(uploads[at].0, CONTENT_BYTES));
    }
    assert_eq!(holders(&client, "tiny", 1).await, [NodeId(winner as u64 + 1)]);
    for client in &clients {
        assert_eq!(exported(client, "tiny", "kernel").await, kernel(uploads[winner].0, CONTENT_BYTES));
    }
}
