//! What nodes share with those who have a ticket.

use blixard_core::{BlobHash, NodeId, ShareId, UnixMs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Asks for something to be shared that was uploaded to the same node: first the content of all files, as one blob, and then the
/// listing that names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateShare {
    /// The listing, as an uploaded blob.
    pub listing: BlobHash,
    /// How long it is shared, in milliseconds; without a number, until it is stopped.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub ttl_ms: Option<u64>,
}

/// A new share. The ticket is shown this once: the node keeps only its hash.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct CreatedShare {
    /// The ticket for `blixard fetch`.
    pub ticket: String,
    /// The share.
    pub share: ShareView,
}

/// Whether a share can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareState {
    /// Whoever has the ticket gets it.
    Ready,
    /// Its time is over.
    Expired,
    /// Its content is not on the node any more.
    Lost,
}

/// Something that a node shares.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ShareView {
    /// Its id.
    pub id: ShareId,
    /// Whether it can be fetched.
    pub state: ShareState,
    /// What it is called.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// How many files it has.
    pub files: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// When it was made.
    pub created_at: UnixMs,
    /// From when on nobody gets it any more; without a time, when it is stopped.
    pub expires_at: Option<UnixMs>,
}

/// What a node shares.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct NodeSharesView {
    /// The node.
    pub node: NodeId,
    /// Why it could not be asked, if it could not.
    pub silent: Option<String>,
    /// What it shares, the oldest first.
    pub shares: Vec<ShareView>,
}
