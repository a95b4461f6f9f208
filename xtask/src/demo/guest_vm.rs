//! A vm of the demo as it is seen from outside and from inside its guest.

use crate::cluster::{self, Cluster};
use crate::guest;
use anyhow::{Context, Result, bail, ensure};

/// What is typed to learn the guest's uptime. The echo of it differs from the answer.
const ASK_UPTIME: &str = "echo up=$(cut -d' ' -f1 /proc/uptime)\n";

/// A vm that runs.
#[derive(Debug)]
pub(super) struct Vm {
    pub(super) name: &'static str,
    pub(super) id: String,
    pub(super) node: u64,
    /// The hypervisor's process.
    pub(super) pid: u64,
    /// The port of this host at which the guest's web server answers, if it is published.
    pub(super) port: Option<u16>,
}

impl Vm {
    /// Looks at a vm; an error when it does not run.
    pub(super) fn look(cluster: &Cluster, asked: u64, name: &'static str) -> Result<Self> {
        let view = cluster.ask_json(asked, &["vm", "status", name])?;
        let phase = cluster::text(&view, "/phase")?;
        ensure!(phase == "running", "vm {name} is {phase}: {view}");
        let port = view.pointer("/publish/0/host_port").and_then(serde_json::Value::as_u64);
        Ok(Self {
            name,
            id: cluster::text(&view, "/id")?.to_owned(),
            node: cluster::unsigned(&view, "/node")?,
            pid: cluster::unsigned(&view, "/live/pid").context("its node did not say how it runs")?,
            port: port.map(u16::try_from).transpose().context("a published port")?,
        })
    }

    /// Whether the hypervisor's process is there.
    pub(super) fn is_alive(&self) -> bool {
        i32::try_from(self.pid).is_ok_and(cluster::is_alive)
    }

    /// The first line with `word` in what the guest has written on its console.
    pub(super) fn console_line(&self, cluster: &Cluster, asked: u64, word: &str) -> Result<String> {
        let log = cluster.ask(asked, &["vm", "logs", self.name])?;
        let line = log.lines().find(|line| line.contains(word));
        line.map(str::to_owned).with_context(|| format!("vm {} has not written {word:?}:\n{log}", self.name))
    }

    /// Types commands at the guest's console, and gives what came back from the first of them on.
    pub(super) fn type_commands(&self, cluster: &Cluster, asked: u64, commands: &str) -> Result<String> {
        let seen = cluster.type_into(asked, &["vm", "console", self.name], commands)?;
        // The console begins with what it showed before.
        let first = commands.lines().next().unwrap_or_default();
        let Some(at) = seen.rfind(first) else { bail!("the console did not take {first:?}:\n{seen}") };
        let line_start = seen[..at].rfind('\n').map_or(0, |end| end + 1);
        Ok(seen[line_start..].to_owned())
    }

    /// How long the guest has been up, in seconds, by its own clock.
    pub(super) fn uptime_s(&self, cluster: &Cluster, asked: u64) -> Result<f64> {
        let seen = self.type_commands(cluster, asked, ASK_UPTIME)?;
        let answer = seen.lines().find_map(|line| line.strip_prefix("up=")?.trim().parse().ok());
        answer.with_context(|| format!("the guest did not say its uptime:\n{seen}"))
    }

    /// The page of the guest's web server.
    pub(super) fn check_page(&self) -> Result<()> {
        let port = self.port.context("no port is published")?;
        let page = guest::page(port)?;
        let expected = format!("hello from {}", self.name);
        ensure!(page.contains(&expected), "http://127.0.0.1:{port}/ does not say {expected:?}:\n{page}");
        Ok(())
    }
}
