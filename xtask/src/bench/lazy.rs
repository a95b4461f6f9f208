//! How long a guest takes to its ready line on a node that does not have its image, when it reads that as it comes and when it
//! waits for all of it, beside a node that has it; and how much has come by then.
//!
//! The image is the test guest's disk with random bytes behind it that no boot reads. What a node receives is limited to what
//! a link of 100 Mbit/s carries; nothing else of such a link is imitated.

use super::Request;
use super::boot::Reading;
use super::samples::{Findings, Goal, Samples};
use crate::cluster::{self, Cluster, Entry};
use crate::guest;
use crate::process;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const IMAGE: &str = "long";
/// The test guest's disk, below the guest's folder.
const DISK: &str = "disk.qcow2";
/// Far more than a boot reads.
const IMAGE_BYTES: u64 = 512 << 20;
/// 100 Mbit/s.
const LIMIT: &str = "12207KiB/s";
/// The most that a boot may have moved by its ready line, as a part of the image.
const GOAL_MOVED: f64 = 0.1;
const MIB: f64 = (1 << 20) as f64;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut local = Samples::of("ready, image on the node", "s");
    let mut lazy = Samples::of("ready, image read as it comes", "s");
    let mut whole = Samples::of("ready, image waited for", "s");
    let mut over = Samples::of("read as it comes, times the local boot", "x");
    let mut moved = Samples::of("moved by then", "MiB");
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_CLUSTER_COPIES", "1");
        cluster.start(1, &Entry::Found)?;
        for node in [2, 3] {
            cluster.start(node, &Entry::Peer(1))?;
            let number = node.to_string();
            cluster.ask(1, &["transfer", "limit", "--down", LIMIT, "--node", &number])?;
        }
        let file = cluster.dir().join("long.raw");
        write_disk(&file).with_context(|| format!("write {}", file.display()))?;
        cluster.ask(1, &["image", "import", "--name", IMAGE, &file.display().to_string()])?;
        fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        let (local_s, _) = boot(request, &cluster, 1, "--no-lazy")?;
        local.add(local_s);
        let (lazy_s, moved_bytes) = boot(request, &cluster, 2, "--lazy")?;
        lazy.add(lazy_s);
        moved.add(moved_bytes as f64 / MIB);
        whole.add(boot(request, &cluster, 3, "--no-lazy")?.0);
        over.add(lazy_s / local_s);
        cluster.shut_down()?;
        println!("bench: run {run}: {}", Samples::last_told(&[&local, &lazy, &whole, &over, &moved]));
    }
    let part = moved.median().map(|moved| moved * MIB / IMAGE_BYTES as f64);
    let goals = Goal::at_most("moved by the ready line, as a part of the image", part, GOAL_MOVED);
    Ok(Findings { all: vec![local, lazy, whole, over, moved], goals: goals.into_iter().collect() })
}

/// Boots a vm on a node; gives the seconds until its guest is ready, and how much of the image was there by then.
fn boot(request: &Request, cluster: &Cluster, node: u64, how: &str) -> Result<(f64, u64)> {
    let (name, number) = (format!("on-{node}"), node.to_string());
    let started = Instant::now();
    let create = ["vm", "create", &name, "--image", IMAGE, "--memory", "256M", "--node", &number, how];
    cluster.ask(1, &[&create[..], &["--timeout", "10m"]].concat())?;
    Reading::start(cluster.command_to(1, &["vm", "logs", "-f", &name]))?.wait_for_ready(request)?;
    let seconds = started.elapsed().as_secs_f64();
    let view = cluster.ask_json(1, &["vm", "status", &name])?;
    // There is no transfer of what is there.
    let moved = cluster::unsigned(&view, "/live/transfer/bytes_done").unwrap_or(IMAGE_BYTES);
    cluster.ask(1, &["vm", "delete", &name])?;
    Ok((seconds, moved))
}

/// The test guest's disk, raw, and random bytes up to the image's size.
fn write_disk(path: &Path) -> Result<()> {
    let mut convert = Command::new("qemu-img");
    process::output(convert.args(["convert", "-O", "raw"]).arg(guest::folder().join(DISK)).arg(path))?;
    let mut file = OpenOptions::new().append(true).open(path)?;
    let missing = IMAGE_BYTES.saturating_sub(file.metadata()?.len());
    io::copy(&mut File::open("/dev/urandom")?.take(missing), &mut file)?;
    Ok(())
}
