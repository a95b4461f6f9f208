//! The workers of one fetch: a few at each source, all of which do what one plan says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use blixard_core::{BlobHash, EndpointId};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::demand::Wishes;
use super::holders::{Holder, Source};
use super::plan::{Blob, Next, Plan, Tier};
use super::standing::Wrong;
use super::{FetchError, Images, Progress};

/// Requests under way at each source: while one waits for its first byte, the other keeps the line busy.
pub(super) const WORKERS_PER_SOURCE: usize = 2;
/// Requests besides these, for nothing but what somebody waits for: they find the line free of whatever is under way.
const DEMAND_WORKERS_PER_SOURCE: usize = 2;
/// A source that delivers nothing for this long is given up. Longer than a lost path takes to be replaced.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a source that has nothing of what is missing may take to get some, when no other is at work. Also covers the
/// time until it first said what it has.
const STARVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker without work waits at most until it asks the plan again: speeds change though nothing is reported.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How soon a source that fetches the image itself is asked again what it has. The wait doubles while it has nothing new.
const ASK_AGAIN_MIN: Duration = Duration::from_millis(200);
/// The longest such wait.
const ASK_AGAIN_MAX: Duration = Duration::from_millis(600);
/// How soon a source that failed is tried again, while others are at work. The wait doubles with each failure in a row.
const REST_MIN: Duration = Duration::from_secs(1);
/// The longest such wait.
const REST_MAX: Duration = Duration::from_secs(30);

/// Why a worker ends early.
pub(super) enum Failure {
    /// The source's doing.
    Source(String),
    /// The source sent content that does not match its hash.
    Lie(String),
    /// The source has nothing of what is missing, which is no fault of its own.
    Empty(String),
    /// This node's doing: other sources would not help.
    Local(FetchError),
}

/// Why each source failed that has delivered nothing since; nothing for the others.
type Failed = BTreeMap<EndpointId, Option<String>>;

/// One fetch, shared by the workers of all sources.
pub(super) struct Job {
    pub(super) images: Images,
    blobs: Vec<BlobHash>,
    plan: Mutex<Plan>,
    /// Sends when the plan may have something else to say than before.
    pub(super) changed: watch::Sender<()>,
    /// By which an order is taken back from its worker.
    taken_back: Mutex<BTreeMap<u64, Arc<Notify>>>,
    failed: watch::Sender<Failed>,
    pub(super) progress: watch::Sender<Progress>,
    begun: Instant,
}

impl Job {
    pub(super) fn new(images: Images, blobs: &[Blob], progress: watch::Sender<Progress>) -> Self {
        let mut seed = [0; 8];
        // Without random bytes all receivers take pieces in the same order, which is slower and does no other harm.
        let _ = getrandom::fill(&mut seed);
        let plan = Plan::new(images.inner.transport.id(), blobs, u64::from_le_bytes(seed));
        Self {
            images,
            blobs: blobs.iter().map(|blob| blob.hash).collect(),
            plan: Mutex::new(plan),
            changed: watch::Sender::new(()),
            taken_back: Mutex::default(),
            failed: watch::Sender::default(),
            progress,
            begun: Instant::now(),
        }
    }

    /// Whether all pieces are here.
    pub(super) fn is_done(&self) -> bool {
        self.plan().is_done()
    }

    pub(super) fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("no holder of this lock panics")
    }

    pub(super) fn taken_back(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        self.taken_back.lock().expect("no holder of this lock panics")
    }

    /// Time as the plan counts it.
    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Somebody waits for this, or is about to, and for nothing else.
    pub(super) fn demand(&self, wishes: &Wishes) {
        let wanted = wishes.waited.iter().map(|demand| (demand.blob, demand.bytes.clone()));
        let mut plan = self.plan();
        plan.demand(wanted, self.now_ms());
        plan.expect(&wishes.ahead);
        drop(plan);
        self.changed.send_replace(());
    }

    /// Counts with a source from now on, though it has not been reached yet.
    pub(super) fn expect(&self, holder: Holder) {
        self.plan().join(holder.endpoint, holder.is_whole, Tier::Far);
        self.failed.send_modify(|failed| drop(failed.insert(holder.endpoint, None)));
    }

    /// A source has delivered something.
    pub(super) fn delivered(&self, source: EndpointId) {
        self.failed.send_if_modified(|failed| failed.insert(source, None).is_some_and(|reason| reason.is_some()));
    }

    /// Waits until every source has failed and none has delivered anything since, and says why each failed.
    pub(super) async fn exhausted(&self) -> Vec<(EndpointId, String)> {
        let mut failed = self.failed.subscribe();
        let have_all = |failed: &Failed| !failed.is_empty() && failed.values().all(Option::is_some);
        let failed = failed.wait_for(have_all).await.expect("the sender lives in self");
        failed.iter().filter_map(|(source, reason)| Some((*source, reason.clone()?))).collect()
    }

    /// Fetches from one source until nothing is left. One that fails rests, and is tried again.
    pub(super) async fn serve(self: Arc<Self>, holder: Holder) -> Result<(), FetchError> {
        let id = holder.endpoint;
        let mut rest = REST_MIN;
        loop {
            let begun_bytes = self.progress.borrow().bytes_received;
            let failure = match self.reach(holder).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            self.plan().leave(id);
            let standings = &self.images.inner.standings;
            let reason = match failure {
                Failure::Local(error) => return Err(error),
                Failure::Empty(reason) => reason,
                Failure::Source(reason) => {
                    standings.wrong(id, Wrong::Failed, reason.clone());
                    reason
                }
                Failure::Lie(reason) => {
                    standings.wrong(id, Wrong::Lied, reason.clone());
                    reason
                }
            };
            tracing::debug!(source = %id.short(), reason, "a source rests");
            self.failed.send_modify(|failed| drop(failed.insert(id, Some(reason))));
            self.changed.send_replace(());
            // While nothing comes from anybody, there is ever less reason to hope.
            if self.progress.borrow().bytes_received > begun_bytes {
                rest = REST_MIN;
            }
            tokio::time::sleep(rest).await;
            rest = rest.saturating_mul(2).min(REST_MAX);
            self.plan().join(id, holder.is_whole, Tier::Far);
        }
    }

    async fn reach(self: &Arc<Self>, holder: Holder) -> Result<(), Failure> {
        let connection = holder.reach(&self.images.inner.transport).await.map_err(Failure::Source)?;
        let source = Source::new(holder, connection);
        let source = Arc::new(source);
        let delivers = Delivers { progress: &self.progress, counts: false };
        self.work_with(&source, delivers).await
    }

    async fn work_with(self: &Arc<Self>, source: &Arc<Source>, mut delivers: Delivers<'_>) -> Result<(), Failure> {
        self.place(source);
        let mut asking = JoinSet::new();
        let (job, asked) = (self.clone(), source.clone());
        asking.spawn(async move { job.keep_asking(&asked).await });
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS_PER_SOURCE {
            let (job, source) = (self.clone(), source.clone());
            workers.spawn(async move { job.work(&source).await });
        }
        for _ in 0..DEMAND_WORKERS_PER_SOURCE {
            let (job, source) = (self.clone(), source.clone());
            workers.spawn(async move { job.work_on_demand(&source).await });
        }
        let mut changed = self.changed.subscribe();
        let mut result = Ok(());
        loop {
            delivers.see(self.plan().has_any(source.holder.endpoint));
            let failure = tokio::select! {
                ended = workers.join_next() => match ended {
                    None => return result,
                    Some(Ok(Ok(()))) => continue,
                    Some(Ok(Err(failure))) => failure,
                    Some(Err(error)) => Failure::Source(format!("a worker ended in a panic: {error}")),
                },
                Some(ended) = asking.join_next() => {
                    Failure::Source(ended.unwrap_or_else(|error| format!("asking it ended in a panic: {error}")))
                }
                _ = changed.changed(), if !delivers.counts => continue,
            };
            // The other worker ends by itself: it keeps what it verified, and takes nothing more.
            source.fail();
            self.changed.send_replace(());
            match (&result, &failure) {
                (Ok(()), _) | (Err(_), Failure::Local(_) | Failure::Lie(_)) => result = Err(failure),
                _ => {}
            }
        }
    }

    /// Tells the plan where a source belongs.
    fn place(&self, source: &Source) {
        let id = source.holder.endpoint;
        let tier = if self.images.inner.standings.is_doubtful(id) { Tier::Doubtful } else { source.tier() };
        self.plan().place(id, tier);
    }

    /// Asks a source what it has, again and again while it lacks something that is missing here. Ends, with the reason, only
    /// when the source does not tell any more.
    async fn keep_asking(&self, source: &Source) -> String {
        let id = source.holder.endpoint;
        let mut wait = ASK_AGAIN_MIN;
        loop {
            let (mut is_more, mut is_all) = (false, true);
            for hash in &self.blobs {
                if self.plan().has_all(id, *hash) {
                    continue;
                }
                match timeout(STALL_TIMEOUT, source.ask(&self.images.inner.store, *hash)).await {
                    Ok(Ok(held)) => is_more |= self.plan().learn(id, *hash, &held),
                    Ok(Err(reason)) => return reason,
                    Err(_) => return format!("it did not say what it has for {} s", STALL_TIMEOUT.as_secs()),
                }
                is_all &= self.plan().has_all(id, *hash);
            }
            self.place(source);
            if is_more {
                self.changed.send_replace(());
            }
            if is_all {
                let closed = source.connection.closed().await;
                return source.reason(format!("the connection ended: {closed}"));
            }
            wait = if is_more { ASK_AGAIN_MIN } else { wait.saturating_mul(2).min(ASK_AGAIN_MAX) };
            tokio::time::sleep(wait).await;
        }
    }

    /// Fetches what somebody waits for, until all pieces are here.
    async fn work_on_demand(self: &Arc<Self>, source: &Source) -> Result<(), Failure> {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if source.has_failed() || self.is_done() {
                return Ok(());
            }
            let order = self.plan().take_demanded(source.holder.endpoint, self.now_ms());
            match order {
                Some(order) => self.fetch_order(source, order).await?,
                // The other workers look again as well, and tell when that changes something.
                None => drop(timeout(LOOK_AGAIN, changed.changed()).await),
            }
        }
    }

    async fn work(self: &Arc<Self>, source: &Source) -> Result<(), Failure> {
        let mut changed = self.changed.subscribe();
        let mut starves_since = None;
        loop {
            changed.borrow_and_update();
            if source.has_failed() {
                return Ok(());
            }
            let next = self.plan().take(source.holder.endpoint, self.now_ms());
            if next != Next::Starve {
                starves_since = None;
            }
            match next {
                Next::Done => return Ok(()),
                Next::Fetch(order) => {
                    self.fetch_order(source, order).await?;
                    continue;
                }
                Next::TakeBack(number) => {
                    if let Some(worker) = self.taken_back().get(&number) {
                        worker.notify_one();
                    }
                }
                Next::Wait => {}
                Next::Starve => {
                    let since = *starves_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= STARVE_TIMEOUT {
                        return Err(Failure::Empty("it has nothing of what is missing".to_owned()));
                    }
                }
            }
            // Either a change, or the time to look again.
            let _ = timeout(LOOK_AGAIN, changed.changed()).await;
        }
    }
}

/// Counts a source as one that delivers once it has something, for as long as it is connected.
struct Delivers<'a> {
    progress: &'a watch::Sender<Progress>,
    counts: bool,
}

impl Delivers<'_> {
    fn see(&mut self, has_any: bool) {
        if has_any && !self.counts {
            self.counts = true;
            self.progress.send_modify(|progress| progress.sources += 1);
        }
    }
}

impl Drop for Delivers<'_> {
    fn drop(&mut self) {
        if self.counts {
            self.progress.send_modify(|progress| progress.sources -= 1);
        }
    }
}
