//! One source of a fetch: its connection, and what it says it has. What it says decides only what it is asked for; what
//! it sends is checked against the hash.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use blixard_core::BlobHash;
use futures::StreamExt;
use iroh_blobs::Hash;
use iroh_blobs::protocol::ObserveRequest;
use iroh_blobs::store::fs::FsStore;
use tokio::sync::watch;

use super::pieces::Holdings;
use crate::transport::{Connection, refusal};

#[derive(Debug)]
pub(super) struct Source {
    pub(super) connection: Connection,
    holdings: Mutex<Holdings>,
    failed: AtomicBool,
}

impl Source {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, holdings: Mutex::default(), failed: AtomicBool::new(false) }
    }

    /// Whether it is not to be asked for anything more in this fetch.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn with_holdings<T>(&self, use_them: impl FnOnce(&Holdings) -> T) -> T {
        use_them(&self.holdings.lock().expect("no holder of this lock panics"))
    }

    /// Why it fails, in its own words where it refused us.
    pub(super) fn reason(&self, error: impl std::fmt::Display) -> String {
        refusal(&self.connection).unwrap_or_else(|| format!("{error:#}"))
    }

    /// Follows what the source has of a blob, which grows while the source itself fetches it. Ends, with the reason, only
    /// when the source does not tell any more.
    pub(super) async fn follow(&self, store: &FsStore, hash: BlobHash, changed: &watch::Sender<()>) -> String {
        let request = ObserveRequest::new(Hash::from_bytes(hash.0));
        let mut news = std::pin::pin!(store.remote().observe(self.connection.clone(), request));
        while let Some(item) = news.next().await {
            match item {
                Ok(more) => {
                    let mut holdings = self.holdings.lock().expect("no holder of this lock panics");
                    *holdings.entry(hash).or_default() |= more.ranges;
                    drop(holdings);
                    changed.send_replace(());
                }
                Err(error) => return self.reason(format!("it does not say what it has: {error}")),
            }
        }
        "it no longer says what it has".to_owned()
    }
}
