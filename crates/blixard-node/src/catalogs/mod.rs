//! Catalogs: images that a cluster publishes for others, and pulling them from there.
//!
//! A catalog is the document `catalog` of the cluster that publishes, so that it needs no quorum, is on every node, and is shared and
//! followed as other documents are, with tickets for reading alone. The room owns what stands in it, the protocol
//! `blixard/images/1` by which whoever has the ticket gets the content of published images and of no others, and the pulls of
//! this node: images that are on their way here from another cluster and then become this cluster's own.
//!
//! ```text
//! asked for -> transfer (queued, running, failed, paused: see `transfers/`) -> whole -> looked at -> added to the cluster
//!                                                                         refused or given up -> dropped
//! ```
//!
//! It is fed by `api/`. What fetches is `transfers/`, as for every image. It stops with its task and with the transport. A crash
//! loses nothing: pulls stand in a file, and what was fetched stays until they end.

mod pull;
mod record;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use blixard_core::{BlobHash, DocumentKey, DocumentName, ImageId, ImageName, UnixMs};
use tokio::sync::{Notify, watch};

use crate::agent::Agent;
use crate::documents::{Contact, DocumentError, Documents};
use crate::images::{Holder, Images, Opener};
use crate::kept::KeptFile;
use crate::raft::Raft;
use crate::runtime;
use crate::transfers::Transfers;
use crate::transport::{PeerAddress, Transport};
use pull::{KEEPING, Pulls};
use record::{IMAGES, NODES, image_name, node};

pub(crate) use pull::{PullError, PullState};
pub(crate) use record::{NOTE_CHARS_MAX, PublishedImage};

/// Nodes of another cluster from which one image is fetched at once, at most: more only share the same line.
const SOURCES_MAX: usize = 16;
/// Images that are read of one catalog: as many as a cluster may have.
const IMAGES_MAX: usize = blixard_core::limits::IMAGES_MAX;
/// Changes of this time are taken together.
const GATHER: Duration = Duration::from_millis(50);
/// How often pulls are looked after while there are any.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it looks though nothing has changed.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);

/// A published image, and what its catalog says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) name: ImageName,
    pub(crate) image: PublishedImage,
    pub(crate) published_at: UnixMs,
}

/// A catalog as this node has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Catalog {
    /// The document that it is.
    pub(crate) document: DocumentName,
    /// How it is with the cluster that publishes it; nothing for this one's own.
    pub(crate) contact: Option<Contact>,
    /// Its images, by their names.
    pub(crate) images: Vec<Published>,
}

/// The rooms that catalogs lean on.
pub(crate) struct Leans {
    pub(crate) raft: Raft,
    pub(crate) transport: Transport,
    pub(crate) images: Images,
    pub(crate) documents: Documents,
    pub(crate) transfers: Transfers,
    pub(crate) agent: Agent,
    /// Whether this node gives images out.
    pub(crate) shares_images: bool,
}

/// The catalogs of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Catalogs {
    inner: Arc<Inner>,
}

struct Inner {
    rooms: Leans,
    /// The blobs of what this cluster publishes.
    published: watch::Sender<BTreeSet<BlobHash>>,
    pulls: KeptFile<Pulls>,
    /// What protects images that are being pulled from being dropped as unknown.
    guards: Mutex<BTreeMap<ImageId, crate::agent::Importing>>,
    /// Why pulls that ended without an image did, until the image is asked for again.
    failures: Mutex<BTreeMap<ImageId, String>>,
    stirred: Notify,
}

impl Catalogs {
    /// Reads which pulls are under way.
    ///
    /// # Errors
    /// With [`crate::Damage`] when the file holds something else.
    pub(crate) fn open(path: &Path, rooms: Leans) -> anyhow::Result<Self> {
        let pulls = KeptFile::open(path, &KEEPING)?;
        let inner = Inner {
            rooms,
            published: watch::Sender::default(),
            pulls,
            guards: Mutex::default(),
            failures: Mutex::default(),
            stirred: Notify::new(),
        };
        let catalogs = Self { inner: Arc::new(inner) };
        // Before the agent looks for the first time.
        catalogs.guard_pulls();
        Ok(catalogs)
    }

    /// Publishes an image of this cluster under its name, or says something else of it.
    ///
    /// # Errors
    /// When the documents cannot be written.
    pub(crate) async fn publish(&self, name: &ImageName, image: &PublishedImage) -> Result<(), DocumentError> {
        let (documents, own) = (&self.inner.rooms.documents, DocumentName::catalog());
        documents.create(&own).await?;
        documents.set(&own, &image_key(name)?, image.encode()).await?;
        Ok(())
    }

    /// Takes an image back: nobody sees it any more, nor gets more of it. What others have pulled is theirs.
    ///
    /// # Errors
    /// When it is not published, or the documents cannot be written.
    pub(crate) async fn withdraw(&self, name: &ImageName) -> Result<(), DocumentError> {
        self.inner.rooms.documents.delete(&DocumentName::catalog(), &image_key(name)?).await?;
        Ok(())
    }

    /// This cluster's own catalog, if it has published anything, and those that it follows.
    ///
    /// # Errors
    /// When the documents cannot be read.
    pub(crate) async fn list(&self) -> Result<Vec<Catalog>, DocumentError> {
        let mut catalogs = Vec::new();
        for listed in self.inner.rooms.documents.list().await? {
            if listed.is_catalog {
                let images = self.images_of(&listed.name).await?;
                let contact = listed.origin.map(|(_, contact)| contact);
                catalogs.push(Catalog { document: listed.name, contact, images });
            }
        }
        Ok(catalogs)
    }

    /// What stands in a catalog. A record that cannot be read, or has not come yet, is left out.
    async fn images_of(&self, catalog: &DocumentName) -> Result<Vec<Published>, DocumentError> {
        let documents = &self.inner.rooms.documents;
        let mut images = Vec::new();
        for found in documents.entries(catalog, IMAGES, false).await?.into_iter().take(IMAGES_MAX) {
            let Some(name) = image_name(&found.entry.key).filter(|_| found.is_here) else { continue };
            let Some(value) = self.record(catalog, &found.entry.key, found.entry.bytes).await else { continue };
            if let Some(image) = PublishedImage::decode(&value) {
                images.push(Published { name, image, published_at: found.entry.written_at() });
            }
        }
        Ok(images)
    }

    async fn record(&self, catalog: &DocumentName, key: &DocumentKey, bytes: u64) -> Option<Vec<u8>> {
        if bytes > record::RECORD_BYTES_MAX {
            return None;
        }
        self.inner.rooms.documents.get(catalog, key).await.ok().map(|(_, value)| value)
    }

    /// The nodes from which the images of a catalog may be had, those that spoke last first.
    async fn holders_of(&self, catalog: &DocumentName) -> Result<Vec<Holder>, DocumentError> {
        let Leans { documents, transport, .. } = &self.inner.rooms;
        let Some(secret) = documents.secret_of(catalog) else { return Ok(Vec::new()) };
        let mut found = documents.entries(catalog, NODES, false).await?;
        found.sort_by_key(|found| std::cmp::Reverse(found.entry.written_at()));
        let mut holders = Vec::new();
        for found in found.into_iter().filter(|found| found.is_here).take(SOURCES_MAX) {
            let Some(value) = self.record(catalog, &found.entry.key, found.entry.bytes).await else { continue };
            let Some(address) = node(&found.entry.key, &value) else { continue };
            // Another cluster says where its nodes are, and nothing of where ours are.
            if transport.learn_outside(&address) {
                let opened_by = Some(Opener(secret));
                holders.push(Holder { endpoint: address.endpoint, is_whole: false, same_site: None, opened_by });
            }
        }
        Ok(holders)
    }

    /// Keeps what this node publishes, and what it pulls, in line with the documents. Never returns.
    pub(crate) async fn run(self) {
        let mut changes = self.inner.rooms.documents.changes();
        loop {
            changes.borrow_and_update();
            if let Err(error) = self.look().await {
                tracing::debug!(error = format!("{error:#}"), "catalogs cannot be read now; it is tried again");
            }
            self.look_after_pulls().await;
            let patience = if self.inner.pulls.read().is_empty() { LOOK_ANYWAY } else { LOOK_EVERY };
            tokio::select! {
                _ = runtime::timeout(patience, changes.changed()) => runtime::sleep(GATHER).await,
                () = self.inner.stirred.notified() => {}
            }
        }
    }

    /// Learns what is published, and says in the catalog where this node is.
    async fn look(&self) -> anyhow::Result<()> {
        let Leans { documents, transport, shares_images, .. } = &self.inner.rooms;
        let own = DocumentName::catalog();
        let is_there = documents.list().await?.iter().any(|listed| listed.name == own);
        let images = if is_there { self.images_of(&own).await? } else { Vec::new() };
        let parts = images.iter().flat_map(|published| published.image.manifest.parts());
        self.inner.published.send_replace(parts.map(|part| part.hash).collect());
        if !is_there || !*shares_images {
            return Ok(());
        }
        let address: PeerAddress = transport.address();
        let key: DocumentKey = format!("{NODES}{}", address.endpoint).parse().context("name this node")?;
        // Written when it is new: writing what is there changes nothing.
        documents.set(&own, &key, serde_json::to_vec(&address).context("say where this node is")?).await?;
        Ok(())
    }

    /// The names of images that are being pulled, for lists of transfers: the cluster does not know them yet.
    pub(crate) fn names(&self) -> BTreeMap<ImageId, ImageName> {
        self.inner.pulls.read().into_iter().map(|(id, pull)| (id, pull.name)).collect()
    }
}

fn image_key(name: &ImageName) -> Result<DocumentKey, DocumentError> {
    Ok(format!("{IMAGES}{name}").parse::<DocumentKey>().context("name an image in the catalog")?)
}
