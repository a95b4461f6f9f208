//! Vms that boot before their image is here as a whole.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use blixard_core::{ImageId, LocalView, LocalVmState, Manifest, Order, Power, VmId};

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

impl Agent {
    /// Whether a lazy vm can be started on an image that is on its way. What one waits for is asked for ahead of the rest.
    pub(super) async fn look_at_beginning(&self, image: ImageId) -> bool {
        let manifest = self.inner.raft.read(|state| {
            let manifest = &state.images.get(&image)?.manifest;
            let mut here = state.vms_on(self.inner.me);
            let is_waited_for =
                here.any(|vm| vm.spec.image == image && vm.desired.power == Power::On && vm.spec.is_lazy(manifest));
            is_waited_for.then(|| manifest.clone())
        });
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
