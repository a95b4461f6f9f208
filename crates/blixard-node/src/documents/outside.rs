//! What somebody who is no member may ask of a document, who has a ticket of it: which entries differ, a value, and to take an
//! entry. Whatever it asks is about the one document that the ticket opens.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blixard_core::{BlobHash, DocumentKey, EndpointId, ShareId};
use iroh_docs::{ContentStatus, SignedEntry};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::ledger::DocumentShare;
use super::stored::{Entry, Space};
use super::sums::{Sums, bucket, is_equal, sums, whole};
use super::wire::{Answer, Ask, HEAD_BYTES_MAX, PAGE_BYTES, Refused, Request};
use super::{Documents, ENTRIES_MAX, Held, KEYS_MAX};
use crate::transport::{BUSY, Connection, REFUSED, RecvStream, SendStream};

/// How long a stranger has to say what it wants, and again after each answer: whoever follows a document always has a request
/// under way.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request may take, but for the wait that it asks for: the longest answer over a slow line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long whoever has seen all there is may wait for something new.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(20);
/// Changes of this time are told together.
const GATHER: Duration = Duration::from_millis(50);
/// Requests of strangers that are worked on at once, but for those that wait. Each may have a value in memory.
pub(super) const ANSWERING_MAX: usize = 32;
/// The shortest time from one entry that a ticket gives to the next: some hundred a second are all that people write, and a
/// cluster passes each of them on.
const GIVE_EVERY: Duration = Duration::from_millis(10);
/// Bytes of all values of a document up to which strangers may write it. What members write is not counted against them.
const GIVEN_BYTES_MAX: u64 = 256 << 20;
/// Bytes of an entry besides its name: two signatures, a hash, and what is short.
const SIGNED_BYTES: usize = 192;
/// The code with which a connection ends that asks for nothing, or for what cannot be.
const NOTHING_TO_DO: u32 = 400;

/// Why a connection ends, as the other side is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It asks for nothing more, or for what cannot be.
    Idle,
    /// The secret opens nothing. Whether it ever did is not told.
    NoShare,
    /// Too much is being asked.
    Busy,
}

impl End {
    fn words(self) -> (u32, &'static str) {
        match self {
            Self::Idle => (NOTHING_TO_DO, "nothing was asked for that could be answered"),
            Self::NoShare => (REFUSED, "the ticket opens nothing here"),
            Self::Busy => (BUSY, "too many ask this node: try again"),
        }
    }
}

/// When the last entry of a ticket was taken, held by the one that is being taken.
pub(super) type Turn = Arc<tokio::sync::Mutex<Option<Instant>>>;

impl Documents {
    /// Serves a connection of somebody who is no member, until there is nothing more to do for it.
    pub(super) async fn serve_outside(self, connection: Connection) {
        let peer = EndpointId(*connection.remote_id().as_bytes());
        let mut answering: JoinSet<Result<(), End>> = JoinSet::new();
        let end = loop {
            tokio::select! {
                Some(ended) = answering.join_next() => if let Ok(Err(end)) = ended {
                    break end;
                },
                accepted = timeout(REQUEST_TIMEOUT, connection.accept_bi()) => match accepted {
                    // QUIC itself lets a stranger have no more than a few at once.
                    Ok(Ok((send, recv))) => {
                        let documents = self.clone();
                        answering.spawn(async move { documents.answer_outside(peer, send, recv).await });
                    }
                    Ok(Err(_)) => return,
                    Err(_) if !answering.is_empty() => {}
                    Err(_) => break End::Idle,
                },
            }
        };
        let (code, reason) = end.words();
        tracing::debug!(peer = %peer.short(), reason, "a connection for a shared document ends");
        connection.close(code.into(), reason.as_bytes());
    }

    async fn answer_outside(&self, peer: EndpointId, mut send: SendStream, mut recv: RecvStream) -> Result<(), End> {
        let heard = timeout(REQUEST_TIMEOUT, read_head(&mut recv)).await;
        let request = heard.ok().flatten().ok_or(End::Idle)?;
        let (id, share) = self.opened_by(&request.secret).ok_or_else(|| {
            self.inner.metrics.document_tickets_refused.inc();
            tracing::info!(peer = %peer.short(), "somebody showed a secret that opens no document");
            End::NoShare
        })?;
        let space = self.inner.open.borrow().named.get(&share.document).cloned().ok_or(End::NoShare)?;
        tracing::trace!(peer = %peer.short(), share = %id, ask = request.ask.word(), "a shared document is asked for");
        if let Ask::Compare { seen: Some(seen), .. } = &request.ask {
            // Whoever goes away meanwhile is not waited for.
            tokio::select! {
                () = self.differs_from(&space, *seen) => {}
                _ = send.stopped() => return Ok(()),
            }
            // The share may have been stopped in that time.
            self.opened_by(&request.secret).ok_or(End::NoShare)?;
        }
        let Ok(_place) = self.inner.answering.try_acquire() else { return Err(End::Busy) };
        let work = async {
            let answer = match request.ask {
                Ask::Compare { sums, skip, .. } => self.differing(&space, &sums, skip).await?,
                Ask::Value { key, hash } => Answer::Value(self.shared_value(&space, &key, hash).await?),
                Ask::Give { entry } => {
                    Answer::Given(self.take_from(peer, (id, &share), &space, *entry, &mut recv).await)
                }
            };
            send.write_all(&answer.encode()).await.context("send the answer")?;
            send.finish().context("end the answer")?;
            // The stream lives until the answer was read.
            send.stopped().await.context("wait for the answer to be read")?;
            anyhow::Ok(())
        };
        match timeout(ANSWER_TIMEOUT, work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                tracing::debug!(peer = %peer.short(), error = format!("{error:#}"), "a stranger was not answered");
                Err(End::Idle)
            }
            Err(_) => Err(End::Idle),
        }
    }

    /// Waits until the document is another than somebody has seen, or long enough.
    async fn differs_from(&self, space: &Space, seen: [u8; 32]) {
        let until = Instant::now() + WAIT_MAX;
        loop {
            let noted = self.noted(space.id);
            match self.signed_entries(space).await {
                Ok(entries) if whole(&sums(&entries)) == seen => {}
                _ => return,
            }
            if timeout_at(until, self.moved(space.id, noted)).await.is_err() {
                return;
            }
            sleep(GATHER).await;
        }
    }

    /// What differs from what somebody has, a page of it.
    async fn differing(&self, space: &Space, theirs: &Sums, skip: u32) -> anyhow::Result<Answer> {
        let all = self.signed_entries(space).await?;
        let own = sums(&all);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let differing = all.into_iter().filter(|entry| !is_equal(bucket(entry), &own, theirs));
        let (mut left, mut entries, mut bytes) = (differing.skip(skip).peekable(), Vec::new(), 0);
        while bytes < PAGE_BYTES
            && let Some(entry) = left.next()
        {
            bytes += entry.entry().id().as_ref().len() + SIGNED_BYTES;
            entries.push(entry);
        }
        let is_more = left.peek().is_some();
        drop(left);
        Ok(Answer::Entries { sums: own, entries, is_more })
    }

    /// The value of a key of this document, when that is what it has.
    async fn shared_value(&self, space: &Space, key: &DocumentKey, hash: BlobHash) -> anyhow::Result<Option<Vec<u8>>> {
        let written = self.written(space, key).await?.filter(|entry| !entry.is_deleted() && entry.hash == hash);
        let Some(entry) = written else { return Ok(None) };
        match self.inner.values.get(hash).await {
            Some(value) => Ok(Some(value)),
            None if self.fetch(space.id, &entry).await => Ok(self.inner.values.get(hash).await),
            None => Ok(None),
        }
    }

    /// Takes an entry, with its value, from somebody who is no member.
    async fn take_from(
        &self,
        peer: EndpointId,
        (id, share): (ShareId, &DocumentShare),
        space: &Space,
        entry: SignedEntry,
        recv: &mut RecvStream,
    ) -> Result<(), Refused> {
        if !share.write {
            return Err(Refused::ReadOnly);
        }
        let read = sound(space, &entry).ok_or(Refused::Unsound)?;
        // One after the other: so no ticket takes more than one value's memory, and none floods the cluster.
        let turn = self.inner.turns.lock().expect("no holder of this lock panics").entry(id).or_default().clone();
        let mut last = turn.lock().await;
        if let Some(last) = *last {
            tokio::time::sleep_until(last + GIVE_EVERY).await;
        }
        *last = Some(Instant::now());
        let failed = |error: anyhow::Error| {
            tracing::warn!(error = format!("{error:#}"), "an entry of a shared document was not taken");
            Refused::Failed
        };
        let before = self.written(space, &read.key).await.map_err(failed)?;
        let added = Held { keys: usize::from(before.is_none()), entries: 1, bytes: read.bytes };
        if !has_room(self.held(space.id), added) {
            return Err(Refused::Full);
        }
        let _kept = self.inner.gate.read().await;
        if !read.is_deleted() {
            let bytes_max = usize::try_from(read.bytes).unwrap_or(usize::MAX);
            let value = recv.read_to_end(bytes_max).await.map_err(|_| Refused::WrongValue)?;
            if value.len() as u64 != read.bytes || *blake3::hash(&value).as_bytes() != read.hash.0 {
                return Err(Refused::WrongValue);
            }
            self.inner.values.put(value).await.map_err(failed)?;
        }
        self.insert(space, entry, peer, ContentStatus::Complete)
            .await
            .map_err(failed)?
            .then_some(())
            .ok_or(Refused::Unsound)?;
        self.inner.held.lock().expect("no holder of this lock panics").entry(space.id).or_default().add(added);
        tracing::debug!(peer = %peer.short(), share = %id, key = %read.key, "a stranger has written a key");
        Ok(())
    }
}

/// Whether a document may take so much more from somebody who is no member.
fn has_room(mut held: Held, added: Held) -> bool {
    held.add(added);
    // A deletion needs no room for a value, and so goes on being possible where there is none.
    let has_room_for_value = added.bytes == 0 || held.bytes <= GIVEN_BYTES_MAX;
    has_room_for_value && held.entries <= ENTRIES_MAX && (added.keys == 0 || held.keys <= KEYS_MAX)
}

/// An entry that is signed, for this document and by its author.
pub(super) fn sound(space: &Space, entry: &SignedEntry) -> Option<Entry> {
    let read = Entry::read(entry).filter(|_| entry.entry().namespace() == space.id)?;
    let (document, author) = (space.id.into_public_key().ok()?, entry.author_bytes().into_public_key().ok()?);
    entry.signature().verify(entry.entry(), &document, &author).ok()?;
    Some(read)
}

/// Reads the head of a request: its length in two bytes, and so many.
async fn read_head(recv: &mut RecvStream) -> Option<Request> {
    let mut length = [0; 2];
    recv.read_exact(&mut length).await.ok()?;
    let length = usize::from(u16::from_le_bytes(length));
    if length > HEAD_BYTES_MAX {
        return None;
    }
    let mut head = vec![0; length];
    recv.read_exact(&mut head).await.ok()?;
    Request::decode(&head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_fill_a_document_so_far_and_no_further() {
        let full = Held { keys: KEYS_MAX, entries: ENTRIES_MAX - 1, bytes: GIVEN_BYTES_MAX - 5 };
        let replaced = |bytes| Held { keys: 0, entries: 1, bytes };
        assert!(has_room(full, replaced(5)) && !has_room(full, replaced(6)));
        assert!(!has_room(full, Held { keys: 1, ..replaced(5) }), "a key more");
        assert!(!has_room(Held { entries: ENTRIES_MAX, ..full }, replaced(0)), "an author more");
        assert!(has_room(Held { bytes: u64::MAX, ..full }, replaced(0)), "a deletion");
        assert!(has_room(Held::default(), Held { keys: 1, ..replaced(5) }));
    }
}
