//! What is still to be fetched, cut into pieces, and who may take which. Plain data: no io, no waiting.

use std::collections::{BTreeMap, VecDeque};

use blixard_core::BlobHash;
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::Bitfield;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, GetRequest};

/// The length of a piece: long enough that its round trip does not count, short enough that a source that dies or turns
/// slow holds up little. A multiple of the 16 KiB that are verified together.
const PIECE_BYTES: u64 = 16 << 20;

/// Ranges of one blob, to be asked of one source in one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) hash: BlobHash,
    /// The length of the whole blob in bytes.
    pub(super) blob_bytes: u64,
    /// What is missing.
    pub(super) ranges: ChunkRanges,
}

impl Piece {
    /// The pieces of a blob of which some is here already.
    pub(super) fn of_blob(hash: BlobHash, blob_bytes: u64, present: &ChunkRanges) -> Vec<Self> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < blob_bytes {
            let end = start.saturating_add(PIECE_BYTES).min(blob_bytes);
            let ranges = &ChunkRanges::bytes(start..end) - present;
            pieces.push(Self { hash, blob_bytes, ranges });
            start = end;
        }
        pieces.retain(|piece| !piece.ranges.is_empty());
        pieces
    }

    /// The length of what is missing, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        Bitfield::new(self.ranges.clone(), self.blob_bytes).total_bytes()
    }

    /// The request for it. With the end of the blob goes the proof of its length: a blob longer than the manifest says
    /// would otherwise look like one that never gets whole.
    pub(super) fn request(&self) -> GetRequest {
        let mut ranges = self.ranges.clone();
        if self.ranges.is_superset(&ChunkRanges::offset(self.blob_bytes.saturating_sub(1))) {
            ranges |= ChunkRanges::last_chunk();
        }
        GetRequest::blob_ranges(Hash::from_bytes(self.hash.0), ranges)
    }

    /// What of it is missing still.
    pub(super) fn without(&self, present: &ChunkRanges) -> Self {
        Self { ranges: &self.ranges - present, ..self.clone() }
    }
}

/// What a source has, by blob.
pub(super) type Holdings = BTreeMap<BlobHash, ChunkRanges>;

/// What a source's worker is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Fetch this.
    Fetch(Piece),
    /// Wait for a change: others are at work and may give pieces back.
    Wait,
    /// Wait for the source to get more itself: nobody is at work, and it has nothing of what is missing.
    Starve,
    /// Nothing is left to fetch.
    Done,
}

/// The pieces nobody fetches yet, in the order in which they are wanted.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Piece>,
    in_flight: usize,
}

impl Queue {
    pub(super) fn new(pieces: Vec<Piece>) -> Self {
        Self { waiting: pieces.into(), in_flight: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    /// Takes what a source is to fetch: the first piece that it has as a whole, else the most it has of any.
    pub(super) fn take(&mut self, holdings: &Holdings) -> Next {
        if self.is_done() {
            return Next::Done;
        }
        let held = |piece: &Piece| holdings.get(&piece.hash).map(|held| &piece.ranges & held);
        let mut best: Option<(usize, Piece)> = None;
        for (index, piece) in self.waiting.iter().enumerate() {
            let Some(ranges) = held(piece).filter(|ranges| !ranges.is_empty()) else { continue };
            let is_whole = ranges == piece.ranges;
            let common = Piece { ranges, ..piece.clone() };
            if is_whole {
                best = Some((index, common));
                break;
            }
            if best.as_ref().is_none_or(|(_, best)| best.bytes() < common.bytes()) {
                best = Some((index, common));
            }
        }
        let Some((index, taken)) = best else {
            return if self.in_flight > 0 { Next::Wait } else { Next::Starve };
        };
        let rest = self.waiting[index].without(&taken.ranges);
        if rest.ranges.is_empty() {
            self.waiting.remove(index);
        } else {
            self.waiting[index] = rest;
        }
        self.in_flight += 1;
        Next::Fetch(taken)
    }

    /// A taken piece is here.
    pub(super) fn finish(&mut self) {
        self.in_flight -= 1;
    }

    /// A taken piece, or what is left of it, has to come from somebody else. It goes to the front: it was wanted first.
    pub(super) fn give_back(&mut self, piece: Piece) {
        self.in_flight -= 1;
        if !piece.ranges.is_empty() {
            self.waiting.push_front(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: BlobHash = BlobHash([1; 32]);
    const BYTES: u64 = 2 * PIECE_BYTES + 17;

    fn queue() -> Queue {
        Queue::new(Piece::of_blob(BLOB, BYTES, &ChunkRanges::empty()))
    }

    fn holding(ranges: ChunkRanges) -> Holdings {
        Holdings::from([(BLOB, ranges)])
    }

    #[test]
    fn a_blob_is_cut_into_pieces_that_leave_out_what_is_here() {
        let all = Piece::of_blob(BLOB, BYTES, &ChunkRanges::empty());
        assert_eq!(all.iter().map(Piece::bytes).collect::<Vec<_>>(), [PIECE_BYTES, PIECE_BYTES, 17]);
        let proves_length =
            |piece: &Piece| piece.request() != GetRequest::blob_ranges(piece.request().hash, piece.ranges.clone());
        assert_eq!(all.iter().map(proves_length).collect::<Vec<_>>(), [false, false, true]);
        let begin_of_last = all[2].without(&ChunkRanges::bytes(2 * PIECE_BYTES..));
        assert!(!proves_length(&begin_of_last), "who has no end of the blob is not asked for it");
        let rest = Piece::of_blob(BLOB, BYTES, &ChunkRanges::bytes(0..PIECE_BYTES + (1 << 20)));
        assert_eq!(rest.iter().map(Piece::bytes).collect::<Vec<_>>(), [PIECE_BYTES - (1 << 20), 17]);
        assert!(Piece::of_blob(BLOB, BYTES, &ChunkRanges::all()).is_empty());
    }

    #[test]
    fn a_source_gets_only_what_it_has() {
        let mut queue = queue();
        assert_eq!(queue.take(&Holdings::new()), Next::Starve);
        let second = ChunkRanges::bytes(PIECE_BYTES..2 * PIECE_BYTES);
        let Next::Fetch(piece) = queue.take(&holding(second.clone())) else { panic!("it has a whole piece") };
        assert_eq!(piece.ranges, second);
        assert_eq!(queue.take(&holding(second)), Next::Wait, "the piece it has is being fetched");
        let Next::Fetch(piece) = queue.take(&holding(ChunkRanges::bytes(0..1 << 20))) else { panic!("it has a part") };
        assert_eq!(piece.bytes(), 1 << 20);
        let Next::Fetch(piece) = queue.take(&holding(ChunkRanges::all())) else { panic!("it has the rest") };
        assert_eq!(piece.bytes(), PIECE_BYTES - (1 << 20));
    }

    #[test]
    fn what_is_given_back_comes_first_again() {
        let mut queue = queue();
        let all = holding(ChunkRanges::all());
        let Next::Fetch(first) = queue.take(&all) else { panic!("there is a piece") };
        let Next::Fetch(_) = queue.take(&all) else { panic!("there is another") };
        queue.give_back(first.without(&ChunkRanges::bytes(0..1 << 20)));
        let Next::Fetch(again) = queue.take(&all) else { panic!("it was given back") };
        assert_eq!(again.bytes(), PIECE_BYTES - (1 << 20));
        let Next::Fetch(_) = queue.take(&all) else { panic!("there is a last one") };
        assert_eq!(queue.take(&all), Next::Wait, "others may still fail");
        for _ in 0..3 {
            assert!(!queue.is_done());
            queue.finish();
        }
        assert_eq!(queue.take(&all), Next::Done);
    }
}
