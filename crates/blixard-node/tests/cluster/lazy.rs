//! Vms that run before their image is on their node as a whole.

use blixard_core::NodeId;
use blixard_node::api::{AddImage, Client, CreateVm, ImageSource, ImageView, SetLimits, VmView};
use bytes::Bytes;

use crate::bench::{Bench, until, until_phase, until_vm, vm};

/// Long on its way at the lowest limit.
const CONTENT_BYTES: usize = 12 << 20;

/// Imports a raw disk at the node that the client asks.
async fn import_disk(client: &Client, name: &str) -> ImageView {
    let mut content = vec![7; CONTENT_BYTES];
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    let pieces: Vec<std::io::Result<Bytes>> = content.chunks(64 << 10).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    let blob = client.upload(futures::stream::iter(pieces)).await.unwrap();
    let source = ImageSource::Disk { disk: blob.hash };
    client.add_image(&AddImage { name: name.parse().unwrap(), source }).await.unwrap()
}

async fn slow(client: &Client, is_slow: bool) {
    let limits = SetLimits { down_bytes_per_s: is_slow.then_some(128 << 10), ..SetLimits::default() };
    client.set_limits(Some(NodeId(2)), &limits).await.unwrap();
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
    slow(&client, true).await;
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

    slow(&client, false).await;
    let hasty = until_vm(&client, "hasty", "settled", is_settled).await;
    assert_eq!((hasty.since, hasty.reason, hasty.restarts), (begun, None, 0), "nobody noticed");
    until_phase(&client, "patient", "running").await;
    until("nothing to be served any more", async || !served.exists()).await;
    // An image that is there is booted like any other.
    client.create_vm(&on_second("late", Some(true))).await.unwrap();
    until_vm(&client, "late", "running", is_settled).await;
}
