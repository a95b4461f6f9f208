//! Nodes, what they can carry, and the settings of the cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{EndpointId, NodeId, UnixMs, limits};

/// The label that names where a node is. Nodes of one site take images from each other first.
pub const SITE_LABEL: &str = "site";

/// An amount of what vms use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, JsonSchema, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual processors.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in MiB.
    pub disk_mib: u64,
}

impl Resources {
    /// The sum of both, capped at the largest numbers.
    pub fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
        }
    }

    /// What is left after taking `other`; never below 0.
    pub fn minus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_mib: self.disk_mib.saturating_sub(other.disk_mib),
        }
    }

    /// Whether `self` is no more than `limit` in every respect.
    pub fn fits_in(self, limit: Self) -> bool {
        self.vcpus <= limit.vcpus && self.memory_mib <= limit.memory_mib && self.disk_mib <= limit.disk_mib
    }
}

/// What a node offers to vms, as its own configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// What the host really has for vms.
    pub physical: Resources,
    /// How much of the processors may be promised, in percent of the physical; 400 promises four times as many.
    pub overcommit_vcpus_percent: u32,
    /// How much of the memory may be promised, in percent of the physical.
    pub overcommit_memory_percent: u32,
    /// How much of the disk may be promised, in percent of the physical.
    pub overcommit_disk_percent: u32,
}

impl Capacity {
    /// What may be promised to vms: the physical amounts times their overcommit.
    pub fn promised(&self) -> Resources {
        let times = |amount: u64, percent: u32| {
            let product = u128::from(amount) * u128::from(percent) / 100;
            u64::try_from(product).unwrap_or(u64::MAX)
        };
        Resources {
            vcpus: times(self.physical.vcpus, self.overcommit_vcpus_percent),
            memory_mib: times(self.physical.memory_mib, self.overcommit_memory_percent),
            disk_mib: times(self.physical.disk_mib, self.overcommit_disk_percent),
        }
    }
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The number its operator gave it.
    pub id: NodeId,
    /// Its public key; the only thing by which it is recognised.
    pub endpoint: EndpointId,
    /// Where others may reach it directly, best first.
    pub addresses: Vec<SocketAddr>,
    /// The relay it can be reached through, if any.
    pub relay_url: Option<String>,
    /// What it offers to vms.
    pub capacity: Capacity,
    /// Labels given by its operator, matched by `--require key=value`.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes images from, and gives images to, other nodes.
    pub shares_images: bool,
    /// The version of Blixard that it runs.
    pub version: String,
    /// When it was admitted.
    pub joined_at: UnixMs,
}

/// Settings that hold for the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize, Deserialize)]
pub struct Settings {
    /// How many nodes should vote: 1, 3, 5 or 7.
    #[schemars(extend("enum" = limits::VOTERS_ALLOWED))]
    pub voters: u8,
    /// On how many nodes each image should be held, where there are as many.
    #[schemars(range(min = 1, max = limits::COPIES_MAX))]
    pub copies: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self { voters: 3, copies: 2 }
    }
}
