//! What arrives, and what does after it was cut short.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::StagingError;
use super::*;

/// Long enough on its way to be cut, at the rate below.
const BYTES: usize = 6 << 20;
/// A limit under which it takes so long that a busy host does not miss the middle of it.
const RATE: u64 = 512 << 10;
/// What a cut may cost: what is gathered before it is written, and what is verified together.
const LOST_BYTES_MAX: u64 = (256 << 10) + (16 << 10);

#[tokio::test]
async fn a_folder_arrives_as_it_was() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("a/empty")).unwrap();
    fs::create_dir(root.join("closed")).unwrap();
    let odd = root.join(OsStr::from_bytes(b"odd \xff\n name"));
    for (path, bytes, mode) in [
        (root.join("a/long"), 700_001, 0o640),
        (root.join("a/tool"), 20_000, 0o755),
        (root.join("a-nothing"), 0, 0o604),
        (root.join("closed/secret"), 5, 0o400),
        (odd, 16 << 10, 0o666),
    ] {
        fs::write(&path, random(bytes as u8, bytes)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    symlink("../a-nothing", root.join("a/up")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    fs::set_permissions(root.join("closed"), Permissions::from_mode(0o511)).unwrap();
    fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
    let ticket = sharer.share(1, &root, None).await;
    let fetched = fetcher.fetch(&ticket.to_string().parse().unwrap(), "here", false).await.unwrap();
    assert_eq!((fetched.is_folder, fetched.files, fetched.bytes), (true, 5, 700_001 + 20_000 + 5 + (16 << 10)));
    assert_eq!(fetched.path.file_name().unwrap(), "here");
    assert_eq!(tree(&fetched.path), tree(&root));
    assert_eq!(fetcher.left(), ["here"], "nothing else is left");
    // To whatever place it is fetched, and as often.
    fetcher.fetch(&ticket, "again", false).await.unwrap();
    assert_eq!(tree(&fetcher.path("again")), tree(&root));
}

#[tokio::test]
async fn files_alone_arrive_the_empty_ones_too() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    for (id, bytes) in [(1, 0), (2, 1), (3, 16 << 10), (4, (16 << 10) + 1), (5, 1 << 20)] {
        let path = dir.path().join("file");
        fs::write(&path, random(id, bytes)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600 + u32::from(id))).unwrap();
        let ticket = sharer.share(id, &path, None).await;
        let fetched = fetcher.fetch(&ticket, &format!("file{id}"), false).await.unwrap();
        assert_eq!((fetched.is_folder, fetched.files, fetched.bytes), (false, 1, bytes as u64));
        assert_eq!(tree(&fetched.path), tree(&path));
    }
}

#[tokio::test]
async fn what_is_there_is_replaced_only_when_that_is_asked_for() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, 1000);
    let ticket = sharer.share(1, &folder, None).await;
    fs::create_dir(fetcher.path("folder")).unwrap();
    fs::write(fetcher.path("folder/own"), "kept").unwrap();
    fs::write(fetcher.path("file"), "kept").unwrap();
    symlink("nowhere", fetcher.path("link")).unwrap();
    for name in ["folder", "file", "link"] {
        let before = tree(fetcher.dir.path());
        let refused = fetcher.fetch(&ticket, name, false).await.unwrap_err();
        assert!(matches!(refused, FetchError::Staging(StagingError::Exists(_))), "{refused}");
        assert_eq!(tree(fetcher.dir.path()), before);
        fetcher.fetch(&ticket, name, true).await.unwrap();
        assert_eq!(tree(&fetcher.path(name)), tree(&folder));
    }
    assert_eq!(fetcher.left().len(), 3, "{:?}", fetcher.left());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_where_it_was_cut() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, BYTES);
    let ticket = sharer.share(1, &folder, None).await;
    let mut before = 0;
    for _ in 0..3 {
        sharer.limit(Some(RATE));
        let there = fetcher.fetch_until(&ticket, "here", before + (700 << 10)).await;
        assert!(there.found_bytes + LOST_BYTES_MAX >= before, "{before} bytes were here: {there:?}");
        assert!(there.done_bytes < BYTES as u64 && !fetcher.path("here").exists(), "{there:?}");
        before = there.done_bytes;
    }
    // What the last one asked for is on its way until the other side has heard that nobody wants it.
    eventually("nothing to be sent", || async { sharer.sends_nothing() }).await;
    sharer.limit(None);
    let sent_before = sharer.metrics.shared_bytes.get();
    let fetched = fetcher.fetch(&ticket, "here", false).await.unwrap();
    assert_eq!(tree(&fetched.path), tree(&folder));
    let total = BYTES as u64 + 1;
    assert!(fetched.received_bytes <= total - before + LOST_BYTES_MAX, "{before} bytes were here: {fetched:?}");
    // As the other side sees it, which sends the listing, too.
    let sent = sharer.metrics.shared_bytes.get() - sent_before - ticket.listing.bytes;
    assert_eq!(sent, fetched.received_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_outlives_the_connection_and_the_node() {
    let temp = tempfile::tempdir().unwrap();
    let key = SecretKey::generate();
    let sharer = Sharer::start_in(temp.path(), key.clone()).await;
    let fetcher = Fetcher::start().await;
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, BYTES);
    let ticket = sharer.share(1, &folder, None).await;
    sharer.limit(Some(RATE));
    let progress = watch::Sender::default();
    let mut seen = progress.subscribe();
    let target = fetcher.path("here");
    let fetching = in_time(fetch_over(&fetcher.transport, &ticket, Some(&target), false, &progress));
    let interrupting = async {
        seen.wait_for(|progress| progress.done_bytes >= 1 << 20).await.unwrap();
        drop(sharer.stop().await);
        in_time(seen.wait_for(|progress| progress.waits.is_some())).await.unwrap();
        // At another address, as far as the fetch is concerned: it has to be told of it.
        let sharer = Sharer::start_in(temp.path(), key).await;
        fetcher.transport.learn(&sharer.transport.address());
        assert_eq!(sharer.shares.list().len(), 1, "a share outlives a restart");
        sharer
    };
    let (fetched, _sharer) = tokio::join!(fetching, interrupting);
    assert_eq!(tree(&fetched.unwrap().path), tree(&folder));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_and_is_damaged_is_never_taken_for_what_was_shared() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, BYTES);
    let ticket = sharer.share(1, &folder, None).await;
    sharer.limit(Some(RATE));
    fetcher.fetch_until(&ticket, "here", 1 << 20).await;
    sharer.limit(None);
    let left = fetcher.path(&fetcher.left()[0]).join("big");
    let mut content = fs::read(&left).unwrap();
    content[123_456] ^= 1;
    fs::write(&left, content).unwrap();
    let found = fetcher.fetch(&ticket, "here", false).await.unwrap_err();
    assert!(matches!(found, FetchError::Staging(StagingError::Damaged(_))), "{found}");
    assert_eq!(fetcher.left(), [""; 0], "it is removed");
    let fetched = fetcher.fetch(&ticket, "here", false).await.unwrap();
    assert_eq!(tree(&fetched.path), tree(&folder));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_fetches_to_one_place_do_not_mix() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, BYTES);
    let ticket = sharer.share(1, &folder, None).await;
    sharer.limit(Some(RATE / 4));
    let progress = watch::Sender::default();
    let mut seen = progress.subscribe();
    let target = fetcher.path("here");
    let first = in_time(fetch_over(&fetcher.transport, &ticket, Some(&target), false, &progress));
    let second = async {
        seen.wait_for(|progress| progress.done_bytes > 0).await.unwrap();
        let transport = open_transport(SecretKey::generate()).await;
        let progress = watch::Sender::default();
        let other = in_time(fetch_over(&transport, &ticket, Some(&target), false, &progress)).await.unwrap_err();
        assert!(matches!(other, FetchError::Staging(StagingError::InUse(_))), "{other}");
        sharer.limit(None);
    };
    let (fetched, ()) = tokio::join!(first, second);
    assert_eq!(tree(&fetched.unwrap().path), tree(&folder));
}
