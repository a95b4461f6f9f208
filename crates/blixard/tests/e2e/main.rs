//! Clusters of the real binary on this host: nodes are killed with -9, guests run under QEMU, and what was promised is
//! looked at afterwards.
//!
//! The tests print what they measured (`cargo test -p blixard --test e2e -- --nocapture`). `BLIXARD_E2E_ROUNDS` makes the
//! random series of kills longer, `BLIXARD_E2E_SEED` repeats one that failed.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says what it measured")]

mod broken_off;
mod cluster;
mod crash;
mod damage;
mod dice;
mod disks;
mod documents;
mod full;
mod guests;
mod lazy;
mod lifecycle;
mod metrics;
mod observed;
mod outside;
mod partition;
#[path = "../program/mod.rs"]
#[allow(dead_code, reason = "each test program uses its own part of it")]
mod program;
mod reach;
mod restart;
mod swarm;
mod tracing;
mod transfer;
mod web;
mod writer;
