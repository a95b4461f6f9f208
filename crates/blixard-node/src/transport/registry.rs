//! The registry file: how tools on this host find the node.

use std::path::{Path, PathBuf};

use anyhow::Context;
use blixard_core::{ClusterId, EndpointId, NodeId};
use serde::{Deserialize, Serialize};

use super::{PeerAddress, write_private};
use crate::damage::read_bounded;

/// More than any registry file holds; a larger file is something else.
const REGISTRY_BYTES_MAX: u64 = 64 << 10;

/// The content of `<data-dir>/node-<id>-registry.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// The node's number.
    pub cluster_node_id: NodeId,
    /// Its key, in hexadecimal.
    pub endpoint_id: EndpointId,
    /// Its direct addresses.
    pub direct_addresses: Vec<std::net::SocketAddr>,
    /// Its relay, if it has one.
    pub relay_url: Option<String>,
    /// The cluster it belongs to.
    pub cluster_id: ClusterId,
}

impl Registry {
    /// Where the file of a node is.
    pub fn path(data_dir: &Path, node: NodeId) -> PathBuf {
        data_dir.join(format!("node-{node}-registry.json"))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, data_dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("encode registry")?;
        write_private(&Self::path(data_dir, self.cluster_node_id), format!("{text}\n").as_bytes())
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is not a registry file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let read = || -> anyhow::Result<Self> { Self::decode(&read_bounded(path, REGISTRY_BYTES_MAX)?) };
        read().with_context(|| format!("read registry file {}", path.display()))
    }

    /// Reads the content of a file.
    ///
    /// # Errors
    /// When it is not that of a registry file.
    pub fn decode(content: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(content)
            .context("not a registry file: a running node writes it anew, so restart the node")
    }

    /// How the node can be reached.
    pub fn address(&self) -> PeerAddress {
        PeerAddress {
            endpoint: self.endpoint_id,
            addresses: self.direct_addresses.clone(),
            relay_url: self.relay_url.clone(),
        }
    }
}
