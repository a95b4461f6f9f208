//! How long an image takes from one node to many, over links of a limited speed.
//!
//! Each node is a host of its own (`lab.rs`). The cluster is told to keep as many copies as there are nodes (what is more than
//! it can be told is made by a vm), and the time runs until it knows that the last of them has the image. The bound is the size over the speed of one link: less is not
//! possible, because each receiver has to get all of it over its own. Beside it, once: the same file by rsync and by plain
//! HTTP, to all receivers at the same time. All hosts share the processors of this machine, so on a small one the link, or
//! the number of receivers, has to be small enough that the links are what is full.

use super::lab::Lab;
use super::samples::{Findings, Goal, Samples};
use super::transfer::write_disk;
use super::{Request, SwarmSize};
use crate::interrupt::Interrupt;
use crate::process;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const IMAGE: &str = "bulk";
/// As many copies as a cluster can be told to keep. Nodes beyond them are given a vm of the image.
const COPIES_MAX: usize = 16;
/// Where nodes listen.
const PORT: u16 = 7001;
/// How many times as long as the bound the slowest receiver may take.
const GOAL_TIMES: f64 = 1.3;
/// Between two looks. Each is a command of its own and takes processor time from what is measured.
const POLL: Duration = Duration::from_millis(200);
/// For a cluster of many nodes on few processors to come about.
const FORMATION: Duration = Duration::from_secs(180);
/// How many times as long as the bound anything may take.
const PATIENCE_TIMES: f64 = 30.0;

pub(super) fn run(request: &Request) -> Result<Findings> {
    let size = request.swarm;
    let bound_s = f64::from(size.image_mib) * f64::from(1 << 20) * 8.0 / (f64::from(size.link_mbit) * 1e6);
    println!(
        "bench: {} MiB from 1 node to {}, links of {} Mbit/s without added delay: the bound is {bound_s:.1} s",
        size.image_mib, size.receivers, size.link_mbit
    );
    let [mut slowest, mut times, mut sent, mut synced, mut served] = [
        ("the slowest receiver", "s"),
        ("the slowest receiver, times the bound", ""),
        ("images that the source sent", ""),
        ("rsync to all, the slowest", "s"),
        ("HTTP to all, the slowest", "s"),
    ]
    .map(|(what, unit)| Samples::of(what, unit));
    for run in 1..=request.runs {
        let mut swarm = Swarm::new(request, size)?;
        let file = swarm.dir.path().join("bulk.raw");
        write_disk(&file, run, size.image_mib).with_context(|| format!("write {}", file.display()))?;
        let patience = Duration::from_secs_f64(bound_s * PATIENCE_TIMES);
        if run == 1 {
            if let Some(time) = swarm.rsync(patience)? {
                synced.add(time.as_secs_f64());
            }
            if let Some(time) = swarm.http(patience)? {
                served.add(time.as_secs_f64());
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
        println!("bench: run {run}: {}", Samples::last_told(&[&slowest, &times, &sent, &synced, &served]));
    }
    let goal = Goal::at_most("the slowest receiver, times the bound", times.median(), GOAL_TIMES);
    Ok(Findings { all: vec![slowest, times, sent, synced, served], goals: goal.into_iter().collect() })
}

/// A process that is killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Nodes on hosts of their own. The fields are dropped in this order.
struct Swarm<'a> {
    nodes: Vec<Ended>,
    lab: Lab,
    dir: tempfile::TempDir,
    binary: &'a Path,
    interrupt: &'a Interrupt,
    receivers: usize,
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

    fn place(&self, host: usize, port: u16) -> SocketAddr {
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

    fn wait(&self, what: &str, patience: Duration, look: impl Fn(&Self) -> Result<()>) -> Result<()> {
        let deadline = Instant::now() + patience;
        while let Err(error) = look(self) {
            self.interrupt.check()?;
            ensure!(Instant::now() < deadline, "{what} did not come about within {patience:?}: {error:#}");
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Has every receiver fetch the file by rsync at the same time.
    fn rsync(&self, patience: Duration) -> Result<Option<Duration>> {
        let Some(rsync) = process::find("rsync") else {
            println!("bench: rsync is not on the PATH: measured without it");
            return Ok(None);
        };
        let dir = self.dir.path();
        let config = dir.join("rsyncd.conf");
        let text = format!("use chroot = no\nuid = root\ngid = root\n[bulk]\npath = {}\n", dir.display());
        fs::write(&config, text).context("write rsync's configuration")?;
        let mut daemon = self.lab.command(1, &rsync);
        daemon
            .args(["--daemon", "--no-detach", "--address", &self.lab.address(1).to_string(), "--config"])
            .arg(&config);
        let get = |host: usize, from: Ipv4Addr| {
            let mut command = self.lab.command(host, &rsync);
            command
                .args(["--whole-file", &format!("rsync://{from}/bulk/bulk.raw")])
                .arg(dir.join(format!("copy-{host}")));
            command
        };
        self.compare(daemon, 873, get, patience).map(Some)
    }

    /// Has every receiver fetch the file by HTTP at the same time.
    fn http(&self, patience: Duration) -> Result<Option<Duration>> {
        let (Some(nginx), Some(curl)) = (process::find("nginx"), process::find("curl")) else {
            println!("bench: nginx and curl are not both on the PATH: measured without them");
            return Ok(None);
        };
        let dir = self.dir.path();
        let config = dir.join("nginx.conf");
        let place = self.place(1, 8080);
        let text = format!(
            "user root;\ndaemon off;\npid {0}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; sendfile \
             on; server {{ listen {place}; root {0}; }} }}\n",
            dir.display()
        );
        fs::write(&config, text).context("write the configuration of nginx")?;
        let mut daemon = self.lab.command(1, &nginx);
        daemon.args(["-e", "stderr", "-c"]).arg(&config);
        let get = |host: usize, from: Ipv4Addr| {
            let mut command = self.lab.command(host, &curl);
            let url = format!("http://{from}:8080/bulk.raw");
            command.args(["--silent", "--fail", &url, "--output"]).arg(dir.join(format!("copy-{host}")));
            command
        };
        self.compare(daemon, 8080, get, patience).map(Some)
    }

    /// Runs a server on the first host and a client on every other, all at once, and gives the time of the slowest.
    fn compare(
        &self,
        mut daemon: Command,
        port: u16,
        get: impl Fn(usize, Ipv4Addr) -> Command,
        patience: Duration,
    ) -> Result<Duration> {
        daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _daemon = Ended(daemon.spawn().with_context(|| format!("start `{}`", process::shown(&daemon)))?);
        let shell = Path::new("bash");
        self.wait("the comparator's server", FORMATION, |swarm| {
            let place = swarm.place(1, port);
            let probe = format!("exec 3<>/dev/tcp/{}/{}", place.ip(), place.port());
            process::output(swarm.lab.command(2, shell).args(["-c", &probe])).map(drop)
        })?;
        let started = Instant::now();
        let clients = (2..=self.receivers + 1).map(|host| {
            let mut client = get(host, self.lab.address(1));
            client.stdin(Stdio::null()).stdout(Stdio::null());
            client.spawn().map(Ended).with_context(|| format!("start `{}`", process::shown(&client)))
        });
        let mut clients: Vec<Ended> = clients.collect::<Result<_>>()?;
        for client in &mut clients {
            loop {
                if let Some(status) = client.0.try_wait().context("look after a comparator's client")? {
                    ensure!(status.success(), "a comparator's client ended with {status}");
                    break;
                }
                self.interrupt.check()?;
                ensure!(started.elapsed() < patience, "a comparator took longer than {patience:?}");
                std::thread::sleep(POLL / 10);
            }
        }
        let took = started.elapsed();
        for host in 2..=self.receivers + 1 {
            fs::remove_file(self.dir.path().join(format!("copy-{host}"))).context("remove a copy")?;
        }
        Ok(took)
    }
}
