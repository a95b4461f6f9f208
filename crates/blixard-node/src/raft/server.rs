//! The receiving side: what members ask of this node's Raft. A bad frame ends its stream and nothing else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::AppendEntriesRequest;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::{Instrument, info_span};

use super::group::{Group, Logged, Snapshot};
use super::link::{Incoming, Outgoing};
use super::machine::OpenRaft;
use super::network::SNAPSHOT_TIMEOUT;
use super::rhythm::Heard;
use super::wire::{
    FRAME_BYTES_MAX, Forwarded, KIND_APPEND, KIND_UNARY, Request, decode, put_frame, read_bytes, read_frame,
};
use crate::runtime;
use crate::trace::{self, TraceContext};
use crate::transport::Connection;

/// Append requests taken off the wire and not yet taken by Raft. The reader never waits on a full queue: an unread stream
/// would end the whole connection, so the stream is given up instead, and the leader opens another.
const APPEND_QUEUE: usize = 4096;

/// How long a peer may take to say what a stream is for.
const KIND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may take to take an answer. It waits for it, so it reads.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves one member's connection until it ends.
pub(super) async fn serve(raft: OpenRaft, heard: Heard, connection: Connection) {
    while let Ok((send, recv)) = connection.accept_bi().await {
        let (raft, heard) = (raft.clone(), heard.clone());
        let peer = connection.remote_id();
        runtime::spawn(async move {
            if let Err(error) = serve_stream(raft, heard, Box::new(send), Box::new(recv)).await
                && matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::TimedOut)
            {
                tracing::warn!(peer = %peer.fmt_short(), %error, "a Raft stream was closed");
            }
        });
    }
}

/// Serves one stream of a member to its end.
pub(super) async fn serve_stream(raft: OpenRaft, heard: Heard, send: Outgoing, mut recv: Incoming) -> io::Result<()> {
    match in_time(KIND_TIMEOUT, recv.read_u8()).await? {
        KIND_APPEND => serve_appends(raft, heard, send, recv).await,
        KIND_UNARY => serve_requests(raft, heard, send, recv).await,
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unknown kind of stream: {other}"))),
    }
}

/// Ends what takes longer than a well-meaning peer lets it take.
async fn in_time<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let slow = |_| io::Error::new(io::ErrorKind::TimedOut, "the peer is too slow");
    runtime::timeout(limit, step).await.map_err(slow)?
}

async fn serve_appends(raft: OpenRaft, heard: Heard, mut send: Outgoing, mut recv: Incoming) -> io::Result<()> {
    let (queue, requests) = mpsc::channel::<AppendEntriesRequest<Group>>(APPEND_QUEUE);
    let reading = async move {
        let mut buffer = BytesMut::new();
        while let Some(frame) = read_frame(&mut recv, &mut buffer).await? {
            let request: AppendEntriesRequest<Group> = decode(&frame)?;
            heard.now(request.vote);
            if queue.try_send(request).is_err() {
                return Err(io::Error::other("Raft is too far behind its leader"));
            }
        }
        Ok(())
    };
    let answering = async move {
        let input = futures::stream::unfold(requests, |mut requests| async move {
            let request = requests.recv().await?;
            Some((request, requests))
        });
        let mut answers = Box::pin(raft.stream_append(Box::pin(input)).fuse());
        let mut out = BytesMut::new();
        while let Some(first) = answers.next().await {
            let mut next = Some(first);
            while let Some(answer) = next {
                put_frame(&mut out, &answer.map_err(io::Error::other)?)?;
                next = answers.next().now_or_never().flatten();
            }
            in_time(ANSWER_TIMEOUT, send.write_all(&out)).await?;
            out.clear();
        }
        Ok(())
    };
    let ((), ()) = tokio::try_join!(reading, answering)?;
    Ok(())
}

async fn serve_requests(raft: OpenRaft, heard: Heard, mut send: Outgoing, mut recv: Incoming) -> io::Result<()> {
    fn put<T: Serialize, E: std::fmt::Display>(out: &mut BytesMut, answer: Result<T, E>) -> io::Result<()> {
        put_frame(out, &answer.map_err(|error| error.to_string()))
    }
    let mut buffer = BytesMut::new();
    while let Some(frame) = read_frame(&mut recv, &mut buffer).await? {
        let mut out = BytesMut::new();
        match decode::<Request>(&frame)? {
            Request::Append(request) => {
                heard.now(request.vote);
                put(&mut out, raft.append_entries(request).await)?;
            }
            Request::Vote(request) => put(&mut out, raft.vote(request).await)?,
            Request::PreVote(request) => put(&mut out, raft.pre_vote(request).await)?,
            Request::Snapshot(vote, meta, len) => {
                heard.now(vote);
                let snapshot = in_time(SNAPSHOT_TIMEOUT, read_bytes(&mut recv, &mut buffer, len)).await?;
                put(&mut out, raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await)?;
            }
            Request::Transfer(request) => put(&mut out, raft.handle_transfer_leader(request).await)?,
            Request::Propose(command, trace) => put_frame(&mut out, &propose_here(&raft, command, trace).await)?,
            Request::ReadIndex => put_frame(&mut out, &read_index_here(&raft).await)?,
        }
        in_time(ANSWER_TIMEOUT, send.write_all(&out)).await?;
    }
    Ok(())
}

/// Writes a command if this node leads.
pub(super) async fn propose_here(
    raft: &OpenRaft,
    command: Bytes,
    trace: Option<TraceContext>,
) -> Forwarded<blixard_core::Outcome> {
    if command.len() > FRAME_BYTES_MAX / 4 {
        return Forwarded::Failed(format!("a command of {} bytes is too large", command.len()));
    }
    let span = trace::under(trace, || info_span!(target: trace::TARGET, "write"));
    // A leader that exports no spans still hands on what came with the command.
    let write = async { raft.client_write(Logged(command, TraceContext::current().or(trace))).await };
    match write.instrument(span).await {
        Ok(written) => match written.data.0 {
            Some(outcome) => Forwarded::Done(outcome),
            None => Forwarded::Failed("the command was answered without an outcome".into()),
        },
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(other))) => Forwarded::NotLeader(other.leader_id),
        Err(error) => Forwarded::Failed(error.to_string()),
    }
}

/// The index that a linearizable read has to wait for, if this node leads.
pub(super) async fn read_index_here(raft: &OpenRaft) -> Forwarded<u64> {
    match raft.get_read_log_id(ReadPolicy::ReadIndex).await {
        Ok(linear) => Forwarded::Done(linear.0.index()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(other))) => {
            Forwarded::NotLeader(other.leader_id)
        }
        Err(error) => Forwarded::Failed(error.to_string()),
    }
}

/// The handler of the Raft protocol.
pub(super) fn handler(raft: OpenRaft, heard: Heard) -> crate::transport::Handler {
    let raft = Arc::new(raft);
    crate::transport::handler(move |connection| {
        let (raft, heard) = (raft.clone(), heard.clone());
        async move { serve((*raft).clone(), heard, connection).await }
    })
}
