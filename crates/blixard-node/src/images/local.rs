//! What of a blob is on this host though the blob is not: chunks of other images, and zeros.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use blixard_core::Part;
use blixard_core::chunks::{Chunk, ChunkIndex, Fingerprint};
use iroh_blobs::protocol::ChunkRanges;

use super::tree::{GROUP_BYTES, union};

/// A whole blob of this node with the index of its chunks.
#[derive(Debug)]
pub(super) struct Indexed {
    pub(super) path: PathBuf,
    pub(super) index: ChunkIndex,
}

/// Where bytes of a blob are found.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// Nowhere, and they are zeros.
    Zeros,
    /// In a file, by its place in the list of files.
    File { file: usize, offset: u64, print: Fingerprint },
}

/// A chunk of the blob that is found on this host.
#[derive(Debug, Clone, Copy)]
struct Found {
    start: u64,
    bytes: u64,
    origin: Origin,
}

impl Found {
    fn range(&self) -> Range<u64> {
        self.start..self.start + self.bytes
    }
}

/// What of a blob is found on this host, as far as indexes say. Whether it is so shows when it is read.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) blob: Part,
    found: Vec<Found>,
    files: Vec<PathBuf>,
    /// Groups of the blob that are found as a whole, and that have neither been taken nor given up.
    pub(super) ranges: ChunkRanges,
}

impl Local {
    /// Looks for the chunks of a blob in others.
    pub(super) fn find(blob: Part, index: &ChunkIndex, others: Vec<Indexed>) -> Self {
        let mut places: HashMap<Chunk, Option<(usize, u64)>> = index.chunks().map(|(_, chunk)| (chunk, None)).collect();
        for (file, other) in others.iter().enumerate() {
            for (offset, chunk) in other.index.chunks() {
                if let Some(place) = places.get_mut(&chunk) {
                    place.get_or_insert((file, offset));
                }
            }
        }
        let origin = |chunk: &Chunk| match (chunk.print, places.get(chunk)) {
            (None, _) => Some(Origin::Zeros),
            (Some(print), Some(Some((file, offset)))) => Some(Origin::File { file: *file, offset: *offset, print }),
            _ => None,
        };
        let chunks = index.chunks().filter_map(|(start, chunk)| Some((start, chunk.bytes, origin(&chunk)?)));
        let found: Vec<Found> = chunks.map(|(start, bytes, origin)| Found { start, bytes, origin }).collect();
        let ranges = union(&groups(&found, blob.bytes));
        Self { blob, found, files: others.into_iter().map(|other| other.path).collect(), ranges }
    }

    /// How many bytes of the blob are zeros that this knows of.
    pub(super) fn zero_bytes(&self) -> u64 {
        let zeros = self.found.iter().filter(|found| matches!(found.origin, Origin::Zeros));
        zeros.map(|found| found.bytes).fold(0, u64::saturating_add)
    }

    /// The same, but for some ranges, which are to be fetched.
    pub(super) fn without(mut self, ranges: &ChunkRanges) -> Self {
        self.ranges = &self.ranges - ranges;
        self
    }

    pub(super) fn reader(&self) -> Reader<'_> {
        Reader { local: self, files: self.files.iter().map(|_| None).collect(), buffer: Vec::new() }
    }
}

/// The groups that chunks cover as a whole, as ranges of bytes.
fn groups(found: &[Found], blob_bytes: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for chunk in found {
        match runs.last_mut() {
            Some(last) if last.end == chunk.start => last.end += chunk.bytes,
            _ => runs.push(chunk.range()),
        }
    }
    let inner = runs.into_iter().map(|run| {
        let is_end = run.end == blob_bytes;
        let end = if is_end { run.end } else { run.end / GROUP_BYTES * GROUP_BYTES };
        run.start.next_multiple_of(GROUP_BYTES)..end
    });
    inner.filter(|run| run.start < run.end).collect()
}

/// Bytes that were found, and which of them are zeros that stand nowhere.
#[derive(Debug)]
pub(super) struct Bytes {
    pub(super) content: Vec<u8>,
    pub(super) zeros: Vec<Range<u64>>,
}

/// Reads what was found. It blocks.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    local: &'a Local,
    files: Vec<Option<File>>,
    buffer: Vec<u8>,
}

impl Reader<'_> {
    /// The bytes of a range that was found as a whole. Chunks that are not what they should be are added to `bad` instead.
    pub(super) fn read(&mut self, range: Range<u64>, bad: &mut Vec<Range<u64>>) -> Option<Bytes> {
        let mut content = vec![0; usize::try_from(range.end - range.start).ok()?];
        let (mut zeros, mut end, bad_before) = (Vec::new(), range.start, bad.len());
        let local = self.local;
        let first = local.found.partition_point(|found| found.range().end <= range.start);
        for found in local.found[first..].iter().take_while(|found| found.start < range.end) {
            let part = found.start.max(range.start)..found.range().end.min(range.end);
            if part.start != end {
                break;
            }
            end = part.end;
            let Origin::File { file, offset, print } = found.origin else {
                zeros.push(part);
                continue;
            };
            let Some(chunk) = self.chunk(file, offset, found.bytes, print) else {
                tracing::debug!(blob = %local.blob.hash.short(), at = found.start, "a chunk on this disk is not what it was");
                bad.push(found.range());
                continue;
            };
            let from = usize::try_from(part.start - found.start).ok()?;
            let to = usize::try_from(part.start - range.start).ok()?;
            let bytes = usize::try_from(part.end - part.start).ok()?;
            content[to..to + bytes].copy_from_slice(&chunk[from..from + bytes]);
        }
        if end != range.end {
            bad.push(range);
        }
        (bad.len() == bad_before).then_some(Bytes { content, zeros })
    }

    /// A chunk of a file, if it is what its index says.
    fn chunk(&mut self, file: usize, offset: u64, bytes: u64, print: Fingerprint) -> Option<&[u8]> {
        self.buffer.resize(usize::try_from(bytes).ok()?, 0);
        let opened = match &mut self.files[file] {
            Some(opened) => opened,
            closed => closed.insert(File::open(&self.local.files[file]).ok()?),
        };
        opened.read_exact_at(&mut self.buffer, offset).ok()?;
        (Fingerprint::of(&self.buffer) == print).then_some(&self.buffer[..])
    }
}
