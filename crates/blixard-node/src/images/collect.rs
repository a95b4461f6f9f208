//! When blobs that no image keeps are removed.
//!
//! The store removes them itself, in a loop that calls back before each run and ends for good when a run fails. The
//! callback is used for three things: it waits until a run is due, it keeps a run from overlapping with a change of what
//! is kept (the store lists first the names and then the temporary guards, so that a blob that goes from one to the other
//! in between would be lost), and it shows whether the loop is still alive.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use iroh_blobs::Hash;
use iroh_blobs::store::{ProtectCb, ProtectOutcome};
use tokio::sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};

/// A run reads names and deletes files, which takes milliseconds; one that takes this long has ended without saying so.
const RUN_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub(super) struct Collector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    every: Duration,
    due: Notify,
    gate: Arc<RwLock<()>>,
    run: Mutex<Option<Run>>,
    /// How often the store was ready for a run, which is one more than have ended.
    ended: watch::Sender<u64>,
}

#[derive(Debug)]
struct Run {
    since: Instant,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Collector {
    pub(super) fn new(every: Duration) -> Self {
        let shared = Shared {
            every,
            due: Notify::new(),
            gate: Arc::default(),
            run: Mutex::new(None),
            ended: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Lets a run begin at once.
    pub(super) fn hurry(&self) {
        self.shared.due.notify_one();
    }

    /// Has a run made that begins after this call, and waits until it has ended.
    pub(super) async fn run_now(&self) {
        let mut ended = self.shared.ended.subscribe();
        let wanted = {
            // A run that is under way may have listed the names before the last of them was removed.
            let run = self.shared.run.lock().expect("no holder of this lock panics");
            *ended.borrow() + 1 + u64::from(run.is_some())
        };
        self.hurry();
        // A store that has ended its loop never comes to it; that is told elsewhere.
        let _ = tokio::time::timeout(RUN_MAX, ended.wait_for(|ended| *ended >= wanted)).await;
    }

    /// Whether the store's loop still runs.
    pub(super) fn is_alive(&self) -> bool {
        let run = self.shared.run.lock().expect("no holder of this lock panics");
        run.as_ref().is_none_or(|run| run.since.elapsed() < RUN_MAX)
    }

    /// Waits until no run is under way; none begins while the guard is held. There is no guard to wait for once the
    /// store's loop has ended, and then none is needed.
    pub(super) async fn hold(&self) -> Option<OwnedRwLockReadGuard<()>> {
        if !self.is_alive() {
            return None;
        }
        match tokio::time::timeout(RUN_MAX, self.shared.gate.clone().read_owned()).await {
            Ok(guard) => Some(guard),
            Err(_) => {
                tracing::error!("the blob store no longer removes unused blobs: restart the node to free their space");
                None
            }
        }
    }

    /// What the store calls before each run.
    pub(super) fn before_each_run(&self) -> ProtectCb {
        let shared = self.shared.clone();
        Arc::new(move |_: &mut HashSet<Hash>| {
            let shared = shared.clone();
            let wait: Pin<Box<dyn Future<Output = ProtectOutcome> + Send + Sync>> = Box::pin(async move {
                shared.wait().await;
                ProtectOutcome::Continue
            });
            wait
        })
    }
}

impl Shared {
    async fn wait(&self) {
        // Being called again is how the end of the last run shows.
        {
            let mut run = self.run.lock().expect("no holder of this lock panics");
            *run = None;
            self.ended.send_modify(|ended| *ended += 1);
        }
        tokio::select! {
            () = tokio::time::sleep(self.every) => {}
            () = self.due.notified() => {}
        }
        let gate = self.gate.clone().write_owned().await;
        let run = Run { since: Instant::now(), _gate: gate };
        *self.run.lock().expect("no holder of this lock panics") = Some(run);
    }
}
