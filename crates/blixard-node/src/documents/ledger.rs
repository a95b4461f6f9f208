//! The ledger: which documents of this cluster are shared with others, and which of other clusters have been joined.
//!
//! It is a document of its own that no request names, so that every member has it without a quorum: any of them serves what is
//! shared, and follows what was joined. A record is a value of it, as JSON, below `shares/` or `joined/`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use blixard_core::{DocumentKey, DocumentName, SecretHash, ShareId, UnixMs};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::stored::{Space, latest};
use super::ticket::{DocumentRight, DocumentTicket, hash_of};
use super::{DOCUMENTS_MAX, DocumentError, Documents};
use crate::clock;
use crate::transport::PeerAddress;

/// Tickets of documents that hold at a time: more would make lists long, and nobody would know them apart.
const SHARES_MAX: usize = 1000;
/// Where shares stand in the ledger.
const SHARES: &str = "shares/";
/// Where documents stand that were joined.
const JOINED: &str = "joined/";

/// A document that whoever has a ticket may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DocumentShare {
    /// The document.
    pub(crate) document: DocumentName,
    /// The hash of the secret in the ticket.
    pub(crate) secret_hash: SecretHash,
    /// Whether it may be written with it.
    pub(crate) write: bool,
    /// When the ticket was made.
    pub(crate) created_at: UnixMs,
    /// From when on it opens nothing any more.
    pub(crate) expires_at: Option<UnixMs>,
}

impl DocumentShare {
    /// Whether its time is over.
    pub(crate) fn is_over(&self, now: UnixMs) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// A document of another cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Joined {
    ticket: String,
}

/// What the ledger says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    /// Whether it has been read since the node started.
    pub(super) is_read: bool,
    pub(super) shares: BTreeMap<ShareId, DocumentShare>,
    pub(super) joined: BTreeMap<DocumentName, DocumentTicket>,
    /// Documents that were joined of which the record is not here yet, or cannot be read.
    pub(super) unread: BTreeSet<String>,
}

/// Reads the value of a record. Another member wrote it.
fn record<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

fn key_of(place: &str, name: &dyn std::fmt::Display) -> Result<DocumentKey, DocumentError> {
    Ok(format!("{place}{name}").parse::<DocumentKey>().context("name a record of the ledger")?)
}

impl Documents {
    /// Shares a document with whoever gets the ticket that this returns. It holds at all members that can be reached.
    ///
    /// # Errors
    /// When the document is not known, may not be passed on like that, or the store fails.
    pub(crate) async fn share(
        &self,
        id: ShareId,
        document: &DocumentName,
        is_write: bool,
        expires_at: Option<UnixMs>,
        nodes: Vec<PeerAddress>,
    ) -> Result<(DocumentTicket, DocumentShare), DocumentError> {
        let space = self.space(document).await?;
        let right = match (is_write, &space.secret) {
            (false, _) => DocumentRight::Read(space.id.to_bytes()),
            // Whoever writes there says which blobs strangers may have.
            (true, _) if *document == DocumentName::catalog() => return Err(DocumentError::Catalog),
            (true, Some(secret)) => DocumentRight::Write(secret.to_bytes()),
            (true, None) => return Err(DocumentError::ReadOnly(document.clone())),
        };
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| anyhow::anyhow!("draw a secret: {error}"))?;
        let share = DocumentShare {
            document: document.clone(),
            secret_hash: hash_of(&secret),
            write: is_write,
            created_at: clock::now(),
            expires_at,
        };
        self.refresh_ledger().await?;
        {
            let ledger = self.inner.ledger.borrow();
            if ledger.shares.contains_key(&id) {
                return Err(DocumentError::ShareExists(id));
            }
            if ledger.shares.len() >= SHARES_MAX {
                return Err(DocumentError::TooManyShares);
            }
        }
        self.enter(&key_of(SHARES, &id)?, &share).await?;
        Ok((DocumentTicket { nodes, secret, name: document.clone(), right }, share))
    }

    /// The tickets of a document that hold, or whose time is over.
    ///
    /// # Errors
    /// When the document is not known or the store fails.
    pub(crate) async fn shares(&self, document: &DocumentName) -> Result<Vec<(ShareId, DocumentShare)>, DocumentError> {
        self.space(document).await?;
        let ledger = self.inner.ledger.borrow();
        let of_it = ledger.shares.iter().filter(|(_, share)| share.document == *document);
        Ok(of_it.map(|(id, share)| (*id, share.clone())).collect())
    }

    /// Has a ticket open nothing any more. Gives whether there was one.
    ///
    /// # Errors
    /// When the document is not known or the store fails.
    pub(crate) async fn stop_share(&self, document: &DocumentName, id: ShareId) -> Result<bool, DocumentError> {
        let is_known = self.shares(document).await?.iter().any(|(known, _)| *known == id);
        if is_known {
            self.strike(&key_of(SHARES, &id)?).await?;
        }
        Ok(is_known)
    }

    /// Follows a document of another cluster under a name, once a node of that cluster has answered.
    ///
    /// # Errors
    /// When the name is taken, the ticket is refused or nobody answers, or the store fails.
    pub(crate) async fn join(&self, name: &DocumentName, ticket: &DocumentTicket) -> Result<(), DocumentError> {
        let (spaces, space) = (self.spaces().await?, ticket.space());
        let known = spaces.named.iter().find(|(_, known)| known.id == space.id);
        match known {
            // Another ticket for the same document takes the place of the first.
            Some((known, _)) if known == name && self.inner.ledger.borrow().joined.contains_key(name) => {}
            Some((known, _)) => return Err(DocumentError::Here(known.clone())),
            // Its own name stands for what this cluster publishes, now or later.
            None if *name == DocumentName::catalog() => return Err(DocumentError::NameTaken(name.clone())),
            None if spaces.named.contains_key(name) => return Err(DocumentError::NameTaken(name.clone())),
            None if spaces.named.len() >= DOCUMENTS_MAX => return Err(DocumentError::TooMany),
            None => {}
        }
        self.knock(ticket).await?;
        self.enter(&key_of(JOINED, name)?, &Joined { ticket: ticket.to_string() }).await
    }

    /// Follows a document of another cluster no longer, and lets go of what is here of it.
    ///
    /// # Errors
    /// When it was not joined, or the store fails.
    pub(crate) async fn leave(&self, name: &DocumentName) -> Result<(), DocumentError> {
        self.space(name).await?;
        if !self.inner.ledger.borrow().joined.contains_key(name) {
            return Err(DocumentError::NotJoined(name.clone()));
        }
        self.strike(&key_of(JOINED, name)?).await
    }

    /// The share that a secret opens, as long as its time is not over.
    pub(super) fn opened_by(&self, secret: &[u8; 32]) -> Option<(ShareId, DocumentShare)> {
        let hash = hash_of(secret);
        let ledger = self.inner.ledger.borrow();
        let (id, share) = ledger.shares.iter().find(|(_, share)| share.secret_hash == hash)?;
        (!share.is_over(clock::now())).then(|| (*id, share.clone()))
    }

    /// Whether a secret opens what this cluster publishes.
    pub(crate) fn opens_catalog(&self, secret: &[u8; 32]) -> bool {
        self.opened_by(secret).is_some_and(|(_, share)| share.document == DocumentName::catalog())
    }

    /// Whether it is known here which documents were joined: not in the first moments after a start.
    pub(crate) fn knows_joined(&self) -> bool {
        let ledger = self.inner.ledger.borrow();
        ledger.is_read && ledger.unread.is_empty()
    }

    /// The secret with which the images of a catalog may be had that this cluster follows.
    pub(crate) fn secret_of(&self, catalog: &DocumentName) -> Option<[u8; 32]> {
        let ledger = self.inner.ledger.borrow();
        ledger.joined.get(catalog).filter(|ticket| ticket.name == DocumentName::catalog()).map(|ticket| ticket.secret)
    }

    async fn ledger_space(&self) -> Result<Space, DocumentError> {
        self.spaces().await?.ledger.ok_or(DocumentError::NotOpen)
    }

    async fn enter<T: Serialize>(&self, key: &DocumentKey, record: &T) -> Result<(), DocumentError> {
        let value = serde_json::to_vec(record).context("encode a record of the ledger")?;
        // No request names the ledger, so that errors which name a document never do.
        let space = self.ledger_space().await?;
        self.put(&space, &DocumentName::config(), key, value).await?;
        self.refresh_ledger().await
    }

    async fn strike(&self, key: &DocumentKey) -> Result<(), DocumentError> {
        let space = self.ledger_space().await?;
        {
            let _turn = self.inner.writing.lock().await;
            let before = self.written(&space, key).await?;
            self.write(&space, key, before.as_ref(), None).await?;
        }
        self.refresh_ledger().await
    }

    /// Reads the ledger anew, and opens what it says.
    pub(super) async fn refresh_ledger(&self) -> Result<(), DocumentError> {
        let space = self.ledger_space().await?;
        let _turn = self.inner.opening.lock().await;
        let mut ledger = Ledger { is_read: true, ..Ledger::default() };
        for entry in latest(self.entries_of(&space).await?).filter(|entry| !entry.is_deleted()) {
            let value = self.inner.values.get(entry.hash).await;
            let key = entry.key.as_str();
            if let Some(id) = key.strip_prefix(SHARES) {
                // One that cannot be read opens nothing.
                let share = value.as_deref().and_then(record);
                ledger.shares.extend(id.parse::<ShareId>().ok().zip(share));
            } else if let Some(name) = key.strip_prefix(JOINED) {
                let joined = value.as_deref().and_then(record::<Joined>);
                let ticket = joined.and_then(|joined| joined.ticket.parse::<DocumentTicket>().ok());
                match name.parse::<DocumentName>().ok().zip(ticket) {
                    Some((name, ticket)) => drop(ledger.joined.insert(name, ticket)),
                    None => drop(ledger.unread.insert(name.to_owned())),
                }
            }
        }
        self.open_joined(&ledger).await?;
        self.inner.ledger.send_if_modified(|known| {
            let is_new = *known != ledger;
            *known = ledger;
            is_new
        });
        Ok(())
    }

    /// Opens what was joined, and closes what was left.
    async fn open_joined(&self, ledger: &Ledger) -> anyhow::Result<()> {
        let before = self.inner.ledger.borrow().joined.clone();
        for (name, ticket) in &before {
            if ledger.joined.get(name).is_some_and(|kept| kept.space().id == ticket.space().id) {
                continue;
            }
            let space = ticket.space().id;
            let was_open = {
                let mut was_open = false;
                self.inner.open.send_modify(|open| {
                    was_open = open.named.get(name).is_some_and(|known| known.id == space);
                    if was_open {
                        open.named.remove(name);
                    }
                });
                was_open
            };
            if was_open {
                // Comparisons that are under way fail at this, and nobody begins another.
                self.inner.store.close(space).await?;
                self.inner.store.drop_replica(space).await?;
                self.inner.changes.send_modify(|changes| *changes += 1);
            }
        }
        for (name, ticket) in &ledger.joined {
            let space = ticket.space();
            let known = self.inner.open.borrow().named.get(name).map(|known| (known.id, known.secret.is_some()));
            match known {
                None => {}
                Some((id, is_write)) if id == space.id => {
                    if is_write != space.secret.is_some() {
                        // Joined again with a ticket for more, or less.
                        self.inner.open.send_modify(|open| drop(open.named.insert(name.clone(), space)));
                    }
                    continue;
                }
                Some(_) => {
                    tracing::warn!(%name, "a document was joined under a name that another one has; it is left out");
                    continue;
                }
            }
            self.open_space(&space).await?;
            let id = space.id;
            self.inner.open.send_modify(|open| drop(open.named.insert(name.clone(), space)));
            self.note(id, super::spread::Whence::Here);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_none_opens_nothing() {
        let text = r#"{"document":"config","secret_hash":"HASH","write":true,"created_at":5,"expires_at":7}"#;
        let text = text.replace("HASH", &"07".repeat(32));
        let share: DocumentShare = record(text.as_bytes()).expect("a record");
        assert!(share.write && share.is_over(UnixMs(7)) && !share.is_over(UnixMs(6)));
        assert_eq!(serde_json::to_string(&share).expect("plain data"), text);
        for odd in ["", "{}", "[]", &text.replace("config", "../x"), &text.replace("true", "1")] {
            assert_eq!(record::<DocumentShare>(odd.as_bytes()), None, "{odd}");
        }
    }
}
