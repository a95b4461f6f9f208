//! Real nodes, real sources, and QEMU's own tools as the client.
#![allow(clippy::unwrap_used)]

use std::process::{Output, Stdio};

use blixard_core::Manifest;
use tokio::process::Command;
use tokio::sync::watch;

use super::*;
use crate::images::tests::{TestNode, in_time, members, random, whole};
use crate::images::{Direction, Progress, Rates};

const MIB: usize = 1 << 20;
const VM: VmId = VmId([7; 16]);
const PATIENCE: Duration = Duration::from_secs(60);

/// A client of a served disk, from QEMU's package.
async fn client(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    let target = format!("nbd+unix:///?socket={}", folder.join(LAZY_SOCKET).display());
    let arguments = arguments.iter().map(|argument| argument.replace("DISK", &target));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = in_time(command.output()).await;
    output.unwrap_or_else(|error| panic!("{program}: {error}: install QEMU with `cargo xtask setup`"))
}

/// Reads a disk to its end with `qemu-img`.
async fn copied(folder: &Path) -> Vec<u8> {
    let copy = tempfile::NamedTempFile::new().unwrap();
    let to = copy.path().to_str().unwrap();
    let output = client("qemu-img", folder, &["convert", "-f", "raw", "-O", "raw", "DISK", to]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(copy.path()).unwrap()
}

/// Reads some bytes with `qemu-io`, which says whether they are all of a pattern.
async fn reads(folder: &Path, offset: usize, bytes: usize, pattern: Option<u8>) -> Result<(), String> {
    let pattern = pattern.map_or_else(String::new, |byte| format!("-P {byte} "));
    let read = format!("read {pattern}{offset} {bytes}");
    let output = client("qemu-io", folder, &["-r", "-f", "raw", "-c", &read, "DISK"]).await;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let is_good = output.status.success() && said.contains("ops") && !said.contains("verification failed");
    if is_good { Ok(()) } else { Err(said) }
}

fn disks(node: &TestNode, patience: Duration) -> LazyDisks {
    LazyDisks::open(&node.dir.join("lazy"), node.images.clone(), patience, Arc::default()).unwrap()
}

fn fetch(node: &TestNode, manifest: &Manifest, holders: watch::Receiver<Vec<crate::images::Holder>>) -> Fetching {
    let (images, manifest, progress) = (node.images.clone(), manifest.clone(), watch::Sender::<Progress>::default());
    let seen = progress.subscribe();
    let task = spawn_tied(async move {
        images.keep(manifest.id(), &manifest).await.unwrap();
        // As the queue does it: who finds nobody tries again.
        while images.fetch(&manifest, holders.clone(), &progress).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    Fetching { seen, _task: task }
}

struct Fetching {
    seen: watch::Receiver<Progress>,
    _task: Tied,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_read_to_its_end_while_it_comes_and_no_byte_is_wrong() {
    let [source, target] = members().await;
    // The end lies within a sector, which a disk has as a whole.
    let content = random(51, 12 * MIB + 700);
    let manifest = source.import_disk(&content).await;
    source.images.limits().set(None, Rates { up_bytes_per_s: Some(8 << 20), ..Rates::default() });
    let disks = disks(&target, PATIENCE);
    let folder = disks.serve(VM, manifest.parts()[0]).unwrap();
    let (_known, holders) = watch::channel(vec![whole(source.id())]);
    let _fetching = fetch(&target, &manifest, holders);
    let copied = copied(&folder).await;
    assert_eq!(copied.len(), (12 * MIB + 700).next_multiple_of(512));
    assert!(copied[..content.len()] == content, "the bytes of the image");
    assert!(copied[content.len()..].iter().all(|byte| *byte == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_comes_before_everything_else() {
    let [source, target] = members().await;
    let mut content = random(52, 64 * MIB);
    let at = 50 * MIB;
    content[at..at + 4096].fill(9);
    let manifest = source.import_disk(&content).await;
    // Minutes for all of it.
    target.images.limits().set(None, Rates { down_bytes_per_s: Some(256 << 10), ..Rates::default() });
    let disks = disks(&target, PATIENCE);
    let folder = disks.serve(VM, manifest.parts()[0]).unwrap();
    let (_known, holders) = watch::channel(vec![whole(source.id())]);
    let fetching = fetch(&target, &manifest, holders);
    reads(&folder, at, 4096, Some(9)).await.unwrap();
    let received: u64 = target.images.limits().moved_bytes(Direction::Down).read().values().sum();
    assert!(received < 16 << 20, "{received} bytes came until one page was read");
    assert!(fetching.seen.borrow().bytes_done < 16 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_another_source_and_fails_when_none_is_found_in_time() {
    let [gone, other, target] = members().await;
    let mut content = random(53, 8 * MIB);
    content[4 * MIB..4 * MIB + 4096].fill(3);
    let manifest = gone.import_disk(&content).await;
    other.import_disk(&content).await;
    gone.transport.close().await;
    let hurried = disks(&target, Duration::from_millis(500));
    let folder = hurried.serve(VM, manifest.parts()[0]).unwrap();
    let (known, holders) = watch::channel(vec![whole(gone.id())]);
    let _fetching = fetch(&target, &manifest, holders);
    let error = reads(&folder, 4 * MIB, 4096, None).await.unwrap_err();
    assert!(error.contains("Input/output error"), "{error}");
    hurried.keep_only(|_| false);
    assert!(!folder.exists());

    let patient = disks(&target, PATIENCE);
    let folder = patient.serve(VM, manifest.parts()[0]).unwrap();
    let (read, ()) = tokio::join!(reads(&folder, 4 * MIB, 4096, Some(3)), async {
        // Whether the read has begun by now or not, there is nobody else to give it anything.
        known.send_replace(vec![whole(gone.id()), whole(other.id())]);
    });
    read.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_served_again_by_the_next_process() {
    let [source, target] = members().await;
    let mut content = random(54, 4 * MIB);
    content[..4096].fill(5);
    let manifest = source.import_disk(&content).await;
    target.fetch(&manifest, &[&source]).await.unwrap();
    let folder = {
        let disks = disks(&target, PATIENCE);
        let folder = disks.serve(VM, manifest.parts()[0]).unwrap();
        assert_eq!(disks.serve(VM, manifest.parts()[0]).unwrap(), folder, "it stays");
        reads(&folder, 0, 4096, Some(5)).await.unwrap();
        folder
    };
    let disks = disks(&target, PATIENCE);
    reads(&folder, 0, 4096, Some(5)).await.unwrap();
    let refused = client("qemu-io", &folder, &["-f", "raw", "-c", "write 0 4096", "DISK"]).await;
    assert!(!refused.status.success(), "a disk that is only read was opened for writing");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(folder.parent().unwrap()), mode(&folder)), (0o700, 0o711));
    disks.keep_only(|vm| vm == VM);
    assert!(folder.exists());
    disks.keep_only(|_| false);
    assert!(!folder.exists());
}
