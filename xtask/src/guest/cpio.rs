//! Writes an initramfs in cpio's "newc" format, the one that the kernel unpacks.
//!
//! Everything belongs to root and carries time zero, so that the same contents give the same bytes on every machine
//! and no privilege is needed to make a device node.

use anyhow::{Result, bail};
use std::collections::BTreeMap;

/// What a path in the archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A folder.
    Folder,
    /// A file with its permission bits and contents.
    File { mode: u32, contents: Vec<u8> },
    /// A symbolic link with its target.
    Link(String),
    /// A character device with its major and minor numbers.
    Device { major: u32, minor: u32 },
}

/// The tree of an archive, by path without a leading slash. The order of the map puts folders before their contents.
pub(super) type Tree = BTreeMap<String, Entry>;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_600;
/// Names the end of an archive.
const TRAILER: &str = "TRAILER!!!";

/// The archive of a tree. Refuses a tree in which something lies in a folder that the tree does not have: the kernel
/// would leave such a file out without a word.
pub(super) fn archive(tree: &Tree) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (inode, (path, entry)) in (1_u32..).zip(tree) {
        if let Some((folder, _)) = path.rsplit_once('/')
            && tree.get(folder) != Some(&Entry::Folder)
        {
            bail!("/{path} lies in /{folder}, which is not a folder of the initramfs");
        }
        let (mode, contents, device) = match entry {
            Entry::Folder => (FOLDER, &[][..], (0, 0)),
            Entry::File { mode, contents } => (FILE | mode, contents.as_slice(), (0, 0)),
            Entry::Link(target) => (LINK, target.as_bytes(), (0, 0)),
            Entry::Device { major, minor } => (DEVICE, &[][..], (*major, *minor)),
        };
        write_entry(&mut bytes, inode, path, mode, contents, device)?;
    }
    write_entry(&mut bytes, 0, TRAILER, 0, &[], (0, 0))?;
    Ok(bytes)
}

fn write_entry(
    bytes: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    contents: &[u8],
    (major, minor): (u32, u32),
) -> Result<()> {
    let Ok(size) = u32::try_from(contents.len()) else { bail!("/{path} has 4 GiB or more, which newc cannot hold") };
    let name_bytes = u32::try_from(path.len() + 1)?;
    // inode, mode, uid, gid, links, mtime, size, device of the file system (two), device node (two), name, checksum
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_bytes, 0];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(contents);
    pad(bytes);
    Ok(())
}

/// Headers and contents begin at multiples of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_entry_has_the_layout_that_the_kernel_reads() {
        let file = Entry::File { mode: 0o755, contents: b"hello".to_vec() };
        let bytes = archive(&Tree::from([("init".to_owned(), file)])).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000081ED0000000000000000000000010000000000000005"), "{text}");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert!(text[124..].starts_with("070701") && text.contains("TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn a_file_without_its_folder_is_refused() {
        let tree = Tree::from([("bin/sh".to_owned(), Entry::Link("busybox".to_owned()))]);
        let error = archive(&tree).unwrap_err().to_string();
        assert!(error.contains("/bin/sh"), "{error}");
    }

    #[test]
    fn folders_come_before_what_they_hold() {
        let tree = Tree::from([
            ("dev/console".to_owned(), Entry::Device { major: 5, minor: 1 }),
            ("dev".to_owned(), Entry::Folder),
        ]);
        let bytes = archive(&tree).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.find("dev\0").unwrap() < text.find("dev/console\0").unwrap());
        assert!(text.contains("0000000500000001"), "the device's numbers: {text}");
    }
}
