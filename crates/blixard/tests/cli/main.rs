//! The program as its users meet it: the real binary, its output and its exit codes.

#![allow(clippy::unwrap_used)]

mod bench;
mod console;
mod contexts;
mod documents;
mod flags;
mod images;
mod nodes;
mod output;
#[path = "../program/mod.rs"]
#[allow(dead_code, reason = "each test program uses its own part of it")]
mod program;
mod proxy;
mod reach;
mod scripted;
mod security;
mod settings;
mod shares;
mod shell;
mod vms;
