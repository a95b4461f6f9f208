//! What is on a node already is not fetched, and nothing is believed for being there. Bytes are counted where they are sent.

use std::fs::Permissions;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::images::{Direction, Rates};
use crate::transport::{PeerAddress, load_or_create_key};

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
    target.bring(&before, &[whole(source.id())]).await;
    let zeros = 10 * MIB as u64;
    let all = old.len() as u64 + index_bytes(&before);
    let first = sent(&source, &target);
    assert!(first < all - zeros + all / 50, "zeros are not sent: {first} of {all}");
    assert!(target.allocated(disk_of(&before).part.hash).await < old.len() as u64 - zeros + (1 << 20));

    let after = source.import_indexed(&new).await;
    let progress = target.bring(&after, &[whole(source.id())]).await;
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
    third.bring(&after, &[whole(target.id())]).await;
    assert!(disk_content(&third, &after).await == new);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_as_a_whole_is_put_together_without_a_byte_of_it() {
    let [source, target] = members().await;
    let old = random(2, 12 * MIB);
    let before = source.import_indexed(&old).await;
    target.bring(&before, &[whole(source.id())]).await;
    let zeros = vec![0; 3 * MIB];
    let new = [&old[8 * MIB..], &zeros, &old[BLOCK..5 * MIB]].concat();
    let after = source.import_indexed(&new).await;
    let first = sent(&source, &target);
    let progress = target.bring(&after, &[whole(source.id())]).await;
    assert!(disk_content(&target, &after).await == new);
    assert_eq!(progress.bytes_received, index_bytes(&after));
    assert!(sent(&source, &target) - first < index_bytes(&after) + 4 * PROOF);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_chunk_is_fetched_and_the_rest_is_not() {
    let [source, target] = members().await;
    let (old, new) = versions(3);
    let before = source.import_indexed(&old).await;
    target.bring(&before, &[whole(source.id())]).await;
    let path = target.images.path(disk_of(&before).part.hash).await.unwrap();
    for at in [5 * MIB, 25 * MIB + 100, 39 * MIB] {
        damage(&path, at as u64);
    }
    let after = source.import_indexed(&new).await;
    let first = sent(&source, &target);
    target.bring(&after, &[whole(source.id())]).await;
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
    target.bring(&before, &[whole(source.id())]).await;
    // It says that the new version consists of the chunks of the old one.
    let blob = source.import(&new).await;
    let mut lie = source.import(&old).await.index.clone().unwrap().to_vec();
    lie[1..33].copy_from_slice(&blob.hash.0);
    let part = Part { hash: blob.hash, bytes: blob.bytes };
    let after = source.keep_indexed(part, lie.into()).await;
    target.bring(&after, &[whole(source.id())]).await;
    assert!(disk_content(&target, &after).await == new);
    // And one that says nothing sensible at all.
    let other = source.import(&random(9, MIB)).await;
    let after =
        source.keep_indexed(Part { hash: other.hash, bytes: other.bytes }, Bytes::from_static(b"no index")).await;
    target.bring(&after, &[whole(source.id())]).await;
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
    target.bring(&before, &[whole(source.id())]).await;
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
    target.bring(&after, &[whole(source.id())]).await;
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
        target.bring(&before, &[whole(source.id())]).await;
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
        target.bring(&before, &[whole(source.id())]).await;
    }
    let after = source.import_indexed(&new).await;
    let part = |node: &TestNode| Holder { endpoint: node.id(), is_whole: false, same_site: None, opened_by: None };
    let (from_one, from_other) = ([whole(source.id()), part(&one)], [whole(source.id()), part(&other)]);
    tokio::join!(one.bring(&after, &from_other), other.bring(&after, &from_one));
    for target in [&one, &other] {
        assert!(disk_content(target, &after).await == new);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_disk_as_it_comes_waits_for_no_proof_and_the_rest_is_reused() {
    let [source, target] = members().await;
    let old = random(30, 16 * MIB);
    let new = [&old[..], &random(31, 16 * MIB)].concat();
    let before = source.import_indexed(&old).await;
    target.bring(&before, &[whole(source.id())]).await;
    let after = source.import_indexed(&new).await;
    // Two minutes until all has come that is not here.
    let slow = Rates { down_bytes_per_s: Some(128 << 10), ..Rates::default() };
    target.images.limits().set(None, slow);
    let holders = [whole(source.id())];
    let bring = target.bring(&after, &holders);
    let read = async {
        let arriving = target.images.arriving(disk_of(&after).part);
        let at = 5 * MIB + 100;
        let read = arriving.read(at as u64..(at + BLOCK) as u64, Duration::from_secs(60)).await.unwrap();
        assert!(read == new[at..at + BLOCK]);
        target.images.limits().set(None, Rates::default());
    };
    let (progress, ()) = tokio::join!(bring, read);
    assert!(disk_content(&target, &after).await == new);
    assert!(progress.bytes_reused >= 11 * MIB as u64, "what nobody read is not fetched: {progress:?}");
}

/// Tells the child what to do: a directory, the source's address, the manifest, and how much is to come before it dies, as JSON.
const TASK: &str = "BLIXARD_TEST_REUSE";

/// What the process does that the test below starts: it fetches, and kills itself once so much more of the image is here.
async fn reuse_and_die(task: &str) {
    let (dir, source, manifest, bytes): (PathBuf, PeerAddress, Manifest, u64) = serde_json::from_str(task).unwrap();
    let node = TestNode::start_in(&dir.join("images"), load_or_create_key(&dir.join("key")).unwrap()).await;
    node.transport.learn(&source);
    let here = node.images.local_bytes(&manifest).await.unwrap();
    let progress = watch::Sender::<Progress>::default();
    let mut seen = progress.subscribe();
    let sources = [source.endpoint];
    // Where it is done before this sees it, it dies then.
    tokio::select! {
        ended = node.fetch_from(&manifest, &sources, &progress) => ended.unwrap(),
        seen = seen.wait_for(|progress| progress.bytes_done >= here + bytes) => drop(seen.unwrap()),
    }
    let Progress { bytes_received, bytes_reused, .. } = *progress.borrow();
    std::fs::write(dir.join("told"), serde_json::to_string(&(bytes_received, bytes_reused)).unwrap()).unwrap();
    kill(Pid::this(), Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_killed_while_it_reuses_goes_on_and_gets_next_to_nothing_twice() {
    /// How much comes in each life: first what has to be fetched, then what is here.
    const LIVES: [usize; 5] = [MIB, MIB, MIB, 4 * MIB, 4 * MIB];
    /// What one death may cost of what was verified.
    const LOST_MAX: u64 = 256 << 10;
    if let Ok(task) = std::env::var(TASK) {
        return reuse_and_die(&task).await;
    }
    let source = TestNode::start().await;
    let old = random(40, 24 * MIB);
    let mut new = old.clone();
    // Of six groups one has to be fetched, which are 4 MiB.
    new.chunks_mut(6 * GROUP as usize)
        .for_each(|groups| groups[BLOCK..2 * BLOCK].iter_mut().for_each(|byte| *byte ^= 1));
    let (before, after) = (source.import_indexed(&old).await, source.import_indexed(&new).await);
    let temp = tempfile::tempdir().unwrap();
    let key = load_or_create_key(&temp.path().join("key")).unwrap();
    source.transport.access().set_members([source.id(), key.id()]);
    let target = TestNode::start_in(&temp.path().join("images"), key.clone()).await;
    target.transport.learn(&source.transport.address());
    target.bring(&before, &[whole(source.id())]).await;
    target.stop().await;
    source.images.limits().set(None, Rates { up_bytes_per_s: Some(4 << 20), ..Rates::default() });
    let (mut received, mut reused) = (0, 0);
    for (life, bytes) in LIVES.iter().enumerate() {
        let task = serde_json::to_string(&(temp.path(), source.transport.address(), &after, bytes)).unwrap();
        let name =
            "images::tests::reusing::a_receiver_that_is_killed_while_it_reuses_goes_on_and_gets_next_to_nothing_twice";
        let child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(TASK, task)
            .kill_on_drop(true)
            .output();
        let child = in_time(child).await.unwrap();
        assert_eq!(child.status.signal(), Some(9), "life {life}: {}", String::from_utf8_lossy(&child.stderr));
        let told = std::fs::read_to_string(temp.path().join("told")).unwrap();
        let (came, found): (u64, u64) = serde_json::from_str(&told).unwrap();
        (received, reused) = (received + came, reused + found);
    }
    assert!(received > 0 && reused > 0, "it died while it fetched and while it reused: {received}, {reused}");

    let target = TestNode::start_in(&temp.path().join("images"), key).await;
    target.transport.learn(&source.transport.address());
    let progress = target.bring(&after, &[whole(source.id())]).await;
    assert!(disk_content(&target, &after).await == new);
    assert!(target.images.is_complete(&after).await.unwrap());
    let fresh = (new.len() as u64).div_ceil(6 * GROUP) * GROUP + index_bytes(&after);
    let twice = (received + progress.bytes_received).saturating_sub(fresh);
    assert!(twice <= LIVES.len() as u64 * LOST_MAX, "{twice} bytes came twice");
    target.stop().await;
}
