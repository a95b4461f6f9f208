//! How long an image takes from one node to many, over links of a limited speed.
//!
//! Each node is a host of its own (`lab.rs`). The cluster is told to keep as many copies as there are nodes (what is more than
//! it can be told is made by a vm), and the time runs until it knows that the last of them has the image. The bound is the size over the speed of one link: less is not
//! possible, because each receiver has to get all of it over its own. Beside it, once: the same file by rsync, plain HTTP and
//! BitTorrent (`rivals.rs`), to all receivers at the same time. All hosts share the processors of this machine, so on a small one the link, or
//! the number of receivers, has to be small enough that the links are what is full.

use super::lab::Lab;
use super::rivals::Ended;
use super::samples::{Findings, Goal, Samples};
use super::transfer::write_disk;
use super::{Request, SwarmSize};
use crate::interrupt::Interrupt;
use crate::process;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const IMAGE: &str = "bulk";
/// As many copies as a cluster can be told to keep. Nodes beyond them are given a vm of the image.
const COPIES_MAX: usize = 16;
/// Where nodes listen.
const PORT: u16 = 7001;
/// How many times as long as the bound the slowest receiver may take.
const GOAL_TIMES: f64 = 1.3;
/// Between two looks. Each is a command of its own and takes processor time from what is measured.
pub(super) const POLL: Duration = Duration::from_millis(200);
/// For a cluster of many nodes on few processors to come about.
pub(super) const FORMATION: Duration = Duration::from_secs(180);
/// How many times as long as the bound anything may take.
const PATIENCE_TIMES: f64 = 30.0;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let size = request.swarm;
    let bound_s = f64::from(size.image_mib) * f64::from(1 << 20) * 8.0 / (f64::from(size.link_mbit) * 1e6);
    println!(
        "bench: {} MiB from 1 node to {}, links of {} Mbit/s without added delay: the bound is {bound_s:.1} s",
        size.image_mib, size.receivers, size.link_mbit
    );
    let [mut slowest, mut times, mut sent, mut synced, mut served, mut torrented] = [
        ("the slowest receiver", "s"),
        ("the slowest receiver, times the bound", ""),
        ("images that the source sent", ""),
        ("rsync to all, the slowest", "s"),
        ("HTTP to all, the slowest", "s"),
        ("BitTorrent to all, the slowest", "s"),
    ]
    .map(|(what, unit)| Samples::of(what, unit));
    for run in 1..=request.runs {
        let mut swarm = Swarm::new(request, size)?;
        let file = swarm.dir.path().join("bulk.raw");
        write_disk(&file, run, size.image_mib).with_context(|| format!("write {}", file.display()))?;
        let patience = Duration::from_secs_f64(bound_s * PATIENCE_TIMES);
        if run == 1 {
            if let Some(time) = swarm.rsync(&file, patience)? {
                synced.add(time.as_secs_f64());
            }
            if let Some(time) = swarm.http(&file, patience)? {
                served.add(time.as_secs_f64());
            }
            if let Some(time) = swarm.bittorrent(&file, patience)? {
                torrented.add(time.as_secs_f64());
            }
        }
        swarm.form()?;
        swarm.ask(&["image", "import", "--name", IMAGE, &file.display().to_string()])?;
        let before = swarm.lab.sent_bytes(1)?;
        let started = Instant::now();
        let copies = (swarm.receivers + 1).min(COPIES_MAX);
        for node in copies + 1..=swarm.receivers + 1 {
            let (name, node) = (format!("on-{node}"), node.to_string());
            swarm.ask(&["vm", "create", &name, "--image", IMAGE, "--memory", "128M", "--node", &node, "--no-wait"])?;
        }
        swarm.ask(&["cluster", "set", "--copies", &copies.to_string()])?;
        swarm.wait("all copies", patience, |swarm| {
            let image = swarm.look(&["image", "show", IMAGE])?;
            let holders = image["holders"].as_array().map_or(0, Vec::len);
            ensure!(holders > swarm.receivers, "{holders} nodes have it");
            Ok(())
        })?;
        let took = started.elapsed().as_secs_f64();
        let image_bytes = f64::from(size.image_mib) * f64::from(1 << 20);
        slowest.add(took);
        times.add(took / bound_s);
        sent.add((swarm.lab.sent_bytes(1)? - before) as f64 / image_bytes);
        println!("bench: run {run}: {}", Samples::last_told(&[&slowest, &times, &sent, &synced, &served, &torrented]));
    }
    let goals = [
        Goal::at_most("the slowest receiver, times the bound", times.median(), GOAL_TIMES),
        Goal::at_most("the slowest receiver, times that of BitTorrent", slowest.ratio(&torrented), 1.0),
    ];
    Ok(Findings {
        all: vec![slowest, times, sent, synced, served, torrented],
        goals: goals.into_iter().flatten().collect(),
    })
}

/// Nodes on hosts of their own. The fields are dropped in this order.
pub(super) struct Swarm<'a> {
    nodes: Vec<Ended>,
    pub(super) lab: Lab,
    pub(super) dir: tempfile::TempDir,
    binary: &'a Path,
    pub(super) interrupt: &'a Interrupt,
    pub(super) receivers: usize,
}

impl<'a> Swarm<'a> {
    fn new(request: &Request<'a>, size: SwarmSize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("blixard-swarm-").tempdir().context("make a temporary folder")?;
        let receivers = usize::try_from(size.receivers).context("count the receivers")?;
        let lab = Lab::new(receivers + 1, size.link_mbit)?;
        let (binary, interrupt) = (request.binary, request.interrupt);
        Ok(Self { nodes: Vec::new(), lab, dir, binary, interrupt, receivers })
    }

    fn data_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("node-{node}"))
    }

    /// Starts all nodes, and waits until each is ready.
    fn form(&mut self) -> Result<()> {
        for node in 1..=self.receivers + 1 {
            let mut command = self.program(node);
            command.args(["node", "--id", &node.to_string(), "--bind", &self.place(node, PORT).to_string()]);
            command.arg("--data-dir").arg(self.data_dir(node));
            if node > 1 {
                command.args(["--peers", &self.place(1, PORT).to_string()]);
            }
            command.env("BLIXARD_CLUSTER_COPIES", "1").env("BLIXARD_HYPERVISOR", "fake");
            let log = File::create(self.dir.path().join(format!("node-{node}.log"))).context("make a node's log")?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            self.nodes.push(Ended(command.spawn().with_context(|| format!("start node {node}"))?));
            if node == 1 {
                self.wait("the first node", FORMATION, |swarm| swarm.look(&["cluster", "status"]).map(drop))?;
            }
        }
        let nodes = self.receivers + 1;
        self.wait("all nodes", FORMATION, |swarm| {
            let status = swarm.look(&["cluster", "status"])?;
            let listed = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
            let ready = listed.iter().filter(|node| node["state"] == "ready").count();
            ensure!(ready == nodes, "{ready} of {nodes} are ready");
            Ok(())
        })
    }

    pub(super) fn place(&self, host: usize, port: u16) -> SocketAddr {
        SocketAddr::new(self.lab.address(host).into(), port)
    }

    fn program(&self, host: usize) -> Command {
        let mut command = self.lab.command(host, self.binary);
        let state = self.dir.path().join("state");
        command.env("BLIXARD_STATE_DIR", state).env("BLIXARD_CONFIG_DIR", self.dir.path().join("config"));
        command
    }

    /// Asks the first node, and gives what it answers.
    fn ask(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let registry = self.data_dir(1).join("node-1-registry.json");
        process::output(self.program(1).args(arguments).arg("--addr").arg(registry))
    }

    fn look(&self, arguments: &[&str]) -> Result<Value> {
        let answer = self.ask(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_slice(&answer).context("read the answer of blixard")
    }

    pub(super) fn wait(&self, what: &str, patience: Duration, look: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + patience;
        while let Err(error) = look(self) {
            self.interrupt.check()?;
            ensure!(Instant::now() < deadline, "{what} did not come about within {patience:?}: {error:#}");
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}
