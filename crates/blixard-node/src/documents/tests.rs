//! Nodes of a few lines: a real endpoint on loopback, a real store in a directory of its own.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blixard_core::{DocumentKey, DocumentName, DocumentsSecret, EndpointId};
use tokio::task::JoinHandle;

use super::{Circle, DocumentError, Documents, VALUE_BYTES_MAX, VALUES};
use crate::metrics::Metrics;
use crate::transport::{Protocol, SecretKey, Transport, TransportConfig, refusal};

mod sharing;

/// No test takes anywhere near this long; one that does is stuck.
const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: DocumentsSecret = DocumentsSecret([7; 32]);

struct TestNode {
    documents: Documents,
    transport: Transport,
    running: JoinHandle<()>,
    key: SecretKey,
    dir: PathBuf,
}

impl TestNode {
    async fn start(dir: &Path) -> Self {
        Self::start_as(dir, SecretKey::generate()).await
    }

    async fn start_as(dir: &Path, key: SecretKey) -> Self {
        Self::start_at(dir, key, "127.0.0.1:0".parse().unwrap()).await
    }

    /// The same at an address that is known before.
    async fn start_at(dir: &Path, key: SecretKey, address: std::net::SocketAddr) -> Self {
        // Shown with the output of a test that fails; BLIXARD_LOG chooses what.
        let filter = tracing_subscriber::EnvFilter::try_from_env("BLIXARD_LOG");
        let filter = filter.unwrap_or_else(|_| "blixard_node=debug".into());
        // Another test of the process may have set it up already.
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        // The endpoint that had the port before closes its socket in the background.
        let opening = async {
            loop {
                let config = TransportConfig { key: key.clone(), bind: vec![address], relays: Vec::new() };
                match Transport::open(config).await {
                    Ok(transport) => return transport,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let transport = tokio::time::timeout(PATIENCE, opening).await.expect("the port is never free");
        std::fs::create_dir_all(dir).unwrap();
        Documents::prepare(dir).unwrap();
        let metrics = Arc::new(Metrics::default());
        let documents = Documents::open(dir, &key, transport.clone(), metrics).await.unwrap();
        transport.serve(documents.handlers());
        let running = tokio::spawn(documents.clone().run());
        Self { documents, transport, running, key, dir: dir.to_owned() }
    }

    fn id(&self) -> EndpointId {
        self.transport.id()
    }

    /// Ends it, and gives what it takes to start it again.
    async fn stop(self) -> (PathBuf, SecretKey) {
        self.running.abort();
        let _ = self.running.await;
        self.transport.close().await;
        self.documents.shutdown().await;
        (self.dir, self.key)
    }

    async fn set(&self, key: &str, value: &str) {
        self.documents.set(&config(), &name(key), value.as_bytes().to_vec()).await.unwrap();
    }

    async fn get(&self, key: &str) -> Option<String> {
        match self.documents.get(&config(), &name(key)).await {
            Ok((_, value)) => Some(String::from_utf8(value).unwrap()),
            Err(DocumentError::NoKey(..) | DocumentError::NotHere(..)) => None,
            Err(error) => panic!("{error}"),
        }
    }

    async fn get_in(&self, document: &DocumentName, key: &str) -> Option<String> {
        match self.documents.get(document, &name(key)).await {
            Ok((_, value)) => Some(String::from_utf8(value).unwrap()),
            Err(_) => None,
        }
    }

    /// Waits until a key has a value, or none.
    async fn has(&self, key: &str, value: Option<&str>) {
        let wait = async {
            while self.get(key).await.as_deref() != value {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        if waited.is_err() {
            panic!("{key} never came to be {value:?}, it is {:?}", self.get(key).await);
        }
    }

    fn values(&self) -> usize {
        std::fs::read_dir(self.dir.join(VALUES)).unwrap().count()
    }
}

fn config() -> DocumentName {
    DocumentName::config()
}

fn name(key: &str) -> DocumentKey {
    key.parse().unwrap()
}

/// Makes these nodes, and no others, members of one cluster.
fn introduce(nodes: &[&TestNode]) {
    introduce_with(SECRET, nodes);
}

/// The same of a cluster with another secret.
fn introduce_with(secret: DocumentsSecret, nodes: &[&TestNode]) {
    for node in nodes {
        node.transport.access().set_members(nodes.iter().map(|other| other.id()));
        for other in nodes {
            node.transport.learn(&other.transport.address());
        }
        let members = nodes.iter().map(|other| other.id()).filter(|id| *id != node.id()).collect();
        node.documents.meet(Circle { secret: Some(secret), members });
    }
}

/// Cuts a node off from all others.
fn cut_off(node: &TestNode) {
    introduce(&[node]);
}

#[tokio::test]
async fn what_one_writes_the_others_have_and_the_last_writer_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a, &b]);
    a.set("app.conf", "of a").await;
    b.has("app.conf", Some("of a")).await;
    b.set("app.conf", "of b").await;
    a.has("app.conf", Some("of b")).await;
    // A key that is the beginning of another one, by the same author.
    b.set("app", "short").await;
    a.has("app", Some("short")).await;
    assert_eq!(a.get("app.conf").await.as_deref(), Some("of b"));

    let all = a.documents.entries(&config(), "app.conf", true).await.unwrap();
    let writers: Vec<_> = all.iter().map(|found| (found.entry.author, found.counts)).collect();
    assert_eq!(writers, [(b.id(), true), (a.id(), false)]);

    // Whoever deletes a key deletes what others wrote.
    a.documents.delete(&config(), &name("app.conf")).await.unwrap();
    b.has("app.conf", None).await;
    let left = b.documents.entries(&config(), "", false).await.unwrap();
    assert_eq!(left.iter().map(|found| found.entry.key.as_str()).collect::<Vec<_>>(), ["app"]);
    assert!(matches!(b.documents.delete(&config(), &name("app.conf")).await, Err(DocumentError::NoKey(..))));
    b.set("app.conf", "again").await;
    a.has("app.conf", Some("again")).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn what_was_written_on_both_sides_of_a_cut_is_on_both_sides_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a, &b]);
    a.set("before", "1").await;
    b.has("before", Some("1")).await;
    cut_off(&a);
    cut_off(&b);
    let apart: DocumentName = "apart".parse().unwrap();
    for (node, side) in [(&a, "a"), (&b, "b")] {
        let before = crate::clock::now();
        while crate::clock::now() == before {
            tokio::task::yield_now().await;
        }
        node.set(side, "mine").await;
        node.set("both", side).await;
        node.documents.create(&apart).await.unwrap();
        node.documents.set(&apart, &name(side), side.as_bytes().to_vec()).await.unwrap();
    }
    assert_eq!((a.get("b").await, b.get("a").await), (None, None), "they were not apart");
    introduce(&[&a, &b]);
    a.has("b", Some("mine")).await;
    b.has("a", Some("mine")).await;
    // B wrote it later, on the same clock.
    a.has("both", Some("b")).await;
    b.has("both", Some("b")).await;
    // The same name on both sides is the same document.
    for (node, other) in [(&a, "b"), (&b, "a")] {
        let wait = async {
            while node.documents.get(&apart, &name(other)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the document that both made is never one");
    }
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_late_member_gets_everything_though_the_author_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a, &b]);
    let web: DocumentName = "web".parse().unwrap();
    a.documents.create(&web).await.unwrap();
    let large = vec![5; VALUE_BYTES_MAX as usize];
    a.documents.set(&web, &name("large"), large.clone()).await.unwrap();
    for number in 0..50 {
        a.set(&format!("many/{number}"), &format!("value {number}")).await;
    }
    b.has("many/49", Some("value 49")).await;
    let wait = async {
        while b.documents.get(&web, &name("large")).await.is_err() || b.values() < 51 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("b never has everything");
    a.stop().await;
    let c = TestNode::start(&dir.path().join("c")).await;
    introduce(&[&b, &c]);
    for number in 0..50 {
        c.has(&format!("many/{number}"), Some(&format!("value {number}"))).await;
    }
    let wait = async {
        loop {
            match c.documents.get(&web, &name("large")).await {
                Ok((_, value)) => break value,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.unwrap() == large);
    b.stop().await;
    c.stop().await;
}

#[tokio::test]
async fn a_restart_loses_nothing_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a, &b]);
    a.set("kept", "1").await;
    b.has("kept", Some("1")).await;
    let (b_dir, b_key) = b.stop().await;
    a.set("missed", "2").await;
    let b = TestNode::start_as(&b_dir, b_key).await;
    cut_off(&b);
    b.has("kept", Some("1")).await;
    b.set("alone", "3").await;
    introduce(&[&a, &b]);
    b.has("missed", Some("2")).await;
    a.has("alone", Some("3")).await;
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn a_value_that_was_lost_is_had_from_others_and_one_that_nothing_names_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a, &b]);
    a.set("one", "first").await;
    b.has("one", Some("first")).await;
    for file in std::fs::read_dir(b.dir.join(VALUES)).unwrap() {
        std::fs::write(file.unwrap().path(), "f1rst").unwrap();
    }
    b.has("one", Some("first")).await;
    for turn in 0..5 {
        a.set("one", &format!("turn {turn}")).await;
    }
    b.has("one", Some("turn 4")).await;
    let wait = async {
        while a.values() > 1 || b.values() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("replaced values are never removed");
    assert_eq!(a.get("one").await.as_deref(), Some("turn 4"));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn whoever_is_no_member_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (TestNode::start(&dir.path().join("a")).await, TestNode::start(&dir.path().join("b")).await);
    introduce(&[&a]);
    a.set("secret", "1").await;
    // It knows where the other is, and even the secret; it is no member for it.
    b.transport.learn(&a.transport.address());
    b.documents.meet(Circle { secret: Some(SECRET), members: [a.id()].into() });
    b.set("forged", "2").await;
    for protocol in [Protocol::Documents, Protocol::Values] {
        let connection = b.transport.connect(a.id(), protocol).await;
        let why = match connection {
            Ok(connection) => {
                tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap();
                refusal(&connection).unwrap_or_default()
            }
            Err(error) => error.to_string(),
        };
        assert!(why.contains("not a member"), "{protocol:?}: {why}");
    }
    assert_eq!((a.get("forged").await, b.get("secret").await), (None, None));
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn what_breaks_a_limit_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let a = TestNode::start(dir.path()).await;
    introduce(&[&a]);
    let key = name("key");
    let refused = async |value: Vec<u8>| a.documents.set(&config(), &key, value).await.unwrap_err().to_string();
    assert!(refused(vec![]).await.contains("delete the key instead"));
    assert!(refused(vec![0; VALUE_BYTES_MAX as usize + 1]).await.contains("as an image"));
    let unknown = a.documents.get(&"web".parse().unwrap(), &key).await.unwrap_err().to_string();
    assert!(unknown.contains("blixard doc create web"), "{unknown}");
    assert!(a.documents.get(&config(), &key).await.unwrap_err().to_string().contains("has no key"));
    for number in 1..64 {
        a.documents.create(&format!("d{number}").parse().unwrap()).await.unwrap();
    }
    assert!(matches!(a.documents.create(&"more".parse().unwrap()).await, Err(DocumentError::TooMany)));
    a.documents.create(&"d7".parse().unwrap()).await.expect("one that is there already");
    let listed = a.documents.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str()), (64, "config"));
    a.stop().await;
}

#[test]
fn the_transport_and_iroh_docs_name_the_protocol_alike() {
    assert_eq!(Protocol::Documents.alpn(), iroh_docs::ALPN);
}
