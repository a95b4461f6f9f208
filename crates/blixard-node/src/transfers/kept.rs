//! What people have set of this node's transfers, in a file, so that a restart changes nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use blixard_core::{EndpointId, ImageId, UnixMs};
use serde::{Deserialize, Serialize};

use crate::images::Rates;
use crate::kept::Keeping;

/// The file: limits of a thousand peers and every image of the largest catalog, three times, take less than 2 MiB.
pub(super) const KEEPING: Keeping = Keeping {
    what: "what is set of transfers",
    bytes_max: 4 << 20,
    lost: "remove it: this node's transfers are then not limited, until `blixard transfer limit` sets limits again, none is \
           paused, and images that were asked for with `blixard image fetch` have to be asked for again",
};

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
    /// By when, for those that are given up otherwise.
    pub(crate) deadlines: BTreeMap<ImageId, UnixMs>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::damage::Damage;
    use crate::kept::KeptFile;

    #[tokio::test]
    async fn what_was_set_is_there_again_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("transfers.json");
        let open = || KeptFile::<Kept>::open(&path, &KEEPING);
        let rates = Rates { up_bytes_per_s: Some(7 << 20), down_bytes_per_s: None };
        let set = |kept: &mut Kept| {
            kept.peers.insert(EndpointId([1; 32]), rates);
        };
        open().unwrap().change(set, |_| ()).await.unwrap();
        assert_eq!(open().unwrap().read().peers[&EndpointId([1; 32])], rates);
        for text in ["", "{", "{\"limit\": {}}", "{\"limits\": {\"up_bytes_per_s\": -1}}"] {
            std::fs::write(&path, text).unwrap();
            let damage = open().unwrap_err().downcast::<Damage>().unwrap();
            assert!(damage.problem.contains("damaged") && damage.next_step.contains("transfer limit"), "{damage}");
        }
    }
}
