//! Documents, as the control API gives them.

use blixard_core::{BlobHash, ConfigSource, DocumentKey, DocumentName, EndpointId, NodeId, UnixMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A document of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct DocumentView {
    /// Its name.
    pub name: DocumentName,
    /// How many keys it has, as the asked node knows it.
    pub keys: usize,
    /// Bytes of all its values.
    pub bytes: u64,
}

/// What a node wrote last under a key of a document.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct EntryView {
    /// The key.
    pub key: DocumentKey,
    /// The length of the value in bytes; 0 for a key that was deleted.
    pub bytes: u64,
    /// The BLAKE3 hash of the value.
    pub hash: BlobHash,
    /// When it was written, by the clock of the node that wrote it.
    pub written_at: UnixMs,
    /// The key of the node that wrote it, which signed it.
    pub written_by: EndpointId,
    /// The number of that node, as long as it is a member.
    pub node: Option<NodeId>,
    /// Whether the key was deleted by this.
    pub deleted: bool,
    /// Whether this is what counts: no node wrote the key later.
    pub latest: bool,
    /// Whether the value is on the asked node.
    pub here: bool,
}

/// A file of a vm that has the value of a key.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ConfigFileView {
    /// Where it is in the guest, and where its value is from.
    pub source: ConfigSource,
    /// Whether the key has another value by now than the guest was given, or none; unknown where nobody looked.
    pub changed: Option<bool>,
}
