//! Blobs that somebody may have who is no member, and those that it may not.

use std::collections::BTreeSet;

use iroh_blobs::Hash;
use iroh_blobs::protocol::GetRequest;

use super::*;
use crate::images::Opener;

const SECRET: [u8; 32] = [9; 32];

/// A node that gives these blobs out to whoever shows the secret.
async fn publisher(node: &TestNode, published: BTreeSet<BlobHash>) {
    let images = node.images.clone();
    let serve = move |connection: crate::transport::Connection| {
        let (images, published) = (images.clone(), published.clone());
        async move {
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            if recv.read_to_end(32).await.unwrap() == SECRET {
                send.write_all(&[1]).await.unwrap();
                send.finish().unwrap();
            }
            images.serve_published(connection, move |hash| published.contains(&hash)).await;
        }
    };
    let handlers =
        vec![(Protocol::Blobs, node.images.handler()), (Protocol::Published, crate::transport::handler(serve))];
    node.transport.serve(handlers);
}

fn holder(node: &TestNode, secret: [u8; 32]) -> Holder {
    Holder { opened_by: Some(Opener(secret)), is_whole: false, ..whole(node.id()) }
}

async fn fetch(to: &TestNode, manifest: &Manifest, from: Holder) -> Result<(), FetchError> {
    to.images.keep(manifest.id(), manifest).await.unwrap();
    let (_, holders) = watch::channel(vec![from]);
    in_time(to.images.fetch(manifest, holders, &watch::Sender::default())).await
}

#[tokio::test]
async fn who_has_the_ticket_gets_what_is_published_and_nothing_else() {
    let (a, b) = (TestNode::start().await, TestNode::start().await);
    // The one that is not published stands in the other one, as a sequence of hashes would name it.
    let part = |blob: ImportedBlob| Part { hash: blob.hash, bytes: blob.bytes };
    let hidden = part(a.import(&random(1, 100_000)).await);
    let mut named = hidden.hash.0.to_vec();
    named.extend(random(2, 3 << 20));
    let public = part(a.import(&named).await);
    publisher(&a, BTreeSet::from([public.hash])).await;
    b.transport.learn(&a.transport.address());

    let refused = fetch(&b, &disk(public), whole(a.id())).await.unwrap_err().to_string();
    assert!(refused.contains("not a member"), "{refused}");
    fetch(&b, &disk(hidden), holder(&a, SECRET)).await.unwrap_err();
    assert_eq!(b.images.local_bytes(&disk(hidden)).await.unwrap(), 0);
    fetch(&b, &disk(public), holder(&a, [8; 32])).await.unwrap_err();
    assert_eq!(b.images.local_bytes(&disk(public)).await.unwrap(), 0);

    fetch(&b, &disk(public), holder(&a, SECRET)).await.unwrap();
    assert!(b.content(&disk(public)).await == named);

    // What a blob names is not followed.
    let connection = holder(&a, SECRET).reach(&b.transport).await.unwrap();
    for request in [GetRequest::all(Hash::from_bytes(public.hash.0)), GetRequest::blob(Hash::from_bytes(hidden.hash.0))]
    {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let request = postcard::to_stdvec(&iroh_blobs::protocol::Request::Get(request)).unwrap();
        send.write_all(&request).await.unwrap();
        send.finish().unwrap();
        let answer = in_time(recv.read_to_end(8 << 20)).await;
        assert!(answer.unwrap_or_default().is_empty());
    }
    a.stop().await;
    b.stop().await;
}
