//! Documents, as the control API gives them.

use blixard_core::{BlobHash, ConfigSource, DocumentKey, DocumentName, EndpointId, NodeId, ShareId, UnixMs};
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
    /// For a document of another cluster, how it is with that.
    #[serde(default)]
    pub origin: Option<OriginView>,
}

/// The other cluster that a document was joined from, as the asked node sees it.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct OriginView {
    /// Whether the document may be written here as well.
    pub write: bool,
    /// When a node of that cluster last answered; without a time, not since the asked node started.
    pub met_at: Option<UnixMs>,
    /// Why none can be had now, if none can.
    pub failure: Option<String>,
}

/// Asks for a ticket of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateDocumentShare {
    /// Whether whoever has it may write the document as well.
    pub write: bool,
    /// How long it holds, in milliseconds; without a number, until it is stopped.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub ttl_ms: Option<u64>,
}

/// A new ticket of a document. It is shown this once: the nodes keep only the hash of its secret.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CreatedDocumentShare {
    /// The ticket for `blixard doc join`.
    pub ticket: String,
    /// What is kept of it.
    pub share: DocumentShareView,
}

/// A ticket with which other clusters may have a document.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct DocumentShareView {
    /// Its id.
    pub id: ShareId,
    /// Whether the document may be written with it.
    pub write: bool,
    /// Whether its time is over.
    pub expired: bool,
    /// When it was made.
    pub created_at: UnixMs,
    /// From when on it opens nothing; without a time, when it is stopped.
    pub expires_at: Option<UnixMs>,
}

/// Asks for a document of another cluster to be followed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinDocument {
    /// The ticket that `blixard doc share` printed there.
    pub ticket: String,
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
