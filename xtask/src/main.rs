//! `cargo xtask`: the tasks of a developer of Blixard, each a subcommand.

// A program for a person at a terminal: its progress belongs on it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use xtask::{ci, guest, setup, tidy, workspace_root};

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
    /// Install the tools that the other tasks need (QEMU and a few more), saying first what will run.
    Setup,
    /// Check everything: format, tidy, clippy, the guest and all tests. Installs what is missing.
    Ci,
    /// Check the rules that the compiler cannot hold: walls between crates and rooms, names, sizes, licences.
    Tidy,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Guest { refresh, check } => guest::run(refresh, check),
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
