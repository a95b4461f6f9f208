//! Fetching what somebody shares, with its ticket and nothing else: no node here, no membership there.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blixard_core::Part;
use tokio::sync::watch;
use tokio::time::timeout;

use super::listing::{Listing, ListingError, shown};
use super::staging::Staging;
pub use super::staging::StagingError;
use super::ticket::ShareTicket;
use super::wire::{Request, SharePart};
use crate::backoff;
use crate::images::{Received, StreamError};
use crate::runtime;
use crate::transport::{self, Connection, Protocol, SecretKey, Transport, TransportConfig};

/// Gathered before it is written, and so what a kill may cost, with what was on its way.
const WRITE_BYTES: usize = 256 << 10;
/// How long a fetch goes on trying while nothing comes. A node that is restarted is back sooner.
const GIVE_UP: Duration = Duration::from_secs(60);
/// The first wait after a failure, and the longest.
const WAIT_MIN: Duration = Duration::from_millis(200);
const WAIT_MAX: Duration = Duration::from_secs(5);
/// How long nothing may come while a connection lives: under the lowest limit, shared by as many as a node sends to, a piece takes
/// some seconds.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// How far a fetch is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchProgress {
    /// What is fetched; empty while that is not known.
    pub name: String,
    /// How many files it has.
    pub files: usize,
    /// Bytes that are here and verified.
    pub done_bytes: u64,
    /// Bytes that an earlier fetch had left here.
    pub found_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Why nothing comes, while it is tried again.
    pub waits: Option<String>,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// How many files it has.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes of content that came in this run.
    pub received_bytes: u64,
}

/// Why something was not fetched. What was verified stays for the next try, unless it is said that it does not.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The node gives nothing for this ticket.
    #[error("the node refuses the ticket: its share was stopped, its time is over, or it never was")]
    Refused,
    /// The node could not be reached, or nothing came for long.
    #[error("nothing came for {} s: {reason}", GIVE_UP.as_secs())]
    Unreachable {
        /// What the last try said.
        reason: String,
    },
    /// What came is not what the ticket stands for.
    #[error("the node sent something else than what was shared: {0}")]
    Lie(String),
    /// The listing cannot be: whoever made it meant harm, or has a newer version.
    #[error("what is shared here is refused: {0}")]
    Listing(#[from] ListingError),
    /// This host's disk, or what is on it.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// This host has no socket or no threads.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Why one try failed.
enum Broken {
    /// It may go better the next time.
    Lost(String),
    /// It never will.
    Final(FetchError),
}

impl<E: Into<FetchError>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self::Final(error.into())
    }
}

/// Fetches what a ticket stands for: to a path, or without one to the name under which it was shared, in the folder that the process is
/// in. The target appears at once, when all of it is there. What is there is replaced only when that is asked for. A fetch that was
/// interrupted, by a kill too, goes on where it was when it is begun again.
///
/// # Errors
/// See [`FetchError`].
pub async fn fetch(
    ticket: &ShareTicket,
    target: Option<&Path>,
    is_replacing: bool,
    progress: &watch::Sender<FetchProgress>,
) -> Result<Fetched, FetchError> {
    let bind = vec![([0, 0, 0, 0], 0).into(), ([0; 16], 0).into()];
    let relays = ticket.node.relay_url.iter().cloned().collect();
    // A key for this fetch alone: whoever shares something learns nothing of who fetches it.
    let transport = Transport::open(TransportConfig { key: SecretKey::generate(), bind, relays }).await?;
    let fetched = fetch_over(&transport, ticket, target, is_replacing, progress).await;
    transport.close().await;
    fetched
}

/// The same, over an endpoint that is there.
pub(super) async fn fetch_over(
    transport: &Transport,
    ticket: &ShareTicket,
    target: Option<&Path>,
    is_replacing: bool,
    progress: &watch::Sender<FetchProgress>,
) -> Result<Fetched, FetchError> {
    transport.learn(&ticket.node);
    let fetch = Fetch { transport, ticket, progress };
    let listing = Arc::new(fetch.listing().await?);
    let target = target.map_or_else(|| PathBuf::from(shown(&listing.name)), Path::to_owned);
    let (hash, copy) = (ticket.listing.hash, listing.clone());
    let opening = runtime::blocking(move || Staging::open(copy, hash, &target, is_replacing));
    let mut staging = opening.await.map_err(anyhow::Error::from)??;
    let found_bytes = staging.done_bytes();
    progress.send_replace(FetchProgress {
        name: shown(&listing.name),
        files: listing.files(),
        done_bytes: found_bytes,
        found_bytes,
        total_bytes: listing.bytes(),
        waits: None,
    });
    if let Some(content) = listing.content {
        let mut patience = Patience::begin();
        while staging.done_bytes() < content.bytes {
            let before = staging.done_bytes();
            let (rest, received) = fetch.content(content, staging).await?;
            staging = rest;
            if let Err(broken) = received {
                patience.after(broken, staging.done_bytes() > before, progress).await?;
            }
        }
    }
    let finishing = runtime::blocking(move || staging.finish(is_replacing));
    let path = finishing.await.map_err(anyhow::Error::from)??;
    Ok(Fetched {
        path,
        is_folder: listing.is_folder(),
        files: listing.files(),
        bytes: listing.bytes(),
        received_bytes: listing.bytes() - found_bytes,
    })
}

/// How long a fetch has waited in vain.
struct Patience {
    failures: u32,
    since: Instant,
}

impl Patience {
    fn begin() -> Self {
        Self { failures: 0, since: Instant::now() }
    }

    /// Waits after a failure, unless it was the last.
    async fn after(
        &mut self,
        broken: Broken,
        has_moved: bool,
        progress: &watch::Sender<FetchProgress>,
    ) -> Result<(), FetchError> {
        let reason = match broken {
            Broken::Final(error) => return Err(error),
            Broken::Lost(reason) => reason,
        };
        if has_moved {
            *self = Self::begin();
        }
        if self.since.elapsed() >= GIVE_UP {
            return Err(FetchError::Unreachable { reason });
        }
        self.failures += 1;
        tracing::debug!(reason, failures = self.failures, "a fetch tries again");
        progress.send_modify(|progress| progress.waits = Some(reason));
        runtime::sleep(backoff::after(self.failures, WAIT_MIN, WAIT_MAX)).await;
        Ok(())
    }
}

struct Fetch<'a> {
    transport: &'a Transport,
    ticket: &'a ShareTicket,
    progress: &'a watch::Sender<FetchProgress>,
}

impl Fetch<'_> {
    async fn listing(&self) -> Result<Listing, FetchError> {
        let mut patience = Patience::begin();
        loop {
            match self.try_listing().await {
                Ok(encoded) => return Ok(Listing::decode(&encoded)?),
                Err(broken) => patience.after(broken, false, self.progress).await?,
            }
        }
    }

    async fn try_listing(&self) -> Result<Vec<u8>, Broken> {
        let (connection, mut received) = self.ask(SharePart::Listing, self.ticket.listing, 0).await?;
        let mut encoded = Vec::new();
        while let Some(piece) = next(&connection, &mut received).await? {
            encoded.extend_from_slice(&piece);
        }
        Ok(encoded)
    }

    /// Receives what is missing of the content. Gives the staging back, with what has come, however it ended.
    async fn content(&self, content: Part, mut staging: Staging) -> Result<(Staging, Result<(), Broken>), FetchError> {
        let (connection, mut received) = match self.ask(SharePart::Content, content, staging.done_bytes()).await {
            Ok(asked) => asked,
            Err(broken) => return Ok((staging, Err(broken))),
        };
        loop {
            let mut gathered = Vec::with_capacity(WRITE_BYTES);
            let mut ended = None;
            while gathered.len() < WRITE_BYTES && ended.is_none() {
                match next(&connection, &mut received).await {
                    Ok(Some(piece)) => gathered.extend_from_slice(&piece),
                    Ok(None) => ended = Some(Ok(())),
                    Err(broken) => ended = Some(Err(broken)),
                }
            }
            let writing = runtime::blocking(move || {
                let written = staging.write(&gathered);
                (staging, written)
            });
            let (rest, written) = writing.await.map_err(anyhow::Error::from)?;
            staging = rest;
            written?;
            let done_bytes = staging.done_bytes();
            self.progress.send_modify(|progress| {
                progress.done_bytes = done_bytes;
                progress.waits = None;
            });
            match ended {
                Some(Ok(())) if done_bytes < content.bytes => {
                    return Ok((staging, Err(Broken::Lost("the answer was too short".to_owned()))));
                }
                Some(ended) => return Ok((staging, ended)),
                None => {}
            }
        }
    }

    async fn ask(&self, part: SharePart, blob: Part, from_bytes: u64) -> Result<(Connection, Received), Broken> {
        let connected = self.transport.connect(self.ticket.node.endpoint, Protocol::Share).await;
        let connection = connected.map_err(|error| Broken::Lost(error.to_string()))?;
        let asked = async {
            let (mut send, recv) = connection.open_bi().await?;
            let request = Request { secret: self.ticket.secret, part, from_bytes };
            send.write_all(&request.encode()).await?;
            send.finish()?;
            anyhow::Ok(recv)
        };
        match asked.await {
            Ok(recv) => Ok((connection, Received::new(blob, from_bytes, recv))),
            Err(error) => Err(lost(&connection, format!("{error:#}"))),
        }
    }
}

/// Why a connection was lost, or that it was refused.
fn lost(connection: &Connection, reason: String) -> Broken {
    match transport::refusal(connection) {
        Some(_) => Broken::Final(FetchError::Refused),
        None => Broken::Lost(reason),
    }
}

async fn next(connection: &Connection, received: &mut Received) -> Result<Option<bytes::Bytes>, Broken> {
    match timeout(SILENCE_MAX, received.next()).await {
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(StreamError::Wrong(what))) => Err(Broken::Final(FetchError::Lie(what))),
        Ok(Err(error @ StreamError::Lost(_))) => Err(lost(connection, error.to_string())),
        Err(_) => {
            // The next try is to have a connection of its own.
            connection.close(0_u32.into(), b"nothing came");
            Err(Broken::Lost(format!("nothing came for {} s", SILENCE_MAX.as_secs())))
        }
    }
}
