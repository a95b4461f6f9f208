//! What is in a share: names, modes and lengths, and which blob the content of all its files is, one file after the other.
//!
//! A listing is named by the hash of its encoding, which stands in the ticket: so whoever has the ticket knows that it gets what was
//! shared, whoever sends it. It comes from strangers all the same, and is looked at as a whole before anything is made of it:
//! no path leads out of the folder that is shared, and none goes through a link.

use std::collections::HashSet;

use blixard_core::{BlobHash, Part};
use serde::{Deserialize, Serialize};

/// The format of the encoding, which is its first byte.
const FORMAT: u8 = 1;
/// The longest encoding: paths of 150 bytes for as many entries as there may be.
pub const LISTING_BYTES_MAX: usize = 16 << 20;
/// Entries of one share. Each becomes a file, a folder or a link, and takes memory on both sides.
pub const ENTRIES_MAX: usize = 100_000;
/// The longest name that Linux takes.
const NAME_BYTES_MAX: usize = 255;
/// The longest path that Linux takes, less what ends it.
const PATH_BYTES_MAX: usize = 4095;
/// Bits of a mode that are kept: who may read, write and run a file, and not as whom it runs.
pub(super) const MODE_BITS: u32 = 0o777;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A folder. What is in it comes after it.
    Folder,
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link to somewhere within the share.
    Link(Vec<u8>),
}

/// A file, a folder or a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path below the share, in the bytes that Linux names files by; empty for the share itself.
    pub path: Vec<u8>,
    /// Who may read, write and run it; 0 for a link, which has none of its own.
    pub mode: u32,
    /// What it is.
    pub kind: Kind,
}

/// What is in a share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// What to call it.
    pub name: Vec<u8>,
    /// The share itself, a file or a folder, and what is in it, sorted by the parts of their paths.
    pub entries: Vec<Entry>,
    /// The content of all files in this order; nothing when all are empty.
    pub content: Option<Part>,
}

/// What is wrong with a listing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// It has more bytes or entries than there may be.
    #[error(
        "it is too long: a share has at most {ENTRIES_MAX} files, folders and links, with at most {LISTING_BYTES_MAX} bytes of names"
    )]
    TooLong,
    /// It was written by a newer version.
    #[error("it is of format {0}, which this version of Blixard does not know: run the newer version")]
    Format(u8),
    /// It cannot be read.
    #[error("it cannot be read")]
    Unreadable,
    /// It begins with something else than the share.
    #[error("it does not begin with what is shared")]
    NoRoot,
    /// A name or a path that is none, or that leads elsewhere.
    #[error("{0:?} is no path within a share")]
    Path(String),
    /// A path that is there twice, or not in its place.
    #[error("{0:?} is there twice, or not in its place")]
    Order(String),
    /// A path of which a part is no folder of the share.
    #[error("{0:?} is in no folder of the share")]
    NoFolder(String),
    /// A mode with bits that are not kept.
    #[error("{0:?} has a mode that is none")]
    Mode(String),
    /// A link to somewhere else.
    #[error("the link {0:?} leads to {1:?}, which may be outside of the share")]
    Link(String, String),
    /// The files have another length than their content.
    #[error("its files do not have the length of its content")]
    Length,
}

/// Bytes of a path as people can read them.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

fn is_name(name: &[u8]) -> bool {
    let length = 1..=NAME_BYTES_MAX;
    length.contains(&name.len()) && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0)
}

/// Whether a link at a path leads to somewhere within the share, whatever the other links are: up no further than to the share,
/// and from there only down. A way up behind a way down could pass through another link, and end anywhere.
fn leads_inside(path: &[u8], target: &[u8]) -> bool {
    let depth = parts(path).count() - 1;
    let ups = parts(target).take_while(|part| *part == b"..").count();
    let mut down = parts(target).skip(ups).filter(|part| *part != b"." && !part.is_empty());
    let is_relative = !target.is_empty() && !target.starts_with(b"/");
    is_relative && target.len() <= PATH_BYTES_MAX && ups <= depth && down.all(is_name)
}

impl Listing {
    /// Reads an encoding, and checks all that is said above.
    ///
    /// # Errors
    /// When it cannot be read, or what it says cannot be.
    pub fn decode(bytes: &[u8]) -> Result<Self, ListingError> {
        if bytes.len() > LISTING_BYTES_MAX {
            return Err(ListingError::TooLong);
        }
        let (format, content) = bytes.split_first().ok_or(ListingError::Unreadable)?;
        if *format != FORMAT {
            return Err(ListingError::Format(*format));
        }
        let (listing, rest) = postcard::take_from_bytes::<Self>(content).map_err(|_| ListingError::Unreadable)?;
        if !rest.is_empty() {
            return Err(ListingError::Unreadable);
        }
        listing.check()?;
        Ok(listing)
    }

    /// The encoding.
    ///
    /// # Errors
    /// When it would be refused where it is read.
    pub fn encode(&self) -> Result<Vec<u8>, ListingError> {
        self.check()?;
        let bytes = postcard::to_extend(self, vec![FORMAT]).expect("plain data always encodes into memory");
        if bytes.len() > LISTING_BYTES_MAX { Err(ListingError::TooLong) } else { Ok(bytes) }
    }

    /// The name of an encoding.
    pub fn hash(encoded: &[u8]) -> BlobHash {
        BlobHash(*blake3::hash(encoded).as_bytes())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.content.map_or(0, |content| content.bytes)
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.entries.iter().filter(|entry| matches!(entry.kind, Kind::File(_))).count()
    }

    /// Whether it is a folder that is shared.
    pub fn is_folder(&self) -> bool {
        self.entries.first().is_some_and(|entry| entry.kind == Kind::Folder)
    }

    fn check(&self) -> Result<(), ListingError> {
        if self.entries.len() > ENTRIES_MAX {
            return Err(ListingError::TooLong);
        }
        if !is_name(&self.name) {
            return Err(ListingError::Path(shown(&self.name)));
        }
        let (root, inner) = self.entries.split_first().ok_or(ListingError::NoRoot)?;
        if !root.path.is_empty() || matches!(root.kind, Kind::Link(_)) {
            return Err(ListingError::NoRoot);
        }
        let mut folders: HashSet<&[u8]> = HashSet::new();
        if root.kind == Kind::Folder {
            folders.insert(b"");
        }
        let mut before: Option<&Entry> = None;
        for entry in inner {
            let path = || shown(&entry.path);
            if entry.path.len() > PATH_BYTES_MAX || !parts(&entry.path).all(is_name) {
                return Err(ListingError::Path(path()));
            }
            if before.is_some_and(|before| parts(&before.path).ge(parts(&entry.path))) {
                return Err(ListingError::Order(path()));
            }
            before = Some(entry);
            let parent = entry.path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |at| &entry.path[..at]);
            if !folders.contains(parent) {
                return Err(ListingError::NoFolder(path()));
            }
            match &entry.kind {
                Kind::Folder => drop(folders.insert(&entry.path)),
                Kind::File(_) => {}
                Kind::Link(target) if leads_inside(&entry.path, target) && !target.contains(&0) => {}
                Kind::Link(target) => return Err(ListingError::Link(path(), shown(target))),
            }
        }
        if let Some(entry) = self.entries.iter().find(|entry| entry.mode & !MODE_BITS != 0) {
            return Err(ListingError::Mode(shown(&entry.path)));
        }
        let bytes = self.entries.iter().try_fold(0u64, |sum, entry| match entry.kind {
            Kind::File(bytes) => sum.checked_add(bytes),
            Kind::Folder | Kind::Link(_) => Some(sum),
        });
        // An empty content is no blob.
        let is_named = self.content.is_some_and(|content| content.bytes > 0);
        if bytes == Some(self.bytes()) && is_named == (self.bytes() > 0) && is_named == self.content.is_some() {
            Ok(())
        } else {
            Err(ListingError::Length)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &[u8], kind: Kind) -> Entry {
        let mode = if matches!(kind, Kind::Link(_)) { 0 } else { 0o640 };
        Entry { path: path.to_vec(), mode, kind }
    }

    fn folder(inner: impl IntoIterator<Item = Entry>) -> Listing {
        let entries: Vec<Entry> = std::iter::once(entry(b"", Kind::Folder)).chain(inner).collect();
        let bytes = |entry: &Entry| if let Kind::File(bytes) = entry.kind { bytes } else { 0 };
        let bytes = entries.iter().map(bytes).fold(0, u64::wrapping_add);
        let content = (bytes > 0).then_some(Part { hash: BlobHash([7; 32]), bytes });
        Listing { name: b"stuff".to_vec(), entries, content }
    }

    fn link(path: &str, target: &str) -> Entry {
        entry(path.as_bytes(), Kind::Link(target.as_bytes().to_vec()))
    }

    fn refused(listing: &Listing) -> ListingError {
        // What is refused before it is written is refused where it is read, too: whoever sends it wrote it otherwise.
        let forged = postcard::to_extend(listing, vec![FORMAT]).unwrap();
        let refusal = Listing::decode(&forged).unwrap_err();
        assert_eq!(listing.encode().unwrap_err(), refusal);
        refusal
    }

    #[test]
    fn a_listing_reads_back() {
        let inner = [
            entry(b"a", Kind::Folder),
            entry(b"a/b", Kind::Folder),
            link("a/b/up", "../../c"),
            entry(b"a/x\xff", Kind::File(3)),
            // Sorted by the parts of paths: `a/` comes before `a-`, though `-` comes before `/`.
            entry(b"a-", Kind::File(0)),
            link("c", "a/b"),
        ];
        let listing = folder(inner);
        let encoded = listing.encode().unwrap();
        assert_eq!(Listing::decode(&encoded), Ok(listing.clone()));
        assert_eq!((listing.bytes(), listing.files(), listing.is_folder()), (3, 2, true));
        assert_eq!(Listing::decode(&[&encoded[..], &[0]].concat()), Err(ListingError::Unreadable));
        assert_eq!(Listing::decode(&[&[FORMAT + 1], &encoded[1..]].concat()), Err(ListingError::Format(FORMAT + 1)));
        assert_eq!(Listing::decode(&[]), Err(ListingError::Unreadable));
        assert_eq!(Listing::decode(&vec![FORMAT; LISTING_BYTES_MAX + 1]), Err(ListingError::TooLong));
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in [&b"/etc/passwd"[..], b"..", b"../x", b"a/../../x", b"a//b", b"a/", b".", b"a/.", b"x\0y", b""] {
            let listing = folder([entry(b"a", Kind::Folder), entry(path, Kind::File(1))]);
            let expected = match path {
                b"" => ListingError::Path(String::new()),
                path => ListingError::Path(shown(path)),
            };
            assert_eq!(refused(&listing), expected, "{path:?}");
        }
        for name in [&b".."[..], b".", b"", b"a/b", b"/a", b"a\0", &[b'a'; 256]] {
            assert!(
                matches!(refused(&Listing { name: name.to_vec(), ..folder([]) }), ListingError::Path(_)),
                "{name:?}"
            );
        }
        let long = vec![b'a'; 256];
        assert!(matches!(refused(&folder([entry(&long, Kind::File(1))])), ListingError::Path(_)));
    }

    #[test]
    fn nothing_is_put_through_a_link_or_a_file_or_twice() {
        let through_link = folder([link("a", "b"), entry(b"a/x", Kind::File(1)), entry(b"b", Kind::Folder)]);
        assert_eq!(refused(&through_link), ListingError::NoFolder("a/x".to_owned()));
        let through_file = folder([entry(b"a", Kind::File(1)), entry(b"a/x", Kind::File(1))]);
        assert_eq!(refused(&through_file), ListingError::NoFolder("a/x".to_owned()));
        let into_a_file = Listing {
            entries: vec![entry(b"", Kind::File(1)), entry(b"x", Kind::File(1))],
            ..folder([entry(b"x", Kind::File(2))])
        };
        assert_eq!(refused(&into_a_file), ListingError::NoFolder("x".to_owned()));
        let twice = folder([entry(b"a", Kind::File(1)), link("a", "b")]);
        assert_eq!(refused(&twice), ListingError::Order("a".to_owned()));
        let unsorted = folder([entry(b"b", Kind::File(1)), entry(b"a", Kind::File(1))]);
        assert_eq!(refused(&unsorted), ListingError::Order("a".to_owned()));
        let orphan = folder([entry(b"a/b", Kind::File(1))]);
        assert_eq!(refused(&orphan), ListingError::NoFolder("a/b".to_owned()));
    }

    #[test]
    fn links_stay_inside_whatever_the_other_links_are() {
        for (path, target) in [("l", "x"), ("l", "./x/y"), ("d/l", "../x"), ("d/l", ".."), ("d/l", "a//b/"), ("l", ".")]
        {
            let listing = folder([entry(b"d", Kind::Folder), link(path, target)]);
            assert!(listing.encode().is_ok(), "{path} -> {target}");
        }
        for (path, target) in [
            ("l", "/etc"),
            ("l", ".."),
            ("l", "../x"),
            ("d/l", "../../x"),
            // By the names it stays inside; through a link `s` to `.` it does not.
            ("l", "s/../x"),
            ("d/l", "x/.."),
            ("l", ""),
            ("l", "a\0b"),
        ] {
            let listing = folder([entry(b"d", Kind::Folder), link(path, target)]);
            assert_eq!(refused(&listing), ListingError::Link(path.to_owned(), target.to_owned()));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let file = |bytes| entry(b"x", Kind::File(bytes));
        let content = |bytes| Some(Part { hash: BlobHash([7; 32]), bytes });
        for (files, content) in [
            (vec![file(3)], content(4)),
            (vec![file(3)], None),
            (vec![file(0)], content(0)),
            (vec![file(u64::MAX), entry(b"y", Kind::File(2))], content(1)),
        ] {
            assert_eq!(refused(&Listing { content, ..folder(files) }), ListingError::Length);
        }
        let entries = |entries| Listing { entries, ..folder([]) };
        assert_eq!(refused(&entries(vec![])), ListingError::NoRoot);
        assert_eq!(refused(&entries(vec![link("", "x")])), ListingError::NoRoot);
        assert_eq!(refused(&entries(vec![entry(b"a", Kind::Folder)])), ListingError::NoRoot);
        let set_user = Entry { mode: 0o4755, ..file(0) };
        assert_eq!(refused(&folder([set_user])), ListingError::Mode("x".to_owned()));
        let many = (0..ENTRIES_MAX).map(|number| entry(format!("{number:06}").as_bytes(), Kind::File(0)));
        assert_eq!(refused(&folder(many)), ListingError::TooLong);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever paths and links are accepted, the kernel finds none of them outside.
        #[test]
        fn what_is_accepted_stays_inside(
            names in prop::collection::vec(("[abs./]{1,7}", "[abs./]{1,7}", 0..3u8), 1..8),
        ) {
            let kind = |kind, target: &str| match kind {
                0 => Kind::Folder,
                1 => Kind::File(0),
                _ => Kind::Link(target.as_bytes().to_vec()),
            };
            let mut inner: Vec<Entry> =
                names.iter().map(|(path, target, number)| entry(path.as_bytes(), kind(*number, target))).collect();
            inner.sort_by(|a, b| parts(&a.path).cmp(parts(&b.path)));
            let listing = folder(inner);
            if listing.encode().is_err() {
                return Ok(());
            }
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().canonicalize().unwrap().join("root");
            for Entry { path, kind, .. } in &listing.entries {
                let path = root.join(std::str::from_utf8(path).unwrap());
                match kind {
                    Kind::Folder => std::fs::create_dir(path).unwrap(),
                    Kind::File(_) => std::fs::write(path, "").unwrap(),
                    Kind::Link(target) => {
                        std::os::unix::fs::symlink(std::str::from_utf8(target).unwrap(), path).unwrap();
                    }
                }
            }
            for entry in &listing.entries {
                let path = root.join(std::str::from_utf8(&entry.path).unwrap());
                if let Ok(real) = path.canonicalize() {
                    prop_assert!(real.starts_with(&root), "{} leads to {}", path.display(), real.display());
                }
            }
        }
    }
}
