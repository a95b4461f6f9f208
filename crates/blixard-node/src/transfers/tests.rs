#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blixard_core::{BlobHash, EndpointId, Part};

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

/// Transfers that do as they are told, one instruction an attempt.
fn scripted(script: Vec<BoxFuture<'static, Result<(), String>>>) -> Transfers {
    let script = Mutex::new(VecDeque::from(script));
    let fetch = move |_| script.lock().unwrap().pop_front().expect("no more attempts were expected");
    Transfers::with(Arc::new(fetch), Arc::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_transfer_is_tried_again_even_after_a_panic() {
    let fails = async { Err("no".to_owned()) }.boxed();
    let panics = async { panic!("on purpose") }.boxed();
    let transfers = scripted(vec![fails, panics, async { Ok(()) }.boxed()]);
    let (id, manifest) = image(1);
    transfers.want(id, manifest.clone(), vec![whole(EndpointId([1; 32]))], Priority::Copy);
    until(&transfers, "it failed", || {
        matches!(transfers.status(id).map(|status| status.state), Some(TransferState::Failed { attempts: 1, .. }))
    })
    .await;
    transfers.want(id, manifest.clone(), vec![whole(EndpointId([1; 32]))], Priority::VmWaiting);
    until(&transfers, "it failed again", || {
        matches!(transfers.status(id).map(|status| status.state), Some(TransferState::Failed { attempts: 2, .. }))
    })
    .await;
    until(&transfers, "it is done, by itself", || transfers.status(id).is_none()).await;
    let metrics = &transfers.shared.metrics;
    let ended = |is_done| metrics.fetches.get_or_create(&outcome(is_done)).get();
    assert_eq!((ended(true), ended(false), metrics.transfer_panics.get()), (1, 2, 1));
    assert_eq!(metrics.transfers.get_or_create(&[("state", "failed".into())]).get(), 0, "none is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_outlives_its_own_panic() {
    // A script that is at its end panics in the worker itself, which calls it, and not in a transfer.
    let calls = AtomicU64::new(0);
    let fetch = move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => panic!("on purpose"),
        _ => async { Ok(()) }.boxed(),
    };
    let transfers = Transfers::with(Arc::new(fetch), Arc::default());
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
    let transfers = Transfers::with(
        Arc::new(move |_| {
            let ends = Ends(counts.clone());
            async move {
                std::future::pending::<()>().await;
                drop(ends);
                Ok(())
            }
            .boxed()
        }),
        Arc::default(),
    );
    let ids = [1, 2].map(|number| {
        let (id, manifest) = image(number);
        transfers.want(id, manifest, vec![whole(EndpointId([1; 32]))], Priority::VmWaiting);
        id
    });
    let runs = |id| transfers.status(id).is_some_and(|status| status.state == TransferState::Running);
    until(&transfers, "both run", || ids.iter().all(|id| runs(*id))).await;
    transfers.cancel(ids[0]);
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
    let transfers = Transfers::new(target.images.clone(), Arc::default());
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
    let transfers = Transfers::new(target.images.clone(), Arc::default());
    transfers.want(manifest.id(), manifest.clone(), vec![whole(source.id())], Priority::Copy);
    until(&transfers, "it is here again", || transfers.status(manifest.id()).is_none()).await;
    assert!(target.content(&manifest).await == content);
}
