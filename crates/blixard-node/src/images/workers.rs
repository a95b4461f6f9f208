//! The workers of one fetch: a few at each source, all of which take pieces from one queue.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blixard_core::{BlobHash, EndpointId};
use futures::StreamExt;
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::{GetError, StreamPair};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::holders::Source;
use super::pieces::{Next, Piece, Queue};
use super::{FetchError, Images, Progress};
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

/// Why a worker ends early.
pub(super) enum Failure {
    /// The source's doing.
    Source(String),
    /// This node's doing: other sources would not help.
    Local(FetchError),
}

/// One fetch, shared by the workers of all sources.
pub(super) struct Job {
    images: Images,
    blobs: BTreeSet<BlobHash>,
    queue: Mutex<Queue>,
    /// Sends when the queue or the holdings of a source change.
    changed: watch::Sender<()>,
    progress: watch::Sender<Progress>,
}

impl Job {
    pub(super) fn new(images: Images, pieces: Vec<Piece>, progress: watch::Sender<Progress>) -> Self {
        let blobs = pieces.iter().map(|piece| piece.hash).collect();
        let (queue, changed) = (Mutex::new(Queue::new(pieces)), watch::Sender::new(()));
        Self { images, blobs, queue, changed, progress }
    }

    /// Whether all pieces are here.
    pub(super) fn is_done(&self) -> bool {
        self.queue().is_done()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }

    /// Fetches from one source until nothing is left or the source fails.
    pub(super) async fn serve(self: Arc<Self>, id: EndpointId) -> Result<(), Failure> {
        let connection = self.images.inner.transport.connect(id, Protocol::Blobs).await;
        let source = Arc::new(Source::new(connection.map_err(|error| Failure::Source(error.to_string()))?));
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
