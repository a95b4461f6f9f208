//! Who gets nothing, and what nobody takes.

use std::fs;

use blixard_core::BlobHash;

use super::super::listing::{Entry, Kind, LISTING_BYTES_MAX};
use super::super::wire::{Request, SharePart};
use super::*;
use crate::transport::Connection;

/// Why a node closed a connection, with its code.
async fn end_of(connection: &Connection) -> String {
    let closed = tokio::time::timeout(SOON, connection.closed()).await;
    format!("{:?}", closed.expect("the connection is closed"))
}

/// What a node answers to bytes from a stranger: how it ended the connection, if it gave nothing.
async fn answer(sharer: &Sharer, bytes: &[u8]) -> String {
    let stranger = open_transport(SecretKey::generate()).await;
    stranger.learn(&sharer.transport.address());
    let connection = stranger.connect(sharer.transport.id(), Protocol::Share).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // It may be closed before all of it is there.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let got = tokio::time::timeout(SOON, recv.read_to_end(1 << 20)).await.expect("there is an end");
    assert!(got.is_err(), "something was given: {got:?}");
    let end = end_of(&connection).await;
    stranger.close().await;
    end
}

fn request(secret: [u8; 32], part: SharePart, from_bytes: u64) -> Vec<u8> {
    Request { secret, part, from_bytes }.encode()
}

#[tokio::test]
async fn a_secret_that_opens_nothing_is_told_nothing() {
    let sharer = Sharer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, 100_000);
    sharer.share(1, &folder, None).await;
    sharer.share(2, &folder, None).await;
    sharer.share(3, &folder, Some(clock::now())).await;
    assert!(sharer.shares.stop(ShareId([2; 8])).await.unwrap());
    assert!(!sharer.shares.stop(ShareId([2; 8])).await.unwrap());
    let never = answer(&sharer, &request([9; 32], SharePart::Listing, 0)).await;
    assert!(never.contains("403") && never.contains("opens nothing"), "{never}");
    for (secret, part) in [(2, SharePart::Listing), (3, SharePart::Content), (9, SharePart::Content)] {
        assert_eq!(answer(&sharer, &request([secret; 32], part, 0)).await, never, "what was, and what never was");
    }
    assert_eq!(sharer.metrics.shares_refused.get(), 4);
    // Whoever has a secret gets what it opens, and nothing that cannot be.
    for from_bytes in [1, 100_001, 1 << 20, u64::MAX] {
        let end = answer(&sharer, &request([1; 32], SharePart::Content, from_bytes)).await;
        assert!(end.contains("400"), "{from_bytes}: {end}");
    }
    for bytes in [&b""[..], &[0; 31], &[1; 64], &[1; 65], &vec![1; 1 << 16]] {
        assert!(answer(&sharer, bytes).await.contains("400"), "{} bytes", bytes.len());
    }
}

#[tokio::test]
async fn who_says_nothing_has_to_go_and_keeps_nobody_waiting() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, 1000);
    let ticket = sharer.share(1, &folder, None).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        let stranger = open_transport(SecretKey::generate()).await;
        stranger.learn(&sharer.transport.address());
        let connection = stranger.connect(sharer.transport.id(), Protocol::Share).await.unwrap();
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&[1]).await.unwrap();
        silent.push((stranger, connection, send, recv));
    }
    fetcher.fetch(&ticket, "here", false).await.unwrap();
    for (_, connection, ..) in &silent {
        assert!(end_of(connection).await.contains("400"));
    }
}

#[tokio::test]
async fn a_ticket_opens_its_own_share_and_no_blob_besides() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = [1, 2].map(|seed| folder_with(dir.path(), seed, 50_000));
    let (one, other) = (sharer.share(1, &one, None).await, sharer.share(2, &other, None).await);
    // The right listing with the secret of another share: what comes does not match the ticket.
    let mixed = ShareTicket { secret: one.secret, ..other.clone() };
    let refused = fetcher.fetch(&mixed, "here", false).await.unwrap_err();
    assert!(matches!(refused, FetchError::Lie(_) | FetchError::Refused), "{refused}");
    let forged = ShareTicket { secret: [7; 32], ..other };
    assert!(matches!(fetcher.fetch(&forged, "here", false).await, Err(FetchError::Refused)));
    assert_eq!(fetcher.left(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_is_stopped_ends_fetches_and_frees_its_space() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, 6 << 20);
    let ticket = sharer.share(1, &folder, None).await;
    let share = sharer.shares.list()[&ShareId([1; 8])].clone();
    sharer.limit(Some(256 << 10));
    let progress = watch::Sender::default();
    let mut seen = progress.subscribe();
    let target = fetcher.path("here");
    let fetching = in_time(fetch_over(&fetcher.transport, &ticket, Some(&target), false, &progress));
    let stopping = async {
        seen.wait_for(|progress| progress.done_bytes > 0).await.unwrap();
        assert!(sharer.shares.is_whole(&share).await);
        assert!(sharer.shares.stop(ShareId([1; 8])).await.unwrap());
    };
    let (fetched, ()) = tokio::join!(fetching, stopping);
    assert!(matches!(fetched, Err(FetchError::Refused)), "{fetched:?}");
    assert!(!target.exists());
    eventually("the space to be freed", || async { !sharer.shares.is_whole(&share).await }).await;
    // So it is with content that was lost.
    let lost = sharer.share(2, &folder, None).await;
    sharer.images.release("share-0202020202020202").await.unwrap();
    let share = sharer.shares.list()[&ShareId([2; 8])].clone();
    eventually("the content to be lost", || async { !sharer.shares.is_whole(&share).await }).await;
    assert!(matches!(fetcher.fetch(&lost, "here", false).await, Err(FetchError::Refused)));
    assert!(matches!(fetcher.fetch(&ticket, "here", false).await, Err(FetchError::Refused)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_ends_when_its_time_is_over() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let dir = tempfile::tempdir().unwrap();
    let folder = folder_with(dir.path(), 1, 1000);
    let running = tokio::spawn(sharer.shares.clone().run());
    let lasting = sharer.share(1, &folder, Some(clock::now().plus_ms(3_600_000))).await;
    sharer.share(2, &folder, Some(clock::now().plus_ms(300))).await;
    eventually("the share to be over", || async { sharer.shares.list().len() == 1 }).await;
    fetcher.fetch(&lasting, "here", false).await.unwrap();
    running.abort();
    // Before it is cleared away, too.
    let over = sharer.share(3, &folder, Some(clock::now())).await;
    assert!(matches!(fetcher.fetch(&over, "over", false).await, Err(FetchError::Refused)));
    // What a crash left of a share is cleared away at the next start.
    sharer.images.hold("share-0909090909090909", &[BlobHash([9; 32])]).await.unwrap();
    let path = sharer.dir.join("shares.json");
    let again = Shares::open(&path, sharer.images.clone(), sharer.metrics.clone()).await.unwrap();
    assert_eq!(again.list().len(), 2);
    assert!(!sharer.images.held().await.unwrap().contains("share-0909090909090909"));
}

/// A listing as somebody writes it who means harm.
fn forged(entries: Vec<Entry>, content: &[u8]) -> Vec<u8> {
    let hash = BlobHash(*blake3::hash(content).as_bytes());
    let content = Some(Part { hash, bytes: content.len() as u64 });
    postcard::to_extend(&Listing { name: b"stuff".to_vec(), entries, content }, vec![1]).unwrap()
}

#[tokio::test]
async fn nothing_is_written_outside_of_the_target() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let content = b"owned";
    let entry = |path: &[u8], kind| Entry { path: path.to_vec(), mode: 0o755, kind };
    let file = |path: &[u8]| entry(path, Kind::File(5));
    let outside = fetcher.path("outside");
    let absolute = outside.as_os_str().as_bytes().to_vec();
    let link = |target: &[u8]| Entry { mode: 0, ..entry(b"link", Kind::Link(target.to_vec())) };
    let tries: Vec<Vec<Entry>> = vec![
        vec![file(&absolute)],
        vec![file(b"../outside")],
        vec![entry(b"a", Kind::Folder), file(b"a/../../outside")],
        vec![link(b".."), file(b"link/outside")],
        vec![link(&absolute), file(b"link")],
        vec![link(b"../outside"), file(b"x")],
        vec![file(b"a\0b")],
        vec![file(b"a"), entry(b"a", Kind::File(0))],
    ];
    for (id, entries) in (1..).zip(tries) {
        let entries: Vec<Entry> = std::iter::once(entry(b"", Kind::Folder)).chain(entries).collect();
        let shown = format!("{entries:?}");
        let ticket = sharer.share_unchecked(id, &forged(entries, content), content).await;
        let refused = fetcher.fetch(&ticket, "here", true).await.unwrap_err();
        assert!(matches!(refused, FetchError::Listing(_)), "{shown}: {refused}");
        assert_eq!(fetcher.left(), [""; 0], "{shown}");
    }
    // The name under which it was shared leads nowhere else either.
    let named = Listing {
        name: b"../outside".to_vec(),
        ..Listing::decode(&forged(vec![entry(b"", Kind::File(5))], content)).unwrap()
    };
    let named = postcard::to_extend(&named, vec![1]).unwrap();
    let ticket = sharer.share_unchecked(100, &named, content).await;
    assert!(matches!(fetcher.fetch(&ticket, "here", true).await, Err(FetchError::Listing(_))));
}

#[tokio::test]
async fn content_that_is_not_what_was_shared_is_never_taken() {
    let (sharer, fetcher) = (Sharer::start().await, Fetcher::start().await);
    let (shared, other) = (random(1, 300_000), random(2, 300_000));
    let entries = vec![Entry { path: Vec::new(), mode: 0o644, kind: Kind::File(300_000) }];
    let ticket = sharer.share_unchecked(1, &forged(entries, &shared), &other).await;
    let found = fetcher.fetch(&ticket, "here", false).await.unwrap_err();
    assert!(matches!(found, FetchError::Lie(_)), "{found}");
    assert!(!fetcher.path("here").exists());
    for name in fetcher.left() {
        assert_eq!(fs::metadata(fetcher.path(&name)).unwrap().len(), 0, "not a byte of it was written");
    }
}

#[tokio::test]
async fn what_was_uploaded_and_is_no_listing_is_not_shared() {
    let sharer = Sharer::start().await;
    let content = b"content";
    let root = Entry { path: Vec::new(), mode: 0o644, kind: Kind::File(7) };
    let sound = forged(vec![root.clone()], content);
    let escape = forged(vec![Entry { path: b"..".to_vec(), ..root }], content);
    for (listing, words) in
        [(&b"nothing"[..], "cannot be shared"), (&escape, "cannot be shared"), (&sound, "is not on this node")]
    {
        let blob = sharer.images.import(chunks(listing)).await.unwrap();
        let part = Part { hash: blob.hash, bytes: blob.bytes };
        let refused = sharer.shares.add(ShareId([1; 8]), hash_of(&[1; 32]), part, None).await.unwrap_err();
        assert!(refused.to_string().contains(words), "{refused}");
    }
    let endless = Part { hash: BlobHash([1; 32]), bytes: LISTING_BYTES_MAX as u64 + 1 };
    assert!(sharer.shares.add(ShareId([1; 8]), hash_of(&[1; 32]), endless, None).await.is_err());
    assert!(sharer.shares.list().is_empty() && sharer.images.held().await.unwrap().is_empty());
}
