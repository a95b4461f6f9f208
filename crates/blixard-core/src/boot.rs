//! What a boot reads of an image's disk: seen where one was read as it came, for the nodes that boot the image after that.
//!
//! A record says what is worth fetching first and nothing else: what it names is fetched and verified like any other part of the
//! image, so a wrong one costs time and never correctness. There is at most one for an image, and it goes with the image.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::{self, BOOT_BYTES_MAX, BOOT_RANGES_MAX};
use crate::{Image, ImageId, Rejection, State};

/// How much more of a boot the second of two that were cut short must have seen to take the place of the first. Each record is a
/// command, and there are to be few of them.
const CUT_GAIN: u64 = 2;

/// Adjacent bytes of a disk's blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

impl ByteRange {
    /// The length in bytes.
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// What a boot read of the blob of its image's disk.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct BootRecord {
    /// What was read, in the order in which it was first read; no two of them overlap.
    pub ranges: Vec<ByteRange>,
    /// Whether the boot was seen to its end. One that was not goes when a better one is made.
    pub is_whole: bool,
}

impl BootRecord {
    /// The length of all ranges in bytes.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.bytes()))
    }

    /// Whether it is to take the place of another one: the first whole one stays for good.
    fn is_better_than(&self, other: &Self) -> bool {
        match (self.is_whole, other.is_whole) {
            (_, true) => false,
            (true, false) => true,
            (false, false) => self.bytes() >= other.bytes().saturating_mul(CUT_GAIN),
        }
    }
}

impl State {
    /// Whether the cluster has a use for what was seen of a boot of this image.
    pub fn wants_boot(&self, image: ImageId, record: &BootRecord) -> bool {
        let fits = self.images.get(&image).is_some_and(|image| check(record, image).is_ok());
        fits && self.boots.get(&image).is_none_or(|known| record.is_better_than(known))
    }
}

/// Refuses a record that cannot be one of this image.
pub(crate) fn check(record: &BootRecord, image: &Image) -> Result<(), Rejection> {
    let Some(disk) = image.manifest.disk() else {
        return limits::invalid(format!("image {} has no disk that a boot could have read", image.name));
    };
    if record.ranges.is_empty() {
        return limits::invalid("a boot that read nothing is no record".into());
    }
    limits::at_most("ranges that a boot read", record.ranges.len(), BOOT_RANGES_MAX)?;
    let mut sorted = record.ranges.clone();
    sorted.sort_by_key(|range| range.start);
    let mut last_end = 0;
    for ByteRange { start, end } in sorted {
        if start < last_end || start >= end || end > disk.part.bytes {
            return limits::invalid(format!(
                "a boot cannot have read bytes {start} to {end} of a disk of {} bytes, or was said to twice",
                disk.part.bytes
            ));
        }
        last_end = end;
    }
    if record.bytes() > BOOT_BYTES_MAX {
        return limits::invalid(format!(
            "a boot that read {} bytes is not recorded; at most {BOOT_BYTES_MAX} are",
            record.bytes()
        ));
    }
    Ok(())
}
