//! Images on their way to this node: one queue, a few at once, tried again until they are here or no longer wanted.
//!
//! The room owns the queue and the task that works it off. It decides neither which images this node is to have nor
//! where they are: the agent says so, again and again ([`Transfers::want`], [`Transfers::cancel`]), and asks `images/`
//! what has arrived. What a transfer fetched stays when it fails or is cancelled, as long as the image is kept.
//!
//! ```text
//! want -> queued -> running -> (here: forgotten)
//!            ^         |
//!            +- failed <   after a growing wait, or at once when a new source turns up
//! ```
//!
//! A crash loses the queue and nothing else: the agent wants again what it still misses. It stops with
//! [`Transfers::shutdown`] or when the last clone is dropped; transfers under way end where they are.

mod queue;
mod work;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use blixard_core::{ImageId, Manifest};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::images::{FetchError, Holder, Images, Progress};
use crate::metrics::Metrics;

use queue::Queue;

/// How urgent a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A copy for safety: nobody waits for it.
    Copy,
    /// A vm on this node cannot start without it.
    VmWaiting,
}

/// Where a transfer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransferState {
    /// It waits for its turn.
    Queued,
    /// It is under way.
    Running,
    /// It failed and will be tried again.
    Failed {
        /// How often it failed in a row.
        attempts: u32,
        /// When it is tried again, at the earliest.
        retry_at: Instant,
    },
}

/// What is known of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransferStatus {
    /// How urgent it is.
    pub priority: Priority,
    /// Where it stands.
    pub state: TransferState,
    /// How far it is; of the last attempt when it does not run.
    pub progress: Progress,
    /// Why the attempt before failed, until this one has received something.
    pub failure: Option<String>,
}

/// One order to fetch an image; what it answers is for people.
type Fetch = Arc<dyn Fn(Order) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What a fetch needs to know.
struct Order {
    image: ImageId,
    manifest: Manifest,
    /// Who has the image; more may become known while it is fetched.
    sources: watch::Receiver<Vec<Holder>>,
    progress: watch::Sender<Progress>,
}

/// The transfers of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Transfers {
    shared: Arc<Shared>,
    _worker: Arc<Worker>,
}

struct Shared {
    queue: Mutex<Queue>,
    fetch: Fetch,
    /// Wakes the worker.
    work: Notify,
    changed: watch::Sender<()>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// Ends the worker when the last clone goes.
#[derive(Debug)]
struct Worker(Mutex<Option<JoinHandle<()>>>);

impl Worker {
    fn take(&self) -> Option<JoinHandle<()>> {
        self.0.lock().expect("no holder of this lock panics").take()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(worker) = self.take() {
            worker.abort();
        }
    }
}

impl Transfers {
    /// An empty queue, and the task that will work it off.
    pub(crate) fn new(images: Images, metrics: Arc<Metrics>) -> Self {
        let counted = metrics.clone();
        Self::with(Arc::new(move |order| fetch(images.clone(), order, counted.clone()).boxed()), metrics)
    }

    fn with(fetch: Fetch, metrics: Arc<Metrics>) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            fetch,
            work: Notify::new(),
            changed: watch::Sender::new(()),
            metrics,
        });
        let worker = tokio::spawn(work::supervise(shared.clone()));
        Self { shared, _worker: Arc::new(Worker(Mutex::new(Some(worker)))) }
    }

    /// Wants an image here. To want it again names its sources anew and can make it more urgent, and otherwise changes
    /// nothing; one that runs learns of them at once. A failed transfer is tried at once when it becomes more urgent or gets
    /// a source that it did not have.
    pub(crate) fn want(&self, image: ImageId, manifest: Manifest, sources: Vec<Holder>, priority: Priority) {
        if self.shared.queue().want(image, manifest, sources, priority) {
            self.shared.tell();
        }
    }

    /// No longer wants an image. It stays kept, with what was fetched of it, until `images/` drops it.
    pub(crate) fn cancel(&self, image: ImageId) {
        if self.shared.queue().cancel(image) {
            self.shared.tell();
        }
    }

    /// Where the transfer of an image stands; `None` when it is not wanted, or is here.
    pub(crate) fn status(&self, image: ImageId) -> Option<TransferStatus> {
        self.shared.queue().status(image)
    }

    /// Sends whenever a transfer begins, ends, or changes otherwise than in its progress.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Ends the transfers under way and starts no others.
    pub(crate) async fn shutdown(&self) {
        if let Some(worker) = self._worker.take() {
            worker.abort();
            // That it was aborted is what was asked for.
            let _ = worker.await;
        }
    }
}

impl Shared {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of this lock panics")
    }

    /// Wakes the worker and whoever watches.
    fn tell(&self) {
        self.work.notify_one();
        self.moved();
    }

    /// Tells whoever watches that a transfer has changed its state.
    fn moved(&self) {
        for (state, count) in self.queue().counts() {
            self.metrics.transfers.get_or_create(&[("state", state.into())]).set(count);
        }
        self.changed.send_replace(());
    }
}

async fn fetch(images: Images, order: Order, metrics: Arc<Metrics>) -> Result<(), String> {
    images.keep(order.image, &order.manifest).await.map_err(|error| format!("{error:#}"))?;
    let fetched = images.fetch(&order.manifest, order.sources, &order.progress).await;
    metrics.fetched_bytes.inc_by(order.progress.borrow().bytes_received);
    if let Err(FetchError::Damaged(_)) = &fetched {
        // The store replaces nothing that it takes for whole: the next attempt begins after it was removed.
        images.drop_image(order.image).await.map_err(|error| format!("{error:#}"))?;
    }
    fetched.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
