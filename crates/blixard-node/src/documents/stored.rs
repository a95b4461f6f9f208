//! How documents and keys are named in the store.

use blixard_core::{BlobHash, DocumentKey, DocumentName, DocumentsSecret, EndpointId, UnixMs};
use iroh_blobs::Hash;
use iroh_docs::{NamespaceId, NamespaceSecret, SignedEntry};

use super::VALUE_BYTES_MAX;

/// Ends every key in the store. There an entry removes all older ones of its author whose keys begin with its own: without an
/// end, setting `app` would remove `app.conf`.
const KEY_END: u8 = 0;
/// Microseconds of the store's times in a millisecond of ours.
const US_IN_MS: u64 = 1000;

/// A document in the store.
#[derive(Clone)]
pub(super) struct Space {
    /// By which it is found, and read.
    pub(super) id: NamespaceId,
    /// By which it is written; none where it may only be read.
    pub(super) secret: Option<NamespaceSecret>,
}

impl Space {
    /// The document in which the others are listed.
    pub(super) fn index(secret: &DocumentsSecret) -> Self {
        Self::derived("blixard index of documents 1", secret, "")
    }

    /// The one in which stands what is shared with other clusters, and had from them.
    pub(super) fn ledger(secret: &DocumentsSecret) -> Self {
        Self::derived("blixard ledger of documents 1", secret, "")
    }

    /// The document of a name: the same at every member, whether or not they can reach each other.
    pub(super) fn named(secret: &DocumentsSecret, name: &DocumentName) -> Self {
        Self::derived("blixard document 1", secret, name.as_str())
    }

    fn derived(context: &str, secret: &DocumentsSecret, name: &str) -> Self {
        let material = [&secret.0[..], name.as_bytes()].concat();
        Self::written_with(NamespaceSecret::from_bytes(&blake3::derive_key(context, &material)))
    }

    /// The document that a secret writes.
    pub(super) fn written_with(secret: NamespaceSecret) -> Self {
        Self { id: secret.id(), secret: Some(secret) }
    }
}

/// A key as it stands in the store.
pub(crate) fn stored_key(key: &str) -> Vec<u8> {
    [key.as_bytes(), &[KEY_END]].concat()
}

/// Reads a key of the store. Another member wrote it, so it may be anything.
pub(crate) fn read_stored_key(stored: &[u8]) -> Option<DocumentKey> {
    let (end, key) = stored.split_last()?;
    std::str::from_utf8(key).ok().filter(|_| *end == KEY_END)?.parse().ok()
}

/// What one node wrote last under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: DocumentKey,
    /// Who wrote it.
    pub(crate) author: EndpointId,
    /// The hash of the value.
    pub(crate) hash: BlobHash,
    /// The value's length in bytes; 0 for a key that was deleted.
    pub(crate) bytes: u64,
    /// What decides which of two entries is the later one, in microseconds of the author's clock.
    pub(super) stamp_us: u64,
}

impl Entry {
    /// Reads an entry of the store; nothing when it is not one that this version of Blixard would have written.
    pub(super) fn read(entry: &SignedEntry) -> Option<Self> {
        let key = read_stored_key(entry.key())?;
        let read = Self {
            key,
            author: EndpointId(*entry.author_bytes().as_bytes()),
            hash: BlobHash(*entry.content_hash().as_bytes()),
            bytes: entry.content_len(),
            stamp_us: entry.timestamp(),
        };
        let is_empty = entry.content_hash() == Hash::EMPTY;
        (read.bytes <= VALUE_BYTES_MAX && is_empty == read.is_deleted()).then_some(read)
    }

    /// Whether the key was deleted by this.
    pub(crate) fn is_deleted(&self) -> bool {
        self.bytes == 0
    }

    /// When it was written, by the author's clock; later than that when what it replaced was from a clock ahead of it.
    pub(crate) fn written_at(&self) -> UnixMs {
        UnixMs(self.stamp_us / US_IN_MS)
    }

    /// What orders the entries of a key, at every member alike: time, and among equal times the author.
    fn order(&self) -> (u64, EndpointId) {
        (self.stamp_us, self.author)
    }
}

/// The time of an entry that is written now, after another or as the first; nothing when the others' clocks would refuse it
/// as too far ahead of theirs.
pub(super) fn next_stamp(now: UnixMs, before: Option<&Entry>, ahead_us_max: u64) -> Option<u64> {
    let now_us = now.0.saturating_mul(US_IN_MS);
    let stamp = before.map_or(now_us, |before| now_us.max(before.stamp_us.saturating_add(1)));
    (stamp <= now_us.saturating_add(ahead_us_max)).then_some(stamp)
}

/// The entries of each key, the one that counts first, in the order of the keys.
pub(super) fn by_key(mut entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    entries.sort_by(|a, b| a.key.cmp(&b.key).then_with(|| b.order().cmp(&a.order())));
    let mut grouped: Vec<Vec<Entry>> = Vec::new();
    for entry in entries {
        match grouped.last_mut() {
            Some(group) if group[0].key == entry.key => group.push(entry),
            _ => grouped.push(vec![entry]),
        }
    }
    grouped
}

/// The entry of each key that counts, deletions included.
pub(super) fn latest(entries: Vec<Entry>) -> impl Iterator<Item = Entry> {
    by_key(entries).into_iter().filter_map(|group| group.into_iter().next())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn entry(key: &str, author: u8, stamp_us: u64) -> Entry {
        let (author, hash) = (EndpointId([author; 32]), BlobHash([author; 32]));
        Entry { key: key.parse().unwrap(), author, hash, bytes: 1, stamp_us }
    }

    #[test]
    fn the_last_writer_counts_whatever_the_order_in_which_entries_come() {
        let all = [entry("a", 1, 5), entry("a", 2, 7), entry("a", 3, 7), entry("ab", 1, 1)];
        for turn in 0..all.len() {
            let mut turned = all.to_vec();
            turned.rotate_left(turn);
            let latest: Vec<_> = latest(turned).map(|entry| (entry.key.to_string(), entry.author.0[0])).collect();
            assert_eq!(latest, [("a".to_owned(), 3), ("ab".to_owned(), 1)]);
        }
    }

    #[test]
    fn a_later_write_has_a_later_time_though_its_clock_is_behind() {
        let before = entry("a", 1, 9_000_000);
        assert_eq!(next_stamp(UnixMs(1_000), None, 600_000_000), Some(1_000_000));
        assert_eq!(next_stamp(UnixMs(1_000), Some(&before), 600_000_000), Some(9_000_001));
        assert_eq!(next_stamp(UnixMs(10_000), Some(&before), 600_000_000), Some(10_000_000));
        assert_eq!(next_stamp(UnixMs(1_000), Some(&before), 1_000_000), None, "the others would refuse it");
        assert_eq!(next_stamp(UnixMs(u64::MAX), Some(&entry("a", 1, u64::MAX)), 1), Some(u64::MAX));
    }

    #[test]
    fn no_stored_key_is_the_beginning_of_another() {
        for (one, other) in [("app", "app.conf"), ("a", "a/b"), ("x", "x1")] {
            assert!(!stored_key(other).starts_with(&stored_key(one)));
            assert_eq!(read_stored_key(&stored_key(one)).unwrap().as_str(), one);
        }
        for stored in [&b""[..], b"a", b"\0", b"a\0\0", b"../a\0", b"\xff\0"] {
            assert_eq!(read_stored_key(stored), None);
        }
    }

    #[test]
    fn members_find_the_same_documents_and_nobody_else_does() {
        let (secret, other) = (DocumentsSecret([1; 32]), DocumentsSecret([2; 32]));
        let name = DocumentName::config();
        assert_eq!(Space::named(&secret, &name).id, Space::named(&secret, &name).id);
        assert_ne!(Space::named(&secret, &name).id, Space::named(&other, &name).id);
        assert_ne!(Space::named(&secret, &name).id, Space::named(&secret, &"configs".parse().unwrap()).id);
        assert_ne!(Space::index(&secret).id, Space::index(&other).id);
    }
}
