//! The sending side: openraft's requests to one peer, over shared connections that are made anew when they end.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use blixard_core::EndpointId;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::group::{Group, Snapshot, Vote};
use super::link::{Incoming, Link, Outgoing};
use super::wire::{KIND_APPEND, KIND_UNARY, Request, decode, put_frame, read_frame};
use crate::runtime::{self, Instant};

/// How long a peer may take to take a snapshot in.
pub(super) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(120);
/// The shortest time allowed for an answer to appended entries: they wait for the peer's disk, which may be busy.
const APPEND_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// Requests of a stream are gathered up to this size before they are sent: fewer, larger writes.
const BATCH_BYTES: usize = 512 << 10;
/// Appends on the wire without an answer yet. openraft's own pipeline is shorter.
const IN_FLIGHT_MAX: usize = 4096;

/// Makes a [`Peer`] for each member.
#[derive(Clone)]
pub(super) struct Network(pub(super) Arc<dyn Link>);

impl RaftNetworkFactory<Group> for Network {
    type Network = Peer;

    async fn new_client(&mut self, _: u64, node: &openraft::BasicNode) -> Peer {
        // The membership is written by `super` alone, which puts keys there; another text matches no peer.
        let endpoint = node.addr.parse().unwrap_or(EndpointId([0; 32]));
        Peer { link: self.0.clone(), endpoint, stream: None }
    }
}

struct UnaryStream {
    send: Outgoing,
    recv: Incoming,
    buffer: BytesMut,
}

/// One peer of this node.
pub(super) struct Peer {
    link: Arc<dyn Link>,
    endpoint: EndpointId,
    stream: Option<UnaryStream>,
}

fn unreachable<E: std::error::Error + 'static>(error: E) -> RPCError<Group> {
    RPCError::Unreachable(Unreachable::new(&error))
}

/// Why a request on a stream of its own has no answer.
pub(super) enum AskError {
    /// It was not sent.
    NotSent(io::Error),
    /// It may have been carried out.
    Lost(io::Error),
}

/// One request and its answer, on a stream of their own, which must be open by the deadline.
pub(super) async fn ask<T: DeserializeOwned>(
    link: &dyn Link,
    peer: EndpointId,
    request: &Request,
    deadline: Instant,
) -> Result<T, AskError> {
    let opened = runtime::timeout_at(deadline, link.open(peer, KIND_UNARY)).await;
    let opened = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let (send, recv) = opened.map_err(AskError::NotSent)?;
    let mut stream = UnaryStream { send, recv, buffer: BytesMut::new() };
    exchange(&mut stream, request, &Bytes::new()).await.map_err(AskError::Lost)
}

async fn exchange<T: DeserializeOwned>(stream: &mut UnaryStream, request: &Request, body: &Bytes) -> io::Result<T> {
    let mut out = BytesMut::new();
    put_frame(&mut out, request)?;
    stream.send.write_all(&out).await?;
    stream.send.write_all(body).await?;
    let answer = read_frame(&mut stream.recv, &mut stream.buffer).await?;
    decode(&answer.ok_or(io::ErrorKind::UnexpectedEof)?)
}

impl Peer {
    async fn call<T: DeserializeOwned>(
        &mut self,
        request: Request,
        body: Bytes,
        timeout: Duration,
    ) -> Result<T, RPCError<Group>> {
        // Taken out while in use: a request that is dropped half-way takes its stream with it.
        let stream = self.stream.take();
        let (link, endpoint) = (&self.link, self.endpoint);
        let attempt = async move {
            let mut stream = match stream {
                Some(stream) => stream,
                None => {
                    let (send, recv) = link.open(endpoint, KIND_UNARY).await?;
                    UnaryStream { send, recv, buffer: BytesMut::new() }
                }
            };
            let answer: Result<T, String> = exchange(&mut stream, &request, &body).await?;
            Ok::<_, io::Error>((answer, stream))
        };
        match runtime::timeout(timeout, attempt).await {
            Ok(Ok((answer, stream))) => {
                self.stream = Some(stream);
                answer.map_err(|error| RPCError::Network(NetworkError::from_string(error)))
            }
            Ok(Err(error)) => Err(unreachable(error)),
            Err(_) => Err(unreachable(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }
}

impl RaftNetworkV2<Group> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Group>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Group>, RPCError<Group>> {
        self.call(Request::Append(request), Bytes::new(), option.soft_ttl()).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        self.call(Request::Vote(request), Bytes::new(), option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Group>,
        option: RPCOption,
    ) -> Result<VoteResponse<Group>, RPCError<Group>> {
        self.call(Request::PreVote(request), Bytes::new(), option.soft_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Group>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Group>, RPCError<Group>> {
        self.call(Request::Transfer(request), Bytes::new(), option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Group>, StreamingError<Group>> {
        let len = snapshot.snapshot.len() as u64;
        let request = Request::Snapshot(vote, snapshot.meta, len);
        tokio::select! {
            biased;
            answer = self.call(request, snapshot.snapshot, SNAPSHOT_TIMEOUT) => Ok(answer?),
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    /// Pipelined: one task writes requests as they come, the returned stream yields answers in the same order.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<Group>, RPCError<Group>>>, RPCError<Group>>>
    where
        S: Stream<Item = AppendEntriesRequest<Group>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let opening = self.link.open(self.endpoint, KIND_APPEND);
            let (send, recv) = runtime::timeout(option.soft_ttl(), opening)
                .await
                .map_err(|_| unreachable(io::Error::from(io::ErrorKind::TimedOut)))?
                .map_err(unreachable)?;
            let (sent, in_flight) = mpsc::channel(IN_FLIGHT_MAX);
            let writer = runtime::spawn_tied(write_appends(send, input, sent));
            let timeout = option.soft_ttl().max(APPEND_TIMEOUT_MIN);
            let start = Some((recv, BytesMut::new(), writer, in_flight));
            let answers = futures::stream::unfold(start, move |reading| async move {
                let (mut recv, mut buffer, writer, mut in_flight) = reading?;
                // Idle streams wait for ever; an answer to a request on the wire has a deadline. Without a further
                // token the input has ended and every answer was read.
                in_flight.recv().await?;
                let answer = async {
                    let frame = read_frame(&mut recv, &mut buffer).await?;
                    decode::<StreamAppendResult<Group>>(&frame.ok_or(io::ErrorKind::UnexpectedEof)?)
                };
                match runtime::timeout(timeout, answer).await {
                    Ok(Ok(result)) => {
                        let next = result.is_ok().then_some((recv, buffer, writer, in_flight));
                        Some((Ok(result), next))
                    }
                    Ok(Err(error)) => Some((Err(unreachable(error)), None)),
                    Err(_) => Some((Err(unreachable(io::Error::from(io::ErrorKind::TimedOut))), None)),
                }
            });
            Ok(Box::pin(answers) as BoxStream<'s, _>)
        })
    }
}

/// Writes requests as they come, several in one write when they come fast, and notes each in `sent`.
async fn write_appends<S>(mut send: Outgoing, input: S, sent: mpsc::Sender<()>)
where
    S: Stream<Item = AppendEntriesRequest<Group>> + Unpin,
{
    let mut input = input.fuse();
    let mut out = BytesMut::new();
    while let Some(first) = input.next().await {
        let mut next = Some(first);
        let mut count = 0;
        while let Some(request) = next {
            if let Err(error) = put_frame(&mut out, &request) {
                tracing::error!(%error, "entries cannot be sent");
                return;
            }
            count += 1;
            next = if out.len() < BATCH_BYTES { input.next().now_or_never().flatten() } else { None };
        }
        for _ in 0..count {
            if sent.send(()).await.is_err() {
                return;
            }
        }
        if send.write_all(&out).await.is_err() {
            // The reader of answers meets the same end, and reports it.
            return;
        }
        out.clear();
    }
}
