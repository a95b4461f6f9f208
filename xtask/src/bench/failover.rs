//! From kill -9 of the leader to the next committed write, beside etcd.
//!
//! Writes are begun every few milliseconds through the two members that stay. What counts is the first one that was begun
//! after the kill and is answered. The killed member is started again and everything is well before the next run.

use super::etcd::{self, Etcd, MEMBERS};
use super::samples::{Findings, Goal, Samples};
use super::{Request, load};
use crate::cluster::{self, Cluster, Entry};
use anyhow::{Context, Result};

/// The longest time allowed with the default settings, which are meant for a LAN.
const GOAL_MS: f64 = 600.0;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut ours = Samples::of("blixard: leader killed, to the next write", "ms");
    let mut theirs = Samples::of("etcd: leader killed, to the next write", "ms");
    let mut cluster = Cluster::new(request.binary, request.interrupt)?;
    cluster.set("BLIXARD_HYPERVISOR", "fake");
    cluster.start(1, &Entry::Found)?;
    cluster.start(2, &Entry::Peer(1))?;
    cluster.start(3, &Entry::Peer(1))?;
    let mut etcd = etcd::version().map(|_| Etcd::start(&mut cluster, "etcd")).transpose()?;
    let mut asked = 1;
    for run in 1..=request.runs {
        let view = cluster.wait_for_voters(asked, 3, 3)?;
        let leader = cluster::unsigned(&view, "/leader")?;
        let stay: Vec<u64> = cluster.ids().into_iter().filter(|node| *node != leader).collect();
        let ms = request.driver.failover(&load::blixard(&cluster, &stay), cluster.pid(leader)?);
        ours.add(ms.context("kill the leader of blixard")?);
        cluster.kill(leader)?;
        cluster.restart(leader)?;
        asked = stay[0];
        if let Some(etcd) = &mut etcd {
            let leader = etcd.leader()?;
            let stay: Vec<usize> = (0..MEMBERS).filter(|member| *member != leader).collect();
            let ms = request.driver.failover(&load::etcd(etcd, &stay), etcd.pid(leader)?);
            theirs.add(ms.context("kill the leader of etcd")?);
            etcd.was_killed(leader)?;
            etcd.restart(leader)?;
        }
        println!("bench: run {run}: {}", Samples::last_told(&[&ours, &theirs]));
    }
    drop(etcd);
    cluster.wait_for_voters(asked, 3, 3)?;
    cluster.shut_down()?;
    let goals = Goal::at_most("failover, median", ours.median(), GOAL_MS).into_iter().collect();
    Ok(Findings { all: vec![ours, theirs], goals })
}
