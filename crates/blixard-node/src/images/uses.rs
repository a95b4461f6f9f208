//! When each image was last used on this node, and which stay whatever happens: in a file beside the blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use blixard_core::{ImageId, UnixMs};
use serde::{Deserialize, Serialize};

use crate::damage::{Damage, read_bounded};
use crate::runtime;
use crate::transport::write_private;

/// The largest file: every image of the largest catalog, twice, takes less than 2 MiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// A use is written down when the one before it is older than this: uses come often, and are compared in hours.
const WRITTEN_EVERY_MS: u64 = 60_000;
/// What to do when the file is damaged.
const LOST: &str = "remove it: images are then unpinned on this node until `blixard image pin` pins them again, and all count as \
                    just used";

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Kept {
    pinned: BTreeSet<ImageId>,
    used_at: BTreeMap<ImageId, UnixMs>,
}

/// The file, and what is in it.
#[derive(Debug)]
pub(crate) struct Uses {
    path: PathBuf,
    now: Mutex<Kept>,
    /// What is on disk; held while it is written.
    written: tokio::sync::Mutex<Kept>,
}

impl Uses {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// With [`Damage`] when it holds something else.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let kept: Kept = match read_bounded(path, FILE_BYTES_MAX) {
            Ok(text) => {
                let read = serde_json::from_slice(&text);
                read.map_err(|error| Damage::new(path, format!("is damaged: {error}"), LOST))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), now: Mutex::new(kept.clone()), written: kept.into() })
    }

    fn now(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.now.lock().expect("no holder of this lock panics")
    }

    /// Whether an image stays whatever happens.
    pub(crate) fn is_pinned(&self, image: ImageId) -> bool {
        self.now().pinned.contains(&image)
    }

    /// When an image was last used, if that is known.
    pub(crate) fn used_at(&self, image: ImageId) -> Option<UnixMs> {
        self.now().used_at.get(&image).copied()
    }

    /// Says whether an image stays whatever happens.
    ///
    /// # Errors
    /// When it cannot be written; then nothing has changed.
    pub(crate) async fn pin(&self, image: ImageId, is_pinned: bool) -> anyhow::Result<()> {
        let mut written = self.written.lock().await;
        let change = |kept: &mut Kept| match is_pinned {
            true => kept.pinned.insert(image),
            false => kept.pinned.remove(&image),
        };
        let mut next = self.now().clone();
        if change(&mut next) {
            *written = self.write(next).await?;
            change(&mut self.now());
        }
        Ok(())
    }

    /// Notes that images are used now. That a crash may forget the last minute of it does no harm.
    ///
    /// # Errors
    /// When it cannot be written down; it is noted all the same, for as long as this process lives.
    pub(crate) async fn touch(&self, images: impl IntoIterator<Item = ImageId>, at: UnixMs) -> anyhow::Result<()> {
        let next = {
            let mut now = self.now();
            now.used_at.extend(images.into_iter().map(|image| (image, at)));
            now.clone()
        };
        let mut written = self.written.lock().await;
        let is_news = |(image, at): (&ImageId, &UnixMs)| {
            written.used_at.get(image).is_none_or(|known| at.since_ms(*known) >= WRITTEN_EVERY_MS)
        };
        if next.used_at.iter().any(is_news) {
            *written = self.write(next).await?;
        }
        Ok(())
    }

    /// Forgets images that are in no catalog any more.
    pub(crate) fn retain(&self, is_known: impl Fn(&ImageId) -> bool) {
        let mut now = self.now();
        now.pinned.retain(|image| is_known(image));
        now.used_at.retain(|image, _| is_known(image));
    }

    async fn write(&self, kept: Kept) -> anyhow::Result<Kept> {
        let text = serde_json::to_string_pretty(&kept).context("encode the uses of images")? + "\n";
        let path = self.path.clone();
        let written = runtime::blocking(move || write_private(&path, text.as_bytes())).await;
        written.context("write the uses of images")??;
        Ok(kept)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pins_and_uses_outlive_a_restart_and_uses_are_written_rarely() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uses.json");
        let (one, two) = (ImageId([1; 32]), ImageId([2; 32]));
        let uses = Uses::open(&path).unwrap();
        uses.pin(one, true).await.unwrap();
        uses.touch([one, two], UnixMs(1_000)).await.unwrap();
        uses.touch([two], UnixMs(2_000)).await.unwrap();
        assert_eq!(uses.used_at(two), Some(UnixMs(2_000)));
        let again = Uses::open(&path).unwrap();
        assert_eq!((again.is_pinned(one), again.is_pinned(two)), (true, false));
        assert_eq!(again.used_at(two), Some(UnixMs(1_000)), "a second later is not worth a write");
        again.touch([two], UnixMs(1_000 + WRITTEN_EVERY_MS)).await.unwrap();
        again.pin(one, false).await.unwrap();
        let last = Uses::open(&path).unwrap();
        assert_eq!((last.is_pinned(one), last.used_at(two)), (false, Some(UnixMs(1_000 + WRITTEN_EVERY_MS))));
        std::fs::write(&path, "{").unwrap();
        let damage = Uses::open(&path).unwrap_err().downcast::<Damage>().unwrap();
        assert!(damage.next_step.contains("image pin"), "{damage}");
    }
}
