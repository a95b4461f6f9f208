//! Whether a node can carry a vm, and how well.
//!
//! The scheduler asks before it decides, apply asks again before a decision takes effect, and `vm explain` asks on behalf
//! of the user: all three get the same answer because there is only this one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Capacity, Node, NodeId, PublishedPort, Resources, State, Strategy, Vm, VmName};

/// One whole, where shares are counted in millionths.
const WHOLE_PPM: u64 = 1_000_000;

/// What holding the image already is worth: as much as a quarter of a node. A node that would have to fetch is chosen only
/// when the holder would end up more than that much fuller (spread) or emptier (pack): a fetch happens once, while an
/// unbalanced cluster stays unbalanced.
const HELD_IMAGE_WORTH_PPM: u64 = 250_000;

/// Something of which a node has so much and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Virtual processors.
    Vcpus,
    /// Memory in MiB.
    Memory,
    /// Disk in MiB.
    Disk,
}

impl Resource {
    fn unit(self) -> &'static str {
        match self {
            Self::Vcpus => "vcpus",
            Self::Memory => "MiB memory",
            Self::Disk => "MiB disk",
        }
    }
}

/// Why a node cannot carry a vm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The vm is on its way out, so it is placed nowhere.
    Deleting,
    /// The vm may run on another node only.
    PinnedElsewhere {
        /// The node it is pinned to.
        node: NodeId,
    },
    /// The leader does not hear from the node.
    NotReachable,
    /// The node lacks a label that the vm requires.
    LabelMissing {
        /// The label's key.
        key: String,
        /// The value that is required.
        wanted: String,
        /// The value that the node has, if it has the label.
        found: Option<String>,
    },
    /// A vm of the same anti-affinity group is there.
    AntiAffinity {
        /// The group.
        group: String,
        /// The vm that is there.
        vm: VmName,
    },
    /// A vm that is there publishes the same port of the host.
    PortTaken {
        /// The port.
        port: PublishedPort,
        /// The vm that has it.
        vm: VmName,
    },
    /// The node does not hold the image and takes none from others.
    SharesNoImages,
    /// The node does not hold the image, and nobody who does could give it.
    ImageNowhere,
    /// There is not enough left of something.
    TooLittle {
        /// Of what.
        resource: Resource,
        /// What the vm needs.
        needs: u64,
        /// What is left.
        free: u64,
        /// What the node offers altogether.
        offered: u64,
    },
}

impl RefusalReason {
    /// What sort of refusal this is, in words that are the same for every node that refuses a vm for this.
    pub fn sort(&self) -> String {
        match self {
            Self::LabelMissing { key, wanted, .. } => format!("label {key}={wanted} required"),
            Self::AntiAffinity { group, .. } => format!("runs a vm of the same anti-affinity group {group}"),
            Self::PortTaken { port, .. } => format!("published port {port} is taken"),
            Self::TooLittle { resource, needs, offered, .. } => {
                let unit = resource.unit();
                // What is too small for the vm even when empty is another matter than what is full.
                let how = if offered < needs { "offers less" } else { "has less left" };
                format!("needs {needs} {unit}, {how}")
            }
            Self::Deleting
            | Self::PinnedElsewhere { .. }
            | Self::NotReachable
            | Self::SharesNoImages
            | Self::ImageNowhere => self.to_string(),
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deleting => f.write_str("the vm is being deleted"),
            Self::PinnedElsewhere { node } => write!(f, "pinned to node {node}"),
            Self::NotReachable => f.write_str("not reachable"),
            Self::LabelMissing { key, wanted, found: Some(found) } => {
                write!(f, "label {key}={wanted} required, node has {key}={found}")
            }
            Self::LabelMissing { key, wanted, found: None } => {
                write!(f, "label {key}={wanted} required, node has no label {key}")
            }
            Self::AntiAffinity { group, vm } => write!(f, "runs {vm} of the same anti-affinity group {group}"),
            Self::PortTaken { port, vm } => write!(f, "published port {port} is taken by {vm}"),
            Self::SharesNoImages => f.write_str("would have to fetch the image but shares no images"),
            Self::ImageNowhere => {
                f.write_str("would have to fetch the image, and no reachable node that shares images holds it")
            }
            Self::TooLittle { resource, needs, free, offered } => {
                let unit = resource.unit();
                write!(f, "needs {needs} {unit}, {free} free of {offered}")
            }
        }
    }
}

/// How well a node that can carry a vm would carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {
    /// How much of the node would be promised with the vm on it, in millionths of whatever it would be shortest of.
    pub fullness_ppm: u64,
    /// Whether the node has the image already.
    pub holds_image: bool,
}

impl Fit {
    /// The order of preference: lower is better.
    pub(crate) fn cost(&self, strategy: Strategy) -> u64 {
        let balance = match strategy {
            Strategy::Spread => self.fullness_ppm,
            Strategy::Pack => WHOLE_PPM.saturating_sub(self.fullness_ppm),
        };
        balance.saturating_add(if self.holds_image { 0 } else { HELD_IMAGE_WORTH_PPM })
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = if self.holds_image { "holds the image" } else { "would fetch the image" };
        write!(f, "{image}, would be {} % full", self.fullness_ppm / (WHOLE_PPM / 100))
    }
}

/// What a node carries already.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load<'a> {
    used: Resources,
    vms: Vec<&'a Vm>,
}

impl<'a> Load<'a> {
    pub(crate) fn add(&mut self, vm: &'a Vm) {
        self.used = self.used.plus(vm.spec.resources());
        self.vms.push(vm);
    }

    /// The largest of the three shares that would be promised, in millionths.
    fn fullness_ppm(&self, capacity: &Capacity, vm: &Vm) -> u64 {
        let used = self.used.plus(vm.spec.resources());
        let offered = capacity.promised();
        let share = |used: u64, offered: u64| match (used, offered) {
            (0, _) => 0,
            (_, 0) => u64::MAX,
            _ => u64::try_from(u128::from(used) * u128::from(WHOLE_PPM) / u128::from(offered)).unwrap_or(u64::MAX),
        };
        share(used.vcpus, offered.vcpus)
            .max(share(used.memory_mib, offered.memory_mib))
            .max(share(used.disk_mib, offered.disk_mib))
    }
}

impl State {
    /// What each node carries, but for one vm that is asked about.
    pub(crate) fn loads(&self, asked: Option<&Vm>) -> BTreeMap<NodeId, Load<'_>> {
        let mut loads: BTreeMap<NodeId, Load<'_>> = self.nodes.keys().map(|id| (*id, Load::default())).collect();
        for vm in self.vms.values().filter(|vm| asked.is_none_or(|asked| asked.id != vm.id)) {
            if let Some(load) = vm.placement.and_then(|placement| loads.get_mut(&placement.node)) {
                load.add(vm);
            }
        }
        loads
    }

    /// Whether a node can carry a vm that is not placed, as far as replicas can know: reachability is left out.
    pub(crate) fn can_carry(&self, node: &Node, vm: &Vm) -> Result<Fit, RefusalReason> {
        let mut load = Load::default();
        self.vms_on(node.id).for_each(|placed| load.add(placed));
        self.fit(node, vm, &load, None)
    }

    /// Whether a node can carry a vm on top of a load. The first reason that no user can do anything about on that node
    /// is named first, what may change by itself last.
    pub(crate) fn fit(
        &self,
        node: &Node,
        vm: &Vm,
        load: &Load<'_>,
        reachable: Option<&BTreeSet<NodeId>>,
    ) -> Result<Fit, RefusalReason> {
        let is_reachable = |id: &NodeId| reachable.is_none_or(|reachable| reachable.contains(id));
        if vm.desired.deleting {
            return Err(RefusalReason::Deleting);
        }
        if let Some(pinned) = vm.spec.node.filter(|pinned| *pinned != node.id) {
            return Err(RefusalReason::PinnedElsewhere { node: pinned });
        }
        for (key, wanted) in &vm.spec.require {
            let found = node.labels.get(key);
            if found != Some(wanted) {
                return Err(RefusalReason::LabelMissing {
                    key: key.clone(),
                    wanted: wanted.clone(),
                    found: found.cloned(),
                });
            }
        }
        if !is_reachable(&node.id) {
            return Err(RefusalReason::NotReachable);
        }
        for other in &load.vms {
            if let Some(group) =
                vm.spec.anti_affinity.as_ref().filter(|_| vm.spec.anti_affinity == other.spec.anti_affinity)
            {
                return Err(RefusalReason::AntiAffinity { group: group.clone(), vm: other.name.clone() });
            }
            let collides = |port: &&PublishedPort| other.spec.publish.iter().any(|taken| taken.collides_with(port));
            if let Some(port) = vm.spec.publish.iter().find(collides) {
                return Err(RefusalReason::PortTaken { port: *port, vm: other.name.clone() });
            }
        }
        let holds_image = self.image_for(node, vm, is_reachable)?;
        is_enough(node.capacity.promised(), load.used, vm.spec.resources())?;
        Ok(Fit { fullness_ppm: load.fullness_ppm(&node.capacity, vm), holds_image })
    }

    /// Whether the node holds the vm's image; refused when it does not and could not get it either.
    fn image_for(&self, node: &Node, vm: &Vm, is_reachable: impl Fn(&NodeId) -> bool) -> Result<bool, RefusalReason> {
        let image = self.images.get(&vm.spec.image).ok_or(RefusalReason::ImageNowhere)?;
        if image.holders.contains(&node.id) {
            return Ok(true);
        }
        if !node.shares_images {
            return Err(RefusalReason::SharesNoImages);
        }
        let gives = |id: &NodeId| is_reachable(id) && self.nodes.get(id).is_some_and(|holder| holder.shares_images);
        if image.holders.iter().any(gives) { Ok(false) } else { Err(RefusalReason::ImageNowhere) }
    }
}

fn is_enough(offered: Resources, used: Resources, needs: Resources) -> Result<(), RefusalReason> {
    let free = offered.minus(used);
    for (resource, needs, free, offered) in [
        (Resource::Vcpus, needs.vcpus, free.vcpus, offered.vcpus),
        (Resource::Memory, needs.memory_mib, free.memory_mib, offered.memory_mib),
        (Resource::Disk, needs.disk_mib, free.disk_mib, offered.disk_mib),
    ] {
        // A need of nothing fits everywhere, also where more has been promised than there is now.
        if needs > free {
            return Err(RefusalReason::TooLittle { resource, needs, free, offered });
        }
    }
    Ok(())
}
