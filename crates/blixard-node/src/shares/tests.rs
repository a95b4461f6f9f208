//! Shares over real endpoints on loopback, from a real store to real folders.
#![allow(clippy::unwrap_used)]

mod fetching;
mod refusing;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blixard_core::{Part, ShareId, UnixMs};
use tokio::sync::watch;

use super::fetch::fetch_over;
use super::listing::Listing;
use super::{FetchError, FetchProgress, Fetched, Packed, Share, ShareTicket, Shares, hash_of};
use crate::clock;
use crate::images::tests::{chunks, eventually, in_time, open_transport, random};
use crate::images::{Images, Rates};
use crate::metrics::Metrics;
use crate::transport::{Protocol, SecretKey, Transport};

/// A node that shares, and does nothing else.
struct Sharer {
    transport: Transport,
    images: Images,
    shares: Shares,
    metrics: Arc<Metrics>,
    dir: PathBuf,
    temp: Option<tempfile::TempDir>,
}

impl Sharer {
    async fn start() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut sharer = Self::start_in(temp.path(), SecretKey::generate()).await;
        sharer.temp = Some(temp);
        sharer
    }

    async fn start_in(dir: &Path, key: SecretKey) -> Self {
        let transport = open_transport(key).await;
        let images =
            Images::open(dir.join("images"), transport.clone(), crate::config::CacheMax::Unlimited).await.unwrap();
        let metrics = Arc::new(Metrics::default());
        let shares = Shares::open(&dir.join("shares.json"), images.clone(), metrics.clone()).await.unwrap();
        transport.serve(vec![(Protocol::Share, shares.handler())]);
        Self { transport, images, shares, metrics, dir: dir.to_owned(), temp: None }
    }

    /// Shares a file or a folder.
    async fn share(&self, id: u8, path: &Path, expires_at: Option<UnixMs>) -> ShareTicket {
        let packed = Packed::look(path, "stuff").unwrap();
        let mut guards = Vec::new();
        let content = match packed.bytes() {
            0 => None,
            bytes => {
                let blob = self.images.import(packed.content()).await.unwrap();
                let hash = blob.hash;
                guards.push(blob);
                Some(Part { hash, bytes })
            }
        };
        let listing = self.images.import(chunks(&packed.listing(content).unwrap())).await.unwrap();
        let listing_part = Part { hash: listing.hash, bytes: listing.bytes };
        self.shares.add(ShareId([id; 8]), hash_of(&[id; 32]), listing_part, expires_at).await.unwrap();
        self.ticket(id, listing_part)
    }

    fn ticket(&self, id: u8, listing: Part) -> ShareTicket {
        ShareTicket { node: self.transport.address(), secret: [id; 32], listing }
    }

    /// Shares what nobody checked, as somebody would who means harm.
    async fn share_unchecked(&self, id: u8, listing: &[u8], content: &[u8]) -> ShareTicket {
        let blob = self.images.import(chunks(content)).await.unwrap();
        let written = self.images.import(chunks(listing)).await.unwrap();
        let listing = Part { hash: written.hash, bytes: written.bytes };
        let content = Part { hash: blob.hash, bytes: blob.bytes };
        self.images.hold(&format!("share-test-{id}"), &[listing.hash, content.hash]).await.unwrap();
        let share = Share {
            secret_hash: hash_of(&[id; 32]),
            listing,
            content: Some(content),
            name: String::new(),
            is_folder: true,
            files: 0,
            created_at: clock::now(),
            expires_at: None,
        };
        let add = |kept: &mut super::Kept| drop(kept.insert(ShareId([id; 8]), share));
        self.shares.inner.keeper.change(add, |_| ()).await.unwrap();
        self.ticket(id, listing)
    }

    fn limit(&self, up_bytes_per_s: Option<u64>) {
        self.images.limits().set(None, Rates { up_bytes_per_s, down_bytes_per_s: None });
    }

    fn sends_nothing(&self) -> bool {
        self.shares.inner.sending.available_permits() == super::SENDING_MAX
    }

    async fn stop(self) -> Option<tempfile::TempDir> {
        self.transport.close().await;
        self.images.shutdown().await;
        self.temp
    }
}

/// Somebody who has a ticket, and no node.
struct Fetcher {
    transport: Transport,
    dir: tempfile::TempDir,
}

impl Fetcher {
    async fn start() -> Self {
        Self { transport: open_transport(SecretKey::generate()).await, dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn fetch(&self, ticket: &ShareTicket, name: &str, is_replacing: bool) -> Result<Fetched, FetchError> {
        let progress = watch::Sender::default();
        in_time(fetch_over(&self.transport, ticket, Some(&self.path(name)), is_replacing, &progress)).await
    }

    /// Fetches until so many bytes are here, and then is no more.
    async fn fetch_until(&self, ticket: &ShareTicket, name: &str, bytes: u64) -> FetchProgress {
        let progress = watch::Sender::default();
        let mut seen = progress.subscribe();
        let target = self.path(name);
        let there = tokio::select! {
            ended = fetch_over(&self.transport, ticket, Some(&target), false, &progress) => panic!("it ended too soon: {ended:?}"),
            seen = in_time(seen.wait_for(|progress| progress.done_bytes >= bytes)) => seen.unwrap().clone(),
        };
        // A write that had begun may go on for a moment.
        eventually("the fetch to let go", || async { !self.is_in_use() }).await;
        there
    }

    /// Whether a fetch still has its lock.
    fn is_in_use(&self) -> bool {
        self.left().iter().any(|name| {
            let file = std::fs::File::open(self.path(name)).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).is_err()
        })
    }

    /// What there is in the folder that it fetches to.
    fn left(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path()).unwrap();
        names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

/// All that is below a path: what it is with its mode, and the content of files or where links lead.
fn tree(root: &Path) -> BTreeMap<Vec<u8>, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(path) = rest.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_dir() {
            rest.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            std::fs::read(&path).unwrap()
        };
        let below = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        found.insert(below, (meta.mode(), content));
    }
    found
}

/// A folder with a file of so many random bytes in it.
fn folder_with(dir: &Path, seed: u8, bytes: usize) -> PathBuf {
    let folder = dir.join(format!("folder{seed}"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("big"), random(seed, bytes)).unwrap();
    std::fs::write(folder.join("small"), [seed]).unwrap();
    folder
}

/// For what is awaited in a test and happens soon.
const SOON: Duration = Duration::from_secs(60);
