//! What people have set of this node's transfers, in a file, so that a restart changes nothing of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use blixard_core::{EndpointId, ImageId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::damage::{Damage, read_bounded};
use crate::images::Rates;
use crate::runtime;
use crate::transport::write_private;

/// The largest file: limits of a thousand peers and every image of the largest catalog, twice, take less than 2 MiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// What to do when it is damaged.
const LOST: &str = "remove it: this node's transfers are then not limited, until `blixard transfer limit` sets limits again, \
                    none is paused, and images that were asked for with `blixard image fetch` have to be asked for again";

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Kept {
    /// The limits of the node altogether.
    pub(crate) limits: Rates,
    /// Those of single peers.
    pub(crate) peers: BTreeMap<EndpointId, Rates>,
    /// Images that are not to be fetched now.
    pub(crate) paused: BTreeSet<ImageId>,
    /// Images that an operator wants here, until they are.
    pub(crate) requested: BTreeSet<ImageId>,
}

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

    /// What is kept now.
    pub(super) fn read(&self) -> Kept {
        self.kept.borrow().clone()
    }

    /// Changes what is kept, and `act`s on it once it is on disk.
    ///
    /// # Errors
    /// When it cannot be written; then nothing has changed.
    pub(super) async fn change(&self, change: impl FnOnce(&mut Kept), act: impl FnOnce(&Kept)) -> anyhow::Result<()> {
        let _turn = self.writing.lock().await;
        let mut next = self.read();
        change(&mut next);
        if next != *self.kept.borrow() {
            let text = serde_json::to_string_pretty(&next).context("encode what is set of transfers")? + "\n";
            let path = self.path.clone();
            let written = runtime::blocking(move || write_private(&path, text.as_bytes())).await;
            written.context("write what is set of transfers")??;
        }
        act(&next);
        self.kept.send_replace(next);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_set_is_there_again_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transfers.json");
        let keeper = Keeper::open(&path).unwrap();
        assert_eq!(keeper.read(), Kept::default());
        let rates = Rates { up_bytes_per_s: Some(7 << 20), down_bytes_per_s: None };
        let mut acted = None;
        let set = |kept: &mut Kept| {
            kept.peers.insert(EndpointId([1; 32]), rates);
        };
        keeper.change(set, |kept| acted = Some(kept.clone())).await.unwrap();
        let again = Keeper::open(&path).unwrap().read();
        assert_eq!((again.peers[&EndpointId([1; 32])], Some(again)), (rates, acted));
        for text in ["", "{", "{\"limit\": {}}", "{\"limits\": {\"up_bytes_per_s\": -1}}"] {
            std::fs::write(&path, text).unwrap();
            let damage = Keeper::open(&path).unwrap_err().downcast::<Damage>().unwrap();
            assert!(damage.problem.contains("damaged") && damage.next_step.contains("transfer limit"), "{damage}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_not_done() {
        let dir = tempfile::tempdir().unwrap();
        // A file stands where the folder would have to be.
        std::fs::write(dir.path().join("no-folder"), "").unwrap();
        let keeper = Keeper {
            path: dir.path().join("no-folder/transfers.json"),
            kept: Default::default(),
            writing: Default::default(),
        };
        let set = |kept: &mut Kept| kept.limits.up_bytes_per_s = Some(1);
        let failed = keeper.change(set, |_| panic!("it is not on disk")).await.unwrap_err();
        assert!(format!("{failed:#}").contains("transfers.json"), "{failed:#}");
        assert_eq!(keeper.read(), Kept::default());
    }
}
