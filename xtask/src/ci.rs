//! `cargo xtask ci`: the one gate that every change passes, on a fresh machine as on a developer's.
//!
//! Steps run one after the other and the first that fails ends it. None is ever skipped: what a step needs is installed
//! first, or the step fails.

use crate::{demo, dist, fuzz, guest, process, schema, setup, sim, tidy, workspace_root};
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Instant;

/// A step: its name, what it runs, and what to do when it fails.
struct Step {
    name: &'static str,
    run: fn() -> Result<()>,
    advice: &'static str,
}

/// The quickest come first, so that a small slip is told within seconds. The tests come after the guest, which they boot, and
/// the demo at the end shows that all of it together does what a user is promised.
const STEPS: &[Step] = &[
    Step { name: "tools", run: tools, advice: "install what is named above and run this again" },
    Step { name: "format", run: || cargo(&["fmt", "--all", "--check"]), advice: "run `cargo fmt --all`" },
    Step {
        name: "tidy",
        run: || tidy::run(&workspace_root()),
        advice: "each finding says what to do; the rules are in xtask/src/tidy",
    },
    Step {
        name: "clippy",
        run: || cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
        advice: "run `cargo clippy --workspace --all-targets` and mend what it says",
    },
    Step {
        name: "clippy of the simulator",
        run: || {
            let feature = ["--features", "simulation", "--lib", "--test", "simulation"];
            cargo(&[&["clippy", "-p", "blixard-node", "--locked"], &feature[..], &["--", "-D", "warnings"]].concat())
        },
        advice: "run `cargo clippy -p blixard-node --features simulation --lib --test simulation`",
    },
    Step {
        name: "guest",
        run: || guest::run(false, true),
        advice: "run `cargo xtask guest --refresh --check`; it shows the guest's console",
    },
    Step {
        name: "tests",
        run: || cargo(&["test", "--workspace", "--locked"]),
        advice: "run the failed test alone: `cargo test -p <crate> <name> -- --nocapture`",
    },
    Step {
        name: "fuzzing",
        run: || fuzz::run(&fuzz::Request { target: None, seconds: fuzz::GATE_SECONDS, input: None }),
        advice: "run `cargo xtask fuzz TARGET --input FILE` with an input that is named above",
    },
    Step {
        name: "schema",
        run: schema::run,
        advice: "run `cargo xtask schema`; it shows each request whose answer is not as docs/openapi.json says",
    },
    Step {
        name: "package",
        // A release takes minutes to build and differs in nothing that is looked at here.
        run: || dist::run(true),
        advice: "run `cargo xtask dist --dev`; it says what each check found",
    },
    Step {
        name: "simulator",
        run: || sim::run(&sim::Arguments::check()),
        advice: "run `cargo xtask sim --seed S` with the seed that is named; `BLIXARD_SIM_TRACE=info` shows what happens",
    },
    Step { name: "demo", run: || demo::run(false), advice: "run `cargo xtask demo`; the logs above say more" },
];

/// Runs all steps; an error names the one that failed.
pub fn run() -> Result<()> {
    let started = Instant::now();
    let mut times = Vec::new();
    for (number, step) in (1..).zip(STEPS) {
        println!("ci: [{number}/{}] {}", STEPS.len(), step.name);
        let step_started = Instant::now();
        if let Err(error) = (step.run)() {
            bail!("step {} failed after {}: {error:#}\nci: {}", step.name, shown(step_started), step.advice);
        }
        times.push(format!("{} {}", step.name, shown(step_started)));
        println!("ci: {} passed in {}", step.name, shown(step_started));
    }
    println!("all steps passed in {} ({})", shown(started), times.join(", "));
    // The closing line in the form that test runners give it, here of steps.
    println!("ci: {} passed, 0 failed", STEPS.len());
    Ok(())
}

fn shown(since: Instant) -> String {
    let seconds = since.elapsed().as_secs();
    format!("{} m {:02} s", seconds / 60, seconds % 60)
}

fn tools() -> Result<()> {
    setup::install_missing(setup::EVERYTHING)?;
    for (program, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if process::output(Command::new("cargo").args([program, "--version"])).is_ok() {
            continue;
        }
        let mut command = Command::new("rustup");
        command.args(["component", "add", component]);
        println!("running: {}", process::shown(&command));
        process::check(&mut command).with_context(|| format!("install {component}, which `cargo {program}` needs"))?;
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    process::check(process::cargo().args(arguments).current_dir(workspace_root()))
}
