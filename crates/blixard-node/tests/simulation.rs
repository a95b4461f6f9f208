//! Runs simulated clusters from seeds: `cargo xtask sim`.

#![allow(clippy::print_stdout, reason = "a program for a person at a terminal")]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use blixard_node::simulation::{Planted, Report, run};

/// Clean seeds of a check.
const CHECK_SEEDS: u64 = 200;
/// Every so many of them is run twice.
const CHECK_TWICE_EVERY: u64 = 20;
/// Seeds that a planted bug may need before it is found. Rare ones need a fault at the right moment.
const PLANTED_SEEDS_MAX: u64 = 80;

fn show(seed: u64, report: &Report) {
    let tally = report.tally;
    println!(
        "seed {seed}: history {:016x}, {} written, {} unknown, {} failed, {} read, {} entries, {} crashes, {} torn, \
         {} cuts, {} pauses, {} joins, {} removals, {} launches, {} releases",
        report.history,
        tally.acknowledged,
        tally.unknown,
        tally.failed,
        tally.reads,
        tally.entries,
        tally.crashes,
        tally.torn,
        tally.cuts,
        tally.pauses,
        tally.joins,
        tally.removals,
        tally.launches,
        tally.releases
    );
    for violation in report.violations.iter().take(5) {
        println!("    BROKEN {violation}");
    }
}

/// Calls `work` with each number of a range, on every processor, until it says that it has seen enough.
fn on_all_processors(numbers: std::ops::Range<u64>, work: impl Fn(u64) -> bool + Sync) {
    let next = AtomicU64::new(numbers.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end || !work(number) {
                        next.store(numbers.end, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

/// Clean seeds that broke a promise, or had two histories.
fn clean(seeds: std::ops::Range<u64>, seconds: u64, is_terse: bool) -> Vec<u64> {
    let broken = Mutex::new(Vec::new());
    on_all_processors(seeds, |seed| {
        let report = run(seed, seconds, None);
        let is_twice = is_terse && seed % CHECK_TWICE_EVERY == 0;
        let is_same = !is_twice || run(seed, seconds, None) == report;
        if !is_terse || !report.violations.is_empty() {
            show(seed, &report);
        }
        if !is_same {
            println!("seed {seed} has two histories");
        }
        if !is_same || !report.violations.is_empty() {
            broken.lock().expect("no holder panics").push(seed);
        }
        true
    });
    broken.into_inner().expect("no holder panics")
}

/// The first seed that finds a planted bug, and what it says.
fn find(bug: Planted, seeds: std::ops::Range<u64>, seconds: u64) -> Option<(u64, String)> {
    let found = Mutex::new(None);
    on_all_processors(seeds, |seed| {
        if let Some(violation) = run(seed, seconds, Some(bug)).violations.first() {
            found.lock().expect("no holder panics").get_or_insert((seed, violation.clone()));
            return false;
        }
        true
    });
    found.into_inner().expect("no holder panics")
}

fn show_found(bug: Planted, found: Option<(u64, String)>) -> bool {
    match &found {
        Some((seed, what)) => println!("{} is found with seed {seed}: {what}", bug.name()),
        None => println!("{} is NOT FOUND", bug.name()),
    }
    found.is_some()
}

fn check(seconds: u64) -> bool {
    let begun = Instant::now();
    let broken = clean(1..CHECK_SEEDS + 1, seconds, true);
    println!("{CHECK_SEEDS} clean seeds in {} s; broken: {broken:?}", begun.elapsed().as_secs());
    let begun = Instant::now();
    let missed = Planted::ALL.iter().filter(|bug| !show_found(**bug, find(**bug, 1..PLANTED_SEEDS_MAX + 1, seconds)));
    let missed = missed.count();
    println!("{} bugs planted, {missed} not found, in {} s", Planted::ALL.len(), begun.elapsed().as_secs());
    broken.is_empty() && missed == 0
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let of = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let number = |name: &str, default: u64| of(name).map_or(default, |text| text.parse().expect("a number"));
    if let Ok(filter) = std::env::var("BLIXARD_SIM_TRACE") {
        tracing_subscriber::fmt().without_time().with_ansi(false).with_env_filter(filter).init();
    }
    let (seed, seeds, seconds) = (number("--seed", 1), number("--seeds", 1), number("--seconds", 30));
    let seeds = seed..seed + seeds;
    let is_good = match of("--planted") {
        _ if arguments.iter().any(|argument| argument == "--check") => check(seconds),
        None => {
            let broken = clean(seeds, seconds, false);
            println!("seeds that broke a promise: {broken:?}");
            broken.is_empty()
        }
        Some(name) => match Planted::ALL.iter().find(|bug| bug.name() == name) {
            Some(bug) => show_found(*bug, find(*bug, seeds, seconds)),
            None => {
                println!("bugs that can be planted:");
                Planted::ALL.iter().for_each(|bug| println!("    {}", bug.name()));
                name == "list"
            }
        },
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
