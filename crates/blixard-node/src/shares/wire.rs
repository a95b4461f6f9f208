//! What is said on a stream of the protocol `blixard/share/1`: one request, and then nothing but what was asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest request: a secret, a word and a number.
pub(super) const REQUEST_BYTES_MAX: usize = 64;

/// A part of a share, from a byte on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// What the ticket proves itself by.
    pub(crate) secret: [u8; 32],
    /// Which part.
    pub(crate) part: SharePart,
    /// The first byte that is wanted: a multiple of what is verified together.
    pub(crate) from_bytes: u64,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({:?} from {})", self.part, self.from_bytes)
    }
}

/// What a share consists of. Each part is a blob, of which its ticket and its listing know the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SharePart {
    /// The listing, as it is encoded.
    Listing,
    /// The content of all files.
    Content,
}

impl Request {
    /// Reads a request.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (request, rest) = postcard::take_from_bytes(bytes).ok()?;
        rest.is_empty().then_some(request)
    }

    /// The request as it is sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes into memory")
    }
}
