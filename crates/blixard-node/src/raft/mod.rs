//! Consensus: the replicated log, the state it leads to, and a handle to propose, read and watch.
//!
//! The room owns the Raft group (openraft, whose types do not leave it), its log and snapshots on disk, and its traffic.
//! It decides nothing about the cluster: [`blixard_core`] does, and `leader/` orders membership changes. A proposal that
//! reaches a follower is forwarded; it succeeds or fails, and is never dropped. It is stopped by [`Raft::shutdown`].

mod files;
mod group;
mod link;
mod log;
mod machine;
mod network;
mod rhythm;
mod server;
mod settings;
#[cfg(feature = "simulation")]
mod simulated;
#[cfg(all(test, not(feature = "simulation")))]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;
mod view;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use blixard_core::{Command, EndpointId, NodeId, Outcome, State, VmId};
use bytes::Bytes;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::storage::RaftLogStorage;
use redb::Database;
use tracing::{Instrument, info_span};

use crate::config::RaftConfig;
use crate::metrics::{Metrics, observe, outcome};
use crate::runtime::{self, Instant, watch};
use crate::trace::{self, TraceContext};
use crate::transport::{Handler, Transport};
pub(crate) use files::prepare;
use files::{LOG_FILE, STATE_FILE};
use group::{Group, storage_error};
#[cfg(not(feature = "simulation"))]
use link::Link;
use log::LogStore;
use machine::{Applier, Machine, OpenRaft};
use network::AskError;
use settings::settings;
#[cfg(feature = "simulation")]
pub(crate) use simulated::{Incoming, Link, Outgoing, Stage};
pub(crate) use view::GroupView;
pub use view::Role;
use view::watch_over;
pub(crate) use wire::reread_requests;
use wire::{Forwarded, Request};

/// How long a proposal or a linearizable read looks for a leader and waits for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The wait before a proposal is tried again when no leader is known or it could not be reached.
const RETRY_WAIT: Duration = Duration::from_millis(50);

/// A leader is taken for lost when nothing was heard of it for so many of the longest election time-outs: after two, the
/// others have stood for election, and a busy host may miss a few more.
const SILENT_ELECTIONS_MAX: u32 = 6;

/// Why a proposal or a read has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// No leader could be found or reached in time. Nothing is known to have been written.
    #[error("no leader could be reached within {} s: fewer than a majority of the voters may be running ({reason})", ANSWER_TIMEOUT.as_secs())]
    NoLeader {
        /// What was seen last.
        reason: String,
    },
    /// The leader was lost while it worked on the command. It may or may not have been written.
    #[error(
        "the leader was lost while it worked on the request, and its outcome is not known: look at the result before trying again ({reason})"
    )]
    Unknown {
        /// What was seen last.
        reason: String,
    },
    /// This node's Raft has stopped.
    #[error("this node's consensus has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// What a node has on disk, and what is there for as long as the log's file is open.
struct Stores {
    machine: Machine,
    held_log: Weak<()>,
}

/// This node's part in the group. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Raft {
    node: NodeId,
    raft: OpenRaft,
    machine: Machine,
    held_log: Weak<()>,
    link: Arc<dyn Link>,
    metrics: Arc<Metrics>,
    heard: rhythm::Heard,
    /// A leader that was silent for so long is none any more.
    silence_max: Duration,
    /// Whether its core runs: one that panicked leaves its last metrics as they were.
    runs: watch::Receiver<()>,
}

impl Raft {
    /// Opens the log and the state that were prepared in `dir`, and takes part in whatever group they know.
    ///
    /// # Errors
    /// When a file is damaged or cannot be opened, or a setting makes no sense.
    #[cfg(not(feature = "simulation"))]
    pub(crate) async fn start(
        dir: &Path,
        node: NodeId,
        config: RaftConfig,
        transport: Transport,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let open = |name: &str| {
            let path = dir.join(name);
            let db = Database::open(&path).map_err(|error| storage_error(&path, "open", error))?;
            anyhow::Ok((db, path))
        };
        let (state, path) = open(STATE_FILE)?;
        let machine = Machine::open(state, path)?;
        let (log, path) = open(LOG_FILE)?;
        let log = LogStore::open(log, path, metrics.clone())?;
        let held_log = log.held();
        let stores = Stores { machine: machine.clone(), held_log };
        Self::assemble(node, settings(config), Arc::new(transport), stores, machine, log, metrics).await
    }

    /// Takes part with stores that are open, over a link of any kind.
    async fn assemble(
        node: NodeId,
        settings: openraft::Config,
        link: Arc<dyn Link>,
        stores: Stores,
        applier: Applier,
        log: impl RaftLogStorage<Group>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let election_max = Duration::from_millis(settings.election_timeout_max);
        let silence_max = election_max.saturating_mul(SILENT_ELECTIONS_MAX);
        let settings = Arc::new(settings.validate().context("read the Raft settings")?);
        let raft = OpenRaft::new(node.0, settings, network::Network(link.clone()), log, applier)
            .await
            .context("start Raft from its log")?;
        let (running, runs) = watch::channel(());
        watch_over(&raft, metrics.clone(), running);
        let heard = rhythm::Heard::default();
        runtime::spawn(rhythm::keep_patience(raft.clone(), heard.clone(), election_max));
        let Stores { machine, held_log } = stores;
        Ok(Self { node, raft, machine, held_log, link, metrics, heard, silence_max, runs })
    }

    /// The handler of the Raft protocol.
    pub(crate) fn handler(&self) -> Handler {
        server::handler(self.raft.clone(), self.heard.clone())
    }

    /// The number under which the group knows this node's key, if it is not the one that this node was started with.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub(crate) async fn other_number(&self) -> anyhow::Result<Option<NodeId>> {
        // Its answer comes when the log has been read.
        self.is_initialized().await?;
        let own = self.link.id().to_string();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let mut nodes = metrics.membership_config.membership().nodes();
        let known = nodes.find_map(|(id, node)| (node.addr == own).then_some(*id));
        Ok(known.filter(|known| *known != self.node.0).map(NodeId))
    }

    /// Whether this node is part of a group already.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub(crate) async fn is_initialized(&self) -> anyhow::Result<bool> {
        self.raft.is_initialized().await.context("ask Raft whether it is part of a group")
    }

    /// Starts a new group with this node as its only voter.
    ///
    /// # Errors
    /// When this node is part of a group already.
    pub(crate) async fn found(&self) -> anyhow::Result<()> {
        let member = openraft::BasicNode::new(self.link.id());
        self.raft.initialize(BTreeMap::from([(self.node.0, member)])).await.context("start a new Raft group")
    }

    /// Has a command written and applied, by whichever node leads.
    ///
    /// # Errors
    /// When no leader answers in time; the error says whether the command may have been written all the same.
    pub(crate) async fn propose(&self, command: &Command) -> Result<Outcome, ConsensusError> {
        let bytes = Bytes::from(command.encode());
        // A command with a request id is carried out once however often it arrives, and the others are made anew from
        // what is seen: so every command may be sent again after an answer was lost.
        let start = Instant::now();
        let propose = async {
            let trace = TraceContext::current();
            let request = Request::Propose(bytes.clone(), trace);
            self.with_leader(&request, || server::propose_here(&self.raft, bytes.clone(), trace)).await
        };
        let answer = propose.instrument(trace::here(|| info_span!(target: trace::TARGET, "propose"))).await;
        observe(&self.metrics.proposal_times, start.elapsed());
        self.metrics.proposals.get_or_create(&outcome(answer.is_ok())).inc();
        answer
    }

    /// The trace of the latest command on a vm, while this process remembers it.
    pub(crate) fn trace_of(&self, vm: VmId) -> Option<TraceContext> {
        self.machine.trace_of(vm)
    }

    /// Waits until everything that was acknowledged before this call can be read here.
    ///
    /// # Errors
    /// When no leader answers in time.
    pub(crate) async fn barrier(&self) -> Result<(), ConsensusError> {
        let index = self.with_leader(&Request::ReadIndex, || server::read_index_here(&self.raft)).await?;
        let mut applied = self.machine.watch();
        let caught_up = applied.wait_for(|applied| *applied >= index);
        match runtime::timeout(ANSWER_TIMEOUT, caught_up).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ConsensusError::Stopped { reason: "the state machine has ended".into() }),
            Err(_) => {
                Err(ConsensusError::NoLeader { reason: format!("this node has not applied log index {index} in time") })
            }
        }
    }

    async fn with_leader<T, Here, Fut>(&self, request: &Request, here: Here) -> Result<T, ConsensusError>
    where
        T: serde::de::DeserializeOwned,
        Here: Fn() -> Fut,
        Fut: Future<Output = Forwarded<T>>,
    {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut lost = false;
        let mut hint = None;
        let mut reason = String::from("this node hears from no leader that a majority of the voters follows");
        loop {
            let seen = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                match self.stopped(&metrics) {
                    Some(reason) => Err(ConsensusError::Stopped { reason }),
                    None => Ok(hint.take().or_else(|| self.leading(&metrics))),
                }
            };
            let leader = match seen {
                Ok(leader) => leader,
                Err(stopped) => {
                    // Not at once: whoever asks again and again would leave no time for what ends the node.
                    runtime::sleep(RETRY_WAIT).await;
                    return Err(stopped);
                }
            };
            if let Some(leader) = leader {
                let attempt = async {
                    if leader == self.node.0 {
                        return Ok(here().await);
                    }
                    let Some(peer) = self.endpoint_of(leader) else {
                        return Err((false, format!("node {leader} leads and is not known here")));
                    };
                    network::ask::<Forwarded<T>>(&*self.link, peer, request, deadline).await.map_err(
                        |error| match error {
                            AskError::NotSent(error) => (false, format!("node {leader} leads: {error}")),
                            AskError::Lost(error) => (true, format!("node {leader} leads: {error}")),
                        },
                    )
                };
                // A leader that died answers no more, and its connection takes seconds to time out: whoever has been elected
                // meanwhile is asked instead.
                let attempt = async {
                    tokio::select! {
                        biased;
                        answer = attempt => answer,
                        () = self.another_leads(leader) => Err((true, format!("node {leader} was replaced as leader"))),
                    }
                };
                match runtime::timeout_at(deadline, attempt).await {
                    Ok(Ok(Forwarded::Done(answer))) => return Ok(answer),
                    Ok(Ok(Forwarded::NotLeader(other))) => {
                        reason = format!("node {leader} does not lead any more");
                        // A hint that points back where it came from would be followed in circles.
                        hint = other.filter(|other| *other != leader);
                        if hint.is_some() {
                            continue;
                        }
                    }
                    Ok(Ok(Forwarded::Failed(error))) => {
                        lost = true;
                        reason = error;
                    }
                    Ok(Err((sent, error))) => {
                        lost |= sent;
                        reason = error;
                    }
                    Err(_) => {
                        let reason = format!("node {leader} did not answer in time");
                        return Err(ConsensusError::Unknown { reason });
                    }
                }
            }
            if Instant::now() + RETRY_WAIT >= deadline {
                return Err(if lost {
                    ConsensusError::Unknown { reason }
                } else {
                    ConsensusError::NoLeader { reason }
                });
            }
            runtime::sleep(RETRY_WAIT).await;
        }
    }

    /// Waits until this node learns of a new leader that is not `asked`.
    async fn another_leads(&self, asked: u64) {
        let mut metrics = self.raft.metrics();
        let before = metrics.borrow_watched().current_leader;
        loop {
            let leader = metrics.borrow_watched().current_leader;
            if leader.is_some_and(|leader| leader != asked) && leader != before {
                return;
            }
            if metrics.changed().await.is_err() {
                // Raft has stopped, which the request meets by itself.
                return std::future::pending().await;
            }
        }
    }

    fn endpoint_of(&self, node: u64) -> Option<EndpointId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_node(&node)?.addr.parse().ok()
    }

    /// Whether a change of voters was begun by a leader that did not live to complete it.
    pub(crate) fn is_joint(&self) -> bool {
        let metrics = self.raft.metrics();
        metrics.borrow_watched().membership_config.membership().get_joint_config().len() > 1
    }

    /// The keys of all nodes that Raft counts, whether they vote or learn.
    pub(crate) fn members(&self) -> Vec<EndpointId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().nodes().filter_map(|(_, node)| node.addr.parse().ok()).collect()
    }

    /// Looks at the state as this node has applied it. The closure must be short: applying waits for it.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.machine.read(look)
    }

    /// Looks at the state together with the index of the last entry applied to it.
    pub(crate) fn read_with_index<T>(&self, look: impl FnOnce(&State, u64) -> T) -> T {
        self.machine.read_with_index(look)
    }

    /// The index of the last applied entry, live: a change of it means that the state may have changed.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.machine.watch()
    }

    /// Waits until something about the group changes: its leader, its members, or its log. It waits for ever once Raft has
    /// stopped.
    pub(crate) async fn group_changed(&self) {
        let mut metrics = self.raft.metrics();
        // openraft hands out a watch to which everything so far is news.
        metrics.borrow_and_update();
        if metrics.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until this node learns of another leader than the one it knows now, or of none.
    pub(crate) async fn leader_changed(&self) {
        let mut metrics = self.raft.metrics();
        let before = metrics.borrow_watched().current_leader;
        // An error means that Raft has stopped, which the next look finds.
        while metrics.borrow_watched().current_leader == before && metrics.changed().await.is_ok() {}
    }

    /// Adds nodes to the group as learners, in one change.
    ///
    /// # Errors
    /// When this node does not lead, or the change cannot be written.
    pub(crate) async fn add_learners(&self, nodes: BTreeMap<NodeId, EndpointId>) -> anyhow::Result<()> {
        let members = nodes.iter().map(|(node, endpoint)| (node.0, openraft::BasicNode::new(endpoint))).collect();
        let change = ChangeMembers::AddNodes(members);
        self.raft.change_membership(change, true).await.with_context(|| format!("add learners: {nodes:?}"))?;
        Ok(())
    }

    /// Sets the voters. A voter that is no longer one stays on as a learner.
    ///
    /// # Errors
    /// When this node does not lead, or the change cannot be written.
    pub(crate) async fn set_voters(&self, voters: BTreeSet<NodeId>) -> anyhow::Result<()> {
        let voters: BTreeSet<u64> = voters.into_iter().map(|node| node.0).collect();
        let change = ChangeMembers::ReplaceAllVoters(voters);
        self.raft.change_membership(change, true).await.context("change the voters")?;
        Ok(())
    }

    /// Takes a learner out of the group.
    ///
    /// # Errors
    /// When this node does not lead, or the change cannot be written.
    pub(crate) async fn remove_learner(&self, node: NodeId) -> anyhow::Result<()> {
        let change = ChangeMembers::RemoveNodes(BTreeSet::from([node.0]));
        self.raft
            .change_membership(change, false)
            .await
            .with_context(|| format!("take node {node} out of the group"))?;
        Ok(())
    }

    /// Hands the leadership to another voter.
    ///
    /// # Errors
    /// When Raft has stopped.
    pub(crate) async fn transfer_leadership(&self, to: NodeId) -> anyhow::Result<()> {
        self.raft.trigger().transfer_leader(to.0).await.with_context(|| format!("hand the leadership to node {to}"))
    }

    /// What is there for as long as the state's file is open.
    pub(crate) fn held_state(&self) -> Weak<()> {
        self.machine.held()
    }

    /// What is there for as long as the log's file is open.
    pub(crate) fn held_log(&self) -> Weak<()> {
        self.held_log.clone()
    }

    /// Stops taking part. What was acknowledged is on disk.
    pub(crate) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
    }
}
