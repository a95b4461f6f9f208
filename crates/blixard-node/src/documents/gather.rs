//! Which values this node lacks, and which it keeps in vain.

use std::collections::BTreeMap;
use std::time::Duration;

use blixard_core::{BlobHash, EndpointId};
use iroh_docs::NamespaceId;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::spread::{backoff, some};
use super::stored::{Entry, latest};
use super::{Documents, Held};

/// Changes of this time are taken together: each look reads every entry.
pub(super) const GATHER: Duration = Duration::from_millis(50);
/// Values that are fetched at the same time.
const FETCHES_MAX: usize = 8;
/// How often it looks though nothing has changed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Documents {
    /// Fetches what is missing and removes what nothing names any more, for as long as the node runs.
    pub(super) async fn gather(&self) {
        let mut changes = self.inner.changes.subscribe();
        let mut failures = 0;
        loop {
            changes.borrow_and_update();
            let missing = match self.look().await {
                Ok(missing) => missing,
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "documents cannot be read; it is tried again");
                    failures += 1;
                    sleep(backoff(failures)).await;
                    continue;
                }
            };
            self.inner.metrics.document_values_missing.set(i64::try_from(missing.len()).unwrap_or(i64::MAX));
            let is_whole = self.fetch_all(missing).await;
            failures = if is_whole { 0 } else { failures + 1 };
            let patience = if is_whole { LOOK_EVERY } else { backoff(failures) };
            let _ = timeout(patience, changes.changed()).await;
            sleep(GATHER).await;
        }
    }

    /// Fetches values, some at a time. Whether all of them came.
    async fn fetch_all(&self, missing: Vec<(NamespaceId, Entry)>) -> bool {
        let (mut fetching, mut waiting) = (JoinSet::new(), missing.into_iter());
        let (mut has_some, mut has_all) = (false, true);
        loop {
            while fetching.len() < FETCHES_MAX
                && let Some((space, entry)) = waiting.next()
            {
                let documents = self.clone();
                fetching.spawn(async move { documents.fetch(space, &entry).await });
            }
            let Some(ended) = fetching.join_next().await else { break };
            let is_here = ended.unwrap_or_else(|error| {
                tracing::error!(%error, "fetching a value ended in a panic");
                false
            });
            has_some |= is_here;
            has_all &= is_here;
        }
        if has_some {
            // Whoever watches may read them now.
            self.inner.changes.send_modify(|changes| *changes += 1);
        }
        has_all
    }

    /// Looks which values are named by the entries that count and not here, and removes those that are here and not named.
    async fn look(&self) -> anyhow::Result<Vec<(NamespaceId, Entry)>> {
        // Nobody writes a value meanwhile for which there is no entry yet.
        let _alone = self.inner.gate.write().await;
        let open = self.inner.open.borrow().clone();
        if open.index.is_none() {
            return Ok(Vec::new());
        }
        let is_whole = self.knows_all().await?;
        let mut named: BTreeMap<BlobHash, (NamespaceId, Entry)> = BTreeMap::new();
        for space in open.ledger.iter().chain(open.named.values()) {
            let all = self.entries_of(space).await?;
            let entries = all.len();
            let counting: Vec<Entry> = latest(all).collect();
            let bytes = counting.iter().map(|entry| entry.bytes).sum();
            let held = Held { keys: counting.len(), entries, bytes };
            self.inner.held.lock().expect("no holder of this lock panics").insert(space.id, held);
            let counting = counting.into_iter().filter(|entry| !entry.is_deleted());
            named.extend(counting.map(|entry| (entry.hash, (space.id, entry))));
        }
        for hash in self.inner.values.all() {
            if named.remove(&hash).is_none() && is_whole {
                self.inner.values.remove(hash).await;
            }
        }
        Ok(named.into_values().collect())
    }

    /// Whether all documents that are listed are open: what stands in another one is not to be taken for what nothing names.
    async fn knows_all(&self) -> anyhow::Result<bool> {
        let open = self.inner.open.borrow().clone();
        let Some(index) = open.index else { return Ok(false) };
        let mut listed = latest(self.entries_of(&index).await?).filter(|entry| !entry.is_deleted());
        let is_open = |entry: Entry| open.named.keys().any(|name| name.as_str() == entry.key.as_str());
        let ledger = self.inner.ledger.borrow();
        let has_joined = ledger.unread.is_empty() && ledger.joined.keys().all(|name| open.named.contains_key(name));
        Ok(listed.all(is_open) && ledger.is_read && has_joined)
    }

    /// Has the value of an entry come, from its author or any other member, or from where its document was joined. Whether it is here
    /// then.
    pub(super) async fn fetch(&self, space: NamespaceId, entry: &Entry) -> bool {
        let members = self.inner.circle.borrow().members.clone();
        let is_author = |peer: &EndpointId| *peer == entry.author;
        let (author, others): (Vec<_>, Vec<_>) = members.into_iter().partition(is_author);
        let others_max = others.len();
        for peer in author.into_iter().chain(some(others, others_max)) {
            let value = match self.ask_for(peer, entry.hash).await {
                Ok(Some(value)) if value.len() as u64 == entry.bytes => value,
                Ok(_) => continue,
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::debug!(peer = %peer.short(), error, "a member did not give a value");
                    continue;
                }
            };
            return self.keep_value(value).await;
        }
        match self.ask_outside(space, entry).await {
            Some(value) => self.keep_value(value).await,
            None => false,
        }
    }

    async fn keep_value(&self, value: Vec<u8>) -> bool {
        let _kept = self.inner.gate.read().await;
        match self.inner.values.put(value).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "a value cannot be kept; it is fetched again");
                false
            }
        }
    }
}
