//! Writes an empty qcow2 image, alone or on top of a base: four clusters and nothing a tool is needed for.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::qcow2::{BACKING_NAME_BYTES_MAX, MAGIC};
use crate::spec::BaseDisk;

const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// What one level-one entry maps: a cluster of level-two entries of 8 bytes, each mapping a cluster.
const L1_ENTRY_BYTES: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
const HEADER_BYTES: u32 = 104;
const BACKING_FORMAT_EXTENSION: u32 = 0xe279_2aca;
const SECTOR_BYTES: u64 = 512;

/// Makes an empty qcow2 of `disk_bytes` (rounded up to sectors) at `path`, reading through to `base` when there is one.
/// The file appears complete or not at all.
pub(crate) fn create(path: &Path, disk_bytes: u64, base: Option<&BaseDisk>) -> io::Result<()> {
    let invalid = |detail: String| io::Error::new(io::ErrorKind::InvalidInput, detail);
    let disk_bytes = disk_bytes.div_ceil(SECTOR_BYTES) * SECTOR_BYTES;
    let l1_entries = u32::try_from(disk_bytes.div_ceil(L1_ENTRY_BYTES))
        .map_err(|_| invalid(format!("a disk of {disk_bytes} bytes is too large")))?;
    let l1_clusters = (u64::from(l1_entries) * 8).div_ceil(CLUSTER_BYTES).max(1);

    let mut header = vec![];
    let mut put32 = |value: u32| header.extend_from_slice(&value.to_be_bytes());
    put32(MAGIC);
    put32(3);
    let backing_at = header.len();
    header.extend_from_slice(&[0; 12]);
    header.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    header.extend_from_slice(&disk_bytes.to_be_bytes());
    header.extend_from_slice(&0_u32.to_be_bytes()); // no encryption
    header.extend_from_slice(&l1_entries.to_be_bytes());
    header.extend_from_slice(&(3 * CLUSTER_BYTES).to_be_bytes()); // level-one table
    header.extend_from_slice(&CLUSTER_BYTES.to_be_bytes()); // reference count table
    header.extend_from_slice(&1_u32.to_be_bytes()); // of one cluster
    header.extend_from_slice(&[0; 12]); // no snapshots
    header.extend_from_slice(&[0; 24]); // no feature that needs a name
    header.extend_from_slice(&4_u32.to_be_bytes()); // reference counts of 16 bits
    header.extend_from_slice(&HEADER_BYTES.to_be_bytes());
    if let Some(base) = base {
        let format = base.format.qemu_name().as_bytes();
        header.extend_from_slice(&BACKING_FORMAT_EXTENSION.to_be_bytes());
        header.extend_from_slice(&(format.len() as u32).to_be_bytes());
        header.extend_from_slice(format);
        header.resize(header.len().next_multiple_of(8), 0);
    }
    header.extend_from_slice(&[0; 8]); // end of extensions
    if let Some(base) = base {
        let name = base.path.as_os_str().as_encoded_bytes();
        if name.len() > BACKING_NAME_BYTES_MAX {
            return Err(invalid(format!("the path of the base has more than {BACKING_NAME_BYTES_MAX} bytes")));
        }
        let (offset, bytes) = (header.len() as u64, name.len() as u32);
        header[backing_at..backing_at + 8].copy_from_slice(&offset.to_be_bytes());
        header[backing_at + 8..backing_at + 12].copy_from_slice(&bytes.to_be_bytes());
        header.extend_from_slice(name);
    }

    let mut image = vec![0; (3 * CLUSTER_BYTES) as usize];
    image[..header.len()].copy_from_slice(&header);
    // The reference count table points to its only block, which counts each cluster of this file once.
    image[CLUSTER_BYTES as usize..][..8].copy_from_slice(&(2 * CLUSTER_BYTES).to_be_bytes());
    for cluster in 0..(3 + l1_clusters) as usize {
        image[2 * CLUSTER_BYTES as usize + cluster * 2..][..2].copy_from_slice(&1_u16.to_be_bytes());
    }

    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&image)?;
    file.set_len((3 + l1_clusters) * CLUSTER_BYTES)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
