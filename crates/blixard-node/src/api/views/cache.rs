//! Images as the caches of nodes see them, and whether they are still what they were.

use blixard_core::{BlobHash, ImageId, ImageName, NodeId, UnixMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What images take of a node, and which of them would go.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct NodeCacheView {
    /// The node.
    pub node: NodeId,
    /// Why the node could not be asked; then nothing else is known of it.
    pub silent: Option<String>,
    /// What images take of its disk, in bytes, with what is on its way.
    pub used_bytes: u64,
    /// What they may take (`cache.max`); without a number, as much as there is.
    pub max_bytes: Option<u64>,
    /// The whole images there, those in front that go first when room is needed.
    pub images: Vec<CachedView>,
}

/// A whole image on a node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CachedView {
    /// The image.
    pub image: ImageName,
    /// Its id.
    pub image_id: ImageId,
    /// Its length in bytes, over all parts.
    pub bytes: u64,
    /// When a vm there last needed it, or it came there.
    pub used_at: UnixMs,
    /// Whether it stays there whatever happens.
    pub pinned: bool,
    /// Its place among those that go when room is needed, counted from 1; nothing when it stays.
    pub goes: Option<usize>,
    /// Why it stays.
    pub stays: Option<String>,
}

/// What removing came to that nothing keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CollectedView {
    /// The node.
    pub node: NodeId,
    /// What was freed, in bytes.
    pub freed_bytes: u64,
    /// What images take now, in bytes.
    pub used_bytes: u64,
}

/// Where the verification of a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifiedState {
    /// It is being read.
    Running,
    /// Every byte is as it was.
    Sound,
    /// Some of it is not what it was. The node counts as a holder no more.
    Damaged,
    /// It could not be read.
    Failed,
}

/// How the verification of a copy goes, or how the last one went.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct VerificationView {
    /// The image.
    pub image: ImageName,
    /// The node.
    pub node: NodeId,
    /// Where it stands.
    pub state: VerifiedState,
    /// Bytes that were read.
    pub bytes_done: u64,
    /// Bytes of the image.
    pub bytes_total: u64,
    /// Parts that are damaged.
    pub damaged: Vec<BlobHash>,
    /// Whether what is damaged is fetched again from another node. When it is not, no other node has it.
    pub refetched: bool,
    /// Why it could not be read.
    pub failure: Option<String>,
}
