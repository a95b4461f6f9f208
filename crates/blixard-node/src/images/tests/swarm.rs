//! Several nodes that fetch the same image, or fetch it from somebody who lies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use iroh_blobs::BlobsProtocol;
use iroh_blobs::protocol::{ChunkRanges, RequestType};
use iroh_blobs::provider::events::{EventMask, EventSender, ProviderMessage, ThrottleMode};

use super::*;
use crate::images::Direction;
use crate::images::holders::Source;
use crate::images::plan::{Blob, Next};
use crate::images::workers::Job;
use crate::transport::handler;

const MIB: usize = 1 << 20;

/// Serves what a node has at a limited speed, and counts the content that goes out.
fn slow_handler(node: &TestNode, bytes_a_second: u64) -> (Handler, Arc<AtomicU64>) {
    let mask = EventMask { throttle: ThrottleMode::Intercept, ..EventMask::DEFAULT };
    let (events, mut asked) = EventSender::channel(64, mask);
    let sent = Arc::<AtomicU64>::default();
    let counted = sent.clone();
    tokio::spawn(async move {
        let mut free_at = Instant::now();
        while let Some(message) = asked.recv().await {
            let ProviderMessage::Throttle(message) = message else { continue };
            let bytes = message.inner.size;
            free_at = free_at.max(Instant::now()) + Duration::from_micros(bytes * 1_000_000 / bytes_a_second);
            tokio::time::sleep_until(free_at.into()).await;
            counted.fetch_add(bytes, Ordering::Relaxed);
            // Whoever asked may be gone.
            let _ = message.tx.send(Ok(())).await;
        }
    });
    (Box::new(BlobsProtocol::new(&node.images.inner.store, Some(events))), sent)
}

/// A source that is slow, with all of an image.
pub(super) async fn slow_source(content: &[u8], bytes_a_second: u64) -> (TestNode, Manifest, Arc<AtomicU64>) {
    let temp = tempfile::tempdir().unwrap();
    let transport = open_transport(SecretKey::generate()).await;
    let images = Images::open(temp.path().to_owned(), transport.clone(), CacheMax::Unlimited).await.unwrap();
    let node = TestNode { images, transport, dir: temp.path().to_owned(), _temp: Some(temp) };
    let (handler, sent) = slow_handler(&node, bytes_a_second);
    node.transport.serve(vec![(Protocol::Blobs, handler)]);
    let manifest = node.import_disk(content).await;
    (node, manifest, sent)
}

/// Fetches from a source, and from others that fetch it as well.
async fn fetch_among(node: &TestNode, manifest: &Manifest, source: &TestNode, peers: &[&TestNode]) -> Progress {
    let peers = peers.iter().filter(|peer| peer.id() != node.id());
    let peers = peers.map(|peer| Holder { is_whole: false, ..whole(peer.id()) });
    let (_, holders) = watch::channel(peers.chain([whole(source.id())]).collect());
    node.images.keep(manifest.id(), manifest).await.unwrap();
    let progress = watch::Sender::default();
    in_time(node.images.fetch(manifest, holders, &progress)).await.unwrap();
    *progress.borrow()
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_give_each_other_what_they_have_and_spare_the_source() {
    let content = random(21, 24 * MIB);
    let (source, manifest, sent) = slow_source(&content, 12 << 20).await;
    let nodes: [TestNode; 3] = members().await;
    introduce(&nodes.iter().map(|node| &node.transport).chain([&source.transport]).collect::<Vec<_>>());
    let peers: Vec<&TestNode> = nodes.iter().collect();
    let fetches = nodes.iter().map(|node| fetch_among(node, &manifest, &source, &peers));
    let progress = futures::future::join_all(fetches).await;
    for (node, progress) in nodes.iter().zip(&progress) {
        assert!(node.content(&manifest).await == content);
        assert!(
            progress.bytes_received >= manifest.bytes(),
            "what came before an order was taken back counts: {progress:?}"
        );
        let twice = progress.bytes_received - manifest.bytes();
        assert!(twice <= manifest.bytes() / 4, "{twice} bytes came twice");
    }
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < manifest.bytes() * 2, "the source sent {sent} bytes to three receivers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_becomes_known_on_the_way_is_asked_too() {
    let [whole_node, part, target] = members().await;
    let manifest = whole_node.import_disk(&random(22, 16 * MIB)).await;
    part.fetch_part(&manifest, &whole_node, 4 << 20).await;
    target.images.keep(manifest.id(), &manifest).await.unwrap();
    let fetching = Holder { is_whole: false, ..whole(part.id()) };
    let (known, holders) = watch::channel(vec![fetching]);
    let progress = watch::Sender::<Progress>::default();
    let mut seen = progress.subscribe();
    let (fetched, ()) = tokio::join!(
        in_time(target.images.fetch(&manifest, holders, &progress)),
        in_time(async {
            seen.wait_for(|progress| progress.bytes_done > 0).await.unwrap();
            known.send_replace(vec![fetching, whole(whole_node.id())]);
        })
    );
    fetched.unwrap();
    assert!(target.content(&manifest).await == whole_node.content(&manifest).await);
}

/// Passes requests on to an honest node, and bends one bit of what comes back.
fn liar(transport: Transport, honest: EndpointId) -> Handler {
    /// Behind the proofs at the beginning of an answer, within its content.
    const BENT_BYTE: usize = 40_000;
    handler(move |connection| {
        let transport = transport.clone();
        async move {
            let onward = transport.connect(honest, Protocol::Blobs).await.unwrap();
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let onward = onward.clone();
                tokio::spawn(async move {
                    let Ok(request) = recv.read_to_end(MIB).await else { return };
                    let is_get = request.first() == Some(&(RequestType::Get as u8));
                    let (mut ask, mut answer) = onward.open_bi().await.unwrap();
                    ask.write_all(&request).await.unwrap();
                    ask.finish().unwrap();
                    let mut bent = BENT_BYTE;
                    while let Ok(Some(chunk)) = answer.read_chunk(MIB).await {
                        let mut bytes = chunk.to_vec();
                        if let Some(byte) = bytes.get_mut(bent).filter(|_| is_get) {
                            *byte ^= 1;
                            bent = usize::MAX;
                        }
                        bent = if bent == usize::MAX { bent } else { bent.saturating_sub(bytes.len()) };
                        if send.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                    // Whoever noticed has gone.
                    let _ = send.finish();
                });
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_is_found_out_and_the_others_deliver() {
    let [honest, target, alone] = members().await;
    let lying = open_transport(SecretKey::generate()).await;
    introduce(&[&honest.transport, &target.transport, &alone.transport, &lying]);
    lying.serve(vec![(Protocol::Blobs, liar(lying.clone(), honest.id()))]);
    let content = random(23, 24 * MIB);
    let manifest = honest.import_disk(&content).await;

    let error = alone.fetch_from(&manifest, &[lying.id()], &watch::Sender::default()).await.unwrap_err();
    assert!(error.to_string().contains("does not match the hash"), "{error}");
    assert!(!alone.images.is_complete(&manifest).await.unwrap());

    target.fetch_from(&manifest, &[lying.id(), honest.id()], &watch::Sender::default()).await.unwrap();
    assert!(target.content(&manifest).await == content, "nothing of what is wrong was kept");
    let now = Instant::now();
    for node in [&alone, &target] {
        let standings = node.images.standings();
        let standing = &standings[&lying.id()];
        assert!(standing.lies >= 1, "{standing:?}");
        assert!(standing.score(now) < 50, "{standing:?}");
        assert!(standing.reason.as_ref().unwrap().contains("does not match the hash"), "{standing:?}");
    }
    let standing = &target.images.standings()[&honest.id()];
    assert_eq!((standing.lies, standing.failures, standing.score(now)), (0, 0, 100));
    assert!(standing.received_bytes >= manifest.bytes() / 2, "{standing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_an_order_was_taken_back_counts() {
    let (source, manifest, _) = slow_source(&random(24, 16 * MIB), 2 << 20).await;
    let target = TestNode::start().await;
    introduce(&[&source.transport, &target.transport]);
    target.images.keep(manifest.id(), &manifest).await.unwrap();
    let part = manifest.parts()[0];
    let progress = watch::Sender::<Progress>::default();
    let blob = Blob { hash: part.hash, bytes: part.bytes, present: ChunkRanges::empty() };
    let job = Arc::new(Job::new(target.images.clone(), &[blob], progress.clone()));
    let holder = whole(source.id());
    job.expect(holder);
    let connection = target.transport.connect(source.id(), Protocol::Blobs).await.unwrap();
    let source = Source::new(holder, connection);
    let held = in_time(source.ask(&target.images.inner.store, part.hash)).await;
    assert!(job.plan().learn(holder.endpoint, part.hash, &held.unwrap_or_else(|reason| panic!("{reason}"))));
    let Next::Fetch(order) = job.plan().take(holder.endpoint, 0) else { panic!("there is something to fetch") };
    let (number, order_bytes) = (order.number, order.bytes());
    let mut seen = progress.subscribe();
    let (ended, ()) = tokio::join!(
        in_time(job.fetch_order(&source, order)),
        in_time(async {
            seen.wait_for(|progress| progress.bytes_received > 0).await.unwrap();
            job.taken_back()[&number].notify_one();
        })
    );
    assert!(ended.is_ok(), "to be taken back is nobody's fault");
    let Progress { bytes_done, bytes_received, .. } = *progress.borrow();
    assert!((1..order_bytes).contains(&bytes_done) && bytes_received >= bytes_done, "{bytes_done} of {bytes_received}");
    let moved = target.images.limits().moved_bytes(Direction::Down).read();
    assert_eq!(moved.get(&holder.endpoint), Some(&bytes_received), "what came from it is counted as its own");
}
