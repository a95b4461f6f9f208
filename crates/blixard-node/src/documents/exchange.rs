//! Values from member to member: a request is a hash, and the answer the value, if it is there.

use std::time::Duration;

use anyhow::{Context, bail};
use blixard_core::{BlobHash, EndpointId};
use iroh_docs::NamespaceId;
use iroh_docs::net::{AbortReason, AcceptError, AcceptOutcome, handle_connection};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::spread::{SYNC_TIMEOUT, ended_well};
use super::{Documents, VALUE_BYTES_MAX};
use crate::transport::{Connection, Handler, Protocol, RecvStream, SendStream, handler};

/// How long one request may take, to ask and to answer: a value is small.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests of one connection that are worked on at once. A member asks for a few at a time.
const ANSWERING_MAX: usize = 32;
/// Length of a request.
const REQUEST_BYTES: usize = 32;
/// The first byte of an answer that has no value.
const ABSENT: u8 = 0;
/// The first byte of an answer that has one.
const PRESENT: u8 = 1;

impl Documents {
    /// What serves the protocols.
    pub(crate) fn handlers(&self) -> Vec<(Protocol, Handler)> {
        let (entries, values, shared) = (self.clone(), self.clone(), self.clone());
        let entries = handler(move |connection| entries.clone().serve_entries(connection));
        let values = handler(move |connection| values.clone().serve_values(connection));
        let shared = handler(move |connection| shared.clone().serve_outside(connection));
        vec![(Protocol::Documents, entries), (Protocol::Values, values), (Protocol::SharedDocuments, shared)]
    }

    /// Compares one document with a member that asks for it.
    async fn serve_entries(self, connection: Connection) {
        let peer = EndpointId(*connection.remote_id().as_bytes());
        let allow = |asked: NamespaceId, _| {
            let is_open = self.is_open(asked);
            async move { if is_open { AcceptOutcome::Allow } else { AcceptOutcome::Reject(AbortReason::NotFound) } }
        };
        let comparing = handle_connection(self.inner.store.clone(), connection.clone(), allow, None);
        let error = match timeout(SYNC_TIMEOUT, comparing).await {
            Ok(Ok(_)) => None,
            Ok(Err(AcceptError::Close { error, .. })) if ended_well(&error) => None,
            Ok(Err(error)) => Some(format!("{:#}", anyhow::Error::from(error))),
            Err(_) => Some(format!("it took longer than {} s", SYNC_TIMEOUT.as_secs())),
        };
        match error {
            None => self.met(peer),
            Some(error) => {
                tracing::debug!(peer = %peer.short(), error, "a member's comparison of a document broke off")
            }
        }
        // The member closes the connection, when it has read the last of it.
        let _ = timeout(EXCHANGE_TIMEOUT, connection.closed()).await;
    }

    fn is_open(&self, space: NamespaceId) -> bool {
        self.inner.open.borrow().all().any(|known| known.id == space)
    }

    async fn serve_values(self, connection: Connection) {
        let mut answering = JoinSet::new();
        // It ends when the member closes the connection, or the transport does.
        while let Ok((send, recv)) = connection.accept_bi().await {
            while answering.len() >= ANSWERING_MAX {
                let _ = answering.join_next().await;
            }
            let documents = self.clone();
            answering.spawn(async move {
                match timeout(EXCHANGE_TIMEOUT, documents.answer(send, recv)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(error = format!("{error:#}"), "a value was not handed out"),
                    Err(_) => tracing::debug!("a value was not handed out in time"),
                }
            });
        }
        answering.shutdown().await;
    }

    async fn answer(&self, mut send: SendStream, mut recv: RecvStream) -> anyhow::Result<()> {
        let asked = recv.read_to_end(REQUEST_BYTES).await.context("read the request")?;
        let Ok(hash) = <[u8; REQUEST_BYTES]>::try_from(asked.as_slice()) else {
            // Dropping the stream would look like an answer.
            let _ = send.reset(1u32.into());
            bail!("a request has {REQUEST_BYTES} bytes, and this one has {}", asked.len());
        };
        match self.inner.values.get(BlobHash(hash)).await {
            Some(value) => {
                send.write_all(&[PRESENT]).await.context("begin the answer")?;
                send.write_all(&value).await.context("send the value")?;
            }
            None => send.write_all(&[ABSENT]).await.context("send the answer")?,
        }
        send.finish().context("end the answer")?;
        // The stream lives until the answer was read.
        send.stopped().await.context("wait for the answer to be read")?;
        Ok(())
    }

    /// Asks a member for a value; nothing when it has none.
    pub(super) async fn ask_for(&self, peer: EndpointId, hash: BlobHash) -> anyhow::Result<Option<Vec<u8>>> {
        let exchange = async {
            let connection = self.inner.transport.connect(peer, Protocol::Values).await?;
            let (mut send, mut recv) = connection.open_bi().await.context("open a stream")?;
            send.write_all(&hash.0).await.context("ask")?;
            send.finish().context("end the request")?;
            let bytes_max = usize::try_from(VALUE_BYTES_MAX).context("fit a value into memory")? + 1;
            let answer = recv.read_to_end(bytes_max).await.context("read the answer")?;
            read_answer(&answer, hash)
        };
        timeout(EXCHANGE_TIMEOUT, exchange).await.context("wait for the answer")?
    }
}

/// The value in an answer, checked against its hash.
fn read_answer(answer: &[u8], hash: BlobHash) -> anyhow::Result<Option<Vec<u8>>> {
    match answer.split_first() {
        Some((&ABSENT, [])) => Ok(None),
        Some((&PRESENT, value)) if *blake3::hash(value).as_bytes() == hash.0 => Ok(Some(value.to_vec())),
        Some((&PRESENT, _)) => bail!("what it sent is not the value that was asked for"),
        _ => bail!("its answer cannot be read"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_the_value_that_was_asked_for_is_taken() {
        let hash = BlobHash(*blake3::hash(b"value").as_bytes());
        assert_eq!(read_answer(b"\x01value", hash).unwrap().as_deref(), Some(&b"value"[..]));
        assert_eq!(read_answer(b"\0", hash).unwrap(), None);
        for answer in [&b""[..], b"\x01", b"\x01valuE", b"\0value", b"\x02value"] {
            assert!(read_answer(answer, hash).is_err(), "{answer:?}");
        }
    }
}
