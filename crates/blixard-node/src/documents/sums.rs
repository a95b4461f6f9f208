//! What a document has, in a few bytes: entries fall into buckets, and equal sums mean that two nodes have the same in a bucket.

use iroh_docs::SignedEntry;

/// Buckets of a document. Of as many keys as a document may have, one more costs the entries of one bucket, some 40 KB.
pub(super) const BUCKETS: usize = 128;
/// Bytes of the sum of a bucket: enough that two different ones are not met by chance.
pub(super) const SUM_BYTES: usize = 8;

/// The sums of all buckets, one after the other.
pub(super) type Sums = Vec<u8>;

/// The bucket of an entry, which follows from its author and key.
pub(super) fn bucket(entry: &SignedEntry) -> usize {
    usize::from(blake3::hash(entry.entry().id().as_ref()).as_bytes()[0]) % BUCKETS
}

/// The sums of entries, which are in the order of their keys and authors at every node.
pub(super) fn sums(entries: &[SignedEntry]) -> Sums {
    let mut buckets = vec![blake3::Hasher::new(); BUCKETS];
    for entry in entries {
        // All that is signed, the time and the value's hash among it. It tells where the key ends: the rest has a fixed length.
        let signed = entry.entry().to_vec();
        buckets[bucket(entry)].update(&(signed.len() as u64).to_le_bytes()).update(&signed);
    }
    buckets.iter().flat_map(|sum| sum.finalize().as_bytes()[..SUM_BYTES].to_vec()).collect()
}

/// Whether a bucket has the same at two nodes. Sums of any other length equal nothing.
pub(super) fn is_equal(bucket: usize, one: &Sums, other: &Sums) -> bool {
    let of = |sums: &Sums| sums.chunks_exact(SUM_BYTES).nth(bucket).map(<[u8]>::to_vec);
    let sum = of(one);
    sum.is_some() && sum == of(other)
}

/// All sums in one.
pub(super) fn whole(sums: &Sums) -> [u8; 32] {
    *blake3::hash(sums).as_bytes()
}

#[cfg(test)]
mod tests {
    use blixard_core::DocumentsSecret;
    use iroh_blobs::Hash;
    use iroh_docs::{Author, Record};

    use super::super::stored::{Space, stored_key};
    use super::*;

    fn entry(author: u8, key: &str, stamp: u64, value: &[u8]) -> SignedEntry {
        let space = Space::index(&DocumentsSecret([1; 32]));
        let secret = space.secret.expect("it was derived");
        let record = Record::new(Hash::new(value), value.len() as u64, stamp);
        SignedEntry::from_parts(&secret, &Author::from_bytes(&[author; 32]), stored_key(key), record)
    }

    #[test]
    fn what_differs_shows_in_its_bucket_alone() {
        let before = [entry(1, "a", 5, b"x"), entry(1, "b", 5, b"x"), entry(2, "b", 5, b"x")];
        let known = sums(&before);
        assert_eq!(known.len(), BUCKETS * SUM_BYTES);
        let changes = [entry(1, "b", 6, b"x"), entry(1, "b", 5, b"y"), entry(1, "b", 5, b"xx")];
        for changed in changes {
            let after = sums(&[before[0].clone(), changed.clone(), before[2].clone()]);
            let differ: Vec<usize> = (0..BUCKETS).filter(|bucket| !is_equal(*bucket, &known, &after)).collect();
            assert_eq!(differ, [bucket(&changed)]);
            assert_ne!(whole(&known), whole(&after));
        }
        assert_eq!(sums(&before), known);
        assert!(!is_equal(0, &Vec::new(), &Vec::new()), "what is too short is equal to nothing");
    }
}
