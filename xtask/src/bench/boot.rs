//! How long a vm takes from `vm create` to its guest's ready line, beside the same QEMU without a cluster around it.
//!
//! The bare run uses the very words with which the node started QEMU, with the console on standard output in place of
//! the guard's socket, and the names of files for the descriptors that the guard hands over. The image is on the node before the first run, so that nothing is fetched.

use super::Request;
use super::samples::{Findings, Goal, Samples};
use crate::cluster::{self, Cluster, Entry, PATIENCE};
use crate::guest;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

const IMAGE: &str = "tiny";
const VM: &str = "probe";
/// The most that a cluster may add to QEMU itself.
const GOAL_MS: f64 = 100.0;
/// The guard's sockets as they stand in QEMU's words, and what the bare run has in their place.
const CHARDEVS: &[(&str, &str)] = &[("id=monitor0", "null,id=monitor0"), ("id=serial0", "stdio,id=serial0,signal=off")];
/// How QEMU's words name a descriptor: where it opens it anew, and where it stands for a disk's file.
const DESCRIPTORS: [&str; 2] = ["/proc/self/fd/", "/dev/fdset/"];
/// What hands a descriptor to QEMU; the number of the set is that of the descriptor.
const HANDS_OVER: &str = "-add-fd";
/// The only file that goes with the vm, and so is copied.
const SEED: &str = "seed.img";
/// Where a guard finds what it is to run, with the files in the order of their descriptors.
const PLAN: &str = "plan.json";
const FIRST_FILE_FD: usize = 100;
const POLL: Duration = Duration::from_millis(50);

pub(super) fn run(request: &Request) -> Result<Findings> {
    let mut created = Samples::of("`vm create` says that it runs", "ms");
    let mut ready = Samples::of("guest of `vm create` is ready", "ms");
    let mut bare = Samples::of("guest of bare QEMU is ready", "ms");
    let mut over = Samples::of("guest of `vm create`, over bare QEMU", "ms");
    let mut cluster = Cluster::new(request.binary, request.interrupt)?;
    cluster.start(1, &Entry::Found)?;
    cluster.wait_for_voters(1, 1, 1)?;
    let file = |name: &str| guest::folder().join(name).display().to_string();
    let (kernel, initrd) = (file(guest::KERNEL), file(guest::INITRD));
    let import = ["image", "import", "--name", IMAGE, "--kernel", &kernel, "--initrd", &initrd];
    cluster.ask(1, &[&import[..], &["--cmdline", "console=ttyS0 quiet"]].concat())?;
    for run in 1..=request.runs {
        let started = Instant::now();
        let elapsed_ms = || started.elapsed().as_secs_f64() * 1000.0;
        cluster.ask(1, &["vm", "create", VM, "--image", IMAGE, "--memory", "256M"])?;
        let created_ms = elapsed_ms();
        let logs = cluster.command_to(1, &["vm", "logs", "-f", VM]);
        Reading::start(logs)?.wait_for_ready(request)?;
        let ready_ms = elapsed_ms();
        let words = Qemu::of(&cluster)?;
        cluster.ask(1, &["vm", "delete", VM])?;

        let started = Instant::now();
        Reading::start(words.command())?.wait_for_ready(request)?;
        let bare_ms = started.elapsed().as_secs_f64() * 1000.0;
        println!(
            "bench: run {run}: runs after {created_ms:.0} ms, ready after {ready_ms:.0} ms; bare QEMU {bare_ms:.0} ms"
        );
        created.add(created_ms);
        ready.add(ready_ms);
        bare.add(bare_ms);
        over.add(ready_ms - bare_ms);
    }
    cluster.shut_down()?;
    let goals = Goal::at_most("over bare QEMU, median", over.median(), GOAL_MS).into_iter().collect();
    Ok(Findings { all: vec![created, ready, bare, over], goals })
}

/// How a node runs QEMU.
struct Qemu {
    words: Vec<String>,
}

impl Qemu {
    /// From the vm's process; its seed disk is copied, because it goes with the vm.
    fn of(cluster: &Cluster) -> Result<Self> {
        let view = cluster.ask_json(1, &["vm", "status", VM])?;
        let pid = cluster::unsigned(&view, "/live/pid")?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).context("read how the node started QEMU")?;
        let line = String::from_utf8(line).context("read how the node started QEMU")?;
        let folder = cluster.data_dir(1).join("vms").join(cluster::text(&view, "/id")?);
        let plan = fs::read(folder.join(PLAN)).context("read what the guard was to run")?;
        let plan = serde_json::from_slice(&plan).context("read what the guard was to run")?;
        let files = handed(&plan).context("the plan names its files in a way that is not known here")?;
        let seed = cluster.dir().join(SEED);
        let paths =
            files.into_iter().map(|path| if path == Path::new(SEED) { seed.clone() } else { folder.join(path) });
        fs::copy(folder.join(SEED), &seed).context("copy the seed")?;
        Ok(Self { words: bare(line.split_terminator('\0'), &paths.collect::<Vec<_>>())? })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }
}

/// The files that the guard hands to QEMU.
fn handed(plan: &Value) -> Option<Vec<PathBuf>> {
    plan["files"].as_array()?.iter().map(|file| Some(PathBuf::from(file["path"].as_str()?))).collect()
}

/// QEMU's words with the console on standard output, and with paths for descriptors.
fn bare<'a>(words: impl Iterator<Item = &'a str>, files: &[PathBuf]) -> Result<Vec<String>> {
    let mut replaced = 0;
    let mut bare: Vec<String> = Vec::new();
    for word in words {
        if bare.last().is_some_and(|last| last == HANDS_OVER) {
            bare.pop();
            continue;
        }
        let chardev = CHARDEVS.iter().find(|(id, _)| word.starts_with("socket,") && word.contains(id));
        replaced += usize::from(chardev.is_some());
        let mut word = chardev.map_or(word, |(_, new)| new).to_owned();
        for (number, file) in (FIRST_FILE_FD..).zip(files) {
            for descriptor in DESCRIPTORS {
                word = word.replace(&format!("{descriptor}{number}"), &file.display().to_string());
            }
        }
        bare.push(word);
    }
    ensure!(
        replaced == CHARDEVS.len() && !bare.is_empty(),
        "QEMU was started in a way that is not known here: {bare:?}"
    );
    Ok(bare)
}

/// A program whose output is read until the guest is ready. Killed when dropped.
pub(super) struct Reading {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Reading {
    pub(super) fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        let stdout = child.stdout.take().expect("stdout was piped just now");
        let (send, lines) = mpsc::channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            // The end of the output, or of the listener, ends this.
            while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                if send.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Ok(Self { child, lines })
    }

    pub(super) fn wait_for_ready(mut self, request: &Request) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(POLL) {
                Ok(line) if line == guest::READY => return Ok(()),
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Timeout) => request.interrupt.check()?,
                Err(RecvTimeoutError::Disconnected) => {
                    let mut said = String::new();
                    let stderr = self.child.stderr.take().expect("stderr was piped and never taken");
                    stderr.take(4096).read_to_string(&mut said).context("read why it ended")?;
                    bail!("it ended before the guest was ready: {}\n{}", said.trim(), seen.join("\n"));
                }
            }
            ensure!(Instant::now() < deadline, "the guest was not ready within {PATIENCE:?}:\n{}", seen.join("\n"));
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Fails when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_the_guard_holds_is_replaced() {
        let line = "qemu -m 256M -kernel /proc/self/fd/100 -add-fd fd=101,set=101 -blockdev {/dev/fdset/101} -chardev socket,id=monitor0,fd=0 -chardev socket,id=serial0,fd=1 -serial chardev:serial0";
        let files = ["/vmlinuz".into(), "/seed".into()];
        let words = bare(line.split(' '), &files).unwrap().join(" ");
        let expected = "qemu -m 256M -kernel /vmlinuz -blockdev {/seed} -chardev null,id=monitor0 -chardev stdio,id=serial0,signal=off -serial chardev:serial0";
        assert_eq!(words, expected);
        assert!(bare("qemu -serial stdio".split(' '), &[]).is_err());
        assert!(bare(std::iter::empty(), &[]).is_err());
    }
}
