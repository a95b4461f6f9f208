//! Which transfer is next. Plain data: the time comes in as an argument, and nothing waits.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use blixard_core::{ImageId, Manifest};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Order, Priority, TransferState, TransferStatus};
use crate::images::{Holder, Progress};

/// Transfers at once. Each fetches from several sources already: more of them would only all be slow.
pub(super) const RUNNING_MAX: usize = 3;
/// Copies at once: one place is left for an image that a vm waits for.
pub(super) const COPIES_MAX: usize = RUNNING_MAX - 1;
/// The wait after a first failure; it doubles with each further one.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait: how late, at worst, it shows that a source is back.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Transfer {
    manifest: Manifest,
    sources: watch::Sender<Vec<Holder>>,
    priority: Priority,
    /// Tells a transfer from an earlier one of the same image; among equals the lower is first.
    number: u64,
    progress: watch::Sender<Progress>,
    state: State,
    failures: u32,
    /// Why the last attempt that ended has failed.
    failure: Option<String>,
}

#[derive(Debug)]
enum State {
    Queued,
    Running(Option<AbortHandle>),
    Failed { retry_at: Instant },
}

impl Transfer {
    fn is_running(&self) -> bool {
        matches!(self.state, State::Running(_))
    }

    fn is_due(&self, now: Instant) -> bool {
        match &self.state {
            State::Queued => true,
            State::Running(_) => false,
            State::Failed { retry_at } => *retry_at <= now,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    transfers: BTreeMap<ImageId, Transfer>,
    last_number: u64,
}

impl Queue {
    /// Whether anything changed.
    pub(super) fn want(
        &mut self,
        image: ImageId,
        manifest: Manifest,
        sources: Vec<Holder>,
        priority: Priority,
    ) -> bool {
        let Some(known) = self.transfers.get_mut(&image) else {
            self.last_number += 1;
            let progress = watch::Sender::new(Progress { bytes_total: manifest.bytes(), ..Progress::default() });
            let (number, state, sources) = (self.last_number, State::Queued, watch::Sender::new(sources));
            let transfer =
                Transfer { manifest, sources, priority, number, progress, state, failures: 0, failure: None };
            self.transfers.insert(image, transfer);
            return true;
        };
        let is_raised = priority > known.priority;
        let has_new_source = sources.iter().any(|source| !known.sources.borrow().contains(source));
        known.priority = known.priority.max(priority);
        if *known.sources.borrow() != sources {
            known.sources.send_replace(sources);
        }
        if (is_raised || has_new_source) && !known.is_running() {
            known.state = State::Queued;
        }
        is_raised || has_new_source
    }

    /// Whether it was wanted.
    pub(super) fn cancel(&mut self, image: ImageId) -> bool {
        let Some(transfer) = self.transfers.remove(&image) else { return false };
        if let State::Running(Some(task)) = transfer.state {
            task.abort();
        }
        true
    }

    pub(super) fn status(&self, image: ImageId) -> Option<TransferStatus> {
        let transfer = self.transfers.get(&image)?;
        let state = match &transfer.state {
            State::Queued => TransferState::Queued,
            State::Running(_) => TransferState::Running,
            State::Failed { retry_at } => TransferState::Failed { attempts: transfer.failures, retry_at: *retry_at },
        };
        let progress = *transfer.progress.borrow();
        // Until something comes, a further attempt has not done better than the one before.
        let delivers = transfer.is_running() && progress.bytes_received > 0;
        let failure = transfer.failure.clone().filter(|_| !delivers);
        Some(TransferStatus { priority: transfer.priority, state, progress, failure })
    }

    /// How many transfers there are in each state.
    pub(super) fn counts(&self) -> [(&'static str, i64); 3] {
        let mut counts = [("queued", 0), ("running", 0), ("failed", 0)];
        for transfer in self.transfers.values() {
            let at = match transfer.state {
                State::Queued => 0,
                State::Running(_) => 1,
                State::Failed { .. } => 2,
            };
            counts[at].1 += 1;
        }
        counts
    }

    /// The next transfer to start now, if there is one and room for it; from here on it counts as running.
    pub(super) fn start(&mut self, now: Instant) -> Option<(u64, Order)> {
        let running = self.transfers.values().filter(|transfer| transfer.is_running());
        let copies = running.clone().filter(|transfer| transfer.priority == Priority::Copy).count();
        let (has_room, has_copy_room) = (running.count() < RUNNING_MAX, copies < COPIES_MAX);
        let may_start = |transfer: &Transfer| {
            transfer.is_due(now) && has_room && (has_copy_room || transfer.priority > Priority::Copy)
        };
        let due = self.transfers.iter_mut().filter(|(_, transfer)| may_start(transfer));
        let (image, next) = due.min_by_key(|(_, transfer)| (std::cmp::Reverse(transfer.priority), transfer.number))?;
        next.state = State::Running(None);
        next.progress.send_modify(|progress| progress.bytes_received = 0);
        let (manifest, sources) = (next.manifest.clone(), next.sources.subscribe());
        Some((next.number, Order { image: *image, manifest, sources, progress: next.progress.clone() }))
    }

    /// Notes the task of a transfer that was started.
    pub(super) fn started(&mut self, image: ImageId, number: u64, task: AbortHandle) {
        match self.transfers.get_mut(&image).filter(|transfer| transfer.number == number) {
            Some(transfer) => transfer.state = State::Running(Some(task)),
            // It was cancelled in between.
            None => task.abort(),
        }
    }

    /// Notes how a transfer ended. One that was cancelled is not known any more.
    pub(super) fn ended(&mut self, image: ImageId, number: u64, result: Result<(), String>, now: Instant, spread: u8) {
        let Some(transfer) = self.transfers.get_mut(&image).filter(|transfer| transfer.number == number) else {
            return;
        };
        match result {
            Ok(()) => {
                self.transfers.remove(&image);
            }
            Err(reason) => {
                transfer.failures = transfer.failures.saturating_add(1);
                transfer.failure = Some(reason);
                transfer.state = State::Failed { retry_at: now + backoff(transfer.failures, spread) };
            }
        }
    }

    /// Puts back what runs: whoever ran it is gone.
    pub(super) fn requeue_running(&mut self) {
        for transfer in self.transfers.values_mut().filter(|transfer| transfer.is_running()) {
            transfer.state = State::Queued;
        }
    }

    /// When the next failed transfer is due, at the latest point of which nobody else would say.
    pub(super) fn next_retry(&self, now: Instant) -> Option<Instant> {
        let retries = self.transfers.values().filter_map(|transfer| match &transfer.state {
            // One that is due already waits for room, which whoever ends makes known.
            State::Failed { retry_at } if *retry_at > now => Some(*retry_at),
            _ => None,
        });
        retries.min()
    }
}

/// The wait after so many failures in a row, spread by up to a half, so that nodes that lost a source together do not come
/// back to it together.
fn backoff(failures: u32, spread: u8) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX);
    full / 2 + (full / 2) * u32::from(spread) / 255
}

#[cfg(test)]
mod tests {
    use blixard_core::{BlobHash, EndpointId, Part};

    use super::*;
    use crate::images::tests::{disk, whole};

    fn image(number: u8) -> (ImageId, Manifest) {
        let manifest = disk(Part { hash: BlobHash([number; 32]), bytes: 7 });
        (manifest.id(), manifest)
    }

    fn source(number: u8) -> Holder {
        whole(EndpointId([number; 32]))
    }

    /// Wants an image of that number from source 1.
    fn want(queue: &mut Queue, number: u8, priority: Priority) -> ImageId {
        let (id, manifest) = image(number);
        queue.want(id, manifest, vec![source(1)], priority);
        id
    }

    fn start(queue: &mut Queue, now: Instant) -> Option<ImageId> {
        queue.start(now).map(|(_, order)| order.image)
    }

    #[test]
    fn the_urgent_come_first_then_the_older() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let copies = [1, 2, 3].map(|number| want(&mut queue, number, Priority::Copy));
        let urgent = [4, 5].map(|number| want(&mut queue, number, Priority::VmWaiting));
        assert_eq!(start(&mut queue, now), Some(urgent[0]));
        assert_eq!(start(&mut queue, now), Some(urgent[1]));
        assert_eq!(start(&mut queue, now), Some(copies[0]));
        assert_eq!(start(&mut queue, now), None, "no more than {RUNNING_MAX} at once");
    }

    #[test]
    fn copies_leave_room_for_a_vm() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let copies: Vec<_> = (0..4).map(|number| want(&mut queue, number, Priority::Copy)).collect();
        for _ in 0..COPIES_MAX {
            assert!(start(&mut queue, now).is_some());
        }
        assert_eq!(start(&mut queue, now), None);
        assert_eq!(want(&mut queue, 3, Priority::VmWaiting), copies[3]);
        assert_eq!(start(&mut queue, now), Some(copies[3]), "its priority was raised");
        want(&mut queue, 2, Priority::VmWaiting);
        assert_eq!(start(&mut queue, now), None);
    }

    #[test]
    fn a_failed_one_waits_and_a_new_source_ends_the_wait() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let id = want(&mut queue, 1, Priority::Copy);
        let (number, _) = queue.start(now).expect("it is queued");
        queue.ended(id, number, Err("gone".into()), now, 255);
        let status = queue.status(id).expect("it is known");
        let retry_at = now + BACKOFF_MIN;
        assert_eq!(status.state, TransferState::Failed { attempts: 1, retry_at });
        assert_eq!(status.failure.as_deref(), Some("gone"));
        assert_eq!(queue.next_retry(now), Some(retry_at));
        assert_eq!(start(&mut queue, now), None);
        let (_, manifest) = image(1);
        assert!(!queue.want(id, manifest.clone(), vec![source(1)], Priority::Copy), "nothing is new");
        assert_eq!(start(&mut queue, now), None);
        assert!(queue.want(id, manifest, vec![source(2)], Priority::Copy));
        let (number, order) = queue.start(now).expect("a new source is tried at once");
        assert_eq!(*order.sources.borrow(), [source(2)]);
        assert!(queue.want(id, order.manifest, vec![source(2), source(3)], Priority::Copy));
        assert_eq!(order.sources.borrow().len(), 2, "one that runs learns of new sources");
        queue.ended(id, number, Err("gone".into()), now, 0);
        assert_eq!(queue.next_retry(now), Some(now + BACKOFF_MIN), "half of twice the first wait");
        assert_eq!(start(&mut queue, now + BACKOFF_MIN), Some(id));
    }

    #[test]
    fn a_failure_is_said_until_something_comes() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let id = want(&mut queue, 1, Priority::Copy);
        let failure = |queue: &Queue| queue.status(id).and_then(|status| status.failure);
        let receive = |queue: &Queue| queue.transfers[&id].progress.send_modify(|progress| progress.bytes_received = 9);
        let (number, _) = queue.start(now).expect("it is queued");
        receive(&queue);
        assert_eq!(failure(&queue), None);
        queue.ended(id, number, Err("gone".into()), now, 255);
        assert_eq!(failure(&queue).as_deref(), Some("gone"));
        queue.start(now + BACKOFF_MIN).expect("it is due");
        assert_eq!(failure(&queue).as_deref(), Some("gone"), "what the attempt before received does not count");
        receive(&queue);
        assert_eq!(failure(&queue), None);
    }

    #[test]
    fn the_end_of_a_cancelled_transfer_does_not_touch_a_later_one() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let id = want(&mut queue, 1, Priority::Copy);
        let (old, _) = queue.start(now).expect("it is queued");
        assert!(queue.cancel(id) && !queue.cancel(id));
        assert_eq!(queue.status(id), None);
        want(&mut queue, 1, Priority::Copy);
        queue.ended(id, old, Ok(()), now, 0);
        assert_eq!(queue.status(id).map(|status| status.state), Some(TransferState::Queued));
    }

    #[test]
    fn backoff_doubles_within_its_bounds() {
        for failures in 1..100 {
            for spread in [0, 1, 128, 255] {
                let wait = backoff(failures, spread);
                assert!(wait >= BACKOFF_MIN / 2 && wait <= BACKOFF_MAX, "{failures} failures wait {wait:?}");
            }
        }
        assert_eq!(backoff(3, 255), BACKOFF_MIN * 4);
        assert_eq!(backoff(u32::MAX, 255), BACKOFF_MAX);
    }
}
