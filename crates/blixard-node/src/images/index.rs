//! Chunk indexes of blobs: made when a blob is imported, kept as blobs of their own, and read to see what two have in common.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use blixard_core::chunks::{CHUNKS_MAX, ChunkIndex, Cutter, Rule};
use blixard_core::{BlobHash, Part};
use bytes::Bytes;
use futures::StreamExt;
use iroh_blobs::Hash;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::keep::CHUNKS;
use super::local::Indexed;
use super::{BlobError, Images, ImportError, ImportedBlob};
use crate::runtime::blocking;

/// Read at once from a blob: large enough that reading costs nothing beside hashing.
const READ_BYTES: usize = 1 << 20;
/// How a qcow2 file begins. Clusters that are compressed lie in it one behind the other, at any byte.
const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

impl Images {
    /// Cuts a blob that is here as a whole, and gives its zeros back to the disk unless it is sealed already. Gives the index,
    /// encoded; none when the blob is too large for one.
    pub(super) async fn cut(&self, hash: BlobHash) -> Result<Option<Bytes>, BlobError> {
        let path = self.inner.files.data_path(&Hash::from_bytes(hash.0));
        let cut = blocking(move || cut_file(&path, hash)).await.and_then(|cut| cut);
        let index =
            cut.map_err(|error| BlobError::Storage(format!("cut blob {} into chunks: {error}", hash.short())))?;
        Ok(index.map(|index| index.encode().into()))
    }

    /// Takes an index in as a blob.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub(crate) async fn import_index(&self, encoded: Bytes) -> Result<ImportedBlob, ImportError> {
        self.take_in(futures::stream::iter([Ok(encoded)]), false).await
    }

    /// The index in a part of an image, which must be here; nothing when it is none, or is about another blob than this.
    pub(crate) async fn index_of(&self, index: Part, blob: Part) -> Result<Option<ChunkIndex>, BlobError> {
        let read = self.read_index(index.hash).await?;
        let is_fit = |index: &ChunkIndex| index.blob() == blob.hash && index.blob_bytes() == blob.bytes;
        let found = read.filter(is_fit);
        if found.is_none() {
            tracing::warn!(blob = %blob.hash, "the chunk index of an image is none of its disk: the disk is fetched as a whole");
        }
        Ok(found)
    }

    /// The index in a blob; nothing when there is none in it.
    async fn read_index(&self, hash: BlobHash) -> Result<Option<ChunkIndex>, BlobError> {
        let path = self.path(hash).await?;
        let read = blocking(move || -> io::Result<_> { Ok(ChunkIndex::decode(&std::fs::read(path)?)) }).await;
        match read.and_then(|read| read).map_err(|error| BlobError::Storage(format!("read a chunk index: {error}")))? {
            Ok(index) => Ok(Some(index)),
            Err(error) => {
                tracing::warn!(blob = %hash, %error, "a blob that should be a chunk index is none");
                Ok(None)
            }
        }
    }

    /// All sealed blobs of kept images that have an index, but for one.
    pub(super) async fn indexed(&self, but: BlobHash) -> Result<Vec<Indexed>, BlobError> {
        let storage = |error: &dyn std::fmt::Display| BlobError::Storage(format!("list chunk indexes: {error:#}"));
        let mut names = self.inner.store.tags().list().await.map_err(|error| storage(&error))?;
        let mut hashes = Vec::new();
        while let Some(tag) = names.next().await {
            let tag = tag.map_err(|error| storage(&error))?;
            if String::from_utf8_lossy(tag.name.as_ref()).ends_with(CHUNKS) {
                hashes.push(BlobHash(*tag.hash.as_bytes()));
            }
        }
        hashes.sort();
        hashes.dedup();
        let mut found = Vec::new();
        for hash in hashes {
            // What is not here as a whole, or is damaged, is of no use, and no reason to fail.
            let Ok(Some(index)) = self.read_index(hash).await else { continue };
            if index.blob() == but {
                continue;
            }
            if let Ok(path) = self.path(index.blob()).await {
                found.push(Indexed { path, index });
            }
        }
        Ok(found)
    }
}

/// The index of a file; none once it has more chunks than one may have.
fn cut_file(path: &Path, hash: BlobHash) -> io::Result<Option<ChunkIndex>> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut cutter = None;
    loop {
        let bytes = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => &buffer[..bytes],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if cutter.as_ref().is_some_and(|cutter: &Cutter| cutter.chunks() > CHUNKS_MAX) {
            return Ok(None);
        }
        let rule = if bytes.starts_with(QCOW2_MAGIC) { Rule::Content } else { Rule::Blocks };
        cutter.get_or_insert_with(|| Cutter::new(rule)).push(bytes);
    }
    let index = cutter.unwrap_or_else(|| Cutter::new(Rule::Blocks)).finish(hash);
    // The same content was imported before when the file is sealed.
    if !file.metadata()?.permissions().readonly() {
        let zeros = index.chunks().filter(|(_, chunk)| chunk.print.is_none());
        free(path, zeros.map(|(start, chunk)| (start, chunk.bytes)))?;
    }
    Ok(Some(index).filter(ChunkIndex::is_short_enough))
}

/// Gives places of a file that hold nothing but zeros back to the disk. Where the file system cannot, they stay.
pub(super) fn free(path: &Path, zeros: impl IntoIterator<Item = (u64, u64)>) -> io::Result<()> {
    let mut zeros = zeros.into_iter().peekable();
    if zeros.peek().is_none() {
        return Ok(());
    }
    let file = OpenOptions::new().write(true).open(path)?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for (start, bytes) in zeros {
        let (Ok(start), Ok(bytes)) = (i64::try_from(start), i64::try_from(bytes)) else { continue };
        match fallocate(file.as_fd(), flags, start, bytes) {
            Ok(()) => {}
            Err(Errno::EOPNOTSUPP) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
