//! A cluster of real nodes on this machine, for tasks that show or measure what the program does.
//!
//! Owns: a temporary folder with everything that the nodes keep (their data, their logs, the state folder of their user)
//! and the processes that work for it. All of it is gone when the cluster is dropped, however the task ends, unless it
//! was left running on purpose. It speaks to nodes as a user does: through the `blixard` binary.

mod ask;
mod build;
mod ports;
mod processes;

pub(crate) use ask::{array, text, unsigned};
pub(crate) use build::{Profile, blixard, build};
pub(crate) use processes::is_alive;

use crate::interrupt::Interrupt;
use crate::process;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use ports::Ports;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// For what must come about within a cluster. Far more than it takes, because machines are busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at something that has no way to tell us.
const POLL: Duration = Duration::from_millis(10);
/// How much of each log a failure shows: enough to see what a node did last.
const TAIL_LINES: usize = 25;
/// A file that tells the folder of such a cluster from any other, which is not ours to remove.
const MARK: &str = "cluster-of-cargo-xtask";

/// How a node comes to its cluster.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// It founds a new one.
    Found,
    /// By the address of a node of the cluster.
    Peer(u64),
    /// By a ticket.
    Ticket(String),
}

/// A node, running or not.
#[derive(Debug)]
struct Node {
    port: u16,
    arguments: Vec<String>,
    child: Option<Child>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    binary: PathBuf,
    interrupt: Interrupt,
    ports: Ports,
    nodes: BTreeMap<u64, Node>,
    /// Settings of the nodes, as environment variables.
    settings: Vec<(&'static str, String)>,
    is_over: bool,
}

impl Cluster {
    /// An empty folder in the system's one for temporary files; no node runs yet.
    pub(crate) fn new(binary: &Path, interrupt: &Interrupt) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("blixard-").tempdir().context("make a temporary folder")?.keep();
        fs::write(dir.join(MARK), "").context("write to the temporary folder")?;
        Ok(Self {
            dir,
            binary: binary.to_owned(),
            interrupt: interrupt.clone(),
            ports: Ports::new(),
            nodes: BTreeMap::new(),
            settings: Vec::new(),
            is_over: false,
        })
    }

    /// Gives nodes that are started from now on a setting, by its environment variable.
    pub(crate) fn set(&mut self, variable: &'static str, value: &str) {
        self.settings.push((variable, value.to_owned()));
    }

    /// The folder with everything.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder in which the user's key and tickets are.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where a node keeps its files.
    pub(crate) fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    /// What `--addr` takes to ask a node.
    pub(crate) fn registry(&self, id: u64) -> PathBuf {
        self.data_dir(id).join(format!("node-{id}-registry.json"))
    }

    fn log(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}.log"))
    }

    /// The numbers of all nodes, running or not.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// The process of a node that runs.
    pub(crate) fn pid(&self, id: u64) -> Result<u32> {
        let child = self.nodes.get(&id).and_then(|node| node.child.as_ref());
        Ok(child.with_context(|| format!("node {id} does not run"))?.id())
    }

    /// A TCP port for a vm to publish.
    pub(crate) fn free_port(&mut self) -> Result<u16> {
        self.ports.for_tcp()
    }

    /// Starts a new node. It is not waited for.
    pub(crate) fn start(&mut self, id: u64, entry: &Entry) -> Result<()> {
        let port = self.ports.for_node()?;
        let data_dir = self.data_dir(id).display().to_string();
        let (id_text, bind) = (id.to_string(), format!("127.0.0.1:{port}"));
        let mut arguments: Vec<String> =
            ["node", "--id", &id_text, "--bind", &bind, "--data-dir", &data_dir].map(str::to_owned).to_vec();
        match entry {
            Entry::Found => {}
            Entry::Peer(peer) => {
                let peer = self.nodes.get(peer).with_context(|| format!("there is no node {peer} to join"))?;
                arguments.extend(["--peers".to_owned(), format!("127.0.0.1:{}", peer.port)]);
            }
            Entry::Ticket(ticket) => arguments.extend(["--join".to_owned(), ticket.clone()]),
        }
        self.nodes.insert(id, Node { port, arguments, child: None });
        self.restart(id)
    }

    /// Starts a node again with the arguments that it was started with at first.
    pub(crate) fn restart(&mut self, id: u64) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(self.log(id)).context("open a node's log")?;
        let node = self.nodes.get(&id).with_context(|| format!("there is no node {id}"))?;
        ensure!(node.child.is_none(), "node {id} runs already");
        let mut command = self.command(&node.arguments);
        command.envs(self.settings.iter().map(|(name, value)| (name, value))).stdout(Stdio::null()).stderr(log);
        // Ctrl-C on the terminal is meant for the task, which then decides what becomes of the nodes.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("start `{}`", process::shown(&command)))?;
        self.nodes.get_mut(&id).expect("it was there just now").child = Some(child);
        Ok(())
    }

    /// Ends a node as a crash would: SIGKILL, to its process alone.
    pub(crate) fn kill(&mut self, id: u64) -> Result<()> {
        let node = self.nodes.get_mut(&id).with_context(|| format!("there is no node {id}"))?;
        let mut child = node.child.take().with_context(|| format!("node {id} does not run"))?;
        child.kill().and_then(|()| child.wait()).with_context(|| format!("kill node {id}"))?;
        Ok(())
    }

    /// Waits until a look succeeds. What it fails with is only told when the time is over, but a node that ended by
    /// itself, or a user who has enough, ends the waiting at once.
    pub(crate) fn wait_for<T>(&mut self, what: &str, look: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        self.wait_at_most(PATIENCE, what, look)
    }

    /// See [`Self::wait_for`].
    pub(crate) fn wait_at_most<T>(
        &mut self,
        patience: Duration,
        what: &str,
        mut look: impl FnMut(&Self) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            let error = match look(self) {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            self.interrupt.check()?;
            self.check_nodes()?;
            if Instant::now() > deadline {
                return Err(error.context(format!("{what} did not come about within {patience:?}")));
            }
            std::thread::sleep(POLL);
        }
    }

    fn check_nodes(&mut self) -> Result<()> {
        for (id, node) in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            if let Some(status) = child.try_wait().with_context(|| format!("look after node {id}"))? {
                node.child = None;
                bail!("node {id} ended by itself with {status}");
            }
        }
        Ok(())
    }

    /// Waits until as many voters answer, of as many, as the node that is asked sees them. Gives its view.
    pub(crate) fn wait_for_voters(&mut self, asked: u64, reachable: u64, voters: u64) -> Result<serde_json::Value> {
        self.wait_for(&format!("{reachable} of {voters} voters, seen by node {asked}"), |cluster| {
            let view = cluster.ask_json(asked, &["cluster", "status"])?;
            let found = (unsigned(&view, "/voters_reachable")?, unsigned(&view, "/voters")?);
            ensure!(found == (reachable, voters), "there are {} of {}", found.0, found.1);
            Ok(view)
        })
    }

    /// Ends the cluster as its users would, all nodes by SIGTERM, and holds it to leaving nothing behind: every node ends
    /// with 0, and no guard or hypervisor is left.
    pub(crate) fn shut_down(&mut self) -> Result<()> {
        self.terminate_nodes()?;
        fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))?;
        self.is_over = true;
        Ok(())
    }

    fn terminate_nodes(&mut self) -> Result<()> {
        self.check_nodes()?;
        for child in self.nodes.values().filter_map(|node| node.child.as_ref()) {
            processes::send(i32::try_from(child.id()).context("a process id")?, Signal::SIGTERM)?;
        }
        let deadline = Instant::now() + PATIENCE;
        for (id, node) in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            let status = loop {
                if let Some(status) = child.try_wait().with_context(|| format!("wait for node {id} to end"))? {
                    break status;
                }
                self.interrupt.check()?;
                ensure!(Instant::now() < deadline, "node {id} did not end within {PATIENCE:?} of SIGTERM");
                std::thread::sleep(POLL);
            };
            node.child = None;
            ensure!(status.success(), "node {id} was asked to end by SIGTERM and ended with {status}, not 0");
        }
        let left = processes::of(&self.dir)?;
        ensure!(left.is_empty(), "left behind after all nodes have ended: {}", processes::shown(&left));
        Ok(())
    }

    /// Leaves everything running when the task ends.
    pub(crate) fn leave(mut self) {
        self.is_over = true;
    }

    /// The ends of all logs, for a failure to show.
    pub(crate) fn last_words(&self) -> String {
        let mut words = String::new();
        for &id in self.nodes.keys() {
            words += &tail(&format!("log of node {id}"), &self.log(id));
            for vm in entries(&self.data_dir(id).join("vms")) {
                for file in entries(&vm) {
                    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    if name.starts_with("console-") || name == "guard.stderr" {
                        words += &tail(&format!("{name} of a vm on node {id}"), &file);
                    }
                }
            }
        }
        words
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        for node in self.nodes.values_mut() {
            if let Some(mut child) = node.child.take() {
                // Fails when it has ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if let Err(error) = discard(&self.dir) {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// Ends what is left of a cluster that [`Cluster::leave`] left running, and removes its folder.
pub(crate) fn end_left(dir: &Path) -> Result<()> {
    ensure!(
        dir.join(MARK).is_file(),
        "{} is not the folder of a cluster that `cargo xtask` left running: it has no file {MARK}",
        dir.display()
    );
    discard(&dir.canonicalize().with_context(|| format!("find {}", dir.display()))?)
}

fn discard(dir: &Path) -> Result<()> {
    processes::kill_all(dir).with_context(|| format!("end what runs in {}", dir.display()))?;
    fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

fn tail(title: &str, file: &Path) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = File::open(file).and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut bytes)) {
        return format!("--- {title} cannot be read: {error}\n");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let kept = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    format!("--- {title}, {} of {} lines:\n{}\n", kept.len(), lines.len(), kept.join("\n"))
}
