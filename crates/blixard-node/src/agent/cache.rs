//! Keeping images within their share of the disk: what is given up when there is no room, and when each was last used.
//!
//! What may go and in which order is [`blixard_core::State::plan_releases`]'s to say. A copy is removed only after the cluster has
//! agreed to it: until then others count on it. A crash between the two leaves a copy too many, which is reported again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blixard_core::{Actor, Cached, Change, Command, ImageId, LocalImage, LocalView, UnixMs, VmId};

use super::Agent;
use super::execute::OrderInHand;
use crate::clock;
use crate::images::{NoRoom, Usage};
use crate::transfers::TransferState;

/// How often it is looked whether images take too much, which lists their files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A whole image on this node, as its cache sees it.
#[derive(Debug, Clone)]
pub(crate) struct CachedImage {
    /// The image.
    pub image: ImageId,
    /// When it was last used.
    pub used_at: UnixMs,
    /// Whether somebody said that it stays.
    pub is_pinned: bool,
    /// Its place among those that go when room is needed, counted from 1; otherwise why it stays.
    pub goes: Result<usize, String>,
}

/// Why there is no room.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeRoomError {
    /// Nothing that may go is left.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The cluster could not be asked what may go.
    #[error("there is no room, and the cluster cannot agree on what goes: {0}")]
    NotAgreed(String),
}

impl Agent {
    /// How much of the disk images take on this node.
    pub(crate) async fn cache_usage(&self) -> Usage {
        self.inner.images.usage().await
    }

    /// The whole images on this node, those that go first in front.
    pub(crate) fn cached(&self) -> Vec<CachedImage> {
        let cached = self.copies();
        let plan = |state: &blixard_core::State| state.plan_releases(self.inner.me, &cached, clock::now());
        let (first, mut kept) = self.inner.raft.read(plan);
        let of = |image: ImageId, goes| {
            let Cached { used_at, is_pinned } = cached[&image];
            CachedImage { image, used_at, is_pinned, goes }
        };
        let going = (1..).zip(&first).map(|(place, image)| of(*image, Ok(place)));
        let mut all: Vec<CachedImage> = going.collect();
        all.extend(cached.keys().filter_map(|image| Some(of(*image, Err(kept.remove(image)?.to_string())))));
        all
    }

    fn copies(&self) -> BTreeMap<ImageId, Cached> {
        let (complete, uses) = (self.desk().complete.clone(), self.inner.images.uses());
        let copy = |image: ImageId| Cached {
            used_at: uses.used_at(image).unwrap_or(clock::now()),
            is_pinned: uses.is_pinned(image),
        };
        complete.into_iter().map(|image| (image, copy(image))).collect()
    }

    /// Says whether this node keeps an image whatever happens. One that is not here is fetched.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub(crate) async fn pin(&self, image: ImageId, is_pinned: bool) -> anyhow::Result<()> {
        self.inner.images.uses().pin(image, is_pinned).await?;
        if is_pinned && !self.desk().complete.contains(&image) {
            self.request(image, None).await?;
        }
        Ok(())
    }

    /// Gives copies up until so many bytes more may be taken.
    ///
    /// # Errors
    /// When nothing more may go, or the cluster has no leader to ask.
    pub(crate) async fn make_room(&self, needed_bytes: u64) -> Result<(), MakeRoomError> {
        let _turn = self.inner.making_room.lock().await;
        let mut refused = BTreeSet::new();
        let mut has_collected = false;
        loop {
            let Err(no_room) = self.cache_usage().await.room_for(needed_bytes) else { return Ok(()) };
            if !std::mem::replace(&mut has_collected, true) {
                // What nothing keeps goes before anything that somebody might use.
                self.inner.images.collect().await;
                continue;
            }
            let is_open = |cached: &CachedImage| cached.goes.is_ok() && !refused.contains(&cached.image);
            let next = self.cached().into_iter().find(is_open).filter(|_| !self.desk().has_strays);
            let Some(CachedImage { image, .. }) = next else { return Err(no_room.into()) };
            refused.insert(image);
            self.release(image).await?;
        }
    }

    /// Asks the cluster whether an image may go, and removes it if so.
    async fn release(&self, image: ImageId) -> Result<(), MakeRoomError> {
        let Some(_leaving) = self.leave(image) else { return Ok(()) };
        let change = Change::ReleaseCopy { image, node: self.inner.me };
        let command = Command { request: None, at: clock::now(), by: Actor::Node(self.inner.me), change };
        let failed = |error: &dyn std::fmt::Display| MakeRoomError::NotAgreed(error.to_string());
        match self.inner.raft.propose(&command).await {
            Ok(Ok(_)) => {}
            Ok(Err(rejection)) => {
                tracing::debug!(image = %image.short(), %rejection, "an image stays after all");
                return Ok(());
            }
            // When it was done after all, the copy is reported once more.
            Err(error) => return Err(failed(&error)),
        }
        let before = self.cache_usage().await.used_bytes;
        self.desk().complete.remove(&image);
        self.inner.images.drop_image(image).await.map_err(|error| failed(&format!("{error:#}")))?;
        self.inner.images.collect().await;
        let freed_bytes = before.saturating_sub(self.cache_usage().await.used_bytes);
        self.inner.metrics.cache_evictions.inc();
        self.inner.metrics.cache_evicted_bytes.inc_by(freed_bytes);
        tracing::info!(image = %image.short(), freed_bytes, "an image was given up, to have room");
        Ok(())
    }

    /// Marks an image as one that nothing is launched from any more, unless something is just being launched from it.
    fn leave(&self, image: ImageId) -> Option<Leaving> {
        let of_image =
            |state: &blixard_core::State, vm: &VmId| state.vms.get(vm).is_none_or(|vm| vm.spec.image == image);
        self.inner.raft.read(|state| {
            let mut desk = self.desk();
            let mut launching = desk.orders.iter().filter(|(_, order)| order.launching.is_some());
            if launching.any(|(vm, _)| of_image(state, vm)) || !desk.leaving.insert(image) {
                return None;
            }
            Some(Leaving { agent: self.clone(), image })
        })
    }

    /// Notes a launch in hand, for which the vm's image stays; not when the image is being given up. Counts whether it was here
    /// when it was needed.
    pub(super) fn hold_image_of(&self, vm: VmId, launch: OrderInHand) -> bool {
        let image = self.inner.raft.read(|state| state.vms.get(&vm).map(|vm| vm.spec.image));
        let mut desk = self.desk();
        if image.is_some_and(|image| desk.leaving.contains(&image)) {
            return false;
        }
        desk.orders.insert(vm, launch);
        let was_missed = image.is_some_and(|image| desk.missed.remove(&image));
        let found = if was_missed { "fetched" } else { "here" };
        self.inner.metrics.image_uses.get_or_create(&[("image", found.into())]).inc();
        true
    }

    /// Notes which images are in use, and makes room for what is on its way.
    pub(super) async fn look_after_cache(&self, local: &LocalView) -> anyhow::Result<()> {
        let is_due = {
            let mut desk = self.desk();
            let is_due = desk.cache_seen.is_none_or(|seen| seen.elapsed() >= LOOK_EVERY);
            if is_due {
                desk.cache_seen = Some(Instant::now());
            }
            is_due
        };
        if !is_due {
            return Ok(());
        }
        let uses = self.inner.images.uses();
        let whole = local.images.iter().filter(|(_, image)| matches!(image, LocalImage::Complete)).map(|(id, _)| *id);
        let mut used: BTreeSet<ImageId> = whole.filter(|image| uses.used_at(*image).is_none()).collect();
        let known: BTreeSet<ImageId> = self.inner.raft.read(|state| {
            used.extend(state.vms_on(self.inner.me).map(|vm| vm.spec.image));
            self.desk().has_strays = local.vms.keys().any(|vm| !state.vms.contains_key(vm));
            state.images.keys().copied().collect()
        });
        uses.retain(|image| known.contains(image)).await?;
        uses.touch(used, clock::now()).await?;
        let usage = self.cache_usage().await;
        self.inner.metrics.cache_used_bytes.set(i64::try_from(usage.used_bytes).unwrap_or(i64::MAX));
        let max_bytes = usage.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
        self.inner.metrics.cache_max_bytes.set(max_bytes);
        // What could not come into an empty cache is not worth emptying it.
        let could_fit = |bytes: &u64| usage.max_bytes.is_none_or(|max_bytes| *bytes <= max_bytes);
        let transfers = self.inner.transfers.list().into_iter();
        let coming = transfers.filter(|(_, status)| status.state != TransferState::Paused);
        let missing = coming.map(|(_, status)| status.progress.bytes_total.saturating_sub(status.progress.bytes_done));
        let needed_bytes = missing.filter(could_fit).fold(0, u64::saturating_add);
        if usage.room_for(needed_bytes).is_err() && self.inner.making_room.try_lock().is_ok() {
            let agent = self.clone();
            tokio::spawn(async move {
                if let Err(error) = agent.make_room(needed_bytes).await {
                    tracing::debug!(%error, "images cannot be kept within their share of the disk for now");
                }
                // Even when not all fits, some of it may.
                agent.inner.transfers.retry_for_room();
            });
        }
        Ok(())
    }
}

/// An image that is being given up, until this is dropped.
struct Leaving {
    agent: Agent,
    image: ImageId,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.agent.desk().leaving.remove(&self.image);
        self.agent.inner.wake.notify_one();
    }
}
