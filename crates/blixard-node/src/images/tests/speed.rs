//! How fast a fetch is beside a bare stream over the same transport.
#![allow(clippy::print_stderr)]

use std::time::Instant;

use super::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, which proves nothing on a busy machine: run it by name, in release mode"]
async fn beside_a_bare_stream() {
    const BYTES: usize = 1 << 30;
    let [source, target] = members().await;
    let content = Bytes::from(random(1, BYTES));
    let bare = content.clone();
    let bare = imposter(crate::transport::handler(move |connection| {
        let bare = bare.clone();
        async move {
            let (mut send, _recv) = connection.accept_bi().await.unwrap();
            send.write_chunk(bare).await.unwrap();
            send.finish().unwrap();
            connection.closed().await;
        }
    }))
    .await;
    introduce(&[&source.transport, &target.transport, &bare]);
    let rate = |begin: Instant| BYTES as f64 / 1e6 / begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let manifest = source.import_disk(&content).await;
    eprintln!("import: {:.0} MB/s", rate(begin));
    for _ in 0..2 {
        let connection = target.transport.connect(bare.id(), Protocol::Blobs).await.unwrap();
        let begin = Instant::now();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(b"go").await.unwrap();
        let mut read = 0;
        while let Some(chunk) = recv.read_chunk(1 << 20).await.unwrap() {
            read += chunk.len();
        }
        assert_eq!(read, BYTES);
        eprintln!("bare stream: {:.0} MB/s", rate(begin));
        connection.close(0u32.into(), b"");
        let begin = Instant::now();
        target.fetch(&manifest, &[&source]).await.unwrap();
        eprintln!("fetch: {:.0} MB/s", rate(begin));
        target.images.drop_image(manifest.id()).await.unwrap();
        let path = target.dir.join("data").join(format!("{}.data", manifest.parts()[0].hash));
        eventually("the copy is removed", || async { !path.exists() }).await;
    }
}
