//! `cargo xtask fuzz`: libFuzzer on every decoder of outside bytes, with the stable compiler and in a few minutes.
//!
//! `cargo fuzz` builds every package anew with coverage. Here only our own crates are (`fuzz/instrument.sh`). The engine is built apart from them (`fuzz/engine`) and linked at the end.

use crate::{process, setup, workspace_root};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

/// Longer inputs find nothing more in these decoders, and make each try slower.
const INPUT_BYTES_MAX: u32 = 4096;
/// One input takes a millisecond at most; ten seconds of a busy machine are a decoder that hangs.
const INPUT_SECONDS_MAX: u32 = 10;
/// The program with its corpus takes some 100 MiB.
const MEMORY_MIB_MAX: u32 = 1024;
/// What is shown of a run that found something: libFuzzer's last words, with the panic.
const LINES_SHOWN: usize = 40;

/// What to fuzz.
pub struct Request<'a> {
    /// The only target, or all.
    pub target: Option<&'a str>,
    /// How long each is fuzzed, in seconds.
    pub seconds: u32,
    /// Only this input is tried.
    pub input: Option<&'a Path>,
}

/// Fuzzes, some targets at a time; an error names the inputs that were found.
pub fn run(request: &Request<'_>) -> Result<()> {
    let known = targets()?;
    let chosen: Vec<&String> = match request.target {
        None => known.iter().collect(),
        Some(name) => vec![
            known
                .iter()
                .find(|known| *known == name)
                .with_context(|| format!("there is no target {name}; there are {}", known.join(", ")))?,
        ],
    };
    ensure!(request.input.is_none() || request.target.is_some(), "name the target that the input is for");
    setup::install_missing(setup::FUZZ)?;
    let program = build(&engine()?)?;
    let at_a_time = thread::available_parallelism().map_or(1, usize::from);
    let mut found = Vec::new();
    for some in chosen.chunks(at_a_time) {
        let results = thread::scope(|scope| {
            let runs: Vec<_> = some.iter().map(|target| scope.spawn(|| fuzz_one(&program, target, request))).collect();
            runs.into_iter().map(|run| run.join().expect("a run does not panic")).collect::<Vec<_>>()
        });
        for result in results {
            match result {
                Ok(said) => println!("fuzz: {said}"),
                Err(error) => found.push(format!("{error:#}")),
            }
        }
    }
    ensure!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

fn folder(name: &str) -> PathBuf {
    workspace_root().join("target/fuzz").join(name)
}

fn corpus() -> PathBuf {
    workspace_root().join("fuzz/corpus")
}

/// Each target has a folder with its corpus; a test of `fuzz` holds that.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(corpus()).context("list the corpora")? {
        names.push(entry.context("list the corpora")?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds libFuzzer; gives its archive.
fn engine() -> Result<PathBuf> {
    let target_dir = folder("engine");
    let manifest = workspace_root().join("fuzz/engine/Cargo.toml");
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked", "--message-format=json", "--manifest-path"]).arg(manifest);
    let messages = process::text(cargo.arg("--target-dir").arg(target_dir)).context("build libFuzzer")?;
    let out_dir = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_its = message["reason"] == "build-script-executed"
            && message["package_id"].as_str().is_some_and(|package| package.contains("libfuzzer-sys"));
        is_its.then(|| message["out_dir"].as_str().map(PathBuf::from)).flatten()
    });
    let archive = out_dir.context("cargo does not say where it built libFuzzer")?.join("libfuzzer.a");
    ensure!(archive.is_file(), "there is no {}", archive.display());
    Ok(archive)
}

/// Builds the program with all targets.
fn build(engine: &Path) -> Result<PathBuf> {
    let root = workspace_root();
    let mut cargo = Command::new("cargo");
    cargo
        .args(["rustc", "--quiet", "--locked", "--package", "fuzz", "--bin", "decoders", "--features", "engine", "--"])
        .arg(format!("-Clink-arg={}", engine.display()))
        .arg("-Clink-arg=-lstdc++")
        .env("RUSTC_WORKSPACE_WRAPPER", root.join("fuzz/instrument.sh"))
        .current_dir(&root);
    process::check(&mut cargo).context("build the fuzz targets")?;
    // A copy, so that a build meanwhile does not take it away.
    let program = folder("decoders");
    fs::copy(root.join("target/debug/decoders"), &program).context("keep the program with the targets")?;
    Ok(program)
}

/// Runs one target; says how many inputs were tried.
fn fuzz_one(program: &Path, target: &str, request: &Request<'_>) -> Result<String> {
    let mut command = Command::new(program);
    command.env("BLIXARD_FUZZ_TARGET", target);
    let artifacts = folder("found").join(target);
    fs::create_dir_all(&artifacts).context("make a folder for what is found")?;
    match request.input {
        Some(input) => {
            command.arg(input);
        }
        None => {
            // What is learnt goes to the first folder and is the start of the next run; ours is only read.
            let learnt = folder("learnt").join(target);
            fs::create_dir_all(&learnt).context("make a folder for what is learnt")?;
            command.arg(learnt).arg(corpus().join(target));
            command.arg(format!("-max_total_time={}", request.seconds));
        }
    }
    command
        .arg(format!("-max_len={INPUT_BYTES_MAX}"))
        .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1");
    let output = command.output().with_context(|| format!("start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines: Vec<&str> = said.lines().collect();
        bail!(
            "target {target} ended with {}:\n{}\nTry the input alone with `cargo xtask fuzz {target} --input FILE`; once it \
             is mended, keep it as fuzz/corpus/{target}/found-WHAT.",
            output.status,
            lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
        );
    }
    let stat = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        line.map_or("?", |line| line.trim_start_matches(':').trim())
    };
    Ok(match request.input {
        Some(input) => format!("{target}: {} breaks nothing", input.display()),
        None => format!(
            "{target}: {} inputs, {} a second, {} MiB at most",
            stat("number_of_executed_units"),
            stat("average_exec_per_sec"),
            stat("peak_rss_mb")
        ),
    })
}
