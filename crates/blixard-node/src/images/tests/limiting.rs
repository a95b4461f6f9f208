//! Limits on real connections. A busy machine is only ever slower than a limit: what is held against the clock is that
//! nothing goes faster.

use std::time::Instant;

use blixard_core::BlobHash;
use futures::future::join_all;
use iroh_blobs::Hash;
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::StreamPair;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, GetRequest};

use super::*;
use crate::images::{BYTES_PER_S_MIN, Direction, Rates};

const MIB: u64 = 1 << 20;
/// The blob store turns away what comes at the same moment beyond some thirty requests for one blob.
const STREAMS: u64 = 16;

fn up(bytes_per_s: u64) -> Rates {
    Rates { up_bytes_per_s: Some(bytes_per_s), ..Rates::default() }
}

fn down(bytes_per_s: u64) -> Rates {
    Rates { down_bytes_per_s: Some(bytes_per_s), ..Rates::default() }
}

/// The time that so many bytes take at least. A tenth of a second's bytes may go at once, and what was asked for last goes in
/// any case.
fn least(bytes: u64, bytes_per_s: u64) -> Duration {
    let late = bytes - bytes_per_s / 10 - 64 * 16 * 1024;
    Duration::from_secs_f64(late as f64 / bytes_per_s as f64)
}

/// Fetches all of a blob on so many streams at once, each with its own part.
async fn over_streams(target: &TestNode, source: &TestNode, hash: BlobHash, bytes: u64, streams: u64) {
    let connection = target.transport.connect(source.id(), Protocol::Blobs).await.unwrap();
    let each = bytes / streams;
    let fetch = async |number: u64| {
        let (send, recv) = connection.open_bi().await.unwrap();
        let ranges = ChunkRanges::bytes(number * each..(number + 1) * each);
        let request = GetRequest::blob_ranges(Hash::from_bytes(hash.0), ranges);
        let pair = StreamPair::new(connection.stable_id() as u64, recv, send);
        let mut items = std::pin::pin!(target.images.inner.store.remote().execute_get(pair, request).stream());
        while let Some(item) = items.next().await {
            if let GetProgressItem::Error(error) = item {
                panic!("stream {number}: {error:#}");
            }
        }
    };
    in_time(join_all((0..streams).map(fetch))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_together_are_no_faster_than_the_limit() {
    let [source, one, other] = members().await;
    let content = random(1, (8 * MIB) as usize);
    let manifest = source.import_disk(&content).await;
    let hash = manifest.parts()[0].hash;
    source.images.limits().set(None, up(6 * MIB));
    for node in [&one, &other] {
        node.images.keep(manifest.id(), &manifest).await.unwrap();
    }
    let start = Instant::now();
    tokio::join!(over_streams(&one, &source, hash, 8 * MIB, STREAMS), over_streams(&other, &source, hash, 8 * MIB, 4));
    assert!(start.elapsed() >= least(16 * MIB, 6 * MIB), "{:?} for 16 MiB at 6 MiB/s", start.elapsed());
    let sent = source.images.limits().moved_bytes(Direction::Up).read();
    for node in [&one, &other] {
        let bytes = sent[&node.id()];
        assert!((8 * MIB..9 * MIB).contains(&bytes), "{bytes}: the content, and a little that proves it");
        assert_eq!(node.images.local_bytes(&manifest).await.unwrap(), 8 * MIB);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_a_limit_of_its_own() {
    let [source, slow, free] = members().await;
    let content = random(2, (6 * MIB) as usize);
    let manifest = source.import_disk(&content).await;
    source.images.limits().set(Some(slow.id()), up(3 * MIB));
    let start = Instant::now();
    let sources = [&source];
    let (fetched, ()) = tokio::join!(free.fetch(&manifest, &sources), async {
        slow.fetch(&manifest, &sources).await.unwrap();
        assert!(start.elapsed() >= least(6 * MIB, 3 * MIB), "{:?} for 6 MiB at 3 MiB/s", start.elapsed());
    });
    fetched.unwrap();
    assert!(slow.content(&manifest).await == content && free.content(&manifest).await == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_asks_for_no_more_than_its_limit() {
    let [one, other, target] = members().await;
    let content = random(3, (12 * MIB + 5) as usize);
    let manifest = one.import_disk(&content).await;
    other.import_disk(&content).await;
    target.images.limits().set(None, down(5 * MIB));
    let start = Instant::now();
    target.fetch(&manifest, &[&one, &other]).await.unwrap();
    assert!(start.elapsed() >= least(12 * MIB, 5 * MIB), "{:?} for 12 MiB at 5 MiB/s", start.elapsed());
    assert!(target.content(&manifest).await == content);
    let received: u64 = target.images.limits().moved_bytes(Direction::Down).read().values().sum();
    assert_eq!(received, 12 * MIB + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_lifted_lets_a_slow_fetch_go_on_at_once() {
    let [source, target] = members().await;
    // Minutes at the lowest limits.
    let content = random(4, (48 * MIB) as usize);
    let manifest = source.import_disk(&content).await;
    source.images.limits().set(None, up(BYTES_PER_S_MIN));
    target.images.limits().set(Some(source.id()), down(BYTES_PER_S_MIN));
    let progress = watch::Sender::<Progress>::default();
    let mut seen = progress.subscribe();
    let sources = [source.id()];
    let (fetched, ()) = tokio::join!(target.fetch_from(&manifest, &sources, &progress), async {
        seen.wait_for(|progress| progress.sources == 1).await.unwrap();
        source.images.limits().set(None, Rates::default());
        target.images.limits().set(Some(source.id()), Rates::default());
    });
    fetched.unwrap();
    assert!(target.content(&manifest).await == content);
}
