//! What stands in a catalog: an image below `images/`, and a node that gives it out below `nodes/`.
//!
//! A catalog is a document, so what is read here was written by another node, and for one that is followed by another cluster.

use blixard_core::limits::ADDRESSES_MAX;
use blixard_core::{DocumentKey, EndpointId, ImageName, Manifest};
use serde::{Deserialize, Serialize};

use crate::transport::PeerAddress;

/// Where images stand in a catalog.
pub(super) const IMAGES: &str = "images/";
/// Where nodes stand in a catalog.
pub(super) const NODES: &str = "nodes/";
/// The longest note: a paragraph.
pub(crate) const NOTE_CHARS_MAX: usize = 1000;
/// The longest record: a kernel's command line and a note are all that is long in it, and escaped they take six times as much.
pub(super) const RECORD_BYTES_MAX: u64 = 32 << 10;

/// An image that a cluster publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PublishedImage {
    /// What it is made of.
    pub(crate) manifest: Manifest,
    /// What its publisher says of it.
    #[serde(default)]
    pub(crate) note: Option<String>,
}

impl PublishedImage {
    /// Reads a record.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let read: Self = serde_json::from_slice(bytes).ok().filter(|_| bytes.len() as u64 <= RECORD_BYTES_MAX)?;
        let has_note = read.note.as_ref().is_none_or(|note| note.chars().count() <= NOTE_CHARS_MAX);
        let is_sound = blixard_core::limits::manifest(&read.manifest).is_ok();
        (has_note && is_sound).then_some(read)
    }

    /// The record as it is written.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data always encodes into memory")
    }
}

/// Reads where a node of a cluster that publishes can be reached, which it says of itself alone.
pub(super) fn node(key: &DocumentKey, bytes: &[u8]) -> Option<PeerAddress> {
    let named: EndpointId = key.as_str().strip_prefix(NODES)?.parse().ok()?;
    let address: PeerAddress = serde_json::from_slice(bytes).ok()?;
    (address.endpoint == named && address.addresses.len() <= ADDRESSES_MAX).then_some(address)
}

/// The name of an image, from its key.
pub(super) fn image_name(key: &DocumentKey) -> Option<ImageName> {
    key.as_str().strip_prefix(IMAGES)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use blixard_core::{BlobHash, Part};

    use super::*;

    #[test]
    fn a_record_reads_back_and_what_cannot_be_an_image_is_none() {
        let manifest = crate::images::tests::disk(Part { hash: BlobHash([1; 32]), bytes: 7 });
        let image = PublishedImage { manifest, note: Some("of May".to_owned()) };
        assert_eq!(PublishedImage::decode(&image.encode()), Some(image.clone()));
        let long = PublishedImage { note: Some("x".repeat(NOTE_CHARS_MAX + 1)), ..image.clone() };
        let empty = crate::images::tests::disk(Part { hash: BlobHash([1; 32]), bytes: 0 });
        for odd in [long, PublishedImage { manifest: empty, note: None }] {
            assert_eq!(PublishedImage::decode(&odd.encode()), None);
        }
        let padded = [image.encode(), vec![b' '; RECORD_BYTES_MAX as usize]].concat();
        assert_eq!(PublishedImage::decode(&padded), None);
    }

    #[test]
    fn a_node_speaks_for_itself() {
        let address = PeerAddress {
            endpoint: EndpointId([7; 32]),
            addresses: vec!["127.0.0.1:1".parse().unwrap()],
            relay_url: None,
        };
        let text = serde_json::to_vec(&address).unwrap();
        let key = |key: u8| format!("{NODES}{}", EndpointId([key; 32])).parse().unwrap();
        assert_eq!(node(&key(7), &text), Some(address));
        assert_eq!(node(&key(8), &text), None);
    }
}
