//! Decides whether a file is a Linux kernel that can be started directly.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::inspect::InspectError;
use super::qcow2::Flaw;

/// Enough for the setup header of a bzImage and the header of an ELF file.
const HEAD_BYTES: u64 = 1024;
/// A kernel has some five program headers.
const PROGRAM_HEADERS_MAX: u64 = 64;
/// Its notes are some hundred bytes.
const NOTES_BYTES_MAX: u64 = 64 * 1024;
const ELF_MACHINE_X86_64: u64 = 62;
const PT_NOTE: u64 = 4;
/// The note that names the entry point for hypervisors (PVH).
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// What an accepted kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelFormat {
    /// The usual compressed image, `vmlinuz`.
    BzImage,
    /// An uncompressed `vmlinux` with an entry point for hypervisors.
    Elf,
}

/// Inspects a kernel.
pub fn inspect_kernel(path: &Path) -> Result<KernelFormat, InspectError> {
    File::open(path)
        .map_err(Flaw::from)
        .and_then(|mut file| inspect(&mut file))
        .map_err(|flaw| InspectError::new(path, flaw))
}

pub(crate) fn inspect(file: &mut (impl Read + Seek)) -> Result<KernelFormat, Flaw> {
    let refused = |reason: &str| Err(Flaw::Refused(reason.to_owned()));
    let mut head = vec![];
    file.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    let has = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
    if has(0x202, b"HdrS") && has(510, &[0x55, 0xaa]) {
        // From version 2.12 of the boot protocol on, a flag says whether the kernel runs in 64-bit mode.
        let is_64_bit = little(&head, 0x206, 2) >= Some(0x20c) && little(&head, 0x236, 2).is_some_and(|f| f & 1 == 1);
        return if is_64_bit { Ok(KernelFormat::BzImage) } else { refused("it is not a 64-bit kernel") };
    }
    if has(0, b"\x7fELF") {
        if !has(4, &[2, 1]) || little(&head, 18, 2) != Some(ELF_MACHINE_X86_64) {
            return refused("it is not built for x86-64");
        }
        return if has_entry_note(file, &head)? {
            Ok(KernelFormat::Elf)
        } else {
            refused("it has no entry point for hypervisors (CONFIG_PVH); use its bzImage (vmlinuz) instead")
        };
    }
    if has(56, b"ARM\x64") {
        return refused("it is a kernel for ARM; guests here are x86-64");
    }
    if has(0, &[0x1f, 0x8b]) {
        return refused("it is packed with gzip; unpack it first");
    }
    refused("it is not a Linux kernel (neither bzImage nor ELF)")
}

fn has_entry_note(file: &mut (impl Read + Seek), head: &[u8]) -> Result<bool, Flaw> {
    let (Some(table), Some(entry_bytes), Some(entries)) =
        (little(head, 32, 8), little(head, 54, 2), little(head, 56, 2))
    else {
        return Ok(false);
    };
    for index in 0..entries.min(PROGRAM_HEADERS_MAX) {
        let Some(at) = table.checked_add(index * entry_bytes) else { break };
        let header = read_at(file, at, 56)?;
        let (Some(kind), Some(offset), Some(bytes)) =
            (little(&header, 0, 4), little(&header, 8, 8), little(&header, 32, 8))
        else {
            break;
        };
        if kind == PT_NOTE && notes_name_entry(&read_at(file, offset, bytes.min(NOTES_BYTES_MAX))?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn notes_name_entry(notes: &[u8]) -> bool {
    let mut at = 0;
    while let (Some(name_bytes), Some(value_bytes), Some(kind)) =
        (little(notes, at, 4), little(notes, at + 4, 4), little(notes, at + 8, 4))
    {
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && notes[at + 12..].starts_with(b"Xen\0") {
            return true;
        }
        // Both lengths have 32 bits, so this cannot overflow.
        at += 12 + (name_bytes.next_multiple_of(4) + value_bytes.next_multiple_of(4)) as usize;
    }
    false
}

/// Reads what is there of a range.
fn read_at(file: &mut (impl Read + Seek), at: u64, bytes: u64) -> Result<Vec<u8>, Flaw> {
    let mut read = vec![];
    // A seek beyond what a file can have is as good as a file that ends before it.
    if i64::try_from(at).is_ok() {
        file.seek(SeekFrom::Start(at))?;
        file.by_ref().take(bytes).read_to_end(&mut read)?;
    }
    Ok(read)
}

/// A little-endian number of at most 8 bytes.
fn little(bytes: &[u8], at: usize, count: usize) -> Option<u64> {
    let field = bytes.get(at..)?.get(..count)?;
    Some(field.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn bz_image() -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        image[0x236] = 1;
        image
    }

    fn elf() -> Vec<u8> {
        let mut image = vec![0; 200];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 62;
        image[32] = 64; // program headers
        image[54] = 56;
        image[56] = 1;
        image[64] = 4; // a note
        image[64 + 8] = 120;
        image[64 + 32] = 40;
        // Another note comes first.
        image[120..136].copy_from_slice(b"\x04\0\0\0\x04\0\0\0\x06\0\0\0Xen\0");
        image[140..156].copy_from_slice(b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
        image
    }

    fn reason(image: Vec<u8>) -> String {
        match inspect(&mut Cursor::new(image)).unwrap_err() {
            Flaw::Refused(reason) => reason,
            flaw => panic!("{flaw:?}"),
        }
    }

    #[test]
    fn kernels_are_known_by_their_headers() {
        assert_eq!(inspect(&mut Cursor::new(bz_image())).unwrap(), KernelFormat::BzImage);
        assert_eq!(inspect(&mut Cursor::new(elf())).unwrap(), KernelFormat::Elf);
        let bent = |image: Vec<u8>, at: usize, value: u8| {
            let mut image = image;
            image[at] = value;
            reason(image)
        };
        assert!(bent(bz_image(), 0x236, 0).contains("64-bit"));
        assert!(bent(elf(), 18, 183).contains("x86-64"));
        assert!(bent(elf(), 148, 0x13).contains("CONFIG_PVH"));
        assert!(reason(b"#!/bin/sh".to_vec()).contains("not a Linux kernel"));
        assert!(reason(vec![0x1f, 0x8b, 8]).contains("gzip"));
        assert!(reason(vec![]).contains("not a Linux kernel"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic(changes in prop::collection::vec((0_usize..200, any::<u8>()), 0..20), cut in 0_usize..=200) {
            let mut image = elf();
            for (at, value) in changes {
                if at >= 6 {
                    image[at] = value;
                }
            }
            image.truncate(cut);
            // Whatever it says, it says something, and soon.
            let _ = inspect(&mut Cursor::new(image));
        }
    }
}
