//! Documents of one cluster in another one: followed with a ticket, and nothing beyond it.

use blixard_core::{BlobHash, ShareId, UnixMs};
use iroh_blobs::Hash;
use iroh_docs::{Author, NamespaceSecret, Record, SignedEntry};

use super::*;
use crate::documents::stored::stored_key;
use crate::documents::wire::{Answer, Ask, Refused};
use crate::documents::{DocumentRight, DocumentTicket, join};

/// The secret of the cluster that joins.
const OTHER: DocumentsSecret = DocumentsSecret([8; 32]);

fn theirs() -> DocumentName {
    "theirs".parse().unwrap()
}

/// A ticket for the document `config` of a node.
async fn ticket(node: &TestNode, id: u8, is_write: bool, expires_at: Option<UnixMs>) -> DocumentTicket {
    let nodes = vec![node.transport.address()];
    let shared = node.documents.share(ShareId([id; 8]), &config(), is_write, expires_at, nodes).await;
    shared.unwrap().0
}

/// Waits until a key of the joined document has a value, or none.
async fn follows(node: &TestNode, key: &str, value: Option<&str>) {
    let wait = async {
        while node.get_in(&theirs(), key).await.as_deref() != value {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        let (has, contact) = (node.get_in(&theirs(), key).await, node.documents.contact(&theirs()));
        panic!("{key} never came to be {value:?}, it is {has:?}; {contact:?}");
    }
}

/// Waits until a node says why the other cluster cannot be had.
async fn fails(node: &TestNode, reason: &str) {
    let failure = || node.documents.contact(&theirs()).and_then(|contact| contact.failure).unwrap_or_default();
    let wait = async {
        while !failure().contains(reason) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "it never says {reason:?}, but {:?}", failure());
}

/// One request to a node, as a stranger's program might send it.
async fn say(from: &TestNode, to: &TestNode, secret: [u8; 32], ask: Ask, value: &[u8]) -> anyhow::Result<Answer> {
    let connection = from.transport.dial(&to.transport.address(), Protocol::SharedDocuments).await?;
    join::exchange(&connection, secret, ask, value).await
}

#[tokio::test]
async fn a_ticket_for_reading_brings_everything_and_lets_nothing_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a]);
    introduce_with(OTHER, &[&b]);
    for number in 0..60 {
        a.set(&format!("many/{number}"), &format!("value {number}")).await;
    }
    let ticket = ticket(&a, 1, false, None).await;
    b.documents.join(&theirs(), &ticket).await.unwrap();
    for number in [0, 30, 59] {
        follows(&b, &format!("many/{number}"), Some(&format!("value {number}"))).await;
    }
    // What changes there later, replaced and deleted keys too.
    a.set("many/0", "changed").await;
    a.documents.delete(&config(), &name("many/1")).await.unwrap();
    follows(&b, "many/0", Some("changed")).await;
    follows(&b, "many/1", None).await;
    assert_eq!(b.documents.entries(&theirs(), "", false).await.unwrap().len(), 59);

    let refused = b.documents.set(&theirs(), &name("x"), b"x".to_vec()).await.unwrap_err();
    assert!(matches!(refused, DocumentError::ReadOnly(_)), "{refused}");
    let refused = b.documents.delete(&theirs(), &name("many/0")).await.unwrap_err();
    assert!(matches!(refused, DocumentError::ReadOnly(_)), "{refused}");
    let nodes = vec![b.transport.address()];
    let passed_on = b.documents.share(ShareId([2; 8]), &theirs(), true, None, nodes).await.unwrap_err();
    assert!(matches!(passed_on, DocumentError::ReadOnly(_)), "{passed_on}");

    // A program that knows more than it was told: the key by which this document is written.
    let DocumentRight::Write(key) = self::ticket(&a, 3, true, None).await.right else { panic!("no key") };
    let record = Record::new(Hash::new(b"forged"), 6, crate::clock::now().0 * 1000);
    let author = Author::from_bytes(&b.key.to_bytes());
    let entry = SignedEntry::from_parts(&NamespaceSecret::from_bytes(&key), &author, stored_key("forged"), record);
    let answer = say(&b, &a, ticket.secret, Ask::Give { entry: Box::new(entry) }, b"forged").await.unwrap();
    assert!(answer == Answer::Given(Err(Refused::ReadOnly)), "it was taken with a ticket for reading");
    assert_eq!(a.get("forged").await, None);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn with_a_ticket_for_writing_two_clusters_become_equal_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    let c = TestNode::start(&dir.path().join("c")).await;
    introduce(&[&a]);
    introduce_with(OTHER, &[&b, &c]);
    a.set("of", "a").await;
    let ticket = ticket(&a, 1, true, None).await;
    b.documents.join(&theirs(), &ticket).await.unwrap();
    // All members of the cluster have it, though one of them was told.
    follows(&b, "of", Some("a")).await;
    follows(&c, "of", Some("a")).await;
    c.documents.set(&theirs(), &name("of"), b"c".to_vec()).await.unwrap();
    a.has("of", Some("c")).await;
    b.documents.set(&theirs(), &name("large"), vec![b'x'; VALUE_BYTES_MAX as usize]).await.unwrap();
    a.has("large", Some(&"x".repeat(VALUE_BYTES_MAX as usize))).await;

    // Both write while they cannot reach each other, and both begin again.
    let (a_dir, a_key) = a.stop().await;
    fails(&b, "reached").await;
    b.documents.set(&theirs(), &name("alone"), b"b".to_vec()).await.unwrap();
    let (b_dir, b_key) = b.stop().await;
    let b = TestNode::start_as(&b_dir, b_key).await;
    introduce_with(OTHER, &[&b, &c]);
    let at = ticket.nodes[0].addresses[0];
    let a = TestNode::start_at(&a_dir, a_key, at).await;
    introduce(&[&a]);
    a.set("meanwhile", "a").await;
    a.has("alone", Some("b")).await;
    follows(&b, "meanwhile", Some("a")).await;
    follows(&c, "meanwhile", Some("a")).await;
    b.documents.delete(&theirs(), &name("of")).await.unwrap();
    a.has("of", None).await;
    for node in [a, b, c] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_ticket_opens_its_document_and_nothing_else_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a]);
    introduce_with(OTHER, &[&b]);
    let web: DocumentName = "web".parse().unwrap();
    a.documents.create(&web).await.unwrap();
    a.documents.set(&web, &name("secret"), b"of web".to_vec()).await.unwrap();
    a.set("public", "of config").await;
    let ticket = ticket(&a, 1, true, None).await;
    b.documents.join(&theirs(), &ticket).await.unwrap();
    follows(&b, "public", Some("of config")).await;

    // A value of another document, by its hash, under its key and under one of this document.
    let hash = BlobHash(*blake3::hash(b"of web").as_bytes());
    for key in ["secret", "public"] {
        let answer = say(&b, &a, ticket.secret, Ask::Value { key: name(key), hash }, b"").await.unwrap();
        assert!(answer == Answer::Value(None), "{key} was given");
    }
    // What is signed for another document, by nobody, or has another value than it says.
    let DocumentRight::Write(key) = &ticket.right else { panic!("no key") };
    let (key, other) = (NamespaceSecret::from_bytes(key), NamespaceSecret::from_bytes(&[5; 32]));
    let author = Author::from_bytes(&b.key.to_bytes());
    let signed = |key: &NamespaceSecret, at_us: u64, bytes: u64| {
        let record = Record::new(Hash::new(b"given"), bytes, at_us);
        Box::new(SignedEntry::from_parts(key, &author, stored_key("given"), record))
    };
    let now_us = crate::clock::now().0 * 1000;
    for (entry, value, refused) in [
        (signed(&other, now_us, 5), &b"given"[..], Refused::Unsound),
        (signed(&key, now_us + 3_600_000_000, 5), b"given", Refused::Unsound),
        (signed(&key, now_us, VALUE_BYTES_MAX + 1), b"given", Refused::Unsound),
        (signed(&key, now_us, 5), b"taken", Refused::WrongValue),
        (signed(&key, now_us, 5), b"give", Refused::WrongValue),
        (signed(&key, now_us, 5), b"given more", Refused::WrongValue),
    ] {
        let answer = say(&b, &a, ticket.secret, Ask::Give { entry }, value).await.unwrap();
        assert!(answer == Answer::Given(Err(refused)), "{refused:?}");
    }
    assert_eq!(a.get("given").await, None);
    let answer = say(&b, &a, ticket.secret, Ask::Give { entry: signed(&key, now_us, 5) }, b"given").await.unwrap();
    assert!(answer == Answer::Given(Ok(())));
    a.has("given", Some("given")).await;

    // Until it is stopped, also for whoever follows already.
    assert!(a.documents.stop_share(&config(), ShareId([1; 8])).await.unwrap());
    a.set("public", "later").await;
    fails(&b, "opens nothing").await;
    b.documents.set(&theirs(), &name("late"), b"b".to_vec()).await.unwrap();
    let refused = say(&b, &a, ticket.secret, Ask::Value { key: name("public"), hash }, b"").await.err().unwrap();
    assert!(refused.to_string().contains("opens nothing"), "{refused}");
    assert_eq!((a.get("late").await, b.get_in(&theirs(), "public").await.as_deref()), (None, Some("of config")));
    b.documents.leave(&theirs()).await.unwrap();
    for ended in [ticket, self::ticket(&a, 2, false, Some(UnixMs(1))).await] {
        let refused = b.documents.join(&theirs(), &ended).await.unwrap_err();
        assert!(matches!(refused, DocumentError::Refused), "{refused}");
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn what_was_joined_can_be_left_and_names_are_not_taken_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a]);
    introduce_with(OTHER, &[&b]);
    a.set("key", "of a").await;
    let read = ticket(&a, 1, false, None).await;
    let taken = b.documents.join(&config(), &read).await.unwrap_err();
    assert!(matches!(taken, DocumentError::NameTaken(_)) && taken.to_string().contains("--as"), "{taken}");
    let own = a.documents.join(&theirs(), &read).await.unwrap_err();
    assert!(matches!(own, DocumentError::Here(_)), "{own}");
    b.documents.join(&theirs(), &read).await.unwrap();
    follows(&b, "key", Some("of a")).await;
    let twice = b.documents.join(&"again".parse().unwrap(), &read).await.unwrap_err();
    assert!(matches!(twice, DocumentError::Here(_)), "{twice}");

    // A ticket for more takes the place of the first.
    b.documents.join(&theirs(), &ticket(&a, 2, true, None).await).await.unwrap();
    b.documents.set(&theirs(), &name("key"), b"of b".to_vec()).await.unwrap();
    a.has("key", Some("of b")).await;

    b.documents.leave(&theirs()).await.unwrap();
    assert!(matches!(b.documents.get(&theirs(), &name("key")).await, Err(DocumentError::NoDocument(_))));
    let kept = b.documents.leave(&config()).await.unwrap_err();
    assert!(matches!(kept, DocumentError::NotJoined(_)), "{kept}");
    let wait = async {
        while b.values() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("values of a document that was left are never removed");
    assert_eq!(a.get("key").await.as_deref(), Some("of b"));
    b.documents.join(&theirs(), &read).await.unwrap();
    follows(&b, "key", Some("of b")).await;

    let (_, key) = a.stop().await;
    drop(key);
    let nobody = b.documents.join(&"more".parse().unwrap(), &read).await.unwrap_err();
    assert!(matches!(nobody, DocumentError::Here(_)), "{nobody}");
    let unknown = DocumentTicket { right: DocumentRight::Read([1; 32]), ..read };
    let nobody = b.documents.join(&"more".parse().unwrap(), &unknown).await.unwrap_err();
    assert!(matches!(nobody, DocumentError::Unreached(_)), "{nobody}");
    b.stop().await;
}
