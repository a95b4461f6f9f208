//! What serves blobs to members: whole ones and parts, and which ranges there are. It takes nothing in.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blixard_core::{BlobHash, EndpointId};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use iroh::endpoint::VarInt;
use iroh_blobs::Hash;
use iroh_blobs::api::Store;
use iroh_blobs::protocol::Request;
use iroh_blobs::provider::events::{EventMask, EventSender, RequestMode};
use iroh_blobs::provider::{StreamPair, handle_get, handle_observe, handle_stream};
use iroh_blobs::util::SendStream as Sending;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::limits::{Direction, Limits};
use super::verified::TICKET_HOLDERS;
use crate::transport::{Connection, RecvStream, SendStream};

/// Events wait for nobody here: the mask asks for none that would have to be answered.
const EVENTS: usize = 1;
/// What may be written before it is asked for: what stands between two pieces of content, which go under the limit with the
/// next of them. What a peer is told of the ranges here is never more, and so never waits.
const UNASKED_BYTES: u64 = 8 << 10;

/// Streams that somebody may have open at once who may have some blobs: the workers of one fetch, and its questions.
const PUBLISHED_STREAMS_MAX: u32 = 16;
/// How long whoever may have some blobs has to say what it wants, once a stream is open.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection is kept for somebody who asks for nothing.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Serves one connection of somebody who may have some blobs: those for which `may_have` says so, one at a time and by
/// name. What a blob names is not followed.
pub(super) async fn serve_some(
    store: Store,
    limits: Limits,
    connection: Connection,
    may_have: impl Fn(BlobHash) -> bool + Send + Sync,
) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(PUBLISHED_STREAMS_MAX));
    let (events, _) = EventSender::channel(EVENTS, EventMask::DEFAULT);
    // Keys of strangers are without number: they share one lane of the limits, and one count.
    let peer = TICKET_HOLDERS;
    let sent_bytes = limits.moved_bytes(Direction::Up).of(peer);
    let (connection, may_have) = (&connection, &may_have);
    let serve_stream = |send: SendStream, recv: RecvStream| {
        let (limits, sent_bytes, events, store) = (limits.clone(), sent_bytes.clone(), events.clone(), store.clone());
        async move {
            let paced = Paced { inner: send, limits, peer, unasked_bytes: 0, sent_bytes };
            let mut pair = StreamPair::new(connection.stable_id() as u64, recv, paced, events);
            let Ok(Ok(request)) = timeout(REQUEST_TIMEOUT, pair.read_request()).await else { return };
            let allowed = |hash: Hash| may_have(BlobHash(*hash.as_bytes()));
            // A stream that fails was reset, which tells its reader.
            match request {
                Request::Get(request) if request.ranges.is_blob() && allowed(request.hash) => {
                    drop(handle_get(pair, store, request).await);
                }
                Request::Observe(request) if allowed(request.hash) => {
                    drop(handle_observe(pair, store, request).await);
                }
                // Its stream ends without a byte, as that of a blob that is not here.
                _ => {
                    let refused = connection.remote_id();
                    tracing::debug!(peer = %refused.fmt_short(), "somebody asked for a blob that is not published");
                }
            }
        }
    };
    let mut streams = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = timeout(IDLE_MAX, connection.accept_bi()) => match accepted {
                Ok(Ok((send, recv))) => streams.push(serve_stream(send, recv)),
                Ok(Err(_)) => return,
                Err(_) if streams.is_empty() => return connection.close(0u32.into(), b"nothing was asked for"),
                Err(_) => {}
            },
            Some(()) = streams.next() => {}
        }
    }
}

/// Serves one connection until it ends.
pub(super) async fn serve(store: Store, limits: Limits, connection: Connection) {
    let mask = EventMask { push: RequestMode::Disabled, get_many: RequestMode::Disabled, ..EventMask::DEFAULT };
    let (events, _) = EventSender::channel(EVENTS, mask);
    let peer = EndpointId(*connection.remote_id().as_bytes());
    let sent_bytes = limits.moved_bytes(Direction::Up).of(peer);
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let Ok((send, recv)) = accepted else { return };
                let (limits, sent_bytes) = (limits.clone(), sent_bytes.clone());
                let paced = Paced { inner: send, limits, peer, unasked_bytes: 0, sent_bytes };
                let pair = StreamPair::new(connection.stable_id() as u64, recv, paced, events.clone());
                let store = store.clone();
                // A stream that fails was reset, which tells its reader; the store has logged why.
                streams.spawn(async move { drop(handle_stream(pair, store).await) });
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

/// A stream to a peer, which is written to as fast as the limits allow.
#[derive(Debug)]
struct Paced {
    inner: SendStream,
    limits: Limits,
    peer: EndpointId,
    unasked_bytes: u64,
    sent_bytes: Arc<AtomicU64>,
}

impl Paced {
    async fn ask(&mut self, bytes: usize) {
        self.unasked_bytes += bytes as u64;
        if self.unasked_bytes > UNASKED_BYTES {
            let bytes = std::mem::take(&mut self.unasked_bytes);
            self.limits.admit(Direction::Up, self.peer, bytes).await;
        }
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Sending for Paced {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        self.ask(bytes.len()).await;
        Sending::send_bytes(&mut self.inner, bytes).await
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.ask(bytes.len()).await;
        Sending::send(&mut self.inner, bytes).await
    }

    async fn sync(&mut self) -> io::Result<()> {
        Sending::sync(&mut self.inner).await
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        Sending::reset(&mut self.inner, code)
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        Sending::stopped(&mut self.inner).await
    }

    fn id(&self) -> u64 {
        Sending::id(&self.inner)
    }
}
