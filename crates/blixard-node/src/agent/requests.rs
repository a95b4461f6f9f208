//! Images that operators want on this node, though no vm and no copy needs them here; and what people are told of images that
//! do not come.

use blixard_core::limits::REASON_BYTES_MAX;
use blixard_core::{ImageId, LocalImage, LocalView, Note, UnixMs};

use super::Agent;
use crate::clock;
use crate::transfers::{Failure, Priority};

impl Agent {
    /// Fetches an image because an operator wants it here, if need be by a deadline. It is remembered until it is here or given
    /// up.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(crate) async fn request(&self, image: ImageId, deadline: Option<UnixMs>) -> anyhow::Result<()> {
        self.inner.transfers.request(image, deadline).await?;
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
        for image in self.inner.transfers.take_expired() {
            let status = self.inner.transfers.status(image);
            // The cluster itself wants it, and goes on.
            let retrying = status.is_some_and(|status| !status.is_expired);
            if retrying {
                self.inner.transfers.settle(image).await?;
            }
            let reason = Failure::deadline().reason;
            tokio::spawn(self.clone().tell(Note::ImageFailing { image, reason, retrying }));
        }
        let is_here = |image: &ImageId| local.images.get(image) == Some(&LocalImage::Complete);
        let kept = self.inner.transfers.kept();
        for image in kept.requested {
            if !self.inner.raft.read(|state| state.images.contains_key(&image)) {
                // It was deleted, perhaps before a byte of it was here that would have to be dropped.
                self.inner.transfers.forget(image).await?;
                continue;
            }
            match self.inner.transfers.status(image) {
                // It came in another way, when nobody waited for it any more.
                Some(status) if is_here(&image) && status.is_expired => self.inner.transfers.forget(image).await?,
                _ if is_here(&image) => self.inner.transfers.settle(image).await?,
                Some(status) if status.is_requested => {}
                // The cluster began to want it when its time was up.
                Some(_) if kept.deadlines.get(&image).is_some_and(|deadline| *deadline <= clock::now()) => {
                    self.inner.transfers.settle(image).await?;
                }
                _ => self.fetch(image, Priority::Operator).await,
            }
        }
        Ok(())
    }
}
