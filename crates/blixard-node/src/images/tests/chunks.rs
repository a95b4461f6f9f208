//! What is known of a disk's content, and what it takes on a disk.

use blixard_core::chunks::{Chunk, ChunkIndex, Fingerprint};

use super::*;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

#[tokio::test(flavor = "multi_thread")]
async fn an_import_knows_its_chunks_and_keeps_no_zeros() {
    let node = TestNode::start().await;
    let mut content = random(1, 24 * MIB);
    content[4 * MIB..20 * MIB + 100].fill(0);
    let manifest = node.import_indexed(&content).await;
    let DiskPart { part, chunks, .. } = manifest.disk().unwrap();
    let index = node.images.index_of(chunks.unwrap(), part).await.unwrap().unwrap();
    let expected = content.chunks(BLOCK).filter(|block| block.iter().any(|byte| *byte != 0)).map(Fingerprint::of);
    assert_eq!(index.chunks().filter_map(|(_, chunk)| chunk.print).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let zeros: Vec<(u64, Chunk)> = index.chunks().filter(|(_, chunk)| chunk.print.is_none()).collect();
    assert_eq!(zeros, [(4 << 20, Chunk { bytes: 16 << 20, print: None })]);

    assert!(node.content(&manifest).await.ends_with(&content), "the file is what was imported");
    let exported = node.images.export(part.hash).await.unwrap();
    assert!(collect(exported).await.unwrap() == content, "and has its hash");
    assert!(node.allocated(part.hash).await < 10 << 20, "16 of the 24 MiB are zeros");
    // Sealed as it is, it is cut again, and alike.
    let again = node.import(&content).await;
    assert_eq!(ChunkIndex::decode(&again.index.unwrap()).unwrap(), index);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_packed_is_cut_by_content() {
    let node = TestNode::start().await;
    let old = [&b"QFI\xfb"[..], &random(2, 4 * MIB)].concat();
    let mut new = old.clone();
    new.splice(MIB..MIB, [7; 100]);
    let index = async |content: &[u8]| ChunkIndex::decode(&node.import(content).await.index.unwrap()).unwrap();
    let compared = index(&new).await.compare(&[index(&old).await]);
    assert!(compared.fresh_bytes < 200 << 10, "it differs by 100 bytes in its middle: {compared:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_something_else_is_none() {
    let node = TestNode::start().await;
    let (one, other) = (node.import_indexed(&random(3, MIB)).await, node.import_indexed(&random(4, MIB)).await);
    let chunks = |manifest: &Manifest| manifest.disk().unwrap().chunks.unwrap();
    let part = |manifest: &Manifest| manifest.disk().unwrap().part;
    assert!(node.images.index_of(chunks(&one), part(&one)).await.unwrap().is_some());
    assert!(node.images.index_of(chunks(&one), part(&other)).await.unwrap().is_none(), "it is about another blob");
    assert!(node.images.index_of(part(&one), part(&one)).await.unwrap().is_none(), "it is no index");
}
