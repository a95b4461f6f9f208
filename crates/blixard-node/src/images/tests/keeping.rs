//! What stays and what goes.

use std::io;
use std::os::unix::fs::PermissionsExt;

use blixard_core::Part;

use super::*;
use crate::images::{BlobError, ImportError};

const MIB: usize = 1 << 20;

async fn open(dir: &Path, every: Duration) -> (Images, Transport) {
    let transport = open_transport(SecretKey::generate()).await;
    let images = Images::open_collecting(dir.to_owned(), transport.clone(), CacheMax::Unlimited, every).await.unwrap();
    (images, transport)
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_image_frees_its_files_but_not_what_another_shares() {
    let node = TestNode::start().await;
    let (own, shared) = (node.import(&random(1, MIB)).await, node.import(&random(2, MIB)).await);
    let part = |blob: &ImportedBlob| Part { hash: blob.hash, bytes: blob.bytes };
    let both = Manifest::Kernel { kernel: part(&own), initrd: Some(part(&shared)), root: None, cmdline: String::new() };
    let one = disk(part(&shared));
    for manifest in [&both, &one] {
        node.images.keep(manifest.id(), manifest).await.unwrap();
    }
    let [own, shared] = [own, shared].map(|guarded| guarded.hash);
    assert_eq!(node.images.kept().await.unwrap(), [both.id(), one.id()].into());
    let path = node.images.path(own).await.unwrap();

    node.images.drop_image(both.id()).await.unwrap();
    eventually("the file is removed", || async { !path.exists() }).await;
    assert_eq!(node.images.kept().await.unwrap(), [one.id()].into());
    assert!(matches!(node.images.path(own).await, Err(BlobError::NotWhole(_))));
    assert!(node.images.is_complete(&one).await.unwrap());
    assert!(node.images.path(shared).await.unwrap().exists());
    assert!(node.images.collects());

    node.images.drop_image(one.id()).await.unwrap();
    eventually("no file is left", || async { files(&node.dir.join("data")) == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_nobody_keeps_goes_and_a_guarded_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (images, _transport) = open(dir.path(), Duration::from_millis(20)).await;
    let guarded = images.import(chunks(&random(1, MIB))).await.unwrap();
    let given_up = images.import(chunks(&random(2, MIB))).await.unwrap();
    let path = images.path(given_up.hash).await.unwrap();
    drop(given_up);
    eventually("the given up import is removed", || async { !path.exists() }).await;
    assert!(images.path(guarded.hash).await.unwrap().exists());

    // From the guard to an image, under searches that never pause.
    let manifest = disk(Part { hash: guarded.hash, bytes: guarded.bytes });
    images.keep(manifest.id(), &manifest).await.unwrap();
    drop(guarded);
    let marker = images.import(chunks(&random(3, MIB))).await.unwrap();
    let path = images.path(marker.hash).await.unwrap();
    drop(marker);
    eventually("a later search has run", || async { !path.exists() }).await;
    assert!(images.is_complete(&manifest).await.unwrap());
    images.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_read_only_and_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let content = random(4, 3 * MIB);
    let (images, _transport) = open(dir.path(), Duration::from_secs(60)).await;
    let blob = images.import(chunks(&content)).await.unwrap();
    let manifest = disk(Part { hash: blob.hash, bytes: blob.bytes });
    images.keep(manifest.id(), &manifest).await.unwrap();
    let path = images.path(blob.hash).await.unwrap();
    assert!(path.is_absolute());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
    let again = images.import(chunks(&content)).await.unwrap();
    assert_eq!((again.hash, files(&dir.path().join("temp"))), (blob.hash, 0), "the same bytes are the same blob");
    assert_eq!(images.path(blob.hash).await.unwrap(), path);
    images.shutdown().await;
    // A crash may leave such files.
    let orphan = dir.path().join("data").join(format!("{}.data", blake3::hash(b"nobody")));
    let unfinished = dir.path().join("temp/0123.temp");
    std::fs::write(&orphan, b"left over").unwrap();
    std::fs::write(&unfinished, b"left over").unwrap();

    let (images, _transport) = open(dir.path(), Duration::from_secs(60)).await;
    assert!(!orphan.exists() && !unfinished.exists());
    assert_eq!(images.kept().await.unwrap(), [manifest.id()].into());
    assert!(images.is_complete(&manifest).await.unwrap());
    assert!(std::fs::read(images.path(blob.hash).await.unwrap()).unwrap() == content);
    images.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_was_not_sealed_is_verified_before_it_is() {
    let node = TestNode::start().await;
    let good = node.import_disk(&random(5, MIB)).await;
    let bad = node.import_disk(&random(6, MIB)).await;
    for manifest in [&good, &bad] {
        let path = node.images.path(manifest.parts()[0].hash).await.unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!node.images.is_complete(manifest).await.unwrap());
        if manifest == &bad {
            // What power loss does to a file whose content had not reached the disk.
            std::fs::write(&path, vec![0; MIB]).unwrap();
        }
    }
    node.fetch(&good, &[]).await.unwrap();
    assert!(node.images.is_complete(&good).await.unwrap());
    assert!(matches!(node.fetch(&bad, &[]).await, Err(FetchError::Damaged(_))));
    assert!(!node.images.is_complete(&bad).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_imported_leaves_nothing_behind() {
    let node = TestNode::start().await;
    let nothing = node.images.import(futures::stream::iter([Ok(Bytes::new())])).await;
    assert!(matches!(nothing, Err(ImportError::Empty)));
    let broken = || io::Error::new(io::ErrorKind::ConnectionReset, "the client went away");
    let some = chunks(&random(7, MIB)).chain(futures::stream::iter([Err(broken())]));
    match node.images.import(some).await {
        Err(ImportError::Source(error)) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        other => panic!("{other:?}"),
    }
    let endless = chunks(&random(8, MIB)).chain(futures::stream::pending());
    let given_up = tokio::time::timeout(Duration::from_millis(200), node.images.import(endless)).await;
    assert!(given_up.is_err());
    eventually("no file is left", || async { files(&node.dir.join("temp")) == 0 }).await;
    assert_eq!(files(&node.dir.join("data")), 0);
}
