//! What a node keeps that is no part of the cluster's state, in a small file of its own, so that a restart changes nothing of it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::damage::{Damage, read_bounded};
use crate::runtime;
use crate::transport::write_private;

/// A kind of such a file.
#[derive(Debug)]
pub(crate) struct Keeping {
    /// What is in it, as errors name it.
    pub(crate) what: &'static str,
    /// The longest it can be.
    pub(crate) bytes_max: u64,
    /// What to do when it is damaged, and what that loses.
    pub(crate) lost: &'static str,
}

/// A file, and what is in it.
#[derive(Debug)]
pub(crate) struct KeptFile<T> {
    path: PathBuf,
    keeping: &'static Keeping,
    kept: watch::Sender<T>,
    /// Held while it is written, so that no change overtakes another.
    writing: tokio::sync::Mutex<()>,
}

impl<T: Clone + Default + PartialEq + Serialize + DeserializeOwned + Send + Sync + 'static> KeptFile<T> {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// With [`Damage`] when it holds something else.
    pub(crate) fn open(path: &Path, keeping: &'static Keeping) -> anyhow::Result<Self> {
        let kept = match read_bounded(path, keeping.bytes_max) {
            Ok(text) => {
                let read = serde_json::from_slice(&text);
                read.map_err(|error| Damage::new(path, format!("is damaged: {error}"), keeping.lost))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => T::default(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self { path: path.to_owned(), keeping, kept: watch::Sender::new(kept), writing: Default::default() })
    }

    /// What is kept now.
    pub(crate) fn read(&self) -> T {
        self.kept.borrow().clone()
    }

    /// What is kept, and whenever that changes.
    pub(crate) fn watch(&self) -> watch::Receiver<T> {
        self.kept.subscribe()
    }

    /// Changes what is kept, and `act`s on it once it is on disk.
    ///
    /// # Errors
    /// When it cannot be written; then nothing has changed.
    pub(crate) async fn change(&self, change: impl FnOnce(&mut T), act: impl FnOnce(&T)) -> anyhow::Result<()> {
        let change = |kept: &mut T| {
            change(kept);
            anyhow::Ok(())
        };
        self.try_change(change, act).await
    }

    /// The like of [`Self::change`] for a change that may be refused.
    ///
    /// # Errors
    /// When `change` says so, or it cannot be written; then nothing has changed.
    pub(crate) async fn try_change<E: From<anyhow::Error>>(
        &self,
        change: impl FnOnce(&mut T) -> Result<(), E>,
        act: impl FnOnce(&T),
    ) -> Result<(), E> {
        let _turn = self.writing.lock().await;
        let mut next = self.read();
        change(&mut next)?;
        let is_new = next != *self.kept.borrow();
        if is_new {
            let text =
                serde_json::to_string_pretty(&next).with_context(|| format!("encode {}", self.keeping.what))? + "\n";
            let path = self.path.clone();
            let written = runtime::blocking(move || write_private(&path, text.as_bytes())).await;
            written.with_context(|| format!("write {}", self.keeping.what)).map_err(E::from)??;
        }
        act(&next);
        if is_new {
            self.kept.send_replace(next);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NUMBERS: Keeping = Keeping { what: "some numbers", bytes_max: 64, lost: "count again" };

    fn open(path: &Path) -> anyhow::Result<KeptFile<BTreeSet<u8>>> {
        KeptFile::open(path, &NUMBERS)
    }

    fn add(number: u8) -> impl FnOnce(&mut BTreeSet<u8>) {
        move |kept| {
            kept.insert(number);
        }
    }

    #[tokio::test]
    async fn what_was_changed_is_there_again_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers.json");
        let file = open(&path).unwrap();
        let mut seen = file.watch();
        assert!(file.read().is_empty());
        let mut acted = None;
        file.change(add(7), |kept| acted = Some(kept.clone())).await.unwrap();
        assert_eq!((Some(file.read()), Some(open(&path).unwrap().read())), (acted.clone(), acted));
        assert!(seen.has_changed().unwrap());
        seen.mark_unchanged();
        file.change(add(7), |_| ()).await.unwrap();
        assert!(!seen.has_changed().unwrap(), "nothing is new");
        for text in ["", "{", "{}", "[256]", &format!("[{}1]", " ".repeat(64))] {
            std::fs::write(&path, text).unwrap();
            let failed = open(&path).unwrap_err();
            let damage = failed.downcast_ref::<Damage>().map(|damage| damage.next_step.clone());
            assert!(damage.as_deref() == Some("count again") || text.len() > 64, "{text:?}: {failed:#}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_or_cannot_be_written_does_not_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder/numbers.json");
        let file = open(&path).unwrap();
        file.change(add(1), |_| ()).await.unwrap();
        let refuse = |kept: &mut BTreeSet<u8>| {
            kept.insert(2);
            Err(anyhow::anyhow!("not that one"))
        };
        let refused = file.try_change(refuse, |_| panic!("it was refused")).await.unwrap_err();
        assert_eq!(refused.to_string(), "not that one");
        // A file stands where the folder would have to be.
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path.parent().unwrap(), "").unwrap();
        let failed = file.change(add(3), |_| panic!("it is not on disk")).await.unwrap_err();
        assert!(format!("{failed:#}").contains("numbers.json"), "{failed:#}");
        assert_eq!(file.read(), BTreeSet::from([1]));
    }
}
