//! How long a vm takes from `vm create` to its guest's ready line, beside the same QEMU without a cluster around it.
//!
//! The bare run uses the very words with which the node started QEMU, with the console on standard output in place of
//! the guard's socket. The image is on the node before the first run, so that nothing is fetched.

use super::Request;
use super::samples::Samples;
use crate::cluster::{self, Cluster, Entry, PATIENCE};
use crate::guest;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

const IMAGE: &str = "tiny";
const VM: &str = "probe";
/// The guard's sockets as they stand in QEMU's words, and what the bare run has in their place.
const CHARDEVS: &[(&str, &str)] = &[("id=monitor0", "null,id=monitor0"), ("id=serial0", "stdio,id=serial0,signal=off")];
/// The only file that QEMU's words name by a path relative to the vm's folder.
const SEED: &str = "seed.img";
const POLL: Duration = Duration::from_millis(50);

pub(super) fn run(request: &Request) -> Result<Vec<Samples>> {
    let mut created = Samples::of("`vm create` says that it runs", "ms");
    let mut ready = Samples::of("guest of `vm create` is ready", "ms");
    let mut bare = Samples::of("guest of bare QEMU is ready", "ms");
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
    }
    cluster.shut_down()?;
    Ok(vec![created, ready, bare])
}

/// How a node runs QEMU.
struct Qemu {
    words: Vec<String>,
    folder: std::path::PathBuf,
}

impl Qemu {
    /// From the vm's process; its seed disk is copied, because it goes with the vm.
    fn of(cluster: &Cluster) -> Result<Self> {
        let view = cluster.ask_json(1, &["vm", "status", VM])?;
        let pid = cluster::unsigned(&view, "/live/pid")?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).context("read how the node started QEMU")?;
        let line = String::from_utf8(line).context("read how the node started QEMU")?;
        let words = bare(line.split_terminator('\0'))?;
        let folder = cluster.dir().join("bare");
        fs::create_dir_all(&folder).context("make a folder for bare QEMU")?;
        let seed = cluster.data_dir(1).join("vms").join(cluster::text(&view, "/id")?).join(SEED);
        fs::copy(&seed, folder.join(SEED)).with_context(|| format!("copy {}", seed.display()))?;
        Ok(Self { words, folder })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).current_dir(Path::new(&self.folder));
        command
    }
}

/// QEMU's words with the console on standard output.
fn bare<'a>(words: impl Iterator<Item = &'a str>) -> Result<Vec<String>> {
    let mut replaced = 0;
    let mut bare: Vec<String> = Vec::new();
    for word in words {
        let chardev = CHARDEVS.iter().find(|(id, _)| word.starts_with("socket,") && word.contains(id));
        replaced += usize::from(chardev.is_some());
        bare.push(chardev.map_or(word, |(_, new)| new).to_owned());
    }
    ensure!(
        replaced == CHARDEVS.len() && !bare.is_empty(),
        "QEMU was started in a way that is not known here: {bare:?}"
    );
    Ok(bare)
}

/// A program whose output is read until the guest is ready. Killed when dropped.
struct Reading {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Reading {
    fn start(mut command: Command) -> Result<Self> {
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

    fn wait_for_ready(mut self, request: &Request) -> Result<()> {
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
    fn only_the_sockets_of_the_guard_are_replaced() {
        let line =
            "qemu -m 256M -chardev socket,id=monitor0,fd=0 -chardev socket,id=serial0,fd=1 -serial chardev:serial0";
        let words = bare(line.split(' ')).unwrap().join(" ");
        let expected =
            "qemu -m 256M -chardev null,id=monitor0 -chardev stdio,id=serial0,signal=off -serial chardev:serial0";
        assert_eq!(words, expected);
        assert!(bare("qemu -serial stdio".split(' ')).is_err());
        assert!(bare(std::iter::empty()).is_err());
    }
}
