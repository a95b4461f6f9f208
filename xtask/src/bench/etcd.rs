//! The comparator: etcd's own three members on this machine, with its defaults, beside the cluster under test.

use crate::cluster::{Cluster, PATIENCE};
use crate::process;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SERVER: &str = "etcd";
const CLIENT: &str = "etcdctl";
/// As many members as the cluster under test has voters.
pub(super) const MEMBERS: usize = 3;
/// Between two looks at something that has no way to tell us.
const POLL: Duration = Duration::from_millis(20);

/// A member, running or not.
#[derive(Debug)]
struct Member {
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
}

/// A cluster of etcd. All of it is ended when it is dropped; its files go with those of the cluster under test, which lie on
/// the same disk.
#[derive(Debug)]
pub(super) struct Etcd {
    dir: PathBuf,
    members: Vec<Member>,
}

/// Says what is installed, or that etcd is missing.
pub(super) fn version() -> Option<String> {
    process::find(CLIENT)?;
    let said = process::text(Command::new(process::find(SERVER)?).arg("--version")).ok()?;
    said.lines().next().map(|line| line.replace("etcd Version:", "etcd").to_lowercase())
}

impl Etcd {
    /// Starts all members at once. They are not waited for.
    pub(super) fn start(cluster: &mut Cluster, name: &str) -> Result<Self> {
        let dir = cluster.dir().join(name);
        fs::create_dir_all(&dir).context("make a folder for etcd")?;
        let mut members = Vec::new();
        for _ in 0..MEMBERS {
            members.push(Member { client_port: cluster.free_port()?, peer_port: cluster.free_port()?, child: None });
        }
        let mut etcd = Self { dir, members };
        for member in 0..MEMBERS {
            etcd.restart(member)?;
        }
        Ok(etcd)
    }

    /// Starts a member that does not run.
    pub(super) fn restart(&mut self, member: usize) -> Result<()> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let all = self.members.iter().enumerate().map(|(n, member)| format!("m{n}={}", url(member.peer_port)));
        let all = all.collect::<Vec<_>>().join(",");
        let log = self.dir.join(format!("m{member}.log"));
        let log = OpenOptions::new().create(true).append(true).open(log).context("open etcd's log")?;
        let (client, peer) = (url(self.members[member].client_port), url(self.members[member].peer_port));
        let mut command = Command::new(process::find(SERVER).context("etcd is not installed")?);
        command.args(["--name", &format!("m{member}"), "--logger", "zap", "--log-level", "warn", "--data-dir"]);
        command.arg(self.dir.join(format!("m{member}")));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &all, "--initial-cluster-state", "new"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        let child = command.spawn().with_context(|| format!("start `{}`", process::shown(&command)))?;
        self.members[member].child = Some(child);
        Ok(())
    }

    /// Where a member answers clients.
    pub(super) fn endpoint(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].client_port)
    }

    /// The process of a member.
    pub(super) fn pid(&self, member: usize) -> Result<u32> {
        Ok(self.members[member].child.as_ref().with_context(|| format!("etcd's member {member} does not run"))?.id())
    }

    /// Takes note that a member was killed from outside.
    pub(super) fn was_killed(&mut self, member: usize) -> Result<()> {
        if let Some(mut child) = self.members[member].child.take() {
            child.kill().and_then(|()| child.wait()).context("wait for a killed member of etcd")?;
        }
        Ok(())
    }

    /// Waits until all members answer and agree on a leader, and says which it is.
    pub(super) fn leader(&self) -> Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_leader() {
                Ok(leader) => return Ok(leader),
                Err(error) => ensure!(Instant::now() < deadline, "etcd has no leader: {error:#}"),
            }
            std::thread::sleep(POLL);
        }
    }

    fn try_leader(&self) -> Result<usize> {
        let endpoints = (0..MEMBERS).map(|member| self.endpoint(member)).collect::<Vec<_>>().join(",");
        let mut command = Command::new(process::find(CLIENT).context("etcdctl is not installed")?);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints, "endpoint", "status", "-w", "json"]);
        let all: Value = serde_json::from_str(&process::text(&mut command)?).context("read etcd's status")?;
        let all = all.as_array().context("etcd's status is no list")?;
        ensure!(all.len() == MEMBERS, "{} of {MEMBERS} members answer", all.len());
        let (mut leaders, mut found) = (Vec::new(), None);
        for status in all {
            let leader = status.pointer("/Status/leader").and_then(Value::as_u64).filter(|leader| *leader != 0);
            leaders.push(leader.context("a member knows of no leader")?);
            if status.pointer("/Status/header/member_id").and_then(Value::as_u64) == leader {
                let endpoint = status.pointer("/Endpoint").and_then(Value::as_str);
                found = (0..MEMBERS).find(|member| endpoint == Some(&self.endpoint(*member)));
            }
        }
        leaders.dedup();
        ensure!(leaders.len() == 1, "members name {} leaders", leaders.len());
        found.context("the leader is none of the members")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                // Fails when it has ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
