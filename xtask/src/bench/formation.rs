//! From the start of three processes to three voters and a write through each of them, beside etcd.

use super::etcd::{self, Etcd, MEMBERS};
use super::samples::{Findings, Goal, Samples};
use super::{Request, load};
use crate::cluster::{Cluster, Entry};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest time allowed.
const GOAL_MS: f64 = 500.0;
/// The largest part of etcd's time.
const GOAL_PART: f64 = 1.0 / 3.0;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut ours = Samples::of("blixard: started, to three voters and writes", "ms");
    let mut theirs = Samples::of("etcd: started, to three members and writes", "ms");
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_HYPERVISOR", "fake");
        let started_ms = unix_ms()?;
        cluster.start(1, &Entry::Found)?;
        cluster.start(2, &Entry::Peer(1))?;
        cluster.start(3, &Entry::Peer(1))?;
        ours.add(formed(request, &load::blixard(&cluster, &[1, 2, 3]))? - started_ms);
        if etcd::version().is_some() {
            let started_ms = unix_ms()?;
            let etcd = Etcd::start(&mut cluster, "etcd")?;
            let members: Vec<usize> = (0..MEMBERS).collect();
            theirs.add(formed(request, &load::etcd(&etcd, &members))? - started_ms);
        }
        cluster.shut_down()?;
        println!("bench: run {run}: {}", Samples::last_told(&[&ours, &theirs]));
    }
    let mut goals: Vec<Goal> = Goal::at_most("formation, median", ours.median(), GOAL_MS).into_iter().collect();
    goals.extend(Goal::at_most("formation, as a part of etcd's", ours.ratio(&theirs), GOAL_PART));
    Ok(Findings { all: vec![ours, theirs], goals })
}

fn unix_ms() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_secs_f64() * 1000.0)
}

fn formed(request: &Request, target: &Value) -> Result<f64> {
    let report = request.driver.start(target, &json!("formation"))?.report()?;
    load::number(&report, "/formation/at_unix_ms")
}
