//! A file or a folder of this host, looked through so that it can be shared.

use std::collections::VecDeque;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use blixard_core::Part;
use bytes::Bytes;
use futures::Stream;
use tokio::io::AsyncReadExt;

use super::listing::{ENTRIES_MAX, Entry, Kind, Listing, ListingError, MODE_BITS, shown};

/// Read at once from a file: large enough that reading costs nothing beside sending.
const CHUNK_BYTES: usize = 256 << 10;

/// Why something cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or a folder cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something else than files, folders and links.
    #[error("{} is {what}: only files, folders and symbolic links can be shared", path.display())]
    Strange {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A link leads, or could lead, to somewhere else.
    #[error(
        "{} is a link to {to}, which may be outside of what is shared: a link is kept only if it goes up at its beginning alone, \
         and no further than to the folder that is shared; remove it, or put there what it leads to",
        path.display()
    )]
    Link {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        to: String,
    },
    /// There is too much, or a name that cannot be.
    #[error("{0}")]
    Listing(#[from] ListingError),
}

/// What is to be shared: its listing but for the hash of the content, and where that is.
#[derive(Debug)]
pub struct Packed {
    listing: Listing,
    bytes: u64,
    files: VecDeque<(PathBuf, u64)>,
}

fn strange(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "neither a file nor a folder"
    }
}

impl Packed {
    /// Looks through a file or a folder, under the name that it is to have where it is fetched. A link is followed when it is the
    /// path itself, and is kept as a link when it is in the folder.
    ///
    /// # Errors
    /// When something cannot be read or cannot be shared: nothing is left out in silence.
    pub fn look(path: &Path, name: &str) -> Result<Self, PackError> {
        let read = |path: &Path| {
            let path = path.to_owned();
            |source| PackError::Read { path, source }
        };
        let mut packed = Self {
            listing: Listing { name: name.as_bytes().to_vec(), entries: Vec::new(), content: None },
            bytes: 0,
            files: VecDeque::new(),
        };
        let root = fs::metadata(path).map_err(read(path))?;
        // What is still to be looked at, the next of it last.
        let mut rest = vec![(path.to_owned(), Vec::new(), root)];
        while let Some((path, below, meta)) = rest.pop() {
            if packed.listing.entries.len() == ENTRIES_MAX {
                return Err(ListingError::TooLong.into());
            }
            let mode = meta.mode() & MODE_BITS;
            let (mode, kind) = if meta.is_dir() {
                let mut inner = Vec::new();
                for entry in fs::read_dir(&path).map_err(read(&path))? {
                    let name = entry.map_err(read(&path))?.file_name();
                    let inner_path = path.join(&name);
                    let meta = fs::symlink_metadata(&inner_path).map_err(read(&inner_path))?;
                    let mut inner_below: Vec<u8> = below.clone();
                    if !inner_below.is_empty() {
                        inner_below.push(b'/');
                    }
                    inner_below.extend_from_slice(name.as_bytes());
                    inner.push((inner_path, inner_below, meta));
                    if inner.len() > ENTRIES_MAX {
                        return Err(ListingError::TooLong.into());
                    }
                }
                inner.sort_by(|one, other| other.1.cmp(&one.1));
                rest.extend(inner);
                (mode, Kind::Folder)
            } else if meta.is_file() {
                if meta.len() > 0 {
                    packed.files.push_back((path, meta.len()));
                }
                packed.bytes = packed.bytes.saturating_add(meta.len());
                (mode, Kind::File(meta.len()))
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).map_err(read(&path))?;
                (0, Kind::Link(target.as_os_str().as_bytes().to_vec()))
            } else {
                return Err(PackError::Strange { path, what: strange(&meta) });
            };
            packed.listing.entries.push(Entry { path: below, mode, kind });
        }
        packed.check(path)?;
        Ok(packed)
    }

    /// What would be found only when all has been sent.
    fn check(&self, root: &Path) -> Result<(), PackError> {
        let hash = blixard_core::BlobHash([0; 32]);
        let content = (self.bytes > 0).then_some(Part { hash, bytes: self.bytes });
        match (Listing { content, ..self.listing.clone() }).encode() {
            Ok(_) => Ok(()),
            Err(ListingError::Link(path, to)) => Err(PackError::Link { path: root.join(path), to }),
            Err(error) => Err(error.into()),
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.listing.files()
    }

    /// The content of all files, one after the other. Ends with an error when one has another length than it had, and names it.
    pub fn content(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let files = self.files.clone();
        futures::stream::try_unfold((files, None::<(PathBuf, tokio::fs::File, u64)>), async |(mut files, mut open)| {
            let named =
                |path: &Path, error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            loop {
                let Some((path, mut file, left)) = open.take() else {
                    let Some((path, bytes)) = files.pop_front() else { return Ok(None) };
                    let file = tokio::fs::File::open(&path).await.map_err(|error| named(&path, error))?;
                    open = Some((path, file, bytes));
                    continue;
                };
                let changed = || named(&path, io::Error::other("it was changed while it was being shared"));
                let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES).max(1))];
                let read = file.read(&mut chunk).await.map_err(|error| named(&path, error))?;
                if left == 0 {
                    // One byte more is asked for, to see that there is none.
                    if read > 0 {
                        return Err(changed());
                    }
                    continue;
                }
                if read == 0 {
                    return Err(changed());
                }
                chunk.truncate(read);
                return Ok(Some((Bytes::from(chunk), (files, Some((path, file, left - read as u64))))));
            }
        })
    }

    /// The listing, encoded, once the content has a hash; nothing where all files are empty.
    ///
    /// # Errors
    /// When the content that was sent is not as long as it should be.
    pub fn listing(self, content: Option<Part>) -> Result<Vec<u8>, ListingError> {
        Listing { content, ..self.listing }.encode()
    }

    /// The name under which it is shared.
    pub fn name(&self) -> String {
        shown(&self.listing.name)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::symlink;

    use futures::TryStreamExt;

    use super::*;

    async fn content(packed: &Packed) -> io::Result<Vec<u8>> {
        let pieces: Vec<Bytes> = packed.content().try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn a_folder_is_looked_through_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/deep")).unwrap();
        for (name, content) in
            [("a/z", "third"), ("a/deep/x", "second"), ("a-", "last"), ("a/deep/0", ""), ("0", "first")]
        {
            fs::write(root.join(name), content).unwrap();
        }
        symlink("../0", root.join("a/link")).unwrap();
        // A link is followed when it is what is shared.
        symlink("root", dir.path().join("alias")).unwrap();
        let packed = Packed::look(&dir.path().join("alias"), "named").unwrap();
        let all = content(&packed).await.unwrap();
        assert_eq!(all, b"firstsecondthirdlast");
        assert_eq!((packed.bytes(), packed.files(), packed.name()), (20, 5, "named".to_owned()));
        let hash = blixard_core::BlobHash([1; 32]);
        let listing = Listing::decode(&packed.listing(Some(Part { hash, bytes: 20 })).unwrap()).unwrap();
        let paths: Vec<String> = listing.entries.iter().map(|entry| shown(&entry.path)).collect();
        assert_eq!(paths, ["", "0", "a", "a/deep", "a/deep/0", "a/deep/x", "a/link", "a/z", "a-"]);
    }

    #[tokio::test]
    async fn what_cannot_be_shared_is_told_and_not_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let look = || Packed::look(dir.path(), "x").unwrap_err().to_string();
        let path = dir.path().join("odd");
        symlink("/etc/passwd", &path).unwrap();
        assert!(look().contains("odd is a link to /etc/passwd"), "{}", look());
        fs::remove_file(&path).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(look().contains("odd is a socket"), "{}", look());
        assert!(Packed::look(&dir.path().join("nothing"), "x").unwrap_err().to_string().contains("nothing"));
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(Packed::look(&file, "a/b").unwrap_err().to_string().contains("is no path"));
    }

    #[tokio::test]
    async fn a_file_that_changes_meanwhile_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "12345").unwrap();
        let packed = Packed::look(&file, "x").unwrap();
        for other in ["123", "1234567"] {
            fs::write(&file, other).unwrap();
            let error = content(&packed).await.unwrap_err().to_string();
            assert!(error.contains("file: it was changed"), "{error}");
        }
    }
}
