//! Reads qcow2 metadata without trusting a byte of it: sizes are bounded before anything is allocated, every offset is
//! checked against the end of the file, and nothing that the file refers to is opened.

use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom};

use crate::spec::DISK_BYTES_MAX;

/// `QFI` and 0xfb.
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// QEMU's own limit.
pub(crate) const BACKING_NAME_BYTES_MAX: usize = 1023;
/// QEMU's own limit on both tables that are read whole.
const TABLE_BYTES_MAX: u64 = 32 << 20;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const HEADER_V2_BYTES: usize = 72;
const HEADER_V3_BYTES: usize = 104;

const FEATURE_DIRTY: u64 = 1;
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_EXTERNAL_DATA: u64 = 1 << 2;
const FEATURE_COMPRESSION: u64 = 1 << 3;
const FEATURE_EXTENDED_L2: u64 = 1 << 4;

/// Why an image is not accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("{0}")]
    Refused(String),
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

fn refuse<T>(detail: impl Into<String>) -> Result<T, Flaw> {
    Err(Flaw::Refused(detail.into()))
}

/// The header, checked on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) virtual_bytes: u64,
    pub(crate) backing_name: Option<String>,
    cluster_bits: u32,
    l1_entries: u64,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_bytes: u64,
    incompatible: u64,
}

impl Header {
    /// Reads the header. A backing file is reported, not refused: our own overlays have one.
    pub(crate) fn read(file: &mut (impl Read + Seek)) -> Result<Header, Flaw> {
        let mut bytes = [0; HEADER_V3_BYTES];
        file.seek(SeekFrom::Start(0))?;
        let got = read_up_to(file, &mut bytes)?;
        let u32_at = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        if got < HEADER_V2_BYTES || u32_at(0) != MAGIC {
            return refuse("it is not a qcow2 image, or its header is cut off");
        }
        let version = u32_at(4);
        let incompatible = match version {
            2 => 0,
            3 if got < HEADER_V3_BYTES => return refuse("its header is cut off"),
            3 => u64_at(72),
            _ => return refuse(format!("it is qcow2 version {version}; versions 2 and 3 are known")),
        };
        let cluster_bits = u32_at(20);
        if !(9..=21).contains(&cluster_bits) {
            return refuse(format!("its cluster size 2^{cluster_bits} is not between 2^9 and 2^21"));
        }
        if u32_at(32) != 0 {
            return refuse("it is encrypted; convert it with `qemu-img convert` first");
        }
        let virtual_bytes = u64_at(24);
        if !(1..=DISK_BYTES_MAX).contains(&virtual_bytes) {
            return refuse(format!("its size of {virtual_bytes} bytes is not between 1 and {DISK_BYTES_MAX}"));
        }
        let known = FEATURE_DIRTY | FEATURE_CORRUPT | FEATURE_EXTERNAL_DATA | FEATURE_COMPRESSION | FEATURE_EXTENDED_L2;
        if incompatible & !known != 0 {
            return refuse(format!("it needs features that are not known ({:#x})", incompatible & !known));
        }
        let (backing_offset, backing_bytes) = (u64_at(8), u32_at(16) as usize);
        let backing_name = match backing_offset {
            0 => None,
            _ if !(1..=BACKING_NAME_BYTES_MAX).contains(&backing_bytes) => {
                return refuse("the name of its backing file has an impossible length");
            }
            offset => {
                let mut name = vec![0; backing_bytes];
                file.seek(SeekFrom::Start(offset))?;
                if read_up_to(file, &mut name)? < backing_bytes {
                    return refuse("the name of its backing file is cut off");
                }
                Some(String::from_utf8_lossy(&name).into_owned())
            }
        };
        Ok(Header {
            virtual_bytes,
            backing_name,
            cluster_bits,
            l1_entries: u64::from(u32_at(36)),
            l1_offset: u64_at(40),
            refcount_offset: u64_at(48),
            refcount_bytes: u64::from(u32_at(56)) << cluster_bits,
            incompatible,
        })
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn l2_entry_bytes(&self) -> u64 {
        if self.incompatible & FEATURE_EXTENDED_L2 == 0 { 8 } else { 16 }
    }
}

/// Checks that an image stands on its own and that all it consists of lies within its `file_bytes`. Returns the size of
/// the disk in it.
pub(crate) fn check(file: &mut (impl Read + Seek), file_bytes: u64) -> Result<u64, Flaw> {
    let header = Header::read(file)?;
    if let Some(name) = &header.backing_name {
        return refuse(format!(
            "it refers to a backing file ({}); flatten it with `qemu-img convert` first",
            name.escape_debug()
        ));
    }
    if header.incompatible & FEATURE_EXTERNAL_DATA != 0 {
        return refuse("it keeps its data in another file; make it whole with `qemu-img convert` first");
    }
    if header.incompatible & FEATURE_CORRUPT != 0 {
        return refuse("it is marked as corrupt; try `qemu-img check -r all`");
    }
    if header.incompatible & FEATURE_DIRTY != 0 {
        return refuse("it was not closed properly; try `qemu-img check -r all`");
    }
    let cluster = header.cluster_bytes();
    let l2_entries = cluster / header.l2_entry_bytes();
    if header.l1_entries * 8 > TABLE_BYTES_MAX || header.refcount_bytes > TABLE_BYTES_MAX {
        return refuse("one of its tables is impossibly large");
    }
    if header.l1_entries < header.virtual_bytes.div_ceil(cluster * l2_entries) {
        return refuse("its level-one table is too small for its size");
    }
    if header.refcount_bytes == 0 {
        return refuse("it has no reference counts");
    }
    let within = |what: &str, offset: u64, bytes: u64| match offset.checked_add(bytes) {
        _ if !offset.is_multiple_of(cluster) => refuse(format!("{what} at {offset} does not begin with a cluster")),
        Some(end) if end <= file_bytes => Ok(()),
        _ => refuse(format!("it is cut off: {what} at {offset} lies beyond its end at {file_bytes}")),
    };
    within("the level-one table", header.l1_offset, header.l1_entries * 8)?;
    within("the reference count table", header.refcount_offset, header.refcount_bytes)?;
    for entry in read_table(file, header.refcount_offset, header.refcount_bytes)? {
        if entry != 0 {
            within("a block of reference counts", entry & OFFSET_MASK, cluster)?;
        }
    }
    let mut seen = HashSet::new();
    for (l1_index, entry) in (0_u64..).zip(read_table(file, header.l1_offset, header.l1_entries * 8)?) {
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            continue;
        }
        within("a level-two table", offset, cluster)?;
        // Without this a file of a few clusters could make us read the same table millions of times.
        if !seen.insert(offset) {
            return refuse("two parts of the disk share one level-two table");
        }
        let table = read_table(file, offset, cluster)?;
        let step = (header.l2_entry_bytes() / 8) as usize;
        for (l2_index, entry) in (0_u64..).zip(table.into_iter().step_by(step)) {
            let at = (l1_index * l2_entries + l2_index).saturating_mul(cluster);
            check_cluster(&header, entry, at, file_bytes, &within)?;
        }
    }
    Ok(header.virtual_bytes)
}

fn check_cluster(
    header: &Header,
    entry: u64,
    at: u64,
    file_bytes: u64,
    within: &impl Fn(&str, u64, u64) -> Result<(), Flaw>,
) -> Result<(), Flaw> {
    if entry & COMPRESSED != 0 {
        // The low bits are an offset in bytes, the ones above it a number of further sectors.
        let offset_bits = 62 - (header.cluster_bits - 8);
        let offset = entry & ((1 << offset_bits) - 1);
        // The last sector may be incomplete at the very end of the file, the first may not be missing.
        if offset >= file_bytes {
            return refuse(format!("it is cut off: compressed data at {offset} lies beyond its end at {file_bytes}"));
        }
        return Ok(());
    }
    let offset = entry & OFFSET_MASK;
    if offset == 0 {
        return Ok(());
    }
    // The disk may end within a cluster, and then the file may end with it.
    let bytes = header.virtual_bytes.saturating_sub(at).min(header.cluster_bytes());
    within("data", offset, bytes)
}

fn read_table(file: &mut (impl Read + Seek), offset: u64, bytes: u64) -> Result<Vec<u64>, Flaw> {
    let mut table = vec![0; bytes as usize];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut table)?;
    let entries = table.chunks_exact(8);
    Ok(entries.map(|entry| entry.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))).collect())
}

fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::disk::overlay;
    use crate::spec::{BaseDisk, DiskFormat};

    const CLUSTER: usize = 1 << 16;

    fn put(image: &mut [u8], at: usize, value: u64) {
        image[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// An image of 1 GiB with one cluster of data, and all there is to find it: header, reference counts, both tables.
    fn image() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        overlay::create(&path, 1 << 30, None).unwrap();
        let mut image = std::fs::read(path).unwrap();
        assert_eq!(image.len(), 4 * CLUSTER);
        image.resize(6 * CLUSTER, 0);
        put(&mut image, 3 * CLUSTER, (1 << 63) | (4 * CLUSTER as u64));
        put(&mut image, 4 * CLUSTER, (1 << 63) | (5 * CLUSTER as u64));
        image
    }

    fn check_bytes(image: &[u8]) -> Result<u64, Flaw> {
        check(&mut Cursor::new(image), image.len() as u64)
    }

    fn reason(image: &[u8]) -> String {
        match check_bytes(image).unwrap_err() {
            Flaw::Refused(reason) => reason,
            flaw => panic!("{flaw:?}"),
        }
    }

    #[test]
    fn a_sound_image_is_accepted() {
        assert_eq!(check_bytes(&image()).unwrap(), 1 << 30);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bent = |at: usize, bytes: &[u8]| {
            let mut image = image();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            reason(&image)
        };
        assert!(bent(7, &[4]).contains("version 4"));
        assert!(bent(23, &[8]).contains("cluster size"));
        assert!(bent(35, &[1]).contains("encrypted"));
        assert!(bent(24, &[0; 8]).contains("size of 0"));
        assert!(bent(79, &[1]).contains("not closed properly"));
        assert!(bent(79, &[2]).contains("corrupt"));
        assert!(bent(79, &[4]).contains("another file"));
        assert!(bent(79, &[0x20]).contains("features that are not known (0x20)"));
        assert!(bent(36, &[0; 4]).contains("too small"));
        assert!(bent(36, &[0xff; 4]).contains("impossibly large"));
        assert!(bent(47, &[1]).contains("does not begin with a cluster"));
        assert!(bent(59, &[0]).contains("no reference counts"));
        // A second entry that leads to the same table.
        assert!(bent(3 * CLUSTER + 8, &(4 * CLUSTER as u64).to_be_bytes()).contains("share"));
    }

    #[test]
    fn a_backing_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        let base = BaseDisk { path: "/etc/passwd".into(), format: DiskFormat::Raw, lazy: None };
        overlay::create(&path, 4096, Some(&base)).unwrap();
        let image = std::fs::read(path).unwrap();
        assert!(reason(&image).contains("/etc/passwd"));
        let header = Header::read(&mut Cursor::new(&image)).unwrap();
        assert_eq!((header.backing_name.as_deref(), header.virtual_bytes), (Some("/etc/passwd"), 4096));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Wherever it is cut, something that it refers to is missing.
        #[test]
        fn a_cut_image_is_refused(cut in 0_usize..6 * CLUSTER) {
            let image = image();
            prop_assert!(check_bytes(&image[..cut]).is_err());
        }

        /// Arbitrary damage never makes the reader panic or read for long.
        #[test]
        fn no_bytes_make_it_panic(changes in prop::collection::vec((0_usize..112, any::<u8>()), 0..8),
                                  entries in prop::collection::vec((1_usize..5, 0_usize..64, any::<u64>()), 0..8),
                                  cut in 0_usize..=6 * CLUSTER) {
            let mut image = image();
            for (at, value) in changes {
                image[at] = value;
            }
            for (cluster, entry, value) in entries {
                put(&mut image, cluster * CLUSTER + entry * 8, value);
            }
            image.truncate(cut);
            // Whatever it says, it says something, and soon.
            let _ = check_bytes(&image);
        }
    }
}
