//! The scheduler: which node each vm goes to, and why.
//!
//! Decisions are data. The leader proposes each one as [`crate::Change::PlaceVm`], and apply checks it again. Nothing here
//! depends on anything but the arguments, so that equal states give equal decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fit::{Fit, Load, RefusalReason};
use crate::{NodeId, State, Vm, VmId};

/// What the scheduler thinks of one node for one vm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The vm is there.
    Placed,
    /// The vm goes there next.
    Chosen(Fit),
    /// It could carry the vm, but another node is preferred or has it already.
    Fits {
        /// Its place among the nodes that could carry the vm, counted from 1.
        rank: u32,
        /// How well.
        fit: Fit,
    },
    /// It cannot carry the vm.
    Refused(RefusalReason),
}

impl Verdict {
    /// Whether the vm is on the node or could be.
    pub fn fits(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// The node's place among those that could carry the vm, counted from 1; 0 where the vm is, nothing where it cannot be.
    pub fn rank(&self) -> Option<u32> {
        match self {
            Self::Placed => Some(0),
            Self::Chosen(_) => Some(1),
            Self::Fits { rank, .. } => Some(*rank),
            Self::Refused(_) => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Placed => f.write_str("the vm is here"),
            Self::Chosen(fit) => write!(f, "chosen: {fit}"),
            Self::Fits { rank, fit } => write!(f, "fits, choice {rank}: {fit}"),
            Self::Refused(reason) => reason.fmt(f),
        }
    }
}

/// A node and what the scheduler thinks of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeVerdict {
    /// The node.
    pub node: NodeId,
    /// The verdict.
    pub verdict: Verdict,
}

type Loads<'a> = BTreeMap<NodeId, Load<'a>>;

impl State {
    /// Places every vm that is not placed and not being deleted, where a node can carry it: the vm, its node, and the
    /// epoch of the placement. A vm is placed when it is created, whether it is to run or not: its disk has to be somewhere.
    ///
    /// The oldest vm comes first, and each decision sees the ones before it. `reachable` are the nodes the leader hears from.
    pub fn schedule(&self, reachable: &BTreeSet<NodeId>) -> Vec<(VmId, NodeId, u64)> {
        let mut loads = self.loads(None);
        let mut decisions = Vec::new();
        for vm in self.waiting() {
            let Some((node, epoch)) = self.choose(vm, &mut loads, reachable).zip(vm.epoch.checked_add(1)) else {
                continue;
            };
            decisions.push((vm.id, node, epoch));
        }
        decisions
    }

    /// What the scheduler thinks of every node for a vm, in the order of the nodes' ids.
    ///
    /// For a vm that waits, older vms that wait have been given their nodes first, as [`schedule`](Self::schedule) does.
    pub fn explain(&self, vm: &Vm, reachable: &BTreeSet<NodeId>) -> Vec<NodeVerdict> {
        let mut loads = self.loads(Some(vm));
        if vm.placement.is_none() {
            for older in self.waiting().into_iter().take_while(|older| older.id != vm.id) {
                self.choose(older, &mut loads, reachable);
            }
        }
        self.verdicts(vm, &loads, reachable)
    }

    /// Tells of each vm that waits what [`explain`](Self::explain) would say of it, the oldest first, at the cost of one
    /// [`schedule`](Self::schedule): many may wait.
    pub fn explain_waiting(&self, reachable: &BTreeSet<NodeId>, mut tell: impl FnMut(&Vm, Vec<NodeVerdict>)) {
        let mut loads = self.loads(None);
        for vm in self.waiting() {
            tell(vm, self.verdicts(vm, &loads, reachable));
            self.choose(vm, &mut loads, reachable);
        }
    }

    /// What the scheduler thinks of every node that carries these loads, in the order of the nodes' ids.
    fn verdicts(&self, vm: &Vm, loads: &Loads<'_>, reachable: &BTreeSet<NodeId>) -> Vec<NodeVerdict> {
        let Ranking { fits, mut refused } = self.ranking(vm, loads, reachable);
        let ranks = fits.into_iter().zip(1_u32..).map(|((_, node, fit), rank)| (node, (rank, fit)));
        let ranks: BTreeMap<NodeId, (u32, Fit)> = ranks.collect();
        let mut verdict = |id: &NodeId| match ranks.get(id) {
            _ if vm.placement.is_some_and(|placement| placement.node == *id) => Verdict::Placed,
            Some((1, fit)) if vm.placement.is_none() => Verdict::Chosen(*fit),
            Some((rank, fit)) => Verdict::Fits { rank: *rank, fit: *fit },
            None => Verdict::Refused(refused.remove(id).unwrap_or(RefusalReason::NotReachable)),
        };
        self.nodes.keys().map(|id| NodeVerdict { node: *id, verdict: verdict(id) }).collect()
    }

    /// The vms to be placed, oldest first; the id decides among equals.
    fn waiting(&self) -> Vec<&Vm> {
        let is_waiting = |vm: &&Vm| vm.placement.is_none() && !vm.desired.deleting;
        let mut waiting: Vec<&Vm> = self.vms.values().filter(is_waiting).collect();
        waiting.sort_by_key(|vm| (vm.created_at, vm.id));
        waiting
    }

    /// Chooses the node for a vm and puts the vm on its load. It is the first of the [`ranking`](Self::ranking), found
    /// without keeping the others: many vms may wait for long, and each is looked at in every round.
    fn choose<'a>(&'a self, vm: &'a Vm, loads: &mut Loads<'a>, reachable: &BTreeSet<NodeId>) -> Option<NodeId> {
        let cost = |(id, load): (&NodeId, &Load<'_>)| {
            let fit = self.fit(self.nodes.get(id)?, vm, load, Some(reachable)).ok()?;
            Some((fit.cost(vm.spec.strategy), *id))
        };
        let (_, node) = loads.iter().filter_map(cost).min()?;
        loads.get_mut(&node)?.add(vm);
        Some(node)
    }

    fn ranking(&self, vm: &Vm, loads: &Loads<'_>, reachable: &BTreeSet<NodeId>) -> Ranking {
        let mut ranking = Ranking { fits: Vec::new(), refused: BTreeMap::new() };
        for (id, load) in loads {
            let Some(node) = self.nodes.get(id) else { continue };
            match self.fit(node, vm, load, Some(reachable)) {
                Ok(fit) => ranking.fits.push((fit.cost(vm.spec.strategy), *id, fit)),
                Err(reason) => {
                    ranking.refused.insert(*id, reason);
                }
            }
        }
        ranking.fits.sort_by_key(|(cost, id, _)| (*cost, *id));
        ranking
    }
}

/// The nodes for a vm: those that can carry it, best first, and why the others cannot.
struct Ranking {
    fits: Vec<(u64, NodeId, Fit)>,
    refused: BTreeMap<NodeId, RefusalReason>,
}
