//! What a node tells of the others, as sources of images.

use blixard_core::{EndpointId, NodeId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How packets get from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerPath {
    /// From host to host.
    Direct,
    /// Through a relay.
    Relay,
    /// There is no connection at the moment.
    None,
}

impl PeerPath {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "relay",
            Self::None => "none",
        }
    }
}

/// Another node, as the asked one knows it. What it did is counted since the asked node's process started.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct PeerView {
    /// Its number.
    pub node: NodeId,
    /// Its key.
    pub endpoint_id: EndpointId,
    /// Its site, where its label `site` names one.
    pub site: Option<String>,
    /// From 0 to 100. A failure as a source of images costs some of it, and content that does not match its hash nearly all;
    /// it comes back with time. Below 50 the node is asked for what no other has.
    #[schemars(range(max = 100))]
    pub score: u32,
    /// What it last did wrong.
    pub reason: Option<String>,
    /// How often it failed as a source.
    pub failures: u64,
    /// How often what it sent did not match its hash.
    pub lies: u64,
    /// Verified content of images that came from it, in bytes.
    pub content_bytes: u64,
    /// How packets get there.
    pub path: PeerPath,
    /// The shortest round trip on the connections that are open, in microseconds.
    pub round_trip_us: Option<u64>,
    /// What was sent to it on the connections that are open, for whatever purpose, in bytes.
    pub sent_bytes: u64,
    /// What came from it on them, in bytes.
    pub received_bytes: u64,
}
