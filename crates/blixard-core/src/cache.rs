//! Which copies of images a node may give up, and which it gives up first.
//!
//! A node that needs room asks [`State::plan_releases`], and proposes a [`crate::Change::ReleaseCopy`] for what comes first. Only
//! when that was accepted does it remove anything. Apply asks [`State::may_release`] once more, and commands come one after the
//! other: so of two nodes that would give up the last two copies at the same moment, one is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::limits::listed;
use crate::{ImageId, NodeId, State, UnixMs};

/// Why a node keeps its copy of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    /// Somebody said that it stays.
    Pinned,
    /// Vms on the node have their disks over it, or are about to.
    Used {
        /// Their names, of many the first few.
        vms: String,
    },
    /// Too few other nodes would be left that have it and could give it.
    FewCopies {
        /// How many there are.
        others: usize,
        /// How many there should be.
        copies: u8,
    },
}

impl fmt::Display for KeepReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("pinned"),
            Self::Used { vms } => write!(f, "used by {vms}"),
            Self::FewCopies { others, copies } => {
                write!(f, "{others} other nodes hold it, and {copies} copies are to be kept")
            }
        }
    }
}

/// What a node alone knows of a copy that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cached {
    /// When a vm on the node last needed it, or somebody last had it brought here.
    pub used_at: UnixMs,
    /// Whether somebody said that it stays.
    pub is_pinned: bool,
}

impl State {
    /// Whether a node may give its copy of an image up, as far as replicas can know; and how many others would be left. A
    /// copy on a node that shares none, or that is noted as lost, does not count: nobody could have it from there.
    ///
    /// # Errors
    /// Why not.
    pub fn may_release(&self, image: ImageId, node: NodeId) -> Result<usize, KeepReason> {
        let needed_there = |vm: &&crate::Vm| match vm.placement {
            Some(placement) => placement.node == node,
            None => vm.spec.node == Some(node),
        };
        let vms: Vec<_> = self.vms_using(image).filter(needed_there).map(|vm| &vm.name).collect();
        if !vms.is_empty() {
            return Err(KeepReason::Used { vms: listed(vms.into_iter()) });
        }
        let gives = |id: &&NodeId| {
            let shares = self.nodes.get(id).is_some_and(|member| member.shares_images);
            **id != node && shares && !self.history.lost.contains(id)
        };
        let no_one = BTreeSet::new();
        let holders = self.images.get(&image).map_or(&no_one, |image| &image.holders);
        let others = holders.iter().filter(gives).count();
        let copies = self.settings.copies;
        if others < usize::from(copies) { Err(KeepReason::FewCopies { others, copies }) } else { Ok(others) }
    }

    /// What of its whole copies a node gives up first when it needs room, in this order; and why it keeps the others.
    ///
    /// The longer a copy was not used and the more others there are, the sooner it goes: one of which four others are left goes
    /// before one of which two are, unless that was not used for twice as long. The id decides among equals.
    pub fn plan_releases(
        &self,
        node: NodeId,
        cached: &BTreeMap<ImageId, Cached>,
        now: UnixMs,
    ) -> (Vec<ImageId>, BTreeMap<ImageId, KeepReason>) {
        let mut spare = Vec::new();
        let mut kept = BTreeMap::new();
        for (id, copy) in cached {
            let judged = if copy.is_pinned { Err(KeepReason::Pinned) } else { self.may_release(*id, node) };
            match judged {
                Ok(others) => {
                    let unused_ms = u128::from(now.since_ms(copy.used_at)).saturating_add(1);
                    spare.push((std::cmp::Reverse(unused_ms.saturating_mul(others as u128)), *id));
                }
                Err(reason) => drop(kept.insert(*id, reason)),
            }
        }
        spare.sort();
        (spare.into_iter().map(|(_, id)| id).collect(), kept)
    }
}
