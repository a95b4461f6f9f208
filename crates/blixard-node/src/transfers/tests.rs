#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blixard_core::{BlobHash, Part};

use super::*;
use crate::images::tests::{TestNode, disk, eventually, introduce, members, random, whole};
use crate::metrics::outcome;

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

async fn until(transfers: &Transfers, what: &str, holds: impl Fn() -> bool) {
    let mut changed = transfers.changed();
    let wait = async {
        while !holds() {
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn image(number: u8) -> (ImageId, Manifest) {
    let manifest = disk(Part { hash: BlobHash([number; 32]), bytes: 7 });
    (manifest.id(), manifest)
}

/// Nothing is kept of them unless something is set.
fn with(fetch: Fetch) -> Transfers {
    let dir = tempfile::tempdir().unwrap();
    let keeper = KeptFile::open(&dir.path().join("transfers.json"), &KEEPING).unwrap();
    Transfers::with(fetch, Arc::default(), keeper, Limits::none(), 3)
}

/// Transfers of a node, of which the file is beside its blobs.
fn open(node: &TestNode) -> Transfers {
    Transfers::open(&node.dir.join("transfers.json"), 3, node.images.clone(), Arc::default()).unwrap()
}

/// How often an image that waits to be tried again has failed.
fn failed_times(transfers: &Transfers, image: ImageId) -> Option<u32> {
    let status = transfers.status(image)?;
    matches!(status.state, TransferState::Failed { .. }).then_some(status.failures)
}

/// Transfers that do as they are told, one instruction an attempt.
fn scripted(script: Vec<BoxFuture<'static, Result<(), Failure>>>) -> Transfers {
    let script = Mutex::new(VecDeque::from(script));
    let fetch = move |_| script.lock().unwrap().pop_front().expect("no more attempts were expected");
    with(Arc::new(fetch))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_transfer_is_tried_again_even_after_a_panic() {
    let fails = async { Err(Failure { class: FailureClass::Sources, reason: "no".to_owned() }) }.boxed();
    let panics = async { panic!("on purpose") }.boxed();
    let transfers = scripted(vec![fails, panics, async { Ok(()) }.boxed()]);
    let (id, manifest) = image(1);
    transfers.want(id, manifest.clone(), vec![whole(EndpointId([1; 32]))], Priority::Copy);
    until(&transfers, "it failed", || failed_times(&transfers, id) == Some(1)).await;
    transfers.want(id, manifest.clone(), vec![whole(EndpointId([1; 32]))], Priority::VmWaiting);
    until(&transfers, "it failed again", || failed_times(&transfers, id) == Some(2)).await;
    until(&transfers, "it is done, by itself", || transfers.status(id).is_none()).await;
    let metrics = &transfers.shared.metrics;
    let ended = |is_done| metrics.fetches.get_or_create(&outcome(is_done)).get();
    assert_eq!((ended(true), ended(false), metrics.transfer_panics.get()), (1, 2, 1));
    let labels = [("priority", "vm".into()), ("state", "failed".into())];
    assert_eq!(metrics.transfers.get_or_create(&labels).get(), 0, "none is left");
    let failed = |class: &'static str| metrics.transfer_failures.get_or_create(&[("class", class.into())]).get();
    assert_eq!((failed("sources"), failed("storage")), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_outlives_its_own_panic() {
    // A script that is at its end panics in the worker itself, which calls it, and not in a transfer.
    let calls = AtomicU64::new(0);
    let fetch = move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => panic!("on purpose"),
        _ => async { Ok(()) }.boxed(),
    };
    let transfers = with(Arc::new(fetch));
    let (id, manifest) = image(1);
    transfers.want(id, manifest, vec![whole(EndpointId([1; 32]))], Priority::Copy);
    eventually("the transfer is done", || async { transfers.status(id).is_none() }).await;
    assert_eq!(transfers.shared.metrics.transfer_panics.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_and_shutting_down_end_what_runs() {
    struct Ends(Arc<AtomicU64>);
    impl Drop for Ends {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let ended = Arc::new(AtomicU64::new(0));
    let counts = ended.clone();
    let transfers = with(Arc::new(move |_| {
        let ends = Ends(counts.clone());
        async move {
            std::future::pending::<()>().await;
            drop(ends);
            Ok(())
        }
        .boxed()
    }));
    let ids = [1, 2].map(|number| {
        let (id, manifest) = image(number);
        transfers.want(id, manifest, vec![whole(EndpointId([1; 32]))], Priority::VmWaiting);
        id
    });
    let runs = |id| transfers.status(id).is_some_and(|status| status.state == TransferState::Running);
    until(&transfers, "both run", || ids.iter().all(|id| runs(*id))).await;
    transfers.forget(ids[0]).await.unwrap();
    assert_eq!(transfers.status(ids[0]), None);
    eventually("the cancelled one has ended", || async { ended.load(Ordering::Relaxed) == 1 }).await;
    assert!(runs(ids[1]));
    transfers.shutdown().await;
    eventually("the other has ended", || async { ended.load(Ordering::Relaxed) == 2 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_arrives_once_a_source_can_be_reached() {
    let [source, target] = members().await;
    let content = random(1, 3 * MIB);
    let manifest = source.import_disk(&content).await;
    let late = TestNode::start().await;
    let transfers = open(&target);
    transfers.want(manifest.id(), manifest.clone(), vec![whole(late.id())], Priority::VmWaiting);
    until(&transfers, "it failed", || {
        matches!(transfers.status(manifest.id()).map(|status| status.state), Some(TransferState::Failed { .. }))
    })
    .await;
    assert!(target.images.kept().await.unwrap().contains(&manifest.id()));
    introduce(&[&source.transport, &target.transport, &late.transport]);
    transfers.want(manifest.id(), manifest.clone(), vec![whole(source.id()), whole(late.id())], Priority::VmWaiting);
    until(&transfers, "it is here", || transfers.status(manifest.id()).is_none()).await;
    assert!(target.images.is_complete(&manifest).await.unwrap());
    assert!(target.content(&manifest).await == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_copy_is_replaced() {
    let [source, target] = members().await;
    let content = random(2, MIB);
    let manifest = source.import_disk(&content).await;
    target.fetch(&manifest, &[&source]).await.unwrap();
    let path = target.images.path(manifest.parts()[0].hash).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    // Not sealed, as after a power cut.
    std::fs::write(&path, vec![0; MIB]).unwrap();
    let transfers = open(&target);
    transfers.want(manifest.id(), manifest.clone(), vec![whole(source.id())], Priority::Copy);
    until(&transfers, "it is here again", || transfers.status(manifest.id()).is_none()).await;
    assert!(target.content(&manifest).await == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_back_keeps_what_it_has() {
    let [source, target] = members().await;
    let (large, small) = (random(3, 12 * MIB), random(4, MIB));
    let (copy, urgent) = (source.import_disk(&large).await, source.import_disk(&small).await);
    let limit = |bytes_per_s| Rates { up_bytes_per_s: bytes_per_s, ..Rates::default() };
    source.images.limits().set(None, limit(Some(4 * MIB as u64)));
    let file = target.dir.join("transfers.json");
    let transfers = Transfers::open(&file, 1, target.images.clone(), Arc::default()).unwrap();
    transfers.want(copy.id(), copy.clone(), vec![whole(source.id())], Priority::Copy);
    let done = |image| transfers.status(image).map(|status| status.progress.bytes_done);
    eventually("half of it is there", || async { done(copy.id()) >= Some(6 * MIB as u64) }).await;
    transfers.want(urgent.id(), urgent.clone(), vec![whole(source.id())], Priority::VmWaiting);
    until(&transfers, "the urgent one is here", || transfers.status(urgent.id()).is_none()).await;
    assert!(!target.images.is_complete(&copy).await.unwrap(), "there was one place, and it took it");
    source.images.limits().set(None, limit(None));
    until(&transfers, "the other is here", || transfers.status(copy.id()).is_none()).await;
    assert!(target.content(&copy).await == large && target.content(&urgent).await == small);
    let fetched = transfers.shared.metrics.fetched_bytes.get_or_create(&[("priority", "copy".into())]).get();
    assert!(fetched < 15 * MIB as u64, "{fetched} bytes came of 12 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_manifest_fails_for_good_and_a_full_disk_does_not() {
    let wrong = FetchError::EmptyPart(BlobHash([1; 32]));
    let full = crate::images::NoSpace { dir: "/".to_owned(), needed_bytes: 2, free_bytes: 1 };
    let [wrong, full] = [wrong, full.into()].map(|error: FetchError| async move { Err(Failure::from(error)) }.boxed());
    let transfers = scripted(vec![wrong, full]);
    let [first, second] = [1, 2].map(|number| {
        let (id, manifest) = image(number);
        transfers.want(id, manifest, vec![whole(EndpointId([1; 32]))], Priority::Copy);
        id
    });
    until(&transfers, "both failed", || [first, second].iter().all(|id| failed_times(&transfers, *id) == Some(1)))
        .await;
    let is_retried = |id| match transfers.status(id).map(|status| status.state) {
        Some(TransferState::Failed { retry_at }) => retry_at.is_some(),
        other => panic!("it has not failed: {other:?}"),
    };
    assert_eq!((is_retried(first), is_retried(second)), (false, true));
}
