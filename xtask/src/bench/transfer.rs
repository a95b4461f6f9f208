//! How fast an image comes to a node, from one holder and from two.
//!
//! The cluster is told to keep one copy more, and the time runs until it knows that the node has it: the scheduler, the
//! transfer, the check of every byte and the report are in it. All nodes share this machine, its disk and its processors.

use super::Request;
use super::samples::{Findings, Samples};
use crate::cluster::{self, Cluster, Entry};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

const IMAGE: &str = "bulk";
const IMAGE_MIB: u32 = 256;
const IMAGE_FILE: &str = "bulk.raw";

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut import = Samples::of("import into node 1", "MiB/s");
    let mut from_one = Samples::of("to node 2 or 3, from one holder", "MiB/s");
    let mut from_two = Samples::of("to the last node, from two holders", "MiB/s");
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_CLUSTER_COPIES", "1");
        cluster.start(1, &Entry::Found)?;
        cluster.start(2, &Entry::Peer(1))?;
        cluster.start(3, &Entry::Peer(1))?;
        cluster.wait_for_voters(1, 3, 3)?;
        let file = cluster.dir().join(IMAGE_FILE);
        write_disk(&file, run).with_context(|| format!("write {}", file.display()))?;
        let rate = |since: Instant| f64::from(IMAGE_MIB) / since.elapsed().as_secs_f64();

        let started = Instant::now();
        cluster.ask(1, &["image", "import", "--name", IMAGE, &file.display().to_string()])?;
        let rates = [rate(started), copies(&mut cluster, 2).map(rate)?, copies(&mut cluster, 3).map(rate)?];
        cluster.shut_down()?;
        let [first, one, two] = rates;
        println!("bench: run {run}: import {first:.0}, from one holder {one:.0}, from two {two:.0} MiB/s");
        import.add(first);
        from_one.add(one);
        from_two.add(two);
    }
    Ok(Findings { all: vec![import, from_one, from_two], goals: Vec::new() })
}

/// Has the cluster keep as many copies, and waits until it does. Gives when that began.
fn copies(cluster: &mut Cluster, count: usize) -> Result<Instant> {
    let started = Instant::now();
    cluster.ask(1, &["cluster", "set", "--copies", &count.to_string()])?;
    cluster.wait_for(&format!("{count} copies of the image"), |cluster| {
        let image = cluster.ask_json(1, &["image", "show", IMAGE])?;
        let holders = cluster::array(&image, "/holders")?;
        ensure!(holders.len() >= count, "it is held by {holders:?}");
        Ok(())
    })?;
    Ok(started)
}

/// A raw disk with a boot sector and bytes that do not repeat, so that nothing can be saved on the way.
fn write_disk(path: &Path, seed: u32) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut state = u64::from(seed) << 32 | 0x9e37_79b9;
    let mut block = vec![0; 1 << 20];
    for number in 0..IMAGE_MIB {
        for word in block.chunks_exact_mut(8) {
            // xorshift: quick, and its period is far longer than any image.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        if number == 0 {
            block[510..512].copy_from_slice(&[0x55, 0xaa]);
        }
        file.write_all(&block)?;
    }
    file.flush()?;
    Ok(())
}
