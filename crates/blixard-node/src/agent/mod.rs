//! Looks at this host, compares it with the replicated state, and acts: observe, reconcile, execute, report.
//!
//! The room owns the hypervisor driver and this node's part in vms and images. It decides nothing: every plan is
//! [`blixard_core::reconcile`]'s. It reads its own replica, so nobody sends it orders; it proposes reports only when what it
//! sees differs from what the state says. It does not act before this node has once, in this process, caught up with the
//! cluster: to an older replica a vm created since would look like one to remove. Its task ends with the node; guests go on.
//!
//! ```text
//!  state changed | a guest ended | an order is done | a transfer moved | something falls due
//!        \______________|________________|__________________|________________/
//!                                    observe -> reconcile -> execute
//! ```

mod cache;
mod execute;
mod launch;
mod lazily;
mod observe;
mod requests;
mod sources;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blixard_core::{Actor, Ages, Change, Command, ImageId, LocalImage, LocalVmState, NodeId, Note, UnixMs, VmId};
use blixard_hypervisor::{ConsoleError, Driver, LogChunk, LogError, LogPosition, LogSpan, ObservedVm};
use tokio::sync::Notify;

use crate::clock;
use crate::images::{Holder, Images};
use crate::lazy::LazyDisks;
use crate::metrics::{AGENT_LOOP, Metrics};
use crate::raft::{ConsensusError, Raft};
use crate::transfers::{TransferStatus, Transfers};
pub(crate) use cache::{CachedImage, MakeRoomError};
pub(crate) use verify::{Verification, VerifyState};

/// How often the agent looks though nothing tells it to. It bounds how long a change that went unnoticed stays so.
const TICK: Duration = Duration::from_secs(5);
/// How long the thread that waits for guests to end waits before it looks whether the agent is still there.
const DRIVER_WAIT: Duration = Duration::from_secs(1);
/// How often the blob store is asked whether it works, which costs it a write.
const HEALTH_EVERY: Duration = Duration::from_secs(30);
/// Looks are at least this far apart, so that a burst of changes costs a few looks and not one each.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The agent of one node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    raft: Raft,
    images: Images,
    transfers: Transfers,
    disks: LazyDisks,
    driver: Arc<dyn Driver>,
    metrics: Arc<Metrics>,
    wake: Notify,
    /// From here on time is counted without regard to the wall clock.
    begun: Instant,
    desk: Mutex<Desk>,
    /// Held while room is made: whoever is next may find that there is some.
    making_room: tokio::sync::Mutex<()>,
    /// Held while an image is read again: one at a time, because it takes all that a disk has.
    verifying: Arc<tokio::sync::Mutex<()>>,
    /// Held while reports are being proposed: one batch at a time, so that none is proposed twice.
    reporting: Arc<tokio::sync::Mutex<()>>,
}

/// What is under way. Lost with the process, and then found again by looking.
#[derive(Default)]
struct Desk {
    orders: BTreeMap<VmId, execute::OrderInHand>,
    launch_failures: BTreeMap<VmId, observe::LaunchFailure>,
    importing: BTreeSet<ImageId>,
    /// Images that are being given up.
    leaving: BTreeSet<ImageId>,
    /// Images that vms waited for, until they are launched.
    missed: BTreeSet<ImageId>,
    /// Whether there are vms here that the state does not know: what they use, nobody can say.
    has_strays: bool,
    /// When it was last looked whether images take too much.
    cache_seen: Option<Instant>,
    /// How the last verification of each image went.
    verifications: BTreeMap<ImageId, Verification>,
    complete: BTreeSet<ImageId>,
    /// Where each transfer was last told to fetch from.
    sources: BTreeMap<ImageId, Vec<Holder>>,
    /// Images of which the cluster was told that they could not be fetched, until they are here or gone.
    failing: BTreeSet<ImageId>,
    /// When the blob store was last asked whether it works.
    health_seen: Option<Instant>,
    /// Whether the guests that ran before this process were counted.
    adopted_seen: bool,
    /// Guests that were asked to stop, and the date at which that was first seen.
    stopping: BTreeMap<VmId, UnixMs>,
    /// Images of which lazy vms wait for what they need to start.
    booting: BTreeMap<ImageId, lazily::Booting>,
    /// What is fetched first of images on which lazy vms boot, as a boot was seen to read it.
    ahead: BTreeMap<ImageId, lazily::ReadAhead>,
    /// When a guest was last to be changed over to the file of its image.
    settled: BTreeMap<VmId, Instant>,
    /// How long vms have been as they are.
    ages: Ages,
}

/// What an agent acts with.
pub(crate) struct Hands {
    pub(crate) images: Images,
    pub(crate) transfers: Transfers,
    pub(crate) disks: LazyDisks,
    pub(crate) driver: Arc<dyn Driver>,
}

/// What only this node knows of a vm.
#[derive(Debug, Clone)]
pub(crate) struct LiveVm {
    pub(crate) transfer: Option<TransferStatus>,
    pub(crate) found: Option<ObservedVm>,
}

impl Agent {
    pub(crate) fn new(me: NodeId, raft: Raft, hands: Hands, metrics: Arc<Metrics>) -> Self {
        let Hands { images, transfers, disks, driver } = hands;
        let inner = Inner {
            me,
            raft,
            images,
            transfers,
            disks,
            driver,
            metrics,
            wake: Notify::new(),
            begun: Instant::now(),
            desk: Mutex::default(),
            making_room: Default::default(),
            verifying: Arc::default(),
            reporting: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    fn desk(&self) -> std::sync::MutexGuard<'_, Desk> {
        // A panic while the lock was held cannot have left a map half-changed.
        self.inner.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts for as long as the node runs. Never returns.
    pub(crate) async fn run(self) {
        self.wake_when_guests_end();
        let turns = self.inner.metrics.turns_of(AGENT_LOOP);
        while let Err(error) = self.inner.raft.barrier().await {
            turns.inc();
            tracing::debug!(%error, "the agent waits until this node has caught up with the cluster");
        }
        tracing::info!("caught up with the cluster; looking after vms");
        let mut applied = self.inner.raft.watch();
        let mut transfers = self.inner.transfers.changed();
        loop {
            turns.inc();
            applied.borrow_and_update();
            transfers.borrow_and_update();
            let look_again_at = match self.look().await {
                Ok(look_again_at) => look_again_at,
                Err(error) => {
                    self.inner.metrics.agent_failures.inc();
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the agent could not look after this host; it looks again"
                    );
                    None
                }
            };
            let due = look_again_at.map_or(TICK, |at| Duration::from_millis(at.since_ms(clock::now())).min(TICK));
            tokio::time::sleep(LOOK_EVERY).await;
            // A watch that has closed belongs to a room that has stopped; the tick goes on until the node ends this task.
            tokio::select! {
                _ = applied.changed() => {}
                _ = transfers.changed() => {}
                () = self.inner.wake.notified() => {}
                () = tokio::time::sleep(due) => {}
            }
        }
    }

    /// One round; says when to look again though nothing has changed.
    async fn look(&self) -> anyhow::Result<Option<UnixMs>> {
        self.inner.metrics.agent_rounds.inc();
        self.look_after_health().await;
        // From before the look: what is being launched now may not be seen by it.
        let launching: BTreeSet<VmId> = self.desk().orders.keys().copied().collect();
        let local = self.observe().await?;
        self.keep_disks(&local, &launching);
        if !std::mem::replace(&mut self.desk().adopted_seen, true) {
            let running = local.vms.iter().filter(|(_, vm)| matches!(vm.state, LocalVmState::Running { .. }));
            let adopted: Vec<VmId> = running.map(|(id, _)| *id).collect();
            self.inner.metrics.adopted.inc_by(adopted.len() as u64);
            tokio::spawn(self.clone().tell_start(adopted));
        }
        let held = local.images.values().filter(|image| matches!(image, LocalImage::Complete)).count();
        self.inner.metrics.images_held.set(i64::try_from(held).unwrap_or(i64::MAX));
        let plan = self.inner.raft.read(|state| blixard_core::reconcile(self.inner.me, state, &local, clock::now()));
        self.execute(plan.actions).await;
        self.tell_failing(&local);
        self.look_after_requests(&local).await?;
        self.look_after_cache(&local).await?;
        Ok(plan.look_again_at)
    }

    /// Tells the cluster that this process has started, and which guests it found.
    async fn tell_start(self, mut adopted: Vec<VmId>) {
        adopted.truncate(blixard_core::limits::ADOPTED_MAX);
        self.tell(Note::Started { adopted }).await;
    }

    /// Tells the cluster what no command follows from, however long it takes.
    async fn tell(self, note: Note) {
        let (by, change) = (Actor::Node(self.inner.me), Change::Note(note));
        // Without an id, which would be kept among the answers: the same time in all tries tells them as one.
        let command = Command { request: None, at: clock::now(), by, change };
        loop {
            match self.inner.raft.propose(&command).await {
                Ok(_) | Err(ConsensusError::Stopped { .. }) => return,
                // The proposal has waited for a leader long enough by itself.
                Err(error) => tracing::debug!(%error, "what happened here is told again"),
            }
        }
    }

    /// Notes for `/readyz` and `/metrics` how the rooms below do.
    async fn look_after_health(&self) {
        let metrics = &self.inner.metrics;
        let is_due = {
            let mut desk = self.desk();
            let is_due = desk.health_seen.is_none_or(|seen| seen.elapsed() >= HEALTH_EVERY);
            if is_due {
                desk.health_seen = Some(Instant::now());
            }
            is_due
        };
        if is_due {
            metrics.store_alive.set(i64::from(self.inner.images.is_alive().await));
            metrics.store_collects.set(i64::from(self.inner.images.collects()));
        }
    }

    /// A thread of its own, because a driver blocks. It ends when the agent is gone.
    fn wake_when_guests_end(&self) {
        let agent = Arc::downgrade(&self.inner);
        let driver = self.inner.driver.clone();
        let waiting = move || {
            loop {
                let changed = driver.wait_change(DRIVER_WAIT);
                let Some(agent) = agent.upgrade() else { return };
                if changed {
                    agent.wake.notify_one();
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("guests".into()).spawn(waiting) {
            tracing::warn!(%error, "ends of guests are noticed only every {} s", TICK.as_secs());
        }
    }

    /// Protects an image that a user is importing here from being dropped as unknown, until the guard is dropped.
    pub(crate) fn importing(&self, image: ImageId) -> Importing {
        self.desk().importing.insert(image);
        Importing { agent: self.clone(), image }
    }

    /// What only this node knows of a vm and its image.
    pub(crate) async fn live(&self, vm: VmId, image: ImageId) -> LiveVm {
        let listed = self.blocking(|driver| driver.list()).await;
        let name = vm.to_string();
        let found = listed.ok().and_then(|list| list.into_iter().find(|found| found.vm == name));
        LiveVm { transfer: self.inner.transfers.status(image), found }
    }

    /// A connection to a vm's serial console.
    pub(crate) async fn console(&self, vm: VmId) -> Result<UnixStream, ConsoleError> {
        self.blocking(move |driver| driver.console(&vm.to_string())).await
    }

    /// The part of a vm's console log that is kept.
    pub(crate) async fn log_span(&self, vm: VmId) -> Result<LogSpan, LogError> {
        self.blocking(move |driver| driver.log_span(&vm.to_string())).await
    }

    /// Reads from a vm's console log.
    pub(crate) async fn read_log(&self, vm: VmId, from: LogPosition, bytes_max: usize) -> Result<LogChunk, LogError> {
        self.blocking(move |driver| driver.read_log(&vm.to_string(), from, bytes_max)).await
    }

    async fn blocking<T: Send + 'static>(&self, call: impl FnOnce(&dyn Driver) -> T + Send + 'static) -> T {
        let driver = self.inner.driver.clone();
        let call = tokio::task::spawn_blocking(move || call(&*driver));
        match call.await {
            Ok(answer) => answer,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is being shut down, and this task with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// See [`Agent::importing`].
pub(crate) struct Importing {
    agent: Agent,
    image: ImageId,
}

impl Drop for Importing {
    fn drop(&mut self) {
        self.agent.desk().importing.remove(&self.image);
        self.agent.inner.wake.notify_one();
    }
}
