//! Where a blob is cut: at zeros, and by one of two rules between them.
//!
//! A blob is looked at in blocks of [`BLOCK_BYTES`]. Blocks of nothing but zeros make a run, however long. What is between
//! runs is cut by the [`Rule`] that suits the blob: every block is a chunk, or FastCDC finds the ends of chunks, by a number that
//! rolls over the bytes: where enough of its bits are zero, a chunk ends. Then the same content is cut at the same places wherever
//! it lies, and a change moves only the cuts beside it.
//!
//! Two versions of an image have chunks in common only when both were cut by the same rule: a change of what is here, the
//! table and the sizes included, is a new [`ChunkIndex::FORMAT`].

use super::{Chunk, ChunkIndex, Fingerprint};
use crate::BlobHash;

/// What is looked at for zeros at once: file systems give out space in no smaller pieces.
pub const BLOCK_BYTES: usize = 4096;
/// The shortest chunk that ends by its content. The last one before a run of zeros may be shorter.
pub const CHUNK_BYTES_MIN: usize = 2 << 10;
/// The length about which such chunks are, and the one from which on they end sooner.
pub const CHUNK_BYTES_AVERAGE: usize = 8 << 10;
/// The longest chunk.
pub const CHUNK_BYTES_MAX: usize = 32 << 10;

/// Bits that end a chunk below the average length: two more than would make that the average, so that few are short.
const MASK_SHORT: u64 = !0 << (64 - CHUNK_BYTES_AVERAGE.trailing_zeros() - 2);
/// Bits that end a chunk above it: two fewer, so that few are long.
const MASK_LONG: u64 = !0 << (64 - CHUNK_BYTES_AVERAGE.trailing_zeros() + 2);
/// What each byte adds to the rolling number.
const GEAR: [u64; 256] = gear();
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Numbers that have nothing in common with their neighbours.
const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let (mut at, mut number) = (0, 0_u64);
    while at < table.len() {
        // splitmix64, from 0.
        number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = number;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = mixed ^ (mixed >> 31);
        at += 1;
    }
    table
}

/// How a blob is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Every block is a chunk: for disks as they are, in which files begin at blocks wherever they are moved to.
    Blocks,
    /// By content: for what is packed, where a change moves all that follows by any number of bytes.
    Content,
}

/// Cuts a blob whose bytes come one after the other, in pieces of any length.
#[derive(Debug)]
pub struct Cutter {
    rule: Rule,
    chunks: Vec<Chunk>,
    blob_bytes: u64,
    /// The beginning of a block.
    block: Vec<u8>,
    /// Zeros that belong to the run which is not at its end.
    zero_bytes: u64,
    /// The beginning of a chunk, how much of it was looked at, and the rolling number there.
    open: Vec<u8>,
    seen_bytes: usize,
    rolling: u64,
}

impl Cutter {
    /// At the beginning of a blob.
    pub fn new(rule: Rule) -> Self {
        let (block, open) = (Vec::with_capacity(BLOCK_BYTES), Vec::with_capacity(CHUNK_BYTES_MAX + BLOCK_BYTES));
        Self { rule, chunks: Vec::new(), blob_bytes: 0, block, zero_bytes: 0, open, seen_bytes: 0, rolling: 0 }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        self.blob_bytes = self.blob_bytes.saturating_add(bytes.len() as u64);
        if !self.block.is_empty() {
            let rest = bytes.len().min(BLOCK_BYTES - self.block.len());
            self.block.extend_from_slice(&bytes[..rest]);
            bytes = &bytes[rest..];
            if self.block.len() < BLOCK_BYTES {
                return;
            }
            let block = std::mem::take(&mut self.block);
            self.take(&block);
        }
        let mut blocks = bytes.chunks_exact(BLOCK_BYTES);
        for block in &mut blocks {
            self.take(block);
        }
        self.block.extend_from_slice(blocks.remainder());
    }

    /// How many chunks there are so far.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    /// The index of the blob, which has this hash. It may be longer than one may be.
    pub fn finish(mut self, blob: BlobHash) -> ChunkIndex {
        let block = std::mem::take(&mut self.block);
        self.take(&block);
        self.end_chunk(self.open.len());
        self.end_zeros();
        ChunkIndex { blob, blob_bytes: self.blob_bytes, chunks: self.chunks }
    }

    fn take(&mut self, block: &[u8]) {
        if block == &ZEROS[..block.len()] {
            self.end_chunk(self.open.len());
            self.zero_bytes += block.len() as u64;
            return;
        }
        self.end_zeros();
        self.open.extend_from_slice(block);
        if self.rule == Rule::Blocks {
            return self.end_chunk(block.len());
        }
        while let Some(bytes) = self.find_end() {
            self.end_chunk(bytes);
        }
    }

    /// The length of the chunk that has begun, once its end is known.
    fn find_end(&mut self) -> Option<usize> {
        let end = self.open.len().min(CHUNK_BYTES_MAX);
        // No chunk ends before, and of what was so long ago the number would know nothing: it forgets a byte after 64 others.
        let begin = self.seen_bytes.max(CHUNK_BYTES_MIN);
        for (at, byte) in self.open.iter().enumerate().take(end).skip(begin) {
            self.rolling = (self.rolling << 1).wrapping_add(GEAR[usize::from(*byte)]);
            let mask = if at < CHUNK_BYTES_AVERAGE { MASK_SHORT } else { MASK_LONG };
            if self.rolling & mask == 0 {
                return Some(at + 1);
            }
        }
        self.seen_bytes = end;
        (end == CHUNK_BYTES_MAX).then_some(end)
    }

    /// Ends the chunk that has begun after so many bytes; none ends where none has begun.
    fn end_chunk(&mut self, bytes: usize) {
        if bytes > 0 {
            let print = Some(Fingerprint::of(&self.open[..bytes]));
            self.open.drain(..bytes);
            self.chunks.push(Chunk { bytes: bytes as u64, print });
        }
        (self.seen_bytes, self.rolling) = (0, 0);
    }

    fn end_zeros(&mut self) {
        let bytes = std::mem::take(&mut self.zero_bytes);
        if bytes > 0 {
            self.chunks.push(Chunk { bytes, print: None });
        }
    }
}
