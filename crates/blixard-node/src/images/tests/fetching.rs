//! From one node to another.

use std::fs::Permissions;
use std::os::unix::fs::{FileExt, PermissionsExt};

use blixard_core::{BlobHash, EndpointId};
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::protocol::{ChunkRanges, GetRequest, ObserveItem, PushRequest, RequestType};
use tokio::sync::watch;

use super::*;

const MIB: usize = 1 << 20;

fn only_reason(error: FetchError) -> String {
    match error {
        FetchError::AllSourcesFailed(mut failed) if failed.len() == 1 => failed.remove(0).1,
        other => panic!("another failure was expected: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_size_arrives_as_it_was() {
    let [source, target] = members().await;
    for (seed, bytes) in [1, 1024, (16 << 10) - 1, 16 << 10, (16 << 10) + 1, 40 * MIB + 17].into_iter().enumerate() {
        let content = random(seed as u8, bytes);
        let manifest = source.import_disk(&content).await;
        assert_eq!(manifest.parts()[0].hash, BlobHash(*blake3::hash(&content).as_bytes()));
        assert!(!target.images.is_complete(&manifest).await.unwrap());
        let progress = target.fetch(&manifest, &[&source]).await.unwrap();
        let bytes = bytes as u64;
        let (bytes_received, sources) = (bytes, progress.sources);
        let all = Progress { bytes_done: bytes, bytes_total: bytes, bytes_received, sources, ..Progress::default() };
        assert_eq!(progress, all);
        assert!(target.images.is_complete(&manifest).await.unwrap());
        assert_eq!(target.images.local_bytes(&manifest).await.unwrap(), bytes);
        assert!(target.content(&manifest).await == content, "{bytes} bytes are not what was imported");
        let exported = target.images.export(manifest.parts()[0].hash).await.unwrap();
        assert!(collect(exported).await.unwrap() == content, "{bytes} bytes are exported otherwise");
        let again = target.fetch(&manifest, &[]).await.unwrap();
        assert_eq!(again.bytes_received, 0, "what is here needs no source");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_sources_of_which_one_dies_and_one_has_a_part() {
    let [whole, dying, part, target] = members().await;
    let content = random(1, 160 * MIB + 1);
    let manifest = whole.import_disk(&content).await;
    dying.import_disk(&content).await;
    part.fetch_part(&manifest, &whole, 20 << 20).await;
    let part_bytes = part.images.local_bytes(&manifest).await.unwrap();
    assert!(part_bytes > 0 && !part.images.is_complete(&manifest).await.unwrap());

    let progress = watch::Sender::<Progress>::default();
    let mut seen = progress.subscribe();
    let sources = [whole.id(), dying.id(), part.id()];
    let (fetched, ()) = tokio::join!(
        target.fetch_from(&manifest, &sources, &progress),
        in_time(async {
            seen.wait_for(|progress| progress.bytes_done >= 16 << 20 && progress.sources == 3).await.unwrap();
            dying.transport.close().await;
        })
    );
    fetched.unwrap();
    assert_eq!(progress.borrow().bytes_done, manifest.bytes());
    assert!(target.content(&manifest).await == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_parts_make_a_whole() {
    let [whole, one, other, target] = members().await;
    let content = random(2, 64 * MIB);
    let manifest = whole.import_disk(&content).await;
    one.fetch_part(&manifest, &whole, 10 << 20).await;
    let reason = only_reason(target.fetch(&manifest, &[&one]).await.unwrap_err());
    assert!(reason.contains("nothing of what is missing"), "{reason}");
    let part_bytes = one.images.local_bytes(&manifest).await.unwrap();
    assert_eq!(target.images.local_bytes(&manifest).await.unwrap(), part_bytes, "all of the part was worth fetching");
    other.import_disk(&content).await;
    let progress = target.fetch(&manifest, &[&one, &other]).await.unwrap();
    assert_eq!(progress.bytes_received, manifest.bytes() - part_bytes, "and none of it is fetched again");
    assert!(target.content(&manifest).await == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_still_fetching_serves_what_it_gets() {
    let [whole, middle, target] = members().await;
    let content = random(3, 48 * MIB);
    let manifest = whole.import_disk(&content).await;
    let (whole, between) = ([&whole], [&middle]);
    let (first, second) = tokio::join!(middle.fetch(&manifest, &whole), target.fetch(&manifest, &between));
    first.unwrap();
    second.unwrap();
    assert!(target.content(&manifest).await == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_never_taken_for_the_blob() {
    let [bad, good, target] = members().await;
    let content = random(4, 24 * MIB);
    let manifest = bad.import_disk(&content).await;
    good.import_disk(&content).await;
    let path = bad.images.path(manifest.parts()[0].hash).await.unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"EVIL", 5 << 20).unwrap();

    target.fetch(&manifest, &[&bad]).await.unwrap_err();
    assert!(!target.images.is_complete(&manifest).await.unwrap());
    assert!(target.images.path(manifest.parts()[0].hash).await.is_err(), "nothing may boot from it");
    target.fetch(&manifest, &[&bad, &good]).await.unwrap();
    assert!(target.content(&manifest).await == content);

    let exported = bad.images.export(manifest.parts()[0].hash).await;
    assert!(collect(exported.unwrap()).await.is_err(), "an export notices as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_with_the_wrong_length_is_found_out() {
    let [source, target] = members().await;
    let manifest = source.import_disk(&random(5, MIB)).await;
    let Part { hash, bytes } = manifest.parts()[0];
    // The first finds it out while the blob is still a part, the others once it is whole.
    for claimed in [bytes / 2, bytes - 1, bytes + 1, bytes * 40] {
        let wrong = disk(Part { hash, bytes: claimed });
        match target.fetch(&wrong, &[&source]).await.unwrap_err() {
            FetchError::WrongSize { expected_bytes, bytes: found, .. } => {
                assert_eq!((expected_bytes, found), (claimed, bytes))
            }
            other => panic!("{claimed}: {other:?}"),
        }
        assert!(!target.images.is_complete(&wrong).await.unwrap());
    }
    target.fetch(&manifest, &[&source]).await.unwrap();
    let empty = disk(Part { hash, bytes: 0 });
    assert!(matches!(target.fetch(&empty, &[&source]).await.unwrap_err(), FetchError::EmptyPart(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_disk_holds_is_refused_at_once() {
    let [source, target] = members().await;
    let huge = disk(Part { hash: BlobHash([7; 32]), bytes: 1 << 60 });
    match target.fetch(&huge, &[&source]).await.unwrap_err() {
        FetchError::NoSpace(no_space) => assert!(no_space.free_bytes < no_space.needed_bytes),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_source_that_answers_the_reasons_are_told() {
    let [source, target] = members().await;
    let manifest = source.import_disk(b"content").await;
    assert!(matches!(target.fetch(&manifest, &[]).await.unwrap_err(), FetchError::NoSource));
    assert!(
        matches!(target.fetch(&manifest, &[&target]).await.unwrap_err(), FetchError::NoSource),
        "a node is no source of itself"
    );
    let unknown: EndpointId = SecretKey::generate().id();
    let error = target.fetch_from(&manifest, &[unknown], &watch::Sender::default()).await.unwrap_err();
    assert!(error.to_string().contains(&unknown.short()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_says_nothing_is_left_out() {
    let [source, target] = members().await;
    let mute = imposter(crate::transport::handler(|connection| async move {
        connection.closed().await;
    }))
    .await;
    introduce(&[&source.transport, &target.transport, &mute]);
    let manifest = source.import_disk(&random(6, MIB)).await;
    let error = target.fetch_from(&manifest, &[mute.id()], &watch::Sender::default()).await.unwrap_err();
    assert!(only_reason(error).contains("nothing of what is missing"));
    target.fetch_from(&manifest, &[mute.id(), source.id()], &watch::Sender::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stalls_gives_its_pieces_back() {
    let [source, target, other] = members().await;
    // It says that it has all of everything, and then delivers none of it.
    let stalling = imposter(crate::transport::handler(|connection| async move {
        let boast = ObserveItem { size: 1 << 40, ranges: ChunkRanges::all() };
        let boast = postcard::to_stdvec(&boast).unwrap();
        let boast = [vec![u8::try_from(boast.len()).unwrap()], boast].concat();
        let mut open = Vec::new();
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let mut request = [0];
            recv.read_exact(&mut request).await.unwrap();
            if request[0] == RequestType::Observe as u8 {
                send.write_all(&boast).await.unwrap();
            }
            open.push((send, recv));
        }
    }))
    .await;
    introduce(&[&source.transport, &target.transport, &other.transport, &stalling]);
    let content = random(9, 80 * MIB);
    let manifest = source.import_disk(&content).await;
    let (both, alone) = ([stalling.id(), source.id()], [stalling.id()]);
    let (progress, progress_alone) = (watch::Sender::default(), watch::Sender::default());
    let (fetched, failed) = tokio::join!(
        target.fetch_from(&manifest, &both, &progress),
        other.fetch_from(&manifest, &alone, &progress_alone)
    );
    fetched.unwrap();
    assert!(target.content(&manifest).await == content);
    let reason = only_reason(failed.unwrap_err());
    assert!(reason.contains("delivered nothing"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_nothing() {
    let [source, stranger] = members().await;
    source.transport.access().set_members([source.id()]);
    let manifest = source.import_disk(&random(7, MIB)).await;
    let reason = only_reason(stranger.fetch(&manifest, &[&source]).await.unwrap_err());
    assert!(reason.contains("not a member"), "{reason}");
    assert_eq!(stranger.images.local_bytes(&manifest).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_pushes_even_as_a_member() {
    let [pusher, node] = members().await;
    let blob = pusher.import(&random(8, MIB)).await;
    let hash = iroh_blobs::Hash::from_bytes(blob.hash.0);
    let connection = pusher.transport.connect(node.id(), Protocol::Blobs).await.unwrap();
    let remote = pusher.images.inner.store.remote();
    let pushed = remote.execute_push(connection.clone(), PushRequest::new(hash, GetRequest::all(hash).ranges)).await;
    // The answer to what follows on the same connection shows that the push was dealt with.
    let manifest = node.import_disk(b"something else").await;
    pusher.fetch(&manifest, &[&node]).await.unwrap();
    let status = node.images.inner.store.blobs().status(hash).await.unwrap();
    assert!(matches!(status, BlobStatus::NotFound), "pushed {pushed:?}: {status:?}");
}
