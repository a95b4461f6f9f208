//! What clusters of more and more nodes cost, all of them on this machine, with the fake driver.
//!
//! A cost that grows with the number of nodes is as expected; one that grows faster is a fault in the making. So each step from
//! one size to the next is set against the line through the smaller one.

use super::Request;
use super::idle::usages;
use super::samples::{Findings, Goal, Samples};
use crate::cluster::{self, Cluster, Entry};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::{Duration, Instant};

const SIZES: &[u64] = &[5, 10, 20, 50];
/// Memory that must be free for each node, or a size is left out: a machine that swaps measures its disk.
const NODE_MIB: u64 = 100;
/// For the largest cluster to form on a slow machine.
const PATIENCE: Duration = Duration::from_secs(300);
/// For what starting up has set going to end.
const SETTLE: Duration = Duration::from_secs(10);
/// How long the processor time is counted.
const WATCH: Duration = Duration::from_secs(10);
/// How often the status is asked for.
const ASKS: u32 = 5;
/// A step may be steeper than the line by so much, which is within what repeated runs differ by.
const STEEPNESS_MAX: f64 = 1.1;

/// What is counted at each size, and its unit.
const COSTS: &[(&str, &str)] = &[
    ("until all are ready", "ms"),
    ("memory of all nodes", "MiB"),
    ("processor of all nodes at rest", "%"),
    ("`cluster status`", "ms"),
];

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut rows: Vec<Vec<Samples>> = Vec::new();
    let sizes: Vec<u64> = SIZES.iter().copied().filter(|size| fits(*size)).collect();
    ensure!(!sizes.is_empty(), "there is too little free memory for {} nodes", SIZES[0]);
    for &size in &sizes {
        let of = |(what, unit): &(&str, &'static str)| Samples::of(&format!("{size} nodes: {what}"), unit);
        let mut row: Vec<Samples> = COSTS.iter().map(of).collect();
        for run in 1..=request.runs {
            for (samples, cost) in row.iter_mut().zip(costs(request, size)?) {
                samples.add(cost);
            }
            println!("bench: run {run}: {}", Samples::last_told(&row.iter().collect::<Vec<_>>()));
        }
        rows.push(row);
    }
    let mut findings = Findings::default();
    for (cost, (what, _)) in COSTS.iter().enumerate() {
        for (step, pair) in rows.windows(2).enumerate() {
            let growth = sizes[step + 1] as f64 / sizes[step] as f64;
            let steepness = pair[1][cost].ratio(&pair[0][cost]).map(|ratio| ratio / growth);
            let text = format!("{what}, {} to {} nodes, beside linear", sizes[step], sizes[step + 1]);
            findings.goals.extend(Goal::at_most(&text, steepness, STEEPNESS_MAX));
        }
    }
    findings.all = rows.into_iter().flatten().collect();
    Ok(findings)
}

fn fits(size: u64) -> bool {
    let needed_mib = size * NODE_MIB;
    let free_mib = free_mib(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let fits = free_mib.is_none_or(|free_mib| free_mib >= needed_mib);
    if !fits {
        println!("bench: {size} nodes are left out: they may need {needed_mib} MiB of free memory");
    }
    fits
}

fn free_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

/// What [`COSTS`] names, for one cluster.
fn costs(request: &Request, size: u64) -> Result<[f64; 4]> {
    let mut cluster = Cluster::new(request.binary, request.interrupt)?;
    cluster.set("BLIXARD_HYPERVISOR", "fake");
    let started = Instant::now();
    cluster.start(1, &Entry::Found)?;
    for node in 2..=size {
        cluster.start(node, &Entry::Peer(1))?;
    }
    cluster.wait_at_most(PATIENCE, &format!("{size} nodes that are ready"), |cluster| {
        let view = cluster.ask_json(1, &["cluster", "status"])?;
        let nodes = cluster::array(&view, "/nodes")?;
        let ready = nodes.iter().filter(|node| node["state"] == "ready").count();
        ensure!(ready as u64 == size, "{ready} nodes are ready");
        Ok(())
    })?;
    let formed_ms = started.elapsed().as_secs_f64() * 1000.0;
    request.interrupt.wait(SETTLE)?;
    let pids = (1..=size).map(|node| cluster.pid(node)).collect::<Result<Vec<_>>>()?;
    let before = usages(&pids)?;
    request.interrupt.wait(WATCH)?;
    let after = usages(&pids)?;
    let percent = before.iter().zip(&after).map(|(before, after)| after.cpu_percent_since(before)).sum();
    let mut asks = Samples::of("", "ms");
    for _ in 0..ASKS {
        let asked = Instant::now();
        cluster.ask(1, &["cluster", "status"])?;
        asks.add(asked.elapsed().as_secs_f64() * 1000.0);
    }
    let status_ms = asks.median().context("the status was asked for")?;
    cluster.shut_down()?;
    Ok([formed_ms, after.iter().map(|usage| usage.memory_mib).sum(), percent, status_ms])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_what_the_kernel_calls_available() {
        assert_eq!(free_mib("MemTotal: 9 kB\nMemAvailable:   204800 kB\n"), Some(200));
        assert_eq!(free_mib("MemTotal: 9 kB\n"), None);
    }
}
