//! Taking bytes in: copied to the store's disk, hashed, and guarded until an image keeps them.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use blixard_core::BlobHash;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use iroh_blobs::api::TempTag;
use iroh_blobs::api::blobs::AddProgressItem;
use tokio::sync::mpsc;

use super::{BlobError, Images, NoSpace};

/// Chunks that may wait between the source and the disk: enough that neither waits for the other's every step.
const WAITING_CHUNKS: usize = 8;

/// How often the free space is looked at. Less than what is always left free, so that the disk is never found full.
const CHECK_EVERY_BYTES: u64 = 64 << 20;

/// Bytes could not be taken in. What was written of them is removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    /// There were none.
    #[error("there is nothing to import: the source is empty")]
    Empty,
    /// They could not be read.
    #[error("the source could not be read to its end: {0}")]
    Source(#[source] io::Error),
    /// The disk is full.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// The store failed.
    #[error("the blob store could not take it in: {0}")]
    Storage(String),
}

impl From<BlobError> for ImportError {
    fn from(error: BlobError) -> Self {
        Self::Storage(error.to_string())
    }
}

/// A blob that was just taken in. It may be removed as unused once this is dropped and no image keeps it.
#[derive(Debug)]
pub(crate) struct ImportedBlob {
    /// Its name.
    pub hash: BlobHash,
    /// Its length in bytes.
    pub bytes: u64,
    /// The index of its chunks, encoded; none when it has none.
    pub index: Option<Bytes>,
    _guard: TempTag,
}

impl Images {
    /// Takes a stream of bytes in as a blob, which is whole and sealed when this returns. Dropping the future gives the
    /// import up.
    ///
    /// # Errors
    /// When the source is empty or fails, or the disk is full or fails.
    pub(crate) async fn import(
        &self,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<ImportedBlob, ImportError> {
        self.take_in(bytes, true).await
    }

    /// Takes a blob in and, where that is asked for, cuts it into chunks.
    pub(super) async fn take_in(
        &self,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send,
        is_cut: bool,
    ) -> Result<ImportedBlob, ImportError> {
        let under_way = self.inner.imports.begin();
        let (sender, receiver) = mpsc::channel(WAITING_CHUNKS);
        let mut added = std::pin::pin!(self.add(receiver));
        let mut pumped = std::pin::pin!(self.pump(bytes, sender));
        // A source that fails ends the import by dropping it: the store knows no other way, and waits for more instead.
        let added = tokio::select! {
            pumped = &mut pumped => {
                pumped?;
                added.await
            }
            added = &mut added => added,
        };
        let guard = match added {
            Ok(guard) => guard,
            Err(error) => {
                // The store's own error for a full disk is not always one.
                self.check_space(CHECK_EVERY_BYTES).await?;
                return Err(ImportError::Storage(error.to_string()));
            }
        };
        let hash = BlobHash(*guard.hash().as_bytes());
        let index = if is_cut { self.cut(hash).await? } else { None };
        self.seal(hash).await?;
        let bytes = self.complete_bytes(hash).await?.ok_or(BlobError::NotWhole(hash))?;
        under_way.succeeded();
        Ok(ImportedBlob { hash, bytes, index, _guard: guard })
    }

    /// Hands the source's bytes on for as long as there is room for them. Ends early, and well, when the store takes no
    /// more: it says why itself.
    async fn pump(
        &self,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send,
        sender: mpsc::Sender<Bytes>,
    ) -> Result<(), ImportError> {
        let mut bytes = std::pin::pin!(bytes);
        let mut length = 0u64;
        let mut checked = 0;
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(ImportError::Source)?;
            if chunk.is_empty() {
                continue;
            }
            length += chunk.len() as u64;
            if length > checked {
                self.check_space(CHECK_EVERY_BYTES.max(chunk.len() as u64)).await?;
                checked = length + CHECK_EVERY_BYTES;
            }
            if sender.send(chunk).await.is_err() {
                break;
            }
        }
        if length == 0 { Err(ImportError::Empty) } else { Ok(()) }
    }

    async fn add(&self, receiver: mpsc::Receiver<Bytes>) -> io::Result<TempTag> {
        let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
            let chunk = receiver.recv().await?;
            Some((Ok(chunk), receiver))
        });
        let mut progress = std::pin::pin!(self.inner.store.blobs().add_stream(chunks).await.stream().await);
        while let Some(item) = progress.next().await {
            match item {
                AddProgressItem::Done(guard) => return Ok(guard),
                AddProgressItem::Error(error) => return Err(error),
                _ => {}
            }
        }
        Err(io::Error::other("the store ended the import without saying why"))
    }
}

/// The files of imports that are under way. The store leaves the file of a failed one behind; it is removed when no other
/// import could own it.
#[derive(Debug, Clone)]
pub(super) struct Imports {
    dir: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    left_files: bool,
}

impl Imports {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, state: Arc::default() }
    }

    fn begin(&self) -> UnderWay {
        self.state.lock().expect("no holder of this lock panics").under_way += 1;
        UnderWay { imports: self.clone(), succeeded: false }
    }

    /// Removes all files of imports.
    pub(super) fn remove_leftovers(&self) {
        let files = match std::fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "files of failed imports cannot be listed");
                return;
            }
        };
        for file in files.flatten() {
            if let Err(error) = std::fs::remove_file(file.path()) {
                tracing::warn!(%error, file = %file.path().display(), "file of a failed import cannot be removed");
            }
        }
    }
}

struct UnderWay {
    imports: Imports,
    succeeded: bool,
}

impl UnderWay {
    fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.imports.state.lock().expect("no holder of this lock panics");
        state.under_way -= 1;
        state.left_files |= !self.succeeded;
        if state.under_way == 0 && std::mem::take(&mut state.left_files) {
            self.imports.remove_leftovers();
        }
    }
}
