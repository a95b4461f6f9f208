//! Which piece comes from whom. Plain data: the time comes in as an argument, and nothing waits.
//!
//! Each source has a few workers that ask the plan what to fetch from it next. Sources that fetch the image themselves are
//! *peers*. The plan follows these rules:
//!
//! - The rarest piece first, and among equals any: receivers then have different pieces, which they give each other.
//! - What a whole source, or a far one, has to give is shared by the peers, or by the near ones: each takes its own part of it
//!   first. Which part is whose follows from their keys, so that nobody has to be asked. While they deliver half as much as
//!   such a source does, it is left to what nobody else can give.
//! - Near sources before far ones, and doubtful ones last: see [`Tier`].
//! - A fast source is asked for more at once, so that a request takes about the same time wherever it goes.
//! - What somebody waits for goes before everything else, and while more of it is asked for nothing else is begun, for a while.
//! - What somebody is about to wait for goes before the rest.
//! - What a slow source would hold up is taken back from it and asked of a faster one that has nothing else to do.

mod demanded;
mod piece;
#[cfg(test)]
mod simulation;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use blixard_core::{BlobHash, EndpointId};
use iroh_blobs::protocol::ChunkRanges;

use demanded::Demanded;
pub(super) use piece::{Blob, CHUNK_BYTES, Order, Why};
use piece::{Has, PIECE_BYTES_MAX, Piece, State, bytes};
use source::Source;
pub(super) use source::Tier;

/// How long a request should take, in milliseconds: long against its round trip, and short against what may go wrong meanwhile.
const REQUEST_MS: u64 = 250;
/// Far sources are asked for what near ones have when those would take longer than this for all that is missing, in
/// milliseconds: somebody may be waiting for it.
const NEAR_MS_MAX: u64 = 30_000;
/// How much longer the slower source must need until a request is taken back from it, in milliseconds, besides twice the time
/// of the faster one: to move a request throws away what is on its way.
const TAKE_BACK_MS: u64 = 500;
/// How long a source whose speed is not known may have a request, in milliseconds, before that may be taken back.
const SILENCE_MS: u64 = 2_000;
/// How often a piece is taken back: speeds that are guessed wrongly must not send it round for ever.
const MOVES_MAX: u32 = 3;

/// What a source's worker is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Fetch this.
    Fetch(Order),
    /// Take the order of this number back from the worker that has it, then ask again.
    TakeBack(u64),
    /// Wait for a change: others are at work and may give pieces back.
    Wait,
    /// Wait for the source to get more itself: nobody is at work, and it has nothing of what is missing.
    Starve,
    /// Nothing is left to fetch.
    Done,
}

/// An order in a worker's hands.
#[derive(Debug)]
struct Asked {
    source: EndpointId,
    blob: usize,
    pieces: Vec<usize>,
    ranges: ChunkRanges,
    bytes: u64,
    received_bytes: u64,
    since_ms: u64,
    is_taken_back: bool,
}

/// How welcome a piece is: a kind, how many sources have it, and what decides among equals. The lowest is the best.
type Rank = (u8, u32, u64);

/// The pieces of one fetch, and its sources.
#[derive(Debug)]
pub(super) struct Plan {
    me: EndpointId,
    seed: u64,
    blobs: Vec<(BlobHash, u64)>,
    pieces: Vec<Piece>,
    sources: BTreeMap<EndpointId, Source>,
    asked: BTreeMap<u64, Asked>,
    last_number: u64,
    /// Pieces that are not here.
    left: usize,
    demanded: Demanded,
}

impl Plan {
    /// A plan for what is missing of some blobs. The seed decides among equals.
    pub(super) fn new(me: EndpointId, blobs: &[Blob], seed: u64) -> Self {
        let pieces: Vec<Piece> = blobs.iter().enumerate().flat_map(|(at, blob)| Piece::of_blob(at, blob)).collect();
        let blobs = blobs.iter().map(|blob| (blob.hash, blob.bytes)).collect();
        let left = pieces.len();
        let (sources, asked, demanded) = (BTreeMap::new(), BTreeMap::new(), Demanded::default());
        Self { me, seed, blobs, pieces, sources, asked, last_number: 0, left, demanded }
    }

    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// The length of what is not here, in bytes.
    pub(super) fn missing_bytes(&self) -> u64 {
        let missing = self.pieces.iter().filter(|piece| piece.state != State::Here);
        missing.map(|piece| piece.missing_bytes).fold(0, u64::saturating_add)
    }

    /// Counts with a source, of which nothing is known yet.
    pub(super) fn join(&mut self, source: EndpointId, is_whole: bool, tier: Tier) {
        self.leave(source);
        self.sources.insert(source, Source::new(is_whole, tier, self.pieces.len()));
    }

    /// No longer counts with a source. What it was asked for is given back by whoever asked it.
    pub(super) fn leave(&mut self, source: EndpointId) {
        let Some(gone) = self.sources.remove(&source) else { return };
        for (piece, has) in self.pieces.iter_mut().zip(gone.has) {
            if has == Has::All {
                piece.sources -= 1;
            }
        }
    }

    /// Puts a source into another tier.
    pub(super) fn place(&mut self, source: EndpointId, tier: Tier) {
        if let Some(source) = self.sources.get_mut(&source) {
            source.tier = tier;
        }
    }

    /// Notes what a source has of a blob. Gives whether that is more than was known.
    pub(super) fn learn(&mut self, source: EndpointId, blob: BlobHash, ranges: &ChunkRanges) -> bool {
        let Some(blob) = self.blobs.iter().position(|(hash, _)| *hash == blob) else { return false };
        let Some(known) = self.sources.get_mut(&source) else { return false };
        let held = known.ranges.entry(blob).or_default();
        let more = &*held | ranges;
        if more == *held {
            return false;
        }
        *held = more;
        for index in 0..self.pieces.len() {
            if self.pieces[index].blob == blob {
                self.look_again(source, index);
            }
        }
        true
    }

    /// Whether a source has all that is missing of a blob: it cannot get more.
    pub(super) fn has_all(&self, source: EndpointId, blob: BlobHash) -> bool {
        let Some(blob) = self.blobs.iter().position(|(hash, _)| *hash == blob) else { return true };
        let Some(known) = self.sources.get(&source) else { return false };
        let mut pieces = self.pieces.iter().zip(&known.has).filter(|(piece, _)| piece.blob == blob);
        pieces.all(|(piece, has)| piece.state == State::Here || *has == Has::All)
    }

    /// Whether a source has anything of what is, or was, missing.
    pub(super) fn has_any(&self, source: EndpointId) -> bool {
        self.sources.get(&source).is_some_and(|source| source.has.iter().any(|has| *has != Has::Nothing))
    }

    fn look_again(&mut self, source: EndpointId, index: usize) {
        let Some(source) = self.sources.get_mut(&source) else { return };
        let piece = &mut self.pieces[index];
        if piece.state == State::Here {
            return;
        }
        let has = source.ranges.get(&piece.blob).map_or(Has::Nothing, |ranges| piece.had_by(ranges));
        let had = std::mem::replace(&mut source.has[index], has);
        if had == Has::All {
            piece.sources -= 1;
        }
        if has == Has::All {
            piece.sources += 1;
        }
    }

    /// What a worker of a source is to do. Times are in milliseconds from any beginning, and never go back.
    pub(super) fn take(&mut self, id: EndpointId, now_ms: u64) -> Next {
        if self.is_done() {
            return Next::Done;
        }
        self.sources.values_mut().for_each(|source| source.count_until(now_ms));
        if let Some(order) = self.take_demanded(id, now_ms) {
            return Next::Fetch(order);
        }
        if let Some(order) = self.take_ahead(id, now_ms) {
            return Next::Fetch(order);
        }
        let Some(source) = self.sources.get(&id) else { return Next::Wait };
        if self.demanded.holds_others_back(now_ms) {
            return Next::Wait;
        }
        if let Some(pieces) = self.choose(id, source) {
            let ranges = pieces.iter().fold(ChunkRanges::empty(), |all, index| &all | &self.pieces[*index].missing);
            return Next::Fetch(self.ask(id, pieces, ranges, Why::Rest, now_ms));
        }
        if let Some((index, ranges)) = self.choose_part(source) {
            return Next::Fetch(self.ask(id, vec![index], ranges, Why::Rest, now_ms));
        }
        if let Some(number) = self.held_up(id, source, now_ms) {
            if let Some(asked) = self.asked.get_mut(&number) {
                asked.is_taken_back = true;
            }
            return Next::TakeBack(number);
        }
        if self.asked.is_empty() { Next::Starve } else { Next::Wait }
    }

    fn ask(&mut self, source: EndpointId, pieces: Vec<usize>, ranges: ChunkRanges, why: Why, now_ms: u64) -> Order {
        self.last_number += 1;
        let (number, blob) = (self.last_number, self.pieces[pieces[0]].blob);
        let (hash, blob_bytes) = self.blobs[blob];
        for index in &pieces {
            self.pieces[*index].state = State::Asked;
        }
        if let Some(source) = self.sources.get_mut(&source) {
            source.orders += 1;
        }
        let order = Order { number, hash, blob_bytes, ranges: ranges.clone(), why };
        let (bytes, since_ms) = (order.bytes(), now_ms);
        let asked = Asked { source, blob, pieces, ranges, bytes, received_bytes: 0, since_ms, is_taken_back: false };
        self.asked.insert(number, asked);
        order
    }

    /// The pieces of one blob that a source is to be asked for: as many as it delivers in the time of a request.
    fn choose(&self, id: EndpointId, source: &Source) -> Option<Vec<usize>> {
        let preferred = self.preferred_to(source);
        let has_peers = self.sources.values().any(|source| !source.is_whole);
        let sharing = self.sharing(source);
        let is_spared = self.is_spared(source, &sharing);
        let rank = |index: usize| -> Option<Rank> {
            let piece = &self.pieces[index];
            let State::Waiting { taken_from } = piece.state else { return None };
            if source.has[index] != Has::All || (taken_from == Some(id) && piece.sources > 1) {
                return None;
            }
            if preferred.iter().any(|better| better.has[index] == Has::All) {
                return None;
            }
            let is_spread = || sharing.iter().any(|(_, peer)| peer.has[index] == Has::All);
            let kind = match sharing.is_empty() {
                true => 0,
                false if is_spread() => 2,
                false => u8::from(!self.is_mine(piece.key, &sharing)),
            };
            if kind > 0 && is_spared {
                return None;
            }
            // In order where there is nobody to exchange with: disks like that.
            let tie = if has_peers { mix(self.seed ^ index as u64) } else { index as u64 };
            Some((kind, piece.sources, tie))
        };
        let ranked = (0..self.pieces.len()).filter_map(|index| Some((rank(index)?, index)));
        let (best, first) = ranked.min()?;
        let room = source.rate().saturating_mul(REQUEST_MS) / 1000;
        let mut left = room.min(PIECE_BYTES_MAX).saturating_sub(self.pieces[first].missing_bytes);
        let mut chosen = vec![first];
        for index in first + 1..self.pieces.len() {
            let piece = &self.pieces[index];
            if piece.blob != self.pieces[first].blob || piece.missing_bytes > left {
                break;
            }
            if rank(index).is_some_and(|rank| (rank.0, rank.1) == (best.0, best.1)) {
                left -= piece.missing_bytes;
                chosen.push(index);
            }
        }
        Some(chosen)
    }

    /// The most that a source has of any piece that nobody has all of.
    fn choose_part(&self, source: &Source) -> Option<(usize, ChunkRanges)> {
        let parts = self.pieces.iter().enumerate().filter_map(|(index, piece)| {
            let is_free = matches!(piece.state, State::Waiting { .. }) && piece.sources == 0;
            if !is_free || source.has[index] != Has::Part {
                return None;
            }
            let ranges = &piece.missing & source.ranges.get(&piece.blob)?;
            (!ranges.is_empty()).then_some((index, ranges))
        });
        parts.max_by_key(|(index, ranges)| bytes(ranges, self.blobs[self.pieces[*index].blob].1))
    }

    /// The sources that are asked before this one for whatever they have.
    fn preferred_to(&self, source: &Source) -> Vec<&Source> {
        if source.tier == Tier::Far && !self.near_suffice() {
            return Vec::new();
        }
        self.sources.values().filter(|other| other.tier < source.tier).collect()
    }

    /// Whether near sources, as far as their speed is known, bring all that is missing in good time.
    fn near_suffice(&self) -> bool {
        let near = self.sources.values().filter(|source| source.tier == Tier::Near);
        let rates: Vec<u64> = near.filter_map(|near| near.speed.rate()).collect();
        let bytes = rates.iter().sum::<u64>().saturating_mul(NEAR_MS_MAX) / 1000;
        rates.is_empty() || bytes >= self.missing_bytes()
    }

    /// Whether a source is left to what only it can give: those who share it deliver at least half as much as it does, or, when
    /// they are nearer, enough.
    fn is_spared(&self, source: &Source, sharing: &[(&EndpointId, &Source)]) -> bool {
        let is_farther = sharing.iter().any(|(_, peer)| peer.tier < source.tier);
        let mut busy = sharing.iter().filter(|(_, peer)| peer.orders > 0);
        if is_farther {
            return busy.next().is_some() && self.near_suffice();
        }
        busy.map(|(_, peer)| peer.rate()).sum::<u64>().saturating_mul(2) > source.rate()
    }

    /// The peers with whom this node shares what a source gives: each takes a part of it, and has the rest from the others. Of a
    /// far source these are the near ones. A near one is shared when it has the image whole; what near peers have, each takes as
    /// it needs it.
    fn sharing(&self, source: &Source) -> Vec<(&EndpointId, &Source)> {
        let peers = self.sources.iter().filter(|(_, peer)| !peer.is_whole && peer.tier != Tier::Doubtful);
        let near: Vec<_> = peers.clone().filter(|(_, peer)| peer.tier == Tier::Near).collect();
        match (source.tier == Tier::Near || near.is_empty(), source.is_whole) {
            (false, _) => near,
            (true, true) => peers.collect(),
            (true, false) => Vec::new(),
        }
    }

    /// Whether this node is the one of those that share a source which takes a piece from it first.
    fn is_mine(&self, key: u64, sharing: &[(&EndpointId, &Source)]) -> bool {
        let draw = |id: &EndpointId| {
            let head = u64::from_le_bytes(id.0[..8].try_into().expect("8 of 32 bytes are 8"));
            (mix(mix(head) ^ key), *id)
        };
        let own = draw(&self.me);
        sharing.iter().all(|(id, _)| draw(id) < own)
    }

    /// The order that this source would carry out so much sooner than the one that has it that it is worth moving.
    fn held_up(&self, id: EndpointId, source: &Source, now_ms: u64) -> Option<u64> {
        if source.tier == Tier::Doubtful {
            return None;
        }
        let own_rate = source.speed.rate()? / u64::from(source.orders + 1);
        let time_ms = |bytes: u64, rate: u64| bytes.saturating_mul(1000).checked_div(rate).unwrap_or(u64::MAX);
        let orders = self.asked.iter().filter_map(|(number, asked)| {
            let may_move = |index: &usize| source.has[*index] == Has::All && self.pieces[*index].moves < MOVES_MAX;
            if asked.is_taken_back || asked.source == id || !asked.pieces.iter().all(may_move) {
                return None;
            }
            let rest = asked.bytes.saturating_sub(asked.received_bytes);
            let holder = self.sources.get(&asked.source)?;
            let rate = match holder.speed.rate().filter(|rate| *rate > 0) {
                Some(rate) => rate / u64::from(holder.orders.max(1)),
                None if now_ms.saturating_sub(asked.since_ms) >= SILENCE_MS => 0,
                None => return None,
            };
            let (there_ms, here_ms) = (time_ms(rest, rate), time_ms(rest, own_rate));
            let is_worth_it = there_ms > here_ms.saturating_mul(2).saturating_add(TAKE_BACK_MS);
            is_worth_it.then_some((there_ms, *number))
        });
        orders.max().map(|(_, number)| number)
    }

    /// Notes that so many bytes of an order have come by now.
    pub(super) fn received(&mut self, number: u64, bytes: u64, now_ms: u64) {
        let Some(asked) = self.asked.get_mut(&number) else { return };
        let more = bytes.saturating_sub(asked.received_bytes);
        asked.received_bytes += more;
        if let Some(source) = self.sources.get_mut(&asked.source) {
            source.count_until(now_ms);
            source.speed.add(more);
        }
    }

    /// An order is here as a whole.
    pub(super) fn finish(&mut self, number: u64, now_ms: u64) {
        if let Some(asked) = self.end(number, now_ms) {
            self.put_back(&asked, &asked.ranges);
        }
    }

    /// An order, or what is left of it, has to come from somebody else. `present` is what is here of its blob.
    pub(super) fn give_back(&mut self, number: u64, present: &ChunkRanges, now_ms: u64) {
        if let Some(asked) = self.end(number, now_ms) {
            self.put_back(&asked, present);
        }
    }

    fn end(&mut self, number: u64, now_ms: u64) -> Option<Asked> {
        let asked = self.asked.remove(&number)?;
        if let Some(source) = self.sources.get_mut(&asked.source) {
            source.count_until(now_ms);
            source.orders = source.orders.saturating_sub(1);
        }
        Some(asked)
    }

    fn put_back(&mut self, asked: &Asked, present: &ChunkRanges) {
        let blob_bytes = self.blobs[asked.blob].1;
        for index in &asked.pieces {
            let piece = &mut self.pieces[*index];
            piece.came(present, blob_bytes);
            if piece.missing.is_empty() {
                piece.state = State::Here;
                self.left -= 1;
                continue;
            }
            piece.moves += u32::from(asked.is_taken_back);
            piece.state = State::Waiting { taken_from: asked.is_taken_back.then_some(asked.source) };
            let sources: Vec<EndpointId> = self.sources.keys().copied().collect();
            sources.into_iter().for_each(|source| self.look_again(source, *index));
        }
    }
}

/// Scatters numbers, so that neighbours have nothing in common.
fn mix(number: u64) -> u64 {
    // The finalizer of splitmix64.
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
