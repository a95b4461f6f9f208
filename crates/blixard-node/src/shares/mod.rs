//! Files and folders that people share: with whoever has the ticket, wherever they are, and with nobody else.
//!
//! The room owns what this node shares (a file in its data directory, and blobs that `images/` holds for it), the protocol
//! `blixard/share/1` that gives it out, and the other end, which fetches and needs neither a node nor a cluster. A share is no
//! part of the cluster's state: it is made, served and stopped without a leader, by the one node that has it.
//!
//! ```text
//! uploaded -> shared -> (stopped, or its time is over) -> released: its space is freed
//! ```
//!
//! It is fed by `api/` (share, list, stop). Fetches that are under way end with their share. It stops with its task and with the
//! transport; nothing is lost by a crash, because a share counts once it is on disk.

mod fetch;
mod kept;
mod listing;
mod pack;
mod serve;
mod staging;
#[cfg(test)]
mod tests;
mod ticket;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blixard_core::{Part, SecretHash, ShareId, UnixMs};
use futures::TryStreamExt;
use tokio::sync::Semaphore;

pub use fetch::{FetchError, FetchProgress, Fetched, StagingError, fetch};
pub use listing::{ENTRIES_MAX, Entry, Kind, LISTING_BYTES_MAX, Listing, ListingError};
pub use pack::{PackError, Packed};
pub use ticket::ShareTicket;

pub(crate) use kept::{Kept, Share};
pub(crate) use ticket::hash_of;
pub(crate) use wire::Request;

use crate::clock;
use crate::images::Images;
use crate::kept::KeptFile;
use crate::metrics::Metrics;
use crate::runtime;
use crate::transport::Handler;
use kept::KEEPING;

/// Shares of one node: more would make its file and its lists long, and nobody would know them apart.
const SHARES_MAX: usize = 1000;
/// Streams of shares that are sent at once, of all fetches together. Each waits for the same line.
const SENDING_MAX: usize = 64;
/// The longest wait before it is looked whether the time of a share is over: the clock of the host may have been set.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The shortest, so that a clock that stands still keeps nobody busy.
const LOOK_AFTER: Duration = Duration::from_millis(20);

/// Something could not be shared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    /// The listing is none.
    #[error("what was uploaded cannot be shared: {0}")]
    Listing(#[from] ListingError),
    /// It names content that is not here.
    #[error("the content that the listing names is not on this node: upload it first")]
    NoContent,
    /// This node shares too much already.
    #[error("this node has {SHARES_MAX} shares already: stop some with `blixard share --stop`")]
    TooMany,
    /// There is a share of this id.
    #[error("there is a share {0} already")]
    Exists(ShareId),
    /// The node failed.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// What this node shares. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shares {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    keeper: KeptFile<Kept>,
    images: Images,
    sending: Semaphore,
    metrics: Arc<Metrics>,
}

/// The name under which the blobs of a share are held.
fn held_as(id: ShareId) -> String {
    format!("share-{id}")
}

impl Shares {
    /// Reads what this node shares, and lets go of blobs that no share has any more.
    ///
    /// # Errors
    /// With [`crate::Damage`] when the file holds something else, or when the blob store fails.
    pub(crate) async fn open(path: &Path, images: Images, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let inner =
            Inner { keeper: KeptFile::open(path, &KEEPING)?, images, sending: Semaphore::new(SENDING_MAX), metrics };
        let shares = Self { inner: Arc::new(inner) };
        let known: Vec<String> = shares.list().into_keys().map(held_as).collect();
        let held = shares.inner.images.held().await.context("look what is held for shares")?;
        for name in held.iter().filter(|name| name.starts_with("share-") && !known.contains(name)) {
            tracing::info!(name, "blobs of a share that is no more are released");
            shares.inner.images.release(name).await?;
        }
        Ok(shares)
    }

    /// What is shared.
    pub(crate) fn list(&self) -> Kept {
        self.inner.keeper.read()
    }

    /// Whether all that a share consists of is on this node. It is not once the blob store was lost.
    pub(crate) async fn is_whole(&self, share: &Share) -> bool {
        for part in [Some(share.listing), share.content].into_iter().flatten() {
            if !self.inner.images.has(part).await {
                return false;
            }
        }
        true
    }

    /// Shares what was uploaded: a listing, and the content that it names. It is shared, and stays so over a restart, when this
    /// returns.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub(crate) async fn add(
        &self,
        id: ShareId,
        secret_hash: SecretHash,
        listing: Part,
        expires_at: Option<UnixMs>,
    ) -> Result<Share, ShareError> {
        if listing.bytes > LISTING_BYTES_MAX as u64 {
            return Err(ListingError::TooLong.into());
        }
        let pieces = self.inner.images.export(listing.hash).await.map_err(anyhow::Error::from)?;
        let encoded = pieces.try_fold(Vec::new(), async |mut all, piece| {
            all.extend_from_slice(&piece);
            Ok(all)
        });
        let read = Listing::decode(&encoded.await.context("read the listing of a share")?)?;
        if let Some(content) = read.content
            && !self.inner.images.has(content).await
        {
            return Err(ShareError::NoContent);
        }
        let share = Share {
            secret_hash,
            listing,
            content: read.content,
            name: listing::shown(&read.name),
            is_folder: read.is_folder(),
            files: read.files(),
            created_at: clock::now(),
            expires_at,
        };
        let blobs: Vec<_> = [Some(listing), read.content].into_iter().flatten().map(|part| part.hash).collect();
        self.inner.images.hold(&held_as(id), &blobs).await?;
        let add = |kept: &mut Kept| {
            if kept.contains_key(&id) {
                return Err(ShareError::Exists(id));
            }
            if kept.len() >= SHARES_MAX {
                return Err(ShareError::TooMany);
            }
            kept.insert(id, share.clone());
            Ok(())
        };
        match self.inner.keeper.try_change(add, |_| ()).await {
            Ok(()) => Ok(share),
            // The blobs are those of the share that is there.
            Err(error @ ShareError::Exists(_)) => Err(error),
            Err(error) => {
                self.inner.images.release(&held_as(id)).await?;
                Err(error)
            }
        }
    }

    /// Shares something no longer. Whoever is fetching it is cut off. Gives whether it was shared.
    ///
    /// # Errors
    /// When that cannot be written down.
    pub(crate) async fn stop(&self, id: ShareId) -> anyhow::Result<bool> {
        let mut was_shared = false;
        let remove = |kept: &mut Kept| was_shared = kept.remove(&id).is_some();
        self.inner.keeper.change(remove, |_| ()).await?;
        if was_shared {
            self.inner.images.release(&held_as(id)).await?;
        }
        Ok(was_shared)
    }

    /// What gives shares out: see `serve.rs`.
    pub(crate) fn handler(&self) -> Handler {
        let shares = self.clone();
        crate::transport::handler(move |connection| serve::serve(shares.clone(), connection))
    }

    /// Ends shares whose time is over. Never returns.
    pub(crate) async fn run(self) {
        let mut kept = self.inner.keeper.watch();
        loop {
            let now = clock::now();
            let (over, next_at) = {
                let kept = kept.borrow_and_update();
                let over: Vec<ShareId> =
                    kept.iter().filter(|(_, share)| share.is_over(now)).map(|(id, _)| *id).collect();
                (over, kept.values().filter_map(|share| share.expires_at).filter(|at| *at > now).min())
            };
            for id in over {
                match self.stop(id).await {
                    Ok(_) => tracing::info!(share = %id, "the time of a share is over"),
                    Err(error) => tracing::error!(share = %id, error = format!("{error:#}"), "a share cannot be ended"),
                }
            }
            let wait = next_at.map_or(LOOK_EVERY, |at| Duration::from_millis(at.since_ms(now)));
            let _ = runtime::timeout(wait.clamp(LOOK_AFTER, LOOK_EVERY), kept.changed()).await;
        }
    }
}
