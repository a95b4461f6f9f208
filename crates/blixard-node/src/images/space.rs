//! Room on the disk that images are kept on, and how much of it they may take.
//!
//! The disk is never filled to its end: when the store's database cannot write, it stops for good, and with it everything
//! that needs a blob, until the node is restarted. So whoever is about to write asks first.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::{Images, Progress};
use crate::config::CacheMax;

/// What images leave free, for the store's database and for whatever else the host keeps on that disk.
const RESERVE_BYTES: u64 = 256 << 20;

/// There is no room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {needed_bytes} bytes on the disk of {dir}: {free_bytes} are free, of which {} stay so; free some, or move \
     the data directory to a larger disk",
    RESERVE_BYTES
)]
pub(crate) struct NoSpace {
    /// The directory that was to be written to.
    pub dir: String,
    /// What is to be written.
    pub needed_bytes: u64,
    /// What is free.
    pub free_bytes: u64,
}

/// Images would take more of the disk than they may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no room for {needed_bytes} bytes more: images may take {max_bytes} bytes of this node's disk (cache.max) and take \
     {used_bytes}; `blixard image cache` says why each of them stays"
)]
pub(crate) struct NoRoom {
    /// What is to be taken.
    pub needed_bytes: u64,
    /// What is taken.
    pub used_bytes: u64,
    /// What may be.
    pub max_bytes: u64,
}

/// How much of the disk images take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// What they take, imports and fetches under way included, in bytes.
    pub used_bytes: u64,
    /// What they may take; without a number, all of it.
    pub max_bytes: Option<u64>,
}

impl Usage {
    /// Whether so many bytes more may be taken.
    pub(crate) fn room_for(self, needed_bytes: u64) -> Result<(), NoRoom> {
        let Self { used_bytes, max_bytes } = self;
        match max_bytes {
            Some(max_bytes) if used_bytes.saturating_add(needed_bytes) > max_bytes => {
                Err(NoRoom { needed_bytes, used_bytes, max_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// What fetches under way have still to bring. Fetches that begin together would otherwise all be told that there is room.
#[derive(Debug, Clone, Default)]
pub(super) struct Coming(Arc<Mutex<BTreeMap<u64, watch::Receiver<Progress>>>>);

impl Coming {
    fn fetches(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, watch::Receiver<Progress>>> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Counts a fetch in until the answer is dropped.
    pub(super) fn expect(&self, progress: &watch::Sender<Progress>) -> Expected {
        let mut fetches = self.fetches();
        let number = fetches.last_key_value().map_or(0, |(last, _)| last + 1);
        fetches.insert(number, progress.subscribe());
        Expected { coming: self.clone(), number }
    }

    fn bytes(&self) -> u64 {
        self.fetches().values().fold(0, |sum, fetch| {
            let progress = *fetch.borrow();
            sum.saturating_add(progress.bytes_total.saturating_sub(progress.bytes_done))
        })
    }
}

/// See [`Coming::expect`].
pub(super) struct Expected {
    coming: Coming,
    number: u64,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.coming.fetches().remove(&self.number);
    }
}

/// What all files in some folders take of the disk. One that goes meanwhile takes nothing.
fn taken_bytes(folders: &[&Path]) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    // In blocks, because a fetch writes into a file with holes.
    files.filter_map(|file| file.metadata().ok()).fold(0, |sum, meta| sum.saturating_add(meta.blocks() * 512))
}

impl Images {
    /// How much of the disk images take now. A disk that does not say how large it is limits nothing by a share of it.
    pub(crate) async fn usage(&self) -> Usage {
        let (data, temp, max) =
            (self.inner.files.data_path.clone(), self.inner.files.temp_path.clone(), self.inner.max);
        let looked = tokio::task::spawn_blocking(move || {
            let disk_bytes =
                nix::sys::statvfs::statvfs(&data).map(|disk| disk.blocks().saturating_mul(disk.fragment_size()));
            let max_bytes = match max {
                CacheMax::Unlimited => None,
                CacheMax::Bytes(bytes) => Some(bytes),
                CacheMax::Percent(percent) => disk_bytes.ok().map(|bytes| bytes / 100 * u64::from(percent)),
            };
            Usage { used_bytes: taken_bytes(&[&data, &temp]), max_bytes }
        });
        looked.await.unwrap_or(Usage { used_bytes: 0, max_bytes: None })
    }

    /// Whether images may take so many bytes more, beside what is already on its way.
    pub(super) async fn check_room(&self, needed_bytes: u64) -> Result<(), NoRoom> {
        let coming_bytes = self.inner.coming.bytes();
        self.usage().await.room_for(needed_bytes.saturating_add(coming_bytes))
    }

    /// Whether so many bytes can be written. A disk that does not say what is free is not refused: writing will show.
    pub(super) async fn check_space(&self, needed_bytes: u64) -> Result<(), NoSpace> {
        let dir = self.inner.files.data_path.clone();
        let shown = dir.display().to_string();
        let asked = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&dir)).await;
        let Ok(Ok(space)) = asked else {
            tracing::warn!(dir = shown, "the disk does not say how much of it is free");
            return Ok(());
        };
        let free_bytes = space.blocks_available().saturating_mul(space.fragment_size());
        if free_bytes.saturating_sub(RESERVE_BYTES) < needed_bytes {
            return Err(NoSpace { dir: shown, needed_bytes, free_bytes });
        }
        Ok(())
    }
}
