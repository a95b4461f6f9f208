//! What is fetched first, by the word of the source that is asked for it.

use std::sync::{Arc, Mutex};

use blixard_core::ByteRange;
use iroh_blobs::BlobsProtocol;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use iroh_blobs::provider::events::{EventMask, EventSender, ProviderMessage, RequestMode};

use super::*;
use crate::images::Rates;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

type Asked = Arc<Mutex<Vec<ChunkRanges>>>;

/// A source that notes what it is asked for, in turn.
async fn noting_source() -> (TestNode, Asked) {
    let temp = tempfile::tempdir().unwrap();
    let transport = open_transport(SecretKey::generate()).await;
    let images = Images::open(temp.path().to_owned(), transport.clone(), CacheMax::Unlimited).await.unwrap();
    let node = TestNode { images, transport, dir: temp.path().to_owned(), _temp: Some(temp) };
    let (events, mut told) = EventSender::channel(64, EventMask { get: RequestMode::Intercept, ..EventMask::DEFAULT });
    let asked = Asked::default();
    let noted = asked.clone();
    tokio::spawn(async move {
        while let Some(message) = told.recv().await {
            if let ProviderMessage::GetRequestReceived(message) = message {
                noted.lock().unwrap().push(message.inner.request.ranges[0].clone());
                // Whoever asked may be gone.
                let _ = message.tx.send(Ok(())).await;
            }
        }
    });
    node.transport.serve(vec![(Protocol::Blobs, Box::new(BlobsProtocol::new(&node.images.inner.store, Some(events))))]);
    (node, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_boot_is_known_to_read_is_asked_for_before_the_rest() {
    let (source, asked) = noting_source().await;
    let target = TestNode::start().await;
    introduce(&[&source.transport, &target.transport]);
    let content = random(61, 48 << 20);
    let manifest = source.import_disk(&content).await;
    let disk = manifest.disk().unwrap().part;
    // From the end to the beginning, as nobody would fetch it by himself.
    let places = (10..30).rev().map(|at| at * 3 * MIB / 2);
    let known: Vec<ByteRange> = places.map(|start| ByteRange { start, end: start + 100 * KIB }).collect();
    let all = known.iter().fold(ChunkRanges::empty(), |all, range| all | ChunkRanges::bytes(range.start..range.end));
    // Long until all of it is there.
    target.images.limits().set(None, Rates { down_bytes_per_s: Some(4 << 20), ..Rates::default() });
    let _ahead = target.images.want_ahead(disk.hash, &known);
    let is_here = async || target.images.present(disk.hash).await.unwrap().ranges.is_superset(&all);
    let (progress, id) = (watch::Sender::default(), source.id());
    tokio::select! {
        ended = target.fetch_from(&manifest, std::slice::from_ref(&id), &progress) => panic!("it is all here: {ended:?}"),
        () = eventually("what a boot reads", is_here) => {}
    }
    let asked = asked.lock().unwrap();
    let begins: Vec<u64> = asked.iter().map(|ranges| ranges.boundaries()[0].0 * KIB).collect();
    assert!(begins[0] >= 15 * MIB, "it began with something else: {begins:?}");
    // Until the last of it was asked for, hardly anything else was.
    let (mut left, mut others) = (all.clone(), 0);
    for ranges in asked.iter() {
        if left.is_empty() {
            break;
        }
        left = &left - ranges;
        let rest = &(ranges - &all) & &ChunkRanges::bytes(..disk.bytes);
        others += iroh_blobs::api::blobs::Bitfield::new(rest, disk.bytes).total_bytes();
    }
    assert!(left.is_empty(), "it is here without being asked for: {left:?}");
    assert!(others < 8 * MIB, "{others} bytes of the rest went before, from {begins:?}");
}
