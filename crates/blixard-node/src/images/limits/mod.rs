//! How fast image content may be sent and received, by this node altogether and by each peer, changed at any time.
//!
//! Whoever is about to send asks before each piece of some 16 KiB, and whoever fetches before each request, which is then as
//! short as the limit wants it: content that was asked for is always read as it comes, because a stream that is left unread
//! endangers its whole connection. `lanes.rs` decides who is next, `bucket.rs` when. Nothing but image content is limited.

mod bucket;
mod lanes;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use blixard_core::EndpointId;
use tokio::sync::{Notify, oneshot};

use lanes::Lanes;

use crate::metrics::PeerBytes;

/// The lowest limit, in bytes a second: below it a source that is slow could not be told from one that has stalled.
pub(crate) const BYTES_PER_S_MIN: u64 = 128 << 10;
/// A request is as long as the limit allows in this part of a second: short enough that what is under way when the limit
/// changes does not count, and long enough that round trips do not either.
const REQUESTS_PER_S: u64 = 16;
/// The shortest request: four times what is verified together.
const REQUEST_BYTES_MIN: u64 = 64 << 10;
/// Requests end where verified pieces do.
const REQUEST_STEP_BYTES: u64 = 16 << 10;

/// Which way content goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    /// From this node to a peer.
    Up,
    /// From a peer to this node.
    Down,
}

/// Limits in bytes a second; none where there is nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Rates {
    /// For what is sent.
    pub up_bytes_per_s: Option<u64>,
    /// For what is received.
    pub down_bytes_per_s: Option<u64>,
}

/// The limits of one node, and what has gone through under them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    up: Arc<Way>,
    down: Arc<Way>,
    _drivers: Arc<[Driver; 2]>,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    lanes: Mutex<Lanes<oneshot::Sender<()>>>,
    /// Wakes the driver.
    asked: Notify,
    moved_bytes: Arc<PeerBytes>,
}

/// Ends the task that lets the waiting go when the last clone of the limits goes.
#[derive(Debug)]
struct Driver(tokio::task::AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Way {
    fn lanes(&self) -> MutexGuard<'_, Lanes<oneshot::Sender<()>>> {
        self.lanes.lock().expect("no holder of this lock panics")
    }

    /// Lets everybody go who may. Says when the next may, if anybody waits still.
    fn let_go(&self, lanes: &mut Lanes<oneshot::Sender<()>>) -> Option<Instant> {
        let now = Instant::now();
        while let Some((peer, bytes, ticket)) = lanes.grant(now) {
            if ticket.send(()).is_err() {
                lanes.refund(peer, bytes);
            }
        }
        lanes.next_at()
    }

    /// Lets those go who wait, each in time. Never returns.
    async fn drive(self: Arc<Self>) {
        loop {
            let next_at = {
                let mut lanes = self.lanes();
                self.let_go(&mut lanes)
            };
            let due = async {
                match next_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.asked.notified() => {}
                () = due => {}
            }
        }
    }

    async fn admit(&self, peer: EndpointId, bytes: u64) {
        let (ticket, mut granted) = oneshot::channel();
        {
            let mut lanes = self.lanes();
            if lanes.rate(peer).is_none() {
                return;
            }
            lanes.ask(peer, bytes, ticket);
            // Mostly there is room, and nobody has to be woken for it.
            self.let_go(&mut lanes);
        }
        if granted.try_recv().is_ok() {
            return;
        }
        self.asked.notify_one();
        // The driver outlives everybody who could wait here; if it did not, nothing would be held back any more.
        let _ = granted.await;
    }
}

impl Limits {
    /// No limits. Must be called on a runtime.
    pub(crate) fn none() -> Self {
        let [up, down] = [(); 2].map(|()| Arc::<Way>::default());
        let drivers = [&up, &down].map(|way| Driver(tokio::spawn(way.clone().drive()).abort_handle()));
        Self { up, down, _drivers: Arc::new(drivers) }
    }

    fn way(&self, direction: Direction) -> &Arc<Way> {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    /// Sets the limits of this node altogether or, where one is named, of one peer. They hold at once, but for what is under
    /// way: a request that was made before is served to its end.
    pub(crate) fn set(&self, peer: Option<EndpointId>, rates: Rates) {
        let now = Instant::now();
        for (way, rate) in [(&self.up, rates.up_bytes_per_s), (&self.down, rates.down_bytes_per_s)] {
            match peer {
                Some(peer) => way.lanes().limit_peer(peer, rate, now),
                None => way.lanes().limit_total(rate, now),
            }
            way.asked.notify_one();
        }
    }

    /// Waits until so many bytes may go.
    pub(super) async fn admit(&self, direction: Direction, peer: EndpointId, bytes: u64) {
        self.way(direction).admit(peer, bytes).await;
    }

    /// The longest request that may be made of a peer now, in bytes; nothing where it may be of any length.
    pub(super) fn request_bytes_max(&self, peer: EndpointId) -> Option<u64> {
        let rate = self.down.lanes().rate(peer)?;
        let bytes = (rate / REQUESTS_PER_S).max(REQUEST_BYTES_MIN);
        Some(bytes - bytes % REQUEST_STEP_BYTES)
    }

    /// Counts how many bytes go between this node and each peer, since the process started.
    pub(crate) fn moved_bytes(&self, direction: Direction) -> &Arc<PeerBytes> {
        &self.way(direction).moved_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PEER: EndpointId = EndpointId([1; 32]);

    #[tokio::test]
    async fn requests_are_as_long_as_the_limit_wants_them() {
        let limits = Limits::none();
        assert_eq!(limits.request_bytes_max(PEER), None);
        for (rate, bytes) in [(BYTES_PER_S_MIN, 64 << 10), (10 << 20, 640 << 10), ((10 << 20) + 1, 640 << 10)] {
            limits.set(Some(PEER), Rates { down_bytes_per_s: Some(rate), ..Rates::default() });
            assert_eq!(limits.request_bytes_max(PEER), Some(bytes), "{rate}");
        }
    }

    #[tokio::test]
    async fn those_who_wait_go_in_time_and_at_once_when_the_limit_is_lifted() {
        let limits = Limits::none();
        limits.admit(Direction::Up, PEER, u64::MAX).await;
        limits.set(None, Rates { up_bytes_per_s: Some(BYTES_PER_S_MIN), ..Rates::default() });
        limits.admit(Direction::Down, PEER, u64::MAX).await;
        // Far more than a test waits for.
        limits.admit(Direction::Up, PEER, 1000 * BYTES_PER_S_MIN).await;
        let waits = tokio::spawn({
            let limits = limits.clone();
            async move { limits.admit(Direction::Up, PEER, 1).await }
        });
        assert!(tokio::time::timeout(Duration::from_millis(20), limits.admit(Direction::Up, PEER, 1)).await.is_err());
        limits.set(None, Rates::default());
        tokio::time::timeout(Duration::from_secs(60), waits).await.expect("the limit was lifted").expect("it went");
    }
}
