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
//! While no process serves, hypervisors wait for the socket to come back, as long as they would wait for a read.

mod nbd;
mod serve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use blixard_core::{Part, VmId};
use blixard_hypervisor::LAZY_SOCKET;
use tokio::net::UnixListener;

use crate::images::Images;
use crate::runtime::{Tied, spawn_tied};

pub(crate) use nbd::hear_out;

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
    served: Mutex<BTreeMap<VmId, Disk>>,
}

#[derive(Debug)]
struct Disk {
    part: Part,
    _server: Tied,
}

impl LazyDisks {
    /// Serves again what an earlier process served, from a folder that is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub(crate) fn open(dir: &Path, images: Images, patience: Duration) -> anyhow::Result<Self> {
        make_folder(dir, 0o700).with_context(|| format!("make {}", dir.display()))?;
        let dir = std::path::absolute(dir).with_context(|| format!("use {}", dir.display()))?;
        let disks = Self { inner: Arc::new(Inner { dir, images, patience, served: Mutex::default() }) };
        for entry in std::fs::read_dir(&disks.inner.dir).context("list the disks that were served")? {
            let entry = entry.context("list the disks that were served")?;
            let Some(vm) = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()) else { continue };
            let served = read_record(&entry.path().join(RECORD_FILE)).and_then(|part| disks.start(vm, part));
            if let Err(error) = served {
                // The agent asks for it again before the vm is next started; a guest that runs now sees errors.
                tracing::warn!(%vm, error = format!("{error:#}"), "a disk cannot be served as before");
            }
        }
        Ok(disks)
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<VmId, Disk>> {
        self.inner.served.lock().unwrap_or_else(PoisonError::into_inner)
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
            self.start(vm, part)?;
        }
        Ok(folder)
    }

    fn start(&self, vm: VmId, part: Part) -> anyhow::Result<()> {
        let folder = self.inner.dir.join(vm.to_string());
        let listener = listen(&folder).with_context(|| format!("listen in {}", folder.display()))?;
        let (arriving, patience) = (Arc::new(self.inner.images.arriving(part)), self.inner.patience);
        let server = spawn_tied(serve::accept(listener, arriving, patience));
        self.served().insert(vm, Disk { part, _server: server });
        Ok(())
    }

    /// Ends what is served to other vms than these.
    pub(crate) fn keep_only(&self, is_kept: impl Fn(VmId) -> bool) {
        let mut served = self.served();
        let ended: Vec<VmId> = served.keys().copied().filter(|vm| !is_kept(*vm)).collect();
        for vm in ended {
            served.remove(&vm);
            let folder = self.inner.dir.join(vm.to_string());
            if let Err(error) = std::fs::remove_dir_all(&folder) {
                tracing::warn!(%vm, %error, "the folder of a disk that was served cannot be removed");
            }
        }
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
