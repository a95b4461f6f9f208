//! Fetching an image from every holder at once.
//!
//! What is missing is cut into pieces; each source has a few workers that take the next piece that their source has. A
//! source that fails or stalls gives back what it did not deliver and is left out of this fetch. The store checks each
//! 16 KiB before it writes them, so nothing that arrives twice, late or wrong does harm, and what was verified is never
//! asked for again, by this fetch or by one after a crash.

use std::sync::Arc;

use blixard_core::{BlobHash, EndpointId, Manifest, Part};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::{Bitfield, BlobStatus};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::pieces::Piece;
use super::workers::{Failure, Job};
use super::{BlobError, Images, NoSpace};

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    /// Bytes of the image that are here and verified.
    pub bytes_done: u64,
    /// Bytes of the image.
    pub bytes_total: u64,
    /// Bytes of content that this fetch received.
    pub bytes_received: u64,
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
    /// A part that was fetched before is not what it was.
    #[error("{0}")]
    Damaged(BlobError),
    /// The store failed.
    #[error("{0}")]
    Storage(String),
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
    /// `progress` is overwritten. Dropping the future ends the fetch; what was verified stays.
    ///
    /// # Errors
    /// When no source delivers, this node's disk fails or is full, or the manifest is wrong.
    pub(crate) async fn fetch(
        &self,
        manifest: &Manifest,
        sources: &[EndpointId],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), FetchError> {
        let mut parts = manifest.parts();
        let mut seen = std::collections::BTreeSet::new();
        parts.retain(|part| seen.insert(part.hash));
        let mut here = Vec::new();
        let mut here_before = Vec::new();
        for part in &parts {
            if part.bytes == 0 {
                return Err(FetchError::EmptyPart(part.hash));
            }
            if self.complete_bytes(part.hash).await?.is_some() {
                here_before.push(part.hash);
                continue;
            }
            here.push((*part, self.present(part.hash).await?));
        }
        // Before anything is cut into pieces: what fits on this disk is a bounded number of them.
        let missing = here.iter().map(|(part, present)| part.bytes.saturating_sub(present.total_bytes()));
        let missing = missing.fold(0, u64::saturating_add);
        self.check_space(missing).await?;
        let cut = |(part, present): &(Part, Bitfield)| Piece::of_blob(part.hash, part.bytes, &present.ranges);
        let pieces: Vec<_> = here.iter().flat_map(cut).collect();
        let bytes_total = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.bytes));
        let bytes_missing = pieces.iter().map(Piece::bytes).fold(0, u64::saturating_add);
        let bytes_done = bytes_total.saturating_sub(bytes_missing);
        progress.send_replace(Progress { bytes_done, bytes_total, bytes_received: 0, sources: 0 });
        if !pieces.is_empty() {
            self.fetch_pieces(pieces, sources, progress).await?;
        }
        for part in &parts {
            self.settle(*part, here_before.contains(&part.hash)).await?;
        }
        Ok(())
    }

    async fn fetch_pieces(
        &self,
        pieces: Vec<Piece>,
        sources: &[EndpointId],
        progress: &watch::Sender<Progress>,
    ) -> Result<(), FetchError> {
        let own = self.inner.transport.id();
        let sources: std::collections::BTreeSet<_> = sources.iter().filter(|source| **source != own).copied().collect();
        if sources.is_empty() {
            return Err(FetchError::NoSource);
        }
        let job = Arc::new(Job::new(self.clone(), pieces, progress.clone()));
        let mut serving = JoinSet::new();
        for source in sources {
            let job = job.clone();
            serving.spawn(async move { (source, job.serve(source).await) });
        }
        let mut failed = Vec::new();
        while let Some(ended) = serving.join_next().await {
            match ended {
                Ok((_, Ok(()))) => {}
                Ok((source, Err(Failure::Source(reason)))) => {
                    tracing::debug!(source = %source.short(), reason, "source left out of a fetch");
                    failed.push((source, reason));
                }
                Ok((_, Err(Failure::Local(FetchError::Storage(reason))))) => {
                    return Err(self.local_failure(reason).await);
                }
                Ok((_, Err(Failure::Local(error)))) => return Err(error),
                Err(error) => return Err(FetchError::Storage(format!("a fetch ended in a panic: {error}"))),
            }
            if job.is_done() {
                return Ok(());
            }
        }
        Err(FetchError::AllSourcesFailed(failed))
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
            self.verify(part.hash).await?;
        }
        Ok(self.seal(part.hash).await?)
    }
}
