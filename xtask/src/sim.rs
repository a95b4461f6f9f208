//! `cargo xtask sim`: builds the simulator of `blixard-node` and runs it.

use crate::{process, workspace_root};
use anyhow::{Context, Result};
use clap::Args;

/// What the simulator spends its time in, and how far it is optimised. The rest of a build stays as it is, so that it is shared
/// with all other builds. More for the node's own crate would take longer to compile than it saves.
const OPTIMISED: &[(&str, u8)] = &[
    ("blixard-node", 1),
    ("openraft", 2),
    ("openraft-rt", 2),
    ("openraft-rt-sim", 2),
    ("openraft-rt-tokio", 2),
    ("redb", 2),
];

/// What to simulate.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The seed of the first run.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// How many runs, each with the next seed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// How long faults last, in seconds of virtual time.
    #[arg(long, value_name = "N", default_value_t = 30)]
    seconds: u64,
    /// Plant a bug, and expect it to be found; `list` names them.
    #[arg(long, value_name = "BUG")]
    planted: Option<String>,
    /// Hundreds of seeds, some of them twice, and every bug that can be planted: what the gate runs.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "planted"])]
    check: bool,
}

impl Arguments {
    /// What the gate runs.
    pub fn check() -> Self {
        Self { seed: 1, seeds: 1, seconds: 30, planted: None, check: true }
    }
}

/// Runs the simulator.
///
/// # Errors
/// When it cannot be built, a promise was broken, or a planted bug was not found.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace_root());
    cargo.args([
        "test",
        "--quiet",
        "--locked",
        "-p",
        "blixard-node",
        "--features",
        "simulation",
        "--test",
        "simulation",
    ]);
    for (package, level) in OPTIMISED {
        cargo.arg("--config").arg(format!("profile.dev.package.{package}.opt-level={level}"));
    }
    cargo.arg("--");
    for (name, number) in [("seed", arguments.seed), ("seeds", arguments.seeds), ("seconds", arguments.seconds)] {
        cargo.arg(format!("--{name}")).arg(number.to_string());
    }
    if let Some(bug) = &arguments.planted {
        cargo.args(["--planted", bug]);
    }
    if arguments.check {
        cargo.arg("--check");
    }
    process::check(&mut cargo).context("run the simulator")
}
