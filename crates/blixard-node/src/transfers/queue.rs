//! Which transfer is next. Plain data: the time comes in as an argument, and nothing waits.
//!
//! What is more urgent goes first, and takes the place of what is less so when all places are taken; that is put back and
//! keeps what it has. Among equals the one goes that has waited longest, and one that failed waits behind the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blixard_core::{ImageId, Manifest};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::meter::Meter;
use super::{Failure, FailureClass, Order, Priority, TransferState, TransferStatus};
use crate::backoff;
use crate::images::{Holder, Progress};

/// The wait after a first failure; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait: how late, at worst, it shows that a source is back.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Transfer {
    manifest: Manifest,
    sources: watch::Sender<Vec<Holder>>,
    /// What the cluster itself wants it for; nothing when only an operator does.
    wanted: Option<Priority>,
    is_requested: bool,
    /// When an operator's request is given up, if it is not met by then.
    deadline: Option<Instant>,
    /// Its place among equals: the lower is first.
    turn: u64,
    /// Tells the attempt under way from earlier ones.
    attempt: u64,
    progress: watch::Sender<Progress>,
    meter: Meter,
    state: State,
    failures: u32,
    /// Why the last attempt that ended has failed.
    failure: Option<Failure>,
}

#[derive(Debug)]
enum State {
    Queued,
    Running(Option<AbortHandle>),
    /// Without a time, for good: until somebody says otherwise.
    Failed {
        retry_at: Option<Instant>,
    },
}

impl Transfer {
    fn priority(&self) -> Priority {
        let requested = self.is_requested.then_some(Priority::Operator);
        self.wanted.max(requested).unwrap_or(Priority::Copy)
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    /// Whether its time was up, and nobody else wants it.
    fn is_expired(&self) -> bool {
        let class = self.failure.as_ref().map(|failure| failure.class);
        matches!(self.state, State::Failed { .. }) && class == Some(FailureClass::Deadline)
    }

    /// Lets go of a request whose time was up.
    fn revive(&mut self) {
        if self.is_expired() {
            self.failure = None;
            self.state = State::Queued;
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        match &self.state {
            State::Queued => true,
            State::Running(_) => false,
            State::Failed { retry_at } => retry_at.is_some_and(|at| at <= now),
        }
    }

    /// Ends the attempt under way, if there is one, to begin again where it was.
    fn put_back(&mut self) {
        if let State::Running(task) = std::mem::replace(&mut self.state, State::Queued)
            && let Some(task) = task
        {
            task.abort();
        }
    }
}

/// What giving up an operator's request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancelled {
    /// The transfer is gone.
    Gone,
    /// It goes on, because the cluster itself wants the image here.
    Wanted(Priority),
}

#[derive(Debug)]
pub(super) struct Queue {
    running_max: usize,
    transfers: BTreeMap<ImageId, Transfer>,
    /// Images that are not to be fetched now, in the queue or not.
    paused: BTreeSet<ImageId>,
    last_turn: u64,
}

impl Queue {
    /// An empty queue of which so many run at once, and these wait until they are resumed.
    pub(super) fn new(running_max: usize, paused: BTreeSet<ImageId>) -> Self {
        Self { running_max, transfers: BTreeMap::new(), paused, last_turn: 0 }
    }

    fn next_turn(&mut self) -> u64 {
        self.last_turn += 1;
        self.last_turn
    }

    /// Whether anything changed.
    pub(super) fn want(
        &mut self,
        image: ImageId,
        manifest: Manifest,
        sources: Vec<Holder>,
        priority: Priority,
    ) -> bool {
        let is_request = priority == Priority::Operator;
        let wanted = (!is_request).then_some(priority);
        let turn = self.next_turn();
        let Some(known) = self.transfers.get_mut(&image) else {
            let progress = watch::Sender::new(Progress { bytes_total: manifest.bytes(), ..Progress::default() });
            let transfer = Transfer {
                manifest,
                sources: watch::Sender::new(sources),
                wanted,
                is_requested: is_request,
                deadline: None,
                turn,
                attempt: 0,
                progress,
                meter: Meter::default(),
                state: State::Queued,
                failures: 0,
                failure: None,
            };
            self.transfers.insert(image, transfer);
            return true;
        };
        let is_taken_over = known.is_expired() && wanted.is_some();
        if is_taken_over {
            known.is_requested = false;
            known.revive();
        }
        let before = known.priority();
        known.is_requested |= is_request;
        known.wanted = known.wanted.max(wanted);
        let is_raised = known.priority() > before;
        let has_new_source = sources.iter().any(|source| !known.sources.borrow().contains(source));
        if *known.sources.borrow() != sources {
            known.sources.send_replace(sources);
        }
        let is_better = is_raised || has_new_source;
        if is_better && !known.is_running() && !known.is_expired() {
            known.state = State::Queued;
        }
        is_better || is_taken_over
    }

    /// Gives an operator's request until then, or any time. One that is asked for anew after its time was up is queued again.
    pub(super) fn set_deadline(&mut self, image: ImageId, deadline: Option<Instant>) {
        if let Some(transfer) = self.transfers.get_mut(&image) {
            transfer.is_requested = true;
            transfer.deadline = deadline;
            transfer.revive();
        }
    }

    /// Gives up the requests whose time is up, and says which. What the cluster itself wants goes on for its sake.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<ImageId> {
        let mut expired = Vec::new();
        for (image, transfer) in &mut self.transfers {
            if transfer.deadline.is_none_or(|deadline| deadline > now) {
                continue;
            }
            transfer.deadline = None;
            expired.push(*image);
            if transfer.wanted.is_some() {
                transfer.is_requested = false;
                continue;
            }
            transfer.put_back();
            transfer.failures = transfer.failures.saturating_add(1);
            transfer.state = State::Failed { retry_at: None };
            transfer.failure = Some(Failure::deadline());
        }
        expired
    }

    /// Forgets an image. Whether it was known.
    pub(super) fn forget(&mut self, image: ImageId) -> bool {
        let was_paused = self.paused.remove(&image);
        let Some(mut transfer) = self.transfers.remove(&image) else { return was_paused };
        transfer.put_back();
        true
    }

    /// An operator no longer asks for an image; nothing when it is not in the queue.
    pub(super) fn cancel_request(&mut self, image: ImageId) -> Option<Cancelled> {
        let transfer = self.transfers.get_mut(&image)?;
        (transfer.is_requested, transfer.deadline) = (false, None);
        match transfer.wanted {
            Some(priority) => Some(Cancelled::Wanted(priority)),
            None => {
                self.forget(image);
                Some(Cancelled::Gone)
            }
        }
    }

    /// Whether it is in the queue.
    pub(super) fn knows(&self, image: ImageId) -> bool {
        self.transfers.contains_key(&image)
    }

    /// Lets an image wait until it is resumed.
    pub(super) fn pause(&mut self, image: ImageId) {
        self.paused.insert(image);
        if let Some(transfer) = self.transfers.get_mut(&image).filter(|transfer| transfer.is_running()) {
            transfer.put_back();
        }
    }

    /// Lets an image go on. One that failed is tried again at once.
    pub(super) fn resume(&mut self, image: ImageId) {
        self.paused.remove(&image);
        if let Some(transfer) = self.transfers.get_mut(&image).filter(|transfer| !transfer.is_running()) {
            transfer.revive();
            transfer.state = State::Queued;
        }
    }

    /// Queues what failed for want of room. Whether there was any.
    pub(super) fn retry_for_room(&mut self) -> bool {
        let wants_room = |transfer: &&mut Transfer| {
            let class = transfer.failure.as_ref().map(|failure| failure.class);
            matches!(transfer.state, State::Failed { .. }) && class == Some(FailureClass::NoSpace)
        };
        let mut retried = false;
        for transfer in self.transfers.values_mut().filter(wants_room) {
            transfer.state = State::Queued;
            retried = true;
        }
        retried
    }

    pub(super) fn status(&self, image: ImageId) -> Option<TransferStatus> {
        let transfer = self.transfers.get(&image)?;
        let state = match &transfer.state {
            // Resuming it would not let it go on as it did.
            _ if transfer.is_expired() => TransferState::Failed { retry_at: None },
            _ if self.paused.contains(&image) => TransferState::Paused,
            State::Queued => TransferState::Queued,
            State::Running(_) => TransferState::Running,
            State::Failed { retry_at } => TransferState::Failed { retry_at: *retry_at },
        };
        let progress = *transfer.progress.borrow();
        // Until something comes, a further attempt has not done better than the one before.
        let delivers = transfer.is_running() && progress.bytes_received > 0;
        Some(TransferStatus {
            priority: transfer.priority(),
            is_requested: transfer.is_requested,
            is_expired: transfer.is_expired(),
            deadline: transfer.deadline,
            state,
            progress,
            bytes_per_s: if transfer.is_running() { transfer.meter.bytes_per_s() } else { 0 },
            sources: transfer.sources.borrow().iter().map(|holder| holder.endpoint).collect(),
            failures: transfer.failures,
            failure: transfer.failure.clone().filter(|_| !delivers),
        })
    }

    /// All of them, those that come first in front.
    pub(super) fn list(&self) -> Vec<(ImageId, TransferStatus)> {
        let mut ids: Vec<_> = self.transfers.iter().collect();
        ids.sort_by_key(|(_, transfer)| {
            (!transfer.is_running(), std::cmp::Reverse(transfer.priority()), transfer.turn)
        });
        ids.into_iter().filter_map(|(image, _)| Some((*image, self.status(*image)?))).collect()
    }

    /// How many transfers there are of each priority in each state.
    pub(super) fn counts(&self) -> BTreeMap<(Priority, &'static str), i64> {
        let all = Priority::ALL.into_iter().flat_map(|priority| TransferState::WORDS.map(|word| ((priority, word), 0)));
        let mut counts: BTreeMap<_, i64> = all.collect();
        for status in self.transfers.keys().filter_map(|image| self.status(*image)) {
            *counts.entry((status.priority, status.state.word())).or_default() += 1;
        }
        counts
    }

    /// The next transfer to start now, if there is one and a place for it; from here on it counts as running.
    pub(super) fn start(&mut self, now: Instant) -> Option<(u64, Order)> {
        let rank = |transfer: &Transfer| (std::cmp::Reverse(transfer.priority()), transfer.turn);
        let due = self.transfers.iter().filter(|(image, next)| next.is_due(now) && !self.paused.contains(image));
        let (image, next) = due.min_by_key(|(_, next)| rank(next))?;
        let (image, priority) = (*image, next.priority());
        let running = self.transfers.values().filter(|transfer| transfer.is_running());
        if running.count() >= self.running_max {
            let less = self.transfers.values_mut().filter(|other| other.is_running() && other.priority() < priority);
            less.max_by_key(|other| rank(other))?.put_back();
        }
        let attempt = self.next_turn();
        let next = self.transfers.get_mut(&image)?;
        next.state = State::Running(None);
        next.attempt = attempt;
        next.meter = Meter::default();
        next.progress.send_modify(|progress| {
            (progress.bytes_received, progress.bytes_reused, progress.bytes_zero) = (0, 0, 0);
        });
        let (manifest, sources) = (next.manifest.clone(), next.sources.subscribe());
        Some((attempt, Order { image, manifest, sources, priority, progress: next.progress.clone() }))
    }

    /// Notes the task of a transfer that was started.
    pub(super) fn started(&mut self, image: ImageId, attempt: u64, task: AbortHandle) {
        let started = self.transfers.get_mut(&image).filter(|transfer| transfer.attempt == attempt);
        match started.filter(|transfer| transfer.is_running()) {
            Some(transfer) => transfer.state = State::Running(Some(task)),
            // It was put back or cancelled in between.
            None => task.abort(),
        }
    }

    /// Looks how far those are that run.
    pub(super) fn measure(&mut self, now: Instant) {
        for transfer in self.transfers.values_mut().filter(|transfer| transfer.is_running()) {
            let bytes_received = transfer.progress.borrow().bytes_received;
            transfer.meter.note(now, bytes_received);
        }
    }

    /// Notes how an attempt ended, unless it is not the one under way any more.
    pub(super) fn ended(
        &mut self,
        image: ImageId,
        attempt: u64,
        result: Result<(), Failure>,
        now: Instant,
        spread: u8,
    ) {
        let turn = self.next_turn();
        let ended = self.transfers.get_mut(&image).filter(|transfer| transfer.attempt == attempt);
        let Some(transfer) = ended.filter(|transfer| transfer.is_running()) else { return };
        match result {
            Ok(()) => {
                self.transfers.remove(&image);
            }
            Err(failure) => {
                transfer.failures = transfer.failures.saturating_add(1);
                transfer.turn = turn;
                let doubled = backoff::doubled(transfer.failures, BACKOFF_MIN, BACKOFF_MAX);
                let retry_at = failure.is_retried().then(|| now + backoff::spread(doubled, spread));
                transfer.state = State::Failed { retry_at };
                transfer.failure = Some(failure);
            }
        }
    }

    /// Puts back what runs: whoever ran it is gone.
    pub(super) fn requeue_running(&mut self) {
        self.transfers.values_mut().filter(|transfer| transfer.is_running()).for_each(Transfer::put_back);
    }

    /// When the next failed transfer is due or the next deadline passes, at the latest point of which nobody else would say.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let retries = self.transfers.values().filter_map(|transfer| match &transfer.state {
            // One that is due already waits for a place, which whoever ends makes known.
            State::Failed { retry_at: Some(retry_at) } if *retry_at > now => Some(*retry_at),
            _ => None,
        });
        let deadlines = self.transfers.values().filter_map(|transfer| transfer.deadline);
        retries.chain(deadlines).min()
    }
}

#[cfg(test)]
mod tests;
