//! Fetching an image from every holder at once.
//!
//! What is missing is cut into pieces; each source has a few workers that take the next piece that their source has. A
//! source that fails or stalls gives back what it did not deliver and is left out of this fetch. The store checks each
//! 16 KiB before it writes them, so nothing that arrives twice, late or wrong does harm, and what was verified is never
//! asked for again, by this fetch or by one after a crash.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use blixard_core::{BlobHash, EndpointId, Manifest, Part};
use futures::StreamExt;
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::{Bitfield, BlobStatus};
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::{GetError, StreamPair};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::holders::Source;
use super::pieces::{Next, Piece, Queue};
use super::{BlobError, Images, NoSpace};
use crate::transport::Protocol;

/// Requests under way at each source: while one waits for its first byte, the other keeps the line busy.
const WORKERS_PER_SOURCE: usize = 2;
/// A source that delivers nothing for this long is given up. Longer than a lost path takes to be replaced.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a source that has nothing of what is missing may take to get some, when no other is at work. Also covers the
/// time until it first said what it has.
const STARVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Progress is told in steps of this size: more often is too often for anybody to read.
const PROGRESS_STEP_BYTES: u64 = 1 << 20;

/// How far a fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
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
pub enum FetchError {
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

/// Why a worker ends early.
enum Failure {
    /// The source's doing.
    Source(String),
    /// This node's doing: other sources would not help.
    Local(FetchError),
}

impl Images {
    /// Fetches what is missing of an image, which must be kept already (see [`Self::keep`]), and seals its parts.
    /// `progress` is overwritten. Dropping the future ends the fetch; what was verified stays.
    ///
    /// # Errors
    /// When no source delivers, this node's disk fails or is full, or the manifest is wrong.
    pub async fn fetch(
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
        let blobs = pieces.iter().map(|piece| piece.hash).collect();
        let job = Arc::new(Job {
            images: self.clone(),
            blobs,
            queue: Mutex::new(Queue::new(pieces)),
            changed: watch::Sender::new(()),
            progress: progress.clone(),
        });
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
            if job.queue().is_done() {
                return Ok(());
            }
        }
        Err(FetchError::AllSourcesFailed(failed))
    }

    /// The store does not say why it cannot write. A disk without space left is the one reason that can be looked up.
    async fn local_failure(&self, reason: String) -> FetchError {
        match self.check_space(PROGRESS_STEP_BYTES).await {
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

/// One fetch, shared by the workers of all sources.
struct Job {
    images: Images,
    blobs: std::collections::BTreeSet<BlobHash>,
    queue: Mutex<Queue>,
    /// Sends when the queue or the holdings of a source change.
    changed: watch::Sender<()>,
    progress: watch::Sender<Progress>,
}

impl Job {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }

    /// Fetches from one source until nothing is left or the source fails.
    async fn serve(self: Arc<Self>, id: EndpointId) -> Result<(), Failure> {
        let connection = self.images.inner.transport.connect(id, Protocol::Blobs).await;
        let source = Arc::new(Source::new(id, connection.map_err(|error| Failure::Source(error.to_string()))?));
        self.progress.send_modify(|progress| progress.sources += 1);
        let result = self.work_with(&source).await;
        self.progress.send_modify(|progress| progress.sources -= 1);
        result
    }

    async fn work_with(self: &Arc<Self>, source: &Arc<Source>) -> Result<(), Failure> {
        let mut followers = JoinSet::new();
        for hash in self.blobs.iter().copied() {
            let (job, source) = (self.clone(), source.clone());
            followers.spawn(async move { source.follow(&job.images.inner.store, hash, &job.changed).await });
        }
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS_PER_SOURCE {
            let (job, source) = (self.clone(), source.clone());
            workers.spawn(async move { job.work(&source).await });
        }
        let mut result = Ok(());
        loop {
            let failure = tokio::select! {
                ended = workers.join_next() => match ended {
                    None => return result,
                    Some(Ok(Ok(()))) => continue,
                    Some(Ok(Err(failure))) => failure,
                    Some(Err(error)) => Failure::Source(format!("a worker ended in a panic: {error}")),
                },
                Some(ended) = followers.join_next() => {
                    Failure::Source(ended.unwrap_or_else(|error| format!("following it ended in a panic: {error}")))
                }
            };
            // The other worker ends by itself: it keeps what it verified, and takes nothing more.
            source.fail();
            self.changed.send_replace(());
            match (&result, &failure) {
                (Ok(()), _) | (Err(Failure::Source(_)), Failure::Local(_)) => result = Err(failure),
                _ => {}
            }
        }
    }

    async fn work(self: &Arc<Self>, source: &Source) -> Result<(), Failure> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if source.has_failed() {
                return Ok(());
            }
            let next = source.with_holdings(|holdings| self.queue().take(holdings));
            let wait = match next {
                Next::Done => return Ok(()),
                Next::Fetch(piece) => {
                    self.fetch_piece(source, piece).await?;
                    continue;
                }
                Next::Wait => changed.changed().await,
                Next::Starve => timeout(STARVE_TIMEOUT, changed.changed())
                    .await
                    .map_err(|_| Failure::Source("it has nothing of what is missing".to_owned()))?,
            };
            wait.expect("the sender lives in self");
        }
    }

    async fn fetch_piece(self: &Arc<Self>, source: &Source, piece: Piece) -> Result<(), Failure> {
        let taken = Taken { job: self, piece: Some(piece.clone()) };
        let mut received = Received { progress: &self.progress, bytes: 0, told_bytes: 0 };
        let result = match self.images.check_space(piece.bytes()).await {
            Ok(()) => self.request(source, &piece, &mut received).await,
            Err(no_space) => Err(Failure::Local(no_space.into())),
        };
        received.tell();
        match result {
            Ok(()) => {
                taken.finish();
                Ok(())
            }
            Err(Failure::Local(error)) => Err(Failure::Local(error)),
            Err(Failure::Source(reason)) => {
                let present = self.images.present(piece.hash).await;
                let present = present.map_err(|error| Failure::Local(error.into()))?;
                let rest = piece.without(&present.ranges);
                let kept_bytes = piece.bytes().saturating_sub(rest.bytes());
                self.progress.send_modify(|progress| {
                    progress.bytes_done = (progress.bytes_done + kept_bytes).saturating_sub(received.bytes);
                });
                taken.give_back(rest);
                Err(Failure::Source(reason))
            }
        }
    }

    async fn request(&self, source: &Source, piece: &Piece, received: &mut Received<'_>) -> Result<(), Failure> {
        let stalled = |_| Failure::Source(format!("it delivered nothing for {} s", STALL_TIMEOUT.as_secs()));
        let streams = timeout(STALL_TIMEOUT, source.connection.open_bi()).await.map_err(stalled)?;
        let (send, recv) = streams.map_err(|error| Failure::Source(source.reason(error)))?;
        let pair = StreamPair::new(source.connection.stable_id() as u64, recv, send);
        let remote = self.images.inner.store.remote();
        // This stream drives the transfer, and is read to its end: whoever leaves it unread stalls the connection.
        let mut items = std::pin::pin!(remote.execute_get(pair, piece.request()).stream());
        loop {
            match timeout(STALL_TIMEOUT, items.next()).await.map_err(stalled)? {
                Some(GetProgressItem::Progress(bytes)) => received.reached(bytes),
                Some(GetProgressItem::Done(_)) => return Ok(()),
                Some(GetProgressItem::Error(error)) => {
                    let reason = source.reason(&error);
                    return Err(match error {
                        GetError::LocalFailure { .. } | GetError::IrpcSend { .. } => {
                            Failure::Local(FetchError::Storage(reason))
                        }
                        _ => Failure::Source(reason),
                    });
                }
                None => return Err(Failure::Source("the request ended without a result".to_owned())),
            }
        }
    }
}

/// Counts what a request received.
struct Received<'a> {
    progress: &'a watch::Sender<Progress>,
    bytes: u64,
    told_bytes: u64,
}

impl Received<'_> {
    fn reached(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
        if self.bytes - self.told_bytes >= PROGRESS_STEP_BYTES {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let more = self.bytes - self.told_bytes;
        self.told_bytes = self.bytes;
        self.progress.send_modify(|progress| {
            progress.bytes_done += more;
            progress.bytes_received += more;
        });
    }
}

/// A piece in a worker's hands; it is given back whatever becomes of the worker.
struct Taken<'a> {
    job: &'a Job,
    piece: Option<Piece>,
}

impl Taken<'_> {
    fn finish(mut self) {
        self.piece = None;
        self.job.queue().finish();
        self.job.changed.send_replace(());
    }

    fn give_back(mut self, rest: Piece) {
        self.piece = Some(rest);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(piece) = self.piece.take() {
            self.job.queue().give_back(piece);
            self.job.changed.send_replace(());
        }
    }
}
