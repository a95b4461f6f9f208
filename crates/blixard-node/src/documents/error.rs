//! What can be wrong with a request about documents.

use blixard_core::{DocumentKey, DocumentName, ShareId};

use super::{DOCUMENTS_MAX, KEYS_MAX, VALUE_BYTES_MAX};

/// Why a document cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    /// The node does not know the secret of its cluster yet.
    #[error("the documents are not open yet: ask again in a moment")]
    NotOpen,
    /// No such document.
    #[error("there is no document {0}: create it with `blixard doc create {0}`")]
    NoDocument(DocumentName),
    /// No such key.
    #[error("document {0} has no key {1}")]
    NoKey(DocumentName, DocumentKey),
    /// The entry is here and its value is not.
    #[error(
        "the value of {1} in document {0} has not come here yet, and no node that has it can be reached: ask again"
    )]
    NotHere(DocumentName, DocumentKey),
    /// A value without bytes would be a deletion.
    #[error("a value has at least one byte: delete the key instead")]
    Empty,
    /// A value that is too long.
    #[error("a value has at most {VALUE_BYTES_MAX} bytes: what is larger can be imported as an image")]
    TooLarge,
    /// The limit on keys.
    #[error("document {0} has {KEYS_MAX} keys already, deleted ones included, which is the limit")]
    Full(DocumentName),
    /// The limit on documents.
    #[error("the cluster has {DOCUMENTS_MAX} documents already, which is the limit")]
    TooMany,
    /// Other members would not take what is written now.
    #[error(
        "the clock of this node is more than ten minutes behind that of the node which wrote this key: set it right"
    )]
    ClockBehind,
    /// It was joined for reading.
    #[error("document {0} belongs to another cluster, and was joined with a ticket for reading only")]
    ReadOnly(DocumentName),
    /// The name is taken.
    #[error("there is a document {0} already: join the other one under a name of its own, with --as")]
    NameTaken(DocumentName),
    /// The document that is to be joined is here.
    #[error("this document is here already: it is {0}")]
    Here(DocumentName),
    /// It is the cluster's own.
    #[error("document {0} was not joined: it is this cluster's own, and stays")]
    NotJoined(DocumentName),
    /// The other cluster knows nothing of the ticket.
    #[error("the ticket is refused: it was stopped, its time is over, or it never was")]
    Refused,
    /// The other cluster does not answer.
    #[error("nothing was joined: {0}")]
    Unreached(String),
    /// It says what strangers may have.
    #[error("the catalog cannot be shared for writing: whoever writes it says which images others may have")]
    Catalog,
    /// There is a share of this id.
    #[error("there is a share {0} already")]
    ShareExists(ShareId),
    /// The limit on tickets.
    #[error(
        "documents are shared by as many tickets already as may be: stop some with `blixard doc share NAME --stop ID`"
    )]
    TooManyShares,
    /// The store failed.
    #[error("the store of documents failed")]
    Storage(#[from] anyhow::Error),
}
