//! Which node a client talks to.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, anyhow};
use blixard_core::{ClusterId, EndpointId};

use super::bootstrap;
use crate::transport::{PeerAddress, Registry, Ticket};

/// Which node to talk to, in any of the forms that `--addr` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The address and UDP port of a node: its key is asked for over HTTP.
    HostPort(String),
    /// A registry file.
    Registry(PathBuf),
    /// A ticket.
    Ticket(Box<Ticket>),
    /// A node's key. Where it is reached is looked up among `known` places.
    Endpoint(EndpointId),
}

impl FromStr for Target {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text.starts_with("blixard") && !text.contains(['/', '.', ':']) {
            return Ok(Self::Ticket(Box::new(text.parse()?)));
        }
        if let Ok(endpoint) = text.parse() {
            return Ok(Self::Endpoint(endpoint));
        }
        if text.contains('/') || text.ends_with(".json") {
            return Ok(Self::Registry(text.into()));
        }
        if bootstrap::split_host_port(text).is_some() {
            return Ok(Self::HostPort(text.to_owned()));
        }
        Err(anyhow!(
            "{text:?} is not an address of a node: give HOST:PORT, a registry file, a ticket or an endpoint id"
        ))
    }
}

impl Target {
    /// Where the nodes are that may answer, best first, and the cluster they must belong to where that is known.
    ///
    /// # Errors
    /// When the place that knows cannot be asked.
    pub async fn resolve(&self, known: &[PeerAddress]) -> anyhow::Result<(Vec<PeerAddress>, Option<ClusterId>)> {
        match self {
            Self::HostPort(peer) => {
                let facts = bootstrap::fetch(peer).await?;
                Ok((vec![facts.address()], Some(facts.cluster_id)))
            }
            Self::Registry(path) => {
                let registry = Registry::read(path)?;
                Ok((vec![registry.address()], Some(registry.cluster_id)))
            }
            Self::Ticket(ticket) => Ok((ticket.peers.clone(), Some(ticket.cluster))),
            Self::Endpoint(endpoint) => {
                let peer = known.iter().find(|peer| peer.endpoint == *endpoint);
                let peer = peer.with_context(|| {
                    format!(
                        "the addresses of {} are not known on this host: give HOST:PORT, a registry file or a ticket",
                        endpoint.short()
                    )
                })?;
                Ok((vec![peer.clone()], None))
            }
        }
    }
}
