//! Images: a name, a manifest, and the blobs that the manifest lists.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::vm::name_type;
use crate::{BlobHash, ImageId, NodeId, UnixMs};

name_type!(
    /// The name of an image: lower-case letters, digits, `.`, `_` and `-`, at most 63.
    ImageName, "an image name", 63, |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
);

/// One blob of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Part {
    /// The blob's hash.
    pub hash: BlobHash,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The format of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// A disk of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct DiskPart {
    /// The blob that holds it.
    pub part: Part,
    /// How the blob is to be read.
    pub format: DiskFormat,
    /// The size of the disk that the guest sees, in bytes.
    pub virtual_bytes: u64,
    /// The blob with the [index of its chunks](crate::chunks::ChunkIndex); none when the disk is too large for one.
    pub chunks: Option<Part>,
}

/// What an image is made of. Its hash is the image's id, so a manifest never changes.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Manifest {
    /// A disk that the guest's firmware boots.
    Disk(DiskPart),
    /// A Linux kernel started directly.
    Kernel {
        /// The kernel.
        kernel: Part,
        /// The initial ramdisk, if any.
        initrd: Option<Part>,
        /// The root disk, if any.
        root: Option<DiskPart>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// The kind of an image, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageKind {
    /// See [`Manifest::Disk`].
    Disk,
    /// See [`Manifest::Kernel`].
    Kernel,
}

impl Manifest {
    /// The longest kernel command line: Linux itself stops at 2048 bytes on x86.
    pub const CMDLINE_BYTES_MAX: usize = 2048;

    /// The kind of the image.
    pub fn kind(&self) -> ImageKind {
        match self {
            Self::Disk(_) => ImageKind::Disk,
            Self::Kernel { .. } => ImageKind::Kernel,
        }
    }

    /// The blobs, in the order in which they are worth fetching: first what says how little of the disk has to be fetched, then
    /// what a boot reads first.
    pub fn parts(&self) -> Vec<Part> {
        let (kernel, initrd) = match self {
            Self::Disk(_) => (None, None),
            Self::Kernel { kernel, initrd, .. } => (Some(*kernel), *initrd),
        };
        let disk = self.disk();
        let chunks = disk.and_then(|disk| disk.chunks);
        [chunks, kernel, initrd, disk.map(|disk| disk.part)].into_iter().flatten().collect()
    }

    /// The disk that a vm's own disk is laid over, if the image has one.
    pub fn disk(&self) -> Option<DiskPart> {
        match self {
            Self::Disk(disk) => Some(*disk),
            Self::Kernel { root, .. } => *root,
        }
    }

    /// The length of all parts in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts().iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// The image's id: the BLAKE3 hash of the manifest's encoding.
    pub fn id(&self) -> ImageId {
        let encoded = postcard::to_stdvec(self).expect("a manifest is plain data, which always encodes");
        ImageId(*blake3::hash(&encoded).as_bytes())
    }
}

/// An image in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The hash of the manifest.
    pub id: ImageId,
    /// The name users give to `--image`.
    pub name: ImageName,
    /// What it is made of.
    pub manifest: Manifest,
    /// When it was added.
    pub added_at: UnixMs,
    /// Nodes that reported a whole, verified copy.
    pub holders: BTreeSet<NodeId>,
    /// Nodes that the scheduler told to fetch a copy and that have not reported one yet.
    pub wanted: BTreeSet<NodeId>,
}
