//! `cargo xtask bench NAME`: measures what the program does on this machine, as its users would feel it.
//!
//! Each bench runs real nodes through [`crate::cluster`], prints a table and leaves the samples in
//! `target/bench/NAME.json`. The numbers of two machines, or of two profiles, do not compare.

mod boot;
mod formation;
mod samples;
mod transfer;

use crate::cluster::{self, Profile};
use crate::interrupt::Interrupt;
use crate::{guest, setup, workspace_root};
use anyhow::{Context, Result, bail};
use samples::Samples;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// What a bench is given.
struct Request<'a> {
    binary: &'a Path,
    interrupt: &'a Interrupt,
    runs: u32,
}

/// A bench by its name.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Request) -> Result<Vec<Samples>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "formation",
        about: "from the start of three nodes to three voters and a write",
        run: formation::run,
    },
    Bench { name: "boot", about: "from `vm create` to the guest's ready line, beside bare QEMU", run: boot::run },
    Bench {
        name: "transfer",
        about: "an image of 256 MiB to a node from one and from two holders",
        run: transfer::run,
    },
];

/// Runs one bench.
pub fn run(name: Option<&str>, runs: u32, release: bool) -> Result<()> {
    let list = || BENCHES.iter().map(|bench| format!("\n  {:<10} {}", bench.name, bench.about)).collect::<String>();
    let Some(bench) = BENCHES.iter().find(|bench| Some(bench.name) == name) else {
        match name {
            None => bail!("name a bench:{}", list()),
            Some(name) => bail!("there is no bench {name}; there are:{}", list()),
        }
    };
    setup::install_missing(setup::BOOT)?;
    let profile = if release { Profile::Release } else { Profile::Dev };
    let binary = cluster::blixard(profile).context("build blixard")?;
    guest::run(false, false)?;
    let interrupt = Interrupt::listen()?;
    println!("bench: {}: {} (profile {}, {runs} runs)", bench.name, bench.about, profile.name());
    let all = (bench.run)(&Request { binary: &binary, interrupt: &interrupt, runs })?;
    println!("\n{}", samples::table(&all));
    let path = write(bench, profile, &all)?;
    println!("bench: the samples are in {}", path.display());
    Ok(())
}

fn write(bench: &Bench, profile: Profile, all: &[Samples]) -> Result<PathBuf> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let report = json!({
        "bench": bench.name,
        "about": bench.about,
        "profile": profile.name(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        // Of the last minute, the bench's own work included.
        "load": load.split_whitespace().next().and_then(|load| load.parse::<f64>().ok()),
        "results": all.iter().map(Samples::to_json).collect::<Vec<_>>(),
    });
    let folder = workspace_root().join("target/bench");
    let path = folder.join(format!("{}.json", bench.name));
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&path, format!("{report:#}\n")))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
