//! Files of blobs: sealed once they are whole, and swept when nobody knows them.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blixard_core::{BlobHash, Part};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::{Bitfield, BlobStatus};

use super::{BlobError, Images};

/// The mode of a sealed file: nobody writes to it, and a guest, whose user could not enter the directory, may read it once
/// its guard has opened it.
const SEALED_MODE: u32 = 0o444;

/// Whether a file was sealed with a content of this length. The mode is the mark: it reaches the disk after the content
/// did.
pub(super) fn is_sealed(meta: &Metadata, bytes: u64) -> bool {
    meta.permissions().mode() & 0o222 == 0 && meta.len() == bytes
}

impl Images {
    pub(super) async fn is_sealed(&self, part: Part) -> bool {
        let path = self.inner.files.data_path(&Hash::from_bytes(part.hash.0));
        tokio::fs::metadata(path).await.is_ok_and(|meta| is_sealed(&meta, part.bytes))
    }

    /// Which ranges of a blob are here and verified.
    pub(super) async fn present(&self, hash: BlobHash) -> Result<Bitfield, BlobError> {
        let observed = self.inner.store.blobs().observe(Hash::from_bytes(hash.0)).await;
        observed.map_err(|error| BlobError::Storage(format!("{error:#}")))
    }

    /// Seals a whole blob: its content is on the disk before its file is marked.
    pub(super) async fn seal(&self, hash: BlobHash) -> Result<(), BlobError> {
        let storage =
            |error: &dyn std::fmt::Display| BlobError::Storage(format!("seal blob {}: {error:#}", hash.short()));
        // The database must know the blob as whole first: it opens the files of others for writing.
        self.inner.store.sync_db().await.map_err(|error| storage(&error))?;
        let name = Hash::from_bytes(hash.0);
        let (data, tree) = (self.inner.files.data_path(&name), self.inner.files.outboard_path(&name));
        let sealed = tokio::task::spawn_blocking(move || seal_files(&data, &tree)).await;
        sealed.map_err(|error| storage(&error))?.map_err(|error| storage(&error))
    }

    /// Removes what a crash left behind: files of imports, and files of blobs that the database does not know. Called
    /// before anything else uses the store.
    pub(super) async fn remove_leftovers(&self) -> anyhow::Result<()> {
        self.inner.imports.remove_leftovers();
        let mut files = tokio::fs::read_dir(&self.inner.files.data_path).await.context("list blob files")?;
        while let Some(file) = files.next_entry().await.context("list blob files")? {
            let path = file.path();
            let Some(hash) = blob_of(&path) else { continue };
            let status = self.inner.store.blobs().status(hash).await.context("ask for a blob's state")?;
            if matches!(status, BlobStatus::NotFound) {
                tracing::info!(file = %path.display(), "file of a blob that nothing knows: removed");
                tokio::fs::remove_file(&path).await.with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn seal_files(data: &Path, tree: &PathBuf) -> io::Result<()> {
    let file = File::open(data)?;
    file.sync_all()?;
    match File::open(tree) {
        Ok(tree) => tree.sync_all()?,
        // Small blobs have their tree in the database.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(dir) = data.parent() {
        File::open(dir)?.sync_all()?;
    }
    file.set_permissions(Permissions::from_mode(SEALED_MODE))?;
    file.sync_all()
}

/// The blob that a file in the store's directory belongs to.
fn blob_of(path: &Path) -> Option<Hash> {
    path.file_stem()?.to_str()?.parse::<BlobHash>().ok().map(|hash| Hash::from_bytes(hash.0))
}
