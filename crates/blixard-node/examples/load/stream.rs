//! How fast one stream of the nodes' own transport is with nothing on top of it.

use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use blixard_node::transport::{PeerAddress, Protocol, SecretKey, Transport, TransportConfig, handler};
use tokio::sync::oneshot;

use crate::Report;

/// What is written and read at once.
const CHUNK_BYTES: usize = 1 << 20;

async fn open() -> anyhow::Result<Transport> {
    let bind = vec![([127, 0, 0, 1], 0).into()];
    Transport::open(TransportConfig { key: SecretKey::generate(), bind, relays: Vec::new() }).await
}

/// A sender on a thread and a runtime of its own, as it would be in a process of its own.
fn sender(mib: u32, reader: PeerAddress, opened: oneshot::Sender<PeerAddress>, done: oneshot::Receiver<()>) {
    let serve = async move {
        let transport = open().await?;
        transport.learn(&reader);
        transport.access().add_members([reader.endpoint]);
        let send = handler(move |connection| async move {
            let Ok((mut stream, _)) = connection.accept_bi().await else { return };
            let chunk = vec![7; CHUNK_BYTES];
            for _ in 0..mib {
                if stream.write_all(&chunk).await.is_err() {
                    return;
                }
            }
            // Fails when the reader has gone, which it does not before the end.
            let _ = stream.finish();
            connection.closed().await;
        });
        transport.serve(vec![(Protocol::Blobs, send)]);
        // Fails when the reader has given up.
        let _ = opened.send(transport.address());
        let _ = done.await;
        transport.close().await;
        anyhow::Ok(())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Dropping its end of `opened` tells the reader that there is no sender.
    let _ = runtime.map(|runtime| runtime.block_on(serve));
}

/// Reads all of it and says how fast that went.
pub(crate) async fn measure(mib: u32) -> anyhow::Result<Report> {
    let transport = open().await?;
    let ((opened, address), (end, done)) = (oneshot::channel(), oneshot::channel());
    let own = transport.address();
    let sending = thread::spawn(move || sender(mib, own, opened, done));
    let sender = address.await.context("open the sending endpoint")?;
    transport.learn(&sender);
    let connection = transport.connect(sender.endpoint, Protocol::Blobs).await?;
    let begin = Instant::now();
    let (mut send, mut recv) = connection.open_bi().await?;
    send.write_all(b"go").await?;
    let mut bytes = 0;
    while let Some(chunk) = recv.read_chunk(CHUNK_BYTES).await? {
        bytes += chunk.len();
    }
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(bytes == mib as usize * CHUNK_BYTES, "{bytes} bytes came of {mib} MiB");
    // Fails when the sender has ended, and then its thread says so.
    let _ = end.send(());
    transport.close().await;
    ensure!(sending.join().is_ok(), "the sender panicked");
    Ok(Report::Stream { mib_per_second: f64::from(mib) / seconds })
}
