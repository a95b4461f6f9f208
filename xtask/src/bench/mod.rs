//! `cargo xtask bench NAME`: measures what the program does on this machine, as its users would feel it.
//!
//! Each bench runs real nodes through [`crate::cluster`], prints a table and leaves the samples in
//! `target/bench/NAME.json`. The numbers of two machines, or of two profiles, do not compare.

mod boot;
mod etcd;
mod failover;
mod formation;
mod idle;
mod lab;
mod lazy;
mod limit;
mod load;
mod rivals;
mod samples;
mod scale;
mod swarm;
mod transfer;
mod update;
mod usage;
mod writes;

use crate::cluster::{self, Profile};
use crate::interrupt::Interrupt;
use crate::{guest, setup, workspace_root};
use anyhow::{Context, Result, bail};
use load::Driver;
use samples::Findings;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// The load driver, by the name of its target.
const DRIVER: &str = "load";

/// What a bench is given.
struct Request<'a> {
    binary: &'a Path,
    interrupt: &'a Interrupt,
    driver: &'a Driver,
    runs: u32,
    swarm: SwarmSize,
}

/// How large the swarm of the bench of that name is.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct SwarmSize {
    /// Of `swarm`: how many nodes receive the image.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16))]
    receivers: u32,
    /// Of `swarm`: the speed of each host's link in Mbit/s.
    #[arg(long, value_name = "MBIT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    link_mbit: u32,
    /// Of `swarm`: the size of the image in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    image_mib: u32,
}

/// A bench by its name.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Request) -> Result<Findings>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "formation",
        about: "from the start of three nodes to three voters and a write, beside etcd",
        run: formation::run,
    },
    Bench { name: "writes", about: "committed writes and linearizable reads a second, beside etcd", run: writes::run },
    Bench { name: "failover", about: "from kill -9 of the leader to the next write, beside etcd", run: failover::run },
    Bench { name: "boot", about: "from `vm create` to the guest's ready line, beside bare QEMU", run: boot::run },
    Bench {
        name: "transfer",
        about: "an image of 1 GiB to a node from one, two and three holders, beside a bare stream and rsync",
        run: transfer::run,
    },
    Bench {
        name: "swarm",
        about: "an image from one node to many over limited links, beside rsync, HTTP and BitTorrent; needs root",
        run: swarm::run,
    },
    Bench {
        name: "update",
        about: "what an upgraded Debian of 1 GiB moves to a node that has the old one, beside rsync; needs root",
        run: update::run,
    },
    Bench {
        name: "limit",
        about: "how well limits of 10, 50 and 200 MiB/s are held, and at what cost",
        run: limit::run,
    },
    Bench {
        name: "lazy",
        about: "a guest's ready line on a node without its image, at 100 Mbit/s: read as it comes, and waited for",
        run: lazy::run,
    },
    Bench { name: "scale", about: "what 5, 10, 20 and 50 nodes cost, with the fake driver", run: scale::run },
    Bench { name: "idle", about: "memory and processor of a node at rest, beside etcd", run: idle::run },
];

/// Runs one bench.
pub fn run(name: Option<&str>, runs: u32, dev: bool, swarm: SwarmSize) -> Result<()> {
    let list = || BENCHES.iter().map(|bench| format!("\n  {:<10} {}", bench.name, bench.about)).collect::<String>();
    let Some(bench) = BENCHES.iter().find(|bench| Some(bench.name) == name) else {
        match name {
            None => bail!("name a bench:{}", list()),
            Some(name) => bail!("there is no bench {name}; there are:{}", list()),
        }
    };
    setup::install_missing(setup::BOOT)?;
    let profile = if dev { Profile::Dev } else { Profile::Release };
    let binaries = cluster::build(profile, &[DRIVER]).context("build blixard and the load driver")?;
    let driver = Driver::new(binaries.example(DRIVER)?);
    guest::run(false, false)?;
    let interrupt = Interrupt::listen()?;
    let etcd = etcd::version();
    println!("bench: {}: {} (profile {}, {runs} runs)", bench.name, bench.about, profile.name());
    match &etcd {
        Some(version) => println!("bench: the comparator is {version}"),
        None => println!("bench: etcd and etcdctl are not on the PATH: there is nothing to compare with"),
    }
    let request = Request { binary: binaries.blixard(), interrupt: &interrupt, driver: &driver, runs, swarm };
    let findings = (bench.run)(&request)?;
    println!("\n{}", findings.table());
    let path = write(bench, profile, etcd.as_deref(), &findings)?;
    println!("bench: the samples are in {}", path.display());
    Ok(())
}

fn write(bench: &Bench, profile: Profile, etcd: Option<&str>, findings: &Findings) -> Result<PathBuf> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let report = json!({
        "bench": bench.name,
        "about": bench.about,
        "profile": profile.name(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        // Of the last minute, the bench's own work included.
        "load": load.split_whitespace().next().and_then(|load| load.parse::<f64>().ok()),
        "comparator": etcd,
        "results": findings.samples_to_json(),
        "goals": findings.goals_to_json(),
    });
    let folder = workspace_root().join("target/bench");
    let path = folder.join(format!("{}.json", bench.name));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, format!("{report:#}\n")))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
