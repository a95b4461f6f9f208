//! Takes into a blob what of it is on this host already.
//!
//! Nothing is trusted for what an index says. Whatever was fetched of a blob came with the hashes that prove it, and these are
//! also the hashes of what lies beside it: so the bytes of this host below a node of the tree are taken when they have the hash that
//! its parent gives it, and the parents up to the blob's own hash are checked on the way down. A blob that is found
//! here as a whole is proven by its hash alone. What does not fit is given up, and fetched as if it had not been here.
//!
//! States of a range that was found: *unproven* while nothing beside it has come; then *taken* or *given up*.

use std::fs::File;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bao_tree::io::BaoContentItem;
use blixard_core::BlobHash;
use bytes::Bytes;
use iroh_blobs::Hash;
use iroh_blobs::protocol::ChunkRanges;
use tokio::sync::{mpsc, watch};

use super::index::free;
use super::local::{Local, Reader};
use super::tree::{Digest, GROUP_BYTES, PAIR_BYTES, Subtree, union};
use super::{BlobError, Images, Progress};
use crate::runtime::blocking;

/// What is read and hashed at once. Of a longer range, a hash of each such block is remembered until the whole is proven.
const BLOCK_BYTES: u64 = 1 << 20;
/// What is handed to the store at once: much against the time that a hand-over takes, and little against memory.
const BATCH_BYTES: u64 = 4 << 20;
/// Batches that may wait between reading and the store.
const BATCHES: usize = 2;

/// Proven content for the store.
#[derive(Debug, Default)]
struct Batch {
    items: Vec<BaoContentItem>,
    bytes: u64,
    zeros: Vec<Range<u64>>,
}

impl Images {
    /// Takes what of a blob is found here and can be proven by now, and gives up what does not fit.
    pub(super) async fn gather(
        &self,
        mut local: Local,
        progress: &watch::Sender<Progress>,
    ) -> Result<Local, BlobError> {
        let (hash, bytes) = (local.blob.hash, local.blob.bytes);
        let present = self.present(hash).await?.ranges;
        local.ranges = &local.ranges - &present;
        let Some(blob_bytes) = NonZeroU64::new(bytes).filter(|_| !local.ranges.is_empty()) else { return Ok(local) };
        let tree = self.inner.files.outboard_path(&Hash::from_bytes(hash.0));
        let (sender, mut batches) = mpsc::channel(BATCHES);
        let search = blocking(move || {
            // There is no file of it while nothing of the blob is here.
            let (tree, reader) = (File::open(tree).ok(), local.reader());
            let unproven = local.ranges.clone();
            let (batch, bad) = (Batch::default(), Vec::new());
            let mut search = Search { reader, tree, present, local: unproven, batch, bad, sender };
            // It ends early when what takes the batches has failed, which says why.
            let _ = search.descend(Subtree::whole(bytes), hash.0).and_then(|()| search.hand_over());
            let bad = search.bad;
            (local, bad)
        });
        let take = async move {
            while let Some(batch) = batches.recv().await {
                self.take(hash, blob_bytes, batch, progress).await?;
            }
            Ok::<_, BlobError>(())
        };
        let (searched, taken) = tokio::join!(search, take);
        taken?;
        let storage = |error: std::io::Error| BlobError::Storage(format!("gather blob {}: {error}", hash.short()));
        let (mut local, bad) = searched.map_err(storage)?;
        local.ranges = &local.ranges - &self.present(hash).await?.ranges;
        local.give_up(&bad);
        Ok(local)
    }

    /// Hands a batch to the store, and its zeros back to the disk.
    async fn take(
        &self,
        hash: BlobHash,
        blob_bytes: NonZeroU64,
        batch: Batch,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), BlobError> {
        let storage =
            |error: &dyn std::fmt::Display| BlobError::Storage(format!("take blob {} in: {error:#}", hash.short()));
        let Batch { items, bytes, zeros } = batch;
        let name = Hash::from_bytes(hash.0);
        let handle = self.inner.store.blobs().import_bao(name, blob_bytes, BATCHES).await;
        let handle = handle.map_err(|error| storage(&error))?;
        let (sender, done) = (handle.tx, handle.rx);
        let send = async move {
            for item in items {
                // The store says why it takes no more.
                if sender.send(item).await.is_err() {
                    break;
                }
            }
        };
        let ((), done) = tokio::join!(send, done);
        done.map_err(|error| storage(&error))?.map_err(|error| storage(&error))?;
        let zero_bytes: u64 = zeros.iter().map(|zeros| zeros.end - zeros.start).sum();
        if zero_bytes > 0 {
            let path = self.inner.files.data_path(&name);
            let freed =
                blocking(move || free(&path, zeros.into_iter().map(|zeros| (zeros.start, zeros.end - zeros.start))));
            freed.await.and_then(|freed| freed).map_err(|error| storage(&error))?;
        }
        progress.send_modify(|progress| {
            progress.bytes_done += bytes;
            progress.bytes_zero += zero_bytes;
            progress.bytes_reused += bytes.saturating_sub(zero_bytes);
        });
        Ok(())
    }
}

/// Goes through the tree of a blob, on a thread that may block. Its steps give nothing once nobody takes batches any more.
struct Search<'a> {
    reader: Reader<'a>,
    /// The store's file of the tree.
    tree: Option<File>,
    present: ChunkRanges,
    /// What was found and is neither present nor given up.
    local: ChunkRanges,
    batch: Batch,
    bad: Vec<Range<u64>>,
    sender: mpsc::Sender<Batch>,
}

impl Search<'_> {
    /// Looks below a node, which is known to have this hash.
    fn descend(&mut self, at: Subtree, digest: Digest) -> Option<()> {
        let range = at.ranges();
        if self.local.is_disjoint(&range) {
            return Some(());
        }
        if self.local.is_superset(&range) {
            return self.prove(at, digest);
        }
        // While nothing below has come, what is there is not known.
        let Some((left, right)) = at.children().filter(|_| !self.present.is_disjoint(&range)) else { return Some(()) };
        match self.pair(at).filter(|(left, right)| at.merge(left, right) == digest) {
            Some((of_left, of_right)) => {
                self.descend(left, of_left)?;
                self.descend(right, of_right)
            }
            None => {
                self.bad.push(at.start..at.end);
                Some(())
            }
        }
    }

    /// The hashes below a node, as the store has them.
    fn pair(&self, at: Subtree) -> Option<(Digest, Digest)> {
        let mut pair = [0; PAIR_BYTES];
        self.tree.as_ref()?.read_exact_at(&mut pair, at.pair_offset()?).ok()?;
        let (left, right) = pair.split_at(PAIR_BYTES / 2);
        Some((left.try_into().ok()?, right.try_into().ok()?))
    }

    /// Takes all below a node if it has this hash.
    fn prove(&mut self, at: Subtree, digest: Digest) -> Option<()> {
        if at.bytes() <= BLOCK_BYTES {
            return self.prove_block(at, digest);
        }
        let (mut pairs, mut blocks) = (Vec::new(), Vec::new());
        match self.survey(at, &mut pairs, &mut blocks) {
            // Chunks that are not what they were are known, and the others are proven when those have come.
            None => return Some(()),
            Some(found) if found != digest => {
                self.bad.push(at.start..at.end);
                return Some(());
            }
            Some(_) => {}
        }
        self.batch.items.extend(pairs);
        // They are read a second time, and checked again: the whole may be larger than memory.
        blocks.into_iter().try_for_each(|(block, digest)| self.prove_block(block, digest))
    }

    fn prove_block(&mut self, block: Subtree, digest: Digest) -> Option<()> {
        let Some(read) = self.reader.read(block.start..block.end, &mut self.bad) else { return Some(()) };
        let mut items = Vec::new();
        if block.encode(&Bytes::from(read.content), &mut items) != digest {
            self.bad.push(block.start..block.end);
            return Some(());
        }
        self.batch.items.extend(items);
        self.batch.bytes += block.bytes();
        self.batch.zeros.extend(read.zeros);
        if self.batch.bytes >= BATCH_BYTES { self.hand_over() } else { Some(()) }
    }

    /// The hash of a node by the bytes of this host, with the pairs above its blocks and the hashes of these.
    fn survey(
        &mut self,
        at: Subtree,
        pairs: &mut Vec<BaoContentItem>,
        blocks: &mut Vec<(Subtree, Digest)>,
    ) -> Option<Digest> {
        let Some((left, right)) = at.children().filter(|_| at.bytes() > BLOCK_BYTES) else {
            let read = self.reader.read(at.start..at.end, &mut self.bad)?;
            let digest = at.digest(&read.content);
            blocks.push((at, digest));
            return Some(digest);
        };
        let place = pairs.len();
        pairs.push(at.pair([0; 32], [0; 32]));
        // Both, so that all that is bad is known at once.
        let (of_left, of_right) = (self.survey(left, pairs, blocks), self.survey(right, pairs, blocks));
        let (of_left, of_right) = (of_left?, of_right?);
        pairs[place] = at.pair(of_left, of_right);
        Some(at.merge(&of_left, &of_right))
    }

    fn hand_over(&mut self) -> Option<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.items.is_empty() { Some(()) } else { self.sender.blocking_send(batch).ok() }
    }
}

impl Local {
    /// Gives up all groups that these ranges touch.
    fn give_up(&mut self, bad: &[Range<u64>]) {
        let whole =
            bad.iter().map(|range| range.start / GROUP_BYTES * GROUP_BYTES..range.end.next_multiple_of(GROUP_BYTES));
        self.ranges = &self.ranges - &union(&whole.collect::<Vec<_>>());
    }
}
