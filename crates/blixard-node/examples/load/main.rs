//! The client side of `cargo xtask bench`: puts load on a Blixard or etcd cluster and times what comes of it.
//!
//! Takes one order as JSON in its only argument and prints one report as JSON. Both kinds of cluster are spoken to in the
//! same way: from one thread, over as many connections as ordered, with as many requests under way on them as ordered, each
//! a request of the cluster's public API. So both pay alike for the client, which shares the processors with them.

// A program for another program: its report belongs on standard output.
#![allow(clippy::print_stdout)]

mod blixard;
mod etcd;
mod stream;
mod tasks;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What to do to whom.
#[derive(Debug, Deserialize)]
struct Order {
    target: Option<Target>,
    task: Task,
}

/// The cluster under load.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Target {
    /// The nodes by their registry files, and the folder with the user's key.
    Blixard { registries: Vec<PathBuf>, state: PathBuf },
    /// The members by their client addresses.
    Etcd { endpoints: Vec<SocketAddr> },
}

/// What is done to it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Task {
    /// As many requests as the cluster answers, from so many clients that each wait for their answer.
    Load { operation: Operation, clients: usize, connections: usize, seconds: f64 },
    /// Kills a process with SIGKILL and finds out when the next write is committed.
    Failover { kill: i32 },
    /// Waits for all members to take part and for a write through each.
    Formation,
    /// Sends so much over one bare stream between two endpoints of this process. It needs no target.
    Stream { mib: u32 },
}

/// A request.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Operation {
    /// Committed on the disks of a majority.
    Write,
    /// Linearizable.
    Read,
}

/// What came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    /// Requests a second, and the time that half and 99 of 100 of them took at most, in milliseconds.
    Load { per_second: f64, p50_ms: f64, p99_ms: f64, failures: u64 },
    /// Milliseconds from the kill to the answer to the first write that was begun after it.
    Failover { ms: f64 },
    /// When it was done, in milliseconds since the Unix epoch.
    Formation { at_unix_ms: f64 },
    /// MiB a second.
    Stream { mib_per_second: f64 },
}

/// A connection to a member of either kind of cluster.
#[derive(Clone)]
enum Member {
    Blixard(blixard::Member),
    Etcd(etcd::Member),
}

impl Member {
    async fn do_one(&self, operation: Operation, number: u64) -> anyhow::Result<()> {
        match (self, operation) {
            (Self::Blixard(member), Operation::Write) => member.write(number).await,
            (Self::Blixard(member), Operation::Read) => member.read().await,
            (Self::Etcd(member), Operation::Write) => member.write(number).await,
            (Self::Etcd(member), Operation::Read) => member.read().await,
        }
    }
}

impl Target {
    fn members(&self) -> usize {
        match self {
            Self::Blixard { registries, .. } => registries.len(),
            Self::Etcd { endpoints } => endpoints.len(),
        }
    }

    /// A new connection to a member.
    async fn connect(&self, member: usize) -> anyhow::Result<Member> {
        Ok(match self {
            Self::Blixard { registries, state } => {
                Member::Blixard(blixard::Member::connect(&registries[member], state).await?)
            }
            Self::Etcd { endpoints } => Member::Etcd(etcd::Member::connect(endpoints[member]).await?),
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let order = std::env::args().nth(1).context("give the order as JSON")?;
    let Order { target, task } = serde_json::from_str(&order).with_context(|| format!("read the order {order}"))?;
    let target = || target.as_ref().context("the task needs a target");
    let report = match task {
        Task::Load { operation, clients, connections, seconds } => {
            tasks::load(target()?, operation, clients, connections, seconds).await?
        }
        Task::Failover { kill } => tasks::failover(target()?, kill).await?,
        Task::Formation => tasks::formation(target()?).await?,
        Task::Stream { mib } => stream::measure(mib).await?,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
