//! Passing bytes on between two connections, so that neither end can stall the other.
//!
//! A stream that is left unread ends its whole connection sooner or later, and that connection carries other requests too. So
//! each direction is always read; what the far end does not take in time waits in a bounded buffer, and the oldest of
//! it is dropped when that is full: right for a console, whose reader wants the newest.

use std::collections::VecDeque;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What waits for a slow reader in each direction: several screens of text.
const BUFFER_BYTES_MAX: usize = 256 << 10;
const CHUNK_BYTES: usize = 16 << 10;

/// Passes bytes both ways until both directions have ended, or either has failed.
pub(super) async fn relay(left: impl AsyncRead + AsyncWrite, right: impl AsyncRead + AsyncWrite) -> io::Result<()> {
    let (left_read, left_write) = tokio::io::split(left);
    let (right_read, right_write) = tokio::io::split(right);
    tokio::try_join!(pass(left_read, right_write), pass(right_read, left_write))?;
    Ok(())
}

async fn pass(reader: impl AsyncRead, writer: impl AsyncWrite) -> io::Result<()> {
    tokio::pin!(reader, writer);
    let mut waiting = VecDeque::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut ended = false;
    while !ended || !waiting.is_empty() {
        tokio::select! {
            read = reader.read(&mut chunk), if !ended => {
                let len = read?;
                ended = len == 0;
                waiting.extend(&chunk[..len]);
                let excess = waiting.len().saturating_sub(BUFFER_BYTES_MAX);
                waiting.drain(..excess);
            }
            written = writer.write(waiting.as_slices().0), if !waiting.is_empty() => {
                let len = written?;
                if len == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                waiting.drain(..len);
            }
        }
    }
    writer.shutdown().await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways_and_ends_are_passed_on() {
        let (mut a, left) = tokio::io::duplex(64);
        let (right, mut b) = tokio::io::duplex(64);
        let relaying = tokio::spawn(relay(left, right));
        a.write_all(b"to b").await.unwrap();
        b.write_all(b"to a").await.unwrap();
        a.shutdown().await.unwrap();
        b.shutdown().await.unwrap();
        let (mut at_a, mut at_b) = (String::new(), String::new());
        a.read_to_string(&mut at_a).await.unwrap();
        b.read_to_string(&mut at_b).await.unwrap();
        assert_eq!((at_a.as_str(), at_b.as_str()), ("to a", "to b"));
        relaying.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_stalls_loses_the_oldest_and_stalls_nobody() {
        let (mut source, left) = tokio::io::duplex(CHUNK_BYTES);
        let (right, mut sink) = tokio::io::duplex(16);
        let relaying = tokio::spawn(relay(left, right));
        // Far more than fits: every write is taken though nobody reads.
        for n in 0..100u8 {
            source.write_all(&[n; CHUNK_BYTES]).await.unwrap();
        }
        source.shutdown().await.unwrap();
        let mut got = Vec::new();
        let reading = async {
            let mut chunk = [0; 4096];
            loop {
                let len = sink.read(&mut chunk).await.unwrap();
                got.extend_from_slice(&chunk[..len]);
                if got.ends_with(&[99; CHUNK_BYTES]) {
                    break;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), reading).await.unwrap();
        assert!(got.len() <= BUFFER_BYTES_MAX + 2 * CHUNK_BYTES, "kept {} bytes", got.len());
        drop(sink);
        relaying.abort();
    }
}
