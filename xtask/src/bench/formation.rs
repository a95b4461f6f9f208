//! How long three nodes, all started at once, take to be a cluster that has committed a write.

use super::Request;
use super::samples::Samples;
use crate::cluster::{Cluster, Entry};
use anyhow::Result;
use std::time::Instant;

pub(super) fn run(request: &Request) -> Result<Vec<Samples>> {
    let mut voters = Samples::of("three voters answer", "ms");
    let mut write = Samples::of("a write is committed", "ms");
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        let started = Instant::now();
        let elapsed_ms = || started.elapsed().as_secs_f64() * 1000.0;
        cluster.start(1, &Entry::Found)?;
        cluster.start(2, &Entry::Peer(1))?;
        cluster.start(3, &Entry::Peer(1))?;
        cluster.wait_for_voters(1, 3, 3)?;
        let voters_ms = elapsed_ms();
        cluster.ask(1, &["cluster", "token", "create"])?;
        let write_ms = elapsed_ms();
        cluster.shut_down()?;
        println!("bench: run {run}: three voters after {voters_ms:.0} ms, a write after {write_ms:.0} ms");
        voters.add(voters_ms);
        write.add(write_ms);
    }
    Ok(vec![voters, write])
}
