//! What somebody waits for of blobs that are on their way, and reading it as it comes.
//!
//! A read waits until its range is here and verified, and names what it waits for meanwhile: whoever fetches the blob then asks for
//! that before anything else (`plan/`). What is read is checked against the hash once more, since a host that lost power may
//! have lost what the store takes for verified.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blixard_core::{BlobHash, ByteRange, Manifest, Part};
use futures::StreamExt;
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::EncodedItem;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::{BlobError, Images};
use crate::runtime::{Tied, spawn_tied};

/// What is asked for around a read whose place is not here: guests read on nearby, and each request costs a round trip.
const WINDOW_BYTES: u64 = 256 << 10;
/// The same where what comes before it is here, so that somebody seems to read on and on.
const RUN_BYTES: u64 = 1 << 20;
/// What must be here of a disk before a guest is started on it: its first sectors, whoever else has something to say there.
const HEAD_BYTES: u64 = 64 << 10;
/// Reads from the store at once. It turns away what comes at the same moment beyond some thirty requests for one blob, and serves
/// other nodes as well.
const READS_MAX: usize = 8;
/// How soon the store is asked again what is here after it has stopped telling.
const OBSERVE_AGAIN: Duration = Duration::from_millis(500);

/// Why a range cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It did not come in time.
    #[error("bytes {} to {} did not come within {} s", range.start, range.end, patience.as_secs())]
    TooLate {
        /// What was asked for.
        range: Range<u64>,
        /// How long it was waited for.
        patience: Duration,
    },
    /// What is on the disk is not what was verified, or cannot be read.
    #[error("{0}")]
    Storage(String),
}

/// A range of a blob that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Demand {
    number: u64,
    pub(super) blob: BlobHash,
    pub(super) bytes: Range<u64>,
}

/// Ranges of a blob that somebody is likely to wait for soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ahead {
    pub(super) number: u64,
    pub(super) blob: BlobHash,
    /// What comes first is likely to be waited for first.
    pub(super) ranges: Arc<[ByteRange]>,
}

/// What is to be fetched before the rest.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    /// What is waited for, first come first served.
    pub(super) waited: Vec<Demand>,
    pub(super) ahead: Vec<Ahead>,
}

/// What is to be fetched before the rest on this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Demands {
    wishes: watch::Sender<Wishes>,
    last_number: Arc<AtomicU64>,
    reads: Arc<Semaphore>,
}

impl Demands {
    pub(super) fn new() -> Self {
        let reads = Arc::new(Semaphore::new(READS_MAX));
        Self { wishes: watch::Sender::default(), last_number: Arc::default(), reads }
    }

    /// Tells of what is added from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Wishes> {
        self.wishes.subscribe()
    }

    fn add(&self, blob: BlobHash, bytes: Range<u64>) -> Wanted {
        let number = self.next_number();
        self.wishes.send_modify(|wishes| wishes.waited.push(Demand { number, blob, bytes }));
        Wanted { demands: self.clone(), number }
    }

    fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed)
    }
}

/// Something that is to come before the rest, until this is dropped.
#[derive(Debug)]
pub(crate) struct Wanted {
    demands: Demands,
    number: u64,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let number = self.number;
        // Nobody needs to hear of this: what is no longer waited for is most often here.
        self.demands.wishes.send_if_modified(|wishes| {
            wishes.waited.retain(|demand| demand.number != number);
            wishes.ahead.retain(|ahead| ahead.number != number);
            false
        });
    }
}

/// A blob that is read as it comes.
#[derive(Debug)]
pub(crate) struct Arriving {
    images: Images,
    part: Part,
    present: watch::Receiver<ChunkRanges>,
    _observer: Tied,
}

impl Images {
    /// Reads a blob as it comes. It has to be kept, and somebody has to fetch it.
    pub(crate) fn arriving(&self, part: Part) -> Arriving {
        let (known, present) = watch::channel(ChunkRanges::empty());
        let images = self.clone();
        let observer = spawn_tied(async move { images.observe(part.hash, known).await });
        Arriving { images: self.clone(), part, present, _observer: observer }
    }

    async fn observe(&self, hash: BlobHash, known: watch::Sender<ChunkRanges>) {
        loop {
            let observed = self.inner.store.blobs().observe(Hash::from_bytes(hash.0)).stream().await;
            if let Ok(news) = observed {
                let mut news = std::pin::pin!(news);
                while let Some(present) = news.next().await {
                    known.send_replace(present.ranges);
                }
            }
            tokio::time::sleep(OBSERVE_AGAIN).await;
        }
    }

    /// Asks for what a guest needs before it can be started, ahead of everything else, until the answer is dropped.
    pub(crate) fn want_to_boot(&self, manifest: &Manifest) -> Vec<Wanted> {
        let disk = manifest.disk().map(|disk| disk.part);
        let whole = manifest.parts().into_iter().filter(|part| Some(*part) != disk);
        let mut wanted: Vec<Wanted> = whole.map(|part| self.inner.demands.add(part.hash, 0..part.bytes)).collect();
        wanted.extend(disk.map(|disk| self.inner.demands.add(disk.hash, 0..disk.bytes.min(RUN_BYTES))));
        wanted
    }

    /// Asks for what a guest is likely to read of a blob, in this order, after all that is waited for and before the rest, until the
    /// answer is dropped.
    pub(crate) fn want_ahead(&self, blob: BlobHash, ranges: &[ByteRange]) -> Wanted {
        let demands = &self.inner.demands;
        let number = demands.next_number();
        demands.wishes.send_modify(|wishes| wishes.ahead.push(Ahead { number, blob, ranges: ranges.into() }));
        Wanted { demands: demands.clone(), number }
    }

    /// Whether so much of an image is here that a guest can be started which reads the rest as it comes: all but the disk, and
    /// the beginning of that.
    ///
    /// # Errors
    /// When the store does not answer, or a part is not what was verified.
    pub(crate) async fn is_bootable(&self, manifest: &Manifest) -> Result<bool, BlobError> {
        let Some(disk) = manifest.disk().map(|disk| disk.part) else { return Ok(false) };
        let head = ChunkRanges::bytes(..disk.bytes.min(HEAD_BYTES));
        if !self.present(disk.hash).await?.ranges.is_superset(&head) {
            return Ok(false);
        }
        for part in manifest.parts().into_iter().filter(|part| *part != disk) {
            if self.complete_bytes(part.hash).await? != Some(part.bytes) {
                return Ok(false);
            }
            if !self.is_sealed(part).await {
                self.rehash(part, |_| ()).await?;
                self.seal(part.hash).await?;
            }
        }
        Ok(true)
    }

    /// Where a blob's file is or, while it is on its way, will be as a whole.
    pub(crate) fn place(&self, hash: BlobHash) -> std::path::PathBuf {
        self.inner.files.data_path(&Hash::from_bytes(hash.0))
    }
}

impl Arriving {
    /// The blob's length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.part.bytes
    }

    /// Whether all of a range is here.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.present.borrow().is_superset(&ChunkRanges::bytes(range.clone()))
    }

    /// Reads a range within the blob, waiting for it if it has to come first.
    ///
    /// # Errors
    /// When it does not come in time, or cannot be read from this host's disk.
    pub(crate) async fn read(&self, range: Range<u64>, patience: Duration) -> Result<Vec<u8>, ReadError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let chunks = ChunkRanges::bytes(range.clone());
        let mut present = self.present.clone();
        if !self.has(&range) {
            let window = self.window(&range);
            let _wanted = self.images.inner.demands.add(self.part.hash, window);
            let came = timeout(patience, present.wait_for(|present| present.is_superset(&chunks))).await;
            // The observer ends only together with the reader.
            if !matches!(came, Ok(Ok(_))) {
                return Err(ReadError::TooLate { range, patience });
            }
        }
        self.content(&range, chunks).await
    }

    /// What is asked for when a range is read that is not here.
    fn window(&self, range: &Range<u64>) -> Range<u64> {
        let start = range.start / WINDOW_BYTES * WINDOW_BYTES;
        let before = ChunkRanges::bytes(start.saturating_sub(WINDOW_BYTES)..start);
        let reads_on = start > 0 && self.present.borrow().is_superset(&before);
        let length = if reads_on { RUN_BYTES } else { WINDOW_BYTES };
        start..range.end.max(start.saturating_add(length)).min(self.part.bytes)
    }

    async fn content(&self, range: &Range<u64>, chunks: ChunkRanges) -> Result<Vec<u8>, ReadError> {
        let failed = |error: &dyn std::fmt::Display| {
            let Part { hash, .. } = self.part;
            ReadError::Storage(format!("read blob {} at {}: {error:#}", hash.short(), range.start))
        };
        let _turn = self.images.inner.demands.reads.acquire().await.map_err(|error| failed(&error))?;
        let length = usize::try_from(range.end - range.start).map_err(|error| failed(&error))?;
        let mut content = vec![0; length];
        let mut filled = 0;
        let name = Hash::from_bytes(self.part.hash.0);
        let mut items = std::pin::pin!(self.images.inner.store.blobs().export_bao(name, chunks).stream());
        while let Some(item) = items.next().await {
            match item {
                EncodedItem::Leaf(leaf) => filled += overlay(&mut content, range, leaf.offset, &leaf.data),
                EncodedItem::Error(error) => return Err(failed(&error)),
                EncodedItem::Size(_) | EncodedItem::Parent(_) => {}
                EncodedItem::Done => break,
            }
        }
        if filled == length { Ok(content) } else { Err(failed(&"the store gave too little")) }
    }
}

/// Copies the part of a leaf that lies within a range to its place; gives how many bytes that was.
fn overlay(content: &mut [u8], range: &Range<u64>, offset: u64, data: &[u8]) -> usize {
    let start = offset.max(range.start);
    let end = (offset + data.len() as u64).min(range.end);
    if start >= end {
        return 0;
    }
    // Both lie within slices, whose lengths are in memory.
    let at = |from: u64, to: u64| usize::try_from(to - from).unwrap_or(usize::MAX);
    let (from, length) = (at(offset, start), at(start, end));
    let to = at(range.start, start);
    content[to..to + length].copy_from_slice(&data[from..from + length]);
    length
}
