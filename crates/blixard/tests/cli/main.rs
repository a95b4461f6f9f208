//! The program as its users meet it: the real binary, its output and its exit codes.

#![allow(clippy::unwrap_used)]

mod bench;
mod console;
mod flags;
mod images;
mod nodes;
mod reach;
mod scripted;
mod session;
mod settings;
mod vms;
