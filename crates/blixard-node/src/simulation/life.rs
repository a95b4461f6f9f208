//! Hosts, and the lives of processes on them.
//!
//! A host has a clock of its own, which runs fast or slow and shows a wrong time of day, and a disk. A process that is started
//! on it has one life, which owns all of its tasks: whatever a task starts belongs to the same life. A life that is ended is
//! gone between two steps of its tasks, as by `kill -9`, and one that is paused takes no step until it is resumed, as by
//! SIGSTOP or a host that swaps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft_rt_sim::{SimInstant, SimRuntime};
use tokio::sync::oneshot;

use super::disk::Disk;

/// Parts per million of a clock that runs right.
pub(crate) const RIGHT_PPM: u64 = 1_000_000;
/// What the wall clocks show when a run begins, in milliseconds since 1970, before each host's own error.
const WALL_START_MS: u64 = 1_800_000_000_000;

/// Nanoseconds of virtual time since the run began.
pub(crate) fn virtual_ns() -> u64 {
    SimInstant::try_now().map_or(0, |now| u64::try_from(now.elapsed_since_start().as_nanos()).unwrap_or(u64::MAX))
}

/// Locks what only one thread ever holds; a panic of simulated code leaves it as it was.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine.
pub(crate) struct Host {
    pub(crate) number: u64,
    /// How fast its clock runs, in parts per million of the true rate.
    pub(crate) rate_ppm: u64,
    /// How far its wall clock is ahead, in milliseconds.
    pub(crate) ahead_ms: u64,
    pub(crate) disk: Disk,
}

impl Host {
    /// What its monotonic clock shows at a virtual time.
    fn shown_ns(&self, virtual_ns: u64) -> u64 {
        u64::try_from(u128::from(virtual_ns) * u128::from(self.rate_ppm) / u128::from(RIGHT_PPM)).unwrap_or(u64::MAX)
    }

    /// The first virtual time at which its monotonic clock shows at least so much.
    fn virtual_ns(&self, shown_ns: u64) -> u64 {
        let exact = (u128::from(shown_ns) * u128::from(RIGHT_PPM)).div_ceil(u128::from(self.rate_ppm));
        u64::try_from(exact).unwrap_or(u64::MAX)
    }
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Doings {
    is_over: bool,
    is_paused: bool,
    /// Tasks that wait for the end of a pause.
    held: Vec<Waker>,
    next_task: u64,
    /// Nothing for the task that is taking a step.
    tasks: BTreeMap<u64, Option<Work>>,
    panics: Vec<String>,
}

/// One run of a process on a host.
pub(crate) struct Life {
    pub(crate) host: Arc<Host>,
    doings: Mutex<Doings>,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Life>>> = const { RefCell::new(None) };
}

/// The life to which the running task belongs; none for what stands outside of all hosts.
pub(crate) fn current() -> Option<Arc<Life>> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Makes a life the current one until it is dropped.
struct Enter(Option<Arc<Life>>);

impl Enter {
    fn new(life: Arc<Life>) -> Self {
        Self(CURRENT.with(|current| current.borrow_mut().replace(life)))
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        let before = self.0.take();
        CURRENT.with(|current| *current.borrow_mut() = before);
    }
}

impl Life {
    pub(crate) fn begin(host: Arc<Host>) -> Arc<Self> {
        Arc::new(Self { host, doings: Mutex::default() })
    }

    pub(crate) fn is_over(&self) -> bool {
        lock(&self.doings).is_over
    }

    pub(crate) fn is_paused(&self) -> bool {
        lock(&self.doings).is_paused
    }

    /// What panicked in this life. Nothing in a node may.
    pub(crate) fn take_panics(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.doings).panics)
    }

    /// Runs a task as part of this life. The answer never comes when the life ends first.
    pub(crate) fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        task: impl Future<Output = T> + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (done, answer) = oneshot::channel();
        let work: Work = Box::pin(async move {
            // Whoever started it may not care how it ends.
            let _ = done.send(task.await);
        });
        let mut doings = lock(&self.doings);
        if doings.is_over {
            return answer;
        }
        let number = doings.next_task;
        doings.next_task += 1;
        doings.tasks.insert(number, Some(work));
        drop(doings);
        drop(SimRuntime::spawn(Step { life: self.clone(), number }));
        answer
    }

    /// Ends it: no task takes another step. What they held is dropped, out of reach of the disk.
    pub(crate) fn end(self: &Arc<Self>) {
        let (tasks, held) = {
            let mut doings = lock(&self.doings);
            doings.is_over = true;
            (std::mem::take(&mut doings.tasks), std::mem::take(&mut doings.held))
        };
        let _entered = Enter::new(self.clone());
        drop(tasks);
        held.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn pause(&self) {
        lock(&self.doings).is_paused = true;
    }

    pub(crate) fn resume(&self) {
        let held = {
            let mut doings = lock(&self.doings);
            doings.is_paused = false;
            std::mem::take(&mut doings.held)
        };
        held.into_iter().for_each(Waker::wake);
    }

    /// The time of day that its host shows.
    pub(crate) fn wall_ms(&self) -> u64 {
        WALL_START_MS + self.host.ahead_ms + self.host.shown_ns(virtual_ns()) / 1_000_000
    }
}

/// A task of a life, as the executor sees it.
struct Step {
    life: Arc<Life>,
    number: u64,
}

impl Future for Step {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut work = {
            let mut doings = lock(&self.life.doings);
            if doings.is_over {
                return Poll::Ready(());
            }
            if doings.is_paused {
                doings.held.push(context.waker().clone());
                return Poll::Pending;
            }
            match doings.tasks.get_mut(&self.number).and_then(Option::take) {
                Some(work) => work,
                None => return Poll::Ready(()),
            }
        };
        let _entered = Enter::new(self.life.clone());
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        let mut doings = lock(&self.life.doings);
        match polled {
            Ok(Poll::Pending) => {
                // A life that ended within this very step has no place for it any more.
                if let Some(place) = doings.tasks.get_mut(&self.number) {
                    *place = Some(work);
                    return Poll::Pending;
                }
            }
            Ok(Poll::Ready(())) => drop(doings.tasks.remove(&self.number)),
            Err(panic) => {
                doings.tasks.remove(&self.number);
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                doings.panics.push(text.unwrap_or_else(|| "a panic without words".into()));
            }
        }
        drop(doings);
        // Outside of the lock: what it holds may end tasks of its own.
        drop(work);
        Poll::Ready(())
    }
}

/// A point on the clock of the current host, in nanoseconds that it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HostInstant(u64);

/// So far from the beginning that a wait can be taken from any instant.
const EPOCH_NS: u64 = 86_400 * 1_000_000_000;

impl HostInstant {
    pub(crate) fn now() -> Self {
        let now = virtual_ns();
        Self(EPOCH_NS + current().map_or(now, |life| life.host.shown_ns(now)))
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Self::now() - *self
    }

    pub(crate) fn saturating_duration_since(&self, earlier: Self) -> Duration {
        *self - earlier
    }

    /// How long, in virtual time, until the current host's clock shows it.
    pub(super) fn wait(self) -> Duration {
        let shown_ns = self.0.saturating_sub(EPOCH_NS);
        let at = current().map_or(shown_ns, |life| life.host.virtual_ns(shown_ns));
        Duration::from_nanos(at.saturating_sub(virtual_ns()))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl std::ops::Add<Duration> for HostInstant {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(nanos(time)))
    }
}

impl std::ops::AddAssign<Duration> for HostInstant {
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

impl std::ops::Sub<Duration> for HostInstant {
    type Output = Self;
    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(time)))
    }
}

impl std::ops::SubAssign<Duration> for HostInstant {
    fn sub_assign(&mut self, time: Duration) {
        *self = *self - time;
    }
}

impl std::ops::Sub for HostInstant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl openraft::Instant for HostInstant {
    fn now() -> Self {
        Self::now()
    }
}
