//! What somebody waits for, and how it goes before everything else.

use std::ops::Range;

use blixard_core::{BlobHash, EndpointId};
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};

use super::piece::{Order, State};
use super::source::Tier;
use super::{Has, Plan};

/// The longest request for what somebody waits for, in bytes: others may wait behind it.
const DEMAND_BYTES_MAX: u64 = 1 << 20;
/// For how long after something was asked for nothing else is begun, in milliseconds: whoever reads is about to ask for more, and
/// would have to share the line. Longer than a guest takes between two reads while it boots.
const HOLD_MS: u64 = 150;
/// For how long all of this may hold others back, in milliseconds, or one who reads for ever a little at a time would keep an
/// image from ever being whole. A boot takes less.
const HOLD_MS_MAX: u64 = 60_000;
/// Orders in the hands of a better source until one of a lower tier is asked as well.
const BETTER_ORDERS_MAX: u32 = 4;

/// What is waited for, and since when.
#[derive(Debug, Default)]
pub(super) struct Demanded {
    /// Each with its blob's place, the most urgent first.
    ranges: Vec<(usize, ChunkRanges)>,
    /// When something was last added.
    last_ms: Option<u64>,
    /// How long others were held back.
    held_ms: u64,
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
        let place = |blob| self.blobs.iter().position(|(hash, _)| *hash == blob);
        let ranges: Vec<_> =
            wanted.filter_map(|(blob, bytes)| Some((place(blob)?, ChunkRanges::bytes(bytes)))).collect();
        let is_more = ranges.iter().any(|range| !self.demanded.ranges.contains(range));
        self.demanded.ranges = ranges;
        if is_more {
            let waited_ms = self.demanded.last_ms.map_or(0, |last_ms| now_ms.saturating_sub(last_ms));
            self.demanded.held_ms += waited_ms.min(HOLD_MS);
            self.demanded.last_ms = Some(now_ms);
        }
    }

    /// What a source is to be asked for at once, because somebody waits for it.
    pub(in crate::images) fn take_demanded(&mut self, id: EndpointId, now_ms: u64) -> Option<Order> {
        let source = self.sources.get(&id)?;
        let is_left_to_better = |index: usize| {
            self.sources.values().any(|other| {
                other.tier < source.tier
                    && other.has[index] == Has::All
                    && (source.tier == Tier::Doubtful || other.orders < BETTER_ORDERS_MAX)
            })
        };
        let (pieces, ranges) = self.demanded.ranges.iter().find_map(|(blob, wanted)| {
            let held = source.ranges.get(blob)?;
            let (mut pieces, mut ranges, mut left) = (Vec::new(), ChunkRanges::empty(), DEMAND_BYTES_MAX);
            for (index, piece) in self.pieces.iter().enumerate().filter(|(_, piece)| piece.blob == *blob) {
                let is_free = matches!(piece.state, State::Waiting { .. });
                if !is_free || left == 0 || is_left_to_better(index) {
                    continue;
                }
                let part = &(&piece.missing & wanted) & held;
                if !part.is_empty() {
                    left = left.saturating_sub(super::bytes(&part, self.blobs[*blob].1));
                    pieces.push(index);
                    ranges |= part;
                }
            }
            (!pieces.is_empty()).then_some((pieces, ranges))
        })?;
        if let Some(source) = self.sources.get_mut(&id) {
            source.count_until(now_ms);
        }
        Some(self.ask(id, pieces, ranges, now_ms))
    }
}
