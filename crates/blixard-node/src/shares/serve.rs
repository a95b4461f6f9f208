//! Giving shares out: a stranger shows the secret of a ticket, and gets a part of that share or a refusal that says nothing else.

use std::time::Duration;

use blixard_core::{EndpointId, Part, ShareId};
use tokio::time::timeout;

use super::wire::{REQUEST_BYTES_MAX, Request, SharePart};
use super::{Share, Shares, hash_of};
use crate::clock;
use crate::images::PIECE_BYTES;
use crate::transport::{BUSY, Connection, REFUSED, SendStream};

/// How long a stranger has to ask for something, and again after each answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the last of what was sent may be on its way: some MiB, over the slowest line.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(600);
/// The code with which a connection ends that asks for nothing, or for what cannot be.
const NOTHING_TO_DO: u32 = 400;
/// The code with which a connection ends for which nothing more can be done: the fetch goes on with another one.
const BROKEN_OFF: u32 = 500;

/// Why a connection ends, as the other side is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It asks for nothing more, or for what cannot be.
    Idle,
    /// The secret opens nothing. Whether it ever did is not told.
    NoShare,
    /// Too much is being sent.
    Busy,
    /// The disk or the line failed.
    BrokenOff,
}

impl End {
    fn words(self) -> (u32, &'static str) {
        match self {
            Self::Idle => (NOTHING_TO_DO, "nothing was asked for that could be answered"),
            Self::NoShare => (REFUSED, "the ticket opens nothing here"),
            Self::Busy => (BUSY, "too many fetch from this node: try again"),
            Self::BrokenOff => (BROKEN_OFF, "the answer broke off"),
        }
    }
}

/// Serves a connection until there is nothing more to do for it.
pub(super) async fn serve(shares: Shares, connection: Connection) {
    let peer = EndpointId(*connection.remote_id().as_bytes());
    let end = loop {
        let heard = timeout(REQUEST_TIMEOUT, async {
            let (send, mut recv) = connection.accept_bi().await.ok()?;
            let bytes = recv.read_to_end(REQUEST_BYTES_MAX).await.ok()?;
            Some((Request::decode(&bytes)?, send))
        });
        let Ok(Some((request, send))) = heard.await else { break End::Idle };
        match shares.answer(peer, request, send).await {
            Ok(()) => {}
            Err(end) => break end,
        }
    };
    let (code, reason) = end.words();
    tracing::debug!(peer = %peer.short(), reason, "a connection for a share ends");
    connection.close(code.into(), reason.as_bytes());
}

impl Shares {
    /// The share that a secret opens, for as long as its time is not over.
    fn opened_by(&self, secret: &[u8; 32]) -> Option<(ShareId, Share)> {
        let hash = hash_of(secret);
        let kept = self.inner.keeper.watch();
        let kept = kept.borrow();
        let (id, share) = kept.iter().find(|(_, share)| share.secret_hash == hash)?;
        (!share.is_over(clock::now())).then(|| (*id, share.clone()))
    }

    async fn answer(&self, peer: EndpointId, request: Request, send: SendStream) -> Result<(), End> {
        let Some((id, share)) = self.opened_by(&request.secret) else {
            self.inner.metrics.shares_refused.inc();
            tracing::info!(peer = %peer.short(), "somebody showed a secret that opens no share");
            return Err(End::NoShare);
        };
        let part = match request.part {
            SharePart::Listing => Some(share.listing),
            SharePart::Content => share.content,
        };
        let from_bytes = request.from_bytes;
        let Some(part) = part.filter(|part| from_bytes < part.bytes && from_bytes.is_multiple_of(PIECE_BYTES)) else {
            return Err(End::Idle);
        };
        if !self.inner.images.has(part).await {
            // Whoever took it away knows; whoever has the ticket has nothing to wait for.
            tracing::warn!(share = %id, blob = %part.hash.short(), "the content of a share is not on this node any more");
            return Err(End::NoShare);
        }
        let Ok(_place) = self.inner.sending.try_acquire() else { return Err(End::Busy) };
        tracing::info!(share = %id, peer = %peer.short(), part = ?request.part, from_bytes, "a share is sent");
        let mut kept = self.inner.keeper.watch();
        tokio::select! {
            sent = self.send(part, from_bytes, send) => sent,
            _ = kept.wait_for(|kept| !kept.contains_key(&id)) => Err(End::NoShare),
        }
    }

    async fn send(&self, part: Part, from_bytes: u64, mut send: SendStream) -> Result<(), End> {
        let count = |bytes| {
            self.inner.metrics.shared_bytes.inc_by(bytes);
        };
        if let Err(error) = self.inner.images.send(part.hash, from_bytes, &mut send, count).await {
            tracing::warn!(%error, blob = %part.hash.short(), "a share was not sent to its end");
            return Err(End::BrokenOff);
        }
        let _ = send.finish();
        // Who waits for the next request could close the connection before the last bytes of this answer are there.
        match timeout(DRAIN_TIMEOUT, send.stopped()).await {
            Ok(Ok(None)) => Ok(()),
            _ => Err(End::BrokenOff),
        }
    }
}
