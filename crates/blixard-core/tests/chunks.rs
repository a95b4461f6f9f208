//! Where blobs are cut, what their indexes say, and how those are written.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use blixard_core::BlobHash;
use blixard_core::chunks::{
    BLOCK_BYTES, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Chunk, ChunkIndex, Compared, Cutter,
    Fingerprint, IndexError, Rule,
};
use proptest::prelude::*;

/// Bytes that look like nothing, and are the same each time.
fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut content);
    content
}

fn index(content: &[u8], piece: usize) -> ChunkIndex {
    cut(Rule::Content, content, piece)
}

fn cut(rule: Rule, content: &[u8], piece: usize) -> ChunkIndex {
    let mut cutter = Cutter::new(rule);
    content.chunks(piece.max(1)).for_each(|piece| cutter.push(piece));
    cutter.finish(BlobHash(*blake3::hash(content).as_bytes()))
}

/// What an index has to say of this content, whatever the rule is by which it was cut.
fn check(content: &[u8], index: &ChunkIndex) {
    let mut end = 0;
    for (start, Chunk { bytes, print }) in index.chunks() {
        assert_eq!(start, end, "there is a gap");
        let from = usize::try_from(start).unwrap();
        end = start + bytes;
        let chunk = &content[from..usize::try_from(end).unwrap()];
        let is_zero = chunk.iter().all(|byte| *byte == 0);
        assert_eq!(print.is_none(), is_zero && from.is_multiple_of(BLOCK_BYTES), "at {start}");
        if let Some(Fingerprint(print)) = print {
            assert_eq!(print, blake3::hash(chunk).as_bytes()[..8]);
            assert!(chunk.len() <= CHUNK_BYTES_MAX);
        }
    }
    assert_eq!((end, index.blob_bytes()), (content.len() as u64, content.len() as u64));
}

#[test]
fn what_is_cut_does_not_depend_on_how_it_comes_in() {
    let mut content = noise(1, 300_001);
    content[40_000..140_000].fill(0);
    let whole = index(&content, usize::MAX);
    check(&content, &whole);
    for piece in [1, 7, 4095, 4096, 4097, 65_536, 299_999] {
        assert_eq!(index(&content, piece), whole, "in pieces of {piece}");
    }
}

#[test]
fn blocks_are_found_wherever_they_lie() {
    let blocks: Vec<Vec<u8>> = (0..8).map(|seed| noise(seed, BLOCK_BYTES)).collect();
    let at = |places: &[usize]| places.iter().flat_map(|at| blocks[*at].clone()).collect::<Vec<u8>>();
    let (old, new) =
        (at(&[0, 1, 2, 3, 4, 5]), [at(&[5, 7, 0]), vec![0; 3 * BLOCK_BYTES], at(&[3, 7]), vec![1; 7]].concat());
    let index = cut(Rule::Blocks, &new, 1000);
    check(&new, &index);
    assert!(index.chunks().all(|(_, chunk)| chunk.print.is_none() || chunk.bytes <= BLOCK_BYTES as u64));
    let block = BLOCK_BYTES as u64;
    let compared = index.compare(&[cut(Rule::Blocks, &old, 1000)]);
    let (zero_bytes, known_bytes, fresh_bytes) = (3 * block, 3 * block, block + 7);
    assert_eq!(compared, Compared { zero_bytes, known_bytes, fresh_bytes, repeated_bytes: block });
}

#[test]
fn chunks_are_as_long_as_they_should_be() {
    let content = noise(2, 32 << 20);
    let index = index(&content, 1 << 20);
    check(&content, &index);
    let lengths: Vec<u64> = index.chunks().map(|(_, chunk)| chunk.bytes).collect();
    let last = lengths.len() - 1;
    assert!(lengths[..last].iter().all(|bytes| *bytes > CHUNK_BYTES_MIN as u64), "one is too short");
    let average = content.len() / lengths.len();
    assert!((CHUNK_BYTES_AVERAGE / 2..CHUNK_BYTES_AVERAGE * 2).contains(&average), "{average}");
}

#[test]
fn a_change_moves_only_the_cuts_beside_it() {
    let old = noise(3, 4 << 20);
    let mut new = old.clone();
    // Behind it everything lies elsewhere, by no round number.
    new.splice(1_000_000..1_000_000, noise(4, 777));
    let compared = index(&new, 1 << 20).compare(&[index(&old, 1 << 20)]);
    assert_eq!(compared.known_bytes + compared.fresh_bytes, new.len() as u64);
    let fresh_max = 4 * CHUNK_BYTES_MAX as u64;
    assert!((777..fresh_max).contains(&compared.fresh_bytes), "{compared:?}");
}

#[test]
fn zeros_are_no_content_and_what_comes_twice_is_counted_once() {
    const KIB: usize = 1024;
    let (one, other) = (noise(5, 256 * KIB), noise(6, 256 * KIB));
    let zeros = vec![0; 100 * BLOCK_BYTES];
    let new = [&one[..], &zeros, &other, &zeros, &other].concat();
    let compared = index(&new, KIB).compare(&[index(&one, KIB)]);
    let known_bytes = one.len() as u64;
    let fresh_bytes = other.len() as u64;
    let zero_bytes = 2 * zeros.len() as u64;
    assert_eq!(compared, Compared { zero_bytes, known_bytes, fresh_bytes, repeated_bytes: fresh_bytes });
    let nothing = index(&vec![0; 9000], KIB);
    assert_eq!(nothing.chunks().collect::<Vec<_>>(), [(0, Chunk { bytes: 9000, print: None })]);
    assert_eq!(nothing.encode().len(), 1 + 32 + 2 + 3, "a run takes as many bytes as its length");
}

/// What nodes have cut and written has to be cut and read alike by every later version.
#[test]
fn the_golden_index_is_what_is_cut_and_written_today() {
    let mut content = noise(7, 200 * 1024 + 5);
    content[64 * 1024..128 * 1024].fill(0);
    for (name, rule) in [("blocks", Rule::Blocks), ("content", Rule::Content)] {
        let encoded = cut(rule, &content, 5000).encode();
        let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
        let lines: Vec<&str> = hex.as_bytes().chunks(120).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let text = lines.join("\n") + "\n";
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/chunks/{name}.hex"));
        if std::env::var_os("BLIXARD_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "the rule or the format has changed");
        assert_eq!(ChunkIndex::decode(&encoded).unwrap().encode(), encoded);
    }
}

#[test]
fn what_cannot_be_an_index_is_refused() {
    let good = index(&noise(8, 10_000), 10_000).encode();
    let head = &good[..33];
    let with = |rest: &[u8]| ChunkIndex::decode(&[head, rest].concat());
    assert_eq!(ChunkIndex::decode(&[]), Err(IndexError::CutOff));
    assert_eq!(ChunkIndex::decode(&[9]), Err(IndexError::Format(9)));
    assert_eq!(ChunkIndex::decode(&good[..good.len() - 1]), Err(IndexError::CutOff));
    assert_eq!(ChunkIndex::decode(&[&good[..], &[0]].concat()), Err(IndexError::Length(10_000)));
    assert_eq!(with(&[8, 0]).map(drop), Err(IndexError::CutOff), "a chunk without a fingerprint");
    assert_eq!(with(&[8, 1]).map(drop), Err(IndexError::Chunk(0)), "an empty run");
    assert_eq!(with(&[8, 5, 5, 5]).map(drop), Err(IndexError::Chunk(2)), "a run beside a run");
    assert_eq!(with(&[8, 19]).map(drop), Err(IndexError::Length(8)), "a run longer than the blob");
    assert_eq!(with(&[0x88, 0, 17]).map(drop), Err(IndexError::Number), "a number of more bytes than it needs");
    assert_eq!(with(&[&[0xff; 9][..], &[2]].concat()).map(drop), Err(IndexError::Number), "a number beyond 64 bits");
    let long = [&[0x80, 0x80, 0x20][..], &[0x82, 0x80, 0x08], &[0; 8]].concat();
    assert_eq!(with(&long).map(drop), Err(IndexError::Chunk(0)), "a chunk longer than any");
    assert!(with(&[8, 17]).is_ok(), "eight zeros");
}

proptest! {
    #[test]
    fn any_blob_is_cut_without_gaps_and_its_index_is_read_as_it_was_written(
        by_content in any::<bool>(),
        parts in prop::collection::vec((any::<u8>(), 0_usize..40_000, any::<bool>()), 0..8),
        piece in 1_usize..70_000,
    ) {
        let parts = parts.into_iter().map(|(seed, bytes, is_zero)| if is_zero { vec![0; bytes] } else { noise(seed, bytes) });
        let content: Vec<u8> = parts.flatten().collect();
        let index = cut(if by_content { Rule::Content } else { Rule::Blocks }, &content, piece);
        let mut end = 0;
        for (start, chunk) in index.chunks() {
            prop_assert_eq!(start, end);
            end += chunk.bytes;
        }
        prop_assert_eq!(end, content.len() as u64);
        prop_assert_eq!(ChunkIndex::decode(&index.encode()).unwrap(), index);
    }
}
