//! What serves blobs to members: whole ones and parts, and which ranges there are. It takes nothing in.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blixard_core::EndpointId;
use bytes::Bytes;
use iroh::endpoint::VarInt;
use iroh_blobs::api::Store;
use iroh_blobs::provider::events::{EventMask, EventSender, RequestMode};
use iroh_blobs::provider::{StreamPair, handle_stream};
use iroh_blobs::util::SendStream as Sending;
use tokio::task::JoinSet;

use super::limits::{Direction, Limits};
use crate::transport::{Connection, SendStream};

/// Events wait for nobody here: the mask asks for none that would have to be answered.
const EVENTS: usize = 1;
/// What may be written before it is asked for: what stands between two pieces of content, which go under the limit with the
/// next of them. What a peer is told of the ranges here is never more, and so never waits.
const UNASKED_BYTES: u64 = 8 << 10;

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
