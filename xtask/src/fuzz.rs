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
/// How long each target is fuzzed in the gate, in seconds. New code that breaks does so within the first few thousand inputs,
/// and each target tries more than a thousand a second.
pub const GATE_SECONDS: u32 = 8;
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

/// What cargo says of a build, message by message.
fn messages(cargo: &mut Command) -> Result<Vec<serde_json::Value>> {
    let text = process::text(cargo.args(["--quiet", "--locked", "--message-format=json-render-diagnostics"]))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Builds libFuzzer; gives its archive.
fn engine() -> Result<PathBuf> {
    let manifest = workspace_root().join("fuzz/engine/Cargo.toml");
    let mut cargo = process::cargo();
    cargo.args(["build", "--manifest-path"]).arg(manifest).arg("--target-dir").arg(folder("engine"));
    let out_dir = messages(&mut cargo).context("build libFuzzer")?.into_iter().find_map(|message| {
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
    let mut cargo = process::cargo();
    // Which features a package from elsewhere is built with depends on what else is chosen. With all of the workspace and its
    // tests chosen, it is built as for them, and one build serves both.
    cargo
        .args(["test", "--no-run", "--workspace", "--test", "engine", "--features", "fuzz/engine"])
        .env("RUSTC_WORKSPACE_WRAPPER", root.join("fuzz/instrument.sh"))
        .env("BLIXARD_FUZZ_ENGINE", engine)
        .current_dir(&root);
    let program = messages(&mut cargo).context("build the fuzz targets")?.into_iter().find_map(|message| {
        let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == "engine";
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    });
    // A copy, so that a build meanwhile does not take it away.
    let copy = folder("decoders");
    fs::copy(program.context("cargo does not say where it built the targets")?, &copy)
        .context("keep the program with the targets")?;
    Ok(copy)
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
            "target {target} ended with {}:\n{}\n{}Try an input alone with `cargo xtask fuzz {target} --input FILE`; once it is \
             mended, keep it as fuzz/corpus/{target}/found-WHAT.",
            output.status,
            lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"),
            kept_inputs(&said)
        );
    }
    let stat = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name));
        line.map_or("?", |line| line.trim_start_matches(':').trim())
    };
    if let Some(input) = request.input {
        return Ok(format!("{target}: {} breaks nothing", input.display()));
    }
    let tried = stat("number_of_executed_units");
    let seeds = fs::read_dir(corpus().join(target)).context("count the corpus")?.count();
    // A run that only looked at its corpus, or at nothing, has found nothing out.
    ensure!(
        tried.parse().is_ok_and(|tried: usize| tried > seeds),
        "target {target} tried {tried} inputs, with {seeds} to begin with"
    );
    Ok(format!(
        "{target}: {tried} inputs, {} a second, {} MiB at most",
        stat("average_exec_per_sec"),
        stat("peak_rss_mb")
    ))
}

/// The inputs that a run has kept, with their bytes: whoever reads this may not have the machine that it ran on.
fn kept_inputs(said: &str) -> String {
    let paths = said.lines().filter_map(|line| Some(line.split_once("Test unit written to ")?.1.trim()));
    let shown = paths.map(|path| match fs::read(path) {
        Ok(input) => {
            let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            let (bytes, text) = (input.len(), input.escape_ascii());
            format!("Kept as {path}, {bytes} bytes: {text}\nThe same for `xxd -r -p`: {digits}\n")
        }
        Err(error) => format!("Not kept as {path}: {error}\n"),
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_found_is_shown_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("crash-1");
        fs::write(&path, b"{\"a\0\xff").unwrap();
        let said = format!("==1== ERROR\nartifact_prefix='./'; Test unit written to {}\nBase64: \n", path.display());
        let shown = kept_inputs(&said);
        assert!(shown.contains(r#"5 bytes: {\"a\x00\xff"#) && shown.contains(": 7b226100ff\n"), "{shown}");
        assert_eq!(kept_inputs("Done 5 runs"), "");
    }
}
