//! When each image was last used on this node, and which stay whatever happens: in a file beside the blobs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use blixard_core::{ImageId, UnixMs};
use serde::{Deserialize, Serialize};

use crate::kept::{Keeping, KeptFile};

/// The file: every image of the largest catalog, twice, takes less than 2 MiB.
const KEEPING: Keeping = Keeping {
    what: "the uses of images",
    bytes_max: 4 << 20,
    lost: "remove it: images are then unpinned on this node until `blixard image pin` pins them again, and all count as just used",
};
/// A use is written down when the one before it is older than this: uses come often, and are compared in hours.
const WRITTEN_EVERY_MS: u64 = 60_000;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Kept {
    pinned: BTreeSet<ImageId>,
    used_at: BTreeMap<ImageId, UnixMs>,
}

/// The file, and what is newer than it.
#[derive(Debug)]
pub(crate) struct Uses {
    file: KeptFile<Kept>,
    /// When each was last used; what is in the file may be a little older.
    used_at: Mutex<BTreeMap<ImageId, UnixMs>>,
}

impl Uses {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// With [`crate::Damage`] when it holds something else.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file: KeptFile<Kept> = KeptFile::open(path, &KEEPING)?;
        let used_at = Mutex::new(file.read().used_at);
        Ok(Self { file, used_at })
    }

    fn now(&self) -> std::sync::MutexGuard<'_, BTreeMap<ImageId, UnixMs>> {
        self.used_at.lock().expect("no holder of this lock panics")
    }

    /// Whether an image stays whatever happens.
    pub(crate) fn is_pinned(&self, image: ImageId) -> bool {
        self.file.watch().borrow().pinned.contains(&image)
    }

    /// When an image was last used, if that is known.
    pub(crate) fn used_at(&self, image: ImageId) -> Option<UnixMs> {
        self.now().get(&image).copied()
    }

    /// Says whether an image stays whatever happens.
    ///
    /// # Errors
    /// When it cannot be written; then nothing has changed.
    pub(crate) async fn pin(&self, image: ImageId, is_pinned: bool) -> anyhow::Result<()> {
        let change = |kept: &mut Kept| {
            match is_pinned {
                true => kept.pinned.insert(image),
                false => kept.pinned.remove(&image),
            };
        };
        self.file.change(change, |_| ()).await
    }

    /// Notes that images are used now. That a crash may forget the last minute of it does no harm.
    ///
    /// # Errors
    /// When it cannot be written down; it is noted all the same, for as long as this process lives.
    pub(crate) async fn touch(&self, images: impl IntoIterator<Item = ImageId>, at: UnixMs) -> anyhow::Result<()> {
        let newest = {
            let mut now = self.now();
            now.extend(images.into_iter().map(|image| (image, at)));
            now.clone()
        };
        let write_old = |kept: &mut Kept| {
            let is_news = |(image, at): (&ImageId, &UnixMs)| {
                kept.used_at.get(image).is_none_or(|known| at.since_ms(*known) >= WRITTEN_EVERY_MS)
            };
            if newest.iter().any(is_news) {
                kept.used_at = newest;
            }
        };
        self.file.change(write_old, |_| ()).await
    }

    /// Forgets images that are in no catalog any more.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(crate) async fn retain(&self, is_known: impl Fn(&ImageId) -> bool) -> anyhow::Result<()> {
        self.now().retain(|image, _| is_known(image));
        let forget = |kept: &mut Kept| {
            kept.pinned.retain(&is_known);
            kept.used_at.retain(|image, _| is_known(image));
        };
        self.file.change(forget, |_| ()).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::damage::Damage;

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

    #[tokio::test]
    async fn a_pin_outlives_uses_that_are_noted_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uses.json");
        let uses = Uses::open(&path).unwrap();
        for number in 0..32 {
            let (pinned, used) = (ImageId([number; 32]), ImageId([number + 64; 32]));
            // Both are under way at once: the use is noted while the pin is being written.
            let (pin, touch) = (uses.pin(pinned, true), uses.touch([used], UnixMs(u64::from(number))));
            let (pin, touch) = tokio::join!(pin, touch);
            pin.and(touch).unwrap();
            assert!(uses.is_pinned(pinned) && Uses::open(&path).unwrap().is_pinned(pinned), "{number}");
        }
        uses.retain(|image| image.0[0] >= 64).await.unwrap();
        let again = Uses::open(&path).unwrap();
        assert!(!again.is_pinned(ImageId([3; 32])) && again.used_at(ImageId([67; 32])).is_some());
    }
}
