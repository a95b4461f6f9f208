//! The contract that every driver keeps, checked on each of them: with real guests under QEMU, and on the fake.
//!
//! The harness is our own because a guard is this same program started with `guard`, and must not be mistaken for a test
//! run. `cargo test --test contract -- WORD` runs the cases whose names contain the word.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test says what it did, and fails by panicking")]

mod bench;
mod lazy;
mod leftover;
mod qemu;
mod suite;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

/// A named case.
type Case = (String, Box<dyn Fn()>);

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == bench::GUARD_ARGUMENT) {
        return blixard_hypervisor::guard::run(arguments.into_iter().skip(1));
    }
    if arguments.first().is_some_and(|first| first == bench::LAUNCH_ARGUMENT) {
        qemu::launch_and_wait(std::path::Path::new(&arguments[1]));
    }
    let words: Vec<String> = arguments
        .into_iter()
        .filter_map(|argument| argument.into_string().ok())
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let cases = suite::cases().into_iter().chain(qemu::cases()).chain(leftover::cases()).chain(lazy::cases());
    let cases: Vec<Case> =
        cases.filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()))).collect();
    let mut failed = vec![];
    for (name, case) in &cases {
        let start = Instant::now();
        let result = std::panic::catch_unwind(AssertUnwindSafe(case));
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{name} ... {outcome} ({} ms)", start.elapsed().as_millis());
        if result.is_err() {
            failed.push(name.as_str());
        }
    }
    println!("{} of {} cases passed", cases.len() - failed.len(), cases.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("failed: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}
