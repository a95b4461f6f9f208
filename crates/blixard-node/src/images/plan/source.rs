//! What a plan knows of one source.

use std::collections::BTreeMap;

use iroh_blobs::protocol::ChunkRanges;

use super::piece::Has;

/// Whom to ask first; who comes later is asked for what the others do not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::images) enum Tier {
    /// At this node's site, or, where no site is named, not far away.
    Near,
    /// Elsewhere.
    Far,
    /// One that has failed often or lied of late.
    Doubtful,
}

/// How long a speed is measured over, in milliseconds of work: what was before counts half, and a quarter, and so on.
const SPEED_MS: u64 = 4_000;
/// How long a source must have worked until its speed is known, in milliseconds.
const SPEED_KNOWN_MS: u64 = 200;

/// How fast a source delivers, while it is asked for something.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Speed {
    bytes: u64,
    busy_ms: u64,
    seen_ms: u64,
}

impl Speed {
    /// Counts the time until now, in which the source was at work or not.
    pub(super) fn until(&mut self, now_ms: u64, is_busy: bool) {
        if is_busy {
            self.busy_ms += now_ms.saturating_sub(self.seen_ms);
        }
        self.seen_ms = now_ms.max(self.seen_ms);
        if self.busy_ms > SPEED_MS {
            self.busy_ms /= 2;
            self.bytes /= 2;
        }
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Bytes a second, once that is known.
    pub(super) fn rate(&self) -> Option<u64> {
        (self.busy_ms >= SPEED_KNOWN_MS).then(|| self.bytes.saturating_mul(1000) / self.busy_ms)
    }
}

/// A source of a plan.
#[derive(Debug)]
pub(super) struct Source {
    /// Whether it had the whole image from the start, instead of fetching it like this node.
    pub(super) is_whole: bool,
    pub(super) tier: Tier,
    /// How much it has of each piece.
    pub(super) has: Vec<Has>,
    /// What it has of each blob, by the blob's place.
    pub(super) ranges: BTreeMap<usize, ChunkRanges>,
    /// Orders in its hands.
    pub(super) orders: u32,
    pub(super) speed: Speed,
}

impl Source {
    pub(super) fn new(is_whole: bool, tier: Tier, pieces: usize) -> Self {
        let (has, ranges) = (vec![Has::Nothing; pieces], BTreeMap::new());
        Self { is_whole, tier, has, ranges, orders: 0, speed: Speed::default() }
    }

    pub(super) fn count_until(&mut self, now_ms: u64) {
        self.speed.until(now_ms, self.orders > 0);
    }

    /// Bytes a second; 0 while that is not known.
    pub(super) fn rate(&self) -> u64 {
        self.speed.rate().unwrap_or(0)
    }
}
