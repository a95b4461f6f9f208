//! Disks of images that are still on their way to this host, for hypervisors to read.
//!
//! The room owns a folder for each vm that reads its image as it comes: a socket on which the image's disk is served (`serve.rs`,
//! `nbd.rs`), and a record of which blob that is. It decides nothing: the agent says which vm needs a disk and for how long, and
//! `images/` finds what is read. A read waits until its bytes are here and verified, ahead of all else that is fetched; what does
//! not come in time is an error to the guest, never other bytes.
//!
//! The folders above are open to the node's user only. A guest's own user gets to its socket through a descriptor of its folder,
//! which its guard hands over.
//!
//! ```text
//! serve --> served --(the node's process ends)--> record only --(next process: open)--> served
//!              \------------------------ keep_only, without the vm --> (nothing) <--------/
//! ```
//!
//! What a guest reads while it boots is put together (`record.rs`), for the agent to tell the cluster of. A boot that began in an
//! earlier process is not: nobody knows what was read before.
//!
//! While no process serves, hypervisors wait for the socket to come back, as long as they would wait for a read.

mod nbd;
mod record;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use blixard_core::{BlobHash, BootRecord, Part, VmId};
use blixard_hypervisor::LAZY_SOCKET;
use tokio::net::UnixListener;

use crate::images::Images;
use crate::metrics::{Metrics, observe};
use crate::runtime::{Tied, spawn_tied};

pub(crate) use nbd::hear_out;
use record::Recorder;

/// Which blob a folder's socket serves.
const RECORD_FILE: &str = "disk.json";
/// A record is some hundred bytes.
const RECORD_BYTES_MAX: u64 = 4096;

/// The disks that this node serves to its hypervisors. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LazyDisks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    images: Images,
    patience: Duration,
    metrics: Arc<Metrics>,
    served: Mutex<BTreeMap<VmId, Disk>>,
    /// What was seen of boots, by the blob of the disk, until nobody wants it.
    boots: Mutex<BTreeMap<BlobHash, BootRecord>>,
    /// From here on time is counted.
    begun: Instant,
}

#[derive(Debug)]
struct Disk {
    part: Part,
    recorder: Arc<Mutex<Recorder>>,
    _server: Tied,
}

/// A lock of which no holder can leave half a change behind.
fn lock<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What becomes of the reads of one disk besides their answers.
#[derive(Debug, Clone)]
struct Notes {
    recorder: Arc<Mutex<Recorder>>,
    begun: Instant,
    metrics: Arc<Metrics>,
}

impl Notes {
    fn note(&self, read: std::ops::Range<u64>) {
        lock(&self.recorder).note(read, ms_since(self.begun));
    }

    fn count(&self, was_here: bool, is_answered: bool, waited: Duration) {
        let content = match (was_here, is_answered) {
            (_, false) => "failed",
            (true, true) => "here",
            (false, true) => "waited",
        };
        self.metrics.lazy_reads.get_or_create(&[("content", content.into())]).inc();
        if content == "waited" {
            observe(&self.metrics.lazy_waits, waited);
        }
    }
}

fn ms_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl LazyDisks {
    /// Serves again what an earlier process served, from a folder that is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub(crate) fn open(dir: &Path, images: Images, patience: Duration, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        make_folder(dir, 0o700).with_context(|| format!("make {}", dir.display()))?;
        let dir = std::path::absolute(dir).with_context(|| format!("use {}", dir.display()))?;
        let (served, boots, begun) = (Mutex::default(), Mutex::default(), Instant::now());
        let disks = Self { inner: Arc::new(Inner { dir, images, patience, metrics, served, boots, begun }) };
        for entry in std::fs::read_dir(&disks.inner.dir).context("list the disks that were served")? {
            let entry = entry.context("list the disks that were served")?;
            let Some(vm) = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()) else { continue };
            let served =
                read_record(&entry.path().join(RECORD_FILE)).and_then(|part| disks.start(vm, part, Recorder::late()));
            if let Err(error) = served {
                // The agent asks for it again before the vm is next started; a guest that runs now sees errors.
                tracing::warn!(%vm, error = format!("{error:#}"), "a disk cannot be served as before");
            }
        }
        Ok(disks)
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<VmId, Disk>> {
        lock(&self.inner.served)
    }

    /// Serves a blob as the disk of a vm, from now on and after restarts; gives the folder with its socket, [`LAZY_SOCKET`]. One
    /// that is served already stays.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub(crate) fn serve(&self, vm: VmId, part: Part) -> anyhow::Result<PathBuf> {
        let folder = self.inner.dir.join(vm.to_string());
        if self.served().get(&vm).is_none_or(|disk| disk.part != part) {
            let record = serde_json::to_vec(&part).context("write the record of a disk")?;
            let written = make_folder(&folder, 0o711).and_then(|()| {
                let new = folder.join(RECORD_FILE).with_extension("new");
                std::fs::write(&new, record)?;
                std::fs::rename(&new, folder.join(RECORD_FILE))
            });
            written.with_context(|| format!("write {}", folder.display()))?;
            self.start(vm, part, Recorder::new(part.bytes))?;
        }
        Ok(folder)
    }

    fn start(&self, vm: VmId, part: Part, recorder: Recorder) -> anyhow::Result<()> {
        let folder = self.inner.dir.join(vm.to_string());
        let listener = listen(&folder).with_context(|| format!("listen in {}", folder.display()))?;
        let (arriving, patience) = (Arc::new(self.inner.images.arriving(part)), self.inner.patience);
        let recorder = Arc::new(Mutex::new(recorder));
        let (begun, metrics) = (self.inner.begun, self.inner.metrics.clone());
        let notes = Notes { recorder: recorder.clone(), begun, metrics };
        let server = spawn_tied(serve::accept(listener, arriving, notes, patience));
        self.served().insert(vm, Disk { part, recorder, _server: server });
        Ok(())
    }

    /// Ends what is served to other vms than these.
    pub(crate) fn keep_only(&self, is_kept: impl Fn(VmId) -> bool) {
        let mut served = self.served();
        let ended: Vec<VmId> = served.keys().copied().filter(|vm| !is_kept(*vm)).collect();
        for vm in ended {
            if let Some(disk) = served.remove(&vm)
                && let Some(record) = lock(&disk.recorder).take_cut(ms_since(self.inner.begun))
            {
                self.keep_boot(disk.part.hash, record);
            }
            let folder = self.inner.dir.join(vm.to_string());
            if let Err(error) = std::fs::remove_dir_all(&folder) {
                tracing::warn!(%vm, %error, "the folder of a disk that was served cannot be removed");
            }
        }
    }

    /// What was seen of boots and is not forgotten yet, by the blob of the disk.
    pub(crate) fn boots(&self) -> BTreeMap<BlobHash, BootRecord> {
        let now_ms = ms_since(self.inner.begun);
        for disk in self.served().values() {
            if let Some(record) = lock(&disk.recorder).take_whole(now_ms) {
                self.keep_boot(disk.part.hash, record);
            }
        }
        lock(&self.inner.boots).clone()
    }

    fn keep_boot(&self, blob: BlobHash, record: BootRecord) {
        let mut boots = lock(&self.inner.boots);
        // Several vms may boot from one blob; one that was seen to its end says most.
        if boots.get(&blob).is_none_or(|known| !known.is_whole) {
            boots.insert(blob, record);
        }
    }

    /// Forgets what was seen of boots from other blobs than these.
    pub(crate) fn forget_boots(&self, is_wanted: impl Fn(BlobHash) -> bool) {
        lock(&self.inner.boots).retain(|blob, _| is_wanted(*blob));
    }

    /// How long a read waits, for hypervisors that wait for this process.
    pub(crate) fn patience(&self) -> Duration {
        self.inner.patience
    }
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    // One that was there keeps its mode otherwise, and so does one that is made under a strict mask.
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Listens in a folder. The address of a socket holds 107 bytes and a data directory may be longer, so the way leads through a
/// descriptor of the folder.
fn listen(folder: &Path) -> io::Result<UnixListener> {
    let socket = folder.join(LAZY_SOCKET);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let dir = std::fs::File::open(folder)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
    let listener = UnixListener::bind(format!("/proc/self/fd/{fd}/{LAZY_SOCKET}"))?;
    std::fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
    Ok(listener)
}

fn read_record(path: &Path) -> anyhow::Result<Part> {
    let read = || -> anyhow::Result<Part> {
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(std::fs::File::open(path)?, RECORD_BYTES_MAX), &mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    read().with_context(|| format!("read {}", path.display()))
}
