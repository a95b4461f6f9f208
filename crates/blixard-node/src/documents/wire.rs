//! What is said on a stream of the protocol `blixard/documents/1`: the head of a request behind its length, the value where one is
//! given, and one answer.

use std::fmt;

use blixard_core::{BlobHash, DocumentKey};
use iroh_docs::SignedEntry;
use serde::{Deserialize, Serialize};

use super::VALUE_BYTES_MAX;
use super::sums::{BUCKETS, SUM_BYTES, Sums};

/// Bytes of all entries of one answer. Whoever lacks more asks again.
pub(super) const PAGE_BYTES: usize = 512 << 10;
/// The longest head: all sums, or an entry with the longest key.
pub(super) const HEAD_BYTES_MAX: usize = 4 << 10;
/// The longest answer: a value, or a page of entries with the sums.
pub(super) const ANSWER_BYTES_MAX: usize = VALUE_BYTES_MAX as usize + (64 << 10);
/// The shortest name of an entry: the keys of its document and its author. What is shorter would be cut within them.
const ENTRY_ID_BYTES_MIN: usize = 64;

/// A request of somebody who has a ticket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// What the ticket proves itself by.
    pub(super) secret: [u8; 32],
    /// What is wanted.
    pub(super) ask: Ask,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({})", self.ask.word())
    }
}

/// What is wanted of a document.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// The entries of each bucket that differs.
    Compare {
        /// The sums of whoever asks.
        sums: Sums,
        /// How many entries that differ it has been told already.
        skip: u32,
        /// All sums in one, as they were told before: while they are still so, there is no hurry to answer.
        seen: Option<[u8; 32]>,
    },
    /// The value of a key.
    Value {
        /// The key.
        key: DocumentKey,
        /// The hash of the value, as its entry has it.
        hash: BlobHash,
    },
    /// To take an entry. Its value, unless the key is deleted by it, follows.
    Give {
        /// The entry, signed for the document and by its author.
        entry: Box<SignedEntry>,
    },
}

impl Ask {
    /// The word for it in the log.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Compare { .. } => "compare",
            Self::Value { .. } => "value",
            Self::Give { .. } => "give",
        }
    }
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Entries of buckets that differ.
    Entries {
        /// The sums of whoever answers.
        sums: Sums,
        /// Some of the entries.
        entries: Vec<SignedEntry>,
        /// Whether there are more.
        is_more: bool,
    },
    /// A value; nothing when the key has another one by now, or it is not to be had.
    Value(Option<Vec<u8>>),
    /// Whether an entry was taken.
    Given(Result<(), Refused>),
}

/// Why an entry was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Refused {
    /// The ticket is for reading.
    #[error("the ticket is for reading only")]
    ReadOnly,
    /// It is no entry of this document, or not signed, or of a time that is far ahead.
    #[error("the entry is not signed for this document, or of a time that is far ahead")]
    Unsound,
    /// What came is not its value.
    #[error("the value is not that of the entry")]
    WrongValue,
    /// The document has no room.
    #[error("the document has no room for more")]
    Full,
    /// The node failed.
    #[error("the node failed")]
    Failed,
}

/// Whether an entry can be looked at: the library cuts its name where the keys end.
fn is_whole(entry: &SignedEntry) -> bool {
    entry.entry().id().as_ref().len() >= ENTRY_ID_BYTES_MIN
}

fn is_all(sums: &Sums) -> bool {
    sums.len() == BUCKETS * SUM_BYTES
}

impl Request {
    /// Reads the head of a request.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (request, rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        let is_sound = match &request.ask {
            Ask::Compare { sums, .. } => is_all(sums),
            Ask::Value { .. } => true,
            Ask::Give { entry } => is_whole(entry),
        };
        (rest.is_empty() && is_sound).then_some(request)
    }

    /// The head as it is sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes into memory")
    }
}

impl Answer {
    /// Reads an answer.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (answer, rest) = postcard::take_from_bytes::<Self>(bytes).ok()?;
        let is_sound = match &answer {
            Self::Entries { sums, entries, .. } => is_all(sums) && entries.iter().all(is_whole),
            Self::Value(_) | Self::Given(_) => true,
        };
        (rest.is_empty() && is_sound).then_some(answer)
    }

    /// The answer as it is sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes into memory")
    }
}
