//! A blob's content, read back and checked on the way.

use std::io;

use blixard_core::BlobHash;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::EncodedItem;
use iroh_blobs::protocol::ChunkRanges;

use super::{BlobError, Images};

/// A blob cannot be exported.
pub(crate) type ExportError = BlobError;

impl Images {
    /// The content of a whole blob, in order. Each item was checked against the hash before it is given out; an error ends
    /// the stream, and what came before it is only the beginning of the blob.
    ///
    /// # Errors
    /// When the blob is not here as a whole.
    pub(crate) async fn export(
        &self,
        hash: BlobHash,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, ExportError> {
        let Some(bytes) = self.complete_bytes(hash).await? else { return Err(BlobError::NotWhole(hash)) };
        let items = self.inner.store.blobs().export_bao(Hash::from_bytes(hash.0), ChunkRanges::all()).stream();
        Ok(content(Box::pin(items), bytes))
    }
}

/// The data among the items of a verified read; it must end with the blob's last byte.
fn content<S>(items: S, expected_bytes: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static
where
    S: Stream<Item = EncodedItem> + Send + Unpin + 'static,
{
    let state = (items, 0u64, false);
    futures::stream::unfold(state, move |(mut items, mut sent_bytes, ended)| async move {
        if ended {
            return None;
        }
        loop {
            let failed = match items.next().await {
                Some(EncodedItem::Leaf(leaf)) => {
                    sent_bytes += leaf.data.len() as u64;
                    return Some((Ok(leaf.data), (items, sent_bytes, false)));
                }
                Some(EncodedItem::Size(_) | EncodedItem::Parent(_)) => continue,
                Some(EncodedItem::Error(error)) => io::Error::other(error),
                Some(EncodedItem::Done) | None if sent_bytes == expected_bytes => return None,
                Some(EncodedItem::Done) | None => io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("the store gave {sent_bytes} of the blob's {expected_bytes} bytes"),
                ),
            };
            return Some((Err(failed), (items, sent_bytes, true)));
        }
    })
}
