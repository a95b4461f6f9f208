//! Processes that are killed: in a fetch, and at any moment of whatever a store does.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;

use blixard_core::ImageId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;
use crate::transport::{PeerAddress, load_or_create_key};

const MIB: usize = 1 << 20;
/// Tells the child what to do: a directory, the source's address and the manifest, as JSON.
const TASK: &str = "BLIXARD_TEST_FETCH";

/// What the process does that the test below starts: it fetches, and kills itself half-way.
async fn fetch_and_die(task: &str) {
    let (dir, source, manifest): (PathBuf, PeerAddress, Manifest) = serde_json::from_str(task).unwrap();
    let node = TestNode::start_in(&dir.join("images"), load_or_create_key(&dir.join("key")).unwrap()).await;
    node.transport.learn(&source);
    let progress = watch::Sender::<Progress>::default();
    let mut seen = progress.subscribe();
    let sources = [source.endpoint];
    tokio::select! {
        ended = node.fetch_from(&manifest, &sources, &progress) => panic!("it ended too soon: {ended:?}"),
        seen = seen.wait_for(|progress| progress.bytes_done >= manifest.bytes() / 2) => {
            seen.unwrap();
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_verified_before_a_kill_is_not_fetched_again() {
    // This test is its own child: a process that can be killed has to run the code under test.
    if let Ok(task) = std::env::var(TASK) {
        return fetch_and_die(&task).await;
    }
    let source = TestNode::start().await;
    let content = random(1, 96 * MIB);
    let manifest = source.import_disk(&content).await;
    let temp = tempfile::tempdir().unwrap();
    let key = load_or_create_key(&temp.path().join("key")).unwrap();
    source.transport.access().set_members([source.id(), key.id()]);
    let task = serde_json::to_string(&(temp.path(), source.transport.address(), &manifest)).unwrap();
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["images::tests::crash::what_was_verified_before_a_kill_is_not_fetched_again", "--exact", "--nocapture"])
        .env(TASK, task)
        .kill_on_drop(true)
        .output();
    let child = in_time(child).await.unwrap();
    assert_eq!(child.status.signal(), Some(9), "{}", String::from_utf8_lossy(&child.stderr));

    let node = TestNode::start_in(&temp.path().join("images"), key).await;
    node.transport.learn(&source.transport.address());
    assert_eq!(node.images.kept().await.unwrap(), [manifest.id()].into(), "the kept image was written down");
    let here = node.images.local_bytes(&manifest).await.unwrap();
    assert!(here >= manifest.bytes() / 3, "half was verified, and {here} bytes are known");
    assert!(here < manifest.bytes());
    let progress = node.fetch(&manifest, &[&source]).await.unwrap();
    assert_eq!(progress.bytes_received, manifest.bytes() - here);
    assert!(node.content(&manifest).await == content);
    node.stop().await;
}

/// The same for the test below, with how much is to come in this life.
const LIVES: &str = "BLIXARD_TEST_LIVES";
/// How often the receiver of one image is killed.
const DEATHS: u64 = 50;
/// What one death may cost of what was verified.
const LOST_MAX: u64 = 256 << 10;
/// What may be on its way when the receiver dies: what it allows a stream and a connection to send ahead.
const UNDER_WAY_MAX: u64 = 4 << 20;

/// Fetches, and kills itself once so much more of the image is there.
async fn live_a_while(task: &str) {
    let (dir, source, manifest, bytes): (PathBuf, PeerAddress, Manifest, u64) = serde_json::from_str(task).unwrap();
    let node = TestNode::start_in(&dir.join("images"), load_or_create_key(&dir.join("key")).unwrap()).await;
    node.transport.learn(&source);
    let progress = watch::Sender::<Progress>::default();
    let mut seen = progress.subscribe();
    let sources = [source.endpoint];
    tokio::select! {
        ended = node.fetch_from(&manifest, &sources, &progress) => panic!("it ended too soon: {ended:?}"),
        seen = seen.wait_for(|progress| progress.bytes_received >= bytes) => {
            std::fs::write(dir.join("received"), seen.unwrap().bytes_received.to_string()).unwrap();
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_killed_fifty_times_gets_next_to_nothing_twice() {
    if let Ok(task) = std::env::var(LIVES) {
        return live_a_while(&task).await;
    }
    let content = random(31, 96 * MIB);
    let (source, manifest, sent) = swarm::slow_source(&content, 64 << 20).await;
    let temp = tempfile::tempdir().unwrap();
    let key = load_or_create_key(&temp.path().join("key")).unwrap();
    source.transport.access().set_members([source.id(), key.id()]);
    let mut dice = blake3::Hasher::new().update(b"lives").finalize_xof();
    let mut received = 0;
    for death in 0..DEATHS {
        let mut drawn = [0; 4];
        dice.fill(&mut drawn);
        // All lives together are shorter than the image is long.
        let bytes = u64::from(u32::from_le_bytes(drawn)) % (2 * manifest.bytes() / (DEATHS + 10));
        let task = serde_json::to_string(&(temp.path(), source.transport.address(), &manifest, bytes)).unwrap();
        let child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["images::tests::crash::a_receiver_that_is_killed_fifty_times_gets_next_to_nothing_twice", "--exact"])
            .env(LIVES, task)
            .kill_on_drop(true)
            .output();
        let child = in_time(child).await.unwrap();
        assert_eq!(child.status.signal(), Some(9), "death {death}: {}", String::from_utf8_lossy(&child.stderr));
        let told = std::fs::read_to_string(temp.path().join("received")).unwrap();
        received += told.parse::<u64>().unwrap();
    }
    let node = TestNode::start_in(&temp.path().join("images"), key).await;
    node.transport.learn(&source.transport.address());
    let here = node.images.local_bytes(&manifest).await.unwrap();
    let progress = node.fetch(&manifest, &[&source]).await.unwrap();
    assert_eq!(progress.bytes_received, manifest.bytes() - here);
    assert!(node.content(&manifest).await == content);
    let verified_twice = (received + progress.bytes_received).saturating_sub(manifest.bytes());
    // Counted by whoever sent it.
    let sent_twice = sent.load(Ordering::Relaxed) - manifest.bytes();
    assert!(verified_twice <= DEATHS * LOST_MAX, "{verified_twice} verified bytes came twice");
    assert!(sent_twice <= DEATHS * UNDER_WAY_MAX, "{sent_twice} bytes were sent twice");
    node.stop().await;
}

/// The same for the test below, with the images that the source has and a number that all else follows from.
const STORM: &str = "BLIXARD_TEST_STORM";
/// Processes that are killed, one after the other, over one store.
const KILLS: u8 = 10;

/// Does whatever a store does, for ever, and writes down what it has done; a thread kills it at a moment that nobody chose.
async fn work_and_die(task: &str) {
    let (dir, source, manifests, seed): (PathBuf, PeerAddress, Vec<Manifest>, u8) = serde_json::from_str(task).unwrap();
    let mut dice = blake3::Hasher::new().update(&[seed]).finalize_xof();
    let mut draw = move |below: u16| {
        let mut bytes = [0; 2];
        dice.fill(&mut bytes);
        u16::from_le_bytes(bytes) % below
    };
    let node = TestNode::start_in(&dir.join("images"), load_or_create_key(&dir.join("key")).unwrap()).await;
    node.transport.learn(&source);
    let lives = Duration::from_millis(draw(400).into());
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // Every other one has done something before it dies, however busy the host is.
        if seed % 2 == 1 {
            is_done.recv().unwrap();
        }
        std::thread::sleep(lives);
        kill(Pid::this(), Signal::SIGKILL).unwrap();
    });
    let mut journal = std::fs::File::options().append(true).create(true).open(dir.join("journal")).unwrap();
    let mut write = |word: &str, image: ImageId| {
        writeln!(journal, "{word} {image}").unwrap();
        // Nobody waits for the second.
        let _ = done.send(());
    };
    for number in 0.. {
        let kept: Vec<ImageId> = node.images.kept().await.unwrap().into_iter().collect();
        match draw(4) {
            0 => {
                let content = random(draw(250) as u8, MIB + usize::from(draw(4)) * 700_000 + number);
                write("has", node.import_indexed(&content).await.id());
            }
            1 => {
                let manifest = &manifests[usize::from(draw(3))];
                node.bring(manifest, &[whole(source.endpoint)]).await;
                write("has", manifest.id());
            }
            2 if !kept.is_empty() => {
                let image = kept[usize::from(draw(u16::try_from(kept.len()).unwrap()))];
                write("drops", image);
                node.images.drop_image(image).await.unwrap();
            }
            _ => node.images.collect().await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_neither_loses_nor_leaks() {
    if let Ok(task) = std::env::var(STORM) {
        return work_and_die(&task).await;
    }
    let source = TestNode::start().await;
    let mut manifests = Vec::new();
    for seed in 251..254 {
        manifests.push(source.import_indexed(&random(seed, 5 * MIB)).await);
    }
    let temp = tempfile::tempdir().unwrap();
    let key = load_or_create_key(&temp.path().join("key")).unwrap();
    source.transport.access().set_members([source.id(), key.id()]);
    let mut held = 0;
    for seed in 0..KILLS {
        let task = serde_json::to_string(&(temp.path(), source.transport.address(), &manifests, seed)).unwrap();
        let child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["images::tests::crash::a_kill_at_any_moment_neither_loses_nor_leaks", "--exact", "--nocapture"])
            .env(STORM, task)
            .kill_on_drop(true)
            .output();
        let child = in_time(child).await.unwrap();
        assert_eq!(child.status.signal(), Some(9), "{}", String::from_utf8_lossy(&child.stderr));

        // The journal is written by the operating system whatever becomes of the process; its last word may be of what was not
        // done any more.
        let journal = std::fs::read_to_string(temp.path().join("journal")).unwrap_or_default();
        let mut must_be = BTreeSet::new();
        for (word, image) in journal.lines().filter_map(|line| line.split_once(' ')) {
            let image: ImageId = image.parse().unwrap();
            match word {
                "has" => must_be.insert(image),
                _ => must_be.remove(&image),
            };
        }
        let node = TestNode::start_in(&temp.path().join("images"), key.clone()).await;
        let kept = node.images.kept().await.unwrap();
        assert!(must_be.is_subset(&kept), "seed {seed}: of {must_be:?} only {kept:?} are kept");
        node.images.collect().await;
        let data = node.dir.join("data");
        let mut whole = BTreeSet::new();
        for file in std::fs::read_dir(&data).unwrap().flatten() {
            let path = file.path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let is_data = path.extension().is_some_and(|kind| kind == "data");
            if is_data && blake3::hash(&std::fs::read(&path).unwrap()).to_hex().as_str() == name {
                whole.insert(name);
            }
        }
        let mut blobs = BTreeSet::new();
        for tag in node.images.inner.store.tags().list().await.unwrap().collect::<Vec<_>>().await {
            let tag = tag.unwrap();
            let image = String::from_utf8_lossy(tag.name.as_ref()).split('/').nth(1).and_then(|id| id.parse().ok());
            if image.is_some_and(|image: ImageId| must_be.contains(&image)) {
                assert!(whole.contains(&tag.hash.to_string()), "seed {seed}: {image:?} is not what it was");
                held += 1;
            }
            blobs.insert(tag.hash.to_string());
        }
        let files = std::fs::read_dir(&data).unwrap().flatten().map(|file| file.path());
        let known = |path: &PathBuf| path.file_stem().is_some_and(|name| blobs.contains(name.to_str().unwrap()));
        let leaked: Vec<PathBuf> = files.filter(|path| !known(path)).collect();
        assert!(leaked.is_empty(), "seed {seed}: nothing keeps {leaked:?}");
        assert_eq!(std::fs::read_dir(node.dir.join("temp")).unwrap().count(), 0, "seed {seed}");
        node.stop().await;
    }
    assert!(held > 0, "there was something to lose");
}
