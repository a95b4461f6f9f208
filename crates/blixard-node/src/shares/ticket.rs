//! The ticket of a share: where it is, what opens it, and what is in it.

use std::fmt;
use std::str::FromStr;

use blixard_core::{Part, SecretHash};
use serde::{Deserialize, Serialize};

use super::listing::LISTING_BYTES_MAX;
use crate::transport::{PeerAddress, TicketError, TicketKind};

/// One string with which somebody fetches a share from anywhere, without being a member or a client of the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareTicket {
    /// The node that shares it.
    pub node: PeerAddress,
    /// What the node knows the hash of.
    pub secret: [u8; 32],
    /// The listing, by its hash: nobody can give out anything else for what was shared.
    pub listing: Part,
}

impl fmt::Debug for ShareTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShareTicket(of {}, at {})", self.listing.hash.short(), self.node.endpoint.short())
    }
}

/// What a node keeps of a secret.
pub(crate) fn hash_of(secret: &[u8; 32]) -> SecretHash {
    SecretHash(*blake3::hash(secret).as_bytes())
}

impl ShareTicket {
    /// Reads what is inside of a ticket. The checksum around it is no fence: anybody can make one.
    pub(crate) fn decode(content: &[u8]) -> Result<Self, TicketError> {
        let (ticket, rest) = postcard::take_from_bytes::<Self>(content).map_err(|_| TicketError::Content)?;
        let is_listing = 1..=LISTING_BYTES_MAX as u64;
        if rest.is_empty() && is_listing.contains(&ticket.listing.bytes) {
            Ok(ticket)
        } else {
            Err(TicketError::Content)
        }
    }
}

impl fmt::Display for ShareTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&TicketKind::Share.seal(self))
    }
}

impl FromStr for ShareTicket {
    type Err = TicketError;
    fn from_str(text: &str) -> Result<Self, TicketError> {
        Self::decode(&TicketKind::Share.unseal(text)?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::{BlobHash, EndpointId};

    use super::*;

    #[test]
    fn a_ticket_reads_back_and_hides_its_secret() {
        let addresses = vec!["127.0.0.1:7001".parse().unwrap()];
        let node = PeerAddress { endpoint: EndpointId([7; 32]), addresses, relay_url: None };
        let ticket = ShareTicket { node, secret: [9; 32], listing: Part { hash: BlobHash([3; 32]), bytes: 70 } };
        assert_eq!(ticket.to_string().parse(), Ok(ticket.clone()));
        assert!(!format!("{ticket:?}").contains("9, 9"));
        for bytes in [0, LISTING_BYTES_MAX as u64 + 1] {
            let endless = ShareTicket { listing: Part { bytes, ..ticket.listing }, ..ticket.clone() };
            assert_eq!(endless.to_string().parse::<ShareTicket>(), Err(TicketError::Content));
        }
    }
}
