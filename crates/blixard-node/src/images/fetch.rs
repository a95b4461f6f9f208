//! Fetching an image from every holder at once.
//!
//! What is missing is cut into pieces; each source has a few workers that do what the plan says (`plan/`). Sources are the
//! nodes that hold the image and those that are fetching it, which serve what they have so far; more may become known while
//! the fetch runs. One that fails or stalls gives back what it did not deliver, and rests. The store checks each 16 KiB
//! before it writes them, so nothing that arrives twice, late or wrong does harm, and what was verified is never asked for
//! again, by this fetch or by one after a crash.
//!
//! Of a disk, the index of its chunks comes first. What other images of this node have of it, and zeros, are not asked for: they
//! are put in their places once what lies beside them has come and proves them (`gather.rs`).

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use blixard_core::{BlobHash, EndpointId, Manifest, Part};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::demand::Demand;
use super::holders::Holder;
use super::local::Local;
use super::plan::Blob;
use super::tree::union;
use super::workers::Job;
use super::{BlobError, Images, NoRoom, NoSpace};
use crate::runtime::blocking;

/// What is fetched around a read of what was found here and cannot be proven yet. Guests read on nearby, and each time the fetch
/// begins anew; the smaller it is, the less is fetched that is here.
const WINDOW_BYTES: u64 = 4 << 20;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Bytes of the image that are here and verified.
    pub bytes_done: u64,
    /// Bytes of the image.
    pub bytes_total: u64,
    /// Bytes of content that this fetch received.
    pub bytes_received: u64,
    /// Bytes that it took from other images of this node instead.
    pub bytes_reused: u64,
    /// Bytes that are zeros, and came from nowhere.
    pub bytes_zero: u64,
    /// Sources that deliver.
    pub sources: usize,
}

/// Why an image could not be fetched. What was verified stays, and the next fetch goes on from there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    /// Nobody was named who has it.
    #[error("no node is known that has the image")]
    NoSource,
    /// None of the sources delivered what is missing.
    #[error("no source delivers the image: {}", reasons(.0))]
    AllSourcesFailed(Vec<(EndpointId, String)>),
    /// The blob has another length than the manifest says.
    #[error("the manifest says that blob {hash} has {expected_bytes} bytes, and it has {bytes}: import the image anew")]
    WrongSize {
        /// The blob.
        hash: BlobHash,
        /// What the manifest says.
        expected_bytes: u64,
        /// What is so.
        bytes: u64,
    },
    /// The manifest names a part without content.
    #[error("the manifest says that blob {0} is empty, which no part of an image is: import the image anew")]
    EmptyPart(BlobHash),
    /// The disk is too small.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// Images would take more of the disk than they may.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A part that was fetched before is not what it was.
    #[error("{0}")]
    Damaged(BlobError),
    /// The store failed.
    #[error("{0}")]
    Storage(String),
}

fn window(demand: &Demand) -> Range<u64> {
    let Range { start, end } = demand.bytes;
    start / WINDOW_BYTES * WINDOW_BYTES..end.checked_next_multiple_of(WINDOW_BYTES).unwrap_or(end)
}

fn reasons(failed: &[(EndpointId, String)]) -> String {
    failed.iter().map(|(source, reason)| format!("{}: {reason}", source.short())).collect::<Vec<_>>().join("; ")
}

impl From<BlobError> for FetchError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Damaged { .. } => Self::Damaged(error),
            BlobError::NotWhole(_) | BlobError::Storage(_) => Self::Storage(error.to_string()),
        }
    }
}

impl Images {
    /// Fetches what is missing of an image, which must be kept already (see [`Self::keep`]), and seals its parts.
    /// Holders that are named later on are asked as well. `progress` is overwritten. Dropping the future ends the fetch; what
    /// was verified stays.
    ///
    /// # Errors
    /// When no source delivers, this node's disk fails or is full, or the manifest is wrong.
    pub(crate) async fn fetch(
        &self,
        manifest: &Manifest,
        holders: watch::Receiver<Vec<Holder>>,
        progress: &watch::Sender<Progress>,
    ) -> Result<(), FetchError> {
        let mut parts = manifest.parts();
        let mut seen = BTreeSet::new();
        parts.retain(|part| seen.insert(part.hash));
        let mut here_before = Vec::new();
        let (mut bytes_total, mut bytes_done) = (0u64, 0u64);
        for part in &parts {
            if part.bytes == 0 {
                return Err(FetchError::EmptyPart(part.hash));
            }
            bytes_total = bytes_total.saturating_add(part.bytes);
            let here = match self.complete_bytes(part.hash).await? {
                Some(_) => {
                    here_before.push(part.hash);
                    part.bytes
                }
                None => self.present(part.hash).await?.total_bytes().min(part.bytes),
            };
            bytes_done = bytes_done.saturating_add(here);
        }
        progress.send_replace(Progress { bytes_done, bytes_total, ..Progress::default() });
        let _expected = self.inner.coming.expect(progress);
        self.check_room(0).await?;
        // What an index says of the disk decides what of it is asked for, so that it comes first.
        let index = manifest.disk().and_then(|disk| disk.chunks).filter(|index| !here_before.contains(&index.hash));
        if let Some(index) = index {
            self.fetch_parts(&[index], None, &holders, progress).await?;
            self.settle(index, false).await?;
        }
        let mut local = self.find_local(manifest).await?;
        // Before anything is cut into pieces: what fits on this disk is a bounded number of them. Zeros take no space.
        let zero_bytes = local.as_ref().map_or(0, Local::zero_bytes);
        self.check_space(bytes_total.saturating_sub(bytes_done).saturating_sub(zero_bytes)).await?;
        if let Some(found) = local.take() {
            local = Some(self.gather(found, progress).await?);
        }
        loop {
            local = local.filter(|left| !left.ranges.is_empty());
            // What was found and could not be proven yet can be once the rest is here. Who reads the disk as it comes cannot wait for that.
            let was_missing = tokio::select! {
                fetched = self.fetch_parts(&parts, local.as_ref(), &holders, progress) => fetched?,
                demanded = self.demanded(local.as_ref()) => {
                    local = local.map(|found| found.without(&demanded));
                    continue;
                }
            };
            local = match local {
                None if was_missing => None,
                None => break,
                Some(found) if was_missing => Some(self.gather(found, progress).await?),
                // Nothing else will come that could prove it.
                Some(_) => None,
            };
        }
        for part in &parts {
            self.settle(*part, here_before.contains(&part.hash)).await?;
        }
        Ok(())
    }

    /// Waits until somebody reads, as it comes, what was found here and is not proven yet; for ever when nothing was found. Gives what
    /// is to be fetched after all.
    async fn demanded(&self, local: Option<&Local>) -> ChunkRanges {
        let Some(local) = local else { return std::future::pending().await };
        let mut demands = self.inner.demands.watch();
        loop {
            let is_unproven = |demand: &&Demand| {
                demand.blob == local.blob.hash && !local.ranges.is_disjoint(&ChunkRanges::bytes(demand.bytes.clone()))
            };
            let windows: Vec<_> = demands.borrow_and_update().waited.iter().filter(is_unproven).map(window).collect();
            if !windows.is_empty() {
                return union(&windows);
            }
            // The sender lives as long as this room.
            let _ = demands.changed().await;
        }
    }

    /// What of an image's disk is found on this node, unless the disk is here already.
    async fn find_local(&self, manifest: &Manifest) -> Result<Option<Local>, FetchError> {
        let Some((disk, index)) = manifest.disk().and_then(|disk| Some((disk.part, disk.chunks?))) else {
            return Ok(None);
        };
        if self.complete_bytes(disk.hash).await?.is_some() {
            return Ok(None);
        }
        let Some(index) = self.index_of(index, disk).await? else { return Ok(None) };
        let others = self.indexed(disk.hash).await?;
        let found = blocking(move || Local::find(disk, &index, others)).await;
        found.map(Some).map_err(|error| FetchError::Storage(format!("compare with other images: {error}")))
    }

    /// Fetches what is missing of some parts and was not found on this node. Gives whether there was any.
    async fn fetch_parts(
        &self,
        parts: &[Part],
        local: Option<&Local>,
        holders: &watch::Receiver<Vec<Holder>>,
        progress: &watch::Sender<Progress>,
    ) -> Result<bool, FetchError> {
        let mut blobs = Vec::new();
        for Part { hash, bytes } in parts.iter().copied() {
            if self.complete_bytes(hash).await?.is_some() {
                continue;
            }
            let mut present = self.present(hash).await?.ranges;
            if let Some(local) = local.filter(|local| local.blob.hash == hash) {
                present |= local.ranges.clone();
            }
            blobs.push(Blob { hash, bytes, present });
        }
        let job = Job::new(self.clone(), &blobs, progress.clone());
        let is_missing = !job.is_done();
        if is_missing {
            self.fetch_pieces(Arc::new(job), holders.clone()).await?;
        }
        Ok(is_missing)
    }

    async fn fetch_pieces(&self, job: Arc<Job>, mut holders: watch::Receiver<Vec<Holder>>) -> Result<(), FetchError> {
        let mut demands = self.inner.demands.watch();
        demands.mark_changed();
        let mut known = BTreeSet::from([self.inner.transport.id()]);
        let mut serving = JoinSet::new();
        loop {
            for holder in holders.borrow_and_update().iter() {
                if known.insert(holder.endpoint) {
                    job.expect(*holder);
                    serving.spawn(job.clone().serve(*holder));
                }
            }
            let ended = tokio::select! {
                ended = serving.join_next() => ended,
                reasons = job.exhausted() => return Err(FetchError::AllSourcesFailed(reasons)),
                // The sender is this room's own.
                Ok(()) = demands.changed() => {
                    job.demand(&demands.borrow_and_update());
                    continue;
                }
                // Whoever knows of holders is gone; those that are known do.
                Ok(()) = holders.changed() => continue,
            };
            match ended {
                None => return Err(FetchError::NoSource),
                Some(Ok(Ok(()))) if job.is_done() => return Ok(()),
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(FetchError::Storage(reason)))) => return Err(self.local_failure(reason).await),
                Some(Ok(Err(error))) => return Err(error),
                Some(Err(error)) => return Err(FetchError::Storage(format!("a fetch ended in a panic: {error}"))),
            }
        }
    }

    /// The store does not say why it cannot write. A disk without space left is the one reason that can be looked up.
    async fn local_failure(&self, reason: String) -> FetchError {
        match self.check_space(1).await {
            Err(no_space) => no_space.into(),
            Ok(()) => FetchError::Storage(reason),
        }
    }

    /// Seals a part for which nothing is left to fetch.
    async fn settle(&self, part: Part, here_before: bool) -> Result<(), FetchError> {
        let wrong = |bytes| FetchError::WrongSize { hash: part.hash, expected_bytes: part.bytes, bytes };
        match self.inner.store.blobs().status(Hash::from_bytes(part.hash.0)).await {
            Ok(BlobStatus::Complete { size }) if size == part.bytes => {}
            Ok(BlobStatus::Complete { size }) => return Err(wrong(size)),
            Ok(BlobStatus::Partial { size: Some(size) }) if size != part.bytes => return Err(wrong(size)),
            Ok(_) => {
                let reason =
                    format!("blob {} was received as a whole, and the store did not take it", part.hash.short());
                return Err(self.local_failure(reason).await);
            }
            Err(error) => return Err(FetchError::Storage(format!("{error:#}"))),
        }
        if self.is_sealed(part).await {
            return Ok(());
        }
        if here_before {
            // The node or the host ended between the last byte and the seal: the disk may have lost some of it.
            self.rehash(part, |_| ()).await?;
        }
        Ok(self.seal(part.hash).await?)
    }
}
