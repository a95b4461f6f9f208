//! What a node takes at rest in a cluster of three, beside etcd.

use super::Request;
use super::etcd::{self, Etcd, MEMBERS};
use super::samples::{Findings, Goal, Samples};
use super::usage::Usage;
use crate::cluster::{Cluster, Entry};
use anyhow::Result;
use std::time::Duration;

/// For what starting up has set going to end.
const SETTLE: Duration = Duration::from_secs(10);
/// How long the processor time is counted.
const WATCH: Duration = Duration::from_secs(15);
/// The most memory allowed.
const GOAL_MIB: f64 = 64.0;
/// The most processor time allowed, in hundredths of one.
const GOAL_PERCENT: f64 = 1.0;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let pair = |whose: &str| {
        let of = |what: &str, unit| Samples::of(&format!("{whose}: {what} of a node at rest"), unit);
        [of("memory", "MiB"), of("processor", "%")]
    };
    let (mut ours, mut theirs) = (pair("blixard"), pair("etcd"));
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_HYPERVISOR", "fake");
        cluster.start(1, &Entry::Found)?;
        cluster.start(2, &Entry::Peer(1))?;
        cluster.start(3, &Entry::Peer(1))?;
        cluster.wait_for_voters(1, 3, 3)?;
        let etcd = etcd::version().map(|_| Etcd::start(&mut cluster, "etcd")).transpose()?;
        if let Some(etcd) = &etcd {
            etcd.leader()?;
        }
        let pids = (1..=3).map(|node| cluster.pid(node)).collect::<Result<Vec<_>>>()?;
        let etcd_pids = etcd.iter().flat_map(|etcd| (0..MEMBERS).map(|member| etcd.pid(member)));
        let etcd_pids = etcd_pids.collect::<Result<Vec<_>>>()?;
        request.interrupt.wait(SETTLE)?;
        let before = [usages(&pids)?, usages(&etcd_pids)?];
        request.interrupt.wait(WATCH)?;
        let after = [usages(&pids)?, usages(&etcd_pids)?];
        for (samples, (before, after)) in [&mut ours, &mut theirs].into_iter().zip(before.iter().zip(&after)) {
            for (before, after) in before.iter().zip(after) {
                samples[0].add(after.memory_mib);
                samples[1].add(after.cpu_percent_since(before));
            }
        }
        drop(etcd);
        cluster.shut_down()?;
        println!("bench: run {run}: {}", Samples::last_told(&[&ours[0], &ours[1], &theirs[0], &theirs[1]]));
    }
    let goals = Goal::at_most("memory at rest, largest", ours[0].max(), GOAL_MIB)
        .into_iter()
        .chain(Goal::at_most("processor at rest, median", ours[1].median(), GOAL_PERCENT))
        .collect();
    Ok(Findings { all: ours.into_iter().chain(theirs).collect(), goals })
}

pub(super) fn usages(pids: &[u32]) -> Result<Vec<Usage>> {
    pids.iter().map(|pid| Usage::of(*pid)).collect()
}
