//! What a node knows of its group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use blixard_core::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, RaftMetrics, ServerState};
use serde::{Deserialize, Serialize};

use super::Raft;
use super::group::{Group, LogId};
use super::machine::OpenRaft;
use crate::metrics::Metrics;
use crate::runtime::{self, watch};

/// A node's part in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It decides.
    Leader,
    /// It votes.
    Voter,
    /// It holds a replica and does not vote.
    Learner,
}

/// What this node's Raft knows of the group now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupView {
    /// The node that looks.
    pub node: NodeId,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The term.
    pub term: u64,
    /// The voters, as they will be when a change that is under way is committed.
    pub voters: BTreeSet<NodeId>,
    /// Whether such a change is under way. Until it is committed, a majority of the voters before may be needed as well.
    pub changing: bool,
    /// The learners.
    pub learners: BTreeSet<NodeId>,
    /// Milliseconds since each other node last answered this one. Known to the leader alone; nothing for a node that never
    /// did.
    pub silent_ms: BTreeMap<NodeId, Option<u64>>,
    /// How far each other node's log matches the leader's. Known to the leader alone.
    pub matched: BTreeMap<NodeId, u64>,
    /// The last index of the log.
    pub last_log: u64,
    /// The last index known to be committed.
    pub committed: u64,
    /// The last index applied here.
    pub applied: u64,
    /// The last index in a snapshot.
    pub snapshot: u64,
    /// Why Raft has stopped, if it has.
    pub stopped: Option<String>,
}

impl GroupView {
    /// Whether the node that looks leads.
    pub(crate) fn is_leader(&self) -> bool {
        self.leader == Some(self.node)
    }

    /// Milliseconds since a node last answered the leader that looks, or since that leader took office, `office_ms` ago, when it
    /// has not yet. Nothing for a node that is not in the group.
    pub(crate) fn silent_ms(&self, node: NodeId, office_ms: u64) -> Option<u64> {
        self.silent_ms.get(&node).map(|silent_ms| silent_ms.unwrap_or(office_ms))
    }

    /// Whether the voters that answer the leader that looks are too few to write anything. One that has not answered yet
    /// counts: the leader has just been elected.
    pub(crate) fn lacks_majority(&self, within_ms: u64) -> bool {
        self.is_leader() && self.heard_from(&self.voters, 0, within_ms).len() <= self.voters.len() / 2
    }

    /// The members that answered the leader that looks within `within_ms`, the leader among them. One that has not answered
    /// since the leader took office, `office_ms` ago, counts for as long as the office is younger than that.
    pub(crate) fn heard_from(&self, members: &BTreeSet<NodeId>, office_ms: u64, within_ms: u64) -> BTreeSet<NodeId> {
        let heard = |node: &NodeId| {
            *node == self.node || self.silent_ms(*node, office_ms).is_some_and(|silent_ms| silent_ms <= within_ms)
        };
        members.iter().copied().filter(heard).collect()
    }

    /// A node's part, if it is in the group.
    pub(crate) fn role(&self, node: NodeId) -> Option<Role> {
        if self.leader == Some(node) {
            Some(Role::Leader)
        } else if self.voters.contains(&node) {
            Some(Role::Voter)
        } else {
            self.learners.contains(&node).then_some(Role::Learner)
        }
    }
}

impl Raft {
    /// The leader, as far as this node is in contact with it; this node itself only while a majority answers it. Raft goes on
    /// naming one that is cut off, and one that is cut off goes on calling itself leader, until there is another.
    pub(super) fn leading(&self, metrics: &RaftMetrics<Group>) -> Option<u64> {
        let leader = metrics.current_leader?;
        if leader != self.node.0 {
            return self.heard.is_within(self.silence_max).then_some(leader);
        }
        let is_new = !self.heard.leads_longer_than(metrics.current_term, self.silence_max);
        let answers = |voter: u64| {
            let time = metrics.heartbeat.as_ref().and_then(|times| times.get(&voter)?.as_ref());
            // One that has not answered yet counts while this node has just been elected. It may have gone right after its vote.
            voter == self.node.0 || time.map_or(is_new, |time| time.elapsed() <= self.silence_max)
        };
        let (mut voters, mut answering) = (0, 0);
        for voter in metrics.membership_config.membership().voter_ids() {
            voters += 1;
            answering += usize::from(answers(voter));
        }
        (answering > voters / 2).then_some(leader)
    }

    /// Why Raft has stopped, if it has.
    pub(super) fn stopped(&self, metrics: &RaftMetrics<Group>) -> Option<String> {
        match &metrics.running_state {
            Err(error) => Some(error.to_string()),
            Ok(()) if self.runs.has_changed().is_err() => Some("its task has ended, as the log above says".into()),
            Ok(()) => None,
        }
    }

    /// What this node knows of the group now.
    pub(crate) fn view(&self) -> GroupView {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let leads = metrics.state == ServerState::Leader;
        let mut silent_ms = BTreeMap::new();
        for (node, time) in metrics.heartbeat.iter().flatten().filter(|(node, _)| leads && **node != self.node.0) {
            let ago = time.as_ref().map(|time| time.elapsed());
            silent_ms.insert(NodeId(*node), ago.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)));
        }
        let committed = index(metrics.local_committed);
        let is_joint = membership.get_joint_config().len() > 1;
        let matched = metrics.replication.iter().flatten().filter(|_| leads);
        GroupView {
            node: self.node,
            leader: self.leading(&metrics).map(NodeId),
            term: metrics.current_term,
            voters: membership.voter_ids().map(NodeId).collect(),
            changing: is_joint || index(*metrics.membership_config.log_id()) > committed,
            learners: membership.learner_ids().map(NodeId).collect(),
            silent_ms,
            matched: matched.filter_map(|(node, id)| Some((NodeId(*node), id.as_ref()?.index))).collect(),
            last_log: metrics.last_log_index.unwrap_or(0),
            committed,
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
            stopped: self.stopped(&metrics),
        }
    }
}

/// Counts the terms and leaders that this node learns of, until its Raft stops; then drops `running`.
pub(super) fn watch_over(raft: &OpenRaft, metrics: Arc<Metrics>, running: watch::Sender<()>) {
    let mut seen = raft.metrics();
    runtime::spawn(async move {
        let (mut term, mut leader) = {
            let now = seen.borrow_watched();
            (now.current_term, now.current_leader)
        };
        while seen.changed().await.is_ok() {
            let now = seen.borrow_watched();
            metrics.elections.inc_by(now.current_term.saturating_sub(term));
            term = now.current_term;
            if now.current_leader.is_some() && now.current_leader != leader {
                metrics.leader_changes.inc();
                leader = now.current_leader;
            }
        }
        drop(running);
    });
}
