//! Joining: what a node asks of a member before it is one, over the `blixard/join/1` protocol.
//!
//! This is the only protocol that strangers may speak, so it is small: one request of bounded size and one answer on one
//! stream of a connection, within a deadline, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use blixard_core::{Actor, Change, ClusterId, Command, Node, NodeId, Rejection};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::clock;
use crate::metrics::Metrics;
use crate::raft::{Raft, Role};
use crate::transport::{Connection, PeerAddress, Protocol, TicketSecret, Transport};

/// The largest request: a node with as many addresses and labels as it may have takes some 41 KiB when each character of these
/// takes four bytes.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The largest answer: it names up to 1,000 members of some 300 bytes each.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long a stranger may take to say what it wants. It is one message, which even a bad line carries in that time.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Strangers that are listened to at once. Those who say nothing take a place for no longer than [`LISTEN_TIMEOUT`].
const LISTENING_MAX: usize = 256;
/// How long an exchange may take; the leader's own deadline for a write is 10 s.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a member waits for a leader to take its new record, before it is told who the others are all the same.
const MEMBER_PATIENCE: Duration = Duration::from_secs(2);
/// Requests that are decided at once. The others wait, and may time out.
const DECIDING_MAX: usize = 16;

/// What a node asks: to be let in, or, as a member, to have its record brought up to date.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    /// The cluster it means to join.
    pub(crate) cluster: ClusterId,
    /// The node as it describes itself; its key must be the one it connects with.
    pub(crate) node: Node,
    /// Drawn anew at each start of the node's process: another number means that its connections of before are dead.
    pub(crate) incarnation: u64,
    /// What lets it in; a member needs none.
    pub(crate) secret: Option<TicketSecret>,
    /// Whether its log is empty, as that of a new node is.
    pub(crate) is_blank: bool,
}

impl JoinRequest {
    pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<Self> {
        postcard::from_bytes(bytes).context("decode the request")
    }
}

/// A member, for a node that has no replica yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) id: NodeId,
    pub(crate) address: PeerAddress,
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum JoinAnswer {
    /// It is a member, and these are the members.
    Admitted { cluster: ClusterId, members: Vec<Member> },
    /// It is refused, and asking again will not help.
    Refused(JoinRefusal),
    /// It cannot be decided now.
    TryLater(String),
}

impl JoinAnswer {
    pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<Self> {
        postcard::from_bytes(bytes).context("decode the answer")
    }
}

/// Why a node is not let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// The cluster's state says so.
    #[error(transparent)]
    Rejected(Rejection),
    /// The ticket or peer belongs to another cluster than the one that was reached.
    #[error("the ticket is for cluster {asked}, and this is cluster {found}: use a ticket of this cluster")]
    OtherCluster {
        /// The cluster that was asked for.
        asked: ClusterId,
        /// The cluster that was reached.
        found: ClusterId,
    },
    /// A voter has come back without its log, and could break what it had promised.
    #[error(
        "node {0} votes in this cluster, and has come back without its log: remove it with `blixard cluster remove` at another \
         node, then start it with an empty data directory to join anew"
    )]
    LogLost(NodeId),
    /// The node described itself with another key than its own.
    #[error("the request names another key than the one it came by")]
    OtherKey,
}

fn address(node: &Node) -> PeerAddress {
    PeerAddress { endpoint: node.endpoint, addresses: node.addresses.clone(), relay_url: node.relay_url.clone() }
}

/// All members, as this node knows them.
pub(crate) fn members(raft: &Raft) -> Vec<Member> {
    raft.read(|state| state.nodes.values().map(|node| Member { id: node.id, address: address(node) }).collect())
}

async fn decide(
    raft: &Raft,
    transport: &Transport,
    request: JoinRequest,
    caller: blixard_core::EndpointId,
) -> JoinAnswer {
    let Some(cluster) = raft.read(|state| state.cluster) else {
        return JoinAnswer::TryLater("this node is not part of a cluster yet".into());
    };
    if request.cluster != cluster {
        return JoinAnswer::Refused(JoinRefusal::OtherCluster { asked: request.cluster, found: cluster });
    }
    if request.node.endpoint != caller {
        return JoinAnswer::Refused(JoinRefusal::OtherKey);
    }
    let is_member = raft.read(|state| state.node_of(&caller).is_some_and(|node| node.id == request.node.id));
    if is_member {
        transport.met(caller, request.incarnation);
        transport.learn(&address(&request.node));
    }
    // The group's view may be behind, but not so far: a voter was told of its vote before it had one.
    if is_member && request.is_blank && matches!(raft.view().role(request.node.id), Some(Role::Leader | Role::Voter)) {
        return JoinAnswer::Refused(JoinRefusal::LogLost(request.node.id));
    }
    let is_known = || {
        let known = raft.read(|state| state.nodes.get(&request.node.id).cloned());
        known.is_some_and(|known| Node { joined_at: known.joined_at, ..request.node.clone() } == known)
    };
    // A member whose record is up to date gets its answer even while the cluster has no leader.
    if is_known() {
        return JoinAnswer::Admitted { cluster, members: members(raft) };
    }
    // Which numbers are free is only known to a replica that has caught up.
    if is_member {
        // It tells the cluster its new record by itself as soon as there is a leader, which there may never be if the members do
        // not find each other first.
        let barrier = tokio::time::timeout(MEMBER_PATIENCE, raft.barrier());
        if !matches!(barrier.await, Ok(Ok(()))) {
            return JoinAnswer::Admitted { cluster, members: members(raft) };
        }
    } else if let Err(error) = raft.barrier().await {
        return JoinAnswer::TryLater(error.to_string());
    }
    if is_known() {
        return JoinAnswer::Admitted { cluster, members: members(raft) };
    }
    let group = raft.view();
    let is_new = raft.read(|state| !state.nodes.contains_key(&request.node.id));
    if is_new && group.role(request.node.id).is_some() {
        // Raft still counts an earlier node of this number. With an empty log in its place, a promise could be broken.
        return JoinAnswer::TryLater(format!(
            "the earlier node {} is still being taken out of the group",
            request.node.id
        ));
    }
    let token = request.secret.map(|secret| (secret.token, secret.hash()));
    let by = Actor::Node(group.node);
    let change = Change::AdmitNode { node: request.node, token };
    match raft.propose(&Command { request: None, at: clock::now(), by, change }).await {
        Ok(Ok(_)) => match raft.barrier().await {
            Ok(()) => JoinAnswer::Admitted { cluster, members: members(raft) },
            Err(error) => JoinAnswer::TryLater(error.to_string()),
        },
        Ok(Err(rejection)) => JoinAnswer::Refused(JoinRefusal::Rejected(rejection)),
        Err(error) => JoinAnswer::TryLater(error.to_string()),
    }
}

/// Apart, so that strangers who say nothing do not keep those waiting who do.
struct Places {
    listening: Semaphore,
    deciding: Semaphore,
}

async fn serve(raft: Raft, transport: Transport, metrics: Arc<Metrics>, places: Arc<Places>, connection: Connection) {
    // Outlives the exchange: a stream that is dropped ends as if it were whole, and the caller would read an empty answer.
    let mut answering = None;
    let exchange = async {
        let request = {
            let _place = places.listening.acquire().await.context("wait to be listened to")?;
            let listen = async {
                let (send, mut recv) = connection.accept_bi().await.context("accept the request's stream")?;
                answering = Some(send);
                recv.read_to_end(REQUEST_BYTES_MAX).await.context("read the request")
            };
            tokio::time::timeout(LISTEN_TIMEOUT, listen).await.context("wait for the request")??
        };
        let send = answering.as_mut().context("the request's stream is gone")?;
        let _place = places.deciding.acquire().await.context("wait for a decision")?;
        let request = JoinRequest::decode(&request)?;
        let caller = blixard_core::EndpointId(*connection.remote_id().as_bytes());
        let (node, address) = (request.node.id, request.node.addresses.clone());
        let was_member = raft.read(|state| state.node_of(&caller).is_some());
        let answer = decide(&raft, &transport, request, caller).await;
        match &answer {
            JoinAnswer::Admitted { .. } if was_member => tracing::debug!(%node, ?address, "a member said hello"),
            JoinAnswer::Admitted { .. } => tracing::info!(%node, ?address, "let a node in"),
            JoinAnswer::Refused(reason) => {
                metrics.joins_refused.inc();
                tracing::warn!(%node, peer = %caller.short(), %reason, "did not let a node in");
            }
            JoinAnswer::TryLater(reason) => tracing::debug!(%node, reason, "a node has to ask again"),
        }
        let answer = postcard::to_stdvec(&answer).context("encode the answer")?;
        send.write_all(&answer).await.context("send the answer")?;
        send.finish().context("end the answer")?;
        // The caller closes the connection when it has read the answer.
        connection.closed().await;
        anyhow::Ok(())
    };
    let last_word: &[u8] = match tokio::time::timeout(EXCHANGE_TIMEOUT, exchange).await {
        Ok(Ok(())) => b"done",
        Ok(Err(error)) => {
            tracing::debug!(error = format!("{error:#}"), "a request to join was not completed");
            b"the request to join was not completed"
        }
        Err(_) => {
            tracing::debug!("a request to join took too long");
            b"the request to join took too long"
        }
    };
    connection.close(0u32.into(), last_word);
}

/// The handler of the join protocol.
pub(crate) fn handler(raft: Raft, transport: Transport, metrics: Arc<Metrics>) -> crate::transport::Handler {
    let (listening, deciding) = (Semaphore::new(LISTENING_MAX), Semaphore::new(DECIDING_MAX));
    let places = Arc::new(Places { listening, deciding });
    crate::transport::handler(move |connection| {
        serve(raft.clone(), transport.clone(), metrics.clone(), places.clone(), connection)
    })
}

/// Asks one member.
pub(crate) async fn ask(
    transport: &Transport,
    peer: &PeerAddress,
    request: &JoinRequest,
) -> anyhow::Result<JoinAnswer> {
    transport.learn(peer);
    let exchange = async {
        // Authenticated by key: whoever answers at these addresses with another key is not connected to.
        let connection = transport.connect(peer.endpoint, Protocol::Join).await?;
        let (mut send, mut recv) = connection.open_bi().await.context("open stream")?;
        let message = postcard::to_stdvec(request).context("encode the request")?;
        send.write_all(&message).await.context("send the request")?;
        send.finish().context("end the request")?;
        let answer = recv.read_to_end(ANSWER_BYTES_MAX).await.context("read the answer")?;
        connection.close(0u32.into(), b"done");
        JoinAnswer::decode(&answer)
    };
    tokio::time::timeout(EXCHANGE_TIMEOUT, exchange)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", EXCHANGE_TIMEOUT.as_secs())))
        .with_context(|| format!("ask {} to be let in", peer.endpoint.short()))
}
