//! Following a document of another cluster, with its ticket.
//!
//! Each node follows by itself, at one of the nodes that the ticket names: it asks for what differs, and then again for as long as
//! it runs, which is answered when something has changed there. With the right to write it gives what was written here. What
//! comes in is passed on to the other members as everything is, and their values are asked for there when no member has them.
//!
//! ```text
//! knocking -> comparing -> waiting -> comparing -> ...
//!    ^            | failed    | failed
//!    +--- resting <-----------+
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, bail};
use blixard_core::{DocumentName, EndpointId, UnixMs};
use iroh_docs::sync::InsertError;
use iroh_docs::{ContentStatus, NamespaceId, SignedEntry};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::outside::{WAIT_MAX, sound};
use super::spread::some;
use super::stored::{Entry, Space, latest};
use super::sums::{Sums, bucket, is_equal, sums, whole};
use super::ticket::DocumentTicket;
use super::wire::{ANSWER_BYTES_MAX, Answer, Ask, Request};
use super::{DocumentError, Documents, ENTRIES_MAX};
use crate::backoff::after;
use crate::clock;
use crate::transport::{Connection, Protocol, refusal};

/// How long an answer may take, but for the wait that is asked for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it is waited for the reason why a connection ends.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);
/// The first wait after a failure; it doubles.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The longest wait: how late, at worst, a cluster that is back is found.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How it is with a document that was joined, as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contact {
    /// When a node of the other cluster last answered.
    pub(crate) met_at: Option<UnixMs>,
    /// Why none does, when none does.
    pub(crate) failure: Option<String>,
}

/// A document that is followed.
pub(super) struct Link {
    pub(super) space: Space,
    ticket: DocumentTicket,
    connection: tokio::sync::Mutex<Option<Connection>>,
    contact: Mutex<Contact>,
}

impl Link {
    fn new(ticket: DocumentTicket) -> Self {
        Self { space: ticket.space(), ticket, connection: Default::default(), contact: Mutex::default() }
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().expect("no holder of this lock panics")
    }
}

/// What another cluster said of a document.
struct Compared {
    theirs: Sums,
    /// What it has in the buckets that differ: the time of each entry, by its name.
    stamps: BTreeMap<Vec<u8>, u64>,
}

impl Documents {
    /// What is followed, for as long as the node runs: one task for each document.
    pub(super) async fn follow_all(&self) {
        /// Ends its task when it goes.
        struct Following(DocumentTicket, AbortHandle);
        impl Drop for Following {
            fn drop(&mut self) {
                self.1.abort();
            }
        }
        let (mut ledger, mut changes) = (self.inner.ledger.subscribe(), self.inner.changes.subscribe());
        let mut following: BTreeMap<DocumentName, Following> = BTreeMap::new();
        let mut failures = 0;
        loop {
            changes.borrow_and_update();
            let patience = match self.refresh_ledger().await {
                Ok(()) => {
                    failures = 0;
                    Duration::MAX
                }
                // It is not open yet, which takes a moment.
                Err(DocumentError::NotOpen) => BACKOFF_MIN,
                Err(error) => {
                    failures += 1;
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::error!(error, "the ledger of documents cannot be read; it is tried again");
                    after(failures, BACKOFF_MIN, BACKOFF_MAX)
                }
            };
            let joined = ledger.borrow_and_update().joined.clone();
            following.retain(|name, Following(ticket, _)| joined.get(name) == Some(ticket));
            self.links().retain(|name, link| joined.get(name) == Some(&link.ticket));
            for (name, ticket) in joined {
                if following.contains_key(&name) {
                    continue;
                }
                let link = Arc::new(Link::new(ticket.clone()));
                self.links().insert(name.clone(), link.clone());
                let documents = self.clone();
                let task = tokio::spawn(async move { documents.follow(&link).await });
                following.insert(name, Following(ticket, task.abort_handle()));
            }
            let _ = timeout(patience, changes.changed()).await;
            sleep(super::gather::GATHER).await;
        }
    }

    pub(super) fn links(&self) -> MutexGuard<'_, BTreeMap<DocumentName, Arc<Link>>> {
        self.inner.links.lock().expect("no holder of this lock panics")
    }

    /// Follows one document for ever.
    async fn follow(&self, link: &Link) {
        let (mut failures, mut seen) = (0, None);
        loop {
            let noted = self.noted(link.space.id);
            let comparing = self.keep_up(link, seen);
            let kept_up = tokio::select! {
                kept_up = comparing => kept_up,
                // What was written here is given at once.
                () = self.moved(link.space.id, noted), if link.space.secret.is_some() && seen.is_some() => {
                    seen = None;
                    sleep(super::gather::GATHER).await;
                    continue;
                }
            };
            match kept_up {
                Ok(now) => {
                    (failures, seen) = (0, Some(now));
                    *link.contact() = Contact { met_at: Some(clock::now()), failure: None };
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if failures == 0 {
                        tracing::info!(document = %link.ticket.name, reason, "a shared document is not to be had now");
                    }
                    link.contact().failure = Some(reason);
                    *link.connection.lock().await = None;
                    (failures, seen) = (failures + 1, None);
                    sleep(after(failures, BACKOFF_MIN, BACKOFF_MAX)).await;
                }
            }
        }
    }

    /// Takes what differs, and gives what the other side lacks. Returns what it has, in one sum.
    async fn keep_up(&self, link: &Link, seen: Option<[u8; 32]>) -> anyhow::Result<[u8; 32]> {
        let connection = self.reach(link).await?;
        let compared = self.compare_outside(&connection, link, seen).await?;
        if link.space.secret.is_some() {
            self.give(&connection, link, &compared).await?;
        }
        Ok(whole(&compared.theirs))
    }

    /// The connection of a link: the one there is, or one to any of its nodes.
    async fn reach(&self, link: &Link) -> anyhow::Result<Connection> {
        let mut slot = link.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.close_reason().is_none()) {
            return Ok(connection.clone());
        }
        let connection = self.dial_any(&link.ticket).await?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    async fn dial_any(&self, ticket: &DocumentTicket) -> anyhow::Result<Connection> {
        let nodes = some(ticket.nodes.iter().collect(), ticket.nodes.len());
        let mut reasons = Vec::new();
        for node in nodes {
            match self.inner.transport.dial(node, Protocol::SharedDocuments).await {
                Ok(connection) => return Ok(connection),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        bail!("no node of the ticket can be reached: {}", reasons.join("; "))
    }

    /// Asks once whether a ticket opens anything. One node is enough that knows of it: others may not have heard of it yet.
    pub(super) async fn knock(&self, ticket: &DocumentTicket) -> Result<(), DocumentError> {
        let (mut reasons, mut is_refused) = (Vec::new(), false);
        for node in &ticket.nodes {
            let asked = async {
                let connection = self.inner.transport.dial(node, Protocol::SharedDocuments).await?;
                let ask = Ask::Compare { sums: sums(&[]), skip: u32::MAX, seen: None };
                let asked = exchange(&connection, ticket.secret, ask, &[]).await;
                is_refused |= refusal(&connection).is_some();
                connection.close(0u32.into(), b"");
                asked
            };
            match asked.await {
                Ok(_) => return Ok(()),
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        match is_refused {
            true => Err(DocumentError::Refused),
            false => Err(DocumentError::Unreached(reasons.join("; "))),
        }
    }

    /// Takes all entries that differ.
    async fn compare_outside(
        &self,
        connection: &Connection,
        link: &Link,
        seen: Option<[u8; 32]>,
    ) -> anyhow::Result<Compared> {
        let own = sums(&self.signed_entries(&link.space).await?);
        let (mut skip, mut stamps) = (0u32, BTreeMap::new());
        let peer = EndpointId(*connection.remote_id().as_bytes());
        loop {
            // Only the first page is worth a wait.
            let ask = Ask::Compare { sums: own.clone(), skip, seen: seen.filter(|_| skip == 0) };
            let answer = exchange(connection, link.ticket.secret, ask, &[]).await?;
            let Answer::Entries { sums: theirs, entries, is_more } = answer else {
                bail!("it answered something else than was asked")
            };
            for entry in entries {
                skip = skip.saturating_add(1);
                if sound(&link.space, &entry).is_none() {
                    continue;
                }
                stamps.insert(entry.entry().id().as_ref().to_vec(), entry.timestamp());
                if stamps.len() > ENTRIES_MAX {
                    bail!("the document has more than {ENTRIES_MAX} entries, which is the limit");
                }
                self.insert(&link.space, entry, peer, ContentStatus::Missing).await?;
            }
            if !is_more || skip as usize > ENTRIES_MAX {
                return Ok(Compared { theirs, stamps });
            }
        }
    }

    /// Gives what counts here and is not there.
    async fn give(&self, connection: &Connection, link: &Link, compared: &Compared) -> anyhow::Result<()> {
        let all = self.signed_entries(&link.space).await?;
        let own = sums(&all);
        let counting: BTreeSet<(EndpointId, String)> = latest(all.iter().filter_map(Entry::read).collect())
            .map(|entry| (entry.author, entry.key.to_string()))
            .collect();
        let mut left_out = None;
        for entry in all {
            let Some(read) = Entry::read(&entry) else { continue };
            let is_there =
                compared.stamps.get(entry.entry().id().as_ref()).is_some_and(|stamp| *stamp >= read.stamp_us);
            let differs = !is_equal(bucket(&entry), &own, &compared.theirs);
            if is_there || !differs || !counting.contains(&(read.author, read.key.to_string())) {
                continue;
            }
            let value = match read.is_deleted() {
                true => Vec::new(),
                // One that is on its way here is given once it has come, which is a change.
                false => match self.inner.values.get(read.hash).await {
                    Some(value) => value,
                    None => continue,
                },
            };
            let ask = Ask::Give { entry: Box::new(entry) };
            match exchange(connection, link.ticket.secret, ask, &value).await? {
                Answer::Given(Ok(())) => {}
                Answer::Given(Err(refused)) => left_out = Some(format!("{} was not taken: {refused}", read.key)),
                _ => bail!("it answered something else than was asked"),
            }
        }
        left_out.map_or(Ok(()), |left_out| bail!(left_out))
    }

    /// Asks the cluster that a document was joined from for a value. Nothing for a document of this cluster.
    pub(super) async fn ask_outside(&self, space: NamespaceId, entry: &Entry) -> Option<Vec<u8>> {
        let link = self.links().values().find(|link| link.space.id == space).cloned()?;
        let asked = async {
            let connection = self.reach(&link).await?;
            let ask = Ask::Value { key: entry.key.clone(), hash: entry.hash };
            exchange(&connection, link.ticket.secret, ask, &[]).await
        };
        match asked.await {
            Ok(Answer::Value(value)) => value
                .filter(|value| value.len() as u64 == entry.bytes && *blake3::hash(value).as_bytes() == entry.hash.0),
            Ok(_) => None,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::debug!(key = %entry.key, error, "a value of a shared document was not had");
                None
            }
        }
    }

    /// How it is with a document that was joined.
    pub(crate) fn contact(&self, name: &DocumentName) -> Option<Contact> {
        self.links().get(name).map(|link| link.contact().clone())
    }

    /// Takes an entry into the store. Gives whether it was sound; one that is older than what is there is.
    pub(super) async fn insert(
        &self,
        space: &Space,
        entry: SignedEntry,
        from: EndpointId,
        value: ContentStatus,
    ) -> anyhow::Result<bool> {
        match self.inner.store.insert_remote(space.id, entry, from.0, value).await {
            Ok(()) => Ok(true),
            Err(error) => match error.downcast_ref() {
                Some(InsertError::NewerEntryExists) => Ok(true),
                Some(InsertError::Validation(_)) => Ok(false),
                _ => Err(error),
            },
        }
    }
}

/// One request and its answer.
pub(super) async fn exchange(
    connection: &Connection,
    secret: [u8; 32],
    ask: Ask,
    value: &[u8],
) -> anyhow::Result<Answer> {
    let exchange = async {
        let (mut send, mut recv) = connection.open_bi().await.context("open a stream")?;
        let head = Request { secret, ask }.encode();
        let length = u16::try_from(head.len()).context("say how long a request is")?;
        let mut request = length.to_le_bytes().to_vec();
        request.extend(head);
        let asked = async {
            send.write_all(&request).await.context("ask")?;
            send.write_all(value).await.context("send a value")?;
            send.finish().context("end the request")
        };
        let (asked, answer) = tokio::join!(asked, recv.read_to_end(ANSWER_BYTES_MAX));
        // Who refuses a value answers before all of it was sent.
        let answer = answer.context("read the answer");
        let answer = match (asked, answer) {
            (_, Ok(answer)) if !answer.is_empty() => answer,
            (Err(error), _) | (Ok(()), Err(error)) => return Err(error),
            (Ok(()), Ok(_)) => bail!("nothing was answered"),
        };
        Answer::decode(&answer).context("its answer cannot be read")
    };
    let answered = timeout(ANSWER_TIMEOUT + WAIT_MAX, exchange).await.context("wait for the answer")?;
    let Err(error) = answered else { return answered };
    // Why it ends a connection comes a little behind the end of its streams.
    let _ = timeout(REASON_TIMEOUT, connection.closed()).await;
    Err(refusal(connection).map_or(error, |reason| anyhow::anyhow!(reason)))
}
