//! Committed writes and linearizable reads a second, through the public API of the leader, beside etcd.
//!
//! Three nodes in processes of their own with fsync on, all on this machine. Blixard and etcd take turns, one load after the
//! other with the same number of clients, so that whatever else the machine does falls on both.

use super::Request;
use super::etcd::{self, Etcd};
use super::load::{self, Speed};
use super::samples::{Findings, Goal, Samples};
use crate::cluster::{self, Cluster, Entry};
use anyhow::{Context, Result};

/// Loads, by operation and clients.
const LOADS: &[(&str, usize)] =
    &[("write", 1), ("write", 16), ("write", 64), ("write", 256), ("read", 1), ("read", 64)];
/// How often Blixard must be as fast as etcd.
const GOALS: &[(&str, usize, f64)] = &[("write", 1, 1.2), ("write", 64, 3.0), ("write", 256, 3.0), ("read", 64, 3.0)];
/// How long each load is measured.
const SECONDS: f64 = 3.0;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut ours = Rows::new("blixard");
    let mut theirs = Rows::new("etcd");
    let mut cluster = Cluster::new(request.binary, request.interrupt)?;
    cluster.set("BLIXARD_HYPERVISOR", "fake");
    cluster.start(1, &Entry::Found)?;
    cluster.start(2, &Entry::Peer(1))?;
    cluster.start(3, &Entry::Peer(1))?;
    cluster.wait_for_voters(1, 3, 3)?;
    let etcd = etcd::version().map(|_| Etcd::start(&mut cluster, "etcd")).transpose()?;
    for run in 1..=request.runs {
        for (row, &(operation, clients)) in LOADS.iter().enumerate() {
            request.interrupt.check()?;
            let blixard = {
                let leader = cluster::unsigned(&cluster.ask_json(1, &["cluster", "status"])?, "/leader")?;
                let target = load::blixard(&cluster, &[leader]);
                request.driver.load(&target, operation, clients, SECONDS).context("put load on blixard")?
            };
            ours.add(row, blixard);
            print!("bench: run {run}: {clients} x {operation}: blixard {}", told(blixard));
            if let Some(etcd) = &etcd {
                let target = load::etcd(etcd, &[etcd.leader()?]);
                let etcd = request.driver.load(&target, operation, clients, SECONDS).context("put load on etcd")?;
                theirs.add(row, etcd);
                print!(", etcd {}", told(etcd));
            }
            println!();
        }
    }
    drop(etcd);
    cluster.shut_down()?;
    for &(operation, clients, times) in GOALS {
        let row = LOADS.iter().position(|load| *load == (operation, clients)).expect("goals are set on loads");
        let text = format!("{operation}s/s of {clients}, as many times etcd's");
        findings.goals.extend(Goal::at_least(&text, ours.0[row][0].ratio(&theirs.0[row][0]), times));
    }
    let rows = ours.0.into_iter().zip(theirs.0);
    findings.all.extend(rows.flat_map(|(ours, theirs)| ours.into_iter().chain(theirs)));
    Ok(findings)
}

fn told(speed: Speed) -> String {
    format!("{:.0}/s, p50 {:.2} ms, p99 {:.2} ms", speed.per_second, speed.p50_ms, speed.p99_ms)
}

/// Requests a second, p50 and p99 of each load.
struct Rows(Vec<[Samples; 3]>);

impl Rows {
    fn new(whose: &str) -> Self {
        let row = |&(operation, clients): &(&str, usize)| {
            let of = |what: &str, unit| Samples::of(&format!("{operation}, {clients} clients: {whose} {what}"), unit);
            [of("", "/s"), of("p50", "ms"), of("p99", "ms")]
        };
        Self(LOADS.iter().map(row).collect())
    }

    fn add(&mut self, row: usize, speed: Speed) {
        let [per_second, p50, p99] = &mut self.0[row];
        per_second.add(speed.per_second);
        p50.add(speed.p50_ms);
        p99.add(speed.p99_ms);
    }
}
