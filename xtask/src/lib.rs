//! The project's own tasks, as a library so that its rules (`tidy`) also run inside `cargo test`.
//!
//! Everything here works on the workspace from outside: it may run programs, read the tree and write below `target/`,
//! and it depends on none of the product's crates, so that it builds in seconds on a fresh machine.

// These are programs for a person at a terminal: their progress belongs on it.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::{Path, PathBuf};

pub mod bench;
pub mod ci;
mod cluster;
pub mod demo;
pub mod dist;
pub mod distribution;
pub mod fuzz;
pub mod guest;
mod interrupt;
pub mod process;
pub mod schema;
pub mod setup;
pub mod sim;
pub mod tidy;

/// The root of the workspace that this xtask was built from.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies one level below the workspace").to_path_buf()
}
