//! The task that works the queue off, and the one that watches over it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::ImageId;
use futures::FutureExt;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::{Failure, FailureClass, Shared};
use crate::backoff::random_byte;
use crate::metrics::outcome;

/// The pause before a worker that panicked is started again: whatever it met may still be there.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked how far those are that run, for their rates.
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// Works the queue off for ever. A panic of the worker is logged and counted, and the worker started again; transfers that
/// it ran are queued again.
pub(super) async fn supervise(shared: Arc<Shared>) {
    loop {
        // In a set of its own, so that the worker ends with this task.
        let mut worker = JoinSet::new();
        worker.spawn(work(shared.clone()));
        match worker.join_next().await {
            Some(Err(error)) if error.is_panic() => {
                shared.metrics.transfer_panics.inc();
                tracing::error!(%error, "the transfer queue's worker panicked; it is started again");
            }
            // The runtime is shutting down.
            _ => return,
        }
        tokio::time::sleep(RESTART_PAUSE).await;
        shared.queue().requeue_running();
    }
}

async fn work(shared: Arc<Shared>) {
    let mut running = JoinSet::new();
    let mut measure = tokio::time::interval(MEASURE_EVERY);
    measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        give_up_late(&shared);
        start_due(&shared, &mut running);
        let due_at = shared.queue().next_due(Instant::now());
        let due = async {
            match due_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.work.notified() => {}
            () = due => {}
            _ = measure.tick(), if !running.is_empty() => shared.queue().measure(Instant::now()),
            Some(ended) = running.join_next() => {
                // One that was cancelled ends without a result, and nobody waits for it.
                if let Ok(ended) = ended {
                    end(&shared, ended);
                }
            }
        }
    }
}

type Ended = (ImageId, u64, Result<(), Failure>);

/// Gives up what was to be here by now.
fn give_up_late(shared: &Shared) {
    let expired = shared.queue().expire(Instant::now());
    if expired.is_empty() {
        return;
    }
    for image in &expired {
        let class = FailureClass::Deadline.word();
        shared.metrics.transfer_failures.get_or_create(&[("class", class.into())]).inc();
        tracing::warn!(image = %image.short(), "the deadline of a transfer passed before the image was here");
    }
    shared.expired().extend(expired);
    shared.moved();
}

fn start_due(shared: &Arc<Shared>, running: &mut JoinSet<Ended>) {
    loop {
        let Some((attempt, order)) = shared.queue().start(Instant::now()) else { return };
        let image = order.image;
        tracing::debug!(image = %image.short(), sources = order.sources.borrow().len(), "transfer begins");
        let fetch = std::panic::AssertUnwindSafe((shared.fetch)(order)).catch_unwind();
        let panicked = shared.clone();
        let task = running.spawn(async move {
            let result = fetch.await.unwrap_or_else(|_| {
                panicked.metrics.transfer_panics.inc();
                Err(Failure::storage("the transfer panicked; the log says where"))
            });
            (image, attempt, result)
        });
        shared.queue().started(image, attempt, task);
        shared.moved();
    }
}

fn end(shared: &Shared, (image, attempt, result): Ended) {
    shared.metrics.fetches.get_or_create(&outcome(result.is_ok())).inc();
    match &result {
        Ok(()) => tracing::info!(image = %image.short(), "image is here"),
        Err(failure) => {
            let Failure { class, reason } = failure;
            shared.metrics.transfer_failures.get_or_create(&[("class", class.word().into())]).inc();
            tracing::warn!(image = %image.short(), reason, is_retried = failure.is_retried(), "transfer failed");
        }
    }
    shared.queue().ended(image, attempt, result, Instant::now(), random_byte());
    shared.moved();
}
