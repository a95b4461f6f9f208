//! The simulator's side of `runtime/`: virtual time, tasks of the current life, and work that takes the time of a disk.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_sim::{SimJoinError, SimRuntime, SimSleep, SimTimeout};
use tokio::sync::{mpsc, oneshot};

pub(crate) use super::life::HostInstant as Instant;
use super::life::{Life, current, virtual_ns};
pub(crate) use super::watch;

/// openraft's runtime: [`SimRuntime`], with every task in the life that started it and every clock that of its host.
#[derive(Debug)]
pub(crate) struct Runtime;

/// A deadline has passed.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// The answer of a task.
pub(crate) struct JoinHandle<T>(oneshot::Receiver<T>);

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, SimJoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.map_err(|_| SimJoinError::Cancelled))
    }
}

impl AsyncRuntime for Runtime {
    type JoinError = SimJoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = SimSleep;
    type Instant = Instant;
    type TimeoutError = openraft_rt_sim::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = SimTimeout<T>;
    type ThreadLocalRng = <SimRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <SimRuntime as AsyncRuntime>::Mpsc;
    type Watch = <SimRuntime as AsyncRuntime>::Watch;
    type Oneshot = <SimRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <SimRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(task: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(task)
    }

    fn sleep(time: Duration) -> SimSleep {
        sleep(time)
    }

    fn sleep_until(deadline: Instant) -> SimSleep {
        SimRuntime::sleep(deadline.wait())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(time: Duration, future: F) -> SimTimeout<F> {
        Self::timeout_at(Instant::now() + time, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Instant, future: F) -> SimTimeout<F> {
        SimRuntime::timeout(deadline.wait(), future)
    }

    fn is_panic(error: &SimJoinError) -> bool {
        matches!(error, SimJoinError::Panic(_))
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRuntime::thread_rng()
    }

    fn new(_: usize) -> Self {
        Self
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        SimRuntime::new(1).block_on(future)
    }
}

/// Starts a task in the current life, or outside of all.
pub(crate) fn spawn<T>(task: T) -> JoinHandle<T::Output>
where
    T: Future + Send + 'static,
    T::Output: Send + 'static,
{
    JoinHandle(match current() {
        Some(life) => life.spawn(task),
        None => {
            let (done, answer) = oneshot::channel();
            drop(SimRuntime::spawn(async move {
                // Whoever started it may not care how it ends.
                let _ = done.send(task.await);
            }));
            answer
        }
    })
}

pub(crate) fn sleep(time: Duration) -> SimSleep {
    SimRuntime::sleep((Instant::now() + time).wait())
}

pub(crate) async fn timeout<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    timeout_at(Instant::now() + time, future).await
}

/// The answer of a future, if it comes before the deadline.
pub(crate) async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut late = pin!(SimRuntime::sleep(deadline.wait()));
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Ok(answer)),
        Poll::Pending => late.as_mut().poll(context).map(|()| Err(Elapsed)),
    })
    .await
}

/// A task that ends together with whoever holds this.
pub(crate) struct Tied(#[expect(dead_code, reason = "its drop is what counts")] oneshot::Sender<()>);

/// Starts a task that ends with its holder.
pub(crate) fn spawn_tied(task: impl Future<Output = ()> + Send + 'static) -> Tied {
    let (tie, untied) = oneshot::channel();
    drop(spawn(async move {
        tokio::select! {
            biased;
            _ = untied => {}
            () = task => {}
        }
    }));
    Tied(tie)
}

/// Waits until what the current host's disk was told to flush is flushed.
async fn flushed(life: Option<&Arc<Life>>) {
    let until = life.map_or(0, |life| life.host.disk.busy_until());
    SimRuntime::sleep(Duration::from_nanos(until.saturating_sub(virtual_ns()))).await;
}

/// Does work that blocks at once, and takes the time that the disk takes for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let life = current();
    let done = work();
    flushed(life.as_ref()).await;
    Ok(done)
}

/// Works off a queue in a task: `write` at once, `answer` when the disk has flushed what was written.
pub(crate) fn work_off<Job: Send + Sync + 'static, Done: Send + 'static>(
    _: &str,
    mut queue: mpsc::UnboundedReceiver<Job>,
    batch_max: usize,
    mut write: impl FnMut(&[Job]) -> Done + Send + 'static,
    mut answer: impl FnMut(Vec<Job>, Done) + Send + 'static,
) -> io::Result<()> {
    let life = current();
    drop(spawn(async move {
        while let Some(first) = queue.recv().await {
            let mut batch = vec![first];
            while batch.len() < batch_max {
                let Ok(next) = queue.try_recv() else { break };
                batch.push(next);
            }
            let done = write(&batch);
            flushed(life.as_ref()).await;
            answer(batch, done);
        }
    }));
    Ok(())
}
