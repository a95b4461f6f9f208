//! Vms that run before their image is on their node as a whole.

use std::path::Path;
use std::process::Stdio;

use blixard_core::NodeId;
use blixard_node::api::{AddImage, Client, CreateVm, ImageSource, ImageView, SetLimits, VmView};
use bytes::Bytes;

use crate::bench::{Bench, until, until_phase, until_vm, vm};

/// Long on its way at the lowest limit.
const CONTENT_BYTES: usize = 12 << 20;

/// A disk in which no place is like another, and none is empty.
fn content() -> Vec<u8> {
    let mut content = vec![0; CONTENT_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    content
}

/// Imports a raw disk at the node that the client asks.
async fn import_disk(client: &Client, name: &str) -> ImageView {
    let content = content();
    let pieces: Vec<std::io::Result<Bytes>> = content.chunks(64 << 10).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let blob = client.upload(futures::stream::iter(pieces)).await.unwrap();
    let source = ImageSource::Disk { disk: blob.hash };
    client.add_image(&AddImage { name: name.parse().unwrap(), source }).await.unwrap()
}

async fn slow(client: &Client, node: u64, is_slow: bool) {
    let limits = SetLimits { down_bytes_per_s: is_slow.then_some(128 << 10), ..SetLimits::default() };
    client.set_limits(Some(NodeId(node)), &limits).await.unwrap();
}

fn on_second(name: &str, lazy: Option<bool>) -> CreateVm {
    CreateVm { node: Some(NodeId(2)), lazy, ..vm(name, "big") }
}

fn is_lazy(view: &VmView) -> bool {
    view.phase == "running" && view.live.as_ref().is_some_and(|live| live.lazy && live.transfer.is_some())
}

fn is_settled(view: &VmView) -> bool {
    view.phase == "running" && view.live.as_ref().is_some_and(|live| !live.lazy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_vm_runs_at_once_over_a_restart_of_its_node_and_is_settled_when_its_image_is_there() {
    let bench = Bench::new();
    let (configs, mut nodes, client) = bench.cluster(2, &[("cluster.copies", "1")], 1).await;
    import_disk(&client, "big").await;
    slow(&client, 2, true).await;
    client.create_vm(&on_second("patient", None)).await.unwrap();
    client.create_vm(&on_second("hasty", Some(true))).await.unwrap();
    let hasty = until_vm(&client, "hasty", "running while its image comes", is_lazy).await;
    assert_eq!(hasty.reason.as_deref(), Some("it runs while its image comes"));
    let begun = hasty.since;
    let patient = client.vm(&"patient".parse().unwrap()).await.unwrap();
    assert_eq!(patient.phase, "preparing", "its image is small, and not there: {patient:?}");
    let served = configs[1].data_dir.join("lazy").join(hasty.id.to_string());
    assert!(served.join("disk.sock").exists());

    nodes.pop().unwrap().shutdown().await;
    nodes.push(bench.start(&configs[1]).await);
    let hasty = until_vm(&client, "hasty", "running on over a restart", is_lazy).await;
    assert_eq!(hasty.since, begun, "the guest went on");
    tokio::net::UnixStream::connect(served.join("disk.sock")).await.expect("its disk is served again");

    slow(&client, 2, false).await;
    let hasty = until_vm(&client, "hasty", "settled", is_settled).await;
    assert_eq!((hasty.since, hasty.reason, hasty.restarts), (begun, None, 0), "nobody noticed");
    until_phase(&client, "patient", "running").await;
    until("nothing to be served any more", async || !served.exists()).await;
    // An image that is there is booted like any other.
    client.create_vm(&on_second("late", Some(true))).await.unwrap();
    until_vm(&client, "late", "running", is_settled).await;
}

/// Reads a piece of the disk that is served in a folder, in the place of a guest.
async fn read(folder: &Path, offset: usize, bytes: usize) {
    let target = format!("nbd+unix:///?socket={}", folder.join("disk.sock").display());
    let mut reader = tokio::process::Command::new("qemu-io");
    reader.args(["-r", "-f", "raw", "-c", &format!("read {offset} {bytes}"), &target]).stdin(Stdio::null());
    let output = reader.kill_on_drop(true).output().await.expect("`cargo xtask setup` installs qemu-io");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("ops"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

/// The file into which a node fetches the only image that it gets.
fn blob(data_dir: &Path, hash: &str) -> Option<Vec<u8>> {
    std::fs::read(data_dir.join("images/data").join(format!("{hash}.data"))).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_boot_read_on_one_node_comes_first_on_the_next() {
    const MIB: usize = 1 << 20;
    // Far behind, and a place before it that nobody reads.
    let (read_at, unread_at, bytes) = (10 * MIB, 8 * MIB, 256 << 10);
    let bench = Bench::new();
    let (configs, _nodes, client) = bench.cluster(3, &[("cluster.copies", "1")], 3).await;
    let image = import_disk(&client, "big").await;
    let hash = image.manifest.disk().unwrap().part.hash.to_string();
    let on = |node: u64, name: &str| CreateVm { node: Some(NodeId(node)), lazy: Some(true), ..vm(name, "big") };
    for node in [2, 3] {
        slow(&client, node, true).await;
    }
    client.create_vm(&on(2, "first")).await.unwrap();
    let first = until_vm(&client, "first", "running while its image comes", is_lazy).await;
    read(&configs[1].data_dir.join("lazy").join(first.id.to_string()), read_at, bytes).await;
    assert_eq!(client.image(&image.name).await.unwrap().boot, None, "its boot goes on");
    slow(&client, 2, false).await;
    until_vm(&client, "first", "settled", is_settled).await;
    let mut seen = None;
    until("what was seen of the boot to be known", async || {
        seen = client.image(&image.name).await.unwrap().boot;
        seen.is_some()
    })
    .await;
    let seen = seen.unwrap();
    // QEMU's tool also looks at the beginning of what it opens.
    assert!(!seen.is_whole && (bytes as u64..MIB as u64).contains(&seen.bytes), "{seen:?}");

    let content = content();
    let is_there =
        |file: &[u8], at: usize| file.get(at..at + bytes).is_some_and(|there| *there == content[at..at + bytes]);
    client.create_vm(&on(3, "second")).await.unwrap();
    until("what the first boot read", async || {
        let Some(file) = blob(&configs[2].data_dir, &hash) else { return false };
        let (is_first, is_rest) = (is_there(&file, read_at), is_there(&file, unread_at));
        assert!(is_first || !is_rest, "the rest came before it");
        is_first && !is_rest
    })
    .await;
    let second = until_vm(&client, "second", "running while its image comes", is_lazy).await;
    let transfer = second.live.unwrap().transfer.unwrap();
    assert!(transfer.bytes_done < transfer.bytes_total, "{transfer:?}");
}
