//! How well a limit of what a node sends is held, and what it costs.
//!
//! One node has the image and a limit, another fetches. What the first has sent is read twice, ten seconds apart; its processor
//! time over the same span, and that of the receiver, are set against what went. The rest of the image then goes without a
//! limit, for the cost to compare with.

use super::Request;
use super::idle::usages;
use super::samples::{Findings, Goal, Samples};
use super::transfer::{IMAGE, IMAGE_FILE, write_disk};
use super::usage::Usage;
use crate::cluster::{self, Cluster, Entry};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Enough for all limits below, and for something to be left without one.
const IMAGE_MIB: u32 = 4096;
/// The limits, in MiB a second.
const LIMITS: [u32; 3] = [10, 50, 200];
/// From the first byte until the rate is steady.
const SETTLE: Duration = Duration::from_secs(1);
/// Over which a limit has to be held.
const WATCH: Duration = Duration::from_secs(10);
/// How far from the limit what goes may be, as a part of it.
const GOAL_OFF: f64 = 0.05;
const MIB: f64 = (1 << 20) as f64;

/// What node 1 had sent, and what both nodes had used, at a moment.
struct Look {
    at: Instant,
    sent_mib: f64,
    usages: Vec<Usage>,
}

impl Look {
    fn now(cluster: &Cluster, pids: &[u32]) -> Result<Self> {
        let before = Instant::now();
        let sent_mib = sent_mib(cluster)?;
        // The answer is of some moment while it was waited for.
        let at = before + before.elapsed() / 2;
        Ok(Self { at, sent_mib, usages: usages(pids)? })
    }

    /// MiB a second since an earlier look, and processor seconds that each GiB took.
    fn since(&self, earlier: &Self) -> (f64, f64) {
        let (mib, seconds) = (self.sent_mib - earlier.sent_mib, (self.at - earlier.at).as_secs_f64());
        let used = self.usages.iter().zip(&earlier.usages).map(|(now, then)| now.cpu_percent_since(then) / 100.0);
        (mib / seconds, used.sum::<f64>() * seconds / (mib / 1024.0))
    }
}

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut rates = LIMITS.map(|limit| Samples::of(&format!("sent under {limit} MiB/s"), "MiB/s"));
    let mut costs = LIMITS.map(|limit| Samples::of(&format!("processor under {limit} MiB/s"), "s/GiB"));
    let mut free = [Samples::of("sent without a limit", "MiB/s"), Samples::of("processor without a limit", "s/GiB")];
    for run in 1..=request.runs {
        let mut cluster = Cluster::new(request.binary, request.interrupt)?;
        cluster.set("BLIXARD_CLUSTER_COPIES", "1");
        cluster.set("BLIXARD_HYPERVISOR", "fake");
        cluster.start(1, &Entry::Found)?;
        cluster.start(2, &Entry::Peer(1))?;
        let pids = [cluster.pid(1)?, cluster.pid(2)?];
        let file = cluster.dir().join(IMAGE_FILE);
        write_disk(&file, run, IMAGE_MIB).with_context(|| format!("write {}", file.display()))?;
        cluster.ask(1, &["image", "import", "--name", IMAGE, &file.display().to_string()])?;
        for (limit, (rate, cost)) in LIMITS.into_iter().zip(rates.iter_mut().zip(&mut costs)) {
            cluster.ask(1, &["transfer", "limit", "--up", &format!("{limit}MiB/s"), "--node", "1"])?;
            begin(&mut cluster)?;
            request.interrupt.wait(SETTLE)?;
            let before = Look::now(&cluster, &pids)?;
            request.interrupt.wait(WATCH)?;
            let (sent, used) = Look::now(&cluster, &pids)?.since(&before);
            rate.add(sent);
            cost.add(used);
            cluster.ask(1, &["transfer", "cancel", IMAGE, "--node", "2"])?;
        }
        cluster.ask(1, &["transfer", "limit", "--up", "none", "--node", "1"])?;
        begin(&mut cluster)?;
        let before = Look::now(&cluster, &pids)?;
        cluster.wait_for("the rest of the image", |cluster| {
            let image = cluster.ask_json(1, &["image", "show", IMAGE])?;
            ensure!(cluster::array(&image, "/holders")?.len() == 2, "node 2 does not hold it");
            Ok(())
        })?;
        let (sent, used) = Look::now(&cluster, &pids)?.since(&before);
        free[0].add(sent);
        free[1].add(used);
        cluster.shut_down()?;
        let all: Vec<&Samples> = rates.iter().chain(&costs).chain(&free).collect();
        println!("bench: run {run}: {}", Samples::last_told(&all));
    }
    let off = |(limit, rate): (u32, &Samples)| {
        let far = rate.median().map(|sent| (sent / f64::from(limit) - 1.0).abs());
        Goal::at_most(&format!("off the limit of {limit} MiB/s, as a part of it"), far, GOAL_OFF)
    };
    let goals = LIMITS.into_iter().zip(&rates).filter_map(off).collect();
    Ok(Findings { all: rates.into_iter().chain(costs).chain(free).collect(), goals })
}

/// Has node 2 fetch the image, and waits until more of it goes.
fn begin(cluster: &mut Cluster) -> Result<()> {
    let before = sent_mib(cluster)?;
    cluster.ask(1, &["image", "fetch", IMAGE, "--node", "2"])?;
    cluster.wait_for("the image to go", |cluster| {
        ensure!(sent_mib(cluster)? > before, "nothing goes");
        Ok(())
    })
}

/// What node 1 has sent of images since it was started, with the hashes that prove it.
pub(super) fn sent_mib(cluster: &Cluster) -> Result<f64> {
    let nodes = cluster.ask_json(1, &["transfer", "stats"])?;
    let first = nodes.as_array().and_then(|nodes| nodes.iter().find(|node| node["node"] == 1)).context("no node 1")?;
    let peers = cluster::array(first, "/stats/peers")?;
    Ok(peers.iter().filter_map(|peer: &Value| peer["sent_bytes"].as_f64()).sum::<f64>() / MIB)
}
