//! The content of images: blobs named by their BLAKE3 hash, kept on this host and served to members.
//!
//! The room owns the blob store (a directory of plain files and a database beside them) and the protocol that serves it.
//! It never decides which images this node holds, knows no names and no catalog: `transfers/` and the agent call its
//! verbs (import, keep, fetch, export, drop). It writes to a blob only while it is incomplete; every byte is checked
//! against the hash before it counts as there.
//!
//! A part of an image goes through these states, and only *sealed* ones are booted or reported as held:
//!
//! ```text
//! absent -> partial -> complete -> sealed -> (no image keeps it) -> collected
//! ```
//!
//! Sealed means: verified, flushed to the disk, and read-only. A hypervisor opens a sealed blob in place.
//!
//! What a crash loses: of the process (kill -9), an import that had not ended and what a fetch received in its last few
//! dozen milliseconds; of the host (power), also what was verified but not yet sealed, which is therefore read and
//! verified again before it is sealed. It stops with [`Images::shutdown`], after the transport, which stops serving.

mod collect;
mod demand;
mod export;
mod fetch;
mod gather;
mod holders;
mod import;
mod index;
mod keep;
mod limits;
mod local;
mod orders;
mod plan;
mod rehash;
mod seal;
mod serve;
mod slices;
mod space;
mod standing;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
mod uses;
mod verified;
mod workers;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blixard_core::{BlobHash, EndpointId, Manifest, Part};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::fs::options::Options;
use iroh_blobs::store::{GcConfig, fs::options::PathOptions};

use crate::config::CacheMax;
use crate::damage::check_database;
use crate::metrics::Counters;
use crate::transport::{Connection, Handler, Transport};
use plan::Why;

pub(crate) use demand::{Arriving, Wanted};
pub(crate) use fetch::{FetchError, Progress};
pub(crate) use holders::{Holder, Opener};
pub(crate) use import::{ImportError, ImportedBlob};
pub(crate) use limits::{BYTES_PER_S_MIN, Direction, Limits, Rates};
pub(crate) use space::{NoRoom, NoSpace, Usage};
pub(crate) use standing::{SCORE_MAX, Standing};
pub(crate) use uses::Uses;
pub(crate) use verified::{PIECE_BYTES, Received, StreamError};

use collect::Collector;
use demand::Demands;
use import::Imports;
use space::Coming;
use standing::Standings;

/// The store's database, beside the folder with the blobs.
const DATABASE: &str = "blobs.db";
/// The file with the uses of images, beside it.
const USES: &str = "uses.json";
/// What to do when it is damaged.
const STORE_LOST: &str = "move the folder images/ away: this node then fetches again what other nodes hold; an image that no \
                          other node holds has to be imported again, from its file or from images/data";
/// How often blobs that no image keeps are looked for. Dropping an image starts a search at once; this finds the rest,
/// such as imports that were given up.
const COLLECT_EVERY: Duration = Duration::from_secs(60);
/// How long the store's database may gather changes before it writes them. The store's own half a second would be lost
/// by a kill -9 at the start of a fetch: it would not know that the blob's first pieces are there.
const GATHER: Duration = Duration::from_millis(50);

/// A blob cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// It is not here, or not all of it.
    #[error("blob {0} is not on this node as a whole: fetch its image first")]
    NotWhole(BlobHash),
    /// Its file was removed or cut behind the store's back.
    #[error(
        "the file of blob {hash}, {path}, is missing or of the wrong length: drop the image on this node and fetch it again"
    )]
    Damaged {
        /// The blob.
        hash: BlobHash,
        /// Where its file should be.
        path: String,
    },
    /// The store did not answer.
    #[error("the blob store failed: {0}")]
    Storage(String),
}

/// The blobs of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: FsStore,
    files: PathOptions,
    transport: Transport,
    collector: Collector,
    imports: Imports,
    standings: Standings,
    limits: Limits,
    demands: Demands,
    received_why: Counters<1>,
    uses: Uses,
    /// How much of the disk images may take.
    max: CacheMax,
    coming: Coming,
}

impl Images {
    /// Looks whether the store in a directory is whole. Content is not looked at: it is checked against its hash whenever it is
    /// sent.
    ///
    /// # Errors
    /// With [`crate::Damage`] when the store's database is damaged or missing while there are blobs.
    pub(crate) fn prepare(dir: &Path) -> anyhow::Result<()> {
        let database = dir.join(DATABASE);
        let has_blobs = std::fs::read_dir(dir.join("data")).is_ok_and(|mut blobs| blobs.next().is_some());
        if !has_blobs && !database.exists() {
            return Ok(());
        }
        match check_database(&database, STORE_LOST) {
            // A start that was cut short while it made the store.
            Err(damage) if !has_blobs => {
                tracing::warn!(%damage, "the store of images, which holds none yet, is made anew");
                std::fs::remove_file(&database).with_context(|| format!("remove {}", database.display()))
            }
            looked => Ok(looked?),
        }
    }

    /// Opens the store in a directory, or makes it. Only one process can have it open.
    ///
    /// # Errors
    /// When the directory cannot be used or another process has it open.
    pub(crate) async fn open(dir: PathBuf, transport: Transport, max: CacheMax) -> anyhow::Result<Self> {
        Self::open_collecting(dir, transport, max, COLLECT_EVERY).await
    }

    async fn open_collecting(
        dir: PathBuf,
        transport: Transport,
        max: CacheMax,
        every: Duration,
    ) -> anyhow::Result<Self> {
        let dir = std::path::absolute(&dir).with_context(|| format!("use {} for images", dir.display()))?;
        let uses = Uses::open(&dir.join(USES))?;
        let collector = Collector::new(every);
        let mut options = Options::new(&dir);
        // Blobs within the database could not be opened by a hypervisor.
        options.inline.max_data_inlined = 0;
        options.batch.max_read_duration = GATHER;
        options.batch.max_write_duration = GATHER;
        // The collector itself decides when the next search begins.
        options.gc = Some(GcConfig { interval: Duration::ZERO, add_protected: Some(collector.before_each_run()) });
        let files = options.path.clone();
        let store = FsStore::load_with_opts(dir.join(DATABASE), options)
            .await
            .map_err(|error| anyhow::anyhow!("{error:#}"))
            .with_context(|| format!("open blob store in {}", dir.display()))?;
        let imports = Imports::new(files.temp_path.clone());
        let (standings, limits) = (Standings::default(), Limits::none());
        let (demands, coming) = (Demands::new(), Coming::default());
        let received_why = Counters::default();
        Why::ALL.iter().for_each(|why| drop(received_why.get_or_create(&why.label())));
        let inner = Inner {
            store,
            files,
            transport,
            collector,
            imports,
            standings,
            limits,
            demands,
            received_why,
            uses,
            max,
            coming,
        };
        let images = Self { inner: Arc::new(inner) };
        images.remove_leftovers().await.with_context(|| format!("tidy the blob store in {}", dir.display()))?;
        Ok(images)
    }

    /// What serves the blobs to members: see `serve.rs`.
    pub(crate) fn handler(&self) -> Handler {
        let (store, limits) = (self.inner.store.deref().clone(), self.inner.limits.clone());
        crate::transport::handler(move |connection| serve::serve(store.clone(), limits.clone(), connection))
    }

    /// Serves a connection of somebody who may have some blobs, as long as those are what it asks for.
    pub(crate) async fn serve_published(
        &self,
        connection: Connection,
        may_have: impl Fn(BlobHash) -> bool + Send + Sync,
    ) {
        let (store, limits) = (self.inner.store.deref().clone(), self.inner.limits.clone());
        serve::serve_some(store, limits, connection, may_have).await;
    }

    /// When each image was last used here, and which are pinned.
    pub(crate) fn uses(&self) -> &Uses {
        &self.inner.uses
    }

    /// How fast content may go, and how much has gone.
    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// The file of a blob, to be opened for reading in place. It stays there, unwritten, for as long as an image keeps the
    /// blob; whoever has it open can read on after that.
    ///
    /// # Errors
    /// When the blob is not on this node as a whole.
    pub(crate) async fn path(&self, hash: BlobHash) -> Result<PathBuf, BlobError> {
        let Some(bytes) = self.complete_bytes(hash).await? else { return Err(BlobError::NotWhole(hash)) };
        let path = self.inner.files.data_path(&Hash::from_bytes(hash.0));
        match tokio::fs::metadata(&path).await {
            Ok(meta) if seal::is_sealed(&meta, bytes) => Ok(path),
            Ok(meta) if meta.len() == bytes => Err(BlobError::NotWhole(hash)),
            _ => Err(BlobError::Damaged { hash, path: path.display().to_string() }),
        }
    }

    /// Whether all parts of an image are here, sealed and of the length that the manifest names.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) async fn is_complete(&self, manifest: &Manifest) -> Result<bool, BlobError> {
        for part in manifest.parts() {
            if self.complete_bytes(part.hash).await? != Some(part.bytes) || !self.is_sealed(part).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a blob is here as a whole. A store that does not answer has nothing.
    pub(crate) async fn has(&self, part: Part) -> bool {
        matches!(self.complete_bytes(part.hash).await, Ok(Some(bytes)) if bytes == part.bytes)
    }

    /// How many bytes of an image's parts are here and verified.
    ///
    /// # Errors
    /// When the store does not answer.
    #[cfg(test)]
    pub(crate) async fn local_bytes(&self, manifest: &Manifest) -> Result<u64, BlobError> {
        let mut sum = 0u64;
        for part in manifest.parts() {
            let present = self.present(part.hash).await?;
            sum = sum.saturating_add(present.total_bytes().min(part.bytes));
        }
        Ok(sum)
    }

    /// How well other nodes have served this one since it started, by their keys.
    pub(crate) fn standings(&self) -> BTreeMap<EndpointId, Standing> {
        self.inner.standings.all()
    }

    /// Bytes of content received, by why they were fetched when they were.
    pub(crate) fn received_why(&self) -> &Counters<1> {
        &self.inner.received_why
    }

    /// Removes at once what no image keeps, and returns when that is done.
    pub(crate) async fn collect(&self) {
        self.inner.collector.run_now().await;
    }

    /// Whether blobs that no image keeps are still being removed. Once this is false it stays so until the node restarts,
    /// and the space of dropped images is not freed.
    pub(crate) fn collects(&self) -> bool {
        self.inner.collector.is_alive()
    }

    /// Whether the store answers. Once it does not, because its disk failed or was filled by others, it does not until the
    /// node is restarted.
    pub(crate) async fn is_alive(&self) -> bool {
        self.inner.store.sync_db().await.is_ok()
    }

    /// Writes everything out and closes the store. What is called after this fails.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.inner.store.shutdown().await {
            tracing::debug!(%error, "the blob store was closed before");
        }
    }

    /// The length of a blob that is here as a whole.
    async fn complete_bytes(&self, hash: BlobHash) -> Result<Option<u64>, BlobError> {
        match self.inner.store.blobs().status(Hash::from_bytes(hash.0)).await {
            Ok(BlobStatus::Complete { size }) => Ok(Some(size)),
            Ok(_) => Ok(None),
            Err(error) => Err(BlobError::Storage(format!("{error:#}"))),
        }
    }
}

#[cfg(test)]
mod name {
    use crate::transport::Protocol;

    #[test]
    fn the_transport_and_the_store_name_the_protocol_alike() {
        assert_eq!(Protocol::Blobs.alpn(), iroh_blobs::ALPN);
    }
}
