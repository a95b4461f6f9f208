//! What a node shares, in a file, so that it goes on after a restart.

use std::collections::BTreeMap;

use blixard_core::{Part, SecretHash, ShareId, UnixMs};
use serde::{Deserialize, Serialize};

use crate::kept::Keeping;

/// The file: as many shares as there may be, each with the longest name, take less than 1 MiB.
pub(super) const KEEPING: Keeping = Keeping {
    what: "what is shared",
    bytes_max: 4 << 20,
    lost: "remove it: this node then shares nothing any more, and what it shared has to be shared again, with new tickets",
};

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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::BlobHash;

    use super::*;
    use crate::damage::Damage;
    use crate::kept::KeptFile;

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

    #[tokio::test]
    async fn what_is_shared_is_there_again_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shares.json");
        let open = || KeptFile::<Kept>::open(&path, &KEEPING);
        let add = |kept: &mut Kept| drop(kept.insert(ShareId([3; 8]), share()));
        open().unwrap().change(add, |_| ()).await.unwrap();
        assert_eq!(open().unwrap().read()[&ShareId([3; 8])], share());
        for text in ["", "{", "[]", "{\"0303030303030303\": {}}", "{\"03\": {}}"] {
            std::fs::write(&path, text).unwrap();
            let damage = open().unwrap_err().downcast::<Damage>().unwrap();
            assert!(damage.problem.contains("damaged") && damage.next_step.contains("shared again"), "{damage}");
        }
    }
}
