//! The load driver, an example program of `crates/blixard-node`: one order and one report a run, both as JSON.

use super::etcd::Etcd;
use crate::cluster::Cluster;
use crate::process;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Connections that the clients share: both protocols carry any number of requests at once on one.
const CONNECTIONS: usize = 1;

/// What one load came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub(super) per_second: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// The program.
#[derive(Debug)]
pub(super) struct Driver(PathBuf);

/// The nodes of a Blixard cluster, as the driver is told of them.
pub(super) fn blixard(cluster: &Cluster, nodes: &[u64]) -> Value {
    let registries: Vec<PathBuf> = nodes.iter().map(|node| cluster.registry(*node)).collect();
    json!({ "blixard": { "registries": registries, "state": cluster.state_dir() } })
}

/// The members of an etcd cluster, as the driver is told of them.
pub(super) fn etcd(etcd: &Etcd, members: &[usize]) -> Value {
    let endpoints: Vec<String> = members.iter().map(|member| etcd.endpoint(*member)).collect();
    json!({ "etcd": { "endpoints": endpoints } })
}

impl Driver {
    pub(super) fn new(program: &Path) -> Self {
        Self(program.to_owned())
    }

    /// Starts on an order.
    pub(super) fn start(&self, target: &Value, task: &Value) -> Result<Running> {
        let mut command = Command::new(&self.0);
        command.arg(json!({ "target": target, "task": task }).to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start `{}`", process::shown(&command)))?;
        Ok(Running(Some(child)))
    }

    /// Load of one operation, `write` or `read`, by so many clients. Failed requests are an error: they would make a mean
    /// of nothing.
    pub(super) fn load(&self, target: &Value, operation: &str, clients: usize, seconds: f64) -> Result<Speed> {
        let order =
            json!({ "operation": operation, "clients": clients, "connections": CONNECTIONS, "seconds": seconds });
        let report = self.start(target, &json!({ "load": order }))?.report()?;
        let failures = number(&report, "/load/failures")?;
        anyhow::ensure!(failures == 0.0, "{failures} requests failed");
        Ok(Speed {
            per_second: number(&report, "/load/per_second")?,
            p50_ms: number(&report, "/load/p50_ms")?,
            p99_ms: number(&report, "/load/p99_ms")?,
        })
    }

    /// How fast a bare stream of so many MiB is, in MiB a second.
    pub(super) fn stream(&self, mib: u32) -> Result<f64> {
        let report = self.start(&Value::Null, &json!({ "stream": { "mib": mib } }))?.report()?;
        number(&report, "/stream/mib_per_second")
    }

    /// Milliseconds from the kill of a process to the next write.
    pub(super) fn failover(&self, target: &Value, pid: u32) -> Result<f64> {
        let report = self.start(target, &json!({ "failover": { "kill": pid } }))?.report()?;
        number(&report, "/failover/ms")
    }
}

/// A driver at work. Killed when dropped.
#[derive(Debug)]
pub(super) struct Running(Option<Child>);

impl Running {
    /// What it reports when it is done. It has time-outs of its own.
    pub(super) fn report(mut self) -> Result<Value> {
        let child = self.0.take().expect("only this takes it");
        let output = child.wait_with_output().context("wait for the load driver")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "the load driver ended with {}: {}", output.status, said.trim());
        serde_json::from_slice(&output.stdout).context("read the load driver's report")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Fails when it has ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The number at a JSON pointer of a report.
pub(super) fn number(report: &Value, pointer: &str) -> Result<f64> {
    report.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no number at {pointer} of {report}"))
}
