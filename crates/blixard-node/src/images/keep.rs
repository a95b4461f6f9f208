//! Which images this node keeps, written down in the store as names of their parts.

use std::collections::BTreeSet;

use anyhow::Context;
use blixard_core::{BlobHash, ImageId, Manifest};
use futures::StreamExt;
use iroh_blobs::{Hash, HashAndFormat};

use super::Images;

/// Before the names of all parts of all images.
const PREFIX: &str = "image/";
/// Before the names of what is kept and is no image.
const HELD_PREFIX: &str = "held/";
/// Behind the names of those parts that are chunk indexes.
pub(super) const CHUNKS: &str = "/chunks";

impl Images {
    /// Keeps the parts of an image, here or still to come, until [`Self::drop_image`]. Called before a fetch begins, or the
    /// pieces that arrive would be removed as unused.
    ///
    /// # Errors
    /// When the store cannot write it down.
    pub(crate) async fn keep(&self, image: ImageId, manifest: &Manifest) -> anyhow::Result<()> {
        let _no_run = self.inner.collector.hold().await;
        let chunks = manifest.disk().and_then(|disk| disk.chunks);
        for (number, part) in manifest.parts().iter().enumerate() {
            let name = match Some(*part) == chunks {
                true => format!("{PREFIX}{image}{CHUNKS}"),
                false => format!("{PREFIX}{image}/{number}"),
            };
            let part = HashAndFormat::raw(Hash::from_bytes(part.hash.0));
            self.inner.store.tags().set(name, part).await.with_context(|| format!("keep image {image}"))?;
        }
        self.inner.store.sync_db().await.with_context(|| format!("write down that image {image} is kept"))
    }

    /// Keeps whole blobs under a name, whatever images are made of them, until [`Self::release`].
    ///
    /// # Errors
    /// When the store cannot write it down.
    pub(crate) async fn hold(&self, name: &str, blobs: &[BlobHash]) -> anyhow::Result<()> {
        let _no_run = self.inner.collector.hold().await;
        for (number, hash) in blobs.iter().enumerate() {
            let blob = HashAndFormat::raw(Hash::from_bytes(hash.0));
            let set = self.inner.store.tags().set(format!("{HELD_PREFIX}{name}/{number}"), blob).await;
            set.with_context(|| format!("hold what is named {name}"))?;
        }
        self.inner.store.sync_db().await.with_context(|| format!("write down that {name} is held"))
    }

    /// Gives up what is held under a name: its space is freed soon after. To release what is not held does nothing.
    ///
    /// # Errors
    /// When the store cannot write it down.
    pub(crate) async fn release(&self, name: &str) -> anyhow::Result<()> {
        let tags = self.inner.store.tags();
        tags.delete_prefix(format!("{HELD_PREFIX}{name}/")).await.with_context(|| format!("release {name}"))?;
        self.inner.store.sync_db().await.with_context(|| format!("write down that {name} is released"))?;
        self.inner.collector.hurry();
        Ok(())
    }

    /// The names under which something is held.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn held(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut tags = self.inner.store.tags().list_prefix(HELD_PREFIX).await.context("list what is held")?;
        let mut names = BTreeSet::new();
        while let Some(tag) = tags.next().await {
            let tag = tag.context("read what is held")?;
            let name = String::from_utf8_lossy(tag.name.as_ref());
            let name = name.strip_prefix(HELD_PREFIX).and_then(|rest| rest.rsplit_once('/'));
            names.extend(name.map(|(name, _)| name.to_owned()));
        }
        Ok(names)
    }

    /// Gives an image up: the space of parts that no other image keeps is freed soon after. To drop one that is not kept
    /// does nothing.
    ///
    /// # Errors
    /// When the store cannot write it down.
    pub(crate) async fn drop_image(&self, image: ImageId) -> anyhow::Result<()> {
        let tags = self.inner.store.tags();
        tags.delete_prefix(format!("{PREFIX}{image}/")).await.with_context(|| format!("drop image {image}"))?;
        self.inner.store.sync_db().await.with_context(|| format!("write down that image {image} is dropped"))?;
        self.inner.collector.hurry();
        Ok(())
    }

    /// The images that are kept, complete or not.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn kept(&self) -> anyhow::Result<BTreeSet<ImageId>> {
        let mut names = self.inner.store.tags().list_prefix(PREFIX).await.context("list kept images")?;
        let mut images = BTreeSet::new();
        while let Some(tag) = names.next().await {
            let tag = tag.context("read a kept image's name")?;
            let name = String::from_utf8_lossy(tag.name.as_ref());
            let image =
                name.strip_prefix(PREFIX).and_then(|rest| rest.split('/').next()).and_then(|id| id.parse().ok());
            match image {
                Some(image) => {
                    images.insert(image);
                }
                None => tracing::warn!(%name, "a name in the blob store is not an image's"),
            }
        }
        Ok(images)
    }
}
