//! What images have in common.

use blixard_core::ImageName;
use blixard_core::chunks::Compared;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much of an image's disk would have to be sent to a node that has another image. The four numbers of bytes make up the disk.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ComparedView {
    /// The other image; nothing when there is none, and the node has nothing yet.
    pub base: Option<ImageName>,
    /// Zeros, which are never sent.
    pub zero_bytes: u64,
    /// What is in the other image as well.
    pub known_bytes: u64,
    /// What is not.
    pub fresh_bytes: u64,
    /// What of that is in the disk once more.
    pub repeated_bytes: u64,
}

impl ComparedView {
    pub(in crate::api) fn new(base: Option<ImageName>, compared: Compared) -> Self {
        let Compared { zero_bytes, known_bytes, fresh_bytes, repeated_bytes } = compared;
        Self { base, zero_bytes, known_bytes, fresh_bytes, repeated_bytes }
    }
}
