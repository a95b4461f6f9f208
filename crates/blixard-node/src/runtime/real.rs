//! Tokio's clock and tasks, and threads for work that waits for a disk.

use std::future::Future;
use std::io;

use tokio::sync::mpsc;
pub(crate) use tokio::{
    spawn,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

/// A task that ends together with whoever holds this.
#[derive(Debug)]
pub(crate) struct Tied(tokio::task::JoinHandle<()>);

impl Drop for Tied {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts a task that ends with its holder.
pub(crate) fn spawn_tied(task: impl Future<Output = ()> + Send + 'static) -> Tied {
    Tied(tokio::spawn(task))
}

/// Does work that blocks, on a thread that may.
///
/// # Errors
/// When the work panicked, or the runtime is being shut down.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Works off a queue on a thread of its own, several jobs at a time when they come fast: `write` makes a batch durable,
/// `answer` then tells who waits for it. It ends, and drops both, when the last sender is gone.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn work_off<Job: Send + 'static, Done>(
    name: &str,
    mut queue: mpsc::UnboundedReceiver<Job>,
    batch_max: usize,
    mut write: impl FnMut(&[Job]) -> Done + Send + 'static,
    mut answer: impl FnMut(Vec<Job>, Done) + Send + 'static,
) -> io::Result<()> {
    let work = move || {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < batch_max {
                let Ok(next) = queue.try_recv() else { break };
                batch.push(next);
            }
            let done = write(&batch);
            answer(batch, done);
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(work)?;
    Ok(())
}
