//! Copies of images: how many there are, and where the next ones go.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ImageId, NodeId, State};

/// How long a node may be silent before its copies no longer count, in milliseconds. Copying gigabytes because a host
/// reboots costs more than it protects; a host that is gone for ten minutes may be gone for good.
pub const COPY_LOST_AFTER_MS: u64 = 10 * 60 * 1000;

impl State {
    /// Which nodes should fetch which images, so that each image is held by as many nodes as the settings say.
    ///
    /// `present` are the nodes heard from within [`COPY_LOST_AFTER_MS`]; a leader that took office more recently counts
    /// every member as present until then. A copy counts while its node is present, whether it is whole or still wanted:
    /// when the node of a copy stays away, another is wanted elsewhere, and when it returns there is one more than needed,
    /// which harms nobody. Nothing is planned for an image that no present node could give.
    ///
    /// The node that holds the fewest bytes of images comes first; the id decides among equals.
    pub fn plan_copies(&self, present: &BTreeSet<NodeId>) -> Vec<(ImageId, NodeId)> {
        let shares = |id: &NodeId| present.contains(id) && self.nodes.get(id).is_some_and(|node| node.shares_images);
        let takers: BTreeSet<NodeId> = self.nodes.keys().copied().filter(shares).collect();
        let mut held_bytes = self.held_bytes();
        let mut plan = Vec::new();
        let mut images: Vec<_> = self.images.values().collect();
        images.sort_by_key(|image| (image.added_at, image.id));
        for image in images {
            if !image.holders.iter().any(|holder| takers.contains(holder)) {
                continue;
            }
            let counted = image.holders.union(&image.wanted).filter(|node| present.contains(node)).count();
            let missing = usize::from(self.settings.copies).saturating_sub(counted);
            let is_free = |id: &&NodeId| !image.holders.contains(id) && !image.wanted.contains(id);
            let mut free: Vec<NodeId> = takers.iter().filter(is_free).copied().collect();
            free.sort_by_key(|id| (held_bytes.get(id).copied().unwrap_or(0), *id));
            for node in free.into_iter().take(missing) {
                let held = held_bytes.entry(node).or_default();
                *held = held.saturating_add(image.manifest.bytes());
                plan.push((image.id, node));
            }
        }
        plan
    }

    /// The bytes of images that each node holds or is told to fetch.
    fn held_bytes(&self) -> BTreeMap<NodeId, u64> {
        let mut held_bytes: BTreeMap<NodeId, u64> = BTreeMap::new();
        for image in self.images.values() {
            for node in image.holders.union(&image.wanted) {
                let held = held_bytes.entry(*node).or_default();
                *held = held.saturating_add(image.manifest.bytes());
            }
        }
        held_bytes
    }
}
