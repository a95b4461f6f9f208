//! What a node says of itself to the cluster.

use std::collections::BTreeMap;

use anyhow::Context;
use blixard_core::{Capacity, Node as NodeRecord, Resources, UnixMs};

use super::data_dir::DataDir;
use crate::config::NodeConfig;
use crate::transport::Transport;

/// Memory left to the host itself, at least.
const HOST_MEMORY_MIB: u64 = 512;
/// The file with the disk space measured at the first start.
const CAPACITY_FILE: &str = "capacity.json";

/// This node as it describes itself to the cluster.
pub(super) fn record(config: &NodeConfig, data: &DataDir, transport: &Transport) -> anyhow::Result<NodeRecord> {
    let facts = blixard_hypervisor::probe(data.path()).context("measure this host")?;
    let disk_mib = match config.capacity.disk_mib {
        Some(disk_mib) => disk_mib,
        // Measured once: the free space later depends on what vms have used of it.
        None => match data.read::<u64>(CAPACITY_FILE, "the free space is then measured anew")? {
            Some(disk_mib) => disk_mib,
            None => {
                let disk_mib = facts.disk_free_bytes >> 20;
                data.write(CAPACITY_FILE, &disk_mib)?;
                disk_mib
            }
        },
    };
    let host_mib = (facts.memory_mib / 10).max(HOST_MEMORY_MIB);
    let physical = Resources {
        vcpus: config.capacity.vcpus.unwrap_or_else(|| u64::from(facts.cores)),
        memory_mib: config.capacity.memory_mib.unwrap_or_else(|| facts.memory_mib.saturating_sub(host_mib)),
        disk_mib,
    };
    let own = transport.address();
    Ok(NodeRecord {
        id: config.id,
        endpoint: own.endpoint,
        addresses: own.addresses,
        relay_url: own.relay_url,
        capacity: Capacity {
            physical,
            overcommit_vcpus_percent: config.capacity.overcommit_vcpus_percent,
            overcommit_memory_percent: config.capacity.overcommit_memory_percent,
            overcommit_disk_percent: config.capacity.overcommit_disk_percent,
        },
        labels: config.labels.clone().into_iter().collect::<BTreeMap<_, _>>(),
        shares_images: config.p2p_enabled,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        joined_at: UnixMs(0),
    })
}
