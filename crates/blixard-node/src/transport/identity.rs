//! Secret keys on disk: made once, readable by their owner alone, never replaced.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use blixard_core::EndpointId;
use data_encoding::HEXLOWER;

use crate::damage::{Damage, read_bounded};

/// What to do about a key that cannot be read.
pub(crate) const KEY_LOST: &str = "restore the key from a backup; without it a node has to be removed and to join anew with an \
                                   empty data directory, and a user has to be let in anew";
/// More than a key and some white space around it take.
const KEY_FILE_BYTES_MAX: u64 = 4 << 10;
/// Tells the writes of this process apart.
static WRITES: AtomicU64 = AtomicU64::new(0);

/// A secret key. Its public half is the identity of a node, a client or a cluster.
#[derive(Clone)]
pub struct SecretKey(iroh::SecretKey);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey(of {})", self.id().short())
    }
}

impl SecretKey {
    /// A new random key.
    pub fn generate() -> Self {
        Self(iroh::SecretKey::generate())
    }

    /// The public half.
    pub fn id(&self) -> EndpointId {
        EndpointId(*self.0.public().as_bytes())
    }

    /// The key itself, for what a node signs as itself and is no handshake.
    pub(crate) fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub(super) fn inner(&self) -> &iroh::SecretKey {
        &self.0
    }
}

/// Reads a key file, or makes it when there is none.
///
/// # Errors
/// When the file cannot be read or made, others than its owner may read it, or it does not hold a key. A damaged key is
/// never replaced: the cluster knows this host by it.
pub fn load_or_create_key(path: &Path) -> anyhow::Result<SecretKey> {
    match std::fs::metadata(path) {
        Ok(meta) => {
            let mode = meta.mode() & 0o777;
            if mode & 0o077 != 0 {
                bail!(
                    "the key {} may be read by others (mode {mode:o}): run `chmod 600` on it, and think of who may have \
                     copied it",
                    path.display()
                );
            }
            let text =
                read_bounded(path, KEY_FILE_BYTES_MAX).with_context(|| format!("read key {}", path.display()))?;
            let bytes = HEXLOWER.decode(text.trim_ascii()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            let Some(bytes) = bytes else {
                let problem = "is damaged: it is to hold 64 hexadecimal digits";
                return Err(Damage::new(path, problem, KEY_LOST).into());
            };
            Ok(SecretKey(iroh::SecretKey::from_bytes(&bytes)))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = SecretKey::generate();
            write_private(path, format!("{}\n", HEXLOWER.encode(&key.0.to_bytes())).as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("read key {}", path.display())),
    }
}

/// Writes a file that its owner alone may read, whole or not at all. A folder that has to be made for it is closed, too.
///
/// # Errors
/// When a file cannot be written there.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        // A name of its own for each writer: two that write the same file at once must not write into one.
        let turn = WRITES.fetch_add(1, Ordering::Relaxed);
        let fresh = path.with_extension(format!("fresh-{}-{turn}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        if let Some(parent) = path.parent() {
            std::fs::File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/node.key");
        let first = load_or_create_key(&path).unwrap();
        assert_eq!(load_or_create_key(&path).unwrap().id(), first.id());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_or_open_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        write_private(&path, b"not a key").unwrap();
        assert!(load_or_create_key(&path).unwrap_err().to_string().contains("damaged"));
        assert_eq!(std::fs::read(&path).unwrap(), b"not a key");
        std::fs::remove_file(&path).unwrap();
        load_or_create_key(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load_or_create_key(&path).unwrap_err().to_string().contains("chmod 600"));
    }
}
