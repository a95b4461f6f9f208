//! Vms that boot before their image is here as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use blixard_core::{BootRecord, ImageId, LocalView, LocalVmState, Manifest, NodeId, Order, Power, State, VmId};

use super::Agent;
use crate::images::Wanted;
use crate::runtime::{Tied, spawn_tied};

/// How often it is looked whether what a boot needs is here: it is what somebody waits for.
const BOOTABLE_EVERY: Duration = Duration::from_millis(50);
/// How soon a guest that could not be changed over to the file of its image is tried again. It runs on meanwhile as it did.
const SETTLE_AGAIN: Duration = Duration::from_secs(10);

/// An image of which a lazy vm waits for what it needs to start.
pub(super) struct Booting {
    _wanted: Vec<Wanted>,
    _waking: Tied,
}

/// What is fetched of an image before the rest.
pub(super) struct ReadAhead {
    record: BootRecord,
    _wanted: Wanted,
}

/// The manifest of an image on which a lazy vm of this node is to run.
fn booted_lazily(state: &State, me: NodeId, image: ImageId) -> Option<&Manifest> {
    let manifest = &state.images.get(&image)?.manifest;
    let mut here = state.vms_on(me);
    let is_booted = here.any(|vm| vm.spec.image == image && vm.desired.power == Power::On && vm.spec.is_lazy(manifest));
    is_booted.then_some(manifest)
}

impl Agent {
    /// Has what a boot is known to read of an image on its way come before the rest, when a lazy vm boots from it here.
    pub(super) fn look_ahead(&self, image: ImageId) {
        let mut desk = self.desk();
        let known = desk.ahead.get(&image).map(|ahead| &ahead.record);
        let found = self.inner.raft.read(|state| {
            let manifest = booted_lazily(state, self.inner.me, image)?;
            let (disk, record) = (manifest.disk()?, state.boots.get(&image)?);
            Some((known != Some(record)).then(|| (disk.part.hash, record.clone())))
        });
        match found {
            None => drop(desk.ahead.remove(&image)),
            Some(None) => {}
            Some(Some((disk, record))) => {
                tracing::info!(image = %image.short(), bytes = record.bytes(), "what its boot reads is fetched first");
                let wanted = self.inner.images.want_ahead(disk, &record.ranges);
                desk.ahead.insert(image, ReadAhead { record, _wanted: wanted });
            }
        }
    }

    /// What was seen here of boots of images and that the cluster has a use for.
    pub(super) fn boots_seen(&self) -> BTreeMap<ImageId, BootRecord> {
        let seen = self.inner.disks.boots();
        if seen.is_empty() {
            return BTreeMap::new();
        }
        let (boots, blobs) = self.inner.raft.read(|state| {
            let (mut boots, mut blobs) = (BTreeMap::new(), BTreeSet::new());
            for image in state.images.values() {
                let Some(disk) = image.manifest.disk() else { continue };
                if let Some(record) = seen.get(&disk.part.hash).filter(|record| state.wants_boot(image.id, record)) {
                    boots.insert(image.id, record.clone());
                    blobs.insert(disk.part.hash);
                }
            }
            (boots, blobs)
        });
        self.inner.disks.forget_boots(|blob| blobs.contains(&blob));
        boots
    }

    /// Whether a lazy vm can be started on an image that is on its way. What one waits for is asked for ahead of the rest.
    pub(super) async fn look_at_beginning(&self, image: ImageId) -> bool {
        let manifest = self.inner.raft.read(|state| booted_lazily(state, self.inner.me, image).cloned());
        let Some(manifest) = manifest else {
            self.desk().booting.remove(&image);
            return false;
        };
        match self.inner.images.is_bootable(&manifest).await {
            Ok(true) => {
                self.desk().booting.remove(&image);
                true
            }
            Ok(false) => {
                self.desk().booting.entry(image).or_insert_with(|| self.wait_to_boot(manifest));
                false
            }
            Err(error) => {
                // The transfer meets the same, and says what becomes of it.
                tracing::debug!(image = %image.short(), %error, "no vm can be started on it yet");
                false
            }
        }
    }

    fn wait_to_boot(&self, manifest: Manifest) -> Booting {
        let wanted = self.inner.images.want_to_boot(&manifest);
        let (agent, images) = (std::sync::Arc::downgrade(&self.inner), self.inner.images.clone());
        let waking = spawn_tied(async move {
            while !matches!(images.is_bootable(&manifest).await, Ok(true)) {
                tokio::time::sleep(BOOTABLE_EVERY).await;
            }
            if let Some(agent) = agent.upgrade() {
                agent.wake.notify_one();
            }
        });
        Booting { _wanted: wanted, _waking: waking }
    }

    /// Serves no disk to vms that no longer read one.
    pub(super) fn keep_disks(&self, local: &LocalView, launching: &BTreeSet<VmId>) {
        let is_busy = |vm: VmId| {
            matches!(local.vms.get(&vm).map(|vm| &vm.state), Some(LocalVmState::Busy { .. })) || launching.contains(&vm)
        };
        self.inner.disks.keep_only(|vm| local.lazy.contains(&vm) || is_busy(vm));
        self.desk().settled.retain(|vm, _| local.lazy.contains(vm));
    }

    /// Lets a guest read its image from the file that is here now.
    pub(super) fn settle(&self, vm: VmId) {
        let last = self.desk().settled.get(&vm).copied();
        if last.is_some_and(|last| last.elapsed() < SETTLE_AGAIN) {
            return;
        }
        self.desk().settled.insert(vm, Instant::now());
        self.order(vm, Order::Settle, None, async move |agent| {
            agent.blocking(move |driver| driver.settle(&vm.to_string())).await?;
            tracing::info!(%vm, "its image is here: the guest reads it from its file from now on");
            Ok(())
        });
    }
}
