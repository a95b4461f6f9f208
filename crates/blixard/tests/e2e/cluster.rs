//! A cluster of node processes that can be killed and started again.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Instant;

use blixard_node::api::Client;
use blixard_node::transport::Registry;
use blixard_node::user::UserState;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::guests;
use crate::program::lab::{Cut, Lab};
use crate::program::{Bench, PATIENCE, Ran, as_text, eventually, free_port, signal};
use crate::web::{self, Answer};

/// How the nodes of a cluster are started.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    /// How many there are.
    pub(crate) nodes: usize,
    /// `qemu` or `fake`.
    pub(crate) hypervisor: &'static str,
    /// The address they listen on.
    pub(crate) host: &'static str,
    /// Variables of their environment.
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

impl Plan {
    /// Nodes without real guests.
    pub(crate) fn fake(nodes: usize) -> Self {
        Self { nodes, hypervisor: "fake", host: "127.0.0.1", environment: &[] }
    }

    /// Nodes that run guests under QEMU.
    pub(crate) fn qemu(nodes: usize) -> Self {
        Self { hypervisor: "qemu", ..Self::fake(nodes) }
    }
}

struct Member {
    address: String,
    http: String,
    child: Option<Child>,
}

/// Nodes 1 to n. They are killed, and their guests with them, when the test is over.
pub(crate) struct Cluster {
    pub(crate) bench: Bench,
    plan: Plan,
    members: Vec<Member>,
    lab: Option<Lab>,
}

/// The port of nodes that have a host to themselves.
const LAB_PORT: u16 = 7000;

impl Cluster {
    /// Places for nodes, none of which runs yet.
    pub(crate) fn planned(plan: Plan) -> Self {
        let member = |_| {
            let port = free_port(plan.host);
            let at = |port: u16| std::net::SocketAddr::new(plan.host.parse().unwrap(), port).to_string();
            Member { address: at(port), http: at(port + 1000), child: None }
        };
        Self { bench: Bench::new(), plan, members: (0..plan.nodes).map(member).collect(), lab: None }
    }

    /// A whole cluster, each node of which is on a host of its own that can be cut off.
    pub(crate) fn in_lab(plan: Plan) -> Self {
        let lab = Lab::new(plan.nodes);
        let member = |host| {
            let at = |port: u16| std::net::SocketAddr::from((lab.address(host), port)).to_string();
            Member { address: at(LAB_PORT), http: at(LAB_PORT + 1000), child: None }
        };
        let members = (1..=plan.nodes).map(member).collect();
        Self { bench: Bench::new(), plan, members, lab: Some(lab) }.started()
    }

    /// Carries something out on the host of a node.
    fn at<T: Send>(&self, id: usize, act: impl FnOnce() -> T + Send) -> T {
        match &self.lab {
            Some(lab) => lab.on(id, act),
            None => act(),
        }
    }

    pub(crate) fn cut(&self, id: usize, way: Cut) {
        self.lab.as_ref().expect("only hosts of a lab can be cut off").cut(id, way);
    }

    pub(crate) fn heal(&self, id: usize) {
        self.lab.as_ref().expect("only hosts of a lab can be cut off").heal(id);
    }

    /// A cluster whose nodes are all ready, and of which as many vote as are to.
    pub(crate) fn start(plan: Plan) -> Self {
        Self::planned(plan).started()
    }

    fn started(mut self) -> Self {
        self.spawn(1);
        self.is_ready(1);
        for id in 2..=self.plan.nodes {
            self.spawn(id);
        }
        self.is_whole();
        self
    }

    /// A whole cluster with an image, `disk`, for vms to be written with.
    pub(crate) fn with_disk(plan: Plan) -> Self {
        let cluster = Self::start(plan);
        cluster.import_disk();
        cluster
    }

    /// Imports that image.
    pub(crate) fn import_disk(&self) {
        let mut disk = vec![0; 1 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let disk = self.bench.write("disk.raw", disk);
        self.run(1, &["image", "import", "--name", "disk", &disk]).ends_with(0);
    }

    /// A place for one more node, of which this gives the number. It counts from now on, and does not run yet.
    pub(crate) fn grow(&mut self) -> usize {
        let mut more = Self::planned(Plan { nodes: 1, ..self.plan });
        self.members.append(&mut more.members);
        self.plan.nodes += 1;
        self.plan.nodes
    }

    /// Gives up the place of the last node, which has ended and was removed from the cluster.
    pub(crate) fn shrink(&mut self) {
        let id = self.plan.nodes;
        assert!(self.members.pop().is_some_and(|member| member.child.is_none()), "node {id} runs");
        std::fs::remove_dir_all(self.data_dir(id)).unwrap();
        self.plan.nodes -= 1;
    }

    /// How many nodes there are to be.
    pub(crate) fn size(&self) -> usize {
        self.plan.nodes
    }

    fn member(&self, id: usize) -> &Member {
        &self.members[id - 1]
    }

    pub(crate) fn address(&self, id: usize) -> &str {
        &self.member(id).address
    }

    /// Where a node's HTTP door is.
    pub(crate) fn http_address(&self, id: usize) -> &str {
        &self.member(id).http
    }

    pub(crate) fn data_dir(&self, id: usize) -> PathBuf {
        self.bench.path(&format!("data{id}"))
    }

    pub(crate) fn registry(&self, id: usize) -> String {
        as_text(&self.data_dir(id).join(format!("node-{id}-registry.json"))).to_owned()
    }

    /// Starts a node the way a user would: all but the first name the first as their peer.
    pub(crate) fn spawn(&mut self, id: usize) {
        self.spawn_with(id, &[], &[]);
    }

    /// Starts a node with some more arguments and environment.
    pub(crate) fn spawn_with(&mut self, id: usize, arguments: &[&str], environment: &[(&str, &str)]) {
        let (number, data_dir) = (id.to_string(), self.data_dir(id));
        let log = File::options().create(true).append(true).open(self.log_path(id)).unwrap();
        let mut command = self.bench.command(&["node"]);
        let usual = [
            ("--id", number.as_str()),
            ("--bind", self.address(id)),
            ("--data-dir", as_text(&data_dir)),
            ("--hypervisor", self.plan.hypervisor),
        ];
        for (name, value) in usual.into_iter().filter(|(name, _)| !arguments.contains(name)) {
            command.args([name, value]);
        }
        if id > 1 && !arguments.contains(&"--join") && !arguments.contains(&"--peers") {
            command.args(["--peers", self.address(1)]);
        }
        command.args(arguments).envs(self.plan.environment.iter().copied()).envs(environment.iter().copied());
        command.stdout(Stdio::null()).stderr(log);
        let child = self.at(id, || command.spawn().unwrap());
        self.members[id - 1].child = Some(child);
    }

    fn log_path(&self, id: usize) -> PathBuf {
        self.bench.path(&format!("node-{id}.log"))
    }

    pub(crate) fn log(&self, id: usize) -> String {
        std::fs::read_to_string(self.log_path(id)).unwrap_or_default()
    }

    pub(crate) fn http(&self, id: usize, path: &str) -> Option<Answer> {
        let http = &self.member(id).http;
        self.at(id, || web::get(http, path))
    }

    /// Waits until a node says that it is ready.
    #[track_caller]
    pub(crate) fn is_ready(&mut self, id: usize) {
        let ready = || self.http(id, "/readyz").filter(|answer| answer.status == 200).map(drop);
        eventually(&format!("readiness of node {id}"), ready);
        let ended = self.members[id - 1].child.as_mut().unwrap().try_wait().unwrap();
        assert_eq!(ended, None, "node {id} has ended");
    }

    /// Waits until every node answers, and as many vote as are to.
    #[track_caller]
    pub(crate) fn is_whole(&mut self) {
        for id in 1..=self.plan.nodes {
            self.is_ready(id);
        }
        // Of two nodes one votes: with two votes the loss of either would stop both.
        let votes = if self.plan.nodes < 3 { 1 } else { 3 };
        eventually("a whole cluster", || {
            let status = self.status(1)?;
            let nodes = status["nodes"].as_array()?;
            let ready = nodes.iter().filter(|node| node["state"] == "ready").count();
            let voters = nodes.iter().filter(|node| node["role"] == "voter" || node["role"] == "leader").count();
            let settled = status["voters_changing"] == false;
            (ready == self.plan.nodes && voters == votes && settled).then_some(())
        });
    }

    /// Runs a command that asks a node.
    pub(crate) fn run(&self, id: usize, arguments: &[&str]) -> Ran {
        let (bench, registry) = (&self.bench, self.registry(id));
        self.at(id, || bench.run(&[arguments, &["--addr", &registry]].concat()))
    }

    /// What a command that asks a node printed as JSON; nothing when it failed.
    pub(crate) fn ask(&self, id: usize, arguments: &[&str]) -> Option<Value> {
        let ran = self.run(id, &[arguments, &["-o", "json"]].concat());
        (ran.code == 0).then(|| ran.json())
    }

    /// The cluster as the leader sees it.
    pub(crate) fn status(&self, id: usize) -> Option<Value> {
        self.ask(id, &["cluster", "status"])
    }

    /// The leader that a node knows.
    pub(crate) fn leader_seen_by(&self, id: usize) -> Option<usize> {
        let status = self.ask(id, &["cluster", "status", "--stale"])?;
        Some(status["leader"].as_u64()? as usize)
    }

    /// A vm as `vm status` shows it.
    pub(crate) fn vm(&self, id: usize, name: &str) -> Option<Value> {
        self.ask(id, &["vm", "status", name])
    }

    /// Waits until a vm is as it should be.
    #[track_caller]
    pub(crate) fn vm_becomes(&self, id: usize, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.vm(id, name);
            match view {
                Some(view) if is(&view) => return view,
                view => assert!(Instant::now() < deadline, "vm {name} did not become {what}: {view:?}"),
            }
        }
    }

    /// A client of a node, which stays connected, and the runtime that it needs.
    pub(crate) fn client(&self, id: usize) -> (tokio::runtime::Runtime, Client) {
        let key = UserState::at(self.bench.path("state")).client_key().unwrap();
        let peer = Registry::read(self.registry(id).as_ref()).unwrap().address();
        self.at(id, || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let client = runtime.block_on(Client::open(key, vec![peer])).unwrap();
            (runtime, client)
        })
    }

    /// Sends a signal to a node.
    pub(crate) fn signal(&self, id: usize, what: Signal) {
        signal(self.member(id).child.as_ref().expect("it runs"), what);
    }

    /// Ends nodes as a power cut would: all of them at once, and without a word.
    pub(crate) fn kill(&mut self, ids: &[usize]) {
        for &id in ids {
            self.signal(id, Signal::SIGKILL);
        }
        for &id in ids {
            self.members[id - 1].child.take().unwrap().wait().unwrap();
        }
    }

    /// The exit code of a node that has ended, if it has.
    pub(crate) fn has_ended(&mut self, id: usize) -> Option<Option<i32>> {
        let child = self.members[id - 1].child.as_mut().expect("it was started");
        child.try_wait().unwrap().map(|status| status.code())
    }

    /// Waits until a node has ended by itself or by a signal, and gives its exit code.
    #[track_caller]
    pub(crate) fn ends(&mut self, id: usize) -> Option<i32> {
        let child = self.members[id - 1].child.as_mut().unwrap();
        let status = eventually(&format!("the end of node {id}"), || child.try_wait().unwrap());
        self.members[id - 1].child = None;
        status.code()
    }

    /// Waits until all nodes have applied the same, and gives the digest of their state.
    #[track_caller]
    pub(crate) fn agreed_digest(&self) -> String {
        eventually("the same state on all nodes", || {
            let seen: Option<Vec<(u64, String)>> = (1..=self.plan.nodes)
                .map(|id| {
                    let (runtime, client) = self.client(id);
                    let view = runtime.block_on(client.cluster(true)).ok();
                    runtime.block_on(client.close());
                    view.map(|view| (view.applied, view.state_digest.to_string()))
                })
                .collect();
            let seen = seen?;
            for (applied, digest) in &seen {
                for (other_applied, other) in &seen {
                    assert!(applied != other_applied || digest == other, "the replicas differ: {seen:?}");
                }
            }
            seen.iter().all(|one| *one == seen[0]).then(|| seen[0].1.clone())
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                // It may have ended in the course of the test; a stopped one ends by SIGKILL, too.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for id in 1..=self.members.len() {
            guests::end_all(&self.data_dir(id));
            if std::thread::panicking() {
                let log = self.log(id);
                let lines: Vec<&str> = log.lines().collect();
                println!("node {id} said at last:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
    }
}
