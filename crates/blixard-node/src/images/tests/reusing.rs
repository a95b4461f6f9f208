//! What is on a node already is not fetched, and nothing is believed for being there. Bytes are counted where they are sent.

use std::fs::Permissions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::Ordering;

use super::*;
use crate::images::Direction;

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// What is verified, and so sent, as one.
const GROUP: u64 = 16 << 10;
/// More than the proof of one group in a tree of any disk here, and what asking takes.
const PROOF: u64 = 2 << 10;

/// What a node has sent to another so far, proofs included.
fn sent(from: &TestNode, to: &TestNode) -> u64 {
    from.images.limits().moved_bytes(Direction::Up).of(to.id()).load(Ordering::Relaxed)
}

fn disk_of(manifest: &Manifest) -> DiskPart {
    manifest.disk().unwrap()
}

fn index_bytes(manifest: &Manifest) -> u64 {
    disk_of(manifest).chunks.unwrap().bytes
}

/// A disk's content on a node, read from its file as a hypervisor does.
async fn disk_content(node: &TestNode, manifest: &Manifest) -> Vec<u8> {
    std::fs::read(node.images.path(disk_of(manifest).part.hash).await.unwrap()).unwrap()
}

/// Changes a file that is sealed, as a failing disk would.
fn damage(path: &Path, at: u64) {
    std::fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    std::fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(b"EVIL", at).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

/// A disk, and another version of it: some of it is elsewhere, some is gone, and so many blocks are new, far from each other.
fn versions(fresh: usize) -> (Vec<u8>, Vec<u8>) {
    let mut old = random(1, 40 * MIB + 5 * BLOCK + 77);
    old[10 * MIB..20 * MIB].fill(0);
    let mut new = old.clone();
    new.copy_within(MIB..3 * MIB, 12 * MIB + BLOCK);
    new[30 * MIB..31 * MIB + 3 * BLOCK].fill(0);
    for number in 0..fresh {
        let at = 21 * MIB + number * 40 * BLOCK;
        new[at..at + BLOCK].copy_from_slice(&random(100 + number as u8, BLOCK));
    }
    (old, new)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_version_moves_only_what_changed() {
    const FRESH: usize = 40;
    let [source, target] = members().await;
    let (old, new) = versions(FRESH);
    let before = source.import_indexed(&old).await;
    target.fetch(&before, &[&source]).await.unwrap();
    let zeros = 10 * MIB as u64;
    let all = old.len() as u64 + index_bytes(&before);
    let first = sent(&source, &target);
    assert!(first < all - zeros + all / 50, "zeros are not sent: {first} of {all}");
    assert!(target.allocated(disk_of(&before).part.hash).await < old.len() as u64 - zeros + (1 << 20));

    let after = source.import_indexed(&new).await;
    let progress = target.fetch(&after, &[&source]).await.unwrap();
    assert!(disk_content(&target, &after).await == new);
    assert!(target.images.is_complete(&after).await.unwrap());
    let moved = sent(&source, &target) - first;
    let most = FRESH as u64 * (GROUP + PROOF) + index_bytes(&after) + 64 * PROOF;
    assert!(moved <= most, "{moved} bytes moved where {most} should do");
    let Progress { bytes_done, bytes_total, bytes_received, bytes_reused, bytes_zero, .. } = progress;
    assert_eq!((bytes_done, bytes_total), (after.bytes(), after.bytes()));
    assert_eq!(bytes_received + bytes_reused + bytes_zero, after.bytes(), "{progress:?}");
    assert!(bytes_zero >= 8 * MIB as u64 && bytes_reused >= 25 * MIB as u64, "{progress:?}");
    assert!(target.allocated(disk_of(&after).part.hash).await < new.len() as u64 - bytes_zero + (1 << 20));
    // What came in this way is served like all else.
    let [third] = members().await;
    introduce(&[&target.transport, &third.transport]);
    third.fetch(&after, &[&target]).await.unwrap();
    assert!(disk_content(&third, &after).await == new);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_as_a_whole_is_put_together_without_a_byte_of_it() {
    let [source, target] = members().await;
    let old = random(2, 12 * MIB);
    let before = source.import_indexed(&old).await;
    target.fetch(&before, &[&source]).await.unwrap();
    let zeros = vec![0; 3 * MIB];
    let new = [&old[8 * MIB..], &zeros, &old[BLOCK..5 * MIB]].concat();
    let after = source.import_indexed(&new).await;
    let first = sent(&source, &target);
    let progress = target.fetch(&after, &[&source]).await.unwrap();
    assert!(disk_content(&target, &after).await == new);
    assert_eq!(progress.bytes_received, index_bytes(&after));
    assert!(sent(&source, &target) - first < index_bytes(&after) + 4 * PROOF);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_fetched_and_the_rest_is_not() {
    let [source, target] = members().await;
    let (old, new) = versions(3);
    let before = source.import_indexed(&old).await;
    target.fetch(&before, &[&source]).await.unwrap();
    let path = target.images.path(disk_of(&before).part.hash).await.unwrap();
    for at in [5 * MIB, 25 * MIB + 100, 39 * MIB] {
        damage(&path, at as u64);
    }
    let after = source.import_indexed(&new).await;
    let first = sent(&source, &target);
    target.fetch(&after, &[&source]).await.unwrap();
    assert!(disk_content(&target, &after).await == new);
    let moved = sent(&source, &target) - first;
    let most = 8 * (GROUP + PROOF) + index_bytes(&after) + 16 * PROOF;
    assert!(moved <= most, "{moved} bytes moved where {most} should do");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lies_costs_only_time() {
    let [source, target] = members().await;
    let (old, new) = versions(30);
    let old = old[..new.len()].to_vec();
    let before = source.import_indexed(&old).await;
    target.fetch(&before, &[&source]).await.unwrap();
    // It says that the new version consists of the chunks of the old one.
    let blob = source.import(&new).await;
    let mut lie = source.import(&old).await.index.clone().unwrap().to_vec();
    lie[1..33].copy_from_slice(&blob.hash.0);
    let part = Part { hash: blob.hash, bytes: blob.bytes };
    let after = source.keep_indexed(part, lie.into()).await;
    target.fetch(&after, &[&source]).await.unwrap();
    assert!(disk_content(&target, &after).await == new);
    // And one that says nothing sensible at all.
    let other = source.import(&random(9, MIB)).await;
    let after =
        source.keep_indexed(Part { hash: other.hash, bytes: other.bytes }, Bytes::from_static(b"no index")).await;
    target.fetch(&after, &[&source]).await.unwrap();
    assert!(disk_content(&target, &after).await == random(9, MIB));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_was_cut_short_reuses_the_rest_when_it_goes_on() {
    let source = TestNode::start().await;
    let temp = tempfile::tempdir().unwrap();
    let key = SecretKey::generate();
    let target = TestNode::start_in(temp.path(), key.clone()).await;
    introduce(&[&source.transport, &target.transport]);
    let (old, new) = versions(60);
    let before = source.import_indexed(&old).await;
    target.fetch(&before, &[&source]).await.unwrap();
    let after = source.import_indexed(&new).await;
    let first = sent(&source, &target);
    target.fetch_part(&after, &source, after.bytes() / 2).await;
    let id = target.id();
    target.stop().await;

    let target = TestNode::start_in(temp.path(), key).await;
    assert_eq!(target.id(), id);
    introduce(&[&source.transport, &target.transport]);
    let here = target.images.local_bytes(&after).await.unwrap();
    assert!(here >= after.bytes() / 3 && here < after.bytes(), "{here} of {} bytes are here", after.bytes());
    target.fetch(&after, &[&source]).await.unwrap();
    assert!(disk_content(&target, &after).await == new);
    let most = 60 * (GROUP + PROOF) + index_bytes(&after) + 64 * PROOF;
    let moved = sent(&source, &target) - first;
    assert!(moved <= most, "{moved} bytes moved where {most} should do");
    target.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_changed_the_result_is_the_same() {
    let [source, target] = members().await;
    let mut content = random(10, 3 * MIB);
    for seed in 0..12_u8 {
        let before = source.import_indexed(&content).await;
        target.fetch(&before, &[&source]).await.unwrap();
        assert!(disk_content(&target, &before).await == content, "version {seed}");
        // Where and how much follows from the seed; lengths go up and down by any number of bytes.
        let dice: Vec<usize> =
            random(20 + seed, 64).chunks(4).map(|four| four.iter().fold(0, |n, b| n << 8 | usize::from(*b))).collect();
        for roll in dice.chunks(4) {
            let at = roll[0] % content.len();
            let bytes = (roll[1] % 200_000).min(content.len() - at);
            match roll[2] % 5 {
                0 => content[at..at + bytes].fill(0),
                1 => drop(content.splice(at..at, random(roll[3] as u8, bytes % 9000))),
                2 => drop(content.drain(at..at + bytes.min(content.len() / 2))),
                3 => content.extend_from_within(at / BLOCK * BLOCK..at + bytes),
                _ => content[at..at + bytes].copy_from_slice(&random(roll[3] as u8, bytes)),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_that_reuse_give_each_other_the_rest() {
    let [source, one, other] = members().await;
    let (old, new) = versions(60);
    let before = source.import_indexed(&old).await;
    for target in [&one, &other] {
        target.fetch(&before, &[&source]).await.unwrap();
    }
    let after = source.import_indexed(&new).await;
    let part = |node: &TestNode| Holder { endpoint: node.id(), is_whole: false, same_site: None };
    let fetch = async |target: &TestNode, peer: &TestNode| {
        target.images.keep(after.id(), &after).await.unwrap();
        let (_, holders) = watch::channel(vec![whole(source.id()), part(peer)]);
        in_time(target.images.fetch(&after, holders, &watch::Sender::default())).await.unwrap();
    };
    tokio::join!(fetch(&one, &other), fetch(&other, &one));
    for target in [&one, &other] {
        assert!(disk_content(target, &after).await == new);
    }
}
