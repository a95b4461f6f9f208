//! `cargo xtask`: the tasks of a developer of Blixard, each a subcommand.

// A program for a person at a terminal: its progress belongs on it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use xtask::{bench, ci, demo, dist, fuzz, guest, schema, setup, sim, tidy, workspace_root};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks.", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make target/guest: a kernel, an initramfs and a disk image of a tiny Linux guest for tests and the demo.
    Guest {
        /// Build anew, with the newest packages, even when the last build is up to date.
        #[arg(long)]
        refresh: bool,
        /// Boot what was built under QEMU and check its console, its shell and its power button.
        #[arg(long)]
        check: bool,
    },
    /// Show in under a minute what Blixard does: three nodes, an image, a vm, crashes. Sets up and builds what is missing.
    Demo {
        /// Leave the cluster and its vm running, and say what to try.
        #[arg(long)]
        keep: bool,
        /// End what an earlier demo left running in this folder, with all its vms and files.
        #[arg(long, value_name = "DIR", conflicts_with = "keep")]
        end: Option<PathBuf>,
    },
    /// Measure something and print a table; the same as JSON goes to target/bench.
    Bench {
        /// What to measure; without a name, the names are listed.
        name: Option<String>,
        /// How often, where the measurement is repeated.
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
        runs: u32,
        /// Measure a development build: made in seconds, and several times slower than what users run.
        #[arg(long)]
        dev: bool,
        #[command(flatten)]
        swarm: bench::SwarmSize,
    },
    /// Make a package for Debian and its relatives in target/dist, and check it.
    Dist {
        /// Pack the build that tests use, which takes minutes less to make and is slower.
        #[arg(long)]
        dev: bool,
    },
    /// Try the decoders of outside bytes with libFuzzer. What is found is kept in target/fuzz/found.
    Fuzz {
        /// The only target, a folder of fuzz/corpus; without one, all of them.
        target: Option<String>,
        /// How long each target is fuzzed.
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
        seconds: u32,
        /// Try only the input in this file.
        #[arg(long, value_name = "FILE", requires = "target")]
        input: Option<PathBuf>,
    },
    /// Run simulated clusters from a seed, with crashes, torn writes, cut networks and wrong clocks; the same seed gives the
    /// same run.
    Sim(sim::Arguments),
    /// Hold the answers of the control API against docs/openapi.json, with schemathesis and a cluster of real processes.
    Schema,
    /// Install the tools that the other tasks need (QEMU and a few more), saying first what will run.
    Setup,
    /// Check everything: format, tidy, clippy, the guest, all tests, fuzzing, the package and the demo. Installs what is missing.
    Ci,
    /// Check the rules that the compiler cannot hold: walls between crates and rooms, names, sizes, licences.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Guest { refresh, check } => guest::run(refresh, check),
        Task::Demo { end: Some(dir), .. } => demo::end(&dir),
        Task::Demo { keep, end: None } => demo::run(keep),
        Task::Bench { name, runs, dev, swarm } => bench::run(name.as_deref(), runs, dev, swarm),
        Task::Dist { dev } => dist::run(dev),
        Task::Fuzz { target, seconds, input } => {
            fuzz::run(&fuzz::Request { target: target.as_deref(), seconds, input: input.as_deref() })
        }
        Task::Schema => schema::run(),
        Task::Sim(arguments) => sim::run(&arguments),
        Task::Setup => setup::install_missing(setup::EVERYTHING),
        Task::Ci => ci::run(),
        Task::Tidy => tidy::run(&workspace_root()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
