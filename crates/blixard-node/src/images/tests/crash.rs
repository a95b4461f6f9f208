//! A fetch whose process is killed.

use std::os::unix::process::ExitStatusExt;

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
