//! How a node comes to be a member of its cluster: it founds one, joins one, or comes back to its own.
//!
//! ```text
//!  data directory      peers or ticket     then
//!  knows a cluster     any                 come back; a ticket or peer of another cluster is refused
//!  empty               none                found a new cluster
//!  empty               some                join; ask in turn, with backoff, until let in or refused. Never found.
//! ```

use std::time::Duration;

use anyhow::Context;
use blixard_core::{
    Actor, Change, Client, ClientRole, ClusterId, Command, DocumentsSecret, Node as NodeRecord, NodeId,
};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};

use super::StartError;
use super::data_dir::{DataDir, Membership};
use crate::api::bootstrap::{self, Bootstrap};
use crate::api::join::{self, JoinAnswer, JoinRefusal, JoinRequest, Member};
use crate::api::server::tokens;
use crate::clock;
use crate::config::NodeConfig;
use crate::raft::Raft;
use crate::transport::{PeerAddress, Ticket, TicketSecret, Transport, load_or_create_key};
use crate::user::UserState;

/// The first wait before the peers are asked again; it doubles. Nodes that are started together find each other in the first
/// few tries.
const ASK_WAIT_MIN: Duration = Duration::from_millis(20);
/// The longest wait before the peers are asked again.
const ASK_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a node that comes back waits for a peer to say which cluster it belongs to.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// The file with the last good bootstrap answers.
const BOOTSTRAP_FILE: &str = "bootstrap.json";
/// The file with the members as this node last knew them.
const MEMBERS_FILE: &str = "members.json";
/// How long a node waits for the members that it says hello to; the next hello asks others.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A bootstrap answer and the peer that gave it, kept for when HTTP is unreachable.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct KnownPeer {
    peer: String,
    facts: Bootstrap,
}

/// What is needed to become a member.
pub(crate) struct Entrance<'a> {
    pub(crate) config: &'a NodeConfig,
    pub(crate) data: &'a DataDir,
    pub(crate) user: &'a UserState,
    pub(crate) transport: &'a Transport,
    pub(crate) raft: &'a Raft,
    /// This node as it describes itself.
    pub(crate) record: NodeRecord,
    /// Says how far things are, for `/bootstrap`.
    pub(crate) say: &'a (dyn Fn(String) + Sync),
}

/// Refuses a data directory that belongs to another node or cluster, before anything is opened.
pub(crate) fn check_membership(data: &DataDir, config: &NodeConfig, ticket: Option<&Ticket>) -> Result<(), StartError> {
    let Some(membership) = data.membership()? else { return Ok(()) };
    if membership.removed {
        return Err(StartError::Removed(membership.node));
    }
    if membership.node != config.id {
        return Err(other_node(data, membership.node));
    }
    match ticket {
        Some(ticket) if ticket.cluster != membership.cluster => {
            Err(other_cluster(data, membership.cluster, ticket.cluster))
        }
        _ => Ok(()),
    }
}

fn other_node(data: &DataDir, node: NodeId) -> StartError {
    let dir = data.path().display();
    StartError::OtherOwner(format!(
        "the data directory {dir} belongs to node {node}: start it with --id {node}, or give another --data-dir"
    ))
}

fn other_cluster(data: &DataDir, own: ClusterId, asked: ClusterId) -> StartError {
    StartError::OtherOwner(format!(
        "the data directory {} belongs to cluster {own}, and this node is told to join cluster {asked}: leave that one first \
         with `blixard cluster leave`, or give an empty --data-dir",
        data.path().display()
    ))
}

impl Entrance<'_> {
    /// Makes this node a member, however long that takes.
    pub(crate) async fn enter(&self, ticket: Option<&Ticket>) -> Result<Membership, StartError> {
        if let Some(membership) = self.data.membership()? {
            // The replica may be behind: what was committed is known for certain only once a leader has said so again.
            meet(self.transport, self.config.id, &known_members(self.data));
            self.check_peers(&membership).await?;
            return Ok(membership);
        }
        // The file that says so is gone, and its log still knows.
        if let Some(node) = self.raft.other_number().await? {
            return Err(other_node(self.data, node));
        }
        if ticket.is_some() || !self.config.peers.is_empty() {
            return self.join(ticket).await;
        }
        self.found().await
    }

    /// Peers that answer must be of the cluster that this node belongs to; peers that do not answer may be down.
    async fn check_peers(&self, membership: &Membership) -> Result<(), StartError> {
        let asked = self.config.peers.iter().map(|peer| tokio::time::timeout(CHECK_TIMEOUT, bootstrap::fetch(peer)));
        for facts in futures::future::join_all(asked).await.into_iter().flatten().flatten() {
            if facts.cluster_id != membership.cluster {
                return Err(other_cluster(self.data, membership.cluster, facts.cluster_id));
            }
            if facts.p2p_node_id != self.record.endpoint {
                // Only where it is: that it is a member is for the replicated state to say, and not for an answer over plain HTTP.
                self.transport.learn(&facts.address());
            }
        }
        Ok(())
    }

    /// Founds a new cluster with this node as its first. A founding that was cut short is completed.
    async fn found(&self) -> Result<Membership, StartError> {
        let key_path = self.data.join("cluster.key");
        let begun = key_path.exists();
        if !begun && self.raft.is_initialized().await? {
            return Err(StartError::OtherOwner(format!(
                "the data directory {} was about to join a cluster: start it with the same --peers or --join again",
                self.data.path().display()
            )));
        }
        // Written before Raft begins, so that a crash in between is told from a join that was cut short.
        let cluster = ClusterId(load_or_create_key(&key_path)?.id().0);
        tracing::info!(%cluster, "founding a new cluster: no peer to join was given");
        if !self.raft.is_initialized().await? {
            self.raft.found().await?;
        }
        // What an earlier try wrote is applied by then.
        self.raft.barrier().await.context("read what an earlier founding wrote")?;
        if self.raft.read(|state| state.cluster).is_none() {
            let client =
                self.user.client_key().context("make the key with which this user is the cluster's first client")?;
            let client = Client {
                key: client.id(),
                name: self.user.user_name(),
                added_at: clock::now(),
                role: ClientRole::Admin,
            };
            let node = NodeRecord { joined_at: clock::now(), ..self.record.clone() };
            let init = Change::InitCluster { cluster, node, client, settings: self.config.cluster };
            self.write(init).await?;
        }
        if self.raft.read(|state| state.documents_secret.is_none()) {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).context("draw the secret of the documents")?;
            self.write(Change::SetDocumentsSecret(DocumentsSecret(secret))).await?;
        }
        // With a secret that never expires, readable by this user alone: nodes of the same user find it by the cluster's id.
        let (token, secret) = tokens::mint(None, None)?;
        self.write(Change::CreateToken(token)).await?;
        self.user.save_local_ticket(&Ticket {
            cluster,
            peers: vec![self.transport.address()],
            secret: Some(secret),
        })?;
        let membership = Membership { node: self.config.id, cluster, removed: false };
        self.data.set_membership(&membership)?;
        Ok(membership)
    }

    async fn write(&self, change: Change) -> Result<(), StartError> {
        let command = Command { request: None, at: clock::now(), by: Actor::Node(self.config.id), change };
        let outcome = self.raft.propose(&command).await.context("write the cluster's first commands")?;
        outcome
            .map(drop)
            .map_err(|rejection| StartError::Failed(anyhow::Error::new(rejection).context("found the cluster")))
    }

    /// Asks the peers in turn until one lets this node in, or refuses it.
    async fn join(&self, ticket: Option<&Ticket>) -> Result<Membership, StartError> {
        let is_blank = !self.raft.is_initialized().await?;
        let mut wait = ASK_WAIT_MIN;
        let mut last_problem = String::new();
        loop {
            let mut problems = Vec::new();
            for (peer, cluster, secret) in self.ways_in(ticket, &mut problems).await {
                let incarnation = self.transport.incarnation();
                let request = JoinRequest { cluster, node: self.record.clone(), incarnation, secret, is_blank };
                match join::ask(self.transport, &peer, &request).await {
                    Ok(JoinAnswer::Admitted { cluster, members }) => {
                        meet(self.transport, self.config.id, &members);
                        keep_members(self.data, &members);
                        let membership = Membership { node: self.config.id, cluster, removed: false };
                        self.data.set_membership(&membership)?;
                        tracing::info!(%cluster, members = members.len(), "let in");
                        return Ok(membership);
                    }
                    Ok(JoinAnswer::Refused(refusal)) => return Err(StartError::Refused(refusal)),
                    Ok(JoinAnswer::TryLater(reason)) => problems.push(reason),
                    Err(error) => problems.push(format!("{error:#}")),
                }
            }
            let problem = problems.join("; ");
            if problem != last_problem {
                tracing::warn!(problem, "not let in yet; asking again");
                (self.say)(format!("waiting to be let into the cluster: {problem}"));
                last_problem = problem;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(ASK_WAIT_MAX);
        }
    }

    /// Where this node may ask, with the cluster it then means and the secret it has for it.
    async fn ways_in(
        &self,
        ticket: Option<&Ticket>,
        problems: &mut Vec<String>,
    ) -> Vec<(PeerAddress, ClusterId, Option<TicketSecret>)> {
        let mut ways = Vec::new();
        if let Some(ticket) = ticket {
            ways.extend(ticket.peers.iter().map(|peer| (peer.clone(), ticket.cluster, ticket.secret.clone())));
        }
        let mut known = self.known_peers();
        for peer in &self.config.peers {
            let facts = match bootstrap::fetch(peer).await {
                Ok(facts) => {
                    known.retain(|known| known.peer != *peer);
                    known.push(KnownPeer { peer: peer.clone(), facts: facts.clone() });
                    if let Err(error) = self.data.write(BOOTSTRAP_FILE, &known) {
                        tracing::warn!(error = format!("{error:#}"), "the bootstrap answer could not be kept");
                    }
                    facts
                }
                Err(error) => {
                    problems.push(format!("{error:#}"));
                    match known.iter().find(|known| known.peer == *peer) {
                        Some(known) => known.facts.clone(),
                        None => continue,
                    }
                }
            };
            // A ticket given for this cluster is meant for it; otherwise this user's own, if a node of theirs founded it.
            let given =
                ticket.filter(|ticket| ticket.cluster == facts.cluster_id).and_then(|ticket| ticket.secret.clone());
            let secret = given.or_else(|| self.user.local_ticket(facts.cluster_id).and_then(|ticket| ticket.secret));
            ways.push((facts.address(), facts.cluster_id, secret));
        }
        ways
    }

    /// The last good answers. Without them only the peers themselves can be asked.
    fn known_peers(&self) -> Vec<KnownPeer> {
        match self.data.read(BOOTSTRAP_FILE, "it is written anew when a peer answers") {
            Ok(known) => known.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "what peers said earlier cannot be read, and is left out");
                Vec::new()
            }
        }
    }
}

/// The members as this node last knew them, for when its replica is behind. A lost or damaged file is no more than that: the
/// replica, and the members that it knows, tell again.
pub(super) fn known_members(data: &DataDir) -> Vec<Member> {
    let known = data.read(MEMBERS_FILE, "the members tell it anew").unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), "the members of before are not known; going on without them");
        None
    });
    known.unwrap_or_default()
}

/// Keeps the members on disk for the next start.
pub(super) fn keep_members(data: &DataDir, members: &[Member]) {
    if let Err(error) = data.write(MEMBERS_FILE, &members) {
        tracing::warn!(error = format!("{error:#}"), "the members could not be kept for the next start");
    }
}

/// Lets members in and learns where they are, ahead of the replicated state.
fn meet(transport: &Transport, me: NodeId, members: &[Member]) {
    for member in members.iter().filter(|member| member.id != me) {
        transport.learn(&member.address);
    }
    transport.access().add_members(members.iter().map(|member| member.address.endpoint));
}

/// Shows this member to the others: they learn its addresses, and it learns of members that its replica does not know yet.
/// Says so when the cluster has removed it.
pub(super) async fn hello(
    transport: &Transport,
    me: &NodeRecord,
    cluster: ClusterId,
    others: &[PeerAddress],
) -> Result<(), JoinRefusal> {
    let request =
        JoinRequest { cluster, node: me.clone(), incarnation: transport.incarnation(), secret: None, is_blank: false };
    let mut answers: FuturesUnordered<_> = others.iter().map(|peer| join::ask(transport, peer, &request)).collect();
    // Each answer counts when it comes: one member that is gone must not keep back what another says.
    let listen = async {
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(JoinAnswer::Admitted { members, .. }) => meet(transport, me.id, &members),
                Ok(JoinAnswer::Refused(refusal)) => return Err(refusal),
                Ok(JoinAnswer::TryLater(reason)) => {
                    tracing::debug!(reason, "a member could not be asked for the others");
                }
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "a member could not be asked for the others");
                }
            }
        }
        Ok(())
    };
    tokio::time::timeout(HELLO_TIMEOUT, listen).await.unwrap_or(Ok(()))
}
