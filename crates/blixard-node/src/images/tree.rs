//! The hash tree of a blob: where its nodes are, and which hashes bytes of this host give them.
//!
//! The leaves are groups of 16 KiB. Of a tree the store keeps a pair of hashes for each node above them; what it is given
//! for a blob are such pairs and groups, each node before what is below it.

use bao_tree::blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use bao_tree::io::{BaoContentItem, Leaf, Parent};
use bao_tree::{BaoTree, BlockSize, ChunkNum, TreeNode, blake3};
use bytes::Bytes;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};

/// What is verified as one.
pub(super) const GROUP_BYTES: u64 = 16 << 10;
/// The same as the store counts it: so many times twice a kibibyte.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);
/// The length of a pair of hashes.
pub(super) const PAIR_BYTES: usize = 64;

/// The hash of a node.
pub(super) type Digest = [u8; 32];

/// A node of a blob's tree, with all that is below it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subtree {
    /// The bytes of the blob that it is about.
    pub(super) start: u64,
    pub(super) end: u64,
    blob_bytes: u64,
    /// The node as the store names it; of a leaf it has no meaning.
    node: TreeNode,
}

impl Subtree {
    /// The tree of a blob of this length.
    pub(super) fn whole(blob_bytes: u64) -> Self {
        Self { start: 0, end: blob_bytes, blob_bytes, node: BaoTree::new(blob_bytes, GROUP).root() }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.end - self.start
    }

    pub(super) fn ranges(&self) -> ChunkRanges {
        ChunkRanges::bytes(self.start..self.end)
    }

    /// What is below, unless it is a leaf.
    pub(super) fn children(&self) -> Option<(Self, Self)> {
        if self.bytes() <= GROUP_BYTES {
            return None;
        }
        let middle = self.start + left_subtree_len(self.bytes());
        let left = Self { end: middle, node: self.node.left_child().unwrap_or(self.node), ..*self };
        // The store names nodes as if the blob went on to a power of two, and leaves out those that begin behind its end.
        let mut node = self.node.right_child();
        while let Some(beyond) = node.filter(|node| node.mid().to_bytes() >= self.blob_bytes) {
            node = beyond.left_child();
        }
        Some((left, Self { start: middle, node: node.unwrap_or(self.node), ..*self }))
    }

    /// Where the store's file of a tree has this node's pair of hashes.
    pub(super) fn pair_offset(&self) -> Option<u64> {
        let pairs = BaoTree::new(self.blob_bytes, GROUP).pre_order_offset(self.node)?;
        Some(pairs * PAIR_BYTES as u64)
    }

    /// The hash of a node above these two.
    pub(super) fn merge(&self, left: &Digest, right: &Digest) -> Digest {
        match self.is_root() {
            true => *merge_subtrees_root(left, right, Mode::Hash).as_bytes(),
            false => merge_subtrees_non_root(left, right, Mode::Hash),
        }
    }

    /// The node's pair of hashes, for the store.
    pub(super) fn pair(&self, left: Digest, right: Digest) -> BaoContentItem {
        Parent { node: self.node, pair: (left.into(), right.into()) }.into()
    }

    /// The hash that the node has when these are the bytes below it.
    pub(super) fn digest(&self, bytes: &[u8]) -> Digest {
        if self.is_root() {
            return *blake3::hash(bytes).as_bytes();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.start).update(bytes);
        hasher.finalize_non_root()
    }

    /// Adds what the store is given when these are the bytes below, and gives the hash that the node then has.
    pub(super) fn encode(&self, bytes: &Bytes, items: &mut Vec<BaoContentItem>) -> Digest {
        let Some((left, right)) = self.children() else {
            items.push(Leaf { offset: self.start, data: bytes.clone() }.into());
            return self.digest(bytes);
        };
        let place = items.len();
        items.push(self.pair([0; 32], [0; 32]));
        let middle = usize::try_from(left.bytes()).expect("what is in memory has a length that fits");
        let pair = [left.encode(&bytes.slice(..middle), items), right.encode(&bytes.slice(middle..), items)];
        items[place] = self.pair(pair[0], pair[1]);
        self.merge(&pair[0], &pair[1])
    }

    fn is_root(&self) -> bool {
        self.bytes() == self.blob_bytes
    }
}

/// All of these ranges of bytes together.
pub(super) fn union(ranges: &[std::ops::Range<u64>]) -> ChunkRanges {
    match ranges {
        [] => ChunkRanges::empty(),
        [one] => ChunkRanges::from(ChunkNum::full_chunks(one.start)..ChunkNum::chunks(one.end)),
        many => {
            // By halves: adding one after the other would copy all that is there already each time.
            let (one, other) = many.split_at(many.len() / 2);
            union(one) | union(other)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths around every edge that a tree has.
    const LENGTHS: [usize; 14] =
        [1, 1024, 16384, 16385, 24000, 32768, 32769, 40961, 49152, 65536, 65537, 98305, 1 << 20, (1 << 20) + 70_000];

    #[test]
    fn encoding_gives_the_blobs_hash_and_each_node_its_digest() {
        for length in LENGTHS {
            let content: Bytes = (0..length).map(|at| (at * 7 / 3) as u8).collect::<Vec<_>>().into();
            let whole = Subtree::whole(length as u64);
            let mut items = Vec::new();
            assert_eq!(whole.encode(&content, &mut items), *blake3::hash(&content).as_bytes(), "{length}");
            let pairs = items.iter().filter(|item| matches!(item, BaoContentItem::Parent(_))).count();
            assert_eq!(pairs, length.div_ceil(GROUP_BYTES as usize) - 1, "{length}");
            let mut nodes = vec![whole];
            let mut offsets = Vec::new();
            while let Some(node) = nodes.pop() {
                let bytes = content.slice(node.start as usize..node.end as usize);
                assert_eq!(node.encode(&bytes, &mut Vec::new()), node.digest(&bytes), "{length}: {node:?}");
                if let Some((left, right)) = node.children() {
                    offsets.push(node.pair_offset().expect("a node above leaves has a pair"));
                    nodes.extend([right, left]);
                }
            }
            // Before what is below it, and the left side first: that is also the order of the file.
            let in_order: Vec<u64> = (0..pairs as u64).map(|pair| pair * PAIR_BYTES as u64).collect();
            assert_eq!(offsets, in_order, "{length}");
        }
    }
}
