//! An order in requests as short as a limit wants them.

use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};

use super::plan::{CHUNK_BYTES, Order};

impl Order {
    /// Takes off the beginning, of at most so many bytes; nothing when nothing is left.
    pub(super) fn take_slice(&mut self, bytes_max: Option<u64>) -> Option<Self> {
        let first = self.ranges.boundaries().first()?.0 * CHUNK_BYTES;
        let end = bytes_max.map_or(u64::MAX, |bytes| first.saturating_add(bytes)).min(self.blob_bytes);
        let slice = match end < self.blob_bytes {
            true => Self { ranges: &self.ranges & &ChunkRanges::bytes(first..end), ..self.clone() },
            false => self.clone(),
        };
        self.ranges = &self.ranges - &slice.ranges;
        Some(slice)
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::BlobHash;
    use iroh_blobs::protocol::GetRequest;

    use super::super::plan::Why;
    use super::*;

    #[test]
    fn slices_are_no_longer_than_allowed_and_make_up_the_order() {
        const KIB: u64 = 1024;
        let missing = ChunkRanges::bytes(32 * KIB..96 * KIB) | ChunkRanges::bytes(160 * KIB..300 * KIB + 7);
        let all =
            Order { number: 1, hash: BlobHash([1; 32]), blob_bytes: 300 * KIB + 7, ranges: missing, why: Why::Rest };
        let cut = |bytes_max| {
            let mut rest = all.clone();
            std::iter::from_fn(|| rest.take_slice(bytes_max)).collect::<Vec<_>>()
        };
        assert_eq!(cut(None), std::slice::from_ref(&all));
        assert_eq!(cut(Some(1 << 30)), std::slice::from_ref(&all));
        let slices = cut(Some(64 * KIB));
        assert_eq!(slices.iter().map(Order::bytes).collect::<Vec<_>>(), [64 * KIB, 64 * KIB, 64 * KIB, 12 * KIB + 7]);
        let whole = slices.iter().fold(ChunkRanges::empty(), |whole, slice| whole | slice.ranges.clone());
        assert_eq!(whole, all.ranges);
        let bare = |slice: &Order| GetRequest::blob_ranges(slice.request().hash, slice.ranges.clone());
        let proofs = slices.iter().filter(|slice| slice.request() != bare(slice));
        assert_eq!(proofs.count(), 1, "the last one proves the length");
    }
}
