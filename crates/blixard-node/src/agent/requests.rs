//! Images that operators want on this node, though no vm and no copy needs them here; and what people are told of images that
//! do not come.

use blixard_core::limits::REASON_BYTES_MAX;
use blixard_core::{ImageId, LocalImage, LocalView, Note};

use super::Agent;
use crate::transfers::{Failure, Priority};

impl Agent {
    /// Fetches an image because an operator wants it here. It is remembered until it is here or given up.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(crate) async fn request(&self, image: ImageId) -> anyhow::Result<()> {
        self.inner.transfers.request(image).await?;
        self.inner.wake.notify_one();
        Ok(())
    }

    /// Tells the cluster of each image that could not be fetched, once: what becomes of it then is in the list of transfers.
    pub(super) fn tell_failing(&self, local: &LocalView) {
        let is_coming = |image: &ImageId| matches!(local.images.get(image), Some(LocalImage::Fetching { .. }));
        self.desk().failing.retain(is_coming);
        for image in local.images.keys().filter(|image| is_coming(image)) {
            let Some(failure) = self.inner.transfers.status(*image).and_then(|status| status.failure) else { continue };
            if self.desk().failing.insert(*image) {
                let retrying = failure.is_retried();
                let Failure { mut reason, .. } = failure;
                reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                tokio::spawn(self.clone().tell(Note::ImageFailing { image: *image, reason, retrying }));
            }
        }
    }

    /// Orders what operators asked for and is not ordered, as after a restart, and lets go of what is here.
    pub(super) async fn look_after_requests(&self, local: &LocalView) -> anyhow::Result<()> {
        for image in self.inner.transfers.kept().requested {
            if !self.inner.raft.read(|state| state.images.contains_key(&image)) {
                // It was deleted, perhaps before a byte of it was here that would have to be dropped.
                self.inner.transfers.forget(image).await?;
                continue;
            }
            match local.images.get(&image) {
                Some(LocalImage::Complete) => self.inner.transfers.settle(image).await?,
                _ if self.inner.transfers.status(image).is_some_and(|status| status.is_requested) => {}
                _ => self.fetch(image, Priority::Operator).await,
            }
        }
        Ok(())
    }
}
