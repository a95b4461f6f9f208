//! Tickets: one string that says how to reach somebody, and mostly has a secret. The ticket of a cluster says where its nodes are,
//! and with a secret lets a node in; other rooms have tickets of their own, in the same form with another beginning.

use std::fmt;
use std::str::FromStr;

use blixard_core::{ClusterId, SecretHash, TokenId};
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

use super::PeerAddress;

/// The format of the bytes inside.
const FORMAT: u8 = 1;
/// Bytes of the checksum that tells a mistyped ticket from a wrong one.
const CHECKSUM_BYTES: usize = 4;
/// More than a ticket with 16 nodes of 16 addresses each takes; a longer string is something else.
const TICKET_CHARS_MAX: usize = 32 << 10;
/// What a ticket is for, and what it begins with, so that people and programs know one when they see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TicketKind {
    /// Reaching a cluster, and joining it.
    Cluster,
    /// Fetching what somebody shares.
    Share,
    /// Reading a document of another cluster, or writing it as well.
    Document,
}

impl TicketKind {
    /// Those with the longest beginnings first: that of a cluster's begins all of them. Behind it comes a digit that no other
    /// beginning goes on with, because the first byte inside is the format.
    const ALL: [Self; 3] = [Self::Share, Self::Document, Self::Cluster];

    fn prefix(self) -> &'static str {
        match self {
            Self::Cluster => "blixard",
            Self::Share => "blixardshare",
            Self::Document => "blixarddoc",
        }
    }

    /// Where it belongs.
    fn place(self) -> &'static str {
        match self {
            Self::Cluster => "`--addr`, or `blixard node --join`",
            Self::Share => "`blixard fetch`",
            Self::Document => "`blixard doc join`, or `blixard catalog follow`",
        }
    }

    /// Makes a ticket of what is inside of it.
    pub(crate) fn seal(self, content: &impl Serialize) -> String {
        let mut bytes = postcard::to_extend(content, vec![FORMAT]).expect("plain data always encodes into memory");
        bytes.extend(checksum(&bytes));
        format!("{}{}", self.prefix(), BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    /// What is inside of a ticket, as it was pasted.
    ///
    /// # Errors
    /// When it is not a ticket of this kind, or not all of it.
    pub(crate) fn unseal(self, text: &str) -> Result<Vec<u8>, TicketError> {
        let text = text.trim();
        let kind = Self::ALL.into_iter().find(|kind| text.starts_with(kind.prefix()));
        match kind {
            Some(kind) if kind == self => {}
            Some(other) => return Err(TicketError::Kind(other.place())),
            None => return Err(TicketError::Prefix),
        }
        let body = &text[self.prefix().len()..];
        if body.len() > TICKET_CHARS_MAX {
            return Err(TicketError::Checksum);
        }
        let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_| TicketError::Checksum)?;
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(TicketError::Checksum)?;
        if *sum != checksum(body) {
            return Err(TicketError::Checksum);
        }
        let (format, content) = body.split_first().ok_or(TicketError::Content)?;
        if *format != FORMAT {
            return Err(TicketError::Format(*format));
        }
        Ok(content.to_vec())
    }
}

/// A ticket names a few nodes, not all: any of them can let a joiner in.
const PEERS_MAX: usize = 16;

/// A string that is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It begins otherwise.
    #[error("not a ticket: a ticket begins with `blixard`")]
    Prefix,
    /// It is for something else.
    #[error("this ticket is for {0}")]
    Kind(&'static str),
    /// Its checksum does not match.
    #[error("the ticket is incomplete or mistyped: copy it again, whole")]
    Checksum,
    /// It is of another format.
    #[error("the ticket is of format {0}, which this version of Blixard does not know: run the newer version")]
    Format(u8),
    /// Its content cannot be read.
    #[error("the ticket's content cannot be read: ask for a new one")]
    Content,
}

/// The part of a ticket that lets a node in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketSecret {
    /// The token it belongs to.
    pub token: TokenId,
    /// The secret; the cluster knows only its hash.
    pub secret: [u8; 32],
}

impl TicketSecret {
    /// The hash that the cluster compares.
    pub fn hash(&self) -> SecretHash {
        SecretHash(*blake3::hash(&self.secret).as_bytes())
    }
}

impl fmt::Debug for TicketSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketSecret(of {})", self.token)
    }
}

/// How to reach a cluster, and perhaps to be let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The cluster.
    pub cluster: ClusterId,
    /// Some of its nodes.
    pub peers: Vec<PeerAddress>,
    /// What lets a node in.
    pub secret: Option<TicketSecret>,
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(body);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&hash.as_bytes()[..CHECKSUM_BYTES]);
    sum
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&TicketKind::Cluster.seal(self))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;
    fn from_str(text: &str) -> Result<Self, TicketError> {
        Self::decode(&TicketKind::Cluster.unseal(text)?)
    }
}

impl Ticket {
    /// Reads what is inside of a ticket. The checksum around it is no fence: anybody can make one.
    pub(crate) fn decode(content: &[u8]) -> Result<Self, TicketError> {
        let ticket: Self = postcard::from_bytes(content).map_err(|_| TicketError::Content)?;
        if ticket.peers.len() > PEERS_MAX { Err(TicketError::Content) } else { Ok(ticket) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::EndpointId;

    use super::*;

    fn ticket() -> Ticket {
        let peer = PeerAddress {
            endpoint: EndpointId([7; 32]),
            addresses: vec!["127.0.0.1:7001".parse().unwrap(), "[::1]:7001".parse().unwrap()],
            relay_url: None,
        };
        let secret = TicketSecret { token: TokenId([1; 8]), secret: [9; 32] };
        Ticket { cluster: ClusterId([3; 32]), peers: vec![peer], secret: Some(secret) }
    }

    #[test]
    fn a_ticket_reads_back() {
        let text = ticket().to_string();
        assert_eq!(text.parse::<Ticket>(), Ok(ticket()));
        assert_eq!(format!(" {text}\n").parse::<Ticket>(), Ok(ticket()), "as pasted from a terminal");
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let text = ticket().to_string();
        assert_eq!("hello".parse::<Ticket>(), Err(TicketError::Prefix));
        let prefix = TicketKind::Cluster.prefix();
        for cut in prefix.len()..text.len() {
            assert!(text[..cut].parse::<Ticket>().is_err(), "cut at {cut}");
        }
        for at in prefix.len()..text.len() {
            let other = if text.as_bytes()[at] == b'a' { "b" } else { "a" };
            let mut typo = text.clone();
            typo.replace_range(at..=at, other);
            assert_eq!(typo.parse::<Ticket>(), Err(TicketError::Checksum), "typo at {at}");
        }
    }

    #[test]
    fn a_ticket_for_something_else_is_told_where_it_belongs() {
        let (cluster, share) = (ticket().to_string(), TicketKind::Share.seal(&7_u8));
        assert_eq!(TicketKind::Share.unseal(&share), Ok(vec![7]));
        assert_eq!(TicketKind::Cluster.unseal(&share), Err(TicketError::Kind("`blixard fetch`")));
        let told = TicketKind::Share.unseal(&cluster).unwrap_err().to_string();
        assert!(told.contains("--join"), "{told}");
    }

    #[test]
    fn a_ticket_names_a_few_nodes_only() {
        let named = |count: usize| Ticket { peers: vec![ticket().peers.swap_remove(0); count], ..ticket() };
        assert!(named(PEERS_MAX).to_string().parse::<Ticket>().is_ok());
        assert_eq!(named(PEERS_MAX + 1).to_string().parse::<Ticket>(), Err(TicketError::Content));
    }

    #[test]
    fn a_secret_does_not_show_in_debug_output() {
        assert!(!format!("{:?}", ticket()).contains("9, 9"));
    }
}
