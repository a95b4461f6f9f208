//! The folder that holds one folder per vm: finding them, holding one while it is acted upon, deleting one.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::folder::Folder;
use crate::spec::is_vm_id;

/// A folder on its way out is renamed first, so that no half-deleted vm is ever seen.
const REMOVED_PREFIX: &str = ".removed-";

/// A driver's root folder.
pub(crate) struct Root {
    path: PathBuf,
    held: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Root {
    /// Opens the folder, makes it if needed, and finishes deletions that were interrupted.
    pub(crate) fn open(path: &Path) -> io::Result<Root> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // Guards and hypervisors run elsewhere, so nothing may depend on our working folder.
        let path = fs::canonicalize(path)?;
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(REMOVED_PREFIX) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Root { path, held: Mutex::new(HashMap::new()) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A vm's folder, whether it exists or not; none for what cannot be a vm's id.
    pub(crate) fn folder(&self, vm: &str) -> Option<Folder> {
        is_vm_id(vm).then(|| Folder::new(self.path.join(vm)))
    }

    /// The ids of all vms that have a folder, in order.
    pub(crate) fn vms(&self) -> io::Result<Vec<String>> {
        let mut vms = vec![];
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string()
                && is_vm_id(&name)
                && entry.file_type()?.is_dir()
            {
                vms.push(name);
            }
        }
        vms.sort();
        Ok(vms)
    }

    /// What is to be locked while a vm is acted upon; observing needs no lock.
    pub(crate) fn hold(&self, vm: &str) -> Arc<Mutex<()>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.entry(vm.to_owned()).or_default().clone()
    }

    /// Deletes a vm's folder with all that is in it.
    pub(crate) fn delete(&self, vm: &str) -> io::Result<()> {
        let removed = self.path.join(format!("{REMOVED_PREFIX}{vm}"));
        match fs::rename(self.path.join(vm), &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result?,
        }
        File::open(&self.path)?.sync_all()?;
        fs::remove_dir_all(&removed)
    }
}
