//! One source of a fetch: its connection, and what it says it has. What it says decides only what it is asked for; what
//! it sends is checked against the hash.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use blixard_core::{BlobHash, EndpointId};
use futures::StreamExt;
use iroh_blobs::Hash;
use iroh_blobs::protocol::{ChunkRanges, ObserveRequest};
use iroh_blobs::store::fs::FsStore;
use tokio::time::timeout;

use super::plan::Tier;
use crate::transport::{Connection, Protocol, Transport, refusal};

/// Where no site is named, who is farther away than this is far. A full link alone adds 100 ms and more, and must not make its
/// neighbours look far: so this tells continents apart, and sites only by their names.
const NEAR_ROUND_TRIP_MAX: Duration = Duration::from_millis(150);

/// A node from which an image may be had, as the cluster's state says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder {
    /// Its key.
    pub(crate) endpoint: EndpointId,
    /// Whether it has all of it. Otherwise it is fetching the image, and may have a part.
    pub(crate) is_whole: bool,
    /// Whether it is at this node's site; nothing when either names none.
    pub(crate) same_site: Option<bool>,
    /// What opens the images that it publishes, where it is a node of another cluster.
    pub(crate) opened_by: Option<Opener>,
}

/// The secret of a ticket, which is not shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Opener(pub(crate) [u8; 32]);

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener(..)")
    }
}

impl Holder {
    /// A connection over which it may be asked for the image.
    pub(super) async fn reach(&self, transport: &Transport) -> Result<Connection, String> {
        let Some(Opener(secret)) = self.opened_by else {
            return transport.connect(self.endpoint, Protocol::Blobs).await.map_err(|error| error.to_string());
        };
        let connection = transport.dial_known(self.endpoint, Protocol::Published).await;
        let connection = connection.map_err(|error| error.to_string())?;
        let opened = timeout(OPEN_TIMEOUT, async {
            let (mut send, mut recv) = connection.open_bi().await.ok()?;
            send.write_all(&secret).await.ok()?;
            send.finish().ok()?;
            recv.read_to_end(1).await.ok().filter(|answer| !answer.is_empty())
        });
        match opened.await {
            Ok(Some(_)) => Ok(connection),
            _ => Err(refusal(&connection).unwrap_or_else(|| "it did not open what it publishes".to_owned())),
        }
    }
}

/// How long a node may take to look at a ticket.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Source {
    pub(super) holder: Holder,
    pub(super) connection: Connection,
    /// The shortest that was seen: what a full line adds says nothing of the distance.
    round_trip: Mutex<Duration>,
    failed: AtomicBool,
    /// Orders in a row of which nothing came.
    silent: AtomicU32,
}

impl Source {
    pub(super) fn new(holder: Holder, connection: Connection) -> Self {
        let (round_trip, failed, silent) = (Mutex::new(Duration::MAX), AtomicBool::default(), AtomicU32::default());
        Self { holder, connection, round_trip, failed, silent }
    }

    /// Whether it is not to be asked for anything more for now.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Notes whether nothing came of an order. Gives in how many in a row that was so.
    pub(super) fn note_silence(&self, is_silent: bool) -> u32 {
        if is_silent {
            return self.silent.fetch_add(1, Ordering::Relaxed) + 1;
        }
        self.silent.store(0, Ordering::Relaxed);
        0
    }

    /// Why it fails, in its own words where it refused us.
    pub(super) fn reason(&self, error: impl std::fmt::Display) -> String {
        refusal(&self.connection).unwrap_or_else(|| format!("{error:#}"))
    }

    /// Whether it is near or far, by its site, or else by the connection's round trips so far.
    pub(super) fn tier(&self) -> Tier {
        let paths = self.connection.paths();
        let now = paths.iter().find(|path| path.is_selected()).map_or(Duration::MAX, |path| path.rtt());
        let shortest = {
            let mut shortest = self.round_trip.lock().expect("no holder of this lock panics");
            *shortest = now.min(*shortest);
            *shortest
        };
        if self.holder.same_site.unwrap_or(shortest <= NEAR_ROUND_TRIP_MAX) { Tier::Near } else { Tier::Far }
    }

    /// Asks what the source has of a blob at the moment.
    ///
    /// The protocol would also tell each change as it happens. With many receivers each of them would tell all others of
    /// every 16 KiB; asked now and then, it says the same in a fraction of the messages.
    pub(super) async fn ask(&self, store: &FsStore, hash: BlobHash) -> Result<ChunkRanges, String> {
        let request = ObserveRequest::new(Hash::from_bytes(hash.0));
        let mut news = std::pin::pin!(store.remote().observe(self.connection.clone(), request));
        match news.next().await {
            Some(Ok(held)) => Ok(held.ranges),
            Some(Err(error)) => Err(self.reason(format!("it does not say what it has: {error}"))),
            None => Err("it no longer says what it has".to_owned()),
        }
    }
}
