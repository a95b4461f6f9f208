//! Chunk indexes: what a disk consists of, so that a node which has most of it already fetches only the rest.
//!
//! An index lists the chunks of one blob, in order: how long each is, and a fingerprint of its content, or that it is nothing but
//! zeros. Chunks of two blobs with the same length and fingerprint are taken for the same, and looked at before they are used:
//! what is made of them has to have the hash of the blob. `docs/images.md` has the format.

mod cut;

use std::collections::BTreeSet;

pub use cut::{BLOCK_BYTES, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Cutter, Rule};

use crate::BlobHash;

/// The most chunks of an index: 24 GiB of content in blocks. A disk with more has none, and is fetched as a whole: a node that compares
/// has indexes in memory.
pub const CHUNKS_MAX: usize = 6 << 20;
/// The longest encoding of an index, in bytes: what so many chunks take.
pub const INDEX_BYTES_MAX: u64 = 64 << 20;

/// The first bytes of the BLAKE3 hash of a chunk. Enough that two chunks of all disks in the world hardly have the same by chance,
/// and nothing is trusted for having it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 8]);

impl Fingerprint {
    /// That of some content.
    pub fn of(content: &[u8]) -> Self {
        let hash = blake3::hash(content);
        let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
        Self([a, b, c, d, e, f, g, h])
    }
}

/// A chunk of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chunk {
    /// Its length in bytes.
    pub bytes: u64,
    /// The fingerprint of its content; none when it is nothing but zeros.
    pub print: Option<Fingerprint>,
}

/// The chunks of a blob, in order and without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkIndex {
    blob: BlobHash,
    blob_bytes: u64,
    chunks: Vec<Chunk>,
}

/// Bytes are no chunk index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// They begin otherwise than an index of this version.
    #[error("it has format {0}, and this version reads {format}", format = ChunkIndex::FORMAT)]
    Format(u8),
    /// They end too soon.
    #[error("it is cut off")]
    CutOff,
    /// There are too many.
    #[error("it is longer than {INDEX_BYTES_MAX} bytes or has more than {CHUNKS_MAX} chunks")]
    TooLong,
    /// A number is not written in the shortest way, or is too large.
    #[error("a number in it is not written as it should be")]
    Number,
    /// A chunk is empty, too long, or a run of zeros beside another.
    #[error("the chunk at byte {0} cannot be one")]
    Chunk(u64),
    /// The chunks are longer than the blob.
    #[error("its chunks are longer than its blob of {0} bytes")]
    Length(u64),
}

/// What a blob has in common with others, in bytes. The four make up the blob.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Zeros, which are never sent.
    pub zero_bytes: u64,
    /// What one of the others has.
    pub known_bytes: u64,
    /// What only this one has.
    pub fresh_bytes: u64,
    /// What was in it before, once more.
    pub repeated_bytes: u64,
}

impl ChunkIndex {
    /// The format that is written and read, which says also by which rule blobs are cut.
    pub const FORMAT: u8 = 1;

    /// The blob that it is about.
    pub fn blob(&self) -> BlobHash {
        self.blob
    }

    /// The length of that blob.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// The chunks with the places where they begin.
    pub fn chunks(&self) -> impl Iterator<Item = (u64, Chunk)> + '_ {
        self.chunks.iter().scan(0_u64, |end, chunk| {
            let start = *end;
            *end += chunk.bytes;
            Some((start, *chunk))
        })
    }

    /// Whether it may be kept and sent.
    pub fn is_short_enough(&self) -> bool {
        self.chunks.len() <= CHUNKS_MAX
    }

    /// How much of the blob others have as well.
    pub fn compare(&self, others: &[Self]) -> Compared {
        let known: BTreeSet<Chunk> = others.iter().flat_map(|other| other.chunks.iter().copied()).collect();
        let mut seen = BTreeSet::new();
        let mut compared = Compared::default();
        for chunk in &self.chunks {
            let bytes = match chunk.print {
                None => &mut compared.zero_bytes,
                Some(_) if known.contains(chunk) => &mut compared.known_bytes,
                Some(_) if seen.insert(*chunk) => &mut compared.fresh_bytes,
                Some(_) => &mut compared.repeated_bytes,
            };
            *bytes += chunk.bytes;
        }
        compared
    }

    /// The index in bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoded = vec![Self::FORMAT];
        encoded.extend_from_slice(&self.blob.0);
        write_number(&mut encoded, self.blob_bytes);
        for chunk in &self.chunks {
            // No chunk is half as long as a number can say: the sum of all is a number as well.
            write_number(&mut encoded, chunk.bytes << 1 | u64::from(chunk.print.is_none()));
            if let Some(print) = chunk.print {
                encoded.extend_from_slice(&print.0);
            }
        }
        encoded
    }

    /// Reads an index that came from anywhere.
    ///
    /// # Errors
    /// When the bytes are none of this format, or say what cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        if bytes.len() as u64 > INDEX_BYTES_MAX {
            return Err(IndexError::TooLong);
        }
        let (format, mut rest) = bytes.split_first().ok_or(IndexError::CutOff)?;
        if *format != Self::FORMAT {
            return Err(IndexError::Format(*format));
        }
        let blob = BlobHash(take(&mut rest)?);
        let blob_bytes = read_number(&mut rest)?;
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut end = 0_u64;
        while end < blob_bytes {
            if chunks.len() >= CHUNKS_MAX {
                return Err(IndexError::TooLong);
            }
            let number = read_number(&mut rest)?;
            let (bytes, is_zero) = (number >> 1, number & 1 == 1);
            let print = if is_zero { None } else { Some(Fingerprint(take(&mut rest)?)) };
            let is_second_run = is_zero && chunks.last().is_some_and(|last| last.print.is_none());
            let is_too_long = !is_zero && bytes > CHUNK_BYTES_MAX as u64;
            if bytes == 0 || is_second_run || is_too_long {
                return Err(IndexError::Chunk(end));
            }
            end = end.checked_add(bytes).ok_or(IndexError::Length(blob_bytes))?;
            chunks.push(Chunk { bytes, print });
        }
        if end > blob_bytes || !rest.is_empty() {
            return Err(IndexError::Length(blob_bytes));
        }
        Ok(Self { blob, blob_bytes, chunks })
    }
}

/// The next bytes of a fixed number.
fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], IndexError> {
    let (taken, left) = rest.split_first_chunk().ok_or(IndexError::CutOff)?;
    *rest = left;
    Ok(*taken)
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn write_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    to.push(number.to_le_bytes()[0]);
}

fn read_number(rest: &mut &[u8]) -> Result<u64, IndexError> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let [byte] = take(rest)?;
        let bits = u64::from(byte & 0x7f);
        // A last byte of 0 would say nothing, and bits beyond the highest would be lost.
        if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
            return Err(IndexError::Number);
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(IndexError::Number)
}
