//! One order of a fetch: a request to one source, and what becomes of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blixard_core::EndpointId;
use futures::StreamExt;
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::fsm::DecodeError;
use iroh_blobs::get::{GetError, StreamPair};
use iroh_blobs::protocol::ChunkRanges;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::holders::Source;
use super::plan::{Order, Why};
use super::workers::{Failure, Job, STALL_TIMEOUT};
use super::{Direction, FetchError};

/// Progress is told in steps of this size: more often is too often for anybody to read.
const PROGRESS_STEP_BYTES: u64 = 64 << 10;
/// A source from which so many orders in a row were taken back, because nothing came of them, is left out for a while.
const SILENT_MAX: u32 = 3;

impl Job {
    /// Carries out an order. What it did not bring is given back to the plan.
    pub(super) async fn fetch_order(self: &Arc<Self>, source: &Source, order: Order) -> Result<(), Failure> {
        let hold = Hold::new(self, order.number);
        let from = source.holder.endpoint;
        let mut received = Received {
            job: self,
            order: order.number,
            why: order.why,
            is_asked: false,
            bytes: 0,
            told_bytes: 0,
            moved_bytes: 0,
            from,
        };
        let result = match self.images.check_space(order.bytes()).await {
            Ok(()) => tokio::select! {
                result = self.request(source, &order, &mut received) => result.map(|()| true),
                () = hold.is_taken_back() => Ok(false),
            },
            Err(no_space) => Err(Failure::Local(no_space.into())),
        };
        received.tell();
        if received.bytes > 0 {
            self.delivered(source.holder.endpoint);
        }
        let standings = &self.images.inner.standings;
        // One that was held back by a limit was not asked at all.
        let silent = source.note_silence(received.is_asked && received.bytes == 0);
        let failure = match result {
            Ok(true) => {
                standings.received(source.holder.endpoint, order.bytes());
                hold.finish();
                return Ok(());
            }
            Ok(false) if silent >= SILENT_MAX => Some(Failure::Source("it was asked and delivered nothing".to_owned())),
            Ok(false) => None,
            Err(failure @ Failure::Local(_)) => return Err(failure),
            Err(failure) => Some(failure),
        };
        let present = self.images.present(order.hash).await.map_err(|error| Failure::Local(error.into()))?;
        let rest_bytes = order.without(&present.ranges).bytes();
        let kept_bytes = order.bytes().saturating_sub(rest_bytes);
        standings.received(source.holder.endpoint, kept_bytes);
        // What came and was not told of before the order was taken back.
        received.reached(kept_bytes);
        received.tell();
        self.progress.send_modify(|progress| {
            progress.bytes_done = (progress.bytes_done + kept_bytes).saturating_sub(received.bytes);
        });
        hold.give_back(&present.ranges);
        failure.map_or(Ok(()), Err)
    }

    /// Asks for what is ordered, at once or, under a limit, bit by bit.
    async fn request(&self, source: &Source, order: &Order, received: &mut Received<'_>) -> Result<(), Failure> {
        let (limits, peer) = (self.images.limits(), source.holder.endpoint);
        let mut rest = order.clone();
        while let Some(slice) = rest.take_slice(limits.request_bytes_max(peer)) {
            limits.admit(Direction::Down, peer, slice.bytes()).await;
            if source.has_failed() {
                return Err(Failure::Source("it failed meanwhile".to_owned()));
            }
            received.is_asked = true;
            self.request_slice(source, &slice, received).await?;
            received.moved(slice.bytes());
        }
        Ok(())
    }

    async fn request_slice(&self, source: &Source, slice: &Order, received: &mut Received<'_>) -> Result<(), Failure> {
        let before = received.bytes;
        let stalled = |_| Failure::Source(format!("it delivered nothing for {} s", STALL_TIMEOUT.as_secs()));
        let streams = timeout(STALL_TIMEOUT, source.connection.open_bi()).await.map_err(stalled)?;
        let (send, recv) = streams.map_err(|error| Failure::Source(source.reason(error)))?;
        let pair = StreamPair::new(source.connection.stable_id() as u64, recv, send);
        let remote = self.images.inner.store.remote();
        // This stream drives the transfer, and is read to its end: whoever leaves it unread stalls the connection.
        let mut items = std::pin::pin!(remote.execute_get(pair, slice.request()).stream());
        loop {
            match timeout(STALL_TIMEOUT, items.next()).await.map_err(stalled)? {
                Some(GetProgressItem::Progress(bytes)) => received.reached(before + bytes),
                Some(GetProgressItem::Done(_)) => return Ok(()),
                Some(GetProgressItem::Error(error)) => return Err(failure(source, &error)),
                None => return Err(Failure::Source("the request ended without a result".to_owned())),
            }
        }
    }
}

/// Whose doing it is that a request failed.
fn failure(source: &Source, error: &GetError) -> Failure {
    let reason = source.reason(error);
    match error {
        GetError::LocalFailure { .. } | GetError::IrpcSend { .. } => Failure::Local(FetchError::Storage(reason)),
        GetError::Decode {
            source: DecodeError::ParentHashMismatch { .. } | DecodeError::LeafHashMismatch { .. },
            ..
        } => Failure::Lie(format!("what it sent does not match the hash: {reason}")),
        _ => Failure::Source(reason),
    }
}

/// Counts what an order received.
struct Received<'a> {
    job: &'a Job,
    order: u64,
    why: Why,
    is_asked: bool,
    bytes: u64,
    told_bytes: u64,
    /// From whom, and how much of it was counted as theirs.
    from: EndpointId,
    moved_bytes: u64,
}

impl Received<'_> {
    fn reached(&mut self, bytes: u64) {
        self.bytes = self.bytes.max(bytes);
        if self.bytes - self.told_bytes >= PROGRESS_STEP_BYTES {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let more = self.bytes - self.told_bytes;
        self.told_bytes = self.bytes;
        self.job.images.received_why().get_or_create(&self.why.label()).inc_by(more);
        self.job.plan().received(self.order, self.bytes, self.job.now_ms());
        self.job.progress.send_modify(|progress| {
            progress.bytes_done += more;
            progress.bytes_received += more;
        });
    }

    /// Counts what came from this source.
    fn moved(&mut self, bytes: u64) {
        self.moved_bytes += bytes;
        let limits = self.job.images.limits();
        limits.moved_bytes(Direction::Down).of(self.from).fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        // Also of a request that was broken off.
        self.moved(self.bytes.saturating_sub(self.moved_bytes));
    }
}

/// An order in a worker's hands; it is given back whatever becomes of the worker.
struct Hold<'a> {
    job: &'a Job,
    order: u64,
    taken_back: Arc<Notify>,
    is_ended: bool,
}

impl<'a> Hold<'a> {
    fn new(job: &'a Job, order: u64) -> Self {
        let taken_back = Arc::<Notify>::default();
        job.taken_back().insert(order, taken_back.clone());
        Self { job, order, taken_back, is_ended: false }
    }

    /// Waits until somebody else is to carry it out.
    async fn is_taken_back(&self) {
        self.taken_back.notified().await;
    }

    fn finish(mut self) {
        self.is_ended = true;
        self.job.plan().finish(self.order, self.job.now_ms());
    }

    fn give_back(mut self, present: &ChunkRanges) {
        self.is_ended = true;
        self.job.plan().give_back(self.order, present, self.job.now_ms());
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.job.taken_back().remove(&self.order);
        if !self.is_ended {
            self.job.plan().give_back(self.order, &ChunkRanges::empty(), self.job.now_ms());
        }
        self.job.changed.send_replace(());
    }
}
