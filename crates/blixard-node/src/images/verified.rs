//! A blob's content on one stream, from some byte to its end: what sends it to whoever has a right to that blob alone, and what
//! takes it in.
//!
//! Members ask for any ranges of any blob (`serve.rs`). Whoever has a ticket gets this in place of it: what was asked for, the
//! hashes that prove it, and no other word.

use std::io;
use std::time::Duration;

use bao_tree::io::fsm::{ResponseDecoder, ResponseDecoderNext};
use bao_tree::io::{BaoContentItem, DecodeError};
use bao_tree::{BaoTree, ChunkNum, ChunkRanges};
use blixard_core::{BlobHash, EndpointId, Part};
use bytes::Bytes;
use futures::StreamExt;
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::EncodedItem;
use iroh_blobs::store::IROH_BLOCK_SIZE;
use iroh_blobs::util::RecvStreamAsyncStreamReader;
use tokio::time::timeout;

use super::Images;
use super::limits::Direction;
use crate::transport::{RecvStream, SendStream};

/// What is verified together, and so where a stream may begin.
pub(crate) const PIECE_BYTES: u64 = 16 << 10;
/// How long a reader may take nothing of a piece and the hashes before it. A line of half a kibibyte a second is fast enough.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// In whose name all those wait for the limit of what is sent who have a ticket: a lane for each would be kept for ever, and keys
/// cost nothing.
pub(super) const TICKET_HOLDERS: EndpointId = EndpointId([0; 32]);

/// Why a stream of content ended too soon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// What came is not what the hash stands for.
    #[error("what came is not the content that was asked for: {0}")]
    Wrong(String),
    /// The stream broke off.
    #[error("the stream broke off: {0}")]
    Lost(#[source] io::Error),
}

fn from_byte(from_bytes: u64) -> ChunkRanges {
    ChunkRanges::from(ChunkNum::full_chunks(from_bytes)..)
}

impl Images {
    /// Sends the content of a whole blob from a byte on, which is a multiple of [`PIECE_BYTES`], as fast as the limits allow.
    /// `count` hears of each piece of content that went.
    ///
    /// # Errors
    /// When the reader takes nothing for too long or has gone, or the content is not what it was.
    pub(crate) async fn send(
        &self,
        hash: BlobHash,
        from_bytes: u64,
        to: &mut SendStream,
        count: impl Fn(u64),
    ) -> io::Result<()> {
        let items = self.inner.store.blobs().export_bao(Hash::from_bytes(hash.0), from_byte(from_bytes)).stream();
        let mut items = std::pin::pin!(items);
        let mut proof = Vec::new();
        while let Some(item) = items.next().await {
            match item {
                // The reader knows it from where it knows the hash.
                EncodedItem::Size(_) => {}
                EncodedItem::Parent(parent) => {
                    proof.extend_from_slice(parent.pair.0.as_bytes());
                    proof.extend_from_slice(parent.pair.1.as_bytes());
                }
                EncodedItem::Leaf(leaf) => {
                    let bytes = leaf.data.len() as u64;
                    self.inner.limits.admit(Direction::Up, TICKET_HOLDERS, bytes + proof.len() as u64).await;
                    let proof = Bytes::from(std::mem::take(&mut proof));
                    let written = async {
                        to.write_all(&proof).await?;
                        to.write_chunk(leaf.data).await
                    };
                    match timeout(PIECE_TIMEOUT, written).await {
                        Ok(written) => written.map_err(io::Error::other)?,
                        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing")),
                    }
                    count(bytes);
                }
                EncodedItem::Error(error) => return Err(io::Error::other(error)),
                EncodedItem::Done => return Ok(()),
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the store ended the content without saying why"))
    }
}

/// The far end of [`Images::send`].
pub(crate) struct Received {
    decoder: Option<ResponseDecoder<RecvStreamAsyncStreamReader<RecvStream>>>,
}

impl Received {
    /// The content of a blob from a byte on, which is a multiple of [`PIECE_BYTES`] and less than the blob's length.
    pub(crate) fn new(blob: Part, from_bytes: u64, from: RecvStream) -> Self {
        let tree = BaoTree::new(blob.bytes, IROH_BLOCK_SIZE);
        let reader = RecvStreamAsyncStreamReader::new(from);
        let decoder = ResponseDecoder::new(Hash::from_bytes(blob.hash.0).into(), from_byte(from_bytes), tree, reader);
        Self { decoder: Some(decoder) }
    }

    /// The next piece in order, which was checked against the hash; nothing after the last.
    ///
    /// # Errors
    /// When the stream breaks off or holds something else. Nothing comes after that.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        while let Some(decoder) = self.decoder.take() {
            let ResponseDecoderNext::More((rest, item)) = decoder.next().await else { break };
            match item {
                Ok(BaoContentItem::Leaf(leaf)) => {
                    self.decoder = Some(rest);
                    return Ok(Some(leaf.data));
                }
                Ok(BaoContentItem::Parent(_)) => self.decoder = Some(rest),
                Err(error @ (DecodeError::ParentHashMismatch(_) | DecodeError::LeafHashMismatch(_))) => {
                    return Err(StreamError::Wrong(error.to_string()));
                }
                Err(error) => return Err(StreamError::Lost(error.into())),
            }
        }
        Ok(None)
    }
}
