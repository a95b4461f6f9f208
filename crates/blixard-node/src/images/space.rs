//! Room on the disk that images are kept on.
//!
//! The disk is never filled to its end: when the store's database cannot write, it stops for good, and with it everything
//! that needs a blob, until the node is restarted. So whoever is about to write asks first.

use super::Images;

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

impl Images {
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
