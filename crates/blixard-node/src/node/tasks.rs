//! Background tasks: restarted with backoff when they panic, counted, and ended together with the node.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::metrics::Metrics;

/// The first wait before a task that panicked is started again; it doubles with each further panic.
const RESTART_WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest wait.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(30);

/// The tasks of one node. Dropping it ends them.
pub(crate) struct Tasks {
    set: JoinSet<()>,
    metrics: Arc<Metrics>,
}

impl Tasks {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { set: JoinSet::new(), metrics }
    }

    /// Runs a task for as long as the node runs, anew after each panic.
    pub(crate) fn keep<F, Fut>(&mut self, name: &'static str, mut start: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let metrics = self.metrics.clone();
        // There from the start, so that the first restart is a change.
        drop(metrics.task_restarts.get_or_create(&[("task", name.into())]));
        self.set.spawn(async move {
            let mut wait = RESTART_WAIT_MIN;
            loop {
                // A set of one, so that the task ends with this one.
                let mut run = JoinSet::new();
                run.spawn(start());
                match run.join_next().await {
                    Some(Err(error)) if error.is_panic() => {
                        metrics.task_restarts.get_or_create(&[("task", name.into())]).inc();
                        tracing::error!(task = name, %error, "a background task panicked; it is started again");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RESTART_WAIT_MAX);
                    }
                    _ => return,
                }
            }
        });
    }

    /// Ends all tasks and waits until they have ended.
    pub(crate) async fn end(&mut self) {
        self.set.shutdown().await;
    }
}
