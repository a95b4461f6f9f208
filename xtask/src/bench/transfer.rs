//! How fast an image comes to a node, from one holder, from two and from three.
//!
//! The cluster is told to keep one copy more, and the time runs until it knows that the node has it: the scheduler, the
//! transfer, the check of every byte and the report are in it. All nodes share this machine, its disk and its processors.
//! A second image comes from sources that send no more than a set rate each, as hosts apart would: only that shows what three
//! of them are worth, for on one machine they share its processors.
//! Beside it: a bare stream of the same transport, which checks and stores nothing, and rsync from a daemon on loopback, which
//! encrypts nothing.

use super::Request;
use super::samples::{Findings, Goal, Samples};
use crate::cluster::{self, Cluster, Entry, PATIENCE};
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(super) const IMAGE: &str = "bulk";
const IMAGE_MIB: u32 = 1024;
pub(super) const IMAGE_FILE: &str = "bulk.raw";
const NODES: u64 = 4;
/// The smallest part of the bare stream's speed.
const GOAL_PART: f64 = 0.8;
const PACED: &str = "paced";
const PACED_MIB: u32 = 256;
/// What each source of that image may send, in MiB a second: three of them are well below what one could.
const PACE_MIB: u32 = 30;
/// The smallest gain from three sources beside one.
const GOAL_GAIN: f64 = 2.5;
/// Between two looks whether rsync's daemon answers.
const POLL: Duration = Duration::from_millis(20);

pub(super) fn run(request: &Request) -> Result<Findings> {
    let rsync = process::find("rsync");
    if rsync.is_none() {
        println!("bench: rsync is not on the PATH: measured without it");
    }
    let [mut import, mut one, mut two, mut three, mut bare, mut copied, mut paced_one, mut paced_three] = [
        "import into node 1",
        "to a node, from one holder",
        "to a node, from two holders",
        "to a node, from three holders",
        "a bare stream",
        "rsync over loopback",
        "from one limited holder",
        "from three limited holders",
    ]
    .map(|what| Samples::of(what, "MiB/s"));
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_CLUSTER_COPIES", "1");
        cluster.set("BLIXARD_HYPERVISOR", "fake");
        cluster.start(1, &Entry::Found)?;
        for node in 2..=NODES {
            cluster.start(node, &Entry::Peer(1))?;
        }
        cluster.wait_for_voters(1, 3, 3)?;
        let file = cluster.dir().join(IMAGE_FILE);
        write_disk(&file, run, IMAGE_MIB).with_context(|| format!("write {}", file.display()))?;
        let rate_of = |mib: u32, since: Instant| f64::from(mib) / since.elapsed().as_secs_f64();
        let rate = |since: Instant| rate_of(IMAGE_MIB, since);

        let started = Instant::now();
        cluster.ask(1, &["image", "import", "--name", IMAGE, &file.display().to_string()])?;
        import.add(rate(started));
        bare.add(request.driver.stream(IMAGE_MIB)?);
        one.add(copies(&mut cluster, IMAGE, 2).map(rate)?);
        if let Some(rsync) = &rsync {
            copied.add(with_rsync(&mut cluster, rsync).map(rate)?);
        }
        two.add(copies(&mut cluster, IMAGE, 3).map(rate)?);
        three.add(copies(&mut cluster, IMAGE, 4).map(rate)?);

        // Each node fetches at its own pace and sends at no more than this.
        cluster.ask(1, &["cluster", "set", "--copies", "1"])?;
        for node in 1..=NODES {
            let (node, pace) = (node.to_string(), format!("{PACE_MIB}MiB/s"));
            cluster.ask(1, &["transfer", "limit", "--up", &pace, "--node", &node])?;
        }
        write_disk(&file, run + request.runs, PACED_MIB).with_context(|| format!("write {}", file.display()))?;
        cluster.ask(1, &["image", "import", "--name", PACED, &file.display().to_string()])?;
        let paced = |since: Instant| rate_of(PACED_MIB, since);
        paced_one.add(copies(&mut cluster, PACED, 2).map(paced)?);
        copies(&mut cluster, PACED, 3)?;
        paced_three.add(copies(&mut cluster, PACED, 4).map(paced)?);
        cluster.shut_down()?;
        println!(
            "bench: run {run}: {}",
            Samples::last_told(&[&import, &bare, &one, &copied, &two, &three, &paced_one, &paced_three])
        );
    }
    let part = Goal::at_least("from one holder, as a part of the bare stream", one.ratio(&bare), GOAL_PART);
    let gain = Goal::at_least("from three limited holders, beside one", paced_three.ratio(&paced_one), GOAL_GAIN);
    let all = vec![import, one, two, three, bare, copied, paced_one, paced_three];
    Ok(Findings { all, goals: [part, gain].into_iter().flatten().collect() })
}

/// Fetches the image's file from a daemon. Gives when that began.
fn with_rsync(cluster: &mut Cluster, rsync: &Path) -> Result<Instant> {
    let dir = cluster.dir().to_owned();
    let (port, _daemon) = daemon(cluster, rsync, &dir)?;
    let started = Instant::now();
    let (from, to) = (format!("rsync://127.0.0.1:{port}/bulk/{IMAGE_FILE}"), dir.join("bulk.copy"));
    process::output(Command::new(rsync).args(["--whole-file", &from]).arg(&to))?;
    if fs::metadata(&to)?.len() != u64::from(IMAGE_MIB) << 20 {
        bail!("rsync did not copy all of it");
    }
    Ok(started)
}

/// A daemon of rsync that has the files of a folder as `bulk`, and its port.
pub(super) fn daemon(cluster: &mut Cluster, rsync: &Path, dir: &Path) -> Result<(u16, Ended)> {
    let port = cluster.free_port()?;
    let config = cluster.dir().join("rsyncd.conf");
    // A daemon that root starts would read as nobody.
    let identity = if nix::unistd::geteuid().is_root() { "uid = root\ngid = root\n" } else { "" };
    fs::write(&config, format!("use chroot = no\n{identity}[bulk]\npath = {}\n", dir.display()))
        .context("write rsync's configuration")?;
    let mut command = Command::new(rsync);
    command.args(["--daemon", "--no-detach", "--address", "127.0.0.1", "--port", &port.to_string(), "--config"]);
    command.arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
    Ok((port, answering(&mut command, port).context("start rsync's daemon")?))
}

/// Starts a daemon, and waits until it answers on loopback.
pub(super) fn answering(command: &mut Command, port: u16) -> Result<Ended> {
    let daemon = Ended(command.spawn().context("start it")?);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(Instant::now() < deadline, "it does not answer");
        std::thread::sleep(POLL);
    }
    Ok(daemon)
}

/// A process that is killed when dropped.
pub(super) struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has the cluster keep as many copies, and waits until an image has them. Gives when that began.
fn copies(cluster: &mut Cluster, image: &str, count: usize) -> Result<Instant> {
    let started = Instant::now();
    cluster.ask(1, &["cluster", "set", "--copies", &count.to_string()])?;
    cluster.wait_for(&format!("{count} copies of image {image}"), |cluster| {
        let image = cluster.ask_json(1, &["image", "show", image])?;
        let holders = cluster::array(&image, "/holders")?;
        ensure!(holders.len() >= count, "it is held by {holders:?}");
        Ok(())
    })?;
    Ok(started)
}

/// A raw disk with a boot sector and bytes that do not repeat, so that nothing can be saved on the way.
pub(super) fn write_disk(path: &Path, seed: u32, mib: u32) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut state = u64::from(seed) << 32 | 0x9e37_79b9;
    let mut block = vec![0; 1 << 20];
    for number in 0..mib {
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
