//! What is still to be fetched, cut into pieces.

use blixard_core::{BlobHash, EndpointId};
use iroh_blobs::Hash;
use iroh_blobs::api::blobs::Bitfield;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, GetRequest};

use crate::metrics::Labels;

/// What is hashed as one; ranges are counted in these.
pub(in crate::images) const CHUNK_BYTES: u64 = 1024;
/// The shortest piece. Receivers of the same image give each other what they have in whole pieces, and the shorter these
/// are, the sooner each has something to give. A multiple of the 16 KiB that are verified together.
pub(super) const PIECE_BYTES_MIN: u64 = 256 << 10;
/// The longest piece: no image is so large that a source which dies or turns slow may hold up more.
pub(super) const PIECE_BYTES_MAX: u64 = 16 << 20;
/// How many pieces of the shortest kind a blob is cut into before they get longer: what is looked through for each request.
const PIECES: u64 = 1024;

/// A blob of an image, and what of it is here.
#[derive(Debug, Clone)]
pub(in crate::images) struct Blob {
    pub(in crate::images) hash: BlobHash,
    /// Its length.
    pub(in crate::images) bytes: u64,
    /// What is here and verified.
    pub(in crate::images) present: ChunkRanges,
}

/// What one source is asked for in one request: ranges of one blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::images) struct Order {
    /// By which the plan knows it.
    pub(in crate::images) number: u64,
    pub(in crate::images) hash: BlobHash,
    /// The length of the whole blob in bytes.
    pub(in crate::images) blob_bytes: u64,
    pub(in crate::images) ranges: ChunkRanges,
    pub(in crate::images) why: Why,
}

/// Why something is fetched now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::images) enum Why {
    /// Somebody waits for it.
    Waited,
    /// Somebody is about to.
    Ahead,
    /// It is a part of the image.
    Rest,
}

impl Why {
    pub(in crate::images) const ALL: [Self; 3] = [Self::Waited, Self::Ahead, Self::Rest];

    /// As metrics tell it.
    pub(in crate::images) fn label(self) -> Labels<1> {
        let word = match self {
            Self::Waited => "waited",
            Self::Ahead => "boot",
            Self::Rest => "rest",
        };
        [("why", word.into())]
    }
}

impl Order {
    /// The length of what is asked for, in bytes.
    pub(in crate::images) fn bytes(&self) -> u64 {
        bytes(&self.ranges, self.blob_bytes)
    }

    /// What of it is missing still.
    pub(in crate::images) fn without(&self, present: &ChunkRanges) -> Self {
        Self { ranges: &self.ranges - present, ..self.clone() }
    }

    /// The request for it. With the end of the blob goes the proof of its length: a blob longer than the manifest says
    /// would otherwise look like one that never gets whole.
    pub(in crate::images) fn request(&self) -> GetRequest {
        let mut ranges = self.ranges.clone();
        if self.ranges.is_superset(&ChunkRanges::offset(self.blob_bytes.saturating_sub(1))) {
            ranges |= ChunkRanges::last_chunk();
        }
        GetRequest::blob_ranges(Hash::from_bytes(self.hash.0), ranges)
    }
}

/// The length of ranges of a blob of this length, in bytes.
pub(super) fn bytes(ranges: &ChunkRanges, blob_bytes: u64) -> u64 {
    Bitfield::new(ranges.clone(), blob_bytes).total_bytes()
}

/// What has become of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody is asked for it. It was taken back from this source, which is not to get it again while another has it.
    Waiting { taken_from: Option<EndpointId> },
    /// Somebody is asked for it, or for a part of it.
    Asked,
    /// All of it is here.
    Here,
}

/// Adjacent bytes of one blob, of which some may be here.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    /// The blob's place in the plan.
    pub(super) blob: usize,
    /// Which it is of all pieces of all blobs, on every node alike.
    pub(super) key: u64,
    pub(super) missing: ChunkRanges,
    pub(super) missing_bytes: u64,
    pub(super) state: State,
    /// Sources that have all of what is missing.
    pub(super) sources: u32,
    /// How often it was taken back from a slow source.
    pub(super) moves: u32,
}

/// How much of a piece a source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Has {
    Nothing,
    Part,
    All,
}

impl Piece {
    /// The pieces of a blob of which something is missing.
    pub(super) fn of_blob(place: usize, blob: &Blob) -> Vec<Self> {
        let step = (blob.bytes / PIECES).next_power_of_two().clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
        let head = u64::from_le_bytes(blob.hash.0[..8].try_into().expect("8 of 32 bytes are 8"));
        let mut pieces = Vec::new();
        let mut start = 0u64;
        while start < blob.bytes {
            let end = start.saturating_add(step).min(blob.bytes);
            let missing = &ChunkRanges::bytes(start..end) - &blob.present;
            if !missing.is_empty() {
                let missing_bytes = bytes(&missing, blob.bytes);
                let (state, key) = (State::Waiting { taken_from: None }, head.wrapping_add(start));
                pieces.push(Self { blob: place, key, missing, missing_bytes, state, sources: 0, moves: 0 });
            }
            start = end;
        }
        pieces
    }

    /// How much of what is missing somebody has who has these ranges.
    pub(super) fn had_by(&self, ranges: &ChunkRanges) -> Has {
        let edges = ranges.boundaries();
        let (mut lacks_none, mut has_any) = (true, false);
        for gap in self.missing.boundaries().chunks(2) {
            let [first, end] = gap else { return Has::Part };
            let before = edges.partition_point(|edge| edge <= first);
            let next_is_behind = edges.get(before).is_none_or(|next| next >= end);
            match (before % 2 == 1, next_is_behind) {
                (true, true) => has_any = true,
                (false, true) => lacks_none = false,
                _ => return Has::Part,
            }
        }
        match (lacks_none, has_any) {
            (_, false) => Has::Nothing,
            (true, true) => Has::All,
            (false, true) => Has::Part,
        }
    }

    /// Notes what of it has come.
    pub(super) fn came(&mut self, present: &ChunkRanges, blob_bytes: u64) {
        self.missing = &self.missing - present;
        self.missing_bytes = bytes(&self.missing, blob_bytes);
    }
}
