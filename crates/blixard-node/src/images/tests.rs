//! Nodes of a few lines: a real endpoint on loopback, a real store in a directory of its own.
#![allow(clippy::unwrap_used)]

mod ahead;
mod chunks;
mod crash;
mod fetching;
mod keeping;
mod limiting;
mod published;
mod reusing;
mod swarm;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blixard_core::{BlobHash, DiskFormat, DiskPart, EndpointId, Manifest, Part};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::watch;

use crate::config::CacheMax;

use super::{FetchError, Holder, Images, ImportedBlob, Progress};
use crate::transport::{Handler, Protocol, SecretKey, Transport, TransportConfig};

/// No test takes anywhere near this long; one that does is stuck.
const DEADLINE: Duration = Duration::from_secs(120);
/// For what happens by itself a moment later. Less than what the collector would take without being hurried.
const SOON: Duration = Duration::from_secs(30);
/// What a program usually reads at once.
const CHUNK_BYTES: usize = 256 << 10;

pub(crate) struct TestNode {
    pub(crate) images: Images,
    pub(crate) transport: Transport,
    pub(crate) dir: PathBuf,
    _temp: Option<tempfile::TempDir>,
}

impl TestNode {
    pub(crate) async fn start() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut node = Self::start_in(temp.path(), SecretKey::generate()).await;
        node._temp = Some(temp);
        node
    }

    pub(crate) async fn start_in(dir: &Path, key: SecretKey) -> Self {
        let transport = open_transport(key).await;
        let images = Images::open(dir.to_owned(), transport.clone(), CacheMax::Unlimited).await.unwrap();
        transport.serve(vec![(Protocol::Blobs, images.handler())]);
        Self { images, transport, dir: dir.to_owned(), _temp: None }
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.transport.id()
    }

    pub(crate) async fn import(&self, content: &[u8]) -> ImportedBlob {
        self.images.import(chunks(content)).await.unwrap()
    }

    /// Imports and keeps a disk.
    pub(crate) async fn import_disk(&self, content: &[u8]) -> Manifest {
        let blob = self.import(content).await;
        let manifest = disk(Part { hash: blob.hash, bytes: blob.bytes });
        self.images.keep(manifest.id(), &manifest).await.unwrap();
        manifest
    }

    /// Imports and keeps a disk with the index of its chunks.
    pub(crate) async fn import_indexed(&self, content: &[u8]) -> Manifest {
        let blob = self.import(content).await;
        let index = blob.index.clone().unwrap();
        self.keep_indexed(Part { hash: blob.hash, bytes: blob.bytes }, index).await
    }

    /// Keeps a disk that is here, with this as its index.
    pub(crate) async fn keep_indexed(&self, part: Part, index: Bytes) -> Manifest {
        let index = self.images.import_index(index).await.unwrap();
        let chunks = Some(Part { hash: index.hash, bytes: index.bytes });
        let manifest = Manifest::Disk(DiskPart { part, format: DiskFormat::Raw, virtual_bytes: part.bytes, chunks });
        self.images.keep(manifest.id(), &manifest).await.unwrap();
        manifest
    }

    /// What a blob's file takes on the disk, in bytes.
    pub(crate) async fn allocated(&self, hash: BlobHash) -> u64 {
        let meta = std::fs::metadata(self.images.path(hash).await.unwrap()).unwrap();
        meta.blocks() * 512
    }

    pub(crate) async fn fetch(&self, manifest: &Manifest, sources: &[&Self]) -> Result<Progress, FetchError> {
        let sources: Vec<_> = sources.iter().map(|source| source.id()).collect();
        let progress = watch::Sender::default();
        self.fetch_from(manifest, &sources, &progress).await?;
        Ok(*progress.borrow())
    }

    /// Fetches from nodes that are said to have all of it.
    pub(crate) async fn fetch_from(
        &self,
        manifest: &Manifest,
        sources: &[EndpointId],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), FetchError> {
        self.images.keep(manifest.id(), manifest).await.unwrap();
        let (_, holders) = watch::channel(sources.iter().copied().map(whole).collect());
        in_time(self.images.fetch(manifest, holders, progress)).await
    }

    /// Fetches as the queue of transfers does, which begins again when sources fail: a host can be so busy that nothing moves for as
    /// long as a source may be silent. Gives what all attempts together did.
    pub(crate) async fn bring(&self, manifest: &Manifest, holders: &[Holder]) -> Progress {
        self.images.keep(manifest.id(), manifest).await.unwrap();
        let mut sum = Progress::default();
        let attempts = async {
            loop {
                let (_, known) = watch::channel(holders.to_vec());
                let progress = watch::Sender::default();
                let fetched = self.images.fetch(manifest, known, &progress).await;
                let Progress { bytes_received, bytes_reused, bytes_zero, .. } = sum;
                sum = *progress.borrow();
                sum.bytes_received += bytes_received;
                sum.bytes_reused += bytes_reused;
                sum.bytes_zero += bytes_zero;
                match fetched {
                    Ok(()) => return sum,
                    Err(FetchError::AllSourcesFailed(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        };
        in_time(attempts).await
    }

    /// Fetches until so many bytes of the image are here, and no more.
    pub(crate) async fn fetch_part(&self, manifest: &Manifest, source: &Self, bytes: u64) {
        let progress = watch::Sender::default();
        let mut seen = progress.subscribe();
        let sources = [source.id()];
        tokio::select! {
            ended = self.fetch_from(manifest, &sources, &progress) => panic!("it ended too soon: {ended:?}"),
            seen = seen.wait_for(|progress| progress.bytes_done >= bytes) => { seen.unwrap(); }
        }
    }

    pub(crate) async fn content(&self, manifest: &Manifest) -> Vec<u8> {
        let mut content = Vec::new();
        for part in manifest.parts() {
            content.extend(std::fs::read(self.images.path(part.hash).await.unwrap()).unwrap());
        }
        content
    }

    pub(crate) async fn stop(self) {
        self.transport.close().await;
        self.images.shutdown().await;
    }
}

pub(crate) async fn open_transport(key: SecretKey) -> Transport {
    let bind = vec!["127.0.0.1:0".parse().unwrap()];
    Transport::open(TransportConfig { key, bind, relays: Vec::new() }).await.unwrap()
}

/// An endpoint that speaks the blob protocol in a way of its own.
pub(crate) async fn imposter(handler: Handler) -> Transport {
    let transport = open_transport(SecretKey::generate()).await;
    transport.serve(vec![(Protocol::Blobs, handler)]);
    transport
}

pub(crate) fn introduce(transports: &[&Transport]) {
    for one in transports {
        one.access().set_members(transports.iter().map(|other| other.id()));
        for other in transports {
            one.learn(&other.address());
        }
    }
}

/// So many nodes that are members of one cluster.
pub(crate) async fn members<const N: usize>() -> [TestNode; N] {
    let mut nodes = Vec::new();
    for _ in 0..N {
        nodes.push(TestNode::start().await);
    }
    introduce(&nodes.iter().map(|node| &node.transport).collect::<Vec<_>>());
    nodes.try_into().ok().unwrap()
}

/// A node that is said to have all of an image.
pub(crate) fn whole(endpoint: EndpointId) -> Holder {
    Holder { endpoint, is_whole: true, same_site: None, opened_by: None }
}

pub(crate) fn disk(part: Part) -> Manifest {
    Manifest::Disk(DiskPart { part, format: DiskFormat::Raw, virtual_bytes: part.bytes, chunks: None })
}

/// Bytes that no two seeds share and that do not compress.
pub(crate) fn random(seed: u8, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut content);
    content
}

pub(crate) fn chunks(content: &[u8]) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send + use<> {
    futures::stream::iter(content.chunks(CHUNK_BYTES).map(Bytes::copy_from_slice).map(Ok).collect::<Vec<_>>())
}

/// Does not wait for ever.
pub(crate) async fn in_time<Fut: Future>(future: Fut) -> Fut::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("it is done in time")
}

/// Waits until something holds, and fails with what it was when it does not come to hold.
pub(crate) async fn eventually<Fut: Future<Output = bool>>(what: &str, holds: impl Fn() -> Fut) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) async fn collect(content: impl futures::Stream<Item = std::io::Result<Bytes>>) -> std::io::Result<Vec<u8>> {
    let mut content = std::pin::pin!(content);
    let mut all = Vec::new();
    while let Some(bytes) = content.next().await {
        all.extend_from_slice(&bytes?);
    }
    Ok(all)
}
