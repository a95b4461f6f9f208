//! What stands in documents: one file for each value, named by its hash.
//!
//! A value is small, so it is written, read, sent and checked whole. A file that is not what its name says is removed: other
//! members have the value, and it is fetched again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Context;
use blixard_core::BlobHash;

use super::VALUE_BYTES_MAX;
use crate::damage::read_bounded;
use crate::runtime;
use crate::transport::write_private;

/// The values of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Values {
    dir: Arc<Path>,
    here: Arc<Mutex<BTreeSet<BlobHash>>>,
}

impl Values {
    /// Opens a folder of values, or makes it, and removes what a crash left half-written. Blocks.
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let open = || -> io::Result<BTreeSet<BlobHash>> {
            fs::create_dir_all(dir)?;
            let mut here = BTreeSet::new();
            for file in fs::read_dir(dir)? {
                let file = file?;
                match file.file_name().to_str().and_then(|name| name.parse().ok()) {
                    Some(hash) => {
                        here.insert(hash);
                    }
                    None => fs::remove_file(file.path())?,
                }
            }
            Ok(here)
        };
        let here = open().with_context(|| format!("open the values of documents in {}", dir.display()))?;
        Ok(Self { dir: dir.into(), here: Arc::new(Mutex::new(here)) })
    }

    fn here(&self) -> MutexGuard<'_, BTreeSet<BlobHash>> {
        self.here.lock().expect("no holder of this lock panics")
    }

    fn path(&self, hash: BlobHash) -> PathBuf {
        self.dir.join(hash.to_string())
    }

    /// Whether a value is here.
    pub(super) fn has(&self, hash: BlobHash) -> bool {
        self.here().contains(&hash)
    }

    /// All that are here.
    pub(super) fn all(&self) -> BTreeSet<BlobHash> {
        self.here().clone()
    }

    /// Keeps a value; it is on the disk when this returns.
    pub(super) async fn put(&self, value: Vec<u8>) -> anyhow::Result<BlobHash> {
        let hash = BlobHash(*blake3::hash(&value).as_bytes());
        if self.has(hash) {
            return Ok(hash);
        }
        let path = self.path(hash);
        runtime::blocking(move || write_private(&path, &value)).await.context("write a value")??;
        self.here().insert(hash);
        Ok(hash)
    }

    /// A value, checked against its hash; nothing when it is not here, or not any more what it was.
    pub(super) async fn get(&self, hash: BlobHash) -> Option<Vec<u8>> {
        if !self.has(hash) {
            return None;
        }
        let path = self.path(hash);
        let read = runtime::blocking(move || read_bounded(&path, VALUE_BYTES_MAX)).await;
        match read.and_then(|read| read) {
            Ok(value) if *blake3::hash(&value).as_bytes() == hash.0 => return Some(value),
            Ok(_) => tracing::warn!(%hash, "the file of a value is damaged; it is fetched again"),
            Err(error) => tracing::warn!(%hash, %error, "the file of a value cannot be read; it is fetched again"),
        }
        self.remove(hash).await;
        None
    }

    /// Lets a value go.
    pub(super) async fn remove(&self, hash: BlobHash) {
        self.here().remove(&hash);
        let path = self.path(hash);
        let removed = runtime::blocking(move || fs::remove_file(path)).await.and_then(|removed| removed);
        if let Err(error) = removed.or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }) {
            tracing::warn!(%hash, %error, "the file of a value that nothing keeps cannot be removed");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_comes_back_as_it_was_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let values = Values::open(dir.path()).unwrap();
        let (one, two) = (values.put(b"one".to_vec()).await.unwrap(), values.put(b"two".to_vec()).await.unwrap());
        assert_eq!(values.get(one).await.as_deref(), Some(&b"one"[..]));
        fs::write(values.path(two), "tw0").unwrap();
        assert_eq!(values.get(two).await, None);
        assert!(!values.has(two) && !values.path(two).exists(), "a damaged value is as good as none");
        values.remove(one).await;
        assert_eq!(values.get(one).await, None);
    }

    #[tokio::test]
    async fn what_was_written_is_there_after_a_restart_and_what_was_cut_short_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let hash = Values::open(dir.path()).unwrap().put(b"kept".to_vec()).await.unwrap();
        fs::write(dir.path().join(format!("{hash}.fresh-1-1")), "ke").unwrap();
        let values = Values::open(dir.path()).unwrap();
        assert_eq!(values.get(hash).await.as_deref(), Some(&b"kept"[..]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
