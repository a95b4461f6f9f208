//! Reading documents.

use blixard_core::{BlobHash, DocumentKey, DocumentName};
use iroh_docs::SignedEntry;
use iroh_docs::api::RpcResult;
use iroh_docs::store::{FlatQuery, Query, QueryBuilder, SortBy, SortDirection};
use tokio::sync::mpsc;

use super::stored::{Entry, Space, by_key, latest, stored_key};
use super::{Contact, DocumentError, Documents};

/// Entries that wait between the store and whoever reads.
const WAITING_ENTRIES: usize = 64;

/// A document in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its name.
    pub(crate) name: DocumentName,
    /// How many keys it has.
    pub(crate) keys: usize,
    /// Bytes of all its values.
    pub(crate) bytes: u64,
    /// Of a document of another cluster, whether it may be written here, and how it is with that cluster.
    pub(crate) origin: Option<(bool, Contact)>,
    /// Whether images are published in it.
    pub(crate) is_catalog: bool,
}

/// An entry as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The entry.
    pub(crate) entry: Entry,
    /// Whether it is the one that counts: no other of its key was written later.
    pub(crate) counts: bool,
    /// Whether its value is on this node.
    pub(crate) is_here: bool,
}

impl Documents {
    /// The documents, in the order of their names.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, DocumentError> {
        let mut listed = Vec::new();
        for (name, space) in self.spaces().await?.named {
            let entries = latest(self.entries_of(&space).await?).filter(|entry| !entry.is_deleted());
            let (keys, bytes) = entries.fold((0, 0), |(keys, bytes), entry| (keys + 1, bytes + entry.bytes));
            let called = self.inner.ledger.borrow().joined.get(&name).map(|ticket| ticket.name.clone());
            let is_catalog = called.as_ref().unwrap_or(&name) == &DocumentName::catalog();
            let origin = called.is_some().then(|| (space.secret.is_some(), self.contact(&name).unwrap_or_default()));
            listed.push(Listed { name, keys, bytes, origin, is_catalog });
        }
        Ok(listed)
    }

    /// The keys of a document that begin with `prefix`, each with who wrote it last. With `all`, what each node wrote last under
    /// them, deletions included.
    ///
    /// # Errors
    /// When the document is not known or the store fails.
    pub(crate) async fn entries(
        &self,
        name: &DocumentName,
        prefix: &str,
        all: bool,
    ) -> Result<Vec<Found>, DocumentError> {
        let space = self.space(name).await?;
        let entries = self.query(&space, Query::key_prefix(prefix)).await?;
        let mut found = Vec::new();
        for group in by_key(entries) {
            for (place, entry) in group.into_iter().enumerate() {
                let counts = place == 0;
                if all || (counts && !entry.is_deleted()) {
                    let is_here = entry.is_deleted() || self.inner.values.has(entry.hash);
                    found.push(Found { entry, counts, is_here });
                }
            }
        }
        Ok(found)
    }

    /// The value of a key, with who wrote it. A value that is not here is asked for.
    ///
    /// # Errors
    /// When the document or key is not known, the value cannot be had, or the store fails.
    pub(crate) async fn get(&self, name: &DocumentName, key: &DocumentKey) -> Result<(Entry, Vec<u8>), DocumentError> {
        let space = self.space(name).await?;
        let mut tried = None;
        loop {
            let written = self.written(&space, key).await?.filter(|entry| !entry.is_deleted());
            let entry = written.ok_or_else(|| DocumentError::NoKey(name.clone(), key.clone()))?;
            if let Some(value) = self.inner.values.get(entry.hash).await {
                return Ok((entry, value));
            }
            // What was the value a moment ago may have been replaced, and let go, in between.
            if tried == Some(entry.hash) || !self.fetch(space.id, &entry).await {
                return Err(DocumentError::NotHere(name.clone(), key.clone()));
            }
            tried = Some(entry.hash);
        }
    }

    /// The hash of the value of a key; nothing when there is no such key.
    ///
    /// # Errors
    /// When the documents are not open or the store fails.
    pub(crate) async fn hash(&self, name: &DocumentName, key: &DocumentKey) -> Result<Option<BlobHash>, DocumentError> {
        let Some(space) = self.spaces().await?.named.remove(name) else { return Ok(None) };
        let written = self.written(&space, key).await?.filter(|entry| !entry.is_deleted());
        Ok(written.map(|entry| entry.hash))
    }

    /// What counts under a key, a deletion included.
    pub(super) async fn written(&self, space: &Space, key: &DocumentKey) -> anyhow::Result<Option<Entry>> {
        let entries = self.query(space, Query::key_exact(stored_key(key.as_str()))).await?;
        Ok(latest(entries).next())
    }

    /// All entries of a document.
    pub(super) async fn entries_of(&self, space: &Space) -> anyhow::Result<Vec<Entry>> {
        self.query(space, Query::all()).await
    }

    /// All entries of a document as they were signed, in the order of their keys and authors.
    pub(super) async fn signed_entries(&self, space: &Space) -> anyhow::Result<Vec<SignedEntry>> {
        self.query_signed(space, Query::all()).await
    }

    async fn query(&self, space: &Space, query: QueryBuilder<FlatQuery>) -> anyhow::Result<Vec<Entry>> {
        // One that cannot be read was written by another version, or in malice, and means nothing here.
        Ok(self.query_signed(space, query).await?.iter().filter_map(Entry::read).collect())
    }

    async fn query_signed(&self, space: &Space, query: QueryBuilder<FlatQuery>) -> anyhow::Result<Vec<SignedEntry>> {
        let query = query.include_empty().sort_by(SortBy::KeyAuthor, SortDirection::Asc);
        let (send, mut found) = mpsc::channel::<RpcResult<SignedEntry>>(WAITING_ENTRIES);
        self.inner.store.get_many(space.id, query.into(), send.into()).await?;
        let mut entries = Vec::new();
        while let Some(entry) = found.recv().await {
            entries.push(entry?);
        }
        Ok(entries)
    }
}
