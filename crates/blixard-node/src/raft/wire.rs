//! Frames on Raft streams: a 32-bit little-endian length, then that many bytes of postcard.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::group::{Group, SnapshotMeta, Vote};
use crate::runtime::{Instant, timeout_at};
use crate::trace::TraceContext;

/// The largest frame: a batch of log entries, which the log store keeps far below it.
pub(super) const FRAME_BYTES_MAX: usize = 16 << 20;
/// The largest snapshot: a state of 100,000 vms takes some 100 MiB.
pub(super) const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
/// How long a frame that has begun may take to come whole: the largest takes that long on a line of 5 Mbit/s. Between
/// two frames a stream may rest for ever.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// What is read ahead of need, and kept free in a buffer.
const READ_AHEAD_BYTES: usize = 64 << 10;

/// The first byte of a stream says what it carries.
pub(super) const KIND_APPEND: u8 = 1;
/// See [`KIND_APPEND`]: requests and answers, one at a time.
pub(super) const KIND_UNARY: u8 = 2;

/// A request on a unary stream.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<Group>),
    Vote(VoteRequest<Group>),
    PreVote(VoteRequest<Group>),
    /// Followed by that many bytes of the snapshot itself.
    Snapshot(Vote, SnapshotMeta, u64),
    Transfer(TransferLeaderRequest<Group>),
    /// An encoded command, for the leader to write, and the trace that it belongs to.
    Propose(Bytes, Option<TraceContext>),
    /// Which log index a linearizable read has to wait for.
    ReadIndex,
}

/// The leader's answer to a forwarded request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Forwarded<T> {
    Done(T),
    /// The asked node does not lead; perhaps it knows who does. Nothing was written.
    NotLeader(Option<u64>),
    /// It failed there; whether the command was written is not known.
    Failed(String),
}

/// Appends a frame to a buffer.
pub(super) fn put_frame<T: Serialize>(buffer: &mut BytesMut, value: &T) -> io::Result<()> {
    let start = buffer.len();
    buffer.put_u32_le(0);
    postcard::to_io(value, buffer.writer()).map_err(io::Error::other)?;
    let len = buffer.len() - start - 4;
    if len > FRAME_BYTES_MAX {
        buffer.truncate(start);
        return Err(io::Error::other(format!("a frame of {len} bytes is over the limit of {FRAME_BYTES_MAX}")));
    }
    let len = u32::try_from(len).expect("the limit is below 4 GiB");
    buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// Reads the next frame; nothing at the end of the stream.
pub(super) async fn read_frame(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> io::Result<Option<Bytes>> {
    let mut deadline = None;
    loop {
        if buffer.len() >= 4 {
            let len = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
            if len > FRAME_BYTES_MAX {
                let text = format!("a frame of {len} bytes is over the limit of {FRAME_BYTES_MAX}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if buffer.len() >= 4 + len {
                buffer.advance(4);
                return Ok(Some(buffer.split_to(len).freeze()));
            }
        }
        // Grows with what has come, never with what a length merely claims.
        buffer.reserve(READ_AHEAD_BYTES);
        let len = if buffer.is_empty() {
            reader.read_buf(buffer).await?
        } else {
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + FRAME_TIMEOUT);
            let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "a frame came too slowly");
            timeout_at(deadline, reader.read_buf(buffer)).await.map_err(slow)??
        };
        if len == 0 {
            return if buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// Reads exactly `len` bytes, some of which may be in the buffer already.
pub(super) async fn read_bytes(
    reader: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
    len: u64,
) -> io::Result<Bytes> {
    if len > SNAPSHOT_BYTES_MAX {
        let text = format!("a snapshot of {len} bytes is over the limit of {SNAPSHOT_BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let len = usize::try_from(len).map_err(io::Error::other)?;
    while buffer.len() < len {
        buffer.reserve(READ_AHEAD_BYTES);
        if reader.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(buffer.split_to(len).freeze())
}

/// Reads a stream of requests as a member's is read, snapshots included, and writes them again.
pub(crate) async fn reread_requests(mut stream: &[u8]) -> io::Result<Vec<u8>> {
    let (mut buffer, mut again) = (BytesMut::new(), BytesMut::new());
    while let Some(frame) = read_frame(&mut stream, &mut buffer).await? {
        let request: Request = decode(&frame)?;
        put_frame(&mut again, &request)?;
        if let Request::Snapshot(_, _, len) = request {
            again.put(read_bytes(&mut stream, &mut buffer, len).await?);
        }
    }
    Ok(again.to_vec())
}

/// Decodes a frame.
pub(super) fn decode<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    postcard::from_bytes(frame)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("a frame cannot be read: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_read_back_however_they_arrive() {
        let mut sent = BytesMut::new();
        for n in 0..100u64 {
            put_frame(&mut sent, &vec![n; n as usize]).unwrap();
        }
        for step in [1, 3, 1000, 1 << 20] {
            let chunks: Vec<io::Result<Bytes>> = sent.chunks(step).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
            let mut reader = tokio_util::io::StreamReader::new(futures::stream::iter(chunks));
            let mut buffer = BytesMut::new();
            for n in 0..100u64 {
                let frame = read_frame(&mut reader, &mut buffer).await.unwrap().unwrap();
                assert_eq!(decode::<Vec<u64>>(&frame).unwrap(), vec![n; n as usize]);
            }
            assert!(read_frame(&mut reader, &mut buffer).await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused_unread() {
        let mut reader = &u32::MAX.to_le_bytes()[..];
        let error = read_frame(&mut reader, &mut BytesMut::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut cut = &[5, 0, 0, 0, 1][..];
        let error = read_frame(&mut cut, &mut BytesMut::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
