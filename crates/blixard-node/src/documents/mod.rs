//! Documents: sets of keys and values that every member has whole, and that can be read and written without a quorum.
//!
//! The room owns the store of entries (who wrote what under which key, and when), the values themselves, the two
//! protocols by which members compare entries and ask each other for values, and the one by which other clusters read and write
//! documents for which they have a ticket (`outside.rs` answers, `join.rs` asks, `ledger.rs` says which those are). It never decides who is a member: `node/` tells it
//! (see [`Circle`]). It writes in no name but this node's own, whose key signs each entry.
//!
//! ```text
//! set -> value on disk -> entry signed -> told to others -> they fetch the value
//! ```
//!
//! Three loops carry it ([`Documents::run`]): `spread.rs` compares entries with other members whenever there is reason to,
//! `gather.rs` looks which values are missing or not needed any more, and `join.rs` follows documents of other clusters. They look anew each time, so that a lost message, a
//! restart or a partition costs time and nothing else.
//!
//! What a crash loses: of the process, nothing that was acknowledged; what came from others in the last half second comes
//! again. It stops with [`Documents::shutdown`], after the transport.

mod error;
mod exchange;
mod gather;
mod join;
mod ledger;
mod outside;
mod read;
mod spread;
mod stored;
mod sums;
#[cfg(test)]
mod tests;
mod ticket;
mod values;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use blixard_core::limits::DOCUMENT_VALUE_BYTES_MAX as VALUE_BYTES_MAX;
use blixard_core::{BlobHash, DocumentKey, DocumentName, DocumentsSecret, EndpointId, ShareId};
use iroh_blobs::Hash;
use iroh_docs::actor::{OpenOpts, SyncHandle};
use iroh_docs::store::fs::Store;
use iroh_docs::sync::{Event, MAX_TIMESTAMP_FUTURE_SHIFT};
use iroh_docs::{Author, Capability, ContentStatus, NamespaceId, Record, SignedEntry};
use tokio::sync::{Notify, RwLock, Semaphore, watch};

use crate::clock;
use crate::damage::check_database;
use crate::metrics::Metrics;
use crate::transport::{SecretKey, Transport};
use join::Link;
use ledger::Ledger;
use outside::{ANSWERING_MAX, Turn};
use spread::Whence;
use stored::{Space, latest, next_stamp};
use values::Values;

pub(crate) use error::DocumentError;
pub(crate) use join::Contact;
pub(crate) use ledger::DocumentShare;
pub(crate) use read::{Found, Listed};
pub(crate) use stored::{Entry, read_stored_key, stored_key};
pub(crate) use ticket::TICKET_NODES_MAX;
pub use ticket::{DocumentRight, DocumentTicket};
pub(crate) use wire::{Answer, Request};

/// Keys of one document: all are looked at whenever one has changed.
const KEYS_MAX: usize = 10_000;
/// Entries of one document that are taken from outside of the cluster: each key may have been written by several nodes.
const ENTRIES_MAX: usize = 4 * KEYS_MAX;
/// Documents of a cluster: each is compared by itself.
const DOCUMENTS_MAX: usize = 64;
/// How long a request waits for the documents to be opened, which takes a moment after a node has started.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// What the store may have to tell before it is heard.
const EVENTS_WAITING: usize = 256;
/// The database with the entries.
const DATABASE: &str = "entries.redb";
/// The folder with the values.
const VALUES: &str = "values";
/// What to do when the database is damaged.
const STORE_LOST: &str = "move the folder documents/ away: this node then gets the documents again from the other nodes; what no \
                          other node has is lost, but for the values, which are the files in documents/values";

/// Who shares the documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Circle {
    /// The secret of the cluster's documents, once this node knows it.
    pub(crate) secret: Option<DocumentsSecret>,
    /// The other members.
    pub(crate) members: BTreeSet<EndpointId>,
}

/// The documents of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Documents {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    /// Signs what this node writes. It is the node's own key, so that an entry names its node and nobody can write as another.
    author: Author,
    store: SyncHandle,
    values: Values,
    circle: watch::Sender<Circle>,
    open: watch::Sender<Spaces>,
    /// Held by whoever writes, from looking at what is there to the new entry.
    writing: tokio::sync::Mutex<()>,
    /// Shared by whoever has a value on the disk and no entry for it yet; taken alone to remove what has none.
    gate: RwLock<()>,
    /// What each document had when it was last looked at, and what was added here since.
    held: Mutex<BTreeMap<NamespaceId, Held>>,
    ledger: watch::Sender<Ledger>,
    /// Held by whoever opens and closes what the ledger says.
    opening: tokio::sync::Mutex<()>,
    links: Mutex<BTreeMap<DocumentName, Arc<Link>>>,
    /// By which those who write with the same ticket wait for each other.
    turns: Mutex<BTreeMap<ShareId, Turn>>,
    answering: Semaphore,
    /// How often each document has changed since this node started.
    noted: Mutex<BTreeMap<NamespaceId, u64>>,
    news: Mutex<News>,
    stirred: Notify,
    /// By which the store tells what is new in it.
    events: (async_channel::Sender<Event>, async_channel::Receiver<Event>),
    changes: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

/// The documents that are open.
#[derive(Clone, Default)]
struct Spaces {
    index: Option<Space>,
    ledger: Option<Space>,
    /// Those that people name, of this cluster and of others.
    named: BTreeMap<DocumentName, Space>,
}

impl Spaces {
    fn all(&self) -> impl Iterator<Item = &Space> {
        self.index.iter().chain(&self.ledger).chain(self.named.values())
    }
}

/// How much there is of a document.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Keys, deleted ones included: that they were deleted is kept, so that nobody brings them back.
    keys: usize,
    /// Entries of all authors.
    entries: usize,
    /// Bytes of all values that count.
    bytes: u64,
}

impl Held {
    fn add(&mut self, more: Self) {
        self.keys += more.keys;
        self.entries += more.entries;
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

/// What `spread.rs` has not acted on yet.
#[derive(Default)]
struct News {
    changed: BTreeMap<NamespaceId, Whence>,
    /// Members that were met, and so can be reached.
    met: BTreeSet<EndpointId>,
}

impl Documents {
    /// Looks whether the store in a directory is whole.
    ///
    /// # Errors
    /// With [`crate::Damage`] when the database is damaged.
    pub(crate) fn prepare(dir: &Path) -> anyhow::Result<()> {
        let database = dir.join(DATABASE);
        let has_values = std::fs::read_dir(dir.join(VALUES)).is_ok_and(|mut values| values.next().is_some());
        if !has_values && !database.exists() {
            return Ok(());
        }
        match check_database(&database, STORE_LOST) {
            // A start that was cut short while it made the database.
            Err(damage) if !has_values => {
                tracing::warn!(%damage, "the store of documents, which has none yet, is made anew");
                std::fs::remove_file(&database).with_context(|| format!("remove {}", database.display()))
            }
            looked => Ok(looked?),
        }
    }

    /// Opens the store in a directory, or makes it. Nothing is in it until [`Self::meet`] has named the cluster's secret.
    ///
    /// # Errors
    /// When the directory cannot be used or another process has it open.
    pub(crate) async fn open(
        dir: &Path,
        key: &SecretKey,
        transport: Transport,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let (database, values) = (dir.join(DATABASE), dir.join(VALUES));
        let opened = crate::runtime::blocking(move || -> anyhow::Result<(Store, Values)> {
            let values = Values::open(&values)?;
            let store = Store::persistent(&database);
            Ok((store.with_context(|| format!("open the documents in {}", database.display()))?, values))
        });
        let (store, values) = opened.await.context("open the store of documents")??;
        let store = SyncHandle::spawn(store, None, transport.id().short());
        let inner = Inner {
            transport,
            author: Author::from_bytes(&key.to_bytes()),
            store,
            values,
            circle: watch::Sender::default(),
            open: watch::Sender::default(),
            writing: tokio::sync::Mutex::default(),
            gate: RwLock::default(),
            held: Mutex::default(),
            ledger: watch::Sender::default(),
            opening: tokio::sync::Mutex::default(),
            links: Mutex::default(),
            turns: Mutex::default(),
            answering: Semaphore::new(ANSWERING_MAX),
            noted: Mutex::default(),
            news: Mutex::default(),
            stirred: Notify::new(),
            events: async_channel::bounded(EVENTS_WAITING),
            changes: watch::Sender::default(),
            metrics,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Says who shares the documents, in place of what was said before.
    pub(crate) fn meet(&self, circle: Circle) {
        self.inner.circle.send_if_modified(|known| {
            let is_new = *known != circle;
            *known = circle;
            is_new
        });
    }

    /// Keeps the documents in line with those of the other members, for as long as the node runs.
    pub(crate) async fn run(self) {
        tokio::join!(self.spread(), self.gather(), self.hear(), self.follow_all());
    }

    /// Rises whenever an entry or a value may have come, from here or elsewhere.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Writes everything out and closes the store. What is called after this fails.
    pub(crate) async fn shutdown(&self) {
        // Nobody hears the store any more, which would wait for it.
        self.inner.events.1.close();
        if let Err(error) = self.inner.store.shutdown().await {
            tracing::debug!(error = format!("{error:#}"), "the store of documents was closed before");
        }
    }

    /// Makes a document, which all members then have. One that is there already stays as it is.
    ///
    /// # Errors
    /// When there are too many, or the store fails.
    pub(crate) async fn create(&self, name: &DocumentName) -> Result<(), DocumentError> {
        let spaces = self.spaces().await?;
        if spaces.named.contains_key(name) {
            return Ok(());
        }
        if spaces.named.len() >= DOCUMENTS_MAX {
            return Err(DocumentError::TooMany);
        }
        let index = spaces.index.ok_or(DocumentError::NotOpen)?;
        // The list names documents by its keys; the values, which nobody asks for, only have to be there.
        let mark = (BlobHash(*Hash::new(b"listed").as_bytes()), b"listed".len() as u64);
        let key: DocumentKey = name.as_str().parse().context("list a document by its name")?;
        let _turn = self.inner.writing.lock().await;
        self.write(&index, &key, None, Some(mark)).await?;
        self.open_listed().await?;
        Ok(())
    }

    /// Writes a value under a key, in place of what was there. Writing what is there already changes nothing.
    ///
    /// # Errors
    /// When the document is not known or full, the value too long or empty, or the store fails.
    pub(crate) async fn set(
        &self,
        name: &DocumentName,
        key: &DocumentKey,
        value: Vec<u8>,
    ) -> Result<Entry, DocumentError> {
        match value.len() as u64 {
            0 => return Err(DocumentError::Empty),
            bytes if bytes > VALUE_BYTES_MAX => return Err(DocumentError::TooLarge),
            _ => {}
        }
        self.put(&self.space(name).await?, name, key, value).await
    }

    /// Writes a value that is sound.
    async fn put(
        &self,
        space: &Space,
        name: &DocumentName,
        key: &DocumentKey,
        value: Vec<u8>,
    ) -> Result<Entry, DocumentError> {
        if space.secret.is_none() {
            return Err(DocumentError::ReadOnly(name.clone()));
        }
        let bytes = value.len() as u64;
        let _kept = self.inner.gate.read().await;
        let hash = self.inner.values.put(value).await?;
        let _turn = self.inner.writing.lock().await;
        let before = self.written(space, key).await?;
        match &before {
            Some(before) if (before.hash, before.bytes) == (hash, bytes) => return Ok(before.clone()),
            Some(_) => {}
            None => {
                let mut held = self.inner.held.lock().expect("no holder of this lock panics");
                let known = held.entry(space.id).or_default();
                if known.keys >= KEYS_MAX {
                    return Err(DocumentError::Full(name.clone()));
                }
                known.add(Held { keys: 1, entries: 1, bytes });
            }
        }
        self.write(space, key, before.as_ref(), Some((hash, bytes))).await
    }

    /// Deletes a key, whoever wrote it.
    ///
    /// # Errors
    /// When the document or the key is not known, or the store fails.
    pub(crate) async fn delete(&self, name: &DocumentName, key: &DocumentKey) -> Result<Entry, DocumentError> {
        let space = self.space(name).await?;
        let _turn = self.inner.writing.lock().await;
        let before = self.written(&space, key).await?;
        let is_there = before.as_ref().is_some_and(|before| !before.is_deleted());
        if !is_there {
            return Err(DocumentError::NoKey(name.clone(), key.clone()));
        }
        if space.secret.is_none() {
            return Err(DocumentError::ReadOnly(name.clone()));
        }
        self.write(&space, key, before.as_ref(), None).await
    }

    /// Writes an entry of this node's own that comes after `before`. The caller has its turn to write.
    async fn write(
        &self,
        space: &Space,
        key: &DocumentKey,
        before: Option<&Entry>,
        value: Option<(BlobHash, u64)>,
    ) -> Result<Entry, DocumentError> {
        let inner = &self.inner;
        let stamp = next_stamp(clock::now(), before, MAX_TIMESTAMP_FUTURE_SHIFT);
        let stamp = stamp.ok_or(DocumentError::ClockBehind)?;
        let record = match value {
            Some((hash, bytes)) => Record::new(Hash::from_bytes(hash.0), bytes, stamp),
            None => Record::empty(stamp),
        };
        let secret = space.secret.as_ref().context("write a document that is only read here")?;
        let entry = SignedEntry::from_parts(secret, &inner.author, stored_key(key.as_str()), record);
        let written = Entry::read(&entry).context("read the entry that was just made")?;
        // As if it had come from elsewhere: then the store needs no secrets, which would lie in its file a second time.
        let own = inner.transport.id().0;
        inner.store.insert_remote(space.id, entry, own, ContentStatus::Complete).await?;
        inner.store.flush_store().await?;
        Ok(written)
    }

    /// Opens a document, which from then on is compared with others.
    async fn open_space(&self, space: &Space) -> anyhow::Result<()> {
        // Read-only: what is written comes signed, by this node as by others.
        self.inner.store.import_namespace(Capability::Read(space.id)).await?;
        let options = OpenOpts::default().sync().subscribe(self.inner.events.0.clone());
        self.inner.store.open(space.id, options).await
    }

    /// Opens the list of documents and the one that every cluster has.
    async fn open_first(&self, secret: &DocumentsSecret) -> anyhow::Result<()> {
        let (index, ledger) = (Space::index(secret), Space::ledger(secret));
        let config = Space::named(secret, &DocumentName::config());
        for space in [&index, &ledger, &config] {
            self.open_space(space).await?;
        }
        let ids = [index.id, ledger.id, config.id];
        self.inner.open.send_modify(|open| {
            (open.index, open.ledger) = (Some(index), Some(ledger));
            open.named.insert(DocumentName::config(), config);
        });
        // Members that were known before the secret have not been asked for them.
        ids.into_iter().for_each(|id| self.note(id, Whence::Here));
        Ok(())
    }

    /// Opens what is listed and not open yet.
    async fn open_listed(&self) -> anyhow::Result<()> {
        let Some(secret) = self.inner.circle.borrow().secret else { return Ok(()) };
        let Some(index) = self.inner.open.borrow().index.clone() else { return Ok(()) };
        for entry in latest(self.entries_of(&index).await?).filter(|entry| !entry.is_deleted()) {
            let Ok(name) = entry.key.as_str().parse::<DocumentName>() else { continue };
            let (is_open, count) = {
                let open = self.inner.open.borrow();
                (open.named.contains_key(&name), open.named.len())
            };
            if is_open {
                continue;
            }
            if count >= DOCUMENTS_MAX {
                tracing::warn!(%name, "more documents are listed than a cluster may have; this one is left out");
                continue;
            }
            let space = Space::named(&secret, &name);
            self.open_space(&space).await?;
            let id = space.id;
            self.inner.open.send_modify(|open| drop(open.named.insert(name, space)));
            // Others have it already, or are to.
            self.note(id, Whence::Here);
        }
        Ok(())
    }

    /// The open documents, waited for where the node has only just started.
    async fn spaces(&self) -> Result<Spaces, DocumentError> {
        let mut open = self.inner.open.subscribe();
        let waited = tokio::time::timeout(OPEN_PATIENCE, open.wait_for(|open| open.index.is_some())).await;
        match waited {
            Ok(Ok(open)) => Ok(open.clone()),
            _ => Err(DocumentError::NotOpen),
        }
    }

    async fn space(&self, name: &DocumentName) -> Result<Space, DocumentError> {
        self.spaces().await?.named.remove(name).ok_or_else(|| DocumentError::NoDocument(name.clone()))
    }

    /// Notes that a document has changed, for the loops and for whoever watches.
    fn note(&self, space: NamespaceId, whence: Whence) {
        *self.inner.noted.lock().expect("no holder of this lock panics").entry(space).or_default() += 1;
        self.news().changed.entry(space).and_modify(|known| *known = known.and(whence)).or_insert(whence);
        self.inner.stirred.notify_one();
        self.inner.changes.send_modify(|changes| *changes += 1);
    }

    /// How often a document has changed.
    fn noted(&self, space: NamespaceId) -> u64 {
        self.inner.noted.lock().expect("no holder of this lock panics").get(&space).copied().unwrap_or_default()
    }

    /// Waits until a document has changed since it was `noted`, or a value may have come.
    async fn moved(&self, space: NamespaceId, noted: u64) {
        let mut changes = self.inner.changes.subscribe();
        while self.noted(space) == noted {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn held(&self, space: NamespaceId) -> Held {
        self.inner.held.lock().expect("no holder of this lock panics").get(&space).copied().unwrap_or_default()
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.inner.news.lock().expect("no holder of this lock panics")
    }
}
