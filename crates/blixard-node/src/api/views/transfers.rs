//! Images on their way between nodes, and the limits that hold for them.

use std::collections::BTreeMap;

use blixard_core::{EndpointId, ImageId, ImageName, NodeId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::images::BYTES_PER_S_MIN;

/// An image on its way to a node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TransferView {
    /// Bytes there and verified.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Nodes it comes from at the moment.
    pub sources: usize,
    /// Why the last attempt failed, while it waits for the next.
    pub failure: Option<String>,
}

/// How fast a node sends and receives image content, at most.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct LimitsView {
    /// The node.
    pub node: NodeId,
    /// What it sends altogether, in bytes a second; without a number, as much as it can.
    pub up_bytes_per_s: Option<u64>,
    /// What it receives altogether.
    pub down_bytes_per_s: Option<u64>,
    /// Limits for single peers, which hold beside those.
    pub peers: Vec<PeerLimitsView>,
}

/// How fast a node sends image content to one other and receives from it, at most.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PeerLimitsView {
    /// The other node; nothing when it is not a member any more.
    pub peer: Option<NodeId>,
    /// Its key.
    pub endpoint_id: EndpointId,
    /// What is sent to it, in bytes a second; without a number, as much as is possible.
    pub up_bytes_per_s: Option<u64>,
    /// What is received from it.
    pub down_bytes_per_s: Option<u64>,
}

/// Sets how fast a node sends and receives image content. What has no number is not limited from then on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetLimits {
    /// The other node that the limits are about; without one, they are about all together.
    #[serde(default)]
    pub peer: Option<NodeId>,
    /// What is sent, in bytes a second.
    #[serde(default)]
    #[schemars(range(min = BYTES_PER_S_MIN))]
    pub up_bytes_per_s: Option<u64>,
    /// What is received, in bytes a second.
    #[serde(default)]
    #[schemars(range(min = BYTES_PER_S_MIN))]
    pub down_bytes_per_s: Option<u64>,
}

/// The transfers of one node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct NodeTransfersView {
    /// The node.
    pub node: NodeId,
    /// Why the node could not be asked; then nothing else is known of it.
    pub silent: Option<String>,
    /// What is on its way to it, in the order in which it goes.
    pub transfers: Vec<QueuedView>,
    /// What has gone through it since its process started.
    pub stats: TransferStatsView,
}

/// Where a transfer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueuedState {
    /// It waits for its turn.
    Queued,
    /// It is under way.
    Running,
    /// It waits until it is resumed.
    Paused,
    /// It failed.
    Failed,
}

/// An image in the queue of a node.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct QueuedView {
    /// The image.
    pub image: ImageName,
    /// Its id.
    pub image_id: ImageId,
    /// `vm` when a vm waits for it, `operator` when somebody asked for it, `copy` when it is a copy for safety. They go in this
    /// order.
    pub priority: String,
    /// Where it stands.
    pub state: QueuedState,
    /// Bytes there and verified.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
    /// Bytes that this attempt found in other images of the node.
    pub bytes_reused: u64,
    /// Bytes that this attempt did not ask for because they are zeros.
    pub bytes_zero: u64,
    /// How fast it goes; 0 when it does not run.
    pub bytes_per_s: u64,
    /// How long it will take at this rate, in milliseconds; unknown when it does not run.
    pub eta_ms: Option<u64>,
    /// Nodes it comes from at the moment.
    pub sources: usize,
    /// Nodes it may come from.
    pub holders: Vec<NodeId>,
    /// How often it failed in a row.
    pub failures: u32,
    /// Why it failed last, until something has come since.
    pub failure: Option<String>,
    /// What sort of failure that was: `sources`, `damaged`, `no_space`, `manifest`, `storage` or `deadline`.
    pub failure_class: Option<String>,
    /// In how many milliseconds one that failed is tried again; nothing when it is not, or has not failed.
    pub retry_in_ms: Option<u64>,
    /// In how many milliseconds it is given up, if it is not there by then; nothing without a deadline.
    pub deadline_in_ms: Option<u64>,
}

/// What has gone through a node since its process started.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct TransferStatsView {
    /// Bytes of images received, by the priority of their transfers.
    pub fetched_bytes: BTreeMap<String, u64>,
    /// Bytes of images found on the node instead: in other images (`image`), or nowhere, for being `zeros`.
    pub reused_bytes: BTreeMap<String, u64>,
    /// Attempts that brought an image.
    pub done: u64,
    /// Attempts that failed, by what sort of failure it was.
    pub failed: BTreeMap<String, u64>,
    /// What went to and came from each other node.
    pub peers: Vec<PeerBytesView>,
}

/// What went between a node and one other.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PeerBytesView {
    /// The other node; nothing when it is not a member any more.
    pub peer: Option<NodeId>,
    /// Its key.
    pub endpoint_id: EndpointId,
    /// Bytes sent to it: content, and the hashes that prove it.
    pub sent_bytes: u64,
    /// Bytes of content received from it.
    pub received_bytes: u64,
}

/// What can be done with an image on its way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferOrder {
    /// Fetch it, though neither a vm nor a copy needs it there.
    Fetch,
    /// Wait until it is resumed.
    Pause,
    /// Go on or, if it failed, try again at once.
    Resume,
    /// No longer fetch it because somebody asked for it.
    Cancel,
}

impl TransferOrder {
    /// The word for it.
    pub(in crate::api) fn word(self) -> &'static str {
        match self {
            Self::Fetch => "fetch",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }
}
