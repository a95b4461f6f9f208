//! What somebody waits for, and how it goes before everything else; and what somebody is about to wait for, which goes before the
//! rest.

use std::collections::VecDeque;
use std::ops::Range;

use bao_tree::ChunkNum;
use blixard_core::{BlobHash, EndpointId};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};

use super::super::demand::Ahead;
use super::piece::{CHUNK_BYTES, Order, State, Why};
use super::source::Source;
use super::source::Tier;
use super::{Has, Plan};

/// The longest request for what somebody waits for, or is about to, in bytes: others may wait behind it.
const WISH_BYTES_MAX: u64 = 1 << 20;
/// For how long after something was asked for nothing else is begun, in milliseconds: whoever reads is about to ask for more, and
/// would have to share the line. Longer than a guest takes between two reads while it boots.
const HOLD_MS: u64 = 150;
/// For how long all of this may hold others back, in milliseconds, or one who reads for ever a little at a time would keep an
/// image from ever being whole. A boot takes less.
const HOLD_MS_MAX: u64 = 60_000;
/// Orders in the hands of a better source until one of a lower tier is asked as well.
const BETTER_ORDERS_MAX: u32 = 4;

/// A range of a blob that goes before others.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    /// The blob's place.
    blob: usize,
    ranges: ChunkRanges,
    /// The pieces that have any of it.
    pieces: Vec<usize>,
}

/// What is waited for, and since when; and what is about to be.
#[derive(Debug, Default)]
pub(super) struct Demanded {
    /// The most urgent first.
    wishes: Vec<Wish>,
    /// When something was last added.
    last_ms: Option<u64>,
    /// How long others were held back.
    held_ms: u64,
    /// What is about to be waited for, the soonest first, as far as it is not here.
    ahead: VecDeque<Wish>,
    /// The numbers by which that is known.
    ahead_numbers: Vec<u64>,
}

impl Demanded {
    /// Whether nothing else is to be begun now.
    pub(super) fn holds_others_back(&self, now_ms: u64) -> bool {
        self.held_ms < HOLD_MS_MAX && self.last_ms.is_some_and(|last_ms| now_ms < last_ms.saturating_add(HOLD_MS))
    }
}

impl Plan {
    /// Somebody waits for these, the most urgent first, and for nothing else.
    pub(in crate::images) fn demand(&mut self, wanted: impl Iterator<Item = (BlobHash, Range<u64>)>, now_ms: u64) {
        let wishes: Vec<Wish> = wanted.filter_map(|(blob, bytes)| self.wish(blob, bytes)).collect();
        let is_more = wishes.iter().any(|wish| !self.demanded.wishes.contains(wish));
        self.demanded.wishes = wishes;
        if is_more {
            let waited_ms = self.demanded.last_ms.map_or(0, |last_ms| now_ms.saturating_sub(last_ms));
            self.demanded.held_ms += waited_ms.min(HOLD_MS);
            self.demanded.last_ms = Some(now_ms);
        }
    }

    /// Somebody is about to wait for these, and for nothing else.
    pub(in crate::images) fn expect(&mut self, ahead: &[Ahead]) {
        if ahead.iter().map(|ahead| ahead.number).eq(self.demanded.ahead_numbers.iter().copied()) {
            return;
        }
        let ranges =
            ahead.iter().flat_map(|ahead| ahead.ranges.iter().map(|range| (ahead.blob, range.start..range.end)));
        self.demanded.ahead = ranges.filter_map(|(blob, bytes)| self.wish(blob, bytes)).collect();
        self.demanded.ahead_numbers = ahead.iter().map(|ahead| ahead.number).collect();
    }

    fn wish(&self, blob: BlobHash, bytes: Range<u64>) -> Option<Wish> {
        let blob = self.blobs.iter().position(|(hash, _)| *hash == blob)?;
        let ranges = ChunkRanges::bytes(bytes);
        let (first, end) = (ranges.boundaries().first()?, ranges.boundaries().last()?);
        let has_any =
            |missing: &[ChunkNum]| missing.first().is_some_and(|start| start < end) && missing.last() > Some(first);
        let pieces = self.pieces.iter().enumerate();
        let pieces = pieces.filter(|(_, piece)| piece.blob == blob && has_any(piece.missing.boundaries()));
        let pieces = pieces.map(|(index, _)| index).collect();
        Some(Wish { blob, ranges, pieces })
    }

    /// What a source is to be asked for at once, because somebody waits for it.
    pub(in crate::images) fn take_demanded(&mut self, id: EndpointId, now_ms: u64) -> Option<Order> {
        let source = self.sources.get(&id)?;
        let mut gathered = None;
        for wish in &self.demanded.wishes {
            let mut gathering = Gathered::default();
            self.gather(source, wish, &mut gathering);
            if !gathering.pieces.is_empty() {
                gathered = Some(gathering);
                break;
            }
        }
        self.ask_gathered(id, gathered?, Why::Waited, now_ms)
    }

    /// What a source is to be asked for next, because somebody is about to wait for it: the soonest, and of the same blob as much
    /// of what follows as one request may have.
    pub(super) fn take_ahead(&mut self, id: EndpointId, now_ms: u64) -> Option<Order> {
        let is_here = |plan: &Self, wish: &Wish| {
            wish.pieces.iter().all(|index| plan.pieces[*index].missing.is_disjoint(&wish.ranges))
        };
        while self.demanded.ahead.front().is_some_and(|wish| is_here(self, wish)) {
            self.demanded.ahead.pop_front();
        }
        let source = self.sources.get(&id)?;
        let (mut gathered, mut blob) = (Gathered::default(), None);
        for wish in &self.demanded.ahead {
            if gathered.left_bytes == 0 {
                break;
            }
            if blob.is_none_or(|blob| blob == wish.blob) {
                self.gather(source, wish, &mut gathered);
                blob = gathered.pieces.first().map(|_| wish.blob);
            }
        }
        self.ask_gathered(id, gathered, Why::Ahead, now_ms)
    }

    /// Adds what a source has of a wish and nobody is asked for.
    fn gather(&self, source: &Source, wish: &Wish, gathered: &mut Gathered) {
        let Some(held) = source.ranges.get(&wish.blob) else { return };
        for index in &wish.pieces {
            let piece = &self.pieces[*index];
            let is_taken = gathered.pieces.contains(index);
            let is_free = matches!(piece.state, State::Waiting { .. });
            if gathered.left_bytes == 0 || !is_free || self.is_left_to_better(source, *index) {
                continue;
            }
            let part = beginning(&(&piece.missing & &wish.ranges) & held, gathered.left_bytes);
            if part.is_empty() {
                continue;
            }
            let bytes = super::bytes(&part, self.blobs[wish.blob].1);
            gathered.left_bytes = gathered.left_bytes.saturating_sub(bytes.next_multiple_of(CHUNK_BYTES));
            gathered.ranges |= part;
            if !is_taken {
                gathered.pieces.push(*index);
            }
        }
    }

    /// Whether a source of a better tier has a piece, and is not busy with enough.
    fn is_left_to_better(&self, source: &Source, index: usize) -> bool {
        self.sources.values().any(|other| {
            other.tier < source.tier
                && other.has[index] == Has::All
                && (source.tier == Tier::Doubtful || other.orders < BETTER_ORDERS_MAX)
        })
    }

    fn ask_gathered(&mut self, id: EndpointId, gathered: Gathered, why: Why, now_ms: u64) -> Option<Order> {
        if gathered.pieces.is_empty() {
            return None;
        }
        if let Some(source) = self.sources.get_mut(&id) {
            source.count_until(now_ms);
        }
        Some(self.ask(id, gathered.pieces, gathered.ranges, why, now_ms))
    }
}

/// What goes into one request.
struct Gathered {
    pieces: Vec<usize>,
    ranges: ChunkRanges,
    left_bytes: u64,
}

impl Default for Gathered {
    fn default() -> Self {
        Self { pieces: Vec::new(), ranges: ChunkRanges::empty(), left_bytes: WISH_BYTES_MAX }
    }
}

/// The beginning of ranges, as far as so many bytes behind their first one. What is verified together stays together.
fn beginning(ranges: ChunkRanges, bytes: u64) -> ChunkRanges {
    let Some(first) = ranges.boundaries().first().copied() else { return ranges };
    let end = ChunkNum(first.0.saturating_add(bytes.div_ceil(CHUNK_BYTES)));
    &ranges & &ChunkRanges::from(..end)
}
