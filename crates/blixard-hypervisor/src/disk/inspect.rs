//! Decides whether a disk image from elsewhere may be used. Our own reader looks first and opens nothing that the image
//! refers to; only what it accepts is shown to `qemu-img`, which has seen more images than we have.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::qcow2::{self, Flaw};
use super::search_path;
use crate::process;
use crate::spec::DiskFormat;

/// `qemu-img check` reads all metadata: some seconds for a terabyte on a slow disk.
const QEMU_IMG_TIMEOUT: Duration = Duration::from_secs(120);
/// What is read of a raw image to recognise it: btrfs has its mark furthest behind, at 64 KiB.
const HEAD_BYTES: u64 = 68 * 1024;
const SECTOR_BYTES: u64 = 512;

/// What an accepted disk image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// How it is laid out.
    pub format: DiskFormat,
    /// Size of the disk in it, in bytes.
    pub virtual_bytes: u64,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Whether `qemu-img` was there to confirm it; always false for raw images, which have nothing to check.
    pub is_confirmed: bool,
}

/// Why a disk image or kernel is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It is not something that may be used here.
    #[error("{} cannot be used: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// It could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

impl InspectError {
    pub(super) fn new(path: &Path, flaw: Flaw) -> InspectError {
        let path = path.to_owned();
        match flaw {
            Flaw::Refused(reason) => InspectError::Refused { path, reason },
            Flaw::Read(source) => InspectError::Read { path, source },
        }
    }
}

/// Formats that are recognised so that the refusal can name them: where the mark is, the mark, the name.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"KDMV", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image"),
    (0, b"QED\0", "a QED image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"LUKS\xba\xbe", "encrypted with LUKS"),
];
const PACKED: &[(&[u8], &str)] = &[
    (&[0x1f, 0x8b], "gzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
];
/// Marks of what a raw disk may begin with: a boot sector (also that of a partition table), or a file system.
const CONTENTS: &[(usize, &[u8])] = &[
    (510, &[0x55, 0xaa]),
    (1080, &[0x53, 0xef]),             // ext2, ext3, ext4
    (0, b"XFSB"),                      // xfs
    (65_600, b"_BHRfS_M"),             // btrfs
    (0, b"hsqs"),                      // squashfs
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0]), // erofs
    (32_769, b"CD001"),                // ISO 9660
];

/// Inspects a disk image. `qemu_img` is the tool for the second opinion, searched in `PATH` when it has no slash; an
/// image is not refused because the tool is missing.
pub fn inspect_disk(path: &Path, qemu_img: &Path) -> Result<DiskFacts, InspectError> {
    let facts = inspect(path).map_err(|flaw| InspectError::new(path, flaw))?;
    let Some(tool) = (facts.format == DiskFormat::Qcow2).then(|| search_path(qemu_img)).flatten() else {
        return Ok(facts);
    };
    confirm(path, &tool, &facts).map_err(|flaw| InspectError::new(path, flaw))?;
    Ok(DiskFacts { is_confirmed: true, ..facts })
}

fn inspect(path: &Path) -> Result<DiskFacts, Flaw> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(Flaw::Refused("it is not a regular file".into()));
    }
    inspect_content(&mut file, meta.len())
}

/// Inspects what a file of this length consists of.
pub(crate) fn inspect_content(file: &mut (impl Read + Seek), file_bytes: u64) -> Result<DiskFacts, Flaw> {
    let refused = |reason: String| Err(Flaw::Refused(reason));
    let mut head = vec![];
    file.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    let has = |at: usize, mark: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(mark));
    if has(0, &qcow2::MAGIC.to_be_bytes()) {
        file.seek(SeekFrom::Start(0))?;
        let virtual_bytes = qcow2::check(file, file_bytes)?;
        return Ok(DiskFacts { format: DiskFormat::Qcow2, virtual_bytes, file_bytes, is_confirmed: false });
    }
    if let Some((.., name)) = FOREIGN.iter().find(|(at, mark, _)| has(*at, mark)) {
        return refused(format!("it is {name}; make a qcow2 of it with `qemu-img convert -O qcow2`"));
    }
    if let Some((_, name)) = PACKED.iter().find(|(mark, _)| has(0, mark)) {
        return refused(format!("it is packed with {name}; unpack it first"));
    }
    if !CONTENTS.iter().any(|(at, mark)| has(*at, mark)) {
        return refused("it is neither a qcow2 nor a raw disk with a boot sector or a file system".into());
    }
    if !file_bytes.is_multiple_of(SECTOR_BYTES) {
        return refused(format!(
            "it is a raw disk of {file_bytes} bytes, which is no number of sectors: is it complete?"
        ));
    }
    Ok(DiskFacts { format: DiskFormat::Raw, virtual_bytes: file_bytes, file_bytes, is_confirmed: false })
}

fn confirm(path: &Path, tool: &Path, facts: &DiskFacts) -> Result<(), Flaw> {
    // An absolute path cannot be taken for an option or a network address.
    let path = path.canonicalize()?;
    let run = |verb: &str| {
        let mut command: Vec<OsString> = vec![tool.into()];
        // The format is named, or the tool would guess it anew; the image may be in use by a vm.
        command.extend([verb, "-U", "-f", facts.format.qemu_name(), "--output=json"].map(OsString::from));
        command.push(path.clone().into());
        process::run_tool(&command, QEMU_IMG_TIMEOUT)
    };
    let refused = |what: &str, words: &str| Err(Flaw::Refused(format!("qemu-img {what}: {words}")));
    let info = run("info")?;
    if !info.status.success() {
        return refused("cannot read it", &info.stderr);
    }
    let said: Value = serde_json::from_slice(&info.stdout).map_err(io::Error::from)?;
    if said["virtual-size"].as_u64() != Some(facts.virtual_bytes) {
        return refused("sees another size in it", &said["virtual-size"].to_string());
    }
    for key in ["/backing-filename", "/full-backing-filename", "/format-specific/data/data-file"] {
        if let Some(other) = said.pointer(key) {
            return refused("says that it refers to another file", &other.to_string());
        }
    }
    let check = run("check")?;
    // Code 3 means that some space is lost and no data.
    if !matches!(check.status.code(), Some(0 | 3)) {
        return refused("finds it damaged", &check.stderr);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn reason(path: &Path) -> String {
        match inspect_disk(path, Path::new("no-such-tool")).unwrap_err() {
            InspectError::Refused { reason, .. } => reason,
            error => panic!("{error:?}"),
        }
    }

    #[test]
    fn foreign_and_packed_formats_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for (at, mark, name) in FOREIGN {
            let mut bytes = vec![0; 4096];
            bytes[*at..at + mark.len()].copy_from_slice(mark);
            std::fs::write(&path, bytes).unwrap();
            assert!(reason(&path).contains(name), "{name}");
        }
        for (mark, name) in PACKED {
            std::fs::write(&path, mark).unwrap();
            assert!(reason(&path).contains(name), "{name}");
        }
        std::fs::write(&path, "just words").unwrap();
        assert!(reason(&path).contains("neither"));
        std::fs::write(&path, "").unwrap();
        assert!(reason(&path).contains("neither"));
        assert!(reason(dir.path()).contains("regular file"));
    }

    #[test]
    fn raw_disks_are_whole_sectors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for (at, mark) in CONTENTS {
            let mut bytes = vec![0; 128 * 1024];
            bytes[*at..at + mark.len()].copy_from_slice(mark);
            std::fs::write(&path, &bytes).unwrap();
            let facts = inspect_disk(&path, Path::new("qemu-img")).unwrap();
            assert_eq!((facts.format, facts.virtual_bytes), (DiskFormat::Raw, 128 * 1024));
            bytes.pop();
            std::fs::write(&path, &bytes).unwrap();
            assert!(reason(&path).contains("is it complete?"));
        }
    }

    #[test]
    fn a_second_opinion_is_asked_for_and_heeded() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (image, tool) = (dir.path().join("image"), dir.path().join("tool"));
        super::super::overlay::create(&image, 1 << 20, None).unwrap();
        let answer = |script: &str| {
            std::fs::write(&tool, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
            inspect_disk(&image, &tool)
        };
        assert!(answer("echo '{\"virtual-size\": 1048576}'").unwrap().is_confirmed);
        assert!(answer("echo '{\"virtual-size\": 1}'").unwrap_err().to_string().contains("another size"));
        let refers = answer("echo '{\"virtual-size\": 1048576, \"backing-filename\": \"/etc/passwd\"}'").unwrap_err();
        assert!(refers.to_string().contains("another file"), "{refers}");
        let damaged = answer("echo '{\"virtual-size\": 1048576}'; test $1 = info || { echo bad >&2; exit 2; }");
        assert!(damaged.unwrap_err().to_string().contains("damaged: bad"));
        assert!(!inspect_disk(&image, Path::new("no-such-tool")).unwrap().is_confirmed);
    }
}
