//! Images on their way to this node: one queue, a few at once, tried again until they are here or no longer wanted.
//!
//! The room owns the queue and the task that works it off, what people have set of it (limits, pauses, requests), and the file
//! that keeps that. It decides neither which images this node is to have nor where they are: the agent says so, again and
//! again ([`Transfers::want`], [`Transfers::forget`]), and asks `images/` what has arrived. What a transfer fetched stays
//! when it fails, is put back or cancelled, as long as the image is kept.
//!
//! ```text
//! want -> queued -> running -> (here: forgotten)
//!         ^ ^ ^       | | |
//!         | | +- put back, when something more urgent needs the place
//!         | +--- paused, until it is resumed
//!         +----- failed <   after a growing wait, or at once when a new source turns up;
//!                           not by itself when the manifest is wrong or its deadline has passed
//! ```
//!
//! A deadline is kept as a date, because it has to outlive the process; the queue counts the time that is left of it when it is
//! told, and a clock that is set meanwhile does not move it.
//!
//! A crash loses the queue and nothing else: the agent wants again what it still misses. It stops with
//! [`Transfers::shutdown`] or when the last clone is dropped; transfers under way end where they are.

mod failure;
mod kept;
mod meter;
mod queue;
mod work;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blixard_core::{EndpointId, ImageId, Manifest, UnixMs};
use futures::FutureExt;
use futures::future::BoxFuture;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::clock;
use crate::images::{FetchError, Holder, Images, Limits, Progress, Rates};
use crate::kept::KeptFile;
use crate::metrics::{Metrics, REUSED};

pub(crate) use failure::{Failure, FailureClass};
pub(crate) use kept::Kept;
pub(crate) use queue::Cancelled;

use kept::KEEPING;
use queue::Queue;

/// How urgent a transfer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A copy for safety: nobody waits for it.
    Copy,
    /// An operator asked for it.
    Operator,
    /// A vm on this node cannot start without it.
    VmWaiting,
}

impl Priority {
    pub(crate) const ALL: [Self; 3] = [Self::Copy, Self::Operator, Self::VmWaiting];

    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Operator => "operator",
            Self::VmWaiting => "vm",
        }
    }
}

/// Where a transfer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransferState {
    /// It waits for its turn.
    Queued,
    /// It is under way.
    Running,
    /// It waits until somebody resumes it.
    Paused,
    /// It failed.
    Failed {
        /// When it is tried again, at the earliest; without a time, not by itself.
        retry_at: Option<Instant>,
    },
}

impl TransferState {
    /// Every word that [`Self::word`] has.
    const WORDS: [&str; 4] = ["queued", "running", "paused", "failed"];

    /// The word for it.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Failed { .. } => "failed",
        }
    }
}

/// What is known of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TransferStatus {
    /// How urgent it is.
    pub priority: Priority,
    /// Whether an operator asked for it, whoever else wants it.
    pub is_requested: bool,
    /// Whether the time was up that it was given, and nobody else wants it.
    pub is_expired: bool,
    /// When it is given up, if it is not here by then.
    pub deadline: Option<Instant>,
    /// Where it stands.
    pub state: TransferState,
    /// How far it is; of the last attempt when it does not run.
    pub progress: Progress,
    /// How fast it goes; 0 when it does not run.
    pub bytes_per_s: u64,
    /// Nodes that it may come from.
    pub sources: Vec<EndpointId>,
    /// How often it failed in a row.
    pub failures: u32,
    /// Why the attempt before failed, until this one has received something.
    pub failure: Option<Failure>,
}

/// One order to fetch an image.
type Fetch = Arc<dyn Fn(Order) -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

/// What a fetch needs to know.
struct Order {
    image: ImageId,
    manifest: Manifest,
    /// Who has the image; more may become known while it is fetched.
    sources: watch::Receiver<Vec<Holder>>,
    priority: Priority,
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
    /// Images whose deadline has passed, until somebody looks.
    expired: Mutex<Vec<ImageId>>,
    fetch: Fetch,
    /// Wakes the worker.
    work: Notify,
    changed: watch::Sender<()>,
    metrics: Arc<Metrics>,
    keeper: KeptFile<Kept>,
    limits: Limits,
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
    /// An empty queue, and the task that will work it off, so many at once. What people have set before holds again.
    ///
    /// # Errors
    /// With [`crate::Damage`] when the file is damaged that this is kept in.
    pub(crate) fn open(file: &Path, running_max: usize, images: Images, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let (counted, limits, keeper) = (metrics.clone(), images.limits().clone(), KeptFile::open(file, &KEEPING)?);
        let kept: Kept = keeper.read();
        limits.set(None, kept.limits);
        kept.peers.iter().for_each(|(peer, rates)| limits.set(Some(*peer), *rates));
        let fetch: Fetch = Arc::new(move |order| fetch(images.clone(), order, counted.clone()).boxed());
        Ok(Self::with(fetch, metrics, keeper, limits, running_max))
    }

    fn with(fetch: Fetch, metrics: Arc<Metrics>, keeper: KeptFile<Kept>, limits: Limits, running_max: usize) -> Self {
        let queue = Queue::new(running_max, keeper.read().paused);
        let shared = Arc::new(Shared {
            queue: Mutex::new(queue),
            expired: Mutex::default(),
            fetch,
            work: Notify::new(),
            changed: watch::Sender::new(()),
            metrics,
            keeper,
            limits,
        });
        // A rate needs a zero to begin with.
        for priority in Priority::ALL {
            drop(shared.metrics.fetched_bytes.get_or_create(&[("priority", priority.word().into())]));
        }
        for source in REUSED {
            drop(shared.metrics.reused_bytes.get_or_create(&[("source", source.into())]));
        }
        shared.moved();
        let worker = tokio::spawn(work::supervise(shared.clone()));
        Self { shared, _worker: Arc::new(Worker(Mutex::new(Some(worker)))) }
    }

    /// Wants an image here. To want it again names its sources anew and can make it more urgent, and otherwise changes
    /// nothing; one that runs learns of them at once. A failed transfer is tried at once when it becomes more urgent or gets
    /// a source that it did not have.
    pub(crate) fn want(&self, image: ImageId, manifest: Manifest, sources: Vec<Holder>, priority: Priority) {
        let is_request = priority == Priority::Operator;
        let deadline = is_request.then(|| self.kept().deadlines.get(&image).copied()).flatten();
        let is_new = {
            let mut queue = self.shared.queue();
            let is_new = queue.want(image, manifest, sources, priority);
            // Told once: what is left of it is counted without the wall clock from then on.
            let is_told = queue.status(image).is_some_and(|status| status.deadline.is_some());
            if let Some(deadline) = deadline.filter(|_| !is_told) {
                queue.set_deadline(image, instant_of(deadline));
            }
            is_new
        };
        if is_new || deadline.is_some() {
            self.shared.tell();
        }
    }

    /// No longer wants an image, whoever did, because it is not in the catalog any more. It stays kept, with what was fetched of
    /// it, until `images/` drops it.
    ///
    /// # Errors
    /// When it cannot be written down that nobody asks for it.
    pub(crate) async fn forget(&self, image: ImageId) -> anyhow::Result<()> {
        if self.shared.queue().forget(image) {
            self.shared.tell();
        }
        let change = |kept: &mut Kept| {
            kept.paused.remove(&image);
            kept.requested.remove(&image);
            kept.deadlines.remove(&image);
        };
        self.shared.keeper.change(change, |_| ()).await
    }

    /// Notes that an operator wants an image here, until [`Self::settle`], and by when. The agent then wants it. To ask again sets
    /// the deadline anew.
    ///
    /// # Errors
    /// When it cannot be written down; then nothing has changed.
    pub(crate) async fn request(&self, image: ImageId, deadline: Option<UnixMs>) -> anyhow::Result<()> {
        let change = |kept: &mut Kept| {
            kept.requested.insert(image);
            match deadline {
                Some(deadline) => kept.deadlines.insert(image, deadline),
                None => kept.deadlines.remove(&image),
            };
        };
        let act = |_: &Kept| self.shared.queue().set_deadline(image, deadline.and_then(instant_of));
        self.shared.keeper.change(change, act).await?;
        self.shared.tell();
        Ok(())
    }

    /// Images whose deadline has passed since this was last asked. Of those that are still known and [not
    /// expired](TransferStatus::is_expired), nothing more is owed to whoever asked.
    pub(crate) fn take_expired(&self) -> Vec<ImageId> {
        std::mem::take(&mut *self.shared.expired())
    }

    /// Notes that nothing more is owed to an operator who asked for an image: it is here, or its time is up.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub(crate) async fn settle(&self, image: ImageId) -> anyhow::Result<()> {
        let change = |kept: &mut Kept| {
            kept.requested.remove(&image);
            kept.deadlines.remove(&image);
        };
        self.shared.keeper.change(change, |_| ()).await
    }

    /// Gives up what an operator asked for; nothing when it is not on its way.
    ///
    /// # Errors
    /// When it cannot be written down; then nothing has changed.
    pub(crate) async fn cancel_request(&self, image: ImageId) -> anyhow::Result<Option<Cancelled>> {
        let (mut was_requested, mut cancelled) = (false, None);
        let change = |kept: &mut Kept| {
            kept.deadlines.remove(&image);
            was_requested = kept.requested.remove(&image);
        };
        self.shared.keeper.change(change, |_| cancelled = self.shared.queue().cancel_request(image)).await?;
        self.shared.tell();
        // It may be noted and not be in the queue, for a moment after a restart.
        Ok(cancelled.or(was_requested.then_some(Cancelled::Gone)))
    }

    /// Lets an image wait until it is resumed, also after a restart. Whether it is on its way, and so can be.
    ///
    /// # Errors
    /// When it cannot be written down; then nothing has changed.
    pub(crate) async fn pause(&self, image: ImageId) -> anyhow::Result<bool> {
        if !self.shared.queue().knows(image) {
            return Ok(false);
        }
        let change = |kept: &mut Kept| {
            kept.paused.insert(image);
        };
        self.shared.keeper.change(change, |_| self.shared.queue().pause(image)).await?;
        self.shared.tell();
        Ok(true)
    }

    /// Lets an image go on that was paused, or tries one at once that failed, without a deadline if that is why it did. Whether
    /// it is on its way.
    ///
    /// # Errors
    /// When it cannot be written down; then nothing has changed.
    pub(crate) async fn resume(&self, image: ImageId) -> anyhow::Result<bool> {
        let status = self.status(image);
        let mut is_known = status.is_some();
        let is_expired = status.is_some_and(|status| status.is_expired);
        let change = |kept: &mut Kept| {
            is_known |= kept.paused.remove(&image);
            if is_expired {
                kept.deadlines.remove(&image);
            }
        };
        self.shared.keeper.change(change, |_| self.shared.queue().resume(image)).await?;
        self.shared.tell();
        Ok(is_known)
    }

    /// Tries again at once what failed because there was no room for it: there is some now.
    pub(crate) fn retry_for_room(&self) {
        if self.shared.queue().retry_for_room() {
            self.shared.tell();
        }
    }

    /// All transfers, those that come first in front.
    pub(crate) fn list(&self) -> Vec<(ImageId, TransferStatus)> {
        let mut queue = self.shared.queue();
        queue.measure(Instant::now());
        queue.list()
    }

    /// Where the transfer of an image stands; `None` when it is not wanted, or is here.
    pub(crate) fn status(&self, image: ImageId) -> Option<TransferStatus> {
        self.shared.queue().status(image)
    }

    /// Sends whenever a transfer begins, ends, or changes otherwise than in its progress.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Limits how fast content is sent and received: altogether or, where one is named, between this node and one peer. Rates
    /// without a number lift a limit.
    ///
    /// # Errors
    /// When it cannot be written down; then nothing has changed.
    pub(crate) async fn limit(&self, peer: Option<EndpointId>, rates: Rates) -> anyhow::Result<()> {
        let change = |kept: &mut Kept| match peer {
            None => kept.limits = rates,
            Some(peer) if rates == Rates::default() => drop(kept.peers.remove(&peer)),
            Some(peer) => drop(kept.peers.insert(peer, rates)),
        };
        self.shared.keeper.change(change, |_| self.shared.limits.set(peer, rates)).await
    }

    /// What people have set.
    pub(crate) fn kept(&self) -> Kept {
        self.shared.keeper.read()
    }

    /// How fast content may go, and how much has gone.
    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
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

    fn expired(&self) -> std::sync::MutexGuard<'_, Vec<ImageId>> {
        self.expired.lock().expect("no holder of this lock panics")
    }

    /// Wakes the worker and whoever watches.
    fn tell(&self) {
        self.work.notify_one();
        self.moved();
    }

    /// Tells whoever watches that a transfer has changed its state.
    fn moved(&self) {
        for ((priority, state), count) in self.queue().counts() {
            let labels = [("priority", priority.word().into()), ("state", state.into())];
            self.metrics.transfers.get_or_create(&labels).set(count);
        }
        self.changed.send_replace(());
    }
}

/// When a date will have come, as this process counts time; nothing when that is too far off to count.
fn instant_of(date: UnixMs) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(date.since_ms(clock::now())))
}

/// Counts what an attempt received, however it ends.
struct Counted {
    progress: watch::Sender<Progress>,
    bytes: Counter,
    reused: [Counter; 2],
}

impl Drop for Counted {
    fn drop(&mut self) {
        let progress = *self.progress.borrow();
        self.bytes.inc_by(progress.bytes_received);
        let found = [progress.bytes_reused, progress.bytes_zero];
        for (counter, bytes) in self.reused.iter().zip(found) {
            counter.inc_by(bytes);
        }
    }
}

async fn fetch(images: Images, order: Order, metrics: Arc<Metrics>) -> Result<(), Failure> {
    let bytes = metrics.fetched_bytes.get_or_create(&[("priority", order.priority.word().into())]).clone();
    let reused = REUSED.map(|source| metrics.reused_bytes.get_or_create(&[("source", source.into())]).clone());
    let _counted = Counted { progress: order.progress.clone(), bytes, reused };
    images.keep(order.image, &order.manifest).await.map_err(|error| Failure::storage(format!("{error:#}")))?;
    let has_another = order.sources.borrow().iter().any(|holder| holder.is_whole);
    let fetched = images.fetch(&order.manifest, order.sources, &order.progress).await;
    if let Err(FetchError::Damaged(_)) = &fetched
        && has_another
    {
        // The store replaces nothing that it takes for whole: the next attempt begins after it was removed. Where nobody else
        // has it, what is damaged is better than nothing.
        images.drop_image(order.image).await.map_err(|error| Failure::storage(format!("{error:#}")))?;
        images.collect().await;
    }
    Ok(fetched?)
}

#[cfg(test)]
mod tests;
