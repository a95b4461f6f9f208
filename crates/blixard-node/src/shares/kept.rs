//! What a node shares, in a file, so that it goes on after a restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use blixard_core::{Part, SecretHash, ShareId, UnixMs};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::damage::{Damage, read_bounded};
use crate::runtime;
use crate::transport::write_private;

/// The largest file: as many shares as there may be, each with the longest name, take less than 1 MiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// What to do when it is damaged.
const LOST: &str = "remove it: this node then shares nothing any more, and what it shared has to be shared again, with new \
                    tickets";

/// Something that is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Share {
    /// The hash of the secret in its ticket.
    pub(crate) secret_hash: SecretHash,
    /// The blob with its listing.
    pub(crate) listing: Part,
    /// The blob with the content of its files.
    pub(crate) content: Option<Part>,
    /// What it is called.
    pub(crate) name: String,
    /// Whether it is a folder.
    pub(crate) is_folder: bool,
    /// How many files it has.
    pub(crate) files: usize,
    /// When it was made.
    pub(crate) created_at: UnixMs,
    /// From when on nobody gets it any more.
    pub(crate) expires_at: Option<UnixMs>,
}

impl Share {
    /// Whether its time is over.
    pub(crate) fn is_over(&self, now: UnixMs) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// All that is shared.
pub(crate) type Kept = BTreeMap<ShareId, Share>;

/// The file, and what is in it.
#[derive(Debug)]
pub(super) struct Keeper {
    path: PathBuf,
    kept: watch::Sender<Kept>,
    /// Held while it is written, so that no change overtakes another.
    writing: tokio::sync::Mutex<()>,
}

impl Keeper {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// With [`Damage`] when it holds something else.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let kept = match read_bounded(path, FILE_BYTES_MAX) {
            Ok(text) => {
                let read = serde_json::from_slice(&text);
                read.map_err(|error| Damage::new(path, format!("is damaged: {error}"), LOST))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), kept: watch::Sender::new(kept), writing: Default::default() })
    }

    /// What is kept, and whenever that changes.
    pub(super) fn watch(&self) -> watch::Receiver<Kept> {
        self.kept.subscribe()
    }

    /// Changes what is kept. It holds once it is on disk.
    ///
    /// # Errors
    /// When `change` says so, or it cannot be written; then nothing has changed.
    pub(super) async fn change<E: From<anyhow::Error>>(
        &self,
        change: impl FnOnce(&mut Kept) -> Result<(), E>,
    ) -> Result<(), E> {
        let _turn = self.writing.lock().await;
        let mut next = self.kept.borrow().clone();
        change(&mut next)?;
        if next != *self.kept.borrow() {
            let text = serde_json::to_string_pretty(&next).context("encode what is shared")? + "\n";
            let path = self.path.clone();
            let written = runtime::blocking(move || write_private(&path, text.as_bytes())).await;
            written.context("write what is shared").map_err(E::from)??;
            self.kept.send_replace(next);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::BlobHash;

    use super::*;

    fn share() -> Share {
        Share {
            secret_hash: SecretHash([1; 32]),
            listing: Part { hash: BlobHash([2; 32]), bytes: 9 },
            content: None,
            name: "stuff".to_owned(),
            is_folder: true,
            files: 0,
            created_at: UnixMs(5),
            expires_at: Some(UnixMs(7)),
        }
    }

    fn add(kept: &mut Kept) -> anyhow::Result<()> {
        kept.insert(ShareId([3; 8]), share());
        Ok(())
    }

    #[tokio::test]
    async fn what_is_shared_is_there_again_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shares.json");
        let keeper = Keeper::open(&path).unwrap();
        assert!(keeper.watch().borrow().is_empty());
        keeper.change(add).await.unwrap();
        assert_eq!(Keeper::open(&path).unwrap().watch().borrow()[&ShareId([3; 8])], share());
        for text in ["", "{", "[]", "{\"0303030303030303\": {}}", "{\"03\": {}}"] {
            std::fs::write(&path, text).unwrap();
            let damage = Keeper::open(&path).unwrap_err().downcast::<Damage>().unwrap();
            assert!(damage.problem.contains("damaged") && damage.next_step.contains("shared again"), "{damage}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        // A file stands where the folder would have to be.
        std::fs::write(dir.path().join("no-folder"), "").unwrap();
        let keeper = Keeper {
            path: dir.path().join("no-folder/shares.json"),
            kept: Default::default(),
            writing: Default::default(),
        };
        let failed: anyhow::Error = keeper.change(add).await.unwrap_err();
        assert!(format!("{failed:#}").contains("shares.json"), "{failed:#}");
        assert!(keeper.watch().borrow().is_empty());
    }
}
