//! Who votes: the plan by which the leader brings Raft's membership in line with the members of the cluster.
//!
//! The plan is one step at a time, made anew from what is seen after each. A cluster comes to rest with an odd number of
//! voters: a fourth voter would make every write wait for one more disk and tolerate no more losses than three do, and two
//! voters tolerate less than one. So two nodes have one voter, and the way from one to three is only begun when both others
//! have caught up.
//!
//! ```text
//!             AddLearners           Promote / Replace.healthy
//!  member ----------------> learner -------------------------> voter
//!                             ^  |                               |
//!                             |  | Remove (no member any more)   | Demote / Replace.lost
//!                             |  v                               |
//!                             |  (out)                           |
//!                             +----------------------------------+
//! ```
//!
//! The plan knows nodes by their numbers. A number that belonged to a removed node may be given to another key, but not
//! before Raft has let go of it, or a voter with an empty log would take the place of one that has voted: whoever proposes
//! [`crate::Change::AdmitNode`] waits for that.
//!
//! No step is taken after which fewer than a majority of the voters would be healthy: the cluster would be stuck in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{NodeId, State};

/// How long a voter may be silent before a healthy learner takes its place, in milliseconds. A host reboots in about that
/// time, and the change costs a few writes, so it need not be sooner.
pub const LOST_AFTER_MS: u64 = 30_000;
/// How recently a node must have answered to be counted on in a change of voters, in milliseconds: several heartbeats, so
/// that one lost packet decides nothing.
pub const HEALTHY_WITHIN_MS: u64 = 3_000;

/// Raft's membership as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftView {
    /// The leader, which is the node that plans.
    pub leader: NodeId,
    /// The voters, the leader among them.
    pub voters: BTreeSet<NodeId>,
    /// The learners.
    pub learners: BTreeSet<NodeId>,
    /// The nodes whose log is as long as the leader's, or nearly.
    pub caught_up: BTreeSet<NodeId>,
    /// Milliseconds since each other node last answered this leader, or since this leader took office when it has not yet.
    /// A node without an entry is not counted on, and not given up either.
    pub silent_ms: BTreeMap<NodeId, u64>,
}

/// One change of Raft's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipStep {
    /// Members begin to learn. A change names all members and goes to all of them, so many that come together are one change.
    AddLearners(BTreeSet<NodeId>),
    /// A learner becomes a voter.
    Promote(NodeId),
    /// A voter becomes a learner.
    Demote(NodeId),
    /// A voter becomes a learner and a learner a voter, in one change.
    Replace {
        /// The voter that is lost, or no longer a member.
        lost: NodeId,
        /// The learner that takes its place.
        healthy: NodeId,
    },
    /// A node that is no longer a member leaves Raft, from whichever role.
    Remove(NodeId),
    /// The leader is no longer a member: it hands its office to a voter that is one, which then removes it. The successor
    /// is named, because two removed voters could hand the office to each other for ever.
    StepDown {
        /// The next leader.
        successor: NodeId,
    },
}

impl RaftView {
    /// Whether the node answered lately. The leader answers itself.
    fn is_healthy(&self, id: NodeId) -> bool {
        id == self.leader || self.silent_ms.get(&id).is_some_and(|silent_ms| *silent_ms <= HEALTHY_WITHIN_MS)
    }

    fn is_lost(&self, id: NodeId) -> bool {
        id != self.leader && self.silent_ms.get(&id).is_some_and(|silent_ms| *silent_ms > LOST_AFTER_MS)
    }

    /// Whether the voters that a step leads to have a healthy majority. Steps that change no voter are always safe.
    fn is_safe(&self, step: &MembershipStep) -> bool {
        let mut voters = self.voters.clone();
        match step {
            MembershipStep::AddLearners(_) | MembershipStep::StepDown { .. } => return true,
            MembershipStep::Promote(id) => {
                voters.insert(*id);
            }
            MembershipStep::Demote(id) | MembershipStep::Remove(id) => {
                if !voters.remove(id) {
                    return true;
                }
            }
            MembershipStep::Replace { lost, healthy } => {
                voters.remove(lost);
                voters.insert(*healthy);
            }
        }
        let healthy = voters.iter().filter(|id| self.is_healthy(**id)).count();
        healthy * 2 > voters.len()
    }
}

impl State {
    /// The next step by which Raft's membership comes nearer to the members of the cluster and the wanted number of voters;
    /// nothing when all is as it should be, or nothing can safely be done now.
    pub fn plan_membership(&self, raft: &RaftView) -> Option<MembershipStep> {
        Plan { state: self, raft }.candidates().into_iter().find(|step| raft.is_safe(step))
    }
}

struct Plan<'a> {
    state: &'a State,
    raft: &'a RaftView,
}

impl Plan<'_> {
    /// The steps that would each be right now, most urgent first.
    fn candidates(&self) -> Vec<MembershipStep> {
        if !self.is_member(self.raft.leader) {
            return self.departures();
        }
        let mut steps = Vec::new();
        steps.extend(self.newcomers());
        steps.extend(self.removals());
        steps.extend(self.replacements());
        steps.extend(self.resizing());
        steps
    }

    fn is_member(&self, id: NodeId) -> bool {
        self.state.nodes.contains_key(&id)
    }

    fn voters_wanted(&self) -> usize {
        usize::from(self.state.settings.voters)
    }

    /// The members that could vote from now on.
    fn ready(&self) -> impl Iterator<Item = NodeId> {
        let is_ready =
            |id: &NodeId| self.is_member(*id) && self.raft.caught_up.contains(id) && self.raft.is_healthy(*id);
        self.raft.learners.difference(&self.raft.voters).copied().filter(is_ready)
    }

    fn newcomers(&self) -> Option<MembershipStep> {
        let is_new = |id: &NodeId| !self.raft.voters.contains(id) && !self.raft.learners.contains(id);
        let new: BTreeSet<NodeId> = self.state.nodes.keys().copied().filter(is_new).collect();
        (!new.is_empty()).then_some(MembershipStep::AddLearners(new))
    }

    /// A removed leader first makes sure that somebody can take over, and does nothing else any more.
    fn departures(&self) -> Vec<MembershipStep> {
        let can_lead = |id: &NodeId| self.is_member(*id) && self.raft.is_healthy(*id);
        if let Some(successor) = self.raft.voters.iter().copied().find(can_lead) {
            return vec![MembershipStep::StepDown { successor }];
        }
        let mut steps: Vec<_> = self.ready().map(MembershipStep::Promote).collect();
        steps.extend(self.newcomers());
        steps
    }

    /// What is no longer a member goes. A voter is replaced if possible, so that the number of voters does not dip.
    fn removals(&self) -> Vec<MembershipStep> {
        let is_gone = |id: &NodeId| !self.is_member(*id);
        let mut steps: Vec<_> = self
            .raft
            .learners
            .difference(&self.raft.voters)
            .copied()
            .filter(is_gone)
            .map(MembershipStep::Remove)
            .collect();
        let gone: Vec<NodeId> = self.raft.voters.iter().copied().filter(is_gone).collect();
        steps.extend(self.replaced(&gone));
        steps.extend(gone.iter().copied().map(MembershipStep::Remove));
        if !gone.is_empty() {
            // When too few would be left, a lost voter that does not count any more makes way first.
            steps.extend(self.lost_voters().into_iter().map(MembershipStep::Demote));
        }
        steps
    }

    fn replacements(&self) -> Vec<MembershipStep> {
        self.replaced(&self.lost_voters())
    }

    fn lost_voters(&self) -> Vec<NodeId> {
        self.raft.voters.iter().copied().filter(|id| self.raft.is_lost(*id)).collect()
    }

    fn replaced(&self, voters: &[NodeId]) -> Vec<MembershipStep> {
        if self.raft.voters.len() > self.voters_wanted() {
            return Vec::new();
        }
        let Some(healthy) = self.ready().next() else { return Vec::new() };
        voters.iter().map(|lost| MembershipStep::Replace { lost: *lost, healthy }).collect()
    }

    /// Towards the largest odd number of voters that is wanted and possible.
    fn resizing(&self) -> Vec<MembershipStep> {
        let voters = self.raft.voters.len();
        let ready = self.ready().count();
        let possible = voters.saturating_add(ready).min(self.voters_wanted());
        let goal = if possible.is_multiple_of(2) { possible.saturating_sub(1) } else { possible };
        if voters < goal {
            return self.ready().map(MembershipStep::Promote).collect();
        }
        let too_many = voters > self.voters_wanted();
        // An even number waits for a learner that is still catching up, rather than going back and forth.
        let may_grow = self.raft.learners.iter().any(|id| self.is_member(*id) && !self.raft.is_lost(*id));
        if too_many || (voters.is_multiple_of(2) && !may_grow) { self.demotions() } else { Vec::new() }
    }

    /// The voters but for the leader: lost ones first, then silent ones, then the highest ids.
    fn demotions(&self) -> Vec<MembershipStep> {
        let mut others: Vec<NodeId> = self.raft.voters.iter().copied().filter(|id| *id != self.raft.leader).collect();
        others.sort_by_key(|id| (!self.raft.is_lost(*id), self.raft.is_healthy(*id), std::cmp::Reverse(*id)));
        others.into_iter().map(MembershipStep::Demote).collect()
    }
}
