//! The ticket of a document: where it can be had, what opens it there, and what may be done with it.

use std::fmt;
use std::str::FromStr;

use blixard_core::{DocumentName, SecretHash};
use iroh_docs::{NamespaceId, NamespaceSecret};
use serde::{Deserialize, Serialize};

use super::stored::Space;
use crate::transport::{PeerAddress, TicketError, TicketKind};

/// Nodes that a ticket names: any of them will do, and more would make it longer than people like to paste.
pub(crate) const TICKET_NODES_MAX: usize = 8;

/// What the holder of a ticket may do with its document.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DocumentRight {
    /// Read it. This is the public key that all of its entries are signed for.
    Read([u8; 32]),
    /// Read and write it. This is the secret key.
    Write([u8; 32]),
}

impl DocumentRight {
    /// Whether it may be written.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
    }
}

/// One string with which another cluster reads a document, or writes it as well, without being let in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentTicket {
    /// Nodes that have it.
    pub nodes: Vec<PeerAddress>,
    /// What opens it there: they keep its hash.
    pub secret: [u8; 32],
    /// What it is called there.
    pub name: DocumentName,
    /// What may be done with it.
    pub right: DocumentRight,
}

impl fmt::Debug for DocumentTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentTicket(of {}, at {} nodes)", self.name, self.nodes.len())
    }
}

/// What nodes keep of a ticket's secret.
pub(super) fn hash_of(secret: &[u8; 32]) -> SecretHash {
    SecretHash(*blake3::hash(secret).as_bytes())
}

impl DocumentTicket {
    /// Reads what is inside of a ticket. The checksum around it is no fence: anybody can make one.
    pub(crate) fn decode(content: &[u8]) -> Result<Self, TicketError> {
        let (ticket, rest) = postcard::take_from_bytes::<Self>(content).map_err(|_| TicketError::Content)?;
        let has_nodes = (1..=TICKET_NODES_MAX).contains(&ticket.nodes.len());
        if rest.is_empty() && has_nodes { Ok(ticket) } else { Err(TicketError::Content) }
    }

    /// The document, as it stands in the store.
    pub(super) fn space(&self) -> Space {
        match &self.right {
            DocumentRight::Read(id) => Space { id: NamespaceId::from(id), secret: None },
            DocumentRight::Write(secret) => Space::written_with(NamespaceSecret::from_bytes(secret)),
        }
    }
}

impl fmt::Display for DocumentTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&TicketKind::Document.seal(self))
    }
}

impl FromStr for DocumentTicket {
    type Err = TicketError;
    fn from_str(text: &str) -> Result<Self, TicketError> {
        Self::decode(&TicketKind::Document.unseal(text)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::EndpointId;

    use super::*;

    #[test]
    fn a_ticket_reads_back_and_hides_its_secrets() {
        let node = PeerAddress {
            endpoint: EndpointId([7; 32]),
            addresses: vec!["127.0.0.1:7001".parse().unwrap()],
            relay_url: None,
        };
        let right = DocumentRight::Write([8; 32]);
        let ticket = DocumentTicket { nodes: vec![node.clone()], secret: [9; 32], name: DocumentName::config(), right };
        assert_eq!(ticket.to_string().parse(), Ok(ticket.clone()));
        let shown = format!("{ticket:?}");
        assert!(!shown.contains("9, 9") && !shown.contains("8, 8"), "{shown}");
        for nodes in [vec![], vec![node; TICKET_NODES_MAX + 1]] {
            let odd = DocumentTicket { nodes, ..ticket.clone() };
            assert_eq!(odd.to_string().parse::<DocumentTicket>(), Err(TicketError::Content));
        }
        let read = DocumentTicket { right: DocumentRight::Read(ticket.space().id.to_bytes()), ..ticket.clone() };
        assert_eq!(read.space().id, ticket.space().id);
        assert!(read.space().secret.is_none() && ticket.space().secret.is_some());
    }
}
